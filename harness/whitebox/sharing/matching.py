"""Which features of one dictionary are those of another: three scores, and each feature's best candidates.

- `correlations`: Pearson correlation of activations on the same segments of text (the way of arXiv 2410.06981);
- `cosines` of gloss vectors: the published way, and no better than the glosses;
- `cosines` of decoder rows after `affine_map` has carried those of one source into the space of the other (arXiv 2506.06609).

Scores come as entries, a block of features at a time, so that no matrix of all features by all features is ever held. Knows
arrays, neither catalogues nor pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, sparse

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
Mask = NDArray[np.bool_]
Entries = tuple[Ints, Ints, Floats]
"""Feature of a, feature of b, score."""

FEATURES_AT_ONCE = 256
"""Features of a whose scores with all of b are held: 32 MB of float32 with 32,768 features, thrice that as sparse entries."""

SEGMENTS_AT_ONCE = 4096

RIDGE = 1e-3
"""Of the mean variance of a's dimensions: enough that directions hardly used in the text do not blow up."""

ROUNDING = 1e-12

KEPT = 1 << 22
"""Entries held before those that can be no feature's candidate any more are dropped: about 50 MB."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Matches:
    """Features `a` and `b` (n,) that match with `score`, ordered by a, then by score.

    `rank_ab`: the place of b among all of a's matches with these features, from 0; `rank_ba`: of a among b's; -1 beyond the
    candidates.
    """

    a: Ints
    b: Ints
    score: Floats
    rank_ab: Ints
    rank_ba: Ints

    @property
    def mutual(self) -> Mask:
        """Where each is the other's best."""
        found: Mask = (self.rank_ab == 0) & (self.rank_ba == 0)
        return found


def active(codes: sparse.csr_matrix, min_active: int) -> Mask:
    """The features that fire on at least `min_active` rows of `codes`, (d_sae,)."""
    counts = np.bincount(codes.indices[codes.data > 0], minlength=codes.shape[1])
    found: Mask = counts >= min_active
    return found


def correlations(
    a: sparse.csr_matrix, b: sparse.csr_matrix, *, min_active: int, at_least: float, block: int = FEATURES_AT_ONCE
) -> Iterator[Entries]:
    """Pearson correlations of at least `at_least` > 0 between the columns of `a` and `b`, (n, d_sae) activations each.

    Only columns that are non-zero together somewhere are seen: no others correlate positively. Those non-zero on fewer than
    `min_active` rows are left out.
    """
    (one, shift_a), (other, shift_b) = (_standardised(codes, active(codes, min_active)) for codes in (a, b))
    transposed = one.T.tocsr()
    for start in range(0, transposed.shape[0], block):
        together = (transposed[start : start + block] @ other).tocoo()
        rows, columns = together.row + start, together.col
        scores = together.data - shift_a[rows] * shift_b[columns]
        kept = scores >= at_least
        yield rows[kept].astype(np.int32), columns[kept].astype(np.int32), scores[kept].astype(np.float32)


def cosines(a: Floats, b: Floats, *, at_least: float, block: int = FEATURES_AT_ONCE) -> Iterator[Entries]:
    """Cosines of at least `at_least` between the rows of `a` and `b`, (d_sae, d) each; rows of zeros are left out."""
    one, other = _unit(a), _unit(b)
    for start in range(0, len(one), block):
        scores = one[start : start + block] @ other.T  # (block, d_sae of b)
        rows, columns = np.nonzero((scores >= at_least) & (scores != 0))
        yield (rows + start).astype(np.int32), columns.astype(np.int32), scores[rows, columns]


