"""A forest plot's geometry: where each estimate and interval lies on a common axis. Drawing is the templates' business.

Places across are percentages of the figure's width, so that text keeps its size on any screen; places down are pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from harness.reports.axis import Axis, linear
from harness.reports.wording import visible

PLOT_LEFT, PLOT_RIGHT, PLOT_RIGHT_OF_WORDS = 23.0, 79.0, 70.0
TOP, ROW_HEIGHT, AXIS_HEIGHT = 10, 21, 46
MAX_LABEL = 14

Shape = Literal["good", "bad", "open", "unknown"]
"""How an estimate is marked: a full dot, a full square, a hollow dot, a cross. What they mean is in the figure's legend."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """One row to draw. `value`, `interval`: as they are written. `reason`: why there is no estimate. `word`: what is said of
    it. `blind`: shifts up to this size might not be seen. `overall`: it speaks for all others, and stands below them."""

    name: str
    estimate: float | None
    low: float | None
    high: float | None
    value: str
    interval: str
    shape: Shape
    reason: str | None = None
    word: str = ""
    blind: float | None = None
    overall: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A row of the plot; `x` None: nothing to draw. `cut_*`: the interval goes on beyond. `track`: the ends of `mark.blind`."""

    mark: Mark
    label: str
    y: float
    x: float | None
    low: float | None
    high: float | None
    cut_low: bool
    cut_high: bool
    track: tuple[float, float] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Zone:
    """A stretch of values with a meaning of its own, between two edges; an edge that is None is the axis's end."""

    low: float | None
    high: float | None
    kind: Literal["within", "beyond"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Forest:
    """`lines`: the overall one last, below `separator`. `zero`: where no difference lies. `zone`: its ends; `edges`: those of
    them that are no end of the axis. `words_x`: where the rows' words begin, None where they have none."""

    lines: tuple[Line, ...]
    separator: float | None
    axis: Axis
    zero: float
    zone: tuple[float, float] | None
    zone_kind: str
    edges: tuple[float, ...]
    middle: float
    height: float
    axis_y: float
    unit: str
    words_x: float | None


def forest(marks: Sequence[Mark], *, unit: str, zone: Zone | None = None) -> Forest | None:
    """The plot of marks on a common axis, largest estimate first; None where none has an estimate."""
    if all(mark.estimate is None for mark in marks):
        return None
    words = any(mark.word for mark in marks)
    edges = [edge for edge in (zone.low, zone.high) if edge is not None] if zone else []
    axis = linear(
        [(mark.low, mark.estimate, mark.high) for mark in marks],
        held=[0.0, *edges],
        start=PLOT_LEFT,
        end=PLOT_RIGHT_OF_WORDS if words else PLOT_RIGHT,
    )
    parts = sorted((mark for mark in marks if not mark.overall), key=_descending)
    lines = [line(mark, axis, TOP + ROW_HEIGHT * (place + 0.5)) for place, mark in enumerate(parts)]
    gap = 0.5 if parts else 0.0
    lines += [line(mark, axis, TOP + ROW_HEIGHT * (len(parts) + gap + 0.5)) for mark in marks if mark.overall]
    axis_y = lines[-1].y + ROW_HEIGHT * 0.9
    return Forest(
        lines=tuple(lines),
        separator=lines[-1].y - 17 if parts and lines[-1].mark.overall else None,
        axis=axis,
        zero=axis.place(0.0),
        zone=_zone(zone, axis),
        zone_kind=zone.kind if zone else "",
        edges=tuple(axis.place(edge) for edge in edges),
        middle=(axis.start + axis.end) / 2,
        height=axis_y + AXIS_HEIGHT,
        axis_y=axis_y,
        unit=unit,
        words_x=PLOT_RIGHT_OF_WORDS + 2 if words else None,
    )


def _descending(mark: Mark) -> float:
    return math.inf if mark.estimate is None else -mark.estimate


def line(mark: Mark, axis: Axis, y: float) -> Line:
    """`mark` at `y` pixels below the figure's top."""
    name = visible(mark.name)
    return Line(
        mark=mark,
        label=name if len(name) <= MAX_LABEL else name[: MAX_LABEL - 1] + "…",
        y=y,
        x=None if mark.estimate is None else axis.place(mark.estimate),
        low=None if mark.low is None else axis.place(mark.low),
        high=None if mark.high is None else axis.place(mark.high),
        cut_low=mark.low is not None and mark.low < axis.low,
        cut_high=mark.high is not None and mark.high > axis.high,
        track=None if mark.blind is None else (axis.place(-mark.blind), axis.place(mark.blind)),
    )


def _zone(zone: Zone | None, axis: Axis) -> tuple[float, float] | None:
    if zone is None:
        return None
    low, high = axis.low if zone.low is None else zone.low, axis.high if zone.high is None else zone.high
    return axis.place(low), axis.place(high)
