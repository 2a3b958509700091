"""A forest plot's geometry: where each estimate and interval lies on a common axis. Drawing is the template's business.

Places across are percentages of the figure's width, so that text keeps its size on any screen; places down are pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness.evals.analysis import ALL
from harness.reports.wording import MEASURES, Row, estimate, interval, visible

PLOT_LEFT, PLOT_RIGHT = 23.0, 79.0
TOP, ROW_HEIGHT, AXIS_HEIGHT = 10, 21, 46
MAX_LABEL = 14
CLIP = 3.0
"""An interval that reaches further than so many times the usual one is cut, so that it does not flatten the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One row of the plot; `x` None: nothing to draw, and `reason` says why. `cut_*`: the interval goes on beyond."""

    label: str
    name: str
    y: float
    value: str
    interval: str
    reason: str | None
    x: float | None
    low: float | None
    high: float | None
    cut_low: bool
    cut_high: bool
    crosses_zero: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Forest:
    """`ticks`: (place across, label). `zero`: where no shift lies."""

    lines: tuple[Line, ...]
    overall: Line | None
    ticks: tuple[tuple[float, str], ...]
    zero: float
    middle: float
    height: float
    axis_y: float
    unit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Axis:
    low: float
    high: float

    def place(self, value: float) -> float:
        """Where `value` lies across, in per cent, held to the plot's edges."""
        clipped = min(max(value, self.low), self.high)
        return round(PLOT_LEFT + (PLOT_RIGHT - PLOT_LEFT) * (clipped - self.low) / (self.high - self.low), 3)


def forest(rows: Sequence[Row]) -> Forest | None:
    """The plot of one contrast's rows, largest estimate first; None where no row has an estimate."""
    if all(row["estimate"] is None for row in rows):
        return None
    measure = MEASURES[rows[0]["metric"]]
    step, axis = _axis([(_scaled(row, "ci_low"), _scaled(row, "estimate"), _scaled(row, "ci_high")) for row in rows])
    parts = [row for row in rows if row["concept"] != ALL]
    parts.sort(key=lambda row: math.inf if row["estimate"] is None else -row["estimate"])
    lines = [_line(row, axis, TOP + ROW_HEIGHT * (place + 0.5)) for place, row in enumerate(parts)]
    overall = next((row for row in rows if row["concept"] == ALL), None)
    y = TOP + ROW_HEIGHT * (len(parts) + 1.0)
    axis_y = TOP + ROW_HEIGHT * (len(parts) + (1.9 if overall else 0.4))
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    ticks = np.arange(round(axis.low / step), round(axis.high / step) + 1) * step
    return Forest(
        lines=tuple(lines),
        overall=_line(overall, axis, y) if overall else None,
        ticks=tuple((axis.place(float(t)), f"{t:.{decimals}f}" if abs(t) > step / 2 else "0") for t in ticks),
        zero=axis.place(0.0),
        middle=(PLOT_LEFT + PLOT_RIGHT) / 2,
        height=axis_y + AXIS_HEIGHT,
        axis_y=axis_y,
        unit="nats of log-odds" if measure.difference == "nat" else f"percentage points of {measure.name}",
    )


def _scaled(row: Row, key: str) -> float | None:
    value = row[key]
    return None if value is None else float(value) * MEASURES[row["metric"]].scale


def _axis(spans: Sequence[tuple[float | None, float | None, float | None]]) -> tuple[float, _Axis]:
    """(distance of ticks, limits on ticks) for (low, estimate, high): zero, every estimate, and intervals up to `CLIP`."""
    reach = [abs(end - value) for low, value, high in spans for end in (low, high) if value is not None and end is not None]
    limit = CLIP * float(np.median(reach)) if reach else 0.0
    ends = [0.0]
    for low, value, high in spans:
        if value is not None:
            ends += [
                value,
                max(value if low is None else low, value - limit),
                min(value if high is None else high, value + limit),
            ]
    step = _step(max(ends) - min(ends) or 1.0)
    axis = _Axis(low=math.floor(min(ends) / step) * step, high=math.ceil(max(ends) / step) * step)
    return step, axis if axis.high > axis.low else _Axis(low=-step, high=step)


def _step(span: float) -> float:
    """1, 2 or 5 times a power of ten that cuts `span` into about five."""
    power = 10.0 ** math.floor(math.log10(span / 4))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= span / 6)


def _line(row: Row, axis: _Axis, y: float) -> Line:
    measure = MEASURES[row["metric"]]
    value, low, high = (_scaled(row, key) for key in ("estimate", "ci_low", "ci_high"))
    name = "all concepts" if row["concept"] == ALL else visible(row["concept"])
    return Line(
        label=name if len(name) <= MAX_LABEL else name[: MAX_LABEL - 1] + "…",
        name=name,
        y=y,
        value=estimate(row, measure),
        interval=interval(row, measure),
        reason=row["reason"],
        x=None if value is None else axis.place(value),
        low=None if low is None else axis.place(low),
        high=None if high is None else axis.place(high),
        cut_low=low is not None and low < axis.low,
        cut_high=high is not None and high > axis.high,
        crosses_zero=low is None or high is None or low <= 0 <= high,
    )
