"""`report.html` of a run: the verdict, what it rests on, and everything else that was seen. Owns what stands on the page;
`templates/run.html.jinja` and the files that it includes own how it looks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from harness.evals.measures import ALL, MEASURES, NOT_AVAILABLE, interval
from harness.evals.spec import Metric
from harness.reports import wording
from harness.reports.examples import Example
from harness.reports.forest import Forest, Mark, Shape, Zone, forest
from harness.reports.page import render_page
from harness.reports.scatter import Scatter, scatter
from harness.reports.wording import Row

SHOWN_METRICS: tuple[Metric, ...] = ("delta_log_odds", "count_success", "mass_success", "delta_mass")

LOG_AXIS_DECADES = 4
"""Probabilities in examples are drawn on a logarithmic axis from 0.01% to 100%."""

SHAPES: dict[str, Shape] = {"transfers": "good", "reversed": "bad", "no evidence": "open", "undetermined": "unknown"}


def render(manifest: dict[str, Any], summary: dict[str, Any], examples: Sequence[Example]) -> str:
    """The page, from `manifest.json`, `summary.json` and the examples."""
    verdict = summary["verdict"]
    withheld = verdict["withheld"] is not None
    rows = wording.primary_rows(summary)
    return render_page(
        "run.html.jinja",
        manifest=manifest,
        summary=summary,
        primary=summary["primary"],
        verdict=verdict,
        withheld=withheld,
        answer=verdict["sentence"],
        mode_line=wording.mode_line(summary),
        headline=wording.headline(summary),
        odds=_odds(wording.headline(summary)),
        figure=_figure(rows, withheld=withheld),
        rows=rows,
        shapes=SHAPES,
        meaning=_calibration_meaning(verdict["calibration"]),
        predictions=_predictions(summary["prediction"]),
        prediction_meaning=_prediction_meaning(summary["prediction"], verdict["alpha"]),
        prediction_figure=_prediction_figure(summary["prediction"]),
        scope=wording.scope(summary),
        n_concepts=len(wording.concepts_of(summary)),
        headline_cells=[cell for cell in summary["cells"] if cell["concept"] == wording.scope(summary)],
        concept_cells=_by_concept([cell for cell in summary["cells"] if cell["concept"] != ALL]),
        contrasts=_by_contrast(summary["contrasts"]),
        examples=_examples_by_concept(examples, summary["primary"]),
        marks_members=any(_has_member(example) for example in examples),
        failed_share=manifest["counts"]["failed"] / max(manifest["counts"]["planned"], 1),
        metrics=SHOWN_METRICS,
        measures=MEASURES,
        by_metric=_by_metric,
        mass=_mass,
        place=_place,
    )


def _figure(rows: Sequence[Row], *, withheld: bool) -> Forest | None:
    """The primary contrast concept by concept, against its margin and what each row could have seen."""
    if not rows:
        return None
    measure = MEASURES[rows[0]["metric"]]
    margin = _scaled(rows[0], "margin")
    unit = "nats of log-odds" if measure.difference == "nat" else f"percentage points of {measure.name}"
    zone = None if margin is None else Zone(low=-margin, high=margin, kind="within")
    return forest([_mark(row, withheld=withheld) for row in rows], unit=unit, zone=zone)


def _mark(row: Row, *, withheld: bool) -> Mark:
    measure, verdict = MEASURES[row["metric"]], row["verdict"] or ""
    return Mark(
        name="all concepts" if row["concept"] == ALL else row["concept"],
        estimate=_scaled(row, "estimate"),
        low=_scaled(row, "ci_low"),
        high=_scaled(row, "ci_high"),
        value=wording.estimate(row, measure),
        interval=interval(row, measure),
        shape=SHAPES.get(verdict, "open"),
        reason=row["reason"],
        word="withheld" if withheld and row["estimate"] is not None else verdict,
        blind=_scaled(row, "mde"),
        overall=row["concept"] == ALL,
    )


def _scaled(row: Row, key: str) -> float | None:
    value = row[key]
    return None if value is None else float(value) * MEASURES[row["metric"]].scale


def _calibration_meaning(checks: Sequence[Row]) -> str:
    """What the calibration says of the run, in one sentence."""
    status = {(check["check"], check["status"]) for check in checks}
    if ("detected", "failed") in status:
        return (
            "Words that lie close to the concept do move the next word, and this run did not find it: "
            "what it does not find says nothing, and what it finds is not to be trusted."
        )
    if ("silent", "failed") in status:
        return (
            "Words chosen for another concept moved the next word too: something else than what the arm stands for is "
            "at work, and may be all that the primary contrast shows."
        )
    passed = {check for check, state in status if state == "passed"}
    if passed == {"detected", "silent"}:
        return "The instrument works: it finds a shift that is known to be there, and none where there should be none."
    if passed == {"detected"}:
        return "The run finds a shift that is known to be there; whether it stays silent where there is none was not checked."
    if passed == {"silent"}:
        return "The run stays silent where no shift should be; whether it finds one that is known to be there was not checked."
    return "This run has no arms to check it with, so the verdict stands on the primary contrast alone."


def _predictions(prediction: Row) -> list[tuple[str, Row]]:
    """The sets of injections whose predictions were compared with what was observed, by name."""
    found = [("all arms", prediction), *((f"{arm} alone", row) for arm, row in prediction["within"].items())]
    pairs = prediction["pairs"]
    return [*found, (f"{pairs['arm']} - {pairs['control']}, pair by pair", pairs)] if pairs else found


def _prediction_meaning(prediction: Row, alpha: float) -> str:
    """What the rank correlations say, in one sentence."""
    if not prediction["n"]:
        return "The pack predicts no shift for any injection, so there is nothing to compare with what was observed."
    others = "what concept, length, frequency and overlap with the concept's words say of them"
    if _found(prediction["spearman"], prediction["p"], alpha):
        if _found(prediction["partial"], prediction["partial_p"], alpha):
            return f"The sources' predictions rank the injections as the target does, also beyond {others}."
        return f"The sources' predictions rank the injections as the target does, but not seen to do so beyond {others}."
    return "The sources' predictions are not seen to rank the injections as the target does."


def _found(correlation: float | None, p: float | None, alpha: float) -> bool:
    return correlation is not None and p is not None and correlation > 0 and p <= alpha


def _prediction_figure(prediction: Row) -> Scatter | None:
    """Mean predicted against mean observed shift, of groups of injections from the lowest prediction to the highest."""
    scale = MEASURES[prediction["metric"]].scale
    points = [(row["predicted"], row["observed"] * scale, f"{row['n']:,} injections") for row in prediction["calibration"]]
    slope, intercept = (None if prediction[key] is None else prediction[key] * scale for key in ("slope", "intercept"))
    return scatter(points, slope=slope, intercept=intercept)


def _mass(bounds: tuple[float, float]) -> str:
    """A mass that is known within bounds; one figure where the bounds read alike."""
    if any(math.isnan(end) for end in bounds):
        return NOT_AVAILABLE
    low, high = (wording.share(end) for end in bounds)
    return low if low == high else f"{low} to {high}"


def _place(probability: float) -> str:
    """Where a probability lies on the examples' logarithmic axis, in per cent of its length."""
    decades = math.log10(max(probability, 10.0**-LOG_AXIS_DECADES)) / LOG_AXIS_DECADES
    return f"{100 * min(1 + decades, 1):.1f}"


