"""Means and contrasts of crossed trials (sentences x injections), with errors that allow for both kinds of sharing.

Trials of one sentence are alike, and so are trials of one injection: to pool them as independent rejects a true null far
too often (`tests/stats/test_promises.py`). The variance here is the two-way cluster-robust one of Cameron, Gelbach and
Miller (2011),

    V = V_s + V_k - V_sk,   V_g = sum over clusters of (sum of the cluster's influence values)^2,

over sentences s, injections k and cells sk; the influence value of a trial is (x - mean) / n. Within each V an arm's
influence values carry the small-sample factor sqrt(G / (G - 1)), G being the number of the arm's own clusters: for one
arm that is the usual G / (G - 1), for two arms with injections of their own it is Welch's, for matched injections that
of paired differences. In a full table V_s and V_k are those of the cluster jackknife (CV3) too.

Our deviation, in contrasts: V_k and V_sk take each value about its sentence's mean over both arms. What the arms share in a
sentence cancels in V_s, but V_sk would take it off all the same where injections are not matched, and a true null would be
rejected the more often the more sentences differ. V may come out too small, even negative, so V* = max(V, V_s, V_k) is
used. Tests and intervals: Student's t with min(S, K) - 1 degrees of freedom, which is on the safe side for arms with
injections of their own; of trials known within bounds, those of `harness.stats.intervals`.

Owns estimates only; which cells and contrasts are asked for, and verdicts, are the evals' matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.stats.intervals import identified_interval, identified_p, smallest_effect

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
    (NaN) trials. Where trials are known within bounds only, `value` is the midpoint of the two mean bounds and `se` the
    larger of both standard errors; `ci_low`, `ci_high` and `p` are those of `identified_interval` and `identified_p`.
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

    def smallest_effect(self, alpha: float = 0.05, power: float = 0.8) -> float | None:
        """The mean that a run like this one finds with `power`, wherever within its bounds it lies; None without an error.

        `intervals.smallest_effect` plus the width of the mean's bounds, if they leave one: so much may hide in them. Where
        that is more than the error the power is somewhat higher, for the interval's quantile is then the one-sided one.
        """
        if self.se is None or self.df is None or self.value_low is None or self.value_high is None:
            return None
        return self.value_high - self.value_low + smallest_effect(self.se, self.df, alpha, power)


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

    def complete(self) -> Trials:
        """The trials that are not missing."""
        return self.take(~(np.isnan(self.low) | np.isnan(self.high)))


def mean_two_way(trials: Trials, confidence: float = 0.95) -> Estimate:
    """The mean over `trials`, with two-way clustered uncertainty."""
    return _estimate((trials,), confidence)


def contrast_two_way(arm: Trials, control: Trials, confidence: float = 0.95) -> Estimate:
    """The arm's mean minus the control's, over the sentences that both have; other sentences are left out.

    Paired through the sentences: both arms' influence values are summed within a sentence before squaring. Degrees of
    freedom: min(S, K of arm, K of control) - 1.
    """
    return _estimate((arm, control), confidence)


def paired_differences(arm: Trials, control: Trials) -> Trials:
    """The differences D_sk = arm - control of matched injections: one trial for each (sentence, pair) that both arms have.

    Repeated trials of a cell are averaged first; bounds are arm low - control high and arm high - control low.
    """
    arms = (arm.complete(), control.complete())
    cells = _cells(_shared_codes([a.sentences for a in arms]), _shared_codes([a.injections for a in arms]))
    n_cells = 1 + max((int(codes.max()) for codes in cells if len(codes)), default=-1)
    counts = [np.bincount(codes, minlength=n_cells) for codes in cells]
    both = np.flatnonzero((counts[0] > 0) & (counts[1] > 0))

    def means(place: int, values: Floats) -> Floats:
        return np.bincount(cells[place], values, minlength=n_cells)[both] / counts[place][both]

    first = np.zeros(n_cells, np.intp)
    first[cells[0]] = np.arange(len(cells[0]))
    rows = first[both]
    return Trials(
        low=means(0, arms[0].low) - means(1, arms[1].high),
        high=means(0, arms[0].high) - means(1, arms[1].low),
        sentences=arms[0].sentences[rows],
        injections=arms[0].injections[rows],
    )


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
    complete = tuple(arm.complete() for arm in arms)
    n_dropped = sum(map(len, arms)) - sum(map(len, complete))
    used = on_common_sentences(complete)
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


def on_common_sentences(arms: tuple[Trials, ...]) -> tuple[Trials, ...]:
    """The trials of sentences that every arm has."""
    if len(arms) == 1:
        return arms
    codes = _shared_codes([arm.sentences for arm in arms])
    n_codes = 1 + max((int(of_arm.max()) for of_arm in codes if len(of_arm)), default=-1)
    common = np.all([np.bincount(of_arm, minlength=n_codes) > 0 for of_arm in codes], axis=0)
    if common.all():
        return arms
    return tuple(arm.take(common[of_arm]) for arm, of_arm in zip(arms, codes, strict=True))


def _shared_codes(columns: Sequence[NDArray[np.generic]]) -> list[Codes]:
    """Each arm's labels as integers from 0, equal where the labels are equal, also between arms."""
    _, codes = np.unique(np.concatenate(columns), return_inverse=True)
    return np.split(codes, np.cumsum([len(column) for column in columns])[:-1])


