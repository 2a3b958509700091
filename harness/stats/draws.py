"""What counts of draws say of a mass: exact intervals, and masses that were amplified by a known bias.

x of N draws at temperature 1 fall into a set of tokens A of mass P, so x ~ Bin(N, P). Where one bias b (nats) is added to the
logit of every token of A, the set's mass becomes

    P' = P e^b / (1 - P + P e^b),    that is    logit P = logit P' - b,

exactly and for any P, because the bias moves A's total against the rest's as a whole. N draws know logit P' to a standard error
of 1 / sqrt(N P' (1 - P')), which is least, 2 / sqrt(N), where P' is one half.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit
from scipy.stats import beta

Floats = NDArray[np.float64]


def binomial_interval(hits: ArrayLike, n: ArrayLike, *, level: float = 0.95) -> tuple[Floats, Floats]:
    """Exact (low, high) of P from `hits` of `n` draws: [B(a/2; x, N-x+1), B(1-a/2; x+1, N-x)], a = 1 - `level`.

    Clopper and Pearson 1934: covers P with at least `level`, usually more. NaN in, NaN out.
    """
    x, draws = np.asarray(hits, np.float64), np.asarray(n, np.float64)
    tail = (1 - level) / 2
    with np.errstate(invalid="ignore"):
        low = np.where(x == 0, 0.0, beta.ppf(tail, x, draws - x + 1))
        high = np.where(x == draws, 1.0, beta.ppf(1 - tail, x + 1, draws - x))
    unknown = np.isnan(x) | np.isnan(draws)
    return np.where(unknown, np.nan, low), np.where(unknown, np.nan, high)


def without_bias(p: ArrayLike, bias: ArrayLike) -> Floats:
    """The mass P that a bias of `bias` nats raises to `p`: expit(logit p - b). Increasing in p, so it maps intervals."""
    mass: Floats = expit(logit(np.asarray(p, np.float64)) - np.asarray(bias, np.float64))
    return mass


def log_odds_of_draws(hits: ArrayLike, n: ArrayLike, bias: ArrayLike) -> Floats:
    """An estimate of logit P in nats: log((x + 1/2) / (N - x + 1/2)) - b.

    The halves (Haldane 1956, Anscombe 1956) keep it finite at x = 0 and x = N and take its bias down to order 1 / N^2 where P'
    is not near 0 or 1, which is what b is chosen for; at b = 0 and a small P it is no estimate to use.
    """
    x, draws = np.asarray(hits, np.float64), np.asarray(n, np.float64)
    odds: Floats = np.log((x + 0.5) / (draws - x + 0.5)) - np.asarray(bias, np.float64)
    return odds
