"""How far two endpoints' next-token distributions are apart, beyond what each of them differs from itself.

Each endpoint answered each of n prompts some times with a list of its likeliest tokens. A list's log-probabilities are read on
the union U of all tokens that any of the prompt's lists shows; a token that a list does not show stands at the smallest it
shows, which is the most that its absence allows. Centred on U, whatever multiplies a whole list (a normaliser, an intercept)
drops out:

    z = lp - mean over U of lp,        d = mean over U of |mean over repeats of z_A - mean over repeats of z_B|     (nat)

Chauvin et al. 2025 ("logprob tracking") take the uncentred d of one prompt. Read on the common tokens alone, as their lists are
centred elsewhere, two models that share few tokens would look alike; that is why U is the union here.

Pure arrays. What the numbers mean, and which distance is benign, is `compare`'s business.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import NDArray

from harness.stats.bounds import tv_bounds

Floats = NDArray[np.float64]
Ints = NDArray[np.integer]
Bools = NDArray[np.bool_]

_ENUMERATED = 1000
"""Splits of one prompt's lists that are all looked at (252 for twice five); of more, as many are drawn."""

_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Repeats:
    """One endpoint's lists: `ids` (r, n, k) token ids, -1 at padding; `logprobs` (r, n, k) in nats, in any order within a list.

    An answer that failed is a list of padding alone; r may be 1.
    """

    ids: Ints
    logprobs: NDArray[np.floating]

    def __post_init__(self) -> None:
        if self.ids.ndim != 3 or self.ids.shape != self.logprobs.shape:
            raise ValueError(f"(r, n, k) twice expected, got {self.ids.shape} and {self.logprobs.shape}")

    @property
    def answered(self) -> Bools:
        """Which lists hold anything, (r, n)."""
        return np.asarray((self.ids >= 0).any(axis=2))

    def likeliest(self, k: int) -> Repeats:
        """The k likeliest tokens of each list, highest first."""
        keys = np.where(self.ids >= 0, self.logprobs, -np.inf)
        order = np.argsort(-keys, axis=2, kind="stable")[:, :, :k]
        return Repeats(ids=np.take_along_axis(self.ids, order, axis=2), logprobs=np.take_along_axis(keys, order, axis=2))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Distances:
    """Of A and B, prompt by prompt, (n,) each; NaN where either side has no list.

    `distance`: d as above, in nats. `floor`: its mean over all ways to relabel the prompt's lists. `excess`: what of the
    distance is not noise: (distance - floor) / (1 - s), s being the share of a difference without noise that relabelling
    leaves (`_left_by_relabelling`); so it is 0 in the mean where A and B are one endpoint, and the distance itself where
    neither has noise. With a single list a side it is the distance, noise included. `tv_low`, `tv_high`: bounds of the total
    variation, mean over repeats paired as they came. `flips`: the share of pairs of a list of A and one of B whose likeliest
    tokens differ. `permuted`: for each prompt the distances (S_i,) of all relabellings, empty where there is one list a side.
    """

    distance: Floats
    floor: Floats
    excess: Floats
    tv_low: Floats
    tv_high: Floats
    flips: Floats
    permuted: tuple[Floats, ...]


def distances(a: Repeats, b: Repeats, *, seed: int = 0) -> Distances:
    """How far A and B are apart on each of n prompts; both lists are first cut to one length."""
    k = min(a.ids.shape[2], b.ids.shape[2])
    a, b = a.likeliest(k), b.likeliest(k)
    n = a.ids.shape[1]
    distance, floor, excess = np.full((3, n), np.nan)
    permuted: list[Floats] = [np.empty(0)] * n
    rng = np.random.default_rng(seed)
    for rows, from_a, from_b in _alike_prompts(a, b):
        z, weights = _aligned(a, b, rows, (from_a, from_b))
        n_a, n_b = len(from_a), len(from_b)
        splits = _splits(n_a, n_b, rng)  # (S, n_a + n_b)
        apart = np.abs(np.einsum("sr,rnu->snu", splits, z))
        all_distances = np.einsum("snu,nu->sn", apart, weights)
        distance[rows] = all_distances[0]
        left = _left_by_relabelling(splits, n_a)
        single = n_a == n_b == 1
        floor[rows] = 0.0 if single else all_distances.mean(axis=0)
        excess[rows] = all_distances[0] if single else (all_distances[0] - floor[rows]) / (1 - left)
        if not single:
            for place, row in enumerate(rows):
                permuted[row] = all_distances[:, place]
    low, high = _tv(a, b)
    return Distances(
        distance=distance,
        floor=floor,
        excess=excess,
        tv_low=low,
        tv_high=high,
        flips=_flips(a, b),
        permuted=tuple(permuted),
    )


