"""A gate's page: passed or not, how the score stands against its margin, and what moved. Owns what stands on it;
`templates/gate.html.jinja` owns how it looks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.evals.measures import Measure, interval
from harness.reports import wording
from harness.reports.course import course
from harness.reports.forest import Forest, Mark, Shape, Zone, forest
from harness.reports.page import render_page

DECIMALS = 3

STAMPS = {"pass": "Passed", "fail": "Failed", "inconclusive": "Inconclusive", "incomplete": "Incomplete"}

METRICS = {
    "agreement": "how far the run's next-token distributions agree with the baseline's (1 less the total variation)",
    "clean_log_odds": "the log-odds of the concept's words after the unmodified sentence",
    "count_success": "the share of trials in which more of the concept's words are likely with the injection",
    "mass_success": "the share of trials in which the concept's words gain probability",
    "delta_mass": "how much probability the injection gives to the concept's words",
    "delta_log_odds": "how far the injection moves the log-odds of the concept's words",
}
"""What is compared, in words."""

UNITS = {"of 1": "on a scale of 1"}
"""Units that do not read well away from their number."""


def render_gate(result: Mapping[str, Any]) -> str:
    """The page, from the fields of a `GateResult` as nested mappings."""
    unit = UNITS.get(result["unit"], result["unit"])
    measure = Measure(name=result["metric"].replace("_", " "), scale=1, decimals=DECIMALS, unit=unit, difference=unit)
    scores = {name: _row(score) for name, score in result["concepts"].items()}
    overall = _row(result["score"])
    return render_page(
        "gate.html.jinja",
        result=result,
        answer=result["reason"],
        stamp=STAMPS[result["decision"]],
        subject=result["run"].get("target") or result["run"].get("name") or "run",
        what=METRICS.get(result["metric"], result["metric"]),
        measure=measure,
        overall=overall,
        scores=scores,
        course=course(result["looks"], margin=result["margin"]),
        figure=_figure(overall, scores, measure, result["margin"]),
        shape_of=lambda row: _shape(row, result["margin"]),
        failed_share=result["n_failed"] / max(result["n_planned"], 1),
    )


def _figure(overall: wording.Row, scores: Mapping[str, wording.Row], measure: Measure, margin: float) -> Forest | None:
    rows = [(name, row, False) for name, row in scores.items()] + [("all", overall, True)]
    marks = [
        Mark(
            name=name,
            estimate=row["estimate"],
            low=row["ci_low"],
            high=row["ci_high"],
            value=wording.estimate(row, measure),
            interval=interval(row, measure),
            shape=_shape(row, margin),
            reason=row["reason"],
            overall=is_overall,
        )
        for name, row, is_overall in rows
    ]
    unit = f"{measure.name}, run minus baseline, {measure.unit}"
    return forest(marks, unit=unit, zone=Zone(low=None, high=-margin, kind="beyond"))


def _shape(row: wording.Row, margin: float) -> Shape:
    """good: no loss beyond the margin. bad: one for certain. open: the interval holds both. unknown: there is no interval."""
    if row["ci_low"] is None or row["ci_high"] is None:
        return "unknown"
    return "good" if row["ci_low"] > -margin else "bad" if row["ci_high"] < -margin else "open"


def _row(score: Mapping[str, Any]) -> wording.Row:
    return {name: score[name] for name in ("estimate", "ci_low", "ci_high", "reason", "n_units", "n_clusters")}
