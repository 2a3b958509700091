"""From pairs of answers, now and in the baseline, to a decision by an interval. Pure: nothing is asked, read or written.

Differences are run minus baseline, each within bounds, and cut to the gate's bound. Two methods: of a finished run the two-way
interval of `harness.stats.crossed`, to be looked at once; while asking, the limits of `harness.stats.sequential`, which may be
looked at after every cluster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from harness.evals.spec import GateSpec
from harness.gate.answers import Answer
from harness.gate.baseline import UNIT, Cluster, Entry
from harness.gate.result import Decision, Look, Method, Score
from harness.stats.bounds import tv_bounds
from harness.stats.crossed import NO_VARIATION, Estimate, Trials, contrast_two_way, mean_two_way
from harness.stats.sequential import mean_limits

Floats = NDArray[np.float64]

_LOG_ODDS_BOUND = 4.0
_LOG_ODDS = ("clean_log_odds", "delta_log_odds")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pairs:
    """P prompts that were answered both times, in the order of the clusters.

    `cluster` (P,): its number; `low`, `high` (P,): bounds of the cut difference; `then`, `now` (P,): the metric's values, or
    the middle of their bounds.
    """

    answers: list[Answer]
    cluster: NDArray[np.intp]
    low: Floats
    high: Floats
    then: Floats
    now: Floats

    def take(self, rows: NDArray[np.bool_]) -> Pairs:
        """The pairs where `rows` is true."""
        kept = [answer for answer, row in zip(self.answers, rows, strict=True) if row]
        return Pairs(answers=kept, **{name: getattr(self, name)[rows] for name in self.__slots__[1:]})

    def column(self, name: str) -> NDArray[np.str_]:
        """A property of the answers."""
        return np.array([getattr(answer, name) for answer in self.answers], np.str_)


def unit_of(gate: GateSpec) -> str:
    """The metric's unit, as it is written behind a number."""
    return "nat" if gate.metric in _LOG_ODDS else "of 1"


def bound_of(gate: GateSpec) -> float:
    """How much one prompt can count."""
    return gate.bound or (_LOG_ODDS_BOUND if gate.metric in _LOG_ODDS else 1.0)


def span(gate: GateSpec) -> tuple[float, float]:
    """Between which ends a cluster's mean difference lies; that of two arms twice as far apart."""
    if gate.metric == "agreement":
        return -bound_of(gate), 0.0
    wide = bound_of(gate) * (2 if gate.control else 1)
    return -wide, wide


def pair(clusters: Sequence[Cluster], answers: Mapping[str, Answer], gate: GateSpec) -> Pairs:
    """The clusters' prompts with what `answers` hold for them; those that hold nothing usable are left out."""
    found = [
        (place, entry, answer)
        for place, cluster in enumerate(clusters)
        for entry in cluster.prompts
        if (answer := answers.get(entry.prompt)) is not None and _is_usable(entry, answer, gate)
    ]
    then, now = _agreement(found) if gate.metric == "agreement" else _values(found)  # (2, P) each
    bound = bound_of(gate)
    return Pairs(
        answers=[answer for _, _, answer in found],
        cluster=np.array([place for place, _, _ in found], np.intp),
        low=np.clip(now[0] - then[1], -bound, bound),
        high=np.clip(now[1] - then[0], -bound, bound),
        then=then.mean(axis=0),
        now=now.mean(axis=0),
    )


_Found = Sequence[tuple[int, Entry, Answer]]


def _is_usable(entry: Entry, answer: Answer, gate: GateSpec) -> bool:
    if gate.metric == "agreement":
        return answer.error is None
    return entry.value is not None and answer.value is not None


def _values(found: _Found) -> tuple[Floats, Floats]:
    """Bounds of the metric, then and now."""
    then, now = [entry.value for _, entry, _ in found], [answer.value for *_, answer in found]
    return np.array(then, np.float64).reshape(-1, 2).T, np.array(now, np.float64).reshape(-1, 2).T


def _agreement(found: _Found) -> tuple[Floats, Floats]:
    """1, and 1 less the total variation between the two lists.

    Of lists that are cut off, total variation is known within bounds; taken is the lower one, the least that explains both.
    The upper one would count all that a list does not show as changed, and could pass no target.
    """
    numbers: dict[int | str, int] = {}

    def numbered(tokens: Sequence[int | str]) -> list[int]:
        return [numbers.setdefault(token, len(numbers)) for token in tokens]

    then = _padded([(numbered(entry.tokens), -UNIT * np.array(entry.lacking)) for _, entry, _ in found])
    now = _padded([(numbered(answer.tokens), answer.logprobs) for *_, answer in found])
    low, _ = tv_bounds(*then, *now)
    lost = np.where(low < UNIT / 2, 0.0, low)  # so much comes of rounding what the baseline keeps
    return np.ones((2, len(found))), np.tile(1.0 - lost, (2, 1))


