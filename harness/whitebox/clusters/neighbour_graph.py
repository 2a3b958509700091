"""Single linkage in little memory: each row's nearest neighbours, the minimum spanning forest of that graph, and its tree.

Single linkage over all pairs is the minimum spanning tree of all distances; here only those of each row's k nearest rows are
known. With k = n - 1 the two are equal. With a small k the tree is that of the graph: parts of it that no edge joins stay
apart at every cut (they are joined last, at an infinite distance), and a merge may come later than with all pairs. More than k
rows with one and the same vector know only each other, unless others know them.

Memory: a few blocks of distances and k edges a row.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse import csgraph

from harness.errors import UsageError
from harness.whitebox.clusters.linkage import GRID, Floats, block_rows, distances, unit_rows

Indices = NDArray[np.int64]

NEIGHBOURS = 15
MAX_ROWS = 1 << 21
"""A distance on the grid and a row's number share one 64-bit integer."""

_BEYOND = 3.0
"""Larger than any distance: a row is not its own neighbour."""


def graph_tree(vectors: NDArray[np.floating], neighbours: int = NEIGHBOURS) -> Floats:
    """The single-linkage tree of the rows of `vectors` (n, d), none of them zero, from each one's `neighbours` nearest ones,
    (n - 1, 4).
    """
    n = len(vectors)
    return tree_of(n, *_forest(n, *nearest(unit_rows(vectors), neighbours)))


def n_parts(tree: Floats) -> int:
    """How many parts of the graph no edge joins."""
    return int(np.count_nonzero(np.isinf(tree[:, 2]))) + 1


def nearest(unit: Floats, k: int) -> tuple[Indices, Indices, Floats]:
    """Edges from each row to its k nearest others (all others where there are fewer): row, neighbour, distance, (n k,) each.

    Among equally near rows the first ones are taken.
    """
    n = len(unit)
    if n > MAX_ROWS:
        raise UsageError(f"{n:,} features: a neighbour graph takes at most {MAX_ROWS:,}")
    k = min(k, n - 1)
    if k < 1:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
    found = np.empty((n, k), np.int64)
    columns = np.arange(n)
    for start in range(0, n, block_rows(n)):
        rows = columns[start : start + block_rows(n)]
        cells = distances(unit[rows], unit)
        cells[rows - start, rows] = _BEYOND
        cells *= GRID
        keys = cells.astype(np.int64)
        keys *= n
        keys += columns
        keys.partition(k - 1, axis=1)
        found[rows] = keys[:, :k]
    distance, second = np.divmod(np.sort(found, axis=1).ravel(), n)
    return np.repeat(columns, k), second, distance / GRID


def tree_of(n: int, first: Indices, second: Indices, distance: Floats) -> Floats:
    """The tree (n - 1, 4) of a forest over n rows, its edges nearest first; its parts are joined at infinity, in order."""
    cluster = np.arange(n)  # of a set's head: the number of the cluster that it is now
    head, size = list(range(n)), [1] * n

    def head_of(row: int) -> int:
        while head[row] != row:
            head[row] = head[head[row]]
            row = head[row]
        return row

    tree = np.empty((max(n - 1, 0), 4))
    at = 0

    def merge(one: int, other: int, height: float) -> None:
        nonlocal at
        one, other = sorted((head_of(one), head_of(other)))
        head[other] = one
        size[one] += size[other]
        tree[at] = (*sorted((cluster[one], cluster[other])), height, size[one])
        cluster[one] = n + at
        at += 1

    for one, other, height in zip(first.tolist(), second.tolist(), distance.tolist(), strict=True):
        merge(one, other, height)
    for row in range(1, n):
        if head_of(row) == row:
            merge(0, row, np.inf)
    return tree


def _forest(n: int, first: Indices, second: Indices, distance: Floats) -> tuple[Indices, Indices, Floats]:
    """The edges of the minimum spanning forest, nearest first, equally near ones in order of their rows.

    Edges enter by their rank, not their distance: no two are equal, and none is the zero that a sparse matrix has no room for.
    """
    low, high = np.minimum(first, second), np.maximum(first, second)
    _, once = np.unique(low * n + high, return_index=True)
    low, high, distance = low[once], high[once], distance[once]
    order = np.lexsort((high, low, distance))
    low, high, distance = low[order], high[order], distance[order]
    graph = sparse.csr_matrix((np.arange(1.0, len(order) + 1), (low, high)), shape=(n, n))
    kept = np.sort(csgraph.minimum_spanning_tree(graph).data).astype(np.int64) - 1
    return low[kept], high[kept], distance[kept]
