"""Asking for a gate: what is asked, and cluster after cluster with a look at the answer in between, until it is clear."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from harness.errors import BudgetSpentError, CapabilityError
from harness.evals.plan import Plan, clean_prompts, injected_prompts, sentences_of
from harness.evals.runner import Job, Tally, ask_all
from harness.evals.spec import GateSpec
from harness.evals.trials import scored_batches
from harness.gate.answers import Answer, answers_of, is_looked_at
from harness.gate.baseline import Cluster
from harness.gate.judge import Evidence, anytime_score, decide, look, pair
from harness.gate.result import Look
from harness.records import Mode, TargetInfo
from harness.reports.parquet import observation_columns

AT_ONCE = 60
"""Clusters that are asked between two looks: fewer leave a target idle, more ask on after the answer is clear."""

Progress = Callable[[Tally], None]


def listing_mode(info: TargetInfo, gate: GateSpec) -> Mode:
    """The best mode of a target in which the gate's metric can be had; raises CapabilityError where there is none.

    It is set for all concepts: a run left to itself would amplify those that lists hide, which may change from run to run.
    """
    able = [mode for mode in info.capabilities.able() if gate.metric != "agreement" or not mode.drawn]
    if not able:
        raise CapabilityError(
            f"{info.target} shows no log-probabilities, and agreement is about them",
            hint="take an eval whose [gate] has the metric delta_mass or mass_success",
        )
    return able[0]


def looked_at(plan: Plan, gate: GateSpec) -> list[str]:
    """The ids of all prompts of a plan that the gate looks at."""
    found = []
    for name in plan.concepts:
        concept = plan.pack.concept(name)
        sentences = sentences_of(plan, concept)
        for prompts in (clean_prompts(plan, sentences), injected_prompts(plan, concept, sentences)):
            found += [prompt.prompt_id for prompt in prompts if is_looked_at(gate, prompt.arm)]
    return found


def prompts_of(clusters: Sequence[Cluster]) -> list[str]:
    """The ids of the clusters' prompts."""
    return [entry.prompt for cluster in clusters for entry in cluster.prompts]


def restricted(job: Job, prompts: Iterable[str]) -> Job:
    """The same job, of the prompts with these ids alone."""
    return replace(job, plan=replace(job.plan, only=frozenset(prompts)))


async def ask_prompts(job: Job, gate: GateSpec, tally: Tally, on_progress: Progress) -> list[Answer]:
    """Ask the job's prompts and return what `gate` looks at of the answers."""
    await ask_all(job, tally, on_progress)
    return [
        answer
        for concept in job.plan.concepts
        for batch in scored_batches(job, concept, None)
        for answer in answers_of(observation_columns(batch, None), batch.trials, gate)
    ]


async def ask_until_clear(
    job: Job, clusters: Sequence[Cluster], gate: GateSpec, tally: Tally, on_progress: Progress
) -> Evidence:
    """Ask `clusters` in their order, and stop as soon as it passes or fails, or too many prompts failed for it to pass.

    `tally.planned` is then what was asked. A limit that is reached ends the asking too: the clusters under way are left out.
    Raises BudgetSpentError where there are no others.
    """
    answers: dict[str, Answer] = {}
    looks: list[Look] = []
    stopped, n_heard = None, 0
    most_failed = gate.max_failed_share * tally.planned
    for end in range(AT_ONCE, len(clusters) + AT_ONCE, AT_ONCE):
        part = restricted(job, prompts_of(clusters[end - AT_ONCE : end]))
        try:
            answers |= {one.prompt: one for one in await ask_prompts(part, gate, tally, on_progress)}
        except BudgetSpentError as exc:
            if not n_heard:
                raise
            stopped = exc.limit
            break
        n_heard = min(end, len(clusters))
        pairs = pair(clusters[:end], answers, gate)
        score = anytime_score(pairs, gate)
        if score.estimate is not None:
            looks.append(look(score))
        if decide(score, gate.margin) != "inconclusive" or tally.failed > most_failed:
            break
    tally.planned = tally.done + tally.failed
    return Evidence(
        method="anytime",
        n_cap=len(clusters),
        n_heard=n_heard,
        pairs=pairs,
        score=score,
        looks=looks,
        stopped=stopped,
    )
