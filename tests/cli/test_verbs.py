"""The verbs as a user types them: data on stdout, the rest on stderr, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.cli.main import execute

SMALL = ("--pack", "lexical", "--target", "scripted", "--concept", "animal", "--concept", "food", "--limit", "3")


@pytest.mark.parametrize("room", ["targets", "packs", "evals"])
def test_lists_name_every_entry(capsys: pytest.CaptureFixture[str], room: str) -> None:
    assert execute([room, "list"]) == 0
    out = capsys.readouterr().out
    assert {"targets": "llama-70b", "packs": "lexical", "evals": "transfer"}[room] in out


@pytest.mark.parametrize(
    "argv", [("targets", "show", "llama-70b"), ("packs", "show", "lexical"), ("evals", "show", "transfer")]
)
def test_show_prints_json(capsys: pytest.CaptureFixture[str], argv: tuple[str, ...]) -> None:
    assert execute(list(argv)) == 0
    assert json.loads(capsys.readouterr().out)["name"] == argv[2]


@pytest.mark.parametrize(
    "argv", [("packs", "check", "lexical"), ("evals", "check", "transfer"), ("evals", "check", "published")]
)
def test_check_says_ok(capsys: pytest.CaptureFixture[str], argv: tuple[str, ...]) -> None:
    assert execute(list(argv)) == 0
    assert "ok" in capsys.readouterr().err


def test_a_dry_run_sends_and_writes_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert execute(["run", *SMALL, "--dry-run", "--json", "--out", str(tmp_path / "out")]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["prompts"] == 2 * 3 * (1 + 4 * 3)
    assert list(tmp_path.iterdir()) == []


def test_a_run_prints_a_table_and_the_reports_path_on_stderr(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert execute(["run", *SMALL, "--out", str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"report: {tmp_path / 'out/report.html'}" in captured.err
    assert "related" in captured.err


def test_json_puts_one_summary_a_target_on_stdout(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert execute(["run", *SMALL, "--json", "--out", str(tmp_path / "out")]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == json.loads((tmp_path / "out/summary.json").read_text())


def test_serve_prints_a_command_that_can_be_pasted(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["serve", "--target", "llama-70b"]) == 0
    command = capsys.readouterr().out
    assert "vllm.entrypoints.openai.api_server" in command
    assert "--tensor-parallel-size 4" in command
    assert "--max-logprobs" in command


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["--version"]) == 0
    assert capsys.readouterr().out.startswith("harness ")
    assert execute(["run", "--help"]) == 0
    assert "--dry-run" in capsys.readouterr().out