def spread(lists: Repeats) -> Floats:
    """One endpoint's distance from itself, (n,): the mean d of two of its lists of one prompt; NaN with fewer than two."""
    n = lists.ids.shape[1]
    found = np.full(n, np.nan)
    nothing = Repeats(ids=lists.ids[:0], logprobs=lists.logprobs[:0])
    for rows, members, _ in _alike_prompts(lists, nothing, least_b=0):
        if len(members) < 2:
            continue
        z, weights = _aligned(lists, nothing, rows, (members, np.empty(0, np.intp)))
        pairs = [np.einsum("nu,nu->n", np.abs(z[i] - z[j]), weights) for i, j in combinations(range(len(members)), 2)]
        found[rows] = np.mean(pairs, axis=0)
    return found


def own_flips(lists: Repeats) -> Floats:
    """The share (n,) of pairs of an endpoint's lists of one prompt whose likeliest tokens differ; NaN with fewer than two."""
    lists = lists.likeliest(1)
    first, answered = lists.ids[:, :, 0], lists.answered
    differ, both = np.zeros((2, first.shape[1]))
    for i, j in combinations(range(len(first)), 2):
        known = answered[i] & answered[j]
        both += known
        differ += known & (first[i] != first[j])
    return _share_of(differ, both)


def clustering(lists: Repeats) -> Floats:
    """How well two clusters explain the scatter of one endpoint's repeats, (n,), share in [0, 1]: the largest, over all ways to
    cut the repeats in two, of (sum of squares between the two) / (total sum of squares) of z.

    Several backends behind one address answer in clusters, with a share near 1; independent noise of five repeats leaves 0.4,
    of three more than a half. The criterion is Ward's (1963), over all cuts instead of greedily. NaN with fewer than three
    answers or without scatter.
    """
    n = lists.ids.shape[1]
    found = np.full(n, np.nan)
    nothing = Repeats(ids=lists.ids[:0], logprobs=lists.logprobs[:0])
    for rows, members, _ in _alike_prompts(lists, nothing, least_b=0):
        r = len(members)
        if r < 3:
            continue
        z, weights = _aligned(lists, nothing, rows, (members, np.empty(0, np.intp)))
        z = (z - z.mean(axis=0)) * (weights > 0)
        total = (z**2).sum(axis=(0, 2))
        best = np.zeros(len(rows))
        for code in range(1, 2 ** (r - 1)):
            inside = np.array([code >> i & 1 for i in range(r)], np.bool_)
            sums = z[inside].sum(axis=0)  # the other cluster's is the same with the opposite sign
            between = (sums**2).sum(axis=1) * (1 / inside.sum() + 1 / (r - inside.sum()))
            best = np.maximum(best, between)
        with np.errstate(invalid="ignore", divide="ignore"):
            found[rows] = np.where(total > _ROUNDING, best / total, np.nan)
    return found


def permutation_p(permuted: tuple[Floats, ...], *, n: int = 9999, seed: int = 0) -> float | None:
    """p of A and B being one endpoint: labels are exchanged within each prompt, all prompts at once.

    T = the mean over prompts of d; p = (1 + #{T* >= T}) / (n + 1) over n random relabellings, each prompt's its own, drawn from
    the enumerated ones. As in a two-sample permutation test within blocks (Good 2005); the +1 of Phipson and Smyth 2010.
    None where no prompt has more than one list a side. An endpoint that answers to the bit turns any difference of arithmetic
    into a small p, so that p decides nothing here.
    """
    kept = [one for one in permuted if len(one)]
    if not kept:
        return None
    rng = np.random.default_rng(seed)
    observed = sum(float(one[0]) for one in kept)
    totals = np.zeros(n)
    for one in kept:
        totals += one[rng.integers(len(one), size=n)]
    return float((1 + np.count_nonzero(totals >= observed - _ROUNDING * (1 + observed))) / (n + 1))


