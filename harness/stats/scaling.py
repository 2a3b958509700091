"""Whether one endpoint's lists are the other's on another scale: what a temperature or a renormalisation leaves behind."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.stats.distances import Repeats

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """A's log-probabilities against B's, tokens within prompts.

    `slope` s of (lp_A - lp_B) on lp_B about both their means within the prompt, pooled: 0 for equal scales, 1/T - 1 where
    A's list was divided by a temperature T. `explained`: the share in [0, 1] of the sum of squares of lp_A - lp_B about its
    prompt's mean that the slope takes. `offset`: the mean over prompts of the prompt's mean of lp_A - lp_B, in nats, which a
    renormalised list moves. `common`: the mean over prompts of the share of the tokens in any list that are in all. None where
    no prompt has two tokens in common, `explained` also where nothing is left to explain.
    """

    slope: float | None
    explained: float | None
    offset: float | None
    common: float


def scaling(a: Repeats, b: Repeats) -> Scaling:
    """Least squares with one slope and an intercept for each prompt (analysis of covariance, Fisher 1932), on the means over
    repeats of the tokens that all of the prompt's lists show."""
    products = squares = own = 0.0
    offsets, shares = [], []
    for place in range(a.ids.shape[1]):
        mean_a, mean_b, n_any = _common_means(a, b, place)
        if n_any:
            shares.append(len(mean_b) / n_any)
        if len(mean_b) < 2:
            continue
        difference, level = mean_a - mean_b, mean_b - mean_b.mean()
        offsets.append(float(difference.mean()))
        difference = difference - difference.mean()
        products += float(difference @ level)
        squares += float(level @ level)
        own += float(difference @ difference)
    common = float(np.mean(shares)) if shares else 0.0
    if not squares:
        return Scaling(slope=None, explained=None, offset=None, common=common)
    explained = products**2 / (squares * own) if own > 1e-12 * squares else None
    return Scaling(slope=products / squares, explained=explained, offset=float(np.mean(offsets)), common=common)


def _common_means(a: Repeats, b: Repeats, place: int) -> tuple[Floats, Floats, int]:
    """Mean log-probabilities on each side of the tokens in every list that the prompt got, and how many are in any."""
    sides = []
    for side in (a, b):
        lists = [
            dict(zip(ids.tolist(), logprobs.tolist(), strict=True))
            for ids, logprobs, answered in zip(
                side.ids[:, place], side.logprobs[:, place], side.answered[:, place], strict=True
            )
            if answered
        ]
        sides.append([{i: lp for i, lp in one.items() if i >= 0} for one in lists])
    if not all(sides):
        return np.empty(0), np.empty(0), 0
    tokens = [set(one) for side in sides for one in side]
    common = sorted(set.intersection(*tokens))
    mean_a, mean_b = (np.array([np.mean([one[i] for one in side]) for i in common]) for side in sides)
    return mean_a, mean_b, len(set.union(*tokens))
