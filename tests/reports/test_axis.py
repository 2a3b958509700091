"""Where values lie on an axis, and which of them are named."""

from __future__ import annotations

import math

import pytest

from harness.reports.axis import linear, logarithmic


def test_equal_factors_are_equal_distances_on_a_logarithmic_axis() -> None:
    axis = logarithmic([0.004, 3.0], start=20, end=80)
    steps = [axis.place(0.03 * 2**i) - axis.place(0.03 * 2 ** (i - 1)) for i in range(1, 5)]
    assert steps == pytest.approx([steps[0]] * 4, abs=0.01)
    assert 20 <= axis.place(0.004) < axis.place(3.0) <= 80


@pytest.mark.parametrize("values", [[0.01], [0.3, 0.31], [1e-9, 1e6], [0.0, -1.0], [], [1.0], [0.0, 0.02]])
def test_every_positive_value_lies_within_the_ticks_and_the_rest_at_the_start(values: list[float]) -> None:
    axis = logarithmic(values, start=0, end=100)
    assert axis.low < axis.high
    assert all(axis.low <= value <= axis.high for value in values if value > 0)
    assert axis.place(0.0) == axis.place(-5.0) == 0
    assert len(axis.ticks) >= 2
    assert all(axis.place(float(label)) == pytest.approx(place, abs=0.01) for place, label in axis.ticks)


def test_a_linear_axis_ends_on_its_ticks_and_keeps_to_a_handful() -> None:
    for size in (1e-4, 0.013, 1.0, 770.0):
        axis = linear([(-size, 0.2 * size, size)], held=[0.0], start=0, end=100)
        assert 3 <= len(axis.ticks) <= 9
        assert (axis.ticks[0][0], axis.ticks[-1][0]) == (0, 100)
        assert not any(math.isnan(place) for place, _ in axis.ticks)
