"""The wheel: what is in it, and that it works where the project's files are not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    private = ROOT / "providers" / "test-of-the-wheel.local.toml"
    private.write_text("private", encoding="utf-8")
    try:
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    finally:
        private.unlink()
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the wheel was installed to, for PYTHONPATH; its dependencies are this environment's."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(folder), str(wheel)], check=True, capture_output=True)
    return folder


def harness(installed: Path, cwd: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    """`harness argv` by the installed wheel."""
    env = os.environ | {"PYTHONPATH": str(installed)}
    return subprocess.run(
        [sys.executable, "-m", "harness", *argv], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_one_package_with_the_rooms_inside_and_nothing_private(wheel: Path) -> None:
    found = names(wheel)
    assert {name.split("/")[0] for name in found if ".dist-info" not in name} == {"harness"}
    assert not [name for name in found if ".local." in name or "__pycache__" in name]


@pytest.mark.parametrize("room", ["prompts", "providers", "evals"])
def test_every_file_of_a_room_is_shipped(wheel: Path, room: str) -> None:
    tracked = subprocess.run(["git", "ls-files", room], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    assert tracked
    assert {f"harness/_shipped/{name}" for name in tracked} <= names(wheel)


def test_a_run_from_an_installed_wheel(installed: Path, project: Path) -> None:
    where = subprocess.run(
        [sys.executable, "-c", "import harness; print(harness.__file__)"],
        cwd=project,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(where.stdout.strip()).is_relative_to(installed)
    done = harness(installed, project, "run", "--target", "scripted", "--concept", "animal", "--limit", "3")
    assert done.returncode == 0, done.stderr
    (run,) = (project / "reports").iterdir()
    assert json.loads((run / "manifest.json").read_text())["counts"]["failed"] == 0
    assert f"report: {run / 'report.html'}" in done.stderr


@pytest.mark.embedded
def test_a_real_model_from_an_installed_wheel(installed: Path, project: Path) -> None:
    done = harness(installed, project, "run", "--concept", "animal", "--limit", "2", "--out", "run", "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["primary"]["arm"] == "high"
    assert (project / "run" / "report.html").is_file()