def bootstrap_mean(values: Floats, *, confidence: float, n: int = 4999, seed: int = 0) -> tuple[float, float] | None:
    """(low, high) of the mean over prompts: the percentile interval of n resamples of the (prompt-wise) values (Efron 1979).

    NaN values are left out; None with fewer than two others. Prompts are taken as independent: none shares its text.
    """
    kept = values[~np.isnan(values)]
    if len(kept) < 2:
        return None
    rng = np.random.default_rng(seed)
    means = kept[rng.integers(len(kept), size=(n, len(kept)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _alike_prompts(a: Repeats, b: Repeats, *, least_b: int = 1) -> Iterator[tuple[NDArray[np.intp], Ints, Ints]]:
    """Prompts answered by the same repeats, with the numbers of those of A and of B; prompts that a side did not answer at all
    are left out."""
    answered = np.concatenate((a.answered, b.answered))  # (r_a + r_b, n)
    n_a = len(a.ids)
    patterns, numbers = np.unique(answered.T, axis=0, return_inverse=True)
    for number, pattern in enumerate(patterns):
        from_a, from_b = np.flatnonzero(pattern[:n_a]), np.flatnonzero(pattern[n_a:])
        if len(from_a) and len(from_b) >= least_b:
            yield np.flatnonzero(numbers.reshape(-1) == number), from_a, from_b


def _aligned(a: Repeats, b: Repeats, rows: NDArray[np.intp], members: tuple[Ints, Ints]) -> tuple[Floats, Floats]:
    """z (n_a + n_b, n, u) of these prompts on the union of each prompt's tokens, and the weights (n, u) of a mean over it.

    Padding, where a prompt's union is smaller than the largest, has weight 0.
    """
    ids = np.concatenate((a.ids[members[0]][:, rows], b.ids[members[1]][:, rows]))  # (R, n, k)
    logprobs = np.concatenate((a.logprobs[members[0]][:, rows], b.logprobs[members[1]][:, rows]))
    listed = ids >= 0
    smallest = np.where(listed, logprobs, np.inf).min(axis=2)  # (R, n)
    unions = [np.unique(ids[:, place][listed[:, place]]) for place in range(len(rows))]
    width = max(map(len, unions))
    x = np.repeat(smallest[:, :, None], width, axis=2).astype(np.float64)  # (R, n, u)
    present = np.zeros((len(rows), width), np.bool_)
    for place, union in enumerate(unions):
        present[place, : len(union)] = True
        for repeat in range(len(ids)):
            own = listed[repeat, place]
            x[repeat, place, np.searchsorted(union, ids[repeat, place, own])] = logprobs[repeat, place, own]
    weights = present / present.sum(axis=1, keepdims=True)
    return x - np.einsum("rnu,nu->rn", x, weights)[:, :, None], weights


def _splits(n_a: int, n_b: int, rng: np.random.Generator) -> Floats:
    """Ways to choose n_a of all lists as A's, as weights (S, n_a + n_b): 1 / n_a on those, -1 / n_b on the others.

    The first one is how it was; all others follow if they are few, else as many are drawn."""
    total = n_a + n_b
    if comb(total, n_a) <= _ENUMERATED:
        chosen = np.array(list(combinations(range(total), n_a)))  # the first is 0 .. n_a - 1
    else:
        drawn = np.argsort(rng.random((_ENUMERATED - 1, total)), axis=1)[:, :n_a]
        chosen = np.concatenate((np.arange(n_a)[None], drawn))
    splits = np.full((len(chosen), total), -1.0 / n_b)
    np.put_along_axis(splits, chosen, 1.0 / n_a, axis=1)
    return splits


def _left_by_relabelling(splits: Floats, n_a: int) -> float:
    """Mean over relabellings of |share of A's lists in the first group less that in the second|: 2/7 for twice five lists."""
    return float(np.abs(splits[:, :n_a].sum(axis=1)).mean())


def _tv(a: Repeats, b: Repeats) -> tuple[Floats, Floats]:
    """Mean bounds (n,) of the total variation over the repeats that both sides answered, paired as they came."""
    r = min(len(a.ids), len(b.ids))
    both = [tv_bounds(a.ids[i], a.logprobs[i], b.ids[i], b.logprobs[i]) for i in range(r)]
    known = [~np.isnan(low) for low, _ in both]
    low, high = (np.sum([np.where(k, ends[i], 0.0) for k, ends in zip(known, both, strict=True)], axis=0) for i in (0, 1))
    count = np.sum(known, axis=0)
    return _share_of(low, count), _share_of(high, count)


def _flips(a: Repeats, b: Repeats) -> Floats:
    """Share (n,) of pairs of lists, one of each side, whose first tokens differ; lists are highest first."""
    answered = a.answered[:, None] & b.answered[None]  # (r_a, r_b, n)
    differ = (a.ids[:, None, :, 0] != b.ids[None, :, :, 0]) & answered
    return _share_of(differ.sum(axis=(0, 1)), answered.sum(axis=(0, 1)))


def _share_of(part: Floats | Ints, whole: Floats | Ints) -> Floats:
    """part / whole, NaN where there is nothing."""
    shares = np.full(len(whole), np.nan)
    np.divide(part, whole, out=shares, where=whole > 0)
    return shares


def kl_low(ids_p: Ints, logp: NDArray[np.floating], ids_q: Ints, logq: NDArray[np.floating]) -> Floats:
    """The least Kullback-Leibler divergence KL(P||Q) in nats, (B,), that two top-k lists allow; arguments as `tv_bounds` takes.

    With C the common tokens, L_P, L_Q those of one list alone, r the rests, tau the smallest listed, O all other tokens:

        minimise  sum_C p log(p/q) + sum_LP p log(p/q) + sum_LQ p log(p/q) + p_O log(p_O/q_O)
        over q on L_P, at most tau_Q, p on L_Q, at most tau_P, and p_O = r_P - sum_LQ p, q_O = r_Q - sum_LP q;

    the minimum has q = min(tau_Q, p / rho) on L_P and p = min(tau_P, q rho) on L_Q with rho = p_O / q_O, found by bisection,
    for p_O falls and q_O rises with rho. There is no upper bound without a floor on unlisted q. Where neither rest can hold
    what the other side lists, everything outside C counts as one token (data processing), which is a smaller, valid bound.
    """
    rows = [_kl_row(*_parts(*row)) for row in zip(ids_p, logp, ids_q, logq, strict=True)]
    return np.array(rows, np.float64)


def _parts(ids_p: Ints, logp: NDArray[np.floating], ids_q: Ints, logq: NDArray[np.floating]) -> tuple[Floats, ...]:
    """Probabilities p, q on the common tokens, p of P's other ones, q of Q's other ones, and (r_P, tau_P, r_Q, tau_Q)."""
    p = {int(i): float(np.exp(lp)) for i, lp in zip(ids_p, logp, strict=True) if i >= 0}
    q = {int(i): float(np.exp(lq)) for i, lq in zip(ids_q, logq, strict=True) if i >= 0}
    common = sorted(p.keys() & q.keys())
    ends = [max(1 - sum(p.values()), 0.0), min(p.values(), default=np.nan)]
    ends += [max(1 - sum(q.values()), 0.0), min(q.values(), default=np.nan)]
    return (
        np.array([p[i] for i in common]),
        np.array([q[i] for i in common]),
        np.array([p[i] for i in sorted(p.keys() - q.keys())]),
        np.array([q[i] for i in sorted(q.keys() - p.keys())]),
        np.array(ends),
    )


def _kl_row(p: Floats, q: Floats, alone_p: Floats, alone_q: Floats, ends: Floats) -> float:
    rest_p, tau_p, rest_q, tau_q = ends
    if np.isnan(ends).any():
        return float("nan")
    common = float((p * np.log(p / q)).sum())
    low, high = -80.0, 80.0  # logs of rho
    for _ in range(200):
        middle = (low + high) / 2
        other_p = rest_p - np.minimum(tau_p, alone_q * np.exp(middle)).sum()
        other_q = rest_q - np.minimum(tau_q, alone_p * np.exp(-middle)).sum()
        if other_p <= 0 and other_q <= 0:
            mass_p, mass_q = 1 - p.sum(), 1 - q.sum()
            return max(common + _term(mass_p, mass_q), 0.0)
        rises = other_q <= 0 or (other_p > 0 and np.log(other_p) - np.log(other_q) > middle)
        low, high = (middle, high) if rises else (low, middle)
    rho = np.exp((low + high) / 2)
    hidden_q, hidden_p = np.minimum(tau_q, alone_p / rho), np.minimum(tau_p, alone_q * rho)
    value = common + float((alone_p * np.log(alone_p / hidden_q)).sum() + (hidden_p * np.log(hidden_p / alone_q)).sum())
    return max(value + _term(rest_p - hidden_p.sum(), rest_q - hidden_q.sum()), 0.0)


def _term(p: float, q: float) -> float:
    """p log(p / q), 0 where p is nothing."""
    return float(p * (np.log(p) - np.log(max(q, 1e-300)))) if p > 1e-15 else 0.0