def _cells(sentences: list[Codes], injections: list[Codes]) -> list[Codes]:
    """Each arm's (sentence, injection) cells, coded like `_shared_codes`; of a full table without a search for them."""
    width = 1 + max((int(codes.max()) for codes in injections if len(codes)), default=0)
    cells = [s * width + k for s, k in zip(sentences, injections, strict=True)]
    n_possible = 1 + max((int(codes.max()) for codes in cells if len(codes)), default=0)
    return cells if n_possible <= 4 * sum(map(len, cells)) else _shared_codes(cells)


def _fewest(codes: list[Codes]) -> int:
    """The number of clusters of the arm that has fewest."""
    return min(int(np.count_nonzero(np.bincount(arm))) for arm in codes)


def _end(values: list[Floats], groupings: tuple[list[Codes], ...]) -> _End:
    """The contrast (or the single mean) of `values`, one array an arm, with its standard error sqrt(V*)."""
    means = [float(arm.mean()) for arm in values]
    signs = (1.0, -1.0)
    scaled = [sign / len(arm) for sign, arm in zip(signs, values, strict=False)]
    residuals = [arm - mean for arm, mean in zip(values, means, strict=True)]
    within = residuals if len(values) == 1 else _about_sentences(residuals, groupings[0])
    v_s, v_k, v_sk = (
        _clustered_variance([scale * part for scale, part in zip(scaled, parts, strict=True)], codes)
        for parts, codes in zip((residuals, within, within), groupings, strict=True)
    )
    return _End(
        value=sum(sign * mean for sign, mean in zip(signs, means, strict=False)),
        se=max(v_s + v_k - v_sk, v_s, v_k) ** 0.5,
        scale=max(float(np.abs(arm).max()) for arm in values),
    )


def _about_sentences(residuals: list[Floats], sentences: list[Codes]) -> list[Floats]:
    """Each arm's residuals less their sentence's mean over the trials of all arms."""
    codes = np.concatenate(sentences)
    shared = np.bincount(codes, np.concatenate(residuals)) / np.maximum(np.bincount(codes), 1)
    return [arm - shared[of_arm] for arm, of_arm in zip(residuals, sentences, strict=True)]


def _clustered_variance(influences: list[Floats], codes: list[Codes]) -> float:
    """Sum over clusters of the squared sum of influence values, each arm's scaled by its sqrt(G / (G - 1))."""
    total = np.zeros(1 + max(int(arm.max()) for arm in codes))
    for influence, arm in zip(influences, codes, strict=True):
        n_clusters = int(np.count_nonzero(np.bincount(arm)))
        factor = n_clusters / max(n_clusters - 1, 1)  # a lone cluster gives no interval, whatever its factor
        total += factor**0.5 * np.bincount(arm, influence, minlength=len(total))
    return float(total @ total)


def _with_interval(base: Estimate, low: _End, high: _End, *, df: int, confidence: float) -> Estimate:
    """`base` with value, interval and p from the two ends of the bounds, which are equal where trials are known exactly."""
    base = _with_value(base, low.value, high.value)
    if any(end.se <= _ROUNDING * end.scale for end in (low, high)):
        return replace(base, reason=NO_VARIATION)
    ends = (low.value, high.value, low.se, high.se, df)
    ci_low, ci_high = identified_interval(*ends, confidence)
    return replace(base, ci_low=ci_low, ci_high=ci_high, se=max(low.se, high.se), df=df, p=identified_p(*ends))


def _with_value(base: Estimate, low: float, high: float, *, reason: str | None = None) -> Estimate:
    return replace(base, value=(low + high) / 2, value_low=low, value_high=high, reason=reason)


def _share(wrong: NDArray[np.bool_], what: str, units: str) -> str:
    """A reason that says how much of the data stands in the way."""
    return f"{what}: {wrong.sum()} of {len(wrong)} {units} ({wrong.mean():.1%})"
