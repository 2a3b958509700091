"""How many pairs of directions would lie above a cosine by chance, and the threshold that leaves hardly any of them.

Two nulls for the n directions of a site, all drawn independently:

- `isotropic`: every direction equally likely. With t the cosine of two of them in d dimensions, t^2 follows
  Beta(1/2, (d - 1)/2) (Cai, Fan and Jiang 2013, JMLR 14, section 2), so P(cos > t) is half that law's upper tail.
- `matched`: directions of x ~ N(0, S) for a covariance S. Given the first of the pair at unit length, u,

      P(cos > t | u) = 1/2 P(y' (u u' - t^2 I) y > 0),   y ~ N(0, S),

  a quadratic form in normal variables. Its tail comes from the saddlepoint approximation (Kuonen 1999, Biometrika 86,
  929-935) in Barndorff-Nielsen's r* form: at most a sixth too large however small the tail is, which moves a threshold
  by 0.002. It is averaged over seeded draws of u. Only the eigenvalues of S matter.

The number of pairs expected above t is n (n - 1) / 2 times the tail: exact in expectation, whether or not pairs share a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from harness.errors import UsageError

Floats = NDArray[np.float64]

DRAWS = 2048
"""Directions u that the matched null averages over. Thresholds still scatter with the seed: by 0.01 for eigenvalues that fall
as 1/k (512 of them), by 0.02 for k^-0.5."""

_APART = 64
_TOGETHER = 8
"""The largest eigenvalues count each for itself, the others in runs of neighbours, by their mean: a fifth of the work."""

_STEPS = 40

_SECONDS = 2048
_BODY = 0.03
"""Standard deviations in r* below which P(cos > t | u) is no tail but a share near one half, and is counted instead: over
so many seeded second directions, the same for every u and t. The approximation has its difficulties exactly there."""


class Null(Protocol):
    """A law of independent directions."""

    @property
    def name(self) -> str:
        """`isotropic`, or `matched`."""

    def tail(self, cosine: float) -> float:
        """P(the cosine of two directions > `cosine`), for a cosine in [0, 1]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Isotropic:
    """Directions spread evenly over the sphere in `d` dimensions."""

    d: int
    name: str = "isotropic"

    def tail(self, cosine: float) -> float:
        if self.d == 1:
            return 0.5 if cosine < 1 else 0.0
        return float(stats.beta.sf(cosine**2, 0.5, (self.d - 1) / 2) / 2)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Spectrum:
    """The distinct eigenvalues of a covariance (k,), with how often each counts (k,)."""

    eigenvalues: Floats
    times: Floats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Matched:
    """Directions of N(0, S). `squares` (m, k): each u's squared coordinates, summed over an eigenvalue's own axes.

    `sampled` (m, _SECONDS): the size of the cosine of each u with drawn second directions.
    """

    spectrum: Spectrum
    squares: Floats
    sampled: NDArray[np.float32]
    name: str = "matched"

    def tail(self, cosine: float) -> float:
        if cosine >= 1:
            return 0.0
        if cosine <= 0 or self.spectrum.times.sum() == 1:
            return 0.5
        body = np.mean(self.sampled > cosine, axis=1)
        return float(np.mean(_positive(self.spectrum, self.squares / cosine**2, body)) / 2)


def matched(covariance: NDArray[np.floating], *, seed: int, draws: int = DRAWS) -> Matched:
    """The null of a symmetric `covariance` (d, d); raises UsageError where it is none."""
    values = np.asarray(covariance, np.float64)
    if values.ndim != 2 or values.shape[0] != values.shape[1] or not np.isfinite(values).all():
        raise UsageError(f"a covariance is a square matrix of finite numbers, not {values.shape}")
    if not np.allclose(values, values.T, rtol=1e-4, atol=1e-6 * max(np.abs(values).max(), 1e-300)):
        raise UsageError("a covariance is symmetric, this matrix is not")
    eigenvalues = np.linalg.eigvalsh((values + values.T) / 2)[::-1]
    if eigenvalues[0] <= 0 or eigenvalues[-1] < -1e-4 * eigenvalues[0]:
        raise UsageError("a covariance has no negative eigenvalue and is not zero; this matrix fails one of the two")
    spectrum = _grouped(eigenvalues[eigenvalues > 1e-12 * eigenvalues[0]])
    rng = np.random.default_rng(seed)
    squares = spectrum.eigenvalues * rng.chisquare(spectrum.times, (draws, len(spectrum.times)))
    squares /= squares.sum(axis=1, keepdims=True)
    return Matched(spectrum=spectrum, squares=squares, sampled=_sampled(spectrum, squares, rng))


