"""`harness compare` as a user types it: the sentence first, exit codes, the folder, finished runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.cli.main import execute
from harness.compare.diagnosis import OTHER_WEIGHTS

QUICK = ("--prompts", "12", "--near-ties", "2", "--repeats", "2", "--concept", "animal", "--concept", "food", "--limit", "2")
RUN = ("--pack", "lexical", "--concept", "animal", "--concept", "food", "--limit", "3")


@pytest.fixture
def other(project: Path) -> str:
    """A target like `scripted`, whose answers are another model's."""
    (project / "providers").mkdir()
    text = 'api = "scripted"\n[targets.other]\nmodel = "other"\noptions = { seed = 1 }\n'
    (project / "providers" / "mine.toml").write_text(text)
    return "other"


def test_a_target_against_itself_is_equivalent(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert execute(["compare", "scripted", "scripted", *QUICK, "--out", str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("equivalent: The same model, served alike")
    assert f"report: {tmp_path / 'out/report.html'}" in captured.err
    told = json.loads((tmp_path / "out/compare.json").read_text())
    assert (told["decision"], told["a"]["name"]) == ("equivalent", "scripted")
    assert told["n_requests"] == 2 * (2 * 14 + 2 * (2 + 2 * 2 * 2)) + 32
    assert "served alike" in (tmp_path / "out/report.html").read_text()


def test_another_model_is_different_and_json_is_the_record(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, other: str
) -> None:
    assert execute(["compare", other, "scripted", "--no-score", *QUICK, "--json", "--out", str(tmp_path / "out")]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((tmp_path / "out/compare.json").read_text())
    assert told["diagnoses"][0]["cause"] == OTHER_WEIGHTS
    assert told["unseen"] == ["the score: it was left out"]


def test_a_difference_is_told_with_its_cause_and_the_prompts_that_show_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, other: str
) -> None:
    assert execute(["compare", other, "scripted", "--no-score", *QUICK, "--out", str(tmp_path / "out")]) == 1
    out = capsys.readouterr().out
    assert out.startswith("different: ")
    assert f"fits: {OTHER_WEIGHTS}" in out
    assert out.count("' at B, after ...") == 3


def test_two_finished_runs_are_compared_without_asking(capsys: pytest.CaptureFixture[str], tmp_path: Path, other: str) -> None:
    for name, target in (("one", "scripted"), ("two", "scripted"), ("three", other)):
        assert execute(["run", "--target", target, *RUN, "--out", str(tmp_path / name)]) == 0
    capsys.readouterr()
    folders = [str(tmp_path / name) for name in ("one", "two", "three")]
    assert execute(["compare", *folders[:2], "--json", "--out", str(tmp_path / "same")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["n_requests"], told["identity"]["n_prompts"], told["score"]["estimate"]) == (0, 6, 0)
    assert any("asks each prompt once" in line for line in told["unseen"])
    assert execute(["compare", folders[2], folders[0], "--out", str(tmp_path / "other")]) == 1


def test_a_run_is_not_compared_with_a_target(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert execute(["run", "--target", "scripted", *RUN, "--out", str(tmp_path / "one")]) == 0
    assert execute(["compare", str(tmp_path / "one"), "scripted"]) == 2
    assert "hint: compare like with like" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [("--prompts", "1"), ("--repeats", "0"), ("--limit", "1"), ("--alpha", "0.7"), ("--margin", "0"), ("--max-requests", "-1")],
)
def test_a_number_that_makes_no_sense_is_refused(capsys: pytest.CaptureFixture[str], argv: tuple[str, str]) -> None:
    assert execute(["compare", "scripted", "scripted", *argv]) == 2
    assert argv[0] in capsys.readouterr().err


def test_a_folder_that_holds_something_else_is_left_alone(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert execute(["compare", "scripted", "scripted", *QUICK, "--out", str(tmp_path)]) == 2
    assert "is no comparison's folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_limit_on_requests_leaves_it_incomplete(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert (
        execute(["compare", "scripted", "scripted", "--no-score", *QUICK, "--max-requests", "3", "--out", str(tmp_path / "o")])
        == 3
    )
    assert "not asked: --max-requests 3 is reached" in capsys.readouterr().out
