"""Seconds and peak memory of clustering the glosses of one site, exactly and by a graph of nearest neighbours.

    python reports/benchmarks/clusters.py [--features 32768] [--width 384] [--groups 2000] [--linkage average]

Each in a process of its own. Vectors are Gaussian around as many centres as --groups, of unequal sizes. Printed too: how many
clusters each cut leaves.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

import numpy as np

from harness.whitebox.clusters.clusters import CUTS
from harness.whitebox.clusters.linkage import cut, exact_tree
from harness.whitebox.clusters.neighbour_graph import graph_tree, n_parts
from harness.whitebox.stage import stopwatch


def clustered(n: int, d: int, groups: int) -> np.ndarray:
    """Unit rows (n, d) around centres; the k-th centre has a share of the rows that falls as 1 / sqrt(k)."""
    rng = np.random.default_rng(0)
    share = 1 / np.sqrt(np.arange(1, groups + 1))
    centre = rng.choice(groups, size=n, p=share / share.sum())
    rows = rng.standard_normal((groups, d), dtype=np.float32)[centre]
    rows += rng.standard_normal((n, d), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def measure(method: str, args: argparse.Namespace) -> None:
    """Make one tree and print what it took."""
    rows = clustered(args.features, args.width, args.groups)
    before = stopwatch()()
    clock = stopwatch()
    tree = graph_tree(rows) if method == "graph" else exact_tree(rows, args.linkage)
    used = clock()
    parts = f", {n_parts(tree):,} parts" if method == "graph" else ""
    counts = ", ".join(f"{cut(tree, similarity).max() + 1:,} at {similarity:.2f}" for similarity in CUTS)
    name = "graph, single" if method == "graph" else f"exact, {args.linkage}"
    print(f"  {name}: {used} ({before.peak_memory_gb:.2f} GB before); clusters: {counts}{parts}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=32_768)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--groups", type=int, default=2000)
    parser.add_argument("--linkage", choices=["average", "complete", "single"], default="average")
    parser.add_argument("--only", choices=["exact", "graph"], help="measure this one, in this process")
    args = parser.parse_args()
    if args.only:
        measure(args.only, args)
        return
    print(f"{args.features:,} vectors of width {args.width}, numpy {np.__version__}, Python {sys.version[:6]}", flush=True)
    for method in ("graph", "exact"):
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--only", method], check=True)


if __name__ == "__main__":
    main()
