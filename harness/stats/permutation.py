"""Permutation tests of a contrast: which injection stood in which arm is what was assigned, so that is what is permuted.

The unit of assignment is the injection, not the trial: all trials of an injection, over all its sentences, change arms
together. To flip each (sentence, injection) cell for itself tests that the arms are alike in every cell, which is false as
soon as pairs differ among themselves, as they always do: it finds effects where there is only spread. We do not.

A test over several concepts permutes within each of them and takes the mean over concepts of their contrasts. All p are
two-sided, never 0, and of the sharp null that an injection does the same in either arm, in the sentences that were tried:
what an arm does in just these sentences counts as an effect. Of sentences and injections that were not tried the two-way
interval speaks, and where they disagree it decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from harness.stats.crossed import Trials, on_common_sentences

Floats = NDArray[np.float64]

N_PERMUTATIONS = 9999
"""Rearrangements that are drawn; fewer than one more are all gone through instead."""

_TIES = 1e-10
"""Statistics closer than this share of their size are equal: sums in another order differ by rounding."""

_BATCH_ENTRIES = 1 << 20
"""Signs or labels drawn at a time, so that memory does not grow with the number of injections."""


def block_permutation_p(differences: Sequence[Trials], *, seed: int, n: int = N_PERMUTATIONS) -> float | None:
    """p of matched arms, from the differences of their cells (`crossed.paired_differences`), one `Trials` a concept.

    An injection and its partner may have changed places, which turns the sign of the pair's differences in all sentences
    together. With d_k the sum of pair k's differences over the number of its concept's, and signs e_k,

        T = sum over concepts and pairs of e_k d_k / C,    p = share of |T| >= |T of e = 1|,

    over all 2^pairs signs where these are at most `n` + 1, else p = (1 + #{...}) / (1 + n) over `n` drawn ones (Fisher
    1935; the 1s: Phipson and Smyth 2010). T is not studentised: the sum of the d_k^2 is the same for all signs, so the t
    statistic orders the signs as T does. Where differences are known within bounds, the end whose mean lies nearer zero
    counts, and p is 1 if zero lies between. None without a pair.
    """
    sums = np.concatenate([np.empty((2, 0)), *map(_pair_sums, differences)], axis=1)  # (2, pairs)
    if not sums.size:
        return None
    low, high = sums.sum(axis=1)
    if low <= 0 <= high:
        return 1.0
    nearer = sums[0] if low > 0 else sums[1]
    return _share_as_large(nearer, n=n, rng=np.random.default_rng(seed))


def _pair_sums(concept: Trials) -> Floats:
    """(2, pairs): each pair's share of the concept's mean difference, at both ends of its bounds."""
    known = concept.complete()
    _, pairs = np.unique(known.injections, return_inverse=True)
    return np.stack([np.bincount(pairs, end) for end in (known.low, known.high)]) / max(len(known), 1)


def _share_as_large(sums: Floats, *, n: int, rng: np.random.Generator) -> float:
    """The share of signs under which |signs @ sums| is at least what it is without."""
    least = abs(sums.sum()) * (1 - _TIES)
    if len(sums) < 63 and 2 ** len(sums) <= n + 1:
        signs = np.array(list(product((1.0, -1.0), repeat=len(sums))))  # (2^pairs, pairs)
        return float(np.mean(np.abs(signs @ sums) >= least))
    batch = max(1, _BATCH_ENTRIES // len(sums))
    as_large = 0
    for start in range(0, n, batch):
        signs = rng.integers(0, 2, size=(min(batch, n - start), len(sums)), dtype=np.int8) * 2.0 - 1.0
        as_large += int(np.count_nonzero(np.abs(signs @ sums) >= least))
    return (1 + as_large) / (1 + n)


def label_permutation_p(arms: Sequence[tuple[Trials, Trials]], *, seed: int, n: int = N_PERMUTATIONS) -> float | None:
    """p of arms whose injections are not matched: one (arm, control) a concept, labels permuted over its injections.

    Paired by sentence: from each trial the mean of all the concept's trials of its sentence is taken off, which does not
    depend on labels. An arm's mean m is over its trials; with n_k the number of injection k's trials and r_k their mean,

        T = sum over concepts of (m_arm - m_control) / sqrt(sum over concepts of V),
        V = sum over arms of K / (K - 1) sum over its k of (n_k (r_k - m) / sum of its n_k)^2,

    p = (1 + #{|T*| >= |T|}) / (1 + n) over `n` drawn labellings (Phipson and Smyth 2010). T is studentised, so that arms
    that differ in spread but not in mean are rejected about as often as promised (Janssen 1997; Chung and Romano 2013).
    Bounds count as in `block_permutation_p`. Concepts with fewer than 2 injections in an arm are left out; None if all are.
    """
    concepts = [on_common_sentences((arm.complete(), control.complete())) for arm, control in arms]
    usable = [pair for pair in concepts if all(len(np.unique(arm.injections)) > 1 for arm in pair)]
    if not usable:
        return None
    lowest = sum(float(arm.low.mean() - control.high.mean()) for arm, control in usable)
    highest = sum(float(arm.high.mean() - control.low.mean()) for arm, control in usable)
    if lowest <= 0 <= highest:
        return 1.0
    rng = np.random.default_rng(seed)
    contrasts, variances = np.zeros(1 + n), np.zeros(1 + n)
    for arm, control in usable:
        ends = (arm.low, control.high) if lowest > 0 else (arm.high, control.low)
        moments, n_arm = _injection_moments((arm, control), np.concatenate(ends))
        _add_relabelled(moments, n_arm, (contrasts, variances), rng)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.abs(contrasts) / np.sqrt(variances)
    t[variances <= 0] = np.inf  # injections that do not differ within the arms
    return float(np.mean(t >= t[0] * (1 - _TIES)))


def _injection_moments(arms: tuple[Trials, Trials], values: Floats) -> tuple[Floats, int]:
    """(injections, 5): n, n r, n^2, n^2 r, n^2 r^2 of each injection, the arm's injections first; and how many those are."""
    _, sentences = np.unique(np.concatenate([arm.sentences for arm in arms]), return_inverse=True)
    of_arm, of_control = (np.unique(arm.injections, return_inverse=True) for arm in arms)
    n_arm = len(of_arm[0])
    injections = np.concatenate((of_arm[1], of_control[1] + n_arm))
    centred = values - (np.bincount(sentences, values) / np.bincount(sentences))[sentences]
    count, total = np.bincount(injections).astype(np.float64), np.bincount(injections, centred)
    return np.stack((count, total, count**2, count * total, total**2), axis=1), n_arm


def _add_relabelled(moments: Floats, n_arm: int, totals: tuple[Floats, Floats], rng: np.random.Generator) -> None:
    """Add a concept's contrast and variance to `totals` (1 + n,): as labelled in row 0, then under drawn labels."""
    contrasts, variances = totals
    n_injections = len(moments)
    n_in = np.array((n_arm, n_injections - n_arm), np.float64)
    labels = np.arange(n_injections) < n_arm
    batch = max(1, _BATCH_ENTRIES // n_injections)
    for start in range(0, len(contrasts), batch):
        rows = slice(start, min(start + batch, len(contrasts)))
        drawn = rng.permuted(np.tile(labels, (rows.stop - start, 1)), axis=1)
        if start == 0:
            drawn[0] = labels
        in_arm = drawn.astype(np.float64) @ moments  # (rows, 5)
        means = []
        for side, k in zip((in_arm, moments.sum(axis=0) - in_arm), n_in, strict=True):
            size, total, size2, cross, square = side.T
            mean = total / size
            means.append(mean)
            variances[rows] += k / (k - 1) * (square - 2 * mean * cross + mean**2 * size2) / size**2
        contrasts[rows] += means[0] - means[1]
