"""One command, several targets: each run is written, and their verdicts allow for one another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.cli.main import execute

TWO = """
api = "scripted"
[targets.one]
model = "one"
[targets.two]
model = "two"
"""
NOBODY = """
api = "completions"
base_url = "http://127.0.0.1:9/v1"
[limits]
attempts = 1
[targets.nobody]
model = "m"
"""
RUN = ("run", "--pack", "lexical", "--concept", "animal", "--concept", "food", "--limit", "3", "--out", "both")


@pytest.fixture
def targets(project: Path) -> Path:
    (project / "providers").mkdir()
    (project / "providers/pair.toml").write_text(TWO)
    (project / "providers/nobody.toml").write_text(NOBODY)
    return project


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def claim(found: dict[str, Any]) -> dict[str, Any]:
    wanted = {"concept": "all", **{key: found["primary"][key] for key in ("arm", "control", "metric")}}
    (row,) = [row for row in found["contrasts"] if all(row[key] == value for key, value in wanted.items())]
    return row


def test_each_targets_p_is_corrected_for_the_other(targets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute([*RUN, "--target", "one", "--target", "two", "--json"]) == 0
    told = capsys.readouterr()
    written = [summary(targets / "both" / name) for name in ("one", "two")]
    assert [json.loads(line) for line in told.out.splitlines()] == written
    p = sorted(claim(found)["p"] for found in written)
    holm = [min(1, 2 * p[0]), min(1, max(2 * p[0], p[1]))]
    assert sorted(claim(found)["p_holm"] for found in written) == pytest.approx(holm)
    assert [found["verdict"]["n_targets"] for found in written] == [2, 2]
    assert told.err.count("p is corrected for 2 targets") == 2
    assert all((targets / "both" / name / "report.html").is_file() for name in ("one", "two"))


def test_one_target_is_corrected_for_nothing(targets: Path) -> None:
    assert execute([*RUN, "--target", "one"]) == 0
    found = summary(targets / "both")
    assert claim(found)["p_holm"] == claim(found)["p"]
    assert found["verdict"]["n_targets"] == 1


def test_a_target_that_cannot_be_asked_hides_none_that_was(targets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute([*RUN, "--target", "one", "--target", "nobody"]) != 0
    told = capsys.readouterr().err
    assert summary(targets / "both/one")["verdict"]["n_targets"] == 1
    assert summary(targets / "both/one")["verdict"]["sentence"] in " ".join(told.split())
