"""The geometry of a scatter plot with a line through it. Places across are percentages, places down pixels, as in `course`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.reports.axis import Axis, linear

PLOT_LEFT, PLOT_RIGHT = 13.0, 96.0
TOP, HEIGHT, AXIS_HEIGHT = 22, 190, 46


@dataclass(frozen=True, slots=True, kw_only=True)
class Scatter:
    """`dots`: (x, y, text). `line`: from (x, y) to (x, y) in a box of 100 by 100 over the plot, None where none is drawn.
    `levels`: (y, label) of the upright scale; `zero`: its y."""

    dots: tuple[tuple[float, float, str], ...]
    line: tuple[float, float, float, float] | None
    across: Axis
    levels: tuple[tuple[float, str], ...]
    zero: float
    left: float = PLOT_LEFT
    width: float = PLOT_RIGHT - PLOT_LEFT
    top: float = TOP
    plot_height: float = HEIGHT
    height: float = TOP + HEIGHT + AXIS_HEIGHT


def scatter(points: Sequence[tuple[float, float, str]], *, slope: float | None, intercept: float | None) -> Scatter | None:
    """The points (x, y, text), with the line y = intercept + slope x where both are known; None without points."""
    if not points:
        return None
    across = linear([(None, x, None) for x, _, _ in points], held=(), start=PLOT_LEFT, end=PLOT_RIGHT)
    down = linear([(None, y, None) for _, y, _ in points], held=[0.0], start=100.0, end=0.0)
    drawn = None
    if slope is not None and intercept is not None:
        share = 100 / (down.high - down.low)  # unlike `place`, not held to the axis: the plot's box cuts the line off
        start, end = (100 - share * (intercept + slope * x - down.low) for x in (across.low, across.high))
        drawn = (0.0, round(start, 2), 100.0, round(end, 2))
    return Scatter(
        dots=tuple((across.place(x), _pixel(down.place(y)), text) for x, y, text in points),
        line=drawn,
        across=across,
        levels=tuple((_pixel(place), label) for place, label in down.ticks),
        zero=_pixel(down.place(0.0)),
    )


def _pixel(place: float) -> float:
    """Pixels from the figure's top, of a place down the plot in per cent."""
    return round(TOP + HEIGHT * place / 100, 2)
