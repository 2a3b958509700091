"""A comparison's page: is this the same model, served alike? Owns what stands on it; `templates/compare.html.jinja` owns how it
looks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.evals.measures import MEASURES, Measure, interval
from harness.reports import wording
from harness.reports.forest import Forest, Mark, Shape, Zone, forest
from harness.reports.ladder import Ladder, ladder
from harness.reports.page import render_page

DECIMALS = 3

STAMPS = {"equivalent": "Equivalent", "different": "Different", "inconclusive": "Inconclusive"}
SHAPES: dict[str, Shape] = {"equivalent": "good", "different": "bad", "inconclusive": "open"}

STATISTICS = {
    "centred log-probabilities": "how far apart the log-probabilities are of the tokens that both list, less the mean of each",
    "share against probability": "how far the draws of one side are from the probabilities that the other side lists",
    "first tokens": "how far apart the first tokens are that both sides draw",
    "continuations": "how far apart the continuations are that both sides draw",
}


def render_compare(result: Mapping[str, Any]) -> str:
    """The page, from the fields of a `CompareResult` as nested mappings."""
    score, identity = result["score"], result["identity"]
    answer, _, more = result["reason"].partition(". ")
    measured = identity is not None and identity["estimate"] is not None
    return render_page(
        "compare.html.jinja",
        result=result,
        answer=answer,
        more=more,
        stamp=STAMPS[result["decision"]],
        names=[side.get("name") or side.get("run_id") or letter for side, letter in ((result["a"], "A"), (result["b"], "B"))],
        score=score,
        score_measure=_measure(score) if score else None,
        score_name=_score_name(score["metric"]) if score else "",
        score_figure=_score_figure(score) if score else None,
        identity=identity,
        identity_measure=_measure(identity) if identity else None,
        statistic=STATISTICS.get(identity["statistic"], identity["statistic"]) if identity else "",
        ladder=_ladder(result) if measured and result["rungs"] else None,
        distance_figure=_distance_figure(identity) if measured and not result["rungs"] else None,
        shapes=SHAPES,
    )


def _score_name(metric: str) -> str:
    return MEASURES[metric].name if metric in MEASURES else metric


def _measure(part: Mapping[str, Any]) -> Measure:
    return Measure(name=part.get("metric", "distance"), scale=1, decimals=DECIMALS, unit=part["unit"], difference=part["unit"])


def _score_figure(score: Mapping[str, Any]) -> Forest | None:
    zone = Zone(low=-score["margin"], high=score["margin"], kind="within")
    return forest([_mark(score, "A minus B", signed=True)], unit=score["unit"], zone=zone)


def _distance_figure(identity: Mapping[str, Any]) -> Forest | None:
    zone = Zone(low=None, high=identity["margin"], kind="within")
    return forest([_mark(identity, "A against B", signed=False)], unit=identity["unit"], zone=zone)


def _ladder(result: Mapping[str, Any]) -> Ladder:
    identity = result["identity"]
    return ladder(result["rungs"], _mark(identity, "A against B", signed=False), margin=identity["margin"], decimals=DECIMALS)


def _mark(part: Mapping[str, Any], name: str, *, signed: bool) -> Mark:
    measure = _measure(part)
    return Mark(
        name=name,
        estimate=part["estimate"],
        low=part["ci_low"],
        high=part["ci_high"],
        value=wording.estimate(part, measure, signed=signed),
        interval=interval(part, measure),
        shape=SHAPES[part["decision"]],
        reason=part["reason"],
        overall=True,
    )
