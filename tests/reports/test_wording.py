"""Numbers and the answer in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from harness.reports import wording
from harness.reports.wording import number, p_value, reading, share, visible

Builder = Callable[..., dict[str, Any]]


def says(value: float | None, low: float | None, high: float | None, reason: str | None = None) -> dict[str, Any]:
    return {"estimate": value, "estimate_low": value, "estimate_high": value, "ci_low": low, "ci_high": high, "reason": reason}


@pytest.mark.parametrize(
    ("overall", "expected"),
    [
        (says(0.314, 0.121, 0.503), "log-odds +0.31 nat [0.12, 0.50] over 3 concepts: the interval excludes zero"),
        (
            says(-0.314, -0.5, -0.121),
            "log-odds -0.31 nat [-0.50, -0.12] over 3 concepts: the interval excludes zero, from below",
        ),
        (
            says(0.1, -0.05, 0.25),
            "log-odds +0.10 nat [-0.05, 0.25] over 3 concepts: the interval includes zero: "
            "no shift told apart from the control",
        ),
        (
            says(0.1, 0.0, 0.2),
            "log-odds +0.10 nat [0.00, 0.20] over 3 concepts: the interval includes zero: no shift told apart from the control",
        ),
        (says(0.2, 0.0012, 0.4), "log-odds +0.20 nat [0.001, 0.40] over 3 concepts: the interval excludes zero"),
        (says(None, None, None, "no trials"), "undetermined over 3 concepts: no trials"),
        (says(0.2, None, None, "no variation"), "log-odds +0.20 nat over 3 concepts: undetermined: no variation"),
    ],
)
def test_the_reading_says_what_the_interval_says(make_summary: Builder, overall: dict[str, Any], expected: str) -> None:
    assert reading(make_summary(overall)) == f"related - matched: {expected}"


def test_a_shift_that_lists_leave_undecided_is_told_with_its_bounds(make_summary: Builder) -> None:
    summary = make_summary(says(0.3, 0.1, 0.5) | {"estimate_low": 0.22, "estimate_high": 0.38})
    assert reading(summary) == (
        "related - matched: log-odds +0.30 nat [0.10, 0.50] over 3 concepts "
        "(the listed tokens leave it between +0.22 and +0.38): the interval excludes zero"
    )


def test_success_shares_are_read_in_points(make_summary: Builder) -> None:
    summary = make_summary(says(0.0118, 0.0004, 0.0235), metric="count_success")
    assert reading(summary) == (
        "related - matched: count success +1.2 points [0.04, 2.4] over 3 concepts: the interval excludes zero"
    )


def test_concepts_without_an_estimate_are_counted_apart(make_summary: Builder) -> None:
    summary = make_summary(says(0.3, 0.1, 0.5))
    for row in summary["contrasts"]:
        if row["concept"] == "color":
            row.update(says(None, None, None, "no trials"))
    assert "over 2 of 3 concepts" in reading(summary)


def test_a_lone_concept_speaks_for_itself_with_its_own_interval(make_summary: Builder) -> None:
    summary = make_summary(says(0.35, None, None, "fewer than 2 concepts"), concepts=("color",))
    assert reading(summary) == (
        "related - matched: log-odds +0.10 nat [-0.15, 0.35] on color alone: the interval includes zero: "
        "no shift told apart from the control"
    )


def test_a_run_without_a_primary_contrast_says_so(make_summary: Builder) -> None:
    assert reading(make_summary() | {"primary": None}).startswith("no primary contrast")


def test_a_run_without_trials_is_undetermined(make_summary: Builder) -> None:
    assert reading(make_summary() | {"cells": [], "contrasts": []}) == "related - matched: undetermined: no trials"


@pytest.mark.parametrize(
    ("value", "signed", "expected"),
    [
        (None, True, "n/a"),
        (0.0, True, "+0.00"),
        (0.314, True, "+0.31"),
        (-0.314, False, "-0.31"),
        (0.004, True, "+0.004"),
        (-0.00032, False, "-0.0003"),
        (3e-9, True, "+3e-09"),
        (12345.6, False, "12,345.60"),
    ],
)
def test_a_number_that_is_not_zero_never_reads_as_zero(value: float | None, signed: bool, expected: str) -> None:
    assert number(value, 2, signed=signed) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, "n/a"), (0.0, "0%"), (1.0, "100%"), (0.123, "12%"), (0.0995, "10%"), (0.0123, "1.2%"), (0.00031, "0.031%")],
)
def test_shares_have_two_significant_digits(value: float | None, expected: str) -> None:
    assert share(value) == expected


def test_a_tiny_share_is_said_to_be_small_and_not_nothing() -> None:
    assert share(3e-9) == "<0.001%"


@pytest.mark.parametrize(
    ("p", "expected"), [(None, "n/a"), (0.0004, "<0.001"), (0.001, "0.001"), (0.0421, "0.042"), (1.0, "1.000")]
)
def test_p_values_have_three_decimals(p: float | None, expected: str) -> None:
    assert p_value(p) == expected


def test_every_character_comes_out_printable() -> None:
    for code in (*range(0x10000), *range(0x1D100, 0x1D200), *range(0xE0000, 0xE0200)):
        assert visible(chr(code)).isprintable(), hex(code)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain — ‘text’ 漢字 é", "plain — ‘text’ 漢字 é"),
        ("a\nb\tc", "a↵b⇥c"),
        ("\u202eevil\u2066", "\\u{202e}evil\\u{2066}"),
        ("\x1b[31m\x00", "\\u{1b}[31m\\u{0}"),
        ("zero\u200bwidth\u00ad\ufeff", "zero\\u{200b}width\\u{ad}\\u{feff}"),
        ("\u00a0\u3000", "\\u{a0}\\u{3000}"),
        ("\u3164\u2800\ufe0f\u034f", "\\u{3164}\\u{2800}\\u{fe0f}\\u{34f}"),
        ("\u0301x", "◌\u0301x"),
        ("e\u0301" + "\u0302" * 4, "e\u0301\u0302\u0302\\u{302}\\u{302}"),
    ],
)
def test_what_would_not_be_seen_is_written_out(text: str, expected: str) -> None:
    assert visible(text) == expected


def test_the_mode_is_told_with_the_share_of_shifts_that_it_decides(make_summary: Builder) -> None:
    line = wording.mode_line(make_summary())
    assert line.startswith("mode topk: the likeliest tokens were listed")
    assert line.endswith("identified: 42% of shifts up, 21% down")


def test_draws_are_told_as_draws_and_at_their_level(make_summary: Builder) -> None:
    summary = make_summary()
    summary |= {"mode": "sampled", "modes": dict.fromkeys(summary["modes"], "sampled")}
    line = wording.mode_line(summary)
    assert line.startswith("mode sampled: continuations were drawn, no log-probabilities were seen")
    assert "identified at 95%" in line


def test_modes_that_differ_are_never_told_as_one(make_summary: Builder) -> None:
    summary = make_summary()
    summary |= {"mode": "mixed", "modes": {"animal": "topk", "color": "amplified", "location": "amplified"}}
    assert wording.mode_line(summary).startswith("modes differ: topk on 1 concepts, amplified on 2 concepts; identified at 95%")
