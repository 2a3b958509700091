"""`harness run` killed with SIGKILL at random moments, again and again, gives the trials of a run that nobody disturbed."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, tzinfo
from pathlib import Path

import pytest

from harness.cli.main import execute
from harness.reports import run as run_module
from harness.store import Journal

from .faults.fault_server import fault_command

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


def killed(argv: list[str], cache: Path, target: str, *, at: int) -> bool:
    """Start the command, kill it once the journal holds `at` answers; whether it was still running."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(argv, env=environment(cache), **quiet)  # type: ignore[call-overload]
    deadline = time.monotonic() + LONGEST_WAIT_S
    while process.poll() is None and answers(cache, target) < at and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    return bool(process.wait() == -signal.SIGKILL)


def slow_target(project: Path, delay_s: float = 0.1) -> None:
    """A scripted target that takes its time, so that a kill meets it at work."""
    (project / "providers").mkdir()
    options = f"[targets.slow.options]\ndelay_s = {delay_s}\nbatch_size = 16\nconcurrency = 2\n"
    text = f'api = "scripted"\ndescription = "slow"\n[targets.slow]\nmodel = "slow"\n{options}'
    (project / "providers" / "slow.toml").write_text(text)


def environment(cache: Path) -> dict[str, str]:
    return os.environ | {"HARNESS_CACHE": str(cache)}


