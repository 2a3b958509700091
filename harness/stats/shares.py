"""How far apart two next-token distributions are where one of them, or both, show themselves in draws alone.

The distance of two distributions p, q over m cells is the squared one of their probabilities, sum (p - q)^2: the maximum mean
discrepancy of one token under the kernel that is 1 for equal tokens and 0 else (Gao, Liang and Guestrin 2024, whose Hamming
kernel it is at length 1). It lies in [0, 2]. What is estimated here is unbiased, so an estimate below 0 is noise about 0 and an
interval may be held against a margin; a total variation of drawn shares is never 0 in the mean. All cells are columns: a cell
that a prompt does not use is 0 throughout.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def distance_to(counts: Ints, probabilities: Floats) -> Floats:
    """Unbiased estimates (n,) of sum (p - q)^2 from counts (n, m) of N draws from p and known q (n, m), each row summing to 1.

    sum x (x - 1) / (N (N - 1)) - 2 sum (x / N) q + sum q^2
    """
    products = (_shares(counts) * probabilities).sum(axis=-1)
    return np.asarray(_own(counts) - 2 * products + (probabilities**2).sum(axis=-1))


def distance_between(x: Ints, y: Ints) -> Floats:
    """Unbiased estimates (n,) of sum (p - q)^2 from counts (n, m) of draws from p and of draws from q.

    sum x (x - 1) / (N (N - 1)) + sum y (y - 1) / (M (M - 1)) - 2 sum (x / N) (y / M): the U-statistic of the squared maximum
    mean discrepancy (Gretton et al. 2012). NaN where a side has fewer than two draws.
    """
    return np.asarray(_own(x) + _own(y) - 2 * (_shares(x) * _shares(y)).sum(axis=-1))


def p_of_draws(counts: Ints, probabilities: Floats, *, n: int = 999, seed: int = 0) -> float:
    """p of the draws coming from `probabilities`: (1 + #{T* >= T}) / (n + 1), T the sum over prompts of `distance_to`.

    T*: the same of as many draws from `probabilities` (Monte-Carlo test, Barnard 1963).
    """
    rng = np.random.default_rng(seed)
    observed = float(distance_to(counts, probabilities).sum())
    totals = np.zeros(n)
    for row, q in zip(counts, probabilities, strict=True):
        possible = q[q > 0]
        totals += distance_to(rng.multinomial(int(row.sum()), possible / possible.sum(), size=n), possible[None])
    return float((1 + np.count_nonzero(totals >= observed - 1e-12)) / (n + 1))


def p_between(x: Ints, y: Ints, *, n: int = 999, seed: int = 0) -> float:
    """p of both sides being drawn from one distribution: each prompt's draws are dealt anew to the two sides, all prompts at
    once; (1 + #{T* >= T}) / (n + 1), T the sum over prompts of `distance_between` (permutation within blocks, Good 2005)."""
    rng = np.random.default_rng(seed)
    observed = float(distance_between(x, y).sum())
    totals = np.zeros(n)
    for row_x, row_y in zip(x, y, strict=True):
        pool = (row_x + row_y)[row_x + row_y > 0]
        dealt = rng.multivariate_hypergeometric(pool, int(row_x.sum()), size=n, method="count")
        totals += distance_between(dealt, pool[None] - dealt)
    return float((1 + np.count_nonzero(totals >= observed - 1e-12)) / (n + 1))


def _shares(counts: Ints) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        shares: Floats = counts / counts.sum(axis=-1, keepdims=True)
    return shares


def _own(counts: Ints) -> Floats:
    """Unbiased estimate of sum p^2: the share of pairs of draws that are equal."""
    total = counts.sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        own: Floats = (counts * (counts - 1)).sum(axis=-1) / (total * (total - 1))
    return own
