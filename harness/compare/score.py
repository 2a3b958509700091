"""The harness's own score on both sides: a small run of an eval's primary contrast on each, and their paired difference.

Asked through the runner, with a journal that lasts as long as the comparison: an endpoint that has changed since it was last
asked must not be answered for by what it said then.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.compare.asking import Side
from harness.compare.margin import decide
from harness.compare.result import ScoreDifference
from harness.errors import BudgetSpentError, CapabilityError
from harness.evals.plan import Choice, Plan, count_prompts, make_plan
from harness.evals.runner import Job, Tally, ask_all, make_job
from harness.evals.spec import METRICS, Metric, Primary, find_eval
from harness.evals.trials import scored_batches
from harness.packs.pack import find_pack
from harness.packs.sampling import generator, subset
from harness.records import Mode
from harness.stats.bounds import difference_bounds
from harness.stats.crossed import NO_VARIATION, Trials, contrast_two_way
from harness.store import Journal

N_CONCEPTS = 8
"""Concepts that are scored where the user names none."""

UNITS: dict[str, str] = {metric: "nat" if metric == "delta_log_odds" else "share of 1" for metric in METRICS}

_LOST = 0.5
"""Where more than this share of trials has no log-odds (a list that hides the concept), masses are compared instead."""

Stage = Callable[[str], AbstractContextManager[Callable[[Tally], None]]]
"""Shows how far a part of the asking is, under a title."""

Key = tuple[str, str, str, str]
"""Concept, arm, sentence, injection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """One side's trials. `bounds`: by metric, the (low, high) of each trial's shift; `values`: the shift as a run reports it.

    `comparable`: equal where both sides saw as much of each distribution, so that their values may be subtracted.
    """

    bounds: dict[str, dict[Key, tuple[float, float]]]
    values: dict[str, dict[Key, float]]
    comparable: tuple[str, int]
    primary: Primary | None
    failed_share: float


def small_plan(eval_name: str, *, concepts: tuple[str, ...], limit: int, seed: int) -> Plan:
    """The eval with its primary contrast's arms alone, on a few of its concepts."""
    eval_ = find_eval(eval_name)
    plan = make_plan(eval_, find_pack(eval_.spec.pack), Choice(concepts=concepts, limit=limit, seed=seed))
    chosen = plan.concepts if concepts else subset(plan.concepts, N_CONCEPTS, generator(seed, "scored concepts"))
    wanted: set[str] = set()
    for mode in Mode:
        if (primary := replace(plan, mode=mode).primary) is not None:
            wanted |= {primary.arm, primary.control}
    return replace(plan, concepts=tuple(chosen), arms=tuple(arm for arm in plan.arms if arm in wanted))


def common_mode(a: Side, b: Side) -> dict[str, Mode] | str:
    """How each side is to be observed, or why the two cannot be compared: lists are not compared with draws."""
    able = [side.provider.info.capabilities.able() for side in (a, b)]
    shown = [[mode for mode in modes if not mode.drawn] for modes in able]
    if all(shown):
        both = [mode for mode in shown[0] if mode in shown[1]]
        return {side.name: both[0] if both else modes[0] for side, modes in zip((a, b), shown, strict=True)}
    drawn = [mode for mode in able[0] if mode.drawn and mode in able[1]]
    if drawn:
        return {a.name: drawn[0], b.name: drawn[0]}
    return "one side shows log-probabilities and the other one draws: scores from both are not comparable"


async def score(side: Side, plan: Plan, mode: Mode, on_progress: Callable[[Tally], None]) -> Scored:
    """Ask one side everything in the plan, and score it; raises CapabilityError where it cannot be."""
    plan = replace(plan, choice=replace(plan.choice, mode=mode))
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder) / "journal.sqlite") as journal:
        job = make_job(plan, side.provider, journal)
        tally = Tally(planned=count_prompts(job.plan))
        try:
            await ask_all(job, tally, on_progress)
        except BudgetSpentError as exc:
            tally.stop(f"{exc.limit} is reached")
        side.asked += tally.done + tally.failed - tally.not_asked
        return _read(job, tally)


def _read(job: Job, tally: Tally) -> Scored:
    bounds: dict[str, dict[Key, tuple[float, float]]] = {metric: {} for metric in UNITS}
    values: dict[str, dict[Key, float]] = {metric: {} for metric in UNITS}
    for concept in job.plan.concepts:
        for batch in scored_batches(job, concept, None):
            if batch.trials is None:
                continue
            names = (batch.trials[name] for name in ("concept", "arm", "sentence_id", "injection_id"))
            keys: list[Key] = list(zip(*names, strict=True))
            for metric in UNITS:
                low, high = (batch.trials[name] for name in bounds_of(metric))
                bounds[metric].update(zip(keys, zip(low, high, strict=True), strict=True))
                values[metric].update(zip(keys, batch.trials[metric], strict=True))
    return Scored(
        bounds=bounds,
        values=values,
        comparable=(job.plan.mode, job.n_logprobs),
        primary=job.plan.primary,
        failed_share=tally.failed / max(tally.planned, 1),
    )


