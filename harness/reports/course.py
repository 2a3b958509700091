"""The geometry of a sequence of looks: how an estimate and its interval close in as groups of prompts come.

Places across are percentages of the figure's width, places down are pixels; the curve itself is drawn in a box of 100 by 100
that is stretched over the plot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.reports.axis import Axis, linear

PLOT_LEFT, PLOT_RIGHT = 9.0, 98.0
TOP, HEIGHT, AXIS_HEIGHT = 8, 220, 46
MOST_POINTS = 400
"""Looks that are drawn: more than a figure has pixels for would only make the page heavy."""
MOST_DOTS = 20
"""Looks that are marked one by one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """`band`, `curve`: points of the interval's outline and of the estimates. `across`: clusters; `levels`: (y, label) of the
    scale; `zero`, `margin`: their y. `dots`: (x, y) of each look, or of the last one where there are many."""

    band: str
    curve: str
    across: Axis
    levels: tuple[tuple[float, str], ...]
    zero: float
    margin: float
    dots: tuple[tuple[float, float], ...]
    left: float = PLOT_LEFT
    width: float = PLOT_RIGHT - PLOT_LEFT
    top: float = TOP
    plot_height: float = HEIGHT
    height: float = TOP + HEIGHT + AXIS_HEIGHT


def course(looks: Sequence[Mapping[str, Any]], *, margin: float) -> Course | None:
    """The looks against a largest loss of `margin`; None where there are fewer than two."""
    if len(looks) < 2:
        return None
    shown = [looks[round(i * (len(looks) - 1) / (MOST_POINTS - 1))] for i in range(MOST_POINTS)]
    shown = list(looks) if len(looks) <= MOST_POINTS else shown
    marked = shown if len(shown) <= MOST_DOTS else shown[-1:]
    across = linear([(None, float(look["n_clusters"]), None) for look in shown], held=[0.0], start=PLOT_LEFT, end=PLOT_RIGHT)
    spans = [(look["ci_low"], look["estimate"], look["ci_high"]) for look in shown]
    down = linear(spans, held=[0.0, -2 * margin, margin], start=100.0, end=0.0)
    box = Axis(low=across.low, high=across.high, start=0.0, end=100.0)

    def points(key: str) -> list[str]:
        return [f"{box.place(look['n_clusters']):g},{down.place(look[key]):g}" for look in shown]

    return Course(
        band=" ".join([*points("ci_high"), *reversed(points("ci_low"))]),
        curve=" ".join(points("estimate")),
        across=across,
        levels=tuple((_pixel(place), label) for place, label in down.ticks),
        zero=_pixel(down.place(0.0)),
        margin=_pixel(down.place(-margin)),
        dots=tuple((across.place(look["n_clusters"]), _pixel(down.place(look["estimate"]))) for look in marked),
    )


def _pixel(place: float) -> float:
    """Pixels from the figure's top, of a place down the plot in per cent."""
    return round(TOP + HEIGHT * place / 100, 2)