def _padded(lists: Sequence[tuple[list[int], NDArray[np.floating]]]) -> tuple[NDArray[np.int64], Floats]:
    """Lists of unequal length as (P, n), with -1 where there is no token."""
    width = max((len(ids) for ids, _ in lists), default=1)
    ids = np.full((len(lists), width), -1, np.int64)
    logprobs = np.full((len(lists), width), -np.inf)
    for row, (own, listed) in enumerate(lists):
        ids[row, : len(own)], logprobs[row, : len(own)] = own, listed
    return ids, logprobs


def fixed_score(pairs: Pairs, gate: GateSpec) -> Score:
    """The mean difference over `pairs` with its two-way interval, each end of which is ever wrong with a chance of `alpha`.

    Where no difference differs from another there is no spread to go by: then the interval is the one for bounded values.
    """
    if gate.control:
        arm = pairs.column("arm")
        sides = [_trials(pairs.take(arm == name)) for name in (gate.arm, gate.control)]
        estimate = contrast_two_way(sides[0], sides[1], confidence=1 - 2 * gate.alpha)
    else:
        estimate = mean_two_way(_trials(pairs), confidence=1 - 2 * gate.alpha)
    if estimate.reason == NO_VARIATION:
        return anytime_score(pairs, gate)
    return _score(estimate, pairs)


def _trials(pairs: Pairs) -> Trials:
    return Trials.of(pairs.low, pairs.column("sentence"), pairs.column("injection"), high=pairs.high)


def _score(estimate: Estimate, pairs: Pairs) -> Score:
    return Score(
        estimate=estimate.value,
        ci_low=estimate.ci_low,
        ci_high=estimate.ci_high,
        n_units=len(pairs.answers),
        n_clusters=len(np.unique(pairs.cluster)),
        reason=estimate.reason,
    )


def anytime_score(pairs: Pairs, gate: GateSpec) -> Score:
    """The mean over clusters with limits that hold at whatever cluster one stops, each with the chance `alpha` of ever failing.

    `pairs` in the order of the clusters, which is random.
    """
    low, high = _cluster_means(pairs, gate)
    n_units = len(pairs.answers)
    if not len(low):
        return Score(n_units=n_units, reason="no cluster was answered")
    limits = mean_limits(low, high, span=span(gate), guess=0.0, alpha=gate.alpha, at=-gate.margin)
    return Score(
        estimate=float((low + high).mean() / 2),
        ci_low=float(limits.low[-1]),
        ci_high=float(limits.high[-1]),
        n_units=n_units,
        n_clusters=len(low),
    )


def _cluster_means(pairs: Pairs, gate: GateSpec) -> tuple[Floats, Floats]:
    """Bounds of each cluster's mean difference, (C,); of `arm` less `control` where there is one, and then of those clusters
    that have both."""
    if not gate.control:
        _, codes = np.unique(pairs.cluster, return_inverse=True)
        n = np.bincount(codes)
        return np.bincount(codes, pairs.low) / n, np.bincount(codes, pairs.high) / n
    plain = gate.model_copy(update={"control": None})
    arms = pairs.column("arm")
    both = np.intersect1d(*(pairs.cluster[arms == name] for name in (gate.arm, gate.control)))
    kept = np.isin(pairs.cluster, both)
    arm, control = (_cluster_means(pairs.take(kept & (arms == name)), plain) for name in (gate.arm, gate.control))
    return arm[0] - control[1], arm[1] - control[0]


def decide(score: Score, margin: float) -> Decision:
    """Fail where the whole interval lies below minus the margin, pass where it lies above, else inconclusive."""
    if score.ci_low is None or score.ci_high is None:
        return "inconclusive"
    if score.ci_high <= -margin:
        return "fail"
    return "pass" if score.ci_low >= -margin else "inconclusive"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evidence:
    """What a decision rests on. `n_cap`: the clusters there are at most; `n_heard`: those that were asked; `looks`: the score
    as it grew, where it did; `stopped`: the user's limit that ended the asking before the cap, if one did."""

    method: Method
    n_cap: int
    n_heard: int
    pairs: Pairs
    score: Score
    looks: list[Look] = field(default_factory=list)
    stopped: str | None = None


def look(score: Score) -> Look:
    """The score as a point of the sequential figure."""
    assert score.estimate is not None
    assert score.ci_low is not None
    assert score.ci_high is not None
    return Look(n_clusters=score.n_clusters, estimate=score.estimate, ci_low=score.ci_low, ci_high=score.ci_high)


def by_concept(pairs: Pairs, gate: GateSpec) -> dict[str, Score]:
    """The fixed score of each concept by itself."""
    concepts = pairs.column("concept")
    return {str(name): fixed_score(pairs.take(concepts == name), gate) for name in np.unique(concepts)}
