"""Whether a prediction orders and sizes what was observed, and whether it does so beyond what was known without it.

A point is an injection: what was predicted of it, its observed mean, its group (the concept) and its covariates (length,
frequency, ...), which could make both alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import ndtri, stdtr, stdtrit

Floats = NDArray[np.float64]
Codes = NDArray[np.intp]

N_PERMUTATIONS = 1999
_BATCH_ENTRIES = 1 << 20
"""Values permuted at a time, so that memory does not grow with the number of points."""

_ROUNDING = 1e-9
"""A residual below this share of what it was taken from is a sum of rounding errors."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Points:
    """n injections: `predicted`, `observed` (n,), `covariates` (n, q), and `groups` (n,), codes from 0. All finite."""

    predicted: Floats
    observed: Floats
    covariates: Floats
    groups: Codes

    def __len__(self) -> int:
        return len(self.predicted)

    def take(self, rows: NDArray[np.bool_]) -> Points:
        """The points where `rows` is true, their groups coded anew."""
        _, groups = np.unique(self.groups[rows], return_inverse=True)
        return Points(
            predicted=self.predicted[rows], observed=self.observed[rows], covariates=self.covariates[rows], groups=groups
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Observed = `intercept` + `slope` predicted; a prediction of the right size has slope 1. None: the data cannot say."""

    slope: float | None = None
    intercept: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    p: float | None = None


def weighted_ranks(values: Floats, weights: Floats) -> Floats:
    """Midranks of (n,) `values`, each counted `weights` times: the weight below plus half that of its equals."""
    order = np.argsort(values, kind="stable")
    ordered, cumulated = values[order], np.cumsum(weights[order])
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    ends = np.r_[starts[1:], len(values)]
    ranks = np.empty(len(values))
    ranks[order] = np.repeat((np.r_[0.0, cumulated][starts] + cumulated[ends - 1]) / 2, ends - starts)
    return ranks


def rank_correlation(points: Points, weights: Floats) -> float:
    """Spearman's rho of weighted points, `weights` (n,); NaN where one side is constant."""
    return _rank_correlation(points.predicted, points.observed, weights)


def partial_rank_correlation(points: Points, weights: Floats) -> float:
    """Spearman's rho of what group and covariates leave of prediction and observation; NaN where they leave nothing.

    Both sides are regressed, by weighted least squares, on a constant for each group and on the covariates; then the
    residuals are ranked. Our deviation from the usual partial rank correlation (Conover and Iman 1981), which ranks first:
    ranks are not linear in what is taken off, what is left looks like prediction, and a true null is rejected far too often
    (`tests/stats/test_predicting.py`).
    """
    residual_of = _projector(points.covariates, points.groups, weights)
    x, y = (_residual(side, residual_of) for side in (points.predicted, points.observed))
    return _rank_correlation(x, y, weights)


def freedman_lane_p(points: Points, *, seed: int, n: int = N_PERMUTATIONS) -> float | None:
    """Two-sided p of `partial_rank_correlation` being zero: residuals are permuted within groups.

    The residuals of the observations are permuted within each group and added to the fit, and the partial correlation taken
    anew (Freedman and Lane 1983); p = (1 + #{|rho*| >= |rho|}) / (1 + n). The regression takes the fit off again, so that
    residuals alone need be permuted. None where the correlation is not defined.
    """
    ones = np.ones(len(points))
    residual_of = _projector(points.covariates, points.groups, ones)
    x, y = (_residual(side, residual_of) for side in (points.predicted, points.observed))
    observed = _rank_correlation(x, y, ones)
    if np.isnan(observed):
        return None
    rng = np.random.default_rng(seed)
    ranks = stats.rankdata(x)
    ranks -= ranks.mean()
    members = [np.flatnonzero(points.groups == group) for group in np.unique(points.groups)]
    batch = max(1, _BATCH_ENTRIES // len(points))
    as_large = 0
    for start in range(0, n, batch):
        permuted = np.empty((len(points), min(batch, n - start)))
        for rows in members:
            permuted[rows] = rng.permuted(np.tile(y[rows, None], permuted.shape[1]), axis=0)
        order = np.argsort(residual_of(permuted), axis=0)  # (n, batch): the k-th row holds who has rank k, ties as they come
        rho = np.arange(len(points)) @ ranks[order] / np.sqrt((ranks @ ranks) * (len(points) ** 3 - len(points)) / 12)
        as_large += int(np.count_nonzero(np.abs(rho) >= abs(observed) * (1 - 1e-10)))
    return (1 + as_large) / (1 + n)


def correlation_interval(rho: float, replicates: Floats, confidence: float = 0.95) -> tuple[float, float] | None:
    """tanh(atanh rho -+ z sd(atanh rho*)) from a bootstrap's `replicates` rho*; None without spread or for a perfect order.

    Fisher's (1921) transformation, on which a correlation is nearly normal, with the bootstrap's standard error (Efron and
    Tibshirani 1993, chapter 13). No percentiles: resampled means are noisier than the means themselves, which pulls every
    rho* towards 0, so that percentiles may leave rho itself out.
    """
    known = replicates[np.abs(replicates) < 1]
    if len(known) < 0.9 * len(replicates) or not abs(rho) < 1:
        return None
    half = float(ndtri((1 + confidence) / 2) * np.arctanh(known).std(ddof=1))
    middle = float(np.arctanh(rho))
    return (float(np.tanh(middle - half)), float(np.tanh(middle + half))) if half > _ROUNDING else None


def fit_line(points: Points, *, adjusted: bool = False, confidence: float = 0.95) -> Line:
    """Least squares of observed on predicted, in their own units; `adjusted`: given group and covariates, without intercept.

    The error is clustered by group, G / (G - 1) (n - 1) / (n - k) sum over groups of (sum of x e)^2 / (sum of x^2)^2 with k
    the number of coefficients (Liang and Zeger 1986, with Stata's small-sample factor), Student's t with G - 1 degrees of
    freedom; no interval for one group, nothing for a constant prediction.
    """
    n, n_groups = len(points), int(points.groups.max(initial=-1)) + 1
    covariates = points.covariates if adjusted else np.empty((n, 0))
    groups = points.groups if adjusted else np.zeros(n, np.intp)
    k = 1 + covariates.shape[1] + (n_groups if adjusted else 1)
    if n <= k:
        return Line()
    residual_of = _projector(covariates, groups, np.ones(n))
    x, y = residual_of(np.stack((points.predicted, points.observed), axis=1)).T
    square = float(x @ x)
    if square <= (_ROUNDING * np.abs(points.predicted).max()) ** 2 * n:
        return Line()
    slope = float(x @ y) / square
    line = Line(slope=slope, intercept=None if adjusted else float(points.observed.mean() - slope * points.predicted.mean()))
    scores = np.bincount(points.groups, x * (y - slope * x))
    if n_groups < 2 or not scores.any():
        return line
    se = float(np.sqrt(n_groups / (n_groups - 1) * (n - 1) / (n - k) * (scores @ scores))) / square
    half = float(stdtrit(n_groups - 1, (1 + confidence) / 2)) * se
    p = 2 * float(stdtr(n_groups - 1, -abs(slope) / se))
    return Line(slope=slope, intercept=line.intercept, ci_low=slope - half, ci_high=slope + half, p=p)


def calibration(points: Points, n_bins: int) -> list[tuple[int, float, float]]:
    """(points, mean predicted, mean observed) of `n_bins` bins of nearly equal size, the lowest predictions first."""
    order = np.argsort(points.predicted, kind="stable")
    bins = np.array_split(order, n_bins)
    return [(len(rows), float(points.predicted[rows].mean()), float(points.observed[rows].mean())) for rows in bins]


def _projector(covariates: Floats, groups: Codes, weights: Floats) -> Callable[[Floats], Floats]:
    """Takes columns (n, b) to their residuals after weighted regression on a constant for each group and on `covariates`.

    Group means first, then the centred covariates (Frisch and Waugh 1933): no dummies are built.
    """
    total = np.bincount(groups, weights)
    total[total == 0] = 1.0
    membership = np.zeros((len(total), len(groups)))
    membership[groups, np.arange(len(groups))] = weights / total[groups]

    def centred(columns: Floats) -> Floats:
        return columns - (membership @ columns)[groups]

    z = centred(covariates)
    pinv = np.linalg.pinv(z.T @ (weights[:, None] * z), hermitian=True) @ (z * weights[:, None]).T  # (q, n)

    def residual(columns: Floats) -> Floats:
        middle = centred(columns)
        return middle - z @ (pinv @ middle)

    return residual


def _residual(side: Floats, residual_of: Callable[[Floats], Floats]) -> Floats:
    """What the regression leaves of `side` (n,); zeros where that is nothing but rounding."""
    left = residual_of(side[:, None])[:, 0]
    return left if left @ left > _ROUNDING**2 * (side @ side) else np.zeros(len(side))


def _rank_correlation(x: Floats, y: Floats, weights: Floats) -> float:
    ranks = np.stack([weighted_ranks(side, weights) for side in (x, y)])
    ranks -= (ranks @ weights / weights.sum())[:, None]
    covariances = (ranks * weights) @ ranks.T
    scale = covariances[0, 0] * covariances[1, 1]
    return float(covariances[0, 1] / np.sqrt(scale)) if scale > 0 else float("nan")
