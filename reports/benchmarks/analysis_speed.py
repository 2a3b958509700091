"""Seconds and peak memory of the analysis of a large run: cells, contrasts, permutations, verdicts, prediction.

    python reports/benchmarks/analysis_speed.py [--injections 32] [--sentences 60] [--profile]

24 concepts and 7 arms, each injection with each sentence, normal effects of sentence, injection and cell, log-odds known within
bounds. The trials are made before the clock starts; the process has nothing else to do, so its peak memory is theirs and the
analysis'. By default 322,560 trials.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from harness.evals.analysis import Analysis
from harness.evals.plan import Choice, Plan, make_plan
from harness.evals.spec import METRICS, find_eval
from harness.packs.concepts import concept_names
from harness.packs.lexical import common_words
from harness.packs.pack import Pack, PackManifest
from harness.records import Probe

ARMS = ("self", "high", "low", "random", "matched", "shuffled", "related")
EFFECTS = {"self": 0.9, "high": 0.2, "related": 0.5}
BATCH = 120


def pack_of(n_injections: int) -> Pack:
    """Words drawn from the common ones; `matched` is matched to `high`."""
    rng, words = np.random.default_rng(0), common_words()
    probes = {}
    for concept in concept_names():
        for arm in ARMS:
            probes[concept, arm] = tuple(
                Probe(
                    concept=concept,
                    arm=arm,
                    injection_id=f"{arm}-{i:04d}",
                    injection=tuple(f" {words[j]}" for j in rng.integers(0, len(words), 16)),
                    predicted_shift=float(rng.normal(EFFECTS.get(arm, 0.0), 0.5)),
                    provenance={"matched_to": f"high-{i:04d}"} if arm == "matched" else {},
                )
                for i in range(n_injections)
            )
    manifest = PackManifest(format=1, name="made", description="", claims="", maker="", harness_version="", seed=0, digests={})
    return Pack(path=Path("made"), manifest=manifest, digest="", probes=probes, pools={})


def batches(plan: Plan, concept: str, n_sentences: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """The concept's trials as scoring gives them, some at a time."""
    by_sentence = rng.normal(0, 0.3, n_sentences)
    columns: list[dict[str, Any]] = []
    for arm in ARMS:
        probes = plan.pack.probes[concept, arm]
        shift = (
            EFFECTS.get(arm, 0.0)
            + rng.normal(0, 0.3, (len(probes), 1))
            + by_sentence
            + rng.normal(0, 0.7, (len(probes), n_sentences))
        )
        odds, half = shift.ravel(), rng.uniform(0, 0.1, shift.size)
        trials = {
            "arm": [arm] * odds.size,
            "sentence_id": [f"{concept}-{s:010d}" for _ in probes for s in range(n_sentences)],
            "injection_id": [probe.injection_id for probe in probes for _ in range(n_sentences)],
            "off_type": [False] * odds.size,
            "predicted_shift": np.repeat([probe.predicted_shift for probe in probes], n_sentences),
            "identified": np.where(odds > half, "up", np.where(odds < -half, "down", "unidentified")).tolist(),
            "count_success": (odds > 0.5).astype(float),
            "mass_success": (odds > 0).astype(float),
            "delta_mass": odds / 50,
            "delta_mass_low": (odds - half) / 50,
            "delta_mass_high": (odds + half) / 50,
            "delta_log_odds": odds,
            "delta_log_odds_low": odds - half,
            "delta_log_odds_high": odds + half,
        }
        assert set(METRICS) <= set(trials)
        columns += [{name: column[i : i + BATCH] for name, column in trials.items()} for i in range(0, odds.size, BATCH)]
    return columns


def measure(args: argparse.Namespace) -> None:
    plan = make_plan(find_eval("transfer"), pack_of(args.injections), Choice())
    rng = np.random.default_rng(1)
    made = {concept: batches(plan, concept, args.sentences, rng) for concept in plan.concepts}
    n_trials = sum(len(batch["arm"]) for concept in made.values() for batch in concept)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    profile = cProfile.Profile(time.process_time) if args.profile else None
    clock, cpu = time.perf_counter(), time.process_time()
    if profile:
        profile.enable()
    analysis = Analysis(plan, "made")
    for concept, columns in made.items():
        for batch in columns:
            analysis.add(batch)
        analysis.close_concept(concept)
    summary = analysis.summary()
    if profile:
        profile.disable()
    took, used = time.perf_counter() - clock, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{n_trials:,} trials, {len(summary['contrasts'])} contrasts, {summary['prediction']['n']:,} predictions")
    print(f"{took:.1f} s, {used:.1f} s of processor time; peak memory {peak:.0f} MiB, {before:.0f} MiB before the analysis")
    print(summary["verdict"]["sentence"])
    if profile:
        pstats.Stats(profile).sort_stats("cumulative").print_stats(45)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--injections", type=int, default=32)
    parser.add_argument("--sentences", type=int, default=60)
    parser.add_argument("--profile", action="store_true", help="also print where the time goes")
    parser.add_argument("--here", action="store_true", help="in this process")
    args = parser.parse_args()
    if args.here:
        measure(args)
    else:
        print(f"numpy {np.__version__}, Python {sys.version.split()[0]}", flush=True)
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--here"], check=True)


if __name__ == "__main__":
    main()
