"""Numbers, names and the run's answer in words, the same on the terminal and on the page.

Owns how a value is rounded and what the primary contrast says; knows no layout. The minus sign is ASCII here.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.evals.analysis import ALL

Row = Mapping[str, Any]
"""A cell, a contrast or an estimate of `summary.json`."""

NOT_AVAILABLE = "n/a"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """How a metric is shown: times `scale`, with `decimals`; a mean in `unit`, a difference of two means in `difference`."""

    name: str
    scale: float
    decimals: int
    unit: str
    difference: str


MEASURES: dict[str, Measure] = {
    "count_success": Measure(name="count success", scale=100, decimals=1, unit="%", difference="points"),
    "mass_success": Measure(name="mass success", scale=100, decimals=1, unit="%", difference="points"),
    "delta_mass": Measure(name="mass", scale=100, decimals=2, unit="points", difference="points"),
    "delta_log_odds": Measure(name="log-odds", scale=1, decimals=2, unit="nat", difference="nat"),
}


def number(value: float | None, decimals: int, *, signed: bool = False) -> str:
    """`value` with so many decimals, and more where it would round to zero without being it; `n/a` for None."""
    if value is None:
        return NOT_AVAILABLE
    if 0 < abs(value) < 0.5 * 10.0**-decimals:
        decimals = max(decimals, -math.floor(math.log10(abs(value))))
        if decimals > 6:
            return f"{value:+.0e}" if signed else f"{value:.0e}"
    return f"{value:{'+' if signed else ''},.{decimals}f}"


def share(value: float | None) -> str:
    """A probability as a percentage with two significant digits; below a thousandth of a percent only that it is."""
    if value is None:
        return NOT_AVAILABLE
    percent = 100 * value
    if 0 < percent < 0.001:
        return "<0.001%"
    decimals = 0 if percent >= 9.95 or percent == 0 else 1 - math.floor(math.log10(percent))
    return f"{percent:.{min(decimals, 4)}f}%"


def p_value(p: float | None) -> str:
    """Three decimals, `<0.001` below them."""
    if p is None:
        return NOT_AVAILABLE
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def estimate(row: Row, measure: Measure, *, signed: bool = True) -> str:
    """The estimate of a row in the measure's scale, without its unit."""
    value = row["estimate"]
    return number(None if value is None else value * measure.scale, measure.decimals, signed=signed)


def interval(row: Row, measure: Measure) -> str:
    """`[low, high]` of a row in the measure's scale; empty where there is none."""
    if row["ci_low"] is None or row["ci_high"] is None:
        return ""
    low, high = (number(row[end] * measure.scale, measure.decimals) for end in ("ci_low", "ci_high"))
    return f"[{low}, {high}]"


def concepts_of(summary: Row) -> list[str]:
    """The concepts that have a cell, in the run's order."""
    return list(dict.fromkeys(cell["concept"] for cell in summary["cells"] if cell["concept"] != ALL))


def scope(summary: Row) -> str:
    """The concept under which the headline results stand: all, or the run's only one, which then speaks for itself."""
    concepts = concepts_of(summary)
    return concepts[0] if len(concepts) == 1 else ALL


def primary_rows(summary: Row) -> list[Row]:
    """The primary contrast's row of each concept, then the one over all if there are several; none without a primary."""
    primary = summary["primary"]
    if primary is None:
        return []
    rows = [row for row in summary["contrasts"] if all(row[key] == primary[key] for key in ("arm", "control", "metric"))]
    return [row for row in rows if scope(summary) in (ALL, row["concept"])]


def headline(summary: Row) -> Row | None:
    """The primary contrast's row that the answer is read from, None where there is none."""
    return next((row for row in primary_rows(summary) if row["concept"] == scope(summary)), None)