@pytest.mark.parametrize("seed", range(3))
def test_a_run_killed_at_random_moments_ends_with_the_same_trials_and_asks_nothing_twice(project: Path, seed: int) -> None:
    slow_target(project)
    sizes = ("--concept", "animal", "--concept", "food", "--limit", "8")
    whole = command("slow", project / "whole", *sizes)
    subprocess.run(whole, env=environment(project / "cache-whole"), cwd=project, check=True, capture_output=True)
    planned = answers(project / "cache-whole", "slow")

    rng = random.Random(seed)
    cache, argv = project / "cache", command("slow", project / "resumed", *sizes)
    kept = [0]
    for at in sorted(rng.sample(range(1, planned * 3 // 4), 4)):
        if killed(argv, cache, "slow", at=at):
            kept.append(answers(cache, "slow"))
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


FORKS = """
import json, os, signal, sys, time
import harness.cli.run
from harness.cli.main import execute
for line in sys.stdin:
    argv, log, after_s = json.loads(line)
    child = os.fork()
    if child == 0:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os._exit(execute(argv))
    print(child, flush=True)
    end = time.monotonic() + (after_s or 60)
    done = 0
    while not done and time.monotonic() < end:
        time.sleep(0.002)
        done, status = os.waitpid(child, os.WNOHANG)
    if not done:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""
"""Runs commands as processes that share the time which Python takes to start, and kills them: pids and exit codes on stdout."""

FAULTY = """
api = "completions"
base_url = "{url}"
[limits]
attempts = 12
concurrency = 2
prompts_per_request = 4
[targets.faulty]
model = "fault-model"
tokenizer = "{tokenizer}"
"""


@contextmanager
def forks(cache: Path, cwd: Path) -> Iterator[Callable[..., int]]:
    """Call with the arguments of a command, and when to kill it, in seconds or in answers; the exit code."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", FORKS], env=environment(cache), cwd=cwd, **pipes) as process:  # type: ignore[call-overload]

        def run(argv: list[str], *, after_s: float | None = None, after_answers: int | None = None) -> int:
            process.stdin.write(json.dumps([argv, str(cwd / "log"), after_s]) + "\n")
            process.stdin.flush()
            pid = int(process.stdout.readline())
            if after_answers is not None:
                while answers(cache, "faulty") < after_answers:
                    time.sleep(0.005)
                os.kill(pid, signal.SIGKILL)
            return int(process.stdout.readline())

        yield run


def test_a_run_over_http_killed_at_20_random_moments_ends_with_the_trials_of_one_that_was_not(project: Path) -> None:
    (project / "providers").mkdir()
    faults = (
        "--rate",
        "0.3",
        "--faults",
        "slow-drip,nan,truncated-json,fewer-choices,other-model,empty-lists",
        "--drip-s",
        "0.05",
    )
    rng = random.Random(20)
    with fault_command(*faults, "--max-logprobs", "40", "--tokenizer", str(project / "tokenizer")) as url:
        text = FAULTY.format(url=url, tokenizer=project / "tokenizer")
        (project / "providers/faulty.toml").write_text(text)
        argv = ["run", "--pack", "lexical", "--target", "faulty", "--concept", "animal", "--concept", "food", "--limit", "5"]
        with forks(project / "cache-whole", project) as run:
            started = time.monotonic()
            assert run([*argv, "--out", "whole"]) == 0
            longest_s = time.monotonic() - started
        planned = answers(project / "cache-whole", "faulty")
        with forks(project / "cache", project) as run:
            assert run([*argv, "--out", "resumed"], after_answers=rng.randrange(1, planned // 2)) == -signal.SIGKILL
            kept = [answers(project / "cache", "faulty")]
            for _ in range(80):
                if run([*argv, "--out", "resumed"], after_s=rng.uniform(0, longest_s)) == -signal.SIGKILL:
                    kept.append(answers(project / "cache", "faulty"))
                    if len(kept) == 20:
                        break
                else:
                    longest_s *= 0.8  # it has less and less to ask
            assert len(kept) == 20
            assert kept == sorted(kept)
            assert run([*argv, "--out", "resumed"]) == 0
    assert 0 < kept[0] < planned
    assert answers(project / "cache", "faulty") == planned
    counts = json.loads((project / "resumed/manifest.json").read_text())["counts"]
    assert (counts["done"], counts["failed"]) == (planned, 0)
    assert (project / "resumed/trials.parquet").read_bytes() == (project / "whole/trials.parquet").read_bytes()
    assert not list(project.glob(".resumed*"))


def limited(n_bytes: int) -> Callable[[], None]:
    """For a child: no file of its grows beyond so much. It stands for a full disk: the system fails the write either way."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))


@pytest.mark.parametrize(("n_bytes", "answered_before"), [(400_000, False), (60_000, True)])
def test_a_full_disk_is_told_with_a_hint_and_what_was_journalled_serves_the_next_run(
    project: Path, n_bytes: int, answered_before: bool
) -> None:
    slow_target(project)
    argv = command("slow", project / "run", "--concept", "animal", "--concept", "food", "--limit", "8")
    env = environment(project / "cache")
    if answered_before:  # then it is the run folder that does not fit
        subprocess.run([*argv[:-1], str(project / "before")], env=env, cwd=project, check=True, capture_output=True)
    done = subprocess.run(argv, env=env, cwd=project, capture_output=True, text=True, preexec_fn=limited(n_bytes), check=False)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    what = "run: cannot be written: " if answered_before else "the journal cannot be used: "
    assert what in done.stderr
    assert "hint: " in done.stderr
    assert not list(project.glob("run")) + list(project.glob(".run*"))
    kept = answers(project / "cache", "slow")
    assert kept > 0
    again = subprocess.run(argv, env=env, cwd=project, check=True, capture_output=True, text=True)
    assert f"{kept} of them from the journal" in again.stderr


@pytest.mark.parametrize(("cache", "out", "hint"), [("file", "run", "HARNESS_CACHE"), ("cache", "file/run", "--out")])
def test_a_place_that_cannot_be_written_ends_the_command_with_a_hint(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cache: str, out: str, hint: str
) -> None:
    """A file where a folder must be: the user of a container may write where permissions say that nobody may."""
    (project / "file").write_text("")
    monkeypatch.setenv("HARNESS_CACHE", str(project / cache))
    assert execute(["run", "--target", "scripted", "--concept", "animal", "--limit", "1", "--out", out]) == 2
    told = capsys.readouterr().err
    assert "Not a directory" in told or "File exists" in told
    assert hint in told.partition("hint: ")[2]


def test_the_second_process_on_a_run_folder_says_who_is_first_and_leaves(project: Path) -> None:
    slow_target(project, delay_s=2 * LONGEST_WAIT_S)
    argv = command("slow", project / "run", "--concept", "animal", "--limit", "2")
    env = environment(project / "cache")
    with subprocess.Popen(
        argv,
        env=env,
        cwd=project,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as first:
        deadline = time.monotonic() + LONGEST_WAIT_S
        while not list(project.glob(".run*")) and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.2)  # the lock is written, too
        second = subprocess.run(argv, env=env, cwd=project, capture_output=True, text=True, check=False)
        first.send_signal(signal.SIGINT)
        _, told = first.communicate(timeout=LONGEST_WAIT_S)
    assert second.returncode == 2
    assert f"another process (pid {first.pid}) is at work on this run" in second.stderr
    assert "hint: wait until it ends, or name another folder with --out" in second.stderr
    assert first.returncode == 3, told
    assert not list(project.glob(".run*"))


@pytest.mark.parametrize("jump_s", [-(10**6), 10**6])
def test_a_clock_that_jumps_during_a_run_changes_nothing(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], jump_s: float
) -> None:
    slow_target(project)
    argv = ["run", "--target", "slow", "--concept", "animal", "--limit", "4"]
    assert execute([*argv, "--out", "steady"]) == 0
    monkeypatch.setenv("HARNESS_CACHE", str(project / "another"))
    calls = 0
    now = time.time

    def jumping() -> float:
        nonlocal calls
        calls += 1
        return now() + calls * jump_s

    class Jumping(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.fromtimestamp(jumping(), tz)

    monkeypatch.setattr(time, "time", jumping)
    monkeypatch.setattr(run_module, "datetime", Jumping)
    assert execute([*argv, "--out", "jumping"]) == 0
    assert calls
    capsys.readouterr()
    assert (project / "jumping/trials.parquet").read_bytes() == (project / "steady/trials.parquet").read_bytes()
    timing = json.loads((project / "jumping/summary.json").read_text())["timing"]
    assert 0 < timing["asked_s"] < 1000