def _odds(row: Row | None) -> tuple[str, str, str] | None:
    """A log-odds shift with its interval as factors of the odds; None for other metrics, or where a factor says little."""
    if row is None or row["metric"] != "delta_log_odds" or None in (row["estimate"], row["ci_low"], row["ci_high"]):
        return None
    if max(abs(row["ci_low"]), abs(row["ci_high"])) > math.log(1000):
        return None
    factor, low, high = (f"{math.exp(row[key]):.2f}" for key in ("estimate", "ci_low", "ci_high"))
    return factor, low, high


def _by_concept(cells: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    return [(concept, list(rows)) for concept, rows in groupby(cells, key=lambda cell: cell["concept"])]


def _by_contrast(contrasts: Sequence[Row]) -> list[tuple[tuple[str, str], list[Row]]]:
    """Rows by (arm, control), in the order of the summary."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in contrasts:
        groups.setdefault((row["arm"], row["control"]), []).append(row)
    return list(groups.items())


def _by_metric(rows: Sequence[Row]) -> list[tuple[Metric, list[Row]]]:
    """A contrast's rows by metric, the one over all concepts last."""
    groups = [(metric, [row for row in rows if row["metric"] == metric]) for metric in SHOWN_METRICS]
    return [(metric, sorted(group, key=lambda row: row["concept"] == ALL)) for metric, group in groups if group]


def _examples_by_concept(examples: Sequence[Example], primary: Row | None) -> list[tuple[str, list[Example]]]:
    """Examples by concept; the arms of the primary contrast first."""
    first = [primary["arm"], primary["control"]] if primary else []
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.concept, []).append(example)
    for group in groups.values():
        group.sort(key=lambda example: first.index(example.arm) if example.arm in first else len(first))
    return list(groups.items())


def _has_member(example: Example) -> bool:
    likely = (*example.clean_top, *example.injected_top)
    changed = (*example.risen, *example.fallen)
    return any(token.member for token in likely) or any(token.member for token in changed)
