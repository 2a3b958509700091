"""Means and contrasts of crossed trials (sentences x injections), with errors that allow for both kinds of sharing.

Trials of one sentence are alike, and so are trials of one injection: to pool them as independent rejects a true null far
too often (`tests/stats/test_crossed.py`). The variance here is the two-way cluster-robust one of Cameron, Gelbach and
Miller (2011),

    V = V_s + V_k - V_sk,   V_g = sum over clusters of (sum of the cluster's influence values)^2,

over sentences s, injections k and cells sk; the influence value of a trial is (x - mean) / n. Within each V an arm's
influence values carry the small-sample factor sqrt(G / (G - 1)), G being the number of the arm's own clusters: for one
arm that is the usual G / (G - 1), for two arms with injections of their own it is Welch's, for matched injections that
of paired differences. V may come out too small, even negative, so V* = max(V, V_s, V_k) is used. Tests and intervals:
Student's t with min(S, K) - 1 degrees of freedom.

Owns estimates only; which cells and contrasts are asked for, and verdicts, are the evals' matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]
Codes = NDArray[np.intp]

NO_TRIALS = "no trials"
NO_COMMON_SENTENCE = "no sentence in common"
FEW_SENTENCES = "fewer than 2 sentences"
FEW_INJECTIONS = "fewer than 2 injections"
FEW_CONCEPTS = "fewer than 2 concepts"
NO_VARIATION = "no variation"

_ROUNDING = 1e-12
"""A standard error below this share of the largest value is a sum of rounding errors, not a measured spread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean or a contrast. What the data cannot say is None, and `reason` says why; a standard error is never 0.

    `p`: two-sided, of the value being zero. `n_sentences`: sentences used; `n_injections`: injections used, of the arm
    that has fewer; both None where the unit is the concept, and then `n_trials` counts concepts. `n_dropped`: missing
    (NaN) trials. Where trials are known within bounds only, `value` is the midpoint of the two mean bounds, `ci_low` is
    the lower one's, `ci_high` the upper one's, `se` the larger of both, and `p` that of the bound nearer zero (1 if zero
    lies between them).
    """

    value: float | None = None
    value_low: float | None = None
    value_high: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    se: float | None = None
    df: int | None = None
    p: float | None = None
    n_sentences: int | None = None
    n_injections: int | None = None
    n_trials: int
    n_dropped: int = 0
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trials:
    """The trials of one arm: bounds (n,) of what was measured, integer or string codes (n,) of sentence and injection.

    A NaN in either bound is a missing trial. Unbalanced designs and repeated cells are fine. An injection that was
    matched to one of the other arm carries its partner's code: the pair is one cluster.
    """

    low: Floats
    high: Floats
    sentences: NDArray[np.generic]
    injections: NDArray[np.generic]

    @classmethod
    def of(cls, values: ArrayLike, sentences: ArrayLike, injections: ArrayLike, *, high: ArrayLike | None = None) -> Trials:
        """From any array-likes: `values` as measured, or lower bounds when `high` gives the upper ones."""
        low = np.asarray(values, np.float64)
        upper = low if high is None else np.asarray(high, np.float64)
        trials = cls(low=low, high=upper, sentences=np.asarray(sentences), injections=np.asarray(injections))
        shapes = [column.shape for column in (low, upper, trials.sentences, trials.injections)]
        if shapes != [(len(low),)] * 4:
            raise ValueError(f"columns of one length expected, got shapes {', '.join(map(str, shapes))}")
        return trials

    def __len__(self) -> int:
        return len(self.low)

    def take(self, rows: NDArray[np.bool_]) -> Trials:
        """The trials where `rows` is true."""
        return Trials(
            low=self.low[rows], high=self.high[rows], sentences=self.sentences[rows], injections=self.injections[rows]
        )


def mean_two_way(trials: Trials, confidence: float = 0.95) -> Estimate:
    """The mean over `trials`, with two-way clustered uncertainty."""
    return _estimate((trials,), confidence)


def contrast_two_way(arm: Trials, control: Trials, confidence: float = 0.95) -> Estimate:
    """The arm's mean minus the control's, over the sentences that both have; other sentences are left out.

    Paired through the sentences: both arms' influence values are summed within a sentence before squaring. Degrees of
    freedom: min(S, K of arm, K of control) - 1.
    """
    return _estimate((arm, control), confidence)


def mean_of_concepts(
    values: Sequence[float | None], confidence: float = 0.95, *, high: Sequence[float | None] | None = None
) -> Estimate:
    """The mean of one value for each concept, Student's t with C - 1 degrees of freedom; None and NaN are dropped.

    `values` as measured, or lower bounds when `high` gives the upper ones. The concept is the unit, so that the interval
    speaks of concepts not tried, however many trials each one had.
    """
    ends = np.asarray([values, values if high is None else high], np.float64)  # (2, C)
    kept = ends[:, ~np.isnan(ends).any(axis=0)]
    n_kept = kept.shape[1]
    base = Estimate(n_trials=n_kept, n_dropped=len(values) - n_kept)
    if not n_kept:
        return replace(base, reason=NO_TRIALS)
    unbounded = np.atleast_1d(~np.isfinite(kept).all(axis=0))
    if unbounded.any():
        return replace(base, reason=_share(unbounded, "not finite", "concepts"))
    if n_kept < 2:
        return _with_value(base, float(kept[0, 0]), float(kept[1, 0]), reason=FEW_CONCEPTS)
    se = kept.std(axis=1, ddof=1) / np.sqrt(n_kept)
    low, high_end = (
        _End(value=float(end.mean()), se=float(error), scale=float(np.abs(end).max()))
        for end, error in zip(kept, se, strict=True)
    )
    return _with_interval(base, low, high_end, df=n_kept - 1, confidence=confidence)


@dataclass(frozen=True, slots=True, kw_only=True)
class _End:
    """The estimate at one end of the bounds; `scale` is the largest value that went in."""

    value: float
    se: float
    scale: float


def _estimate(arms: tuple[Trials, ...], confidence: float) -> Estimate:
    """The first arm's mean, minus the second's if there is one."""
    complete = tuple(arm.take(~(np.isnan(arm.low) | np.isnan(arm.high))) for arm in arms)
    n_dropped = sum(map(len, arms)) - sum(map(len, complete))
    used = _on_common_sentences(complete)
    base = Estimate(n_sentences=0, n_injections=0, n_trials=sum(map(len, used)), n_dropped=n_dropped)
    if not all(map(len, used)):
        return replace(base, reason=NO_COMMON_SENTENCE if all(map(len, complete)) else NO_TRIALS)
    sentences = _shared_codes([arm.sentences for arm in used])
    injections = _shared_codes([arm.injections for arm in used])
    n_sentences, n_injections = _fewest(sentences), _fewest(injections)
    base = replace(base, n_sentences=n_sentences, n_injections=n_injections)

    unbounded = np.concatenate([~(np.isfinite(arm.low) & np.isfinite(arm.high)) for arm in used])
    if unbounded.any():
        return replace(base, reason=_share(unbounded, "without a finite bound", "trials"))
    groupings = (sentences, injections, _cells(sentences, injections))
    # The contrast is lowest where the arm is lowest and the control highest, and the other way round.
    low = _end([arm.high if place else arm.low for place, arm in enumerate(used)], groupings)
    high = _end([arm.low if place else arm.high for place, arm in enumerate(used)], groupings)
    if n_sentences < 2 or n_injections < 2:
        reason = FEW_SENTENCES if n_sentences < 2 else FEW_INJECTIONS
        return _with_value(base, low.value, high.value, reason=reason)
    return _with_interval(base, low, high, df=min(n_sentences, n_injections) - 1, confidence=confidence)


def _on_common_sentences(arms: tuple[Trials, ...]) -> tuple[Trials, ...]:
    """The trials of sentences that every arm has."""
    if len(arms) == 1:
        return arms
    common = np.intersect1d(arms[0].sentences, arms[1].sentences)
    return tuple(arm.take(np.isin(arm.sentences, common)) for arm in arms)


def _shared_codes(columns: Sequence[NDArray[np.generic]]) -> list[Codes]:
    """Each arm's labels as integers from 0, equal where the labels are equal, also between arms."""
    _, codes = np.unique(np.concatenate(columns), return_inverse=True)
    return np.split(codes, np.cumsum([len(column) for column in columns])[:-1])


