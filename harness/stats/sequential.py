"""Means of bounded values that may be looked at after every one of them: the chance of ever being wrong stays below alpha.

A bettor starts with capital 1 and, before each value, stakes a part of it that the mean is above m. If the mean is m or less,
then by Ville's inequality the capital ever reaches 1 / alpha with a chance of at most alpha, whenever one stops and whatever
distribution the values have (Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables by betting"). What is
needed: each value, given those before it, has the mean that is asked about. Values of clusters in a random order have it.

The limit of what any such method can do: values in [0, 1] that are all 1 show a mean above m only once m^n <= alpha, since with
a mean of m they could all be 1 with the chance m^n.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

MOST = 0.95
"""The largest part of the capital that one value may cost."""

_FIRST_VARIANCE = 0.02
"""What a value's variance is taken to be before the first one is seen: values that hardly differ, as an unchanged target's."""

_STEPS = 1000
"""Candidates for the mean between the ends of its range."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Limits:
    """`low`, `high` (T,): limits of the mean after each value. Each is ever wrong with a chance of at most alpha."""

    low: Floats
    high: Floats


def log_capital(values: ArrayLike, mean: ArrayLike, *, guess: float) -> Floats:
    """The log of the bettor's capital after each of `values` (..., T) in [0, 1], against "the mean is at most `mean`".

        K_t = prod_(i <= t) (1 + l_i (x_i - m)),   l_i = (u - m) / (v + (u - m)^2), cut to [0, MOST / m]

    with u and v the mean and the variance of the values before the i-th: the bet that Waudby-Smith and Ramdas (2024, B.3) call
    aGRAPA. Unlike theirs, u starts at `guess` and not at 1/2, and v at 0.02 and not at 1/4, so that who expects the values that
    come is soon sure; a wrong guess costs time and never validity. `mean` broadcasts against `values`: (M, 1) against (T,).
    """
    x = np.asarray(values, np.float64)
    m = np.asarray(mean, np.float64)
    seen = np.arange(1, x.shape[-1] + 1)
    after = (guess + np.cumsum(x, axis=-1)) / (seen + 1)
    before = np.concatenate([np.full((*x.shape[:-1], 1), guess), after[..., :-1]], axis=-1)
    spread = _FIRST_VARIANCE + np.cumsum((x - after) ** 2, axis=-1)
    variance = np.concatenate([np.full((*x.shape[:-1], 1), _FIRST_VARIANCE), spread[..., :-1]], axis=-1) / seen
    edge = before - m
    bet = np.clip(edge / (variance + edge**2), 0.0, MOST / np.maximum(m, np.finfo(np.float64).tiny))
    return np.cumsum(np.log1p(bet * (x - m)), axis=-1)


def mean_limits(low: ArrayLike, high: ArrayLike, *, span: tuple[float, float], guess: float, alpha: float, at: float) -> Limits:
    """Limits of the mean of T values, the i-th of which lies in [`low`[i], `high`[i]], all within `span`.

    After each value the lower limit is the largest candidate that, like every smaller one, the bettor on `low` has refuted by
    then: its capital was 1 / `alpha` or more at some time. The upper limit is that of the mirrored values of `high`. Both hold
    at once with a chance of at least 1 - 2 `alpha`. `at` is one of the candidates, so that the limit is at or above it exactly
    when it is refuted. `guess`: the mean that is expected.
    """
    bottom, top = span
    candidates = np.unique([*np.linspace(bottom, top, _STEPS + 1), at])
    lower = _lower((np.asarray(low) - bottom) / (top - bottom), (guess - bottom) / (top - bottom), candidates, span, alpha)
    mirrored = (bottom + top) - candidates[::-1]
    upper = _lower((top - np.asarray(high)) / (top - bottom), (top - guess) / (top - bottom), mirrored, span, alpha)
    return Limits(low=candidates[lower], high=candidates[::-1][upper])


def _lower(values: Floats, guess: float, candidates: Floats, span: tuple[float, float], alpha: float) -> NDArray[np.intp]:
    """(T,): the place of the largest candidate refuted together with all smaller ones; 0, the end of the span, before any."""
    means = (candidates - span[0]) / (span[1] - span[0])
    best = np.maximum.accumulate(log_capital(values, means[:, None], guess=guess), axis=-1)  # (M, T)
    refuted: NDArray[np.bool_] = np.logical_and.accumulate(best >= -np.log(alpha), axis=0)
    places: NDArray[np.intp] = np.maximum(refuted.sum(axis=0) - 1, 0)
    return places
