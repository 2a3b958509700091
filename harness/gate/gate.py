"""The gate: did a target get worse, or change, against an accepted baseline, by more than a margin?

`judge_run` looks at a finished run, `run_gate` asks a target until the answer is clear; both give a `GateResult` and write it
to a folder. `accept_run` and `accept_target` make the baseline.

A gate that asks never answers from the journal of earlier runs: it must hear what is served now. Its answers are kept in a
journal of its own beside its folder, from which an interrupted gate goes on if told to, and which goes when the folder is
written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

from harness.errors import BudgetSpentError, UsageError
from harness.evals.budget import Budget, open_within
from harness.evals.runner import Tally
from harness.evals.spec import GateSpec, find_eval
from harness.gate.answers import Answer, clusters_of, run_answers
from harness.gate.asking import Progress, ask_prompts, ask_until_clear, listing_mode, looked_at, prompts_of, restricted
from harness.gate.baseline import Baseline, Source, default_path, read_baseline, require_comparable, write_baseline
from harness.gate.folder import RUN_REPORT, check_gate_folder, write_result
from harness.gate.judge import Evidence, fixed_score, pair
from harness.gate.order import Order, Rule
from harness.gate.outcome import Counts, outcome
from harness.gate.result import GateResult
from harness.gate.session import declared, plan_anew, plan_like, session
from harness.paths import reports_dir
from harness.providers.base import Provider
from harness.providers.targets import OpenOptions, find_target
from harness.reports.lock import locked
from harness.reports.reading import FinishedRun, read_run
from harness.reports.run import REPORT, replacing

T = TypeVar("T")


DEFAULTS = Rule()


def quiet(_tally: Tally) -> None:
    """Shows no progress."""


def judge_run(run: Path, baseline: Path, rule: Rule = DEFAULTS, *, out: Path | None = None) -> GateResult:
    """Judge the finished run folder `run` and write the answer to `out` (default: reports/<run-id>-gate).

    Raises UsageError where run and baseline cannot be compared, naming each key that differs.
    """
    finished, accepted = read_run(run), read_baseline(baseline)
    source = Source.of(finished.manifest)
    require_comparable(accepted, source.model_dump())
    to = out.absolute() if out else reports_dir() / f"{source.run_id}-gate"
    check_gate_folder(to)
    gate = rule.applied(accepted.gate)
    clusters = rule.capped(accepted.clusters)
    answers = {answer.prompt: answer for answer in run_answers(finished, gate)}
    wanted = prompts_of(clusters)
    _require_asked(finished, accepted, [prompt for prompt in wanted if prompt not in answers])
    errors = [error for prompt in wanted if (error := answers[prompt].error) is not None]
    asked = finished.manifest["counts"]
    counts = Counts(
        planned=len(wanted),
        failed=len(errors),
        requests=asked["planned"] - asked["from_cache"],
        reasons={error: errors.count(error) for error in errors},
        journalled=asked["from_cache"],
    )
    pairs = pair(clusters, answers, gate)
    n = len(clusters)
    evidence = Evidence(method="two-way", n_cap=n, n_heard=n, pairs=pairs, score=fixed_score(pairs, gate))
    result = outcome(evidence, counts, gate, baseline=accepted, run=source, folder=to)
    with locked(to), replacing(to) as folder:
        write_result(result, folder)
    return result


def _require_asked(run: FinishedRun, baseline: Baseline, lacking: list[str]) -> None:
    if lacking:
        raise UsageError(
            f"{run.folder}: {len(lacking)} of the baseline's prompts were not asked, {lacking[0]} among them",
            hint=f"run with the baseline's sizes: {baseline.source.sizes}, and all its concepts",
        )


def run_gate(order: Order, options: OpenOptions | None = None, on_progress: Progress = quiet) -> GateResult:
    """Open the target, ask it cluster by cluster until the answer is clear, and write the answer to `order.out`."""
    read_baseline(order.baseline_path)  # before a model is loaded
    return asyncio.run(_opened(order, options, lambda provider: ask_gate(order, provider, on_progress)))


def accept_target(order: Order, options: OpenOptions | None = None, on_progress: Progress = quiet) -> Path:
    """Open the target, ask everything that the gate may ask, write the run to `order.out` (default: reports/<run-id>), and make
    it the baseline `order.baseline`; returns where that lies."""
    return asyncio.run(_opened(order, options, lambda provider: accept(order, provider, on_progress)))


async def _opened(order: Order, options: OpenOptions | None, work: Callable[[Provider], Coroutine[Any, Any, T]]) -> T:
    provider = await open_within(Budget(limits=order.limits), find_target(order.target), options or OpenOptions())
    try:
        return await work(provider)
    except BudgetSpentError as exc:
        exc.hint = "nothing was decided or accepted; a higher limit lets it ask on"
        raise
    finally:
        await provider.aclose()


async def ask_gate(order: Order, provider: Provider, on_progress: Progress = quiet) -> GateResult:
    """As `run_gate`, of a target that is open; it stays open."""
    accepted = read_baseline(order.baseline_path)
    gate = order.rule.applied(accepted.gate)
    clusters = order.rule.capped(accepted.clusters)
    with session(order, plan_like(order, accepted), provider, gate=True) as asking:
        require_comparable(accepted, asking.source.model_dump())
        tally = Tally(planned=len(prompts_of(clusters)))
        before = _requests(provider)
        evidence = await ask_until_clear(asking.job, clusters, gate, tally, on_progress)
        counts = Counts(
            planned=tally.planned,
            failed=tally.failed,
            requests=_requests(provider) - before if provider.usage else tally.planned - tally.from_cache,
            reasons=tally.reasons,
        )
        result = outcome(evidence, counts, gate, baseline=accepted, run=asking.source, folder=asking.out)
        with replacing(asking.out) as folder:
            page = asking.write(tally, prompts_of(clusters[: evidence.n_heard]), folder)
            (folder / RUN_REPORT).write_text(page, encoding="utf-8")
            write_result(result, folder)
    return result


def _requests(provider: Provider) -> int:
    return provider.usage.requests if provider.usage else 0


async def accept(order: Order, provider: Provider, on_progress: Progress = quiet) -> Path:
    """As `accept_target`, of a target that is open; it stays open."""
    eval_ = find_eval(order.eval)
    gate = declared(eval_)
    plan = plan_anew(order, eval_, mode=listing_mode(provider.info, gate))
    with session(order, plan, provider, gate=False) as asking:
        prompts = looked_at(asking.job.plan, gate)
        tally = Tally(planned=len(prompts))
        answers = await ask_prompts(restricted(asking.job, prompts), gate, tally, on_progress)
        with replacing(asking.out) as folder:
            page = asking.write(tally, prompts, folder)
            (folder / REPORT).write_text(page, encoding="utf-8")
    return _accept(answers, gate, asking.source, order.baseline_path)


def accept_run(run: Path, to: Path | None = None, *, eval_name: str | None = None) -> Path:
    """Make a finished run the baseline, at `to` (default: reports/baselines/<eval>-<target>.json); returns where it lies.

    `eval_name`: where the run's eval is, if it is not found by its name.
    """
    finished = read_run(run)
    source = Source.of(finished.manifest)
    eval_ = find_eval(eval_name or source.eval)
    if eval_.digest != source.eval_digest:
        raise UsageError(f"{run}: eval {eval_.name!r} is not the one that was run, or was edited since", hint="run it again")
    gate = declared(eval_)
    return _accept(run_answers(finished, gate), gate, source, to or default_path(source.eval, source.target))


def _accept(answers: Sequence[Answer], gate: GateSpec, source: Source, to: Path) -> Path:
    """Raises UsageError where too much failed for a baseline."""
    failed = [answer.error for answer in answers if answer.error is not None]
    if len(failed) > gate.max_failed_share * len(answers):
        raise UsageError(
            f"{len(failed)} of {len(answers)} prompts failed, the first with: {failed[0]}; that makes no baseline",
            hint=f"harness targets check {source.target} says what is wrong",
        )
    clusters = clusters_of(answers, gate, source.seed)
    write_baseline(Baseline(format=1, gate=gate, source=source, clusters=clusters), to)
    return to
