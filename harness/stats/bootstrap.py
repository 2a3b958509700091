"""A bootstrap of crossed trials, for statistics that are not means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], float]
"""A statistic of trials under weights (n,), NaN where it has no value."""

N_RESAMPLES = 2000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Resampled:
    """A statistic of the trials as they are, and `replicates` of it, one a resample."""

    value: float
    replicates: Floats

    def interval(self, confidence: float = 0.95) -> tuple[float, float] | None:
        """Percentile interval over the resamples that have a value; None if under nine in ten have one, or all are equal."""
        known = self.replicates[np.isfinite(self.replicates)]
        if len(known) < 0.9 * len(self.replicates) or np.ptp(known) <= 1e-12 * np.abs(known).max():
            return None
        low, high = np.quantile(known, ((1 - confidence) / 2, (1 + confidence) / 2))
        return float(low), float(high)


def crossed_bootstrap(
    statistic: Statistic,
    sentences: ArrayLike,
    injections: ArrayLike,
    *,
    seed: int,
    n_resamples: int = N_RESAMPLES,
    strata: ArrayLike | None = None,
) -> Resampled:
    """The pigeonhole bootstrap: sentences and injections resampled with replacement, each for itself (Owen 2007).

    `sentences`, `injections`: integer or string codes (n,) of the n trials, missing ones taken out before. A trial whose
    sentence was drawn w_s times and whose injection u_k times has the weight w_s u_k. With `strata` (n,), such as concepts,
    each stratum's sentences and injections are resampled within it; the strata themselves are held fixed.

    No bootstrap is exact for crossed data (McCullagh 2000). Of a mean this one overstates the variance: it counts that of
    the cells up to three times, and those of sentences and injections once (Owen 2007; Owen and Eckles 2012).
    """
    rng = np.random.default_rng(seed)
    whole = np.zeros(len(np.asarray(sentences)), np.intp) if strata is None else np.unique(strata, return_inverse=True)[1]
    factors = [_levels(np.asarray(codes), whole) for codes in (sentences, injections)]
    replicates = np.empty(n_resamples)
    for place in range(n_resamples):
        by_sentence, by_injection = (_times_drawn(starts, sizes, rng)[codes] for codes, starts, sizes in factors)
        replicates[place] = statistic((by_sentence * by_injection).astype(np.float64))
    return Resampled(value=float(statistic(np.ones(len(whole)))), replicates=replicates)


def _levels(labels: NDArray[np.generic], strata: NDArray[np.intp]) -> tuple[NDArray[np.intp], ...]:
    """Codes (n,), those of a stratum side by side; and for each code the first one of its stratum and how many that has."""
    names, numbers = np.unique(labels, return_inverse=True)
    levels, codes = np.unique(strata * len(names) + numbers, return_inverse=True)
    of_stratum = levels // max(len(names), 1)
    sizes = np.bincount(of_stratum)
    return codes, (np.cumsum(sizes) - sizes)[of_stratum], sizes[of_stratum]


def _times_drawn(starts: NDArray[np.intp], sizes: NDArray[np.intp], rng: np.random.Generator) -> NDArray[np.intp]:
    """How often each level is drawn when its stratum is resampled."""
    return np.bincount(starts + rng.integers(0, sizes), minlength=len(starts))


def median_of(values: ArrayLike) -> Statistic:
    """The weighted median of `values` (n,) as a statistic: half the weight lies on either side; NaN without any weight."""
    x = np.asarray(values, np.float64)
    order = np.argsort(x, kind="stable")
    ordered = x[order]

    def median(weights: Floats) -> float:
        below = np.cumsum(weights[order])
        if not below.size or below[-1] <= 0:
            return np.nan
        half = below[-1] / 2
        middle = np.searchsorted(below, half, side="left"), np.searchsorted(below, half, side="right")
        return float(ordered[list(middle)].mean())

    return median
