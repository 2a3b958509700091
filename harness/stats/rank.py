"""Whether predicted and observed shifts are ordered alike."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]

MIN_POINTS = 5
"""With fewer points not even a perfect order can be told from chance: 2 / 4! = .083."""

FEW_POINTS = f"fewer than {MIN_POINTS} points"
CONSTANT = "all values of one side are equal"
NO_VARIATION = "no variation between resamples"

_RESAMPLES = 2000
_PERMUTATIONS = 9999
_ROUNDING = 1e-12
_BATCH_ENTRIES = 1 << 20
"""Values resampled at a time, so that memory does not grow with the number of points."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankCorrelation:
    """Spearman's rho over `n` points. What the data cannot say is None, and `reason` says why."""

    n: int
    rho: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    p: float | None = None
    reason: str | None = None


def spearman(predicted: ArrayLike, observed: ArrayLike, seed: int, confidence: float = 0.95) -> RankCorrelation:
    """Spearman's rho of (n,) `predicted` and `observed`, with a percentile bootstrap interval and a permutation p.

    Points are resampled as independent: give one for each injection (its mean over sentences), not one for each trial.
    Points that are not finite are dropped. `p` is two-sided and never 0: over all orders up to 7 points, else over 9,999
    drawn ones (the t approximation says p = 0 of any five points in perfect order). Resamples in which one side is
    constant have no rho and are left out of the interval.
    """
    x, y = np.asarray(predicted, np.float64), np.asarray(observed, np.float64)
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    if len(x) < MIN_POINTS:
        return RankCorrelation(n=len(x), reason=FEW_POINTS)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return RankCorrelation(n=len(x), reason=CONSTANT)
    rng = np.random.default_rng(seed)
    low, high = _bootstrap_interval(x, y, confidence, rng)
    point = RankCorrelation(n=len(x), rho=float(_rho(x, y)), p=_permutation_p(x, y, rng))
    if high - low < _ROUNDING:
        return replace(point, reason=NO_VARIATION)
    return replace(point, ci_low=low, ci_high=high)


def _rho(x: Floats, y: Floats) -> Floats:
    """Spearman's rho along the last axis, NaN where one side is constant."""
    ranks_x, ranks_y = stats.rankdata(x, axis=-1), stats.rankdata(y, axis=-1)
    ranks_x -= ranks_x.mean(axis=-1, keepdims=True)
    ranks_y -= ranks_y.mean(axis=-1, keepdims=True)
    scale = np.sqrt((ranks_x**2).sum(axis=-1) * (ranks_y**2).sum(axis=-1))
    with np.errstate(invalid="ignore"):
        rho: Floats = (ranks_x * ranks_y).sum(axis=-1) / scale
    return rho


def _bootstrap_interval(x: Floats, y: Floats, confidence: float, rng: np.random.Generator) -> tuple[float, float]:
    """Percentile interval of rho over resampled points.

    Drawn here because `scipy.stats.bootstrap` gives NaN and a warning as soon as one resample has no rho.
    """
    batch = max(1, _BATCH_ENTRIES // len(x))
    rhos = np.empty(_RESAMPLES)
    for start in range(0, _RESAMPLES, batch):
        drawn = rng.integers(len(x), size=(min(batch, _RESAMPLES - start), len(x)))
        rhos[start : start + batch] = _rho(x[drawn], y[drawn])
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(rhos, (tail, 1 - tail))
    return float(low), float(high)


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
