"""Two commands at once on one target, each into a folder of its own, share a journal and come to the same."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

from .asking import TARGET, Ledger, Way, declare, wait_for, workplace
from .fault_server import fault_command

SIZES = ("--concept", "color", "--concept", "number", "--concept", "shape", "--limit", "6")
PLANNED = 2 * (6 + 7 * 6 * 6) + (6 + 6 * 6 * 6)  # the pack has no `shuffled` of shape
SLOW = ("--rate", "0.5", "--faults", "slow-drip", "--drip-s", "0.1", "--max-logprobs", "50")


def start(out: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "harness", "run", "--target", TARGET, "--mode", "topk", *SIZES, "--out", out]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def hold_up(journal: Path) -> None:
    """Once the runs write, be at it for so long that both of them have to wait."""
    wait_for(journal, 20)
    with sqlite3.connect(journal, timeout=60) as third:
        third.execute("BEGIN IMMEDIATE")
        time.sleep(1)
    third.close()


def test_both_end_with_the_same_trials_and_the_journal_is_never_locked(tmp_path: Path) -> None:
    with workplace(tmp_path), fault_command(*SLOW) as url:
        declare(tmp_path, url, Way(connections=16))
        both = [start(out) for out in ("one", "two")]
        hold_up(tmp_path / "cache/journal" / f"{TARGET}.sqlite")
        told = [process.communicate(timeout=240)[1] for process in both]
        times = Ledger.of(url).answered.values()
    assert [process.returncode for process in both] == [0, 0], told
    assert not any(word in text for text in told for word in ("locked", "Traceback", "error:"))
    assert sum(n > 1 for n in times) > PLANNED / 10, "they were at work at the same time"
    manifests = [json.loads((tmp_path / out / "manifest.json").read_text())["counts"] for out in ("one", "two")]
    assert [(counts["planned"], counts["done"]) for counts in manifests] == [(PLANNED, PLANNED)] * 2
    one, two = ((tmp_path / out / "trials.parquet").read_bytes() for out in ("one", "two"))
    assert one == two