def _cells(sentences: list[Codes], injections: list[Codes]) -> list[Codes]:
    """Each arm's (sentence, injection) cells, coded like `_shared_codes`."""
    width = 1 + max(int(codes.max()) for codes in injections)
    return _shared_codes([s * width + k for s, k in zip(sentences, injections, strict=True)])


def _fewest(codes: list[Codes]) -> int:
    """The number of clusters of the arm that has fewest."""
    return min(int(np.count_nonzero(np.bincount(arm))) for arm in codes)


def _end(values: list[Floats], groupings: tuple[list[Codes], ...]) -> _End:
    """The contrast (or the single mean) of `values`, one array an arm, with its standard error sqrt(V*)."""
    means = [float(arm.mean()) for arm in values]
    signs = (1.0, -1.0)
    influences = [sign * (arm - mean) / len(arm) for sign, arm, mean in zip(signs, values, means, strict=False)]
    v_s, v_k, v_sk = (_clustered_variance(influences, codes) for codes in groupings)
    return _End(
        value=sum(sign * mean for sign, mean in zip(signs, means, strict=False)),
        se=max(v_s + v_k - v_sk, v_s, v_k) ** 0.5,
        scale=max(float(np.abs(arm).max()) for arm in values),
    )


def _clustered_variance(influences: list[Floats], codes: list[Codes]) -> float:
    """Sum over clusters of the squared sum of influence values, each arm's scaled by its sqrt(G / (G - 1))."""
    total = np.zeros(1 + max(int(arm.max()) for arm in codes))
    for influence, arm in zip(influences, codes, strict=True):
        n_clusters = int(np.count_nonzero(np.bincount(arm)))
        factor = n_clusters / max(n_clusters - 1, 1)  # a lone cluster's sum is 0 whatever its factor
        total += factor**0.5 * np.bincount(arm, influence, minlength=len(total))
    return float(total @ total)


