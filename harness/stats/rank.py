"""Whether predicted and observed shifts are ordered alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]

MIN_POINTS = 5
"""With fewer points not even a perfect order can be told from chance: 2 / 4! = .083."""

FEW_POINTS = f"fewer than {MIN_POINTS} points"
CONSTANT = "all values of one side are equal"

_PERMUTATIONS = 1999
_BATCH_ENTRIES = 1 << 20
"""Values resampled at a time, so that memory does not grow with the number of points."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankCorrelation:
    """Spearman's rho over `n` points. What the data cannot say is None, and `reason` says why."""

    n: int
    rho: float | None = None
    p: float | None = None
    reason: str | None = None


def spearman(predicted: ArrayLike, observed: ArrayLike, seed: int) -> RankCorrelation:
    """Spearman's rho of (n,) `predicted` and `observed`, with a permutation p.

    Points are exchangeable: give one for each injection (its mean over sentences), not one for each trial. Points that are
    not finite are dropped. `p` is two-sided and never 0: over all orders up to 7 points, else over 1,999 drawn ones (the t
    approximation says p = 0 of any five points in perfect order). `bootstrap.crossed_bootstrap` gives the interval, which
    needs the trials.
    """
    x, y = np.asarray(predicted, np.float64), np.asarray(observed, np.float64)
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    if len(x) < MIN_POINTS:
        return RankCorrelation(n=len(x), reason=FEW_POINTS)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return RankCorrelation(n=len(x), reason=CONSTANT)
    return RankCorrelation(n=len(x), rho=_rho(x, y), p=_permutation_p(x, y, np.random.default_rng(seed)))


def _rho(x: Floats, y: Floats) -> float:
    """Spearman's rho; neither side is constant."""
    return float(np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1])


def _permutation_p(x: Floats, y: Floats, rng: np.random.Generator) -> float:
    """Two-sided p of rho against all orders of the points being equally likely."""
    ranks_y = stats.rankdata(y)

    def product(ranks_x: Floats, axis: int) -> Floats:
        """Orders the permutations as rho does, since the ranks themselves stay the same."""
        total: Floats = (ranks_x * ranks_y).sum(axis=axis)
        return total

    test = stats.permutation_test(
        (stats.rankdata(x),),
        product,
        permutation_type="pairings",
        vectorized=True,
        n_resamples=_PERMUTATIONS,
        batch=max(1, _BATCH_ENTRIES // len(x)),
        rng=rng,
    )
    return float(test.pvalue)
