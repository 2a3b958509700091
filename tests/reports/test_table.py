"""The summary on the terminal."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from harness.reports.table import print_summary
from harness.reports.wording import calibration_lines, mode_line, sight_line

Builder = Callable[..., dict[str, Any]]


def printed(summary: dict[str, Any], *, width: int = 100, claims: str = "", **options: Any) -> str:
    out = io.StringIO()
    print_summary(summary, Console(file=out, width=width, **options), claims=claims)
    return out.getvalue()


def lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines()]


def row(text: str, name: str) -> list[str]:
    """The cells of the last row that starts with `name`: a number with its interval is one cell."""
    line = next(line for line in reversed(lines(text)) if line.startswith(name + " "))
    return re.findall(r"[^\s\[\]]+(?: \[[^\]]*\])?|\[[^\]]*\]", line.removeprefix(name))


@pytest.mark.parametrize("width", [80, 100])
def test_every_row_stands_whole_on_a_line_of_its_own(make_summary: Builder, width: int) -> None:
    text = printed(make_summary(), width=width)
    assert all(len(line) <= width for line in lines(text))
    assert "…" not in text
    assert row(text, "self") == ["96", "41.2 [38.0, 44.4]", "63.6 [58.6, 68.6]", "+0.44 [0.37, 0.51]"]
    assert " ".join(row(text, "animal")) == "+0.10 [-0.15, 0.35] 0.040 transfers"
    for concept in ("color", "location", "all concepts"):
        assert any(line.startswith(concept) for line in lines(text))


@pytest.mark.parametrize("width", [80, 100])
def test_the_widest_numbers_are_never_cut(make_summary: Builder, width: int) -> None:
    summary = make_summary()
    for cell in summary["cells"]:
        cell["n_trials"] = 3_000_000
        for metric in ("count_success", "mass_success"):
            cell[metric].update(estimate=1.0, ci_low=-1.2345, ci_high=1.2345)
        cell["delta_log_odds"].update(estimate=-123.456, ci_low=-1234.5678, ci_high=1234.5678)
    text = printed(summary, width=width)
    assert all(len(line) <= width for line in lines(text))
    assert "…" not in text
    assert text.count("[-123.4, 123.4]") + text.count("[-123.5, 123.5]") == 6
    assert text.count("[-1,234.57, 1,234.57]") == 3


def test_the_answer_comes_last(make_summary: Builder) -> None:
    summary = make_summary()
    text = " ".join(printed(summary, claims="nothing about interference").split())
    assert text.endswith(
        "the pack claims nothing about interference "
        + " ".join([*calibration_lines(summary), sight_line(summary) or "", summary["verdict"]["sentence"]])
    )


def test_without_claims_nothing_is_said_of_them(make_summary: Builder) -> None:
    assert "claims" not in printed(make_summary())


def test_no_colour_leaves_only_weight(make_summary: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    text = printed(make_summary(), force_terminal=True, color_system="truecolor")
    assert set(re.findall(r"\x1b\[([\d;]*)m", text)) <= {"0", "1", ""}


def test_without_a_terminal_there_are_no_escape_codes(make_summary: Builder) -> None:
    assert "\x1b" not in printed(make_summary())


def test_names_are_neither_markup_nor_terminal_codes(make_summary: Builder) -> None:
    summary = make_summary()
    for entry in (*summary["cells"], *summary["contrasts"]):
        if entry["concept"] == "color":
            entry["concept"] = "[red]c\x1b[2J\u202ex"
    text = printed(summary, claims="[bold]\x1b]0;title\x07")
    assert "[red]c\\u{1b}[2J\\u{20" in text
    assert "[bold]\\u{1b}]0;title\\u{7}" in text
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_missing_numbers_are_named_with_their_reason(make_summary: Builder) -> None:
    summary = make_summary()
    nothing = {
        "estimate": None,
        "estimate_low": None,
        "estimate_high": None,
        "ci_low": None,
        "ci_high": None,
        "reason": "no trials",
        "p": None,
        "p_holm": None,
        "p_by": None,
        "verdict": "undetermined",
    }
    for entry in summary["contrasts"]:
        if entry["concept"] in ("color", "location"):
            entry.update(nothing)
    text = printed(summary)
    assert row(text, "color") == ["n/a", "n/a", "undetermined"]
    assert "n/a for color, location: no trials" in lines(text)


def test_failed_trials_are_told(make_summary: Builder) -> None:
    summary = make_summary()
    for cell in summary["cells"]:
        if cell["concept"] == "all" and cell["arm"] == "self":
            cell["n_failed"] = 3
    assert "failed: 3 of 288 trials, left out" in lines(printed(summary))


def test_off_type_sentences_have_a_table_of_their_own(make_summary: Builder) -> None:
    summary = make_summary()
    summary["cells"] += [cell | {"off_type": True, "n_trials": 17} for cell in summary["cells"]]
    text = printed(summary)
    assert "(off-type sentences)" in text
    assert sum(" 17 " in line for line in lines(text)) == 3


def test_a_lone_concept_is_shown_with_its_own_intervals(make_summary: Builder) -> None:
    summary = make_summary(concepts=("color",))
    for entry in (*summary["cells"], *summary["contrasts"]):
        if entry["concept"] == "all":
            for estimate in (entry, *(entry.get(m, {}) for m in ("count_success", "mass_success", "delta_log_odds"))):
                estimate.update(ci_low=None, ci_high=None, reason="fewer than 2 concepts")
    text = printed(summary)
    assert row(text, "self")[1] == "41.2 [38.0, 44.4]"
    assert "all concepts" not in text
    assert "fewer than 2 concepts" not in text


@pytest.mark.parametrize("width", [80, 100])
def test_an_empty_run_prints_its_answer(make_summary: Builder, width: int) -> None:
    summary = make_summary() | {"cells": [], "contrasts": [], "primary": None}
    summary["verdict"] |= {"calibration": [], "mde": None, "margin": None, "sentence": "undetermined: no primary contrast"}
    assert lines(printed(summary, width=width)) == [mode_line(summary), "undetermined: no primary contrast"]
