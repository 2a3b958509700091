"""The action and the example workflow, step by step as GitHub would run them, on the scripted target."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from .github import Done, Runner, load

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / ".github/workflows/gate-example.yml"
OTHERS = {"actions/checkout@v4", "actions/setup-python@v5", "actions/upload-artifact@v4"}
"""Third parties' actions, which are not run here."""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment of Python without the harness, as a fresh job has it: pip takes nothing from an index, the libraries are
    those of the tests."""
    folder = tmp_path_factory.mktemp("python")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    kept = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ}
    pip = {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_IGNORE_INSTALLED": "1", "PIP_NO_BUILD_ISOLATION": "0"}
    path = os.pathsep.join([str(folder / "bin"), *os.defpath.split(os.pathsep)])
    return kept | pip | {"PATH": path, "PYTHONDONTWRITEBYTECODE": "1", "HARNESS_CACHE": str(folder / "cache")}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The repository as a job finds it."""
    folder = tmp_path / "checkout"
    for name in ("harness", "prompts", "providers", "evals", ".github"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.local.toml"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "action.yml"):
        shutil.copy(ROOT / name, folder)
    return folder


def accept(checkout: Path) -> None:
    """Make the baseline by the command that the example names."""
    (command,) = re.findall(r"^# +(harness gate --accept .*)$", EXAMPLE.read_text(encoding="utf-8"), re.MULTILINE)
    done = subprocess.run(
        [sys.executable, "-m", *shlex.split(command)], cwd=checkout, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def change_the_model(checkout: Path) -> None:
    """Other answers under the same name."""
    file = checkout / "providers/scripted.toml"
    file.write_text(file.read_text(encoding="utf-8") + "options = { seed = 1 }\n", encoding="utf-8")


def run_example(checkout: Path, environment: dict[str, str], **inputs: str) -> tuple[Runner, Done]:
    """The job of the example, and its step that holds the gate."""
    runner = Runner(workspace=checkout, temp=checkout.parent / "runner", env=environment)
    runner.workflow(checkout / ".github/workflows/gate-example.yml", "gate", inputs)
    for step in runner.done:
        print(f"--- {step.name}: {step.outcome}\n{step.stdout}{step.stderr}")
    (gate,) = [step for step in runner.done if step.name == "Hold the gate"]
    return runner, gate


def uploaded(runner: Runner) -> Path:
    """The folder that is kept as an artifact."""
    (upload,) = [step for step in runner.done if step.uses == "actions/upload-artifact@v4"]
    return Path(upload.given["path"])


def test_an_unchanged_target_passes_and_its_report_is_kept(checkout: Path, environment: dict[str, str]) -> None:
    accept(checkout)
    runner, gate = run_example(checkout, environment)
    assert {step.uses for step in runner.done if step.uses} == OTHERS
    assert {step.name for step in runner.done if step.outcome == "success"} == {"Install the harness", "Hold the gate"}
    assert not runner.failed
    assert "::notice title=Gate passed%3A scripted::" in gate.stdout
    report = uploaded(runner)
    assert {"report.html", "junit.xml", "gate.json", "summary.md"} <= {path.name for path in report.iterdir()}
    (suite,) = ET.parse(report / "junit.xml").getroot()
    assert suite.get("failures") == suite.get("errors") == "0"
    (page,) = (checkout.parent / "runner").glob("step-*/summary.md")
    assert page.read_text(encoding="utf-8").startswith("### Gate passed: scripted\n")


def test_a_changed_target_fails_the_job_and_its_report_is_kept_too(checkout: Path, environment: dict[str, str]) -> None:
    accept(checkout)
    change_the_model(checkout)
    runner, gate = run_example(checkout, environment)
    assert gate.outcome == "failure"
    assert "::error title=Gate failed%3A scripted::" in gate.stdout
    assert (uploaded(runner) / "junit.xml").is_file()


def test_the_example_runs_by_hand_only_and_reads_only() -> None:
    declared = load(EXAMPLE)
    assert list(declared[True]) == ["workflow_dispatch"]
    assert declared["permissions"] == {"contents": "read"}


def test_inputs_reach_the_command_whole_and_are_never_run(tmp_path: Path, environment: dict[str, str]) -> None:
    told = tmp_path / "told"
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("python", "harness"):
        (programs / name).write_text(f'#!/bin/sh\nprintf "%s\\n" "{name}" "$@" >> {told}\n')
        (programs / name).chmod(0o755)
    runner = Runner(workspace=tmp_path, temp=tmp_path / "t", env=environment | {"PATH": f"{programs}{os.pathsep}{os.defpath}"})
    given = {"target": "$(touch evil) x", "baseline": "a b.json", "margin": "0.2", "inconclusive": "pass"}
    more = {"args": "--seed 1\n--mode topk", "install": "thing==1; touch evil", "extras": "embedded", "python-version": ""}
    runner.action(ROOT, given | more | {"upload-report": "false"}, {})
    assert [step.outcome for step in runner.done] == ["skipped", "success", "success", "skipped"]
    assert not list(tmp_path.rglob("evil"))
    lines = told.read_text().splitlines()
    assert "thing==1; touch evil[embedded]" in lines
    asked = lines[lines.index("harness") :]
    (report,) = [line for line in asked if line.endswith("/report")]
    expected = ["harness", "gate", "--target", "$(touch evil) x", "--eval", "regression", "--out", report]
    expected += ["--baseline", "a b.json", "--margin", "0.2", "--inconclusive", "pass"]
    assert asked == [*expected, "--seed", "1", "--mode", "topk"]