def reading(summary: Row) -> str:
    """The run's answer in one line: what the primary contrast says, or why it says nothing."""
    primary, row = summary["primary"], headline(summary)
    if primary is None:
        return "no primary contrast: this run has both arms of none that the eval declares"
    name = visible(f"{primary['arm']} - {primary['control']}")
    if row is None:
        return f"{name}: undetermined: no trials"
    if row["concept"] != ALL:
        return _sentence(name, row, f"on {visible(row['concept'])} alone")
    parts = [part["estimate"] is not None for part in primary_rows(summary) if part["concept"] != ALL]
    counted = f"{len(parts)} concepts" if all(parts) else f"{sum(parts)} of {len(parts)} concepts"
    return _sentence(name, row, f"over {counted}")


_MODES = {
    "exact": "the probability of the concept's words itself was seen",
    "topk": "the likeliest tokens were listed, which leaves the rest within bounds",
    "amplified": "continuations were drawn with the logits of the concept's words raised by a known bias",
    "sampled": "continuations were drawn, no log-probabilities were seen",
}


def mode_line(summary: Row) -> str:
    """How the target was observed, and how many shifts that decides."""
    modes: Mapping[str, str] = summary["modes"]
    if summary["mode"] in _MODES:
        line = f"mode {summary['mode']}: {_MODES[summary['mode']]}"
    else:
        counts = {mode: sum(one == mode for one in modes.values()) for mode in _MODES}
        line = "modes differ: " + ", ".join(f"{mode} on {n} concepts" for mode, n in counts.items() if n)
    cells = [c for c in summary["cells"] if c["concept"] == scope(summary) and not c["off_type"]]
    answered = sum(c["n_trials"] - c["n_failed"] for c in cells)
    if summary["mode"] == "exact" or not answered:
        return line
    up, down = (sum(c[name] for c in cells) for name in ("n_up", "n_down"))
    at = " at 95%" if any(mode in ("amplified", "sampled") for mode in modes.values()) else ""
    return f"{line}; identified{at}: {100 * up / answered:.0f}% of shifts up, {100 * down / answered:.0f}% down"


def _sentence(name: str, row: Row, over: str) -> str:
    measure = MEASURES[row["metric"]]
    if row["estimate"] is None:
        return f"{name}: undetermined {over}: {row['reason']}"
    value = f"{name}: {measure.name} {estimate(row, measure)} {measure.difference}"
    if row["ci_low"] is None:
        return f"{value} {over}: undetermined: {row['reason']}"
    value = f"{value} {interval(row, measure)} {over}{_identified(row, measure)}"
    if row["ci_low"] > 0:
        return f"{value}: the interval excludes zero"
    if row["ci_high"] < 0:
        return f"{value}: the interval excludes zero, from below"
    return f"{value}: the interval includes zero: no shift told apart from the control"


def _identified(row: Row, measure: Measure) -> str:
    """How far the estimate is known where the target listed too little to decide it; empty where that is not seen."""
    low, high = (number(row[end] * measure.scale, measure.decimals, signed=True) for end in ("estimate_low", "estimate_high"))
    return "" if low == high else f" (the listed tokens leave it between {low} and {high})"


_NAMED = {"\n": "↵", "\r": "␍", "\t": "⇥"}
_UNSEEN_CATEGORIES = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
# Letters, marks and symbols that show nothing: joiners, Hangul fillers, Khmer and Mongolian signs, variation selectors, blank.
_UNSEEN = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
_MAX_MARKS = 3
"""Combining marks on one letter that are shown: more than any orthography needs would paint over the lines around."""


def visible(text: str) -> str:
    """`text` with whatever would not be seen or would reorder its neighbours written out: newline as ↵, U+202E as \\u{202e}."""
    shown: list[str] = []
    marks = 0
    for char in text:
        category = unicodedata.category(char)
        marks = marks + 1 if category in ("Mn", "Me") else 0
        if marks and not shown:
            shown.append("◌")  # else it would sit on whatever stands before the text
        if char in _NAMED:
            shown.append(_NAMED[char])
        elif category in _UNSEEN_CATEGORIES or (category == "Zs" and char != " ") or _UNSEEN.match(char) or marks > _MAX_MARKS:
            shown.append(f"\\u{{{ord(char):x}}}")
        else:
            shown.append(char)
    return "".join(shown)
