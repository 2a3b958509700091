"""Numbers and the answer in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from harness.evals.measures import number
from harness.reports import wording
from harness.reports.wording import p_value, share, visible

Builder = Callable[..., dict[str, Any]]


def test_a_check_is_told_with_what_it_wants_and_what_it_found(make_summary: Builder) -> None:
    summary = make_summary()
    detected, silent = summary["verdict"]["calibration"]
    silent |= {"status": "failed"}
    assert wording.calibration_lines(summary) == [
        "check, what must be found: self - matched: passed: +0.90 nat [0.80, 1.00], found in 3 of 4 concepts",
        "check, what must not be found: shuffled - matched: failed: +0.01 nat [-0.09, 0.11], found in 3 of 4 concepts "
        "(5.0% by chance)",
    ]
    detected |= {"arm": None, "status": "not possible", "reason": "no such arms"}
    silent |= {"status": "not possible", "reason": "no trials"}
    assert wording.calibration_lines(summary) == [
        "check, what must be found: not possible: no such arms",
        "check, what must not be found: shuffled - matched: not possible: no trials",
    ]


def test_what_the_run_could_have_seen_stands_beside_what_would_matter(make_summary: Builder) -> None:
    summary = make_summary()
    line = "this run could have seen 0.36 nat with 80% power; 0.10 would matter"
    assert wording.sight_line(summary) == line
    summary["verdict"]["n_targets"] = 3
    assert wording.sight_line(summary) == f"{line}; p is corrected for 3 targets"
    summary["verdict"]["mde"] = None
    assert wording.sight_line(summary) is None


def test_a_target_that_the_pack_was_made_from_is_told(make_summary: Builder) -> None:
    summary = make_summary()
    assert wording.source_line(summary) is None
    summary["verdict"]["target_is_source"] = True
    assert wording.source_line(summary) == ("scripted is a source of the pack: what holds on it holds where it was looked for")


def test_a_verdict_that_was_withheld_is_told_as_such(make_summary: Builder) -> None:
    summary = make_summary()
    row = wording.primary_rows(summary)[0]
    assert wording.verdict_word(row, summary) == "transfers"
    summary["verdict"]["withheld"] = "transfers"
    assert wording.verdict_word(row, summary) == "withheld"
    assert wording.verdict_word(row | {"estimate": None, "verdict": "undetermined"}, summary) == "undetermined"


def test_predictions_are_told_over_all_arms_and_within_one(make_summary: Builder) -> None:
    summary = make_summary()
    assert wording.prediction_line(summary) is None
    within = summary["prediction"] | {"spearman": 0.43, "p": 0.002, "partial": 0.41, "partial_p": 0.0005}
    summary["prediction"] |= {"spearman": 0.66, "p": 0.0005, "within": {"high": within}}
    assert wording.prediction_line(summary) == (
        "predictions of the sources against what was seen, rank correlation: over all arms +0.66, p <0.001; "
        "within high +0.43, beyond concept, length, frequency and form +0.41, p <0.001"
    )


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
