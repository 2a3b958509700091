"""From evidence to the whole answer: decision, exit code, and the sentence that says it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.evals.measures import number
from harness.evals.spec import METRICS, GateSpec
from harness.gate.baseline import Baseline, Source, differences
from harness.gate.judge import Evidence, Pairs, by_concept, decide, unit_of
from harness.gate.result import Decision, GateResult, Score, Unit

MOST_UNITS = 20
"""Prompts that are shown of those that moved most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Prompts looked at and failed, why, and what they took. `journalled`: those answered from the journal of earlier runs."""

    planned: int
    failed: int
    requests: int
    reasons: dict[str, int] = field(default_factory=dict)
    journalled: int = 0


def outcome(evidence: Evidence, counts: Counts, gate: GateSpec, *, baseline: Baseline, run: Source, folder: Path) -> GateResult:
    """The answer. Where more than the declared share of prompts failed, it is incomplete, whatever the rest says."""
    decision = decide(evidence.score, gate.margin)
    if counts.failed > gate.max_failed_share * counts.planned:
        decision = "incomplete"
    return GateResult(
        decision=decision,
        exit_code=_exit_code(decision, gate),
        reason=_reason(decision, evidence, gate, counts),
        metric=gate.metric,
        unit=unit_of(gate),
        arm=gate.arm,
        control=gate.control,
        margin=gate.margin,
        alpha=gate.alpha,
        method=evidence.method,
        score=evidence.score,
        n_cap=evidence.n_cap,
        n_planned=counts.planned,
        n_failed=counts.failed,
        max_failed_share=gate.max_failed_share,
        n_requests=counts.requests,
        failures=dict(sorted(counts.reasons.items(), key=lambda item: -item[1])),
        looks=evidence.looks,
        concepts=by_concept(evidence.pairs, gate),
        units=_moved_most(evidence.pairs),
        differences=differences(baseline.source, run),
        baseline=_told(baseline.source),
        run=_told(run),
        folder=str(folder),
    )


def _exit_code(decision: Decision, gate: GateSpec) -> int:
    if decision == "inconclusive" and gate.inconclusive == "pass":
        return 0
    return {"pass": 0, "fail": 1, "inconclusive": 3, "incomplete": 3}[decision]


def _told(source: Source) -> dict[str, Any]:
    """What a reader needs to know of where answers come from."""
    told = source.model_dump(include={"target", "endpoint", "model", "revision", "run_id", "harness_version", "created"})
    return {"name": source.run_id, **told}


def _moved_most(pairs: Pairs) -> list[Unit]:
    """The prompts that lost most first, then those that gained most; those that did not move are left out."""
    middle = (pairs.low + pairs.high) / 2
    order = sorted(range(len(middle)), key=lambda i: (middle[i] >= 0, -abs(middle[i])))
    return [
        Unit(
            concept=pairs.answers[i].concept,
            arm=pairs.answers[i].arm,
            prompt=pairs.answers[i].text,
            baseline=float(pairs.then[i]),
            run=float(pairs.now[i]),
        )
        for i in order[:MOST_UNITS]
        if middle[i]
    ]


def _reason(decision: Decision, evidence: Evidence, gate: GateSpec, counts: Counts) -> str:
    """The answer in one sentence."""
    score = evidence.score
    if decision == "incomplete":
        share = counts.failed / counts.planned
        return f"{counts.failed} of {counts.planned} prompts failed ({share:.1%}), more than {gate.max_failed_share:.1%}"
    name = gate.metric.replace("_", " ") + (f" of {gate.arm}" if gate.metric in METRICS else "")
    name += f" less {gate.control}" if gate.control else ""
    if score.estimate is None:
        return f"nothing can be said of {name}: {score.reason}"
    told = f"{name} {_moved(score)}"
    margin = f"the margin of {gate.margin:g} {unit_of(gate)}"
    if decision == "inconclusive":
        told += f"; {score.n_clusters} clusters do not decide on which side of {margin} it lies"
        told += f", and {evidence.stopped} is reached" if evidence.stopped else ""
    else:
        told += f", {'beyond' if decision == 'fail' else 'within'} {margin}"
    if counts.journalled:
        told += f"; {counts.journalled} of the run's answers came from its journal and may be older than the run"
    return told


def _moved(score: Score) -> str:
    """`fell by 0.0120 [0.0100, 0.0140]`."""
    assert score.estimate is not None
    sign = -1 if score.estimate < 0 else 1
    how = f"{'fell' if sign < 0 else 'rose'} by {number(abs(score.estimate), 4)}" if score.estimate else "did not change"
    if score.ci_low is None or score.ci_high is None:
        return how
    ends = sorted((sign * score.ci_low + 0.0, sign * score.ci_high + 0.0))
    return f"{how} [{', '.join(number(end, 4) for end in ends)}]"
