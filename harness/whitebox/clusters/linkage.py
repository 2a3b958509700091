"""Agglomerative clustering by cosine: the merge tree of rows, and what a cut through it leaves together.

A tree is a matrix as scipy.cluster.hierarchy makes it, (n - 1, 4): the two clusters merged (rows 0..n-1, then the merges in
order), their distance, and the size of what comes out. The distance is 1 - cosine, so that a cut at the similarity tau is a
cut at the distance 1 - tau. What a cut guarantees depends on the linkage: `single`, rows of different clusters are less
similar than tau; `complete`, rows of one cluster are at least as similar; `average`, neither of the two for every pair.

Owns distances and trees from all of them; `neighbour_graph` makes a tree from a few of them.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.cluster import hierarchy

from harness.errors import UsageError
from harness.whitebox.usage import free_memory_gb

Floats = NDArray[np.float64]
Labels = NDArray[np.int32]
Linkage = Literal["average", "complete", "single"]

GRID = 2.0**40
"""Distances are rounded to multiples of 1 / GRID. The last bits of a product depend on the size of its block; rounded, equal
rows have equal distances and equal inputs give equal trees, whatever the blocks."""

BLOCK_CELLS = 1 << 23
"""Distances computed at once: 64 MB."""

COPIES = {"average": 2.0, "complete": 2.0, "single": 1.125}
"""Memory of a tree, in arrays of all distances: scipy works on a copy of its own, but for single linkage (where it only
checks them, one byte each)."""

BESIDES_GB = 0.3
"""Vectors, one block, the tree."""


def unit_rows(vectors: NDArray[np.floating]) -> Floats:
    """The rows of `vectors` (n, d), none of them zero, at unit length."""
    rows = np.asarray(vectors, np.float64)
    unit: Floats = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def distances(one: Floats, other: Floats) -> Floats:
    """1 - cosine of all rows of `one` with all of `other`, both of unit length; in [0, 2], rounded to the grid."""
    cells: Floats = one @ other.T
    np.subtract(1.0, cells, out=cells)
    cells *= GRID
    np.rint(cells, out=cells)
    cells /= GRID
    return np.clip(cells, 0.0, 2.0, out=cells)


def block_rows(n: int) -> int:
    """How many rows a block of n columns has."""
    return max(BLOCK_CELLS // max(n, 1), 1)


def condensed(vectors: NDArray[np.floating]) -> Floats:
    """The distances of all pairs i < j of rows, in order of (i, j): n (n - 1) / 2 numbers, never a square matrix."""
    unit = unit_rows(vectors)
    n = len(unit)
    found = np.empty(n * (n - 1) // 2)
    at, height = 0, block_rows(n)
    for start in range(0, n, height):
        block = distances(unit[start : start + height], unit[start:])
        for row, cells in enumerate(block):
            later = cells[row + 1 :]
            found[at : at + len(later)] = later
            at += len(later)
    return found


def exact_tree(vectors: NDArray[np.floating], linkage: Linkage) -> Floats:
    """The tree of the rows of `vectors` (n, d), none of them zero, from the distances of all pairs, (n - 1, 4).

    Raises UsageError where memory does not suffice: 32,768 rows take 4.3 GB of distances, and as much again for `average`
    and `complete`.
    """
    n = len(vectors)
    needed, free = needed_gb(n, linkage), free_memory_gb()
    if free is not None and needed > free:
        raise _too_many(n, linkage, f"needs {needed:.1f} GB, {free:.1f} GB are free")
    if n < 2:
        return np.empty((0, 4))
    try:
        tree: Floats = hierarchy.linkage(condensed(vectors), linkage)
    except MemoryError as exc:
        raise _too_many(n, linkage, f"needs {needed:.1f} GB, which the system does not give") from exc
    return tree


def needed_gb(n: int, linkage: Linkage) -> float:
    """Memory that the exact tree of n rows takes beyond what the process holds, in 10^9 bytes."""
    return COPIES[linkage] * n * (n - 1) / 2 * 8 / 1e9 + BESIDES_GB


def cut(tree: Floats, similarity: float) -> Labels:
    """The cluster of each row where the tree is cut at `similarity`, (n,), numbered in the order of their first rows."""
    if not len(tree):
        return np.zeros(1, np.int32)
    labels = hierarchy.fcluster(tree, 1.0 - similarity, criterion="distance")
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    number = np.empty(len(first), np.int32)
    number[np.argsort(first)] = np.arange(len(first), dtype=np.int32)
    return number[inverse]


def _too_many(n: int, linkage: Linkage, problem: str) -> UsageError:
    return UsageError(
        f"exact {linkage} linkage of {n:,} features {problem}",
        hint="make room, or add --method graph --linkage single: a graph of nearest neighbours takes under 1 GB",
    )