def affine_map(
    a: tuple[sparse.csr_matrix, Floats], b: tuple[sparse.csr_matrix, Floats], *, ridge: float = RIDGE
) -> NDArray[np.float64]:
    """The linear part (d_a, d_b) of the affine map that carries activations of a to those of b best, by least squares.

    A catalogue keeps no activations: the map is fitted to what the dictionaries make of them, codes (n, d_sae) times W_dec
    (d_sae, d), on the same segments, so that it knows only what both dictionaries speak of (unlike arXiv 2506.06609, which
    fits residual streams). `ridge` is in units of the mean variance of a's dimensions.
    """
    (codes_a, decoder_a), (codes_b, decoder_b) = a, b
    widths = decoder_a.shape[1], decoder_b.shape[1]
    squares, products = np.zeros((widths[0], widths[0])), np.zeros(widths)
    sums = np.zeros(widths[0]), np.zeros(widths[1])
    for start in range(0, codes_a.shape[0], SEGMENTS_AT_ONCE):
        part = slice(start, start + SEGMENTS_AT_ONCE)
        x, y = np.asarray(codes_a[part] @ decoder_a, np.float64), np.asarray(codes_b[part] @ decoder_b, np.float64)
        squares += x.T @ x
        products += x.T @ y
        for total, values in zip(sums, (x, y), strict=True):
            total += values.sum(axis=0)
    n = max(codes_a.shape[0], 1)
    squares -= np.outer(sums[0], sums[0]) / n
    products -= np.outer(*sums) / n
    weight = max(ridge * np.trace(squares) / widths[0], ROUNDING)
    found: NDArray[np.float64] = linalg.solve(squares + weight * np.eye(widths[0]), products, assume_a="pos")
    return found


def best(found: Iterable[Entries], candidates: int) -> Matches:
    """The entries that are among the `candidates` best of their feature of a or of their feature of b."""
    held: Entries = np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32)
    waiting: list[Entries] = []
    for entries in found:
        waiting.append(entries)
        if sum(len(part[0]) for part in waiting) > max(KEPT, len(held[0])):
            held, waiting = _pruned([held, *waiting], candidates), []
    a, b, score = _pruned([held, *waiting], candidates)
    order = np.lexsort((b, -score, a))
    a, b, score = a[order], b[order], score[order]
    ranks = [np.where((rank := _rank(*way, score)) < candidates, rank, -1).astype(np.int32) for way in ((a, b), (b, a))]
    return Matches(a=a, b=b, score=score, rank_ab=ranks[0], rank_ba=ranks[1])


def _standardised(codes: sparse.csr_matrix, usable: Mask) -> tuple[sparse.csr_matrix, NDArray[np.float64]]:
    """Columns scaled, and what is to be taken from a product of two of them, so that it is their correlation.

    With x / (sd sqrt(n)) for a column x, the correlation of two is their product less mean / sd of the one times that of
    the other. Columns that are not usable, or constant, become zero.
    """
    n = max(codes.shape[0], 1)
    codes = codes.astype(np.float64)
    mean = np.asarray(codes.sum(axis=0)).ravel() / n
    square = np.asarray(codes.multiply(codes).sum(axis=0)).ravel() / n
    variance = square - mean**2
    usable = usable & (variance > ROUNDING * square)
    scale = np.zeros(len(mean))
    scale[usable] = (n * variance[usable]) ** -0.5
    scaled = sparse.csr_matrix(codes @ sparse.diags_array(scale))
    scaled.eliminate_zeros()
    return scaled, np.sqrt(n) * mean * scale


def _unit(rows: NDArray[Any]) -> Floats:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(norms > 0, norms, 1.0)).astype(np.float32)


def _pruned(parts: list[Entries], candidates: int) -> Entries:
    a, b, score = (np.concatenate(column) for column in zip(*parts, strict=True))
    kept = (_rank(a, b, score) < candidates) | (_rank(b, a, score) < candidates)
    return a[kept], b[kept], score[kept]


def _rank(group: Ints, other: Ints, score: Floats) -> NDArray[np.int64]:
    """The place of each entry among those of its group, highest score first, then the lowest `other`."""
    order = np.lexsort((other, -score, group))
    sorted_group = group[order]
    first = np.flatnonzero(np.diff(sorted_group, prepend=-1))
    starts = np.repeat(first, np.diff(np.append(first, len(order))))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order)) - starts
    return rank
