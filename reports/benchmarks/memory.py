"""Peak memory of `harness run` against the number of prompts, from a thousand to three hundred thousand.

    python reports/benchmarks/memory.py

Each size is a process of its own with an empty cache, on the target `scripted`: everything but a model is at work
(planning, journal, scoring, statistics, report). The last row answers the largest size once more from its journal.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

LIMITS = (2, 6, 18, 32, 48)
"""Injections, sentences and (up to 15) off-type sentences for each of 24 concepts and 4 arms."""


def run(limit: int, folder: Path, cache: str) -> tuple[int, float, float]:
    """(prompts, seconds, peak memory in MiB) of one run."""
    command = [
        sys.executable,
        "-m",
        "harness",
        "run",
        "--pack",
        "lexical",
        "--target",
        "scripted",
        "--full",
        "--limit",
        str(limit),
    ]
    out = folder / "run"
    env = os.environ | {"HARNESS_CACHE": str(folder / cache)}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, "--out", str(out)], env=env, stdout=log, stderr=log)
        _, status, used = os.wait4(process.pid, 0)
    if status:
        sys.exit((folder / "log").read_text(encoding="utf-8"))
    counts = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["counts"]
    seconds = json.loads((out / "summary.json").read_text(encoding="utf-8"))["timing"]["total_s"]
    return counts["done"], seconds, used.ru_maxrss / 1024


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print("   prompts   seconds   peak memory, MiB")
        for limit, cache in [*((limit, str(limit)) for limit in LIMITS), (LIMITS[-1], str(LIMITS[-1]))]:
            prompts, seconds, peak = run(limit, folder, cache)
            print(f"{prompts:10,} {seconds:9.1f} {peak:18.0f}", flush=True)


if __name__ == "__main__":
    main()
