"""Do both sides give the same next-token distributions? By lists on both sides, on one, or by draws alone.

Owns the records and the choice of statistic; the formulas stand in `harness.stats.distances` and `harness.stats.shares`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from harness.compare.margin import DRAWS, LISTS, ONE_SIDED, UNITS, decide, margin_of
from harness.compare.naming import Naming
from harness.compare.result import Identity, Noise, PromptDistance
from harness.compare.sentinels import Sentinel
from harness.stats.distances import Distances, Repeats, bootstrap_mean, distances, kl_low, own_flips, permutation_p, spread
from harness.stats.shares import distance_between, distance_to, p_between, p_of_draws

Floats = NDArray[np.float64]

NO_ANSWER = "no prompt was answered by both sides"
FEW_PROMPTS = "fewer than 2 prompts were answered by both sides"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What decides: `margin` of the user's own, if any; the interval is one of 1 - 2 `alpha`."""

    margin: float | None = None
    alpha: float = 0.05
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Compared:
    """The answer, prompt by prompt too, the farthest first; `distances` where both sides show lists."""

    identity: Identity
    prompts: list[PromptDistance]
    distances: Distances | None = None

    def turned(self) -> Compared:
        """The same with the sides exchanged, for a distance that is the same both ways."""
        prompts = [replace(one, top_a=one.top_b, top_b=one.top_a) for one in self.prompts]
        return replace(self, prompts=prompts)


def noise(lists: Repeats) -> Noise:
    """How far one side's lists are from each other."""
    own, flips = spread(lists), own_flips(lists)
    known = own[~np.isnan(own)]
    if not len(known):
        return Noise(n_repeats=len(lists.ids), reason="no prompt was answered twice")
    return Noise(
        n_prompts=len(known),
        n_repeats=len(lists.ids),
        mean=float(known.mean()),
        highest=float(known.max()),
        flip_share=float(np.nanmean(flips)),
    )


def by_lists(a: Repeats, b: Repeats, sentinels: Sequence[Sentinel], naming: Naming, rule: Rule) -> Compared:
    """Centred log-probabilities of both sides' lists."""
    found = distances(a, b, seed=rule.seed)
    known = ~np.isnan(found.excess)
    ties = np.array([one.kind == "tie" for one in sentinels], np.bool_)
    tops = [[naming.text(number) if number >= 0 else "" for number in _first(side)] for side in (a, b)]
    prompts = [
        PromptDistance(
            prompt=one.text,
            distance=float(found.excess[i]),
            near_tie=bool(ties[i]),
            top_a=tops[0][i],
            top_b=tops[1][i],
            tv_low=_number(found.tv_low[i]),
            tv_high=_number(found.tv_high[i]),
        )
        for i, one in enumerate(sentinels)
        if known[i]
    ]
    identity = _judged(LISTS, found.excess, permutation_p(found.permuted, seed=rule.seed), ties, rule)
    identity = replace(
        identity,
        tv_low=known_mean(found.tv_low),
        tv_high=known_mean(found.tv_high),
        kl_low=known_mean(kl_low(a.ids[0], a.logprobs[0], b.ids[0], b.logprobs[0])),
        flip_share=known_mean(found.flips),
        near_tie_flip_share=known_mean(found.flips[ties]),
    )
    long = np.array([one.kind == "long" for one in sentinels], np.bool_)
    return Compared(
        identity=_by_long_prompts(identity, found.excess[long], rule), prompts=_farthest_first(prompts), distances=found
    )


def _by_long_prompts(identity: Identity, values: Floats, rule: Rule) -> Identity:
    """`identity`, different too where its long prompts by themselves are, however near the many short ones lie.

    A context that is cut shows there alone. A second look may err as well, so it is taken at half of `alpha`.
    """
    interval = bootstrap_mean(values, confidence=1 - rule.alpha, seed=rule.seed)
    if identity.decision == "different" or interval is None or decide(*interval, identity.margin) != "different":
        return identity
    text = f"long prompts by themselves lie {interval[0]:.3g} to {interval[1]:.3g} {identity.unit} apart"
    return replace(identity, decision="different", reason=text)


