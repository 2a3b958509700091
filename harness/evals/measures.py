"""How each metric is shown, and the name under which results over all concepts stand.

Owns scales, units and the rounding of numbers; the metrics themselves are defined in `score`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ALL = "all"
"""The name under which results over all concepts stand."""

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


def interval(row: Mapping[str, Any], measure: Measure) -> str:
    """`[low, high]` of a row in the measure's scale; empty where there is none."""
    if row["ci_low"] is None or row["ci_high"] is None:
        return ""
    low, high = (number(row[end] * measure.scale, measure.decimals) for end in ("ci_low", "ci_high"))
    return f"[{low}, {high}]"