def _with_interval(base: Estimate, low: _End, high: _End, *, df: int, confidence: float) -> Estimate:
    """`base` with value, interval and p from the two ends of the bounds, which are equal where trials are known exactly.

    The interval runs from the low end's lower limit to the high end's upper limit, so it covers the whole range of means
    that the bounds allow. The one of Imbens and Manski (2004) covers the true mean alone and would be shorter.
    """
    base = _with_value(base, low.value, high.value)
    if any(end.se <= _ROUNDING * end.scale for end in (low, high)):
        return replace(base, reason=NO_VARIATION)
    quantile = float(stats.t.ppf((1 + confidence) / 2, df))
    nearest = max(low.value / low.se, -high.value / high.se, 0.0)
    return replace(
        base,
        ci_low=low.value - quantile * low.se,
        ci_high=high.value + quantile * high.se,
        se=max(low.se, high.se),
        df=df,
        p=float(2 * stats.t.sf(nearest, df)),
    )


def _with_value(base: Estimate, low: float, high: float, *, reason: str | None = None) -> Estimate:
    return replace(base, value=(low + high) / 2, value_low=low, value_high=high, reason=reason)


def _share(wrong: NDArray[np.bool_], what: str, units: str) -> str:
    """A reason that says how much of the data stands in the way."""
    return f"{what}: {wrong.sum()} of {len(wrong)} {units} ({wrong.mean():.1%})"
