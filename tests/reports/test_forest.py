"""Where a forest plot puts its estimates and intervals."""

from __future__ import annotations

from typing import Any

import pytest

from harness.reports.forest import PLOT_LEFT, PLOT_RIGHT, PLOT_RIGHT_OF_WORDS, Forest, Line, Mark, Zone, forest


def mark(name: str, value: float | None, half: float | None, **more: Any) -> Mark:
    ends = (None, None) if value is None or half is None else (value - half, value + half)
    texts = {"value": f"{value}", "interval": f"{ends}", "shape": "good", "reason": "why"}
    return Mark(name=name, estimate=value, low=ends[0], high=ends[1], **{**texts, **more})


def drawn(*marks: Mark, zone: Zone | None = None) -> Forest:
    plot = forest(marks, unit="nat", zone=zone)
    assert plot is not None
    return plot


def by_name(plot: Forest) -> dict[str, Line]:
    return {line.mark.name: line for line in plot.lines}


def test_places_are_linear_in_the_values_that_the_ticks_name() -> None:
    plot = drawn(mark("a", 0.4, 0.3), mark("b", -0.2, 0.1), mark("c", 0.05, 0.6), mark("all", 0.1, 0.2, overall=True))
    (x0, first), (x1, last) = plot.axis.ticks[0], plot.axis.ticks[-1]
    for line in plot.lines:
        for place, value in ((line.x, line.mark.estimate), (line.low, line.mark.low), (line.high, line.mark.high)):
            assert value is not None
            expected = x0 + (x1 - x0) * (value - float(first)) / (float(last) - float(first))
            assert place == pytest.approx(expected, abs=0.01)
    assert plot.zero == next(place for place, label in plot.axis.ticks if label == "0")


def test_the_largest_estimate_comes_first_those_without_one_last_and_the_overall_one_below_all() -> None:
    plot = drawn(mark("all", 0, 0.1, overall=True), mark("low", -1, 0.2), mark("none", None, None), mark("high", 1, 0.2))
    assert [line.mark.name for line in plot.lines] == ["high", "low", "none", "all"]
    assert plot.lines[2].x is None
    assert plot.separator is not None
    assert plot.lines[2].y < plot.separator < plot.lines[3].y < plot.axis_y < plot.height


def test_an_interval_far_wider_than_the_others_is_cut_and_says_so() -> None:
    plot = drawn(*(mark(f"c{i}", 0.1 * i, 0.2) for i in range(5)), mark("wide", 0.1, 50))
    wide = by_name(plot).pop("wide")
    assert (wide.low, wide.high) == (PLOT_LEFT, PLOT_RIGHT)
    assert wide.cut_low
    assert wide.cut_high
    assert not any(line.cut_low or line.cut_high for line in plot.lines if line is not wide)


def test_the_axis_holds_the_margin_and_leaves_room_for_words_where_there_are_any() -> None:
    plot = drawn(mark("a", 0.01, 0.01, word="no evidence"), zone=Zone(low=-0.5, high=0.5, kind="within"))
    assert plot.zone is not None
    assert plot.edges == plot.zone
    assert PLOT_LEFT <= plot.zone[0] < plot.zero < plot.zone[1] <= PLOT_RIGHT_OF_WORDS
    assert plot.words_x is not None
    assert plot.words_x > PLOT_RIGHT_OF_WORDS
    assert drawn(mark("a", 0.01, 0.01)).words_x is None


def test_a_zone_without_an_edge_reaches_to_the_end_of_the_axis() -> None:
    plot = drawn(mark("a", 0.3, 0.1), zone=Zone(low=None, high=-0.1, kind="beyond"))
    assert plot.zone == (PLOT_LEFT, plot.edges[0])
    assert len(plot.edges) == 1


def test_what_a_row_could_have_missed_lies_about_zero_and_is_held_to_the_axis() -> None:
    plot = drawn(mark("a", 0.4, 0.1, blind=0.2), mark("b", -0.4, 0.1, blind=90.0))
    near, far = (by_name(plot)[name].track for name in "ab")
    assert near is not None
    assert plot.zero - near[0] == pytest.approx(near[1] - plot.zero, abs=0.01)
    assert far == (PLOT_LEFT, PLOT_RIGHT)


@pytest.mark.parametrize("value", [0.0, 1e-7, -1e-7, 12345.0])
def test_a_single_estimate_of_any_size_has_an_axis_that_holds_it(value: float) -> None:
    plot = drawn(mark("a", value, None))
    places = [place for place, _ in plot.axis.ticks]
    assert len(places) >= 2
    assert all(PLOT_LEFT <= place <= PLOT_RIGHT for place in (*places, plot.zero))
    assert len({label for _, label in plot.axis.ticks}) == len(places)


def test_nothing_is_drawn_where_there_is_no_estimate() -> None:
    assert forest([mark("a", None, None), mark("all", None, None)], unit="nat") is None
    assert forest([], unit="nat") is None


def test_a_long_or_hostile_name_is_shortened_and_written_out() -> None:
    line = drawn(mark("a\u202eb" + "x" * 50, 1, 0.5)).lines[0]
    assert len(line.label) <= 14
    assert line.label.startswith("a\\u{202e}bxx")