def bounds_of(metric: str) -> tuple[str, str]:
    """The columns of a metric's bounds; a success is known or missing."""
    return (f"{metric}_low", f"{metric}_high") if metric.startswith("delta_") else (metric, metric)


def difference(a: Scored, b: Scored, primary: Primary, *, alpha: float, mass_margin: float | None = None) -> ScoreDifference:
    """A's primary contrast minus B's, over the trials that both have, with an interval of 1 - 2 `alpha`.

    Each trial's difference is one value, so what sentences and injections have in common drops out before the two-way interval
    (Miller 2024, section on paired differences; Cameron, Gelbach and Miller 2011). Where the sides saw unequally much of the
    distributions the differences are bounds. `mass_margin`: for where most trials have no log-odds and masses are compared; a
    twentieth of the margin in nats by default, for at a mass of 0.05 a shift of the log-odds moves it by about a twentieth.
    """
    metric: Metric = primary.metric
    margin = primary.margin
    if metric == "delta_log_odds" and _lost(a, b, metric) > _LOST:
        metric, margin = "delta_mass", mass_margin or primary.margin / 20
    arms = [_trials(a, b, metric, arm) for arm in (primary.arm, primary.control)]
    estimate = contrast_two_way(arms[0], arms[1], confidence=1 - 2 * alpha)
    low, high = estimate.ci_low, estimate.ci_high
    if estimate.reason == NO_VARIATION:  # the same difference everywhere, to the bit
        low, high = estimate.value_low, estimate.value_high
    if low is None or high is None:
        return replace(
            refused(primary, estimate.reason or "no interval"),
            metric=metric,
            unit=UNITS[metric],
            margin=margin,
            estimate=estimate.value,
            n_trials=estimate.n_trials,
        )
    return ScoreDifference(
        metric=metric,
        arm=primary.arm,
        control=primary.control,
        unit=UNITS[metric],
        margin=margin,
        decision=decide(low, high, margin),
        estimate=estimate.value,
        ci_low=low,
        ci_high=high,
        n_trials=estimate.n_trials,
    )


def refused(primary: Primary, reason: str) -> ScoreDifference:
    """No decision, and why."""
    return ScoreDifference(
        metric=primary.metric,
        arm=primary.arm,
        control=primary.control,
        unit=UNITS[primary.metric],
        margin=primary.margin,
        decision="inconclusive",
        reason=reason,
    )


async def scores(a: Side, b: Side, plan: Plan, alpha: float, stage: Stage) -> tuple[ScoreDifference, float]:
    """Both sides' scores compared, and the share of prompts that failed on the worse side; `stage` shows how far each is."""
    declared = plan.primary or plan.eval.spec.primary[0]
    modes = common_mode(a, b)
    if isinstance(modes, str):
        return refused(declared, modes), 0.0
    scored = []
    for side in (a, b):
        try:
            with stage(f"score of {side.name}, {side.spec.name}") as show:
                scored.append(await score(side, plan, modes[side.name], show))
        except CapabilityError as exc:
            return refused(declared, f"{side.name}: {exc.message}"), 0.0
    primary = scored[0].primary
    if primary is None:
        return refused(declared, f"eval {plan.eval.name!r} has no primary contrast for this pack and mode"), 0.0
    found = difference(scored[0], scored[1], primary, alpha=alpha, mass_margin=_mass_margin(plan, primary))
    return found, max(one.failed_share for one in scored)


def _trials(a: Scored, b: Scored, metric: str, arm: str) -> Trials:
    """The differences A - B of one arm's trials that both sides have."""
    keys = [key for key in a.values[metric] if key[1] == arm and key in b.values[metric]]
    if a.comparable == b.comparable:
        low = np.array([a.values[metric][key] - b.values[metric][key] for key in keys], np.float64)
        high = low
    else:
        ends = _ends(a, metric, keys), _ends(b, metric, keys)
        low, high = difference_bounds(ends[0][:, 0], ends[0][:, 1], ends[1][:, 0], ends[1][:, 1])
    sentences = [f"{concept}/{sentence}" for concept, _, sentence, _ in keys]
    injections = [f"{concept}/{injection}" for concept, _, _, injection in keys]
    return Trials.of(low, np.array(sentences, np.str_), np.array(injections, np.str_), high=high)


def _ends(scored: Scored, metric: str, keys: list[Key]) -> NDArray[np.float64]:
    return np.array([scored.bounds[metric][key] for key in keys], np.float64).reshape(-1, 2)


def _lost(a: Scored, b: Scored, metric: str) -> float:
    """The share of trials without a shift on one of the sides."""
    keys = a.values[metric].keys() & b.values[metric].keys()
    return float(np.mean([np.isnan(a.values[metric][k] - b.values[metric][k]) for k in keys])) if keys else 0.0


def _mass_margin(plan: Plan, primary: Primary) -> float | None:
    """The margin that the eval gives to the mass of the same contrast, if it does."""
    own = (one for one in plan.eval.spec.primary if one.metric == "delta_mass")
    return next((one.margin for one in own if (one.arm, one.control) == (primary.arm, primary.control)), None)
