"""Axes of figures: where a value lies, and the ticks that name values. What is drawn along them is the figures' business.

Places are percentages of the figure's width, so that a figure takes any screen's and its text keeps its size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

CLIP = 3.0
"""An interval that reaches further than so many times the usual one is cut, so that it does not flatten the others."""

DENSE_DECADES = 1.5
"""A logarithmic axis of at most so many decades has ticks at 2 and 5 too."""

Span = tuple[float | None, float | None, float | None]
"""Lower end, estimate, upper end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """From `low` at `start` to `high` at `end`; `ticks`: (place, label). `scale` takes a value to where it is linear."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[tuple[float, str], ...] = ()
    scale: Callable[[float], float] = float

    def place(self, value: float) -> float:
        """Where `value` lies, held to the axis's ends."""
        low, high = self.scale(self.low), self.scale(self.high)
        at = self.scale(min(max(value, self.low), self.high))
        return round(self.start + (self.end - self.start) * (at - low) / (high - low), 3)


def linear(spans: Sequence[Span], *, held: Iterable[float], start: float, end: float) -> Axis:
    """An axis on round ticks that holds `held`, every estimate, and intervals up to `CLIP`."""
    reach = [abs(edge - value) for low, value, high in spans for edge in (low, high) if value is not None and edge is not None]
    limit = CLIP * float(np.median(reach)) if reach else 0.0
    ends = list(held)
    for low, value, high in spans:
        if value is not None:
            ends += [
                value,
                max(value if low is None else low, value - limit),
                min(value if high is None else high, value + limit),
            ]
    step = _step(max(ends) - min(ends) or 1.0)
    low, high = math.floor(min(ends) / step) * step, math.ceil(max(ends) / step) * step
    bare = Axis(low=low, high=high, start=start, end=end) if high > low else Axis(low=-step, high=step, start=start, end=end)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    values = np.arange(round(bare.low / step), round(bare.high / step) + 1) * step
    named = tuple((bare.place(float(v)), f"{v:.{decimals}f}" if abs(v) > step / 2 else "0") for v in values)
    return Axis(low=bare.low, high=bare.high, start=start, end=end, ticks=named)


def logarithmic(values: Iterable[float], *, start: float, end: float, floor: float = 0.0) -> Axis:
    """An axis that holds every positive value down to `floor`; what is below, or not positive, lies at its start."""
    positive = [max(value, floor) for value in values if value > 0] or [1.0]
    first, last = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    every = [factor * 10.0**power for power in range(first, last + 1) for factor in (1, 2, 5)]
    low = max(value for value in every if value <= min(positive) * (1 + 1e-9))
    high = min((value for value in every if value >= max(positive) * (1 - 1e-9) and value > low), default=10 * low)
    bare = Axis(low=low, high=high, start=start, end=end, scale=math.log10)
    dense = math.log10(high / low) <= DENSE_DECADES
    shown = [v for v in every if low <= v <= high and (dense or math.isclose(math.log10(v) % 1, 0, abs_tol=1e-9))]
    named = tuple((bare.place(value), f"{value:g}") for value in shown)
    return Axis(low=low, high=high, start=start, end=end, ticks=named, scale=math.log10)


def _step(span: float) -> float:
    """1, 2 or 5 times a power of ten that cuts `span` into about five."""
    power = 10.0 ** math.floor(math.log10(span / 4))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= span / 6)
