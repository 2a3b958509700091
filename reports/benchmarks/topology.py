"""Seconds and memory of a site's topology against the bare matrix product of the same size, in turn in one process.

    python reports/benchmarks/topology.py [--features 32768] [--width 768] [--rounds 1] [--planted 200000]

Bare: all rows by all rows in blocks of the same height, nothing read off. Ours: every pair once, nearest neighbours, counts
above 19 levels, pairs above the isotropic threshold written to Parquet. Rows are Gaussian, a part of them moved towards a
common centre each, so that about as many pairs as --planted lie above the threshold.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from harness.whitebox.sources.dictionaries import local_dictionaries
from harness.whitebox.topology.tiles import tile_rows
from harness.whitebox.topology.topology import Job, Options, map_topology
from harness.whitebox.usage import peak_memory_gb


def planted(n: int, d: int, n_pairs: int) -> np.ndarray:
    """Gaussian rows (n, d); groups of 32 share half of their variance, as many groups as make `n_pairs` pairs."""
    rng = np.random.default_rng(0)
    W_dec = rng.standard_normal((n, d), dtype=np.float32)
    for group in range(min(n_pairs // (32 * 31 // 2), n // 32)):
        W_dec[group * 32 : (group + 1) * 32] += rng.standard_normal(d, dtype=np.float32)
    return W_dec


def bare_product(unit: np.ndarray) -> float:
    """Seconds of all rows by all rows, a block at a time into one piece of memory."""
    n_rows = tile_rows(len(unit))
    block = np.empty((n_rows, len(unit)), np.float32)
    started = time.perf_counter()
    for start in range(0, len(unit), n_rows):
        stop = min(start + n_rows, len(unit))
        np.matmul(unit[start:stop], unit.T, out=block[: stop - start])
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=32_768)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--planted", type=int, default=200_000)
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "dictionary"
        folder.mkdir()
        W_dec = planted(args.features, args.width, args.planted)
        save_file({"W_dec": W_dec}, folder / "sae_weights.safetensors")
        (folder / "cfg.json").write_text(json.dumps({"metadata": {"hook_name": "blocks.0.hook_resid_post"}}))
        W_dec /= np.linalg.norm(W_dec, axis=1, keepdims=True)
        print(f"{args.features:,} x {args.features:,} at d = {args.width}, numpy {np.__version__}, Python {sys.version[:6]}")
        ratios = []
        for number in range(args.rounds):
            before = bare_product(W_dec)
            job = Job(
                dictionaries=local_dictionaries("benchmark", folder, print),
                out=Path(name) / f"out{number}",
                options=Options(null="isotropic"),
            )
            started = time.perf_counter()
            (row,) = map_topology(job, lambda _: None)
            whole = time.perf_counter() - started
            after = bare_product(W_dec)
            ratios.append(2 * whole / (before + after))
            print(
                f"  bare product {before:.1f} s before, {after:.1f} s after   topology {whole:.1f} s   "
                f"{ratios[-1]:.2f} times the product   {row['n_pairs']:,} pairs above {row['threshold']:.3f}",
                flush=True,
            )
        print(f"  median ratio {statistics.median(ratios):.2f}; peak memory of the process {peak_memory_gb():.2f} GB")


if __name__ == "__main__":
    main()
