"""The geometry of a ladder: how far known variants lie from their reference, beside one distance, on a logarithmic axis.

Places across are percentages of the figure's width, places down are pixels, as in `forest`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.evals.measures import number
from harness.reports.axis import Axis, logarithmic
from harness.reports.forest import AXIS_HEIGHT, ROW_HEIGHT, TOP, Line, Mark, Shape, line
from harness.reports.wording import visible

PLOT_LEFT, PLOT_RIGHT = 33.0, 84.0
MAX_LABEL, MAX_SHORT = 38, 17
REACH = 100
"""The axis begins at the margin divided by so much: below it lies what is the same to the last bits."""
SHAPES: dict[str, Shape] = {"benign": "open", "material": "bad"}
HEADS = {"benign": "Harmless: the same model, served otherwise", "material": "Not harmless: something was changed"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A variant. `dots`: (place, model and distance), one for each model that it was made of. `short`: the label where there is
    no room. `value`: the smallest distance; `most`: the largest, empty where it reads alike. `cut`: one lies below the axis."""

    name: str
    label: str
    short: str
    y: float
    shape: Shape
    dots: tuple[tuple[float, str], ...]
    value: str
    most: str
    cut: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Ladder:
    """`this`: the comparison's own row, above `separator`. `heads`: (y, text) above each kind of variant."""

    this: Line
    steps: tuple[Step, ...]
    heads: tuple[tuple[float, str], ...]
    axis: Axis
    margin: float
    separator: float
    axis_y: float
    height: float
    middle: float


def ladder(rungs: Sequence[Mapping[str, Any]], this: Mark, *, margin: float, decimals: int) -> Ladder:
    """The rungs, nearest first among those of a kind, below `this`."""
    ends = [value for value in (this.low, this.estimate, this.high) if value is not None]
    known = [margin, *ends, *(rung["distance"] for rung in rungs)]
    axis = logarithmic(known, start=PLOT_LEFT, end=PLOT_RIGHT, floor=margin / REACH)
    y = TOP + ROW_HEIGHT * 0.5
    own = line(this, axis, y)
    separator, y = y + 17, y + ROW_HEIGHT * 0.5
    steps: list[Step] = []
    heads: list[tuple[float, str]] = []
    for kind, head in HEADS.items():
        variants = _variants(rungs, kind)
        if variants:
            y += ROW_HEIGHT * 1.3
            heads.append((y, head))
        for variant, found in variants.items():
            y += ROW_HEIGHT
            steps.append(_step(variant, found, axis, y=y, decimals=decimals))
    return Ladder(
        this=own,
        steps=tuple(steps),
        heads=tuple(heads),
        axis=axis,
        margin=axis.place(margin),
        separator=separator,
        axis_y=y + ROW_HEIGHT * 0.9,
        height=y + ROW_HEIGHT * 0.9 + AXIS_HEIGHT,
        middle=(PLOT_LEFT + PLOT_RIGHT) / 2,
    )


def _variants(rungs: Sequence[Mapping[str, Any]], kind: str) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for rung in sorted((rung for rung in rungs if rung["kind"] == kind), key=lambda rung: rung["distance"]):
        found.setdefault(rung["variant"], []).append(rung)
    return found


def _step(variant: str, rungs: Sequence[Mapping[str, Any]], axis: Axis, *, y: float, decimals: int) -> Step:
    name = visible(variant)
    least, most = (_told(rung, decimals) for rung in (rungs[0], rungs[-1]))
    return Step(
        name=name,
        label=_cut(name, MAX_LABEL),
        short=_cut(name, MAX_SHORT),
        y=y,
        shape=SHAPES[rungs[0]["kind"]],
        dots=tuple((axis.place(rung["distance"]), f"{rung['model']}: {_told(rung, decimals)}") for rung in rungs),
        value=least,
        most="" if most == least else most,
        cut=rungs[0]["distance"] < axis.low,
    )


def _told(rung: Mapping[str, Any], decimals: int) -> str:
    smallest = 10.0**-decimals
    return f"<{smallest:.{decimals}f}" if 0 < rung["distance"] < smallest / 2 else number(rung["distance"], decimals)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