def _sampled(spectrum: Spectrum, squares: Floats, rng: np.random.Generator) -> NDArray[np.float32]:
    """|cos| of each u with second directions. Within an eigenvalue's axes the first one is turned towards u."""
    along = rng.standard_normal((_SECONDS, len(spectrum.times)))
    across = rng.standard_gamma((spectrum.times - 1) / 2, along.shape) * 2  # chi-squared, 0 for a single axis
    norms = np.sqrt((along**2 + across) @ spectrum.eigenvalues)
    return (np.abs(np.sqrt(squares * spectrum.eigenvalues) @ along.T) / norms).astype(np.float32)


def _grouped(eigenvalues: Floats) -> Spectrum:
    """Descending `eigenvalues`, scaled to a mean of 1: the largest apart, the rest in runs."""
    scaled = eigenvalues / eigenvalues.mean()
    runs = [scaled[at : at + 1] for at in range(min(_APART, len(scaled)))]
    runs += [scaled[at : at + _TOGETHER] for at in range(_APART, len(scaled), _TOGETHER)]
    return Spectrum(eigenvalues=np.array([run.mean() for run in runs]), times=np.array([float(len(run)) for run in runs]))


def expected_pairs(null: Null, n: int, cosine: float) -> float:
    """Pairs of `n` directions that the null puts above `cosine`."""
    return n * (n - 1) / 2 * null.tail(cosine)


def threshold_of(null: Null, n: int, max_pairs: float) -> float:
    """The smallest cosine in [0, 1] above which the null puts at most `max_pairs` pairs of `n` directions."""

    def excess(cosine: float) -> float:
        return float(np.log(max(expected_pairs(null, n, cosine), 1e-300) / max_pairs))

    if expected_pairs(null, n, 0.0) <= max_pairs:
        return 0.0
    highest = 1 - 1e-9
    if excess(highest) > 0:
        return 1.0
    return float(optimize.brentq(excess, 0.0, highest, xtol=1e-6))


def _positive(spectrum: Spectrum, weights: Floats, body: Floats) -> Floats:
    """P(y' (u u' - t^2 I) y > 0) for each u, whose squared coordinates over t^2 are a row of `weights` (m, k).

    With c = 2 s t^2 the cumulant function is K(c) = -1/2 [sum log(1 + c l) + log(1 - g(c))],
    g(c) = sum (u/t)^2 c l / (1 + c l): the determinant of a rank-one change. The saddlepoint is the root of its derivative.
    `body` (m,): the same probabilities counted, used where they are near one half or above.
    """
    found = body.copy()
    far = np.flatnonzero(weights @ spectrum.eigenvalues < spectrum.times @ spectrum.eigenvalues)  # below the mean of the form
    if len(far):
        c = _root(spectrum, weights[far])
        value, second = _cumulants(spectrum, weights[far], c)
        w = np.sqrt(np.maximum(-2 * value, _BODY**2))
        r = w + np.log(np.maximum(c * np.sqrt(second), 1e-12) / w) / w
        found[far] = np.where(-2 * value > _BODY**2, stats.norm.sf(r), body[far])
    return found


def _cumulants(spectrum: Spectrum, weights: Floats, c: Floats) -> tuple[Floats, Floats]:
    """K and its second derivative at `c` (m,), where g(c) < 1."""
    grown = 1 + c[:, None] * spectrum.eigenvalues  # (m, k)
    part = spectrum.eigenvalues / grown
    left = 1 - c * (weights * part).sum(axis=1)
    g1 = (weights * part / grown).sum(axis=1)
    g2 = -2 * (weights * part**2 / grown).sum(axis=1)
    value = -0.5 * (np.log(grown) @ spectrum.times + np.log(left))
    return value, 0.5 * (part**2 @ spectrum.times + g2 / left + (g1 / left) ** 2)


def _slope(spectrum: Spectrum, weights: Floats, c: Floats) -> Floats:
    """Twice the derivative of K at `c` (m,), infinite beyond the pole where g(c) = 1."""
    part = spectrum.eigenvalues / (1 + c[:, None] * spectrum.eigenvalues)  # (m, k)
    weighted = weights * part
    left = 1 - c * weighted.sum(axis=1)
    g1 = np.einsum("mk,mk->m", weighted, part / spectrum.eigenvalues)
    slope: Floats = np.where(left > 0, g1 / np.where(left > 0, left, 1.0) - part @ spectrum.times, np.inf)
    return slope


def _root(spectrum: Spectrum, weights: Floats) -> Floats:
    """Where the increasing slope crosses zero, (m,), above zero: bisection on a logarithmic scale."""
    low, high = np.full(len(weights), -27.0), np.full(len(weights), 27.0)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        rising = _slope(spectrum, weights, np.exp(middle) / spectrum.eigenvalues[0]) > 0
        low, high = np.where(rising, low, middle), np.where(rising, middle, high)
    found: Floats = np.exp(low) / spectrum.eigenvalues[0]
    return found
