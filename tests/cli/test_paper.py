"""`harness paper` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.cli.main import execute


def test_the_tables_stand_alone_without_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["paper"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    rows = [line.split() for line in captured.out.splitlines()]
    assert ["location", "original", "65.08***", "44.68***", "33.84***", "10.16", "37.23***"] in rows
    assert "arXiv 2505.11611v3" in captured.out
    assert "0.051 after Holm" in captured.out


def test_a_run_stands_beside_them_with_intervals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["run", "--pack", "lexical", "--target", "scripted", "--concept", "animal", "--concept", "food", "--limit", "3"]
    assert execute([*argv, "--out", str(tmp_path / "mine")]) == 0
    capsys.readouterr()
    assert execute(["paper", str(tmp_path / "mine")]) == 0
    out = capsys.readouterr().out
    assert "scripted (mine)" in out
    assert "scripted (mine): high - random: too few concepts with both sets" in out  # the lexical pack has no such arm
    animal = next(line for line in out.splitlines() if line.startswith("animal"))
    assert animal.rstrip().endswith("]")


def test_json_holds_every_cell_and_every_test(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["paper", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert len(record["rates"]) == 160
    assert len(record["tests"]) == 10
    assert record["tests"][0]["sentence"].startswith("Pythia-70M: the stars put 3 of 8")


def test_markdown_rows_have_one_cell_a_column_and_stars_that_stay_stars(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["paper", "--markdown"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert r"| location | original | 65.08\*\*\* | 44.68\*\*\* | 33.84\*\*\* | 10.16 | 37.23\*\*\* |" in lines
    assert {line.count("|") for line in lines[:34]} == {8}


def test_a_folder_that_is_no_run_and_two_formats_at_once_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(["paper", str(tmp_path)]) == 2
    assert "no run, it has no manifest.json" in capsys.readouterr().err
    assert execute(["paper", "--json", "--markdown"]) == 2
