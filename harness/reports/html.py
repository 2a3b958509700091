"""`report.html`: a run as one page that loads nothing. Owns what stands on it; `report.html.jinja` owns how it looks.

Text of models and packs is hostile: the template escapes everything, `visible` writes out what would not be seen, and the
page's content security policy forbids scripts and requests of any kind.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from importlib.resources import files
from itertools import groupby
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from harness.evals.analysis import ALL
from harness.evals.spec import Metric
from harness.reports import wording
from harness.reports.examples import Example
from harness.reports.forest import forest
from harness.reports.wording import MEASURES, Row, visible

SHOWN_METRICS: tuple[Metric, ...] = ("delta_log_odds", "count_success", "mass_success", "delta_mass")

LOG_AXIS_DECADES = 4
"""Probabilities in examples are drawn on a logarithmic axis from 0.01% to 100%."""


def render(manifest: dict[str, Any], summary: dict[str, Any], examples: Sequence[Example]) -> str:
    """The page, from `manifest.json`, `summary.json` and the examples."""
    primary = summary["primary"]
    rows = wording.primary_rows(summary)
    template = _environment().from_string(files("harness").joinpath("reports", "report.html.jinja").read_text(encoding="utf-8"))
    return template.render(
        manifest=manifest,
        summary=summary,
        primary=primary,
        answer=wording.reading(summary),
        mode_line=wording.mode_line(summary),
        odds=_odds(wording.headline(summary)),
        figure=forest(rows) if rows else None,
        scope=wording.scope(summary),
        n_concepts=len(wording.concepts_of(summary)),
        headline_cells=[cell for cell in summary["cells"] if cell["concept"] == wording.scope(summary)],
        concept_cells=_by_concept([cell for cell in summary["cells"] if cell["concept"] != ALL]),
        contrasts=_by_contrast(summary["contrasts"]),
        examples=_examples_by_concept(examples, primary),
        marks_members=any(_has_member(example) for example in examples),
        failed_share=manifest["counts"]["failed"] / max(manifest["counts"]["planned"], 1),
        metrics=SHOWN_METRICS,
        measures=MEASURES,
    )


def _environment() -> Environment:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.globals.update(ALL=ALL)
    environment.filters.update(
        visible=_visible,
        token=_token,
        minus=_minus,
        number=lambda value, decimals=2: _minus(wording.number(value, decimals)),
        count=lambda value: wording.number(value, 0),
        share=wording.share,
        mass=_mass,
        estimate=lambda row, measure, signed=True: _minus(wording.estimate(row, measure, signed=signed)),
        interval=lambda row, measure: _minus(wording.interval(row, measure)),
        p_value=wording.p_value,
        sentence=lambda text: text[:1].upper() + text[1:],
        place=_place,
        time=_time,
        flat=_flat,
        groupby_metric=_by_metric,
    )
    return environment


def _visible(value: object) -> str:
    return visible(str(value))


def _token(text: str) -> Markup:
    """A token's text with its leading space as a faint sign, so that ` Paris` and `Paris` differ."""
    if not text:
        return Markup('<i class="sp">empty</i>')
    stripped = text.lstrip(" ")
    return Markup('<i class="sp">{}</i>').format("␣" * (len(text) - len(stripped))) + visible(stripped)


def _minus(text: str) -> str:
    """Minus signs instead of hyphens, before numbers and between arms."""
    return re.sub(r"(?<![\w-])-(?=[\d.])", "−", text).replace(" - ", " − ")


def _mass(bounds: tuple[float, float]) -> str:
    """A mass that is known within bounds; one figure where the bounds read alike."""
    if any(math.isnan(end) for end in bounds):
        return wording.NOT_AVAILABLE
    low, high = (wording.share(end) for end in bounds)
    return low if low == high else f"{low} to {high}"


def _place(probability: float) -> str:
    """Where a probability lies on the examples' logarithmic axis, in per cent of its length."""
    decades = math.log10(max(probability, 10.0**-LOG_AXIS_DECADES)) / LOG_AXIS_DECADES
    return f"{100 * min(1 + decades, 1):.1f}"


def _time(text: str) -> str:
    """An ISO time to the minute, as it stands where it is none."""
    try:
        return f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M %Z}".strip()
    except ValueError:
        return visible(text)


def _flat(value: object, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, text) of every leaf of a nested mapping, for display."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, str):
        yield visible(prefix), visible(value)
    else:
        shown = wording.NOT_AVAILABLE if value is None else json.dumps(value, ensure_ascii=False, default=str)
        yield visible(prefix), visible(shown)


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