def by_draws_and_lists(
    counts: Sequence[dict[int, int]], lists: Repeats, sentinels: Sequence[Sentinel], naming: Naming, rule: Rule
) -> Compared:
    """Draws of one side, called A, against the probabilities of the other; tokens that it does not list are one cell."""
    rest = len(naming)
    drawn, probabilities = np.zeros((2, len(counts), rest + 1))
    for i, counted in enumerate(counts):
        answered = lists.answered[:, i]
        for ids, logprobs in zip(lists.ids[answered, i], lists.logprobs[answered, i], strict=True):
            probabilities[i, ids[ids >= 0]] += np.exp(logprobs[ids >= 0]) / answered.sum()
        probabilities[i, rest] = max(1 - probabilities[i].sum(), 0.0)
        probabilities[i] /= probabilities[i].sum()
        for number, count in counted.items():
            drawn[i, number if probabilities[i, number] > 0 else rest] += count
    usable = (drawn.sum(axis=1) > 1) & lists.answered.any(axis=0)
    whole = drawn.astype(np.int64)
    values = np.where(usable, distance_to(whole, probabilities), np.nan)
    p = p_of_draws(whole[usable], probabilities[usable], seed=rule.seed) if usable.any() else None
    tops = [_spelled(naming, drawn[:, :rest]), _spelled(naming, probabilities[:, :rest])]
    return _by_shares(ONE_SIDED, values, p, (sentinels, tops), rule)


def by_draws(
    a: Sequence[dict[int, int]], b: Sequence[dict[int, int]], sentinels: Sequence[Sentinel], naming: Naming, rule: Rule
) -> Compared:
    """Draws of both sides."""
    x, y = (np.zeros((len(sentinels), max(len(naming), 1)), np.int64) for _ in range(2))
    for table, counts in ((x, a), (y, b)):
        for i, counted in enumerate(counts):
            for number, count in counted.items():
                table[i, number] = count
    usable = (x.sum(axis=1) > 1) & (y.sum(axis=1) > 1)
    values = np.where(usable, distance_between(x, y), np.nan)
    p = p_between(x[usable], y[usable], seed=rule.seed) if usable.any() else None
    return _by_shares(DRAWS, values, p, (sentinels, [_spelled(naming, x), _spelled(naming, y)]), rule)


def _by_shares(
    statistic: str, values: Floats, p: float | None, shown: tuple[Sequence[Sentinel], list[list[str]]], rule: Rule
) -> Compared:
    sentinels, (top_a, top_b) = shown
    ties = np.array([one.kind == "tie" for one in sentinels], np.bool_)
    prompts = [
        PromptDistance(prompt=one.text, distance=float(values[i]), near_tie=bool(ties[i]), top_a=top_a[i], top_b=top_b[i])
        for i, one in enumerate(sentinels)
        if not np.isnan(values[i])
    ]
    return Compared(identity=_judged(statistic, values, p, ties, rule), prompts=_farthest_first(prompts))


def _judged(statistic: str, values: Floats, p: float | None, ties: NDArray[np.bool_], rule: Rule) -> Identity:
    """The mean of the prompts' values with its interval, and what follows."""
    margin, margin_from = margin_of(statistic, rule.margin)
    known = ~np.isnan(values)
    interval = bootstrap_mean(values, confidence=1 - 2 * rule.alpha, seed=rule.seed)
    return Identity(
        statistic=statistic,
        unit=UNITS[statistic],
        margin=margin,
        margin_from=margin_from,
        decision="inconclusive" if interval is None else decide(*interval, margin),
        estimate=known_mean(values),
        ci_low=interval[0] if interval else None,
        ci_high=interval[1] if interval else None,
        p=p,
        n_prompts=int(known.sum()),
        n_near_ties=int((known & ties).sum()),
        reason=None if interval else (FEW_PROMPTS if known.any() else NO_ANSWER),
    )


def _first(lists: Repeats) -> list[int]:
    """The likeliest token of each prompt's first answer, -1 where there is none."""
    answered = lists.answered
    ids = lists.likeliest(1).ids[:, :, 0]
    return [int(ids[answered[:, i], i][0]) if answered[:, i].any() else -1 for i in range(ids.shape[1])]


def _spelled(naming: Naming, table: NDArray[np.generic]) -> list[str]:
    """The token of the largest value of each row."""
    return [naming.text(int(row.argmax())) if len(row) and row.any() else "" for row in table]


def _farthest_first(prompts: list[PromptDistance]) -> list[PromptDistance]:
    return sorted(prompts, key=lambda one: -one.distance)


def known_mean(values: Floats) -> float | None:
    """The mean of what is not NaN, None where all is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
