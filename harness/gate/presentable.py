"""A gate's result with every text made fit to be shown: no key in it, no character that is not seen."""

from __future__ import annotations

import dataclasses
from typing import Any

from harness.evals.measures import number
from harness.gate.result import GateResult, Score
from harness.masking import hide_keys
from harness.reports.wording import visible

TITLES = {"pass": "Gate passed", "fail": "Gate failed", "inconclusive": "Gate inconclusive", "incomplete": "Gate incomplete"}
DECIMALS = 4


def presentable(result: GateResult) -> GateResult:
    """The same result; what is written for people and machines is made from this one only."""
    shown: GateResult = _shown(result)
    return shown


def _shown(value: Any) -> Any:
    if isinstance(value, str):
        return visible(hide_keys(value))
    if isinstance(value, dict):
        return {_shown(key): _shown(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_shown(one) for one in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(value, **{f.name: _shown(getattr(value, f.name)) for f in dataclasses.fields(value)})
    return value


def subject(result: GateResult) -> str:
    """What the gate was held against: the target's name."""
    return str(result.run.get("target") or result.run.get("name") or "run")


def title(result: GateResult) -> str:
    """The decision and the target."""
    return f"{TITLES[result.decision]}: {subject(result)}"


def measured(score: Score, unit: str) -> str:
    """`-0.031 [-0.050, -0.012] nat`, or why there is no number."""
    if score.estimate is None:
        return f"no estimate: {score.reason or 'no reason given'}"
    return f"{number(score.estimate, DECIMALS, signed=True)}{interval(score)} {unit}"


def interval(score: Score) -> str:
    """` [low, high]`, empty where there is none."""
    if score.ci_low is None or score.ci_high is None:
        return ""
    return f" [{number(score.ci_low, DECIMALS)}, {number(score.ci_high, DECIMALS)}]"


def is_beyond(score: Score, margin: float) -> bool:
    """Whether the whole interval lies below the largest loss that passes."""
    return score.ci_high is not None and score.ci_high < -margin


def details(result: GateResult) -> list[str]:
    """The lines behind the reason: the score, where it was lost, what failed, what is not alike."""
    margin = f"the margin is {result.margin:g} {result.unit}"
    lines = [
        f"{result.metric}, run minus baseline: {measured(result.score, result.unit)}; {margin}",
        f"{result.score.n_units} pairs of prompts in {result.score.n_clusters} groups; {result.n_requests} requests",
    ]
    lost = [concept for concept, score in result.concepts.items() if is_beyond(score, result.margin)]
    if lost:
        lines.append(f"below the margin by themselves: {', '.join(lost)}")
    if result.n_failed:
        reasons = "; ".join(f"{reason} ({n})" for reason, n in result.failures.items())
        lines.append(f"{result.n_failed} of {result.n_planned} requests failed: {reasons}")
    lines += [f"not alike: {one.key}: {one.baseline} in the baseline, {one.run} in the run" for one in result.differences]
    return lines
