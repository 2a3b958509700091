"""`harness run` killed with SIGKILL at random moments, again and again, gives the trials of a run that nobody disturbed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.store import Journal

LONGEST_WAIT_S = 60.0


def command(target: str, out: Path, *sizes: str) -> list[str]:
    return [sys.executable, "-m", "harness", "run", "--target", target, *sizes, "--out", str(out)]


def answers(cache: Path, target: str) -> int:
    """How many prompts the journal holds; 0 before there is one."""
    path = cache / "journal" / f"{target}.sqlite"
    if not path.exists():
        return 0
    with Journal(path) as journal:
        return journal.count()


def killed(argv: list[str], env: dict[str, str], cwd: Path, after_s: float) -> bool:
    """Start the command, kill it `after_s` seconds after that; whether it was still running."""
    process = subprocess.Popen(argv, env=env, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(after_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def slow_target(project: Path) -> None:
    """A scripted target that takes its time, so that a kill meets it at work."""
    (project / "providers").mkdir()
    options = "[targets.slow.options]\ndelay_s = 0.1\nbatch_size = 16\nconcurrency = 2\n"
    text = f'api = "scripted"\ndescription = "slow"\n[targets.slow]\nmodel = "slow"\n{options}'
    (project / "providers" / "slow.toml").write_text(text)


def environment(cache: Path) -> dict[str, str]:
    return os.environ | {"HARNESS_CACHE": str(cache)}


@pytest.mark.parametrize("seed", range(3))
def test_a_run_killed_at_random_moments_ends_with_the_same_trials_and_asks_nothing_twice(project: Path, seed: int) -> None:
    slow_target(project)
    sizes = ("--concept", "animal", "--concept", "food", "--limit", "8")
    whole = command("slow", project / "whole", *sizes)
    started = time.perf_counter()
    subprocess.run(whole, env=environment(project / "cache-whole"), cwd=project, check=True, capture_output=True)
    duration_s = time.perf_counter() - started

    rng = random.Random(seed)
    cache, argv = project / "cache", command("slow", project / "resumed", *sizes)
    kept = [0]
    while len(kept) < 5 and killed(argv, environment(cache), project, after_s=rng.uniform(0.3, 0.8) * duration_s):
        kept.append(answers(cache, "slow"))
        assert not (project / "resumed").exists() or kept[-1] == answers(project / "cache-whole", "slow")
    assert len(kept) > 1, "no run was killed"
    assert kept == sorted(kept), "what was journalled stays"
    in_journal = answers(cache, "slow")
    subprocess.run(argv, env=environment(cache), cwd=project, check=True, capture_output=True)
    counts = json.loads((project / "resumed/manifest.json").read_text())["counts"]
    assert counts["done"] == counts["planned"]
    assert counts["from_cache"] == in_journal
    assert (project / "resumed/trials.parquet").read_bytes() == (project / "whole/trials.parquet").read_bytes()
    assert not list(project.glob(".resumed*")), "what the killed runs left half-written is gone"


@pytest.mark.embedded
@pytest.mark.timeout(300)
def test_a_real_model_that_is_killed_gives_the_same_trials_bit_for_bit(project: Path, tmp_path: Path) -> None:
    """The kill comes once some answers, not all, are journalled, wherever the machine is by then."""
    from harness import paths

    sizes = ("--concept", "animal", "--concept", "food", "--limit", "6")
    runs = {}
    for name in ("whole", "resumed"):
        cache = tmp_path / name
        cache.mkdir()
        (cache / "models").symlink_to(paths.cache_dir() / "models")
        runs[name] = (command("smollm2-135m", project / name, *sizes), cache)
    argv, cache = runs["whole"]
    subprocess.run(argv, env=environment(cache), cwd=project, check=True, capture_output=True)
    planned = answers(cache, "smollm2-135m")

    argv, cache = runs["resumed"]
    process = subprocess.Popen(argv, env=environment(cache), cwd=project, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + LONGEST_WAIT_S
    while not answers(cache, "smollm2-135m") and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    kept = answers(cache, "smollm2-135m")
    assert 0 < kept < planned
    subprocess.run(argv, env=environment(cache), cwd=project, check=True, capture_output=True)
    counts = json.loads((project / "resumed/manifest.json").read_text())["counts"]
    assert (counts["from_cache"], counts["done"], counts["failed"]) == (kept, planned, 0)
    assert (project / "resumed/trials.parquet").read_bytes() == (project / "whole/trials.parquet").read_bytes()


def test_ctrl_c_ends_a_run_cleanly_and_keeps_what_came_back(project: Path) -> None:
    slow_target(project)
    argv = command("slow", project / "run", "--concept", "animal", "--limit", "8")
    process = subprocess.Popen(
        argv,
        env=environment(project / "cache"),
        cwd=project,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job would ignore it
    )
    deadline = time.monotonic() + LONGEST_WAIT_S
    while not answers(project / "cache", "slow") and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=LONGEST_WAIT_S)
    assert process.returncode == 3
    assert "error: stopped\nhint: the same command goes on where it stopped" in told
    assert "Traceback" not in told
    assert not (project / "run").exists()
    kept = answers(project / "cache", "slow")
    assert kept > 0
    done = subprocess.run(argv, env=environment(project / "cache"), cwd=project, check=True, capture_output=True, text=True)
    assert f"{kept} of them from the journal" in done.stderr
