"""Where a forest plot puts its estimates and intervals."""

from __future__ import annotations

from typing import Any

import pytest

from harness.reports.forest import PLOT_LEFT, PLOT_RIGHT, Forest, forest


def row(concept: str, value: float | None, half: float | None, *, metric: str = "delta_log_odds") -> dict[str, Any]:
    ends = (None, None) if value is None or half is None else (value - half, value + half)
    return {"concept": concept, "metric": metric, "estimate": value, "ci_low": ends[0], "ci_high": ends[1], "reason": "why"}


def drawn(rows: list[dict[str, Any]]) -> Forest:
    plot = forest(rows)
    assert plot is not None
    return plot


def test_places_are_linear_in_the_values_that_the_ticks_name() -> None:
    rows = [row("a", 0.4, 0.3), row("b", -0.2, 0.1), row("c", 0.05, 0.6), row("all", 0.1, 0.2)]
    plot = drawn(rows)
    (x0, first), (x1, last) = plot.ticks[0], plot.ticks[-1]
    for line in (*plot.lines, plot.overall):
        assert line is not None
        source = next(r for r in rows if line.name in (r["concept"], "all concepts" if r["concept"] == "all" else None))
        for place, key in ((line.x, "estimate"), (line.low, "ci_low"), (line.high, "ci_high")):
            expected = x0 + (x1 - x0) * (source[key] - float(first)) / (float(last) - float(first))
            assert place == pytest.approx(expected, abs=0.01)
    assert plot.zero == next(place for place, label in plot.ticks if label == "0")


def test_the_largest_estimate_comes_first_and_those_without_one_last() -> None:
    plot = drawn([row("low", -1, 0.2), row("none", None, None), row("high", 1, 0.2), row("all", 0, 0.1)])
    assert [line.name for line in plot.lines] == ["high", "low", "none"]
    assert plot.lines[-1].x is None
    assert plot.lines[-1].reason == "why"
    assert plot.overall is not None
    assert plot.overall.y > plot.lines[-1].y > plot.lines[0].y


def test_an_interval_far_wider_than_the_others_is_cut_and_says_so() -> None:
    rows = [row(f"c{i}", 0.1 * i, 0.2) for i in range(5)] + [row("wide", 0.1, 50)]
    wide = next(line for line in drawn(rows).lines if line.name == "wide")
    assert (wide.low, wide.high) == (PLOT_LEFT, PLOT_RIGHT)
    assert wide.cut_low
    assert wide.cut_high
    others = [line for line in drawn(rows).lines if line.name != "wide"]
    assert not any(line.cut_low or line.cut_high for line in others)


def test_intervals_that_leave_zero_out_are_told_apart() -> None:
    plot = drawn([row("clear", 1, 0.5), row("below", -1, 0.5), row("open", 0.1, 0.5), row("bare", 0.5, None)])
    assert {line.name: line.crosses_zero for line in plot.lines} == {"clear": False, "below": False, "open": True, "bare": True}


def test_success_shares_are_drawn_in_points() -> None:
    plot = drawn([row("a", 0.02, 0.01, metric="count_success"), row("b", 0.01, 0.01, metric="count_success")])
    assert plot.unit == "percentage points of count success"
    assert plot.lines[0].value == "+2.0"
    assert float(plot.ticks[-1][1]) >= 3.0


@pytest.mark.parametrize("value", [0.0, 1e-7, -1e-7, 12345.0])
def test_a_single_estimate_of_any_size_has_an_axis_that_holds_it(value: float) -> None:
    plot = drawn([row("a", value, None)])
    assert len(plot.ticks) >= 2
    assert all(PLOT_LEFT <= place <= PLOT_RIGHT for place in (*(place for place, _ in plot.ticks), plot.zero))
    assert len({label for _, label in plot.ticks}) == len(plot.ticks)


def test_nothing_is_drawn_where_there_is_no_estimate() -> None:
    assert forest([row("a", None, None), row("all", None, None)]) is None


def test_a_long_or_hostile_name_is_shortened_and_written_out() -> None:
    line = drawn([row("a\u202eb" + "x" * 50, 1, 0.5)]).lines[0]
    assert len(line.label) <= 14
    assert line.name.startswith("a\\u{202e}bxx")
