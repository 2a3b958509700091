"""Distances between two endpoints' lists: against a plain reading of the formula, enumeration, a convex programme, and planted
truths."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax

from harness.stats.distances import (
    Repeats,
    bootstrap_mean,
    clustering,
    distances,
    kl_low,
    own_flips,
    permutation_p,
    spread,
)

Floats = NDArray[np.float64]

N, V, K = 40, 300, 20


def answers(logits: Floats, r: int, noise: float, rng: np.random.Generator, k: int = K) -> Repeats:
    """r lists of the k likeliest tokens after each prompt, each from logits of their own."""
    x = log_softmax(logits + noise * rng.standard_normal((r, *logits.shape)), axis=2)
    ids = np.argsort(-x, axis=2)[:, :, :k]
    return Repeats(ids=ids, logprobs=np.take_along_axis(x, ids, axis=2))


def joined(*parts: Repeats) -> Repeats:
    return Repeats(ids=np.concatenate([p.ids for p in parts]), logprobs=np.concatenate([p.logprobs for p in parts]))


def without(lists: Repeats, r: int, i: int) -> Repeats:
    """The lists with the answer of round r to prompt i lost; what stands beside its padding must not be read."""
    ids, logprobs = lists.ids.copy(), lists.logprobs.copy()
    ids[r, i], logprobs[r, i] = -1, np.nan
    return Repeats(ids=ids, logprobs=logprobs)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


@pytest.fixture
def logits(rng: np.random.Generator) -> Floats:
    return 3 * rng.standard_normal((N, V))


def by_hand(lists_a: list[dict[int, float]], lists_b: list[dict[int, float]]) -> float:
    """d of one prompt, read off its definition."""
    union = sorted(set().union(*lists_a, *lists_b))
    z_means = []
    for side in (lists_a, lists_b):
        rows = []
        for one in side:
            lp = [one.get(token, min(one.values())) for token in union]
            rows.append([value - sum(lp) / len(lp) for value in lp])
        z_means.append([sum(column) / len(column) for column in zip(*rows, strict=True)])
    return sum(abs(x - y) for x, y in zip(*z_means, strict=True)) / len(union)


def test_the_distance_and_its_floor_are_what_the_definition_and_all_relabellings_say(
    logits: Floats, rng: np.random.Generator
) -> None:
    a, b = answers(logits + 0.5 * rng.standard_normal((N, V)), 2, 0.1, rng), answers(logits, 3, 0.1, rng)
    found = distances(a, b)
    for i in range(5):
        lists = [
            dict(zip(s.ids[r, i].tolist(), s.logprobs[r, i].tolist(), strict=True)) for s in (a, b) for r in range(len(s.ids))
        ]
        assert found.distance[i] == pytest.approx(by_hand(lists[:2], lists[2:]))
        relabelled = [
            by_hand([lists[j] for j in chosen], [lists[j] for j in range(5) if j not in chosen])
            for chosen in itertools.combinations(range(5), 2)
        ]
        assert found.floor[i] == pytest.approx(np.mean(relabelled))


def test_an_endpoint_is_no_farther_from_itself_than_its_noise(logits: Floats, rng: np.random.Generator) -> None:
    means = [distances(answers(logits, 5, 0.1, rng), answers(logits, 5, 0.1, rng)).excess.mean() for _ in range(15)]
    assert abs(np.mean(means)) < 4 * np.std(means) / math.sqrt(15)
    assert np.mean(means) < 0.002


@pytest.mark.parametrize("r", [1, 2, 5])
def test_without_noise_the_excess_is_the_distance_itself(r: int, logits: Floats, rng: np.random.Generator) -> None:
    moved = logits + 0.2 * rng.standard_normal((N, V))
    found = distances(answers(moved, r, 0.0, rng), answers(logits, r, 0.0, rng))
    assert found.excess == pytest.approx(found.distance)
    assert found.distance == pytest.approx(distances(answers(moved, 1, 0, rng), answers(logits, 1, 0, rng)).distance)


def test_what_multiplies_a_whole_list_is_no_distance(logits: Floats, rng: np.random.Generator) -> None:
    a = answers(logits, 3, 0.0, rng)
    renormalised = Repeats(ids=a.ids, logprobs=a.logprobs - np.log(np.exp(a.logprobs).sum(axis=2, keepdims=True)))
    assert distances(a, renormalised).distance == pytest.approx(np.zeros(N), abs=1e-12)


def test_lists_without_a_common_token_lie_far_apart(logits: Floats, rng: np.random.Generator) -> None:
    a = answers(logits, 2, 0.0, rng)
    other = Repeats(ids=a.ids + V, logprobs=a.logprobs)
    found = distances(a, other)
    assert (found.distance > 0.3).all()
    assert (found.flips == 1).all()


def test_the_longer_list_is_cut_and_the_order_within_a_list_does_not_matter(logits: Floats, rng: np.random.Generator) -> None:
    a, b = answers(logits, 2, 0.1, rng), answers(logits, 2, 0.1, rng)
    mixed = rng.permutation(K)
    turned = Repeats(ids=b.ids[:, :, mixed], logprobs=b.logprobs[:, :, mixed])
    assert distances(a, turned).distance == pytest.approx(distances(a, b).distance)
    assert distances(a.likeliest(5), b).distance == pytest.approx(distances(a.likeliest(5), b.likeliest(5)).distance)


def test_a_lost_answer_leaves_the_others_and_a_prompt_without_any_is_not_counted(
    logits: Floats, rng: np.random.Generator
) -> None:
    a, b = answers(logits, 3, 0.1, rng), answers(logits, 3, 0.1, rng)
    partly = without(a, 0, 7)
    found = distances(partly, b)
    kept = Repeats(ids=a.ids[1:], logprobs=a.logprobs[1:])
    assert found.distance[7] == pytest.approx(distances(kept, b).distance[7])
    lost = without(without(without(a, 0, 7), 1, 7), 2, 7)
    found = distances(lost, b)
    assert np.isnan([found.distance[7], found.excess[7], found.flips[7], found.tv_low[7]]).all()
    assert not np.isnan(np.delete(found.excess, 7)).any()


def test_the_permutation_p_is_small_for_a_difference_and_uniform_without_one(rng: np.random.Generator) -> None:
    logits = 3 * rng.standard_normal((6, 40))
    moved = distances(answers(logits + 0.1 * rng.standard_normal((6, 40)), 5, 0.05, rng), answers(logits, 5, 0.05, rng))
    assert permutation_p(moved.permuted, n=999) == pytest.approx(0.001)
    null = [
        permutation_p(distances(answers(logits, 3, 0.1, rng), answers(logits, 3, 0.1, rng)).permuted, n=199) for _ in range(200)
    ]
    rejected = np.mean(np.array(null) <= 0.1)
    assert 0.04 < rejected < 0.17
    assert permutation_p(distances(answers(logits, 1, 0.1, rng), answers(logits, 1, 0.1, rng)).permuted) is None


def test_equal_answers_to_the_bit_have_a_p_of_one(logits: Floats, rng: np.random.Generator) -> None:
    same = answers(logits, 4, 0.0, rng)
    assert permutation_p(distances(same, same).permuted) == 1.0


def test_more_repeats_than_can_be_enumerated_are_sampled(rng: np.random.Generator) -> None:
    logits = 3 * rng.standard_normal((10, V))
    found = distances(answers(logits, 8, 0.1, rng), answers(logits, 8, 0.1, rng))
    assert {len(one) for one in found.permuted} == {1000}
    assert abs(found.excess.mean()) < 0.01


def test_the_bootstrap_interval_covers_the_mean_and_needs_two_prompts(rng: np.random.Generator) -> None:
    covered = 0
    for seed in range(300):
        interval = bootstrap_mean(rng.gamma(2, 1, 60), confidence=0.9, n=499, seed=seed)
        assert interval is not None
        covered += interval[0] <= 2 <= interval[1]
    assert 0.84 < covered / 300 < 0.95
    assert bootstrap_mean(np.array([1.0, np.nan]), confidence=0.9) is None


def test_the_spread_is_the_mean_distance_of_two_answers(logits: Floats, rng: np.random.Generator) -> None:
    lists = answers(logits, 3, 0.1, rng)
    found = spread(lists)
    alone = answers(logits, 2, 0.0, rng)
    assert spread(alone) == pytest.approx(np.zeros(N))
    assert np.isnan(spread(answers(logits, 1, 0.1, rng))).all()
    assert found.mean() == pytest.approx(spread(answers(logits, 3, 0.2, rng)).mean() / 2, rel=0.15)


def test_own_flips_count_pairs_of_answers() -> None:
    ids = np.array([[[1, 2]], [[1, 2]], [[2, 1]]])
    lists = Repeats(ids=ids, logprobs=np.broadcast_to(np.log([0.5, 0.4]), ids.shape))
    assert own_flips(lists) == pytest.approx([2 / 3])
    assert np.isnan(own_flips(Repeats(ids=ids[:1], logprobs=lists.logprobs[:1])))


def test_two_backends_fall_into_two_clusters_and_noise_does_not(logits: Floats, rng: np.random.Generator) -> None:
    other = logits + 0.3 * rng.standard_normal((N, V))
    mixed = joined(answers(logits, 2, 0.003, rng), answers(other, 3, 0.003, rng))
    assert np.median(clustering(mixed)) > 0.98
    assert np.median(clustering(answers(logits, 5, 0.1, rng))) < 0.6
    assert np.isnan(clustering(answers(logits, 2, 0.1, rng))).all()


def top(p: Floats, k: int) -> tuple[NDArray[np.intp], Floats]:
    ids = np.argsort(-p)[:k]
    return ids, np.log(p[ids])


def kl_by_programme(p: Floats, q: Floats, in_p: set[int], in_q: set[int]) -> float:
    """The least KL over everything that two lists leave open, by sequential quadratic programming."""
    tau_p, tau_q = min(p[i] for i in in_p), min(q[i] for i in in_q)
    alone_p, alone_q = sorted(in_p - in_q), sorted(in_q - in_p)
    rest_p, rest_q = 1 - sum(p[i] for i in in_p), 1 - sum(q[i] for i in in_q)
    common = sum(p[i] * math.log(p[i] / q[i]) for i in in_p & in_q)
    n = len(alone_p)

    def value(z: Floats) -> float:
        other_p, other_q = max(rest_p - z[n:].sum(), 1e-12), max(rest_q - z[:n].sum(), 1e-12)
        terms = (p[alone_p] * np.log(p[alone_p] / z[:n])).sum() + (z[n:] * np.log(z[n:] / q[alone_q])).sum()
        return float(common + terms + other_p * math.log(other_p / other_q))

    start = np.concatenate(
        [np.full(n, min(tau_q, rest_q / (n + 2))), np.full(len(alone_q), min(tau_p, rest_p / (len(alone_q) + 2)))]
    )
    if not len(start):
        return value(start)
    found = minimize(
        value,
        start,
        method="SLSQP",
        bounds=[(1e-9, tau_q)] * n + [(1e-9, tau_p)] * len(alone_q),
        constraints=[
            {"type": "ineq", "fun": lambda z: rest_q - z[:n].sum() - 1e-9},
            {"type": "ineq", "fun": lambda z: rest_p - z[n:].sum() - 1e-9},
        ],
        options={"maxiter": 500, "ftol": 1e-12},
    )
    return float(found.fun)


def test_the_least_divergence_is_the_programmes_and_never_above_the_true_one(rng: np.random.Generator) -> None:
    for _ in range(60):
        p = rng.dirichlet(np.full(60, 0.3))
        q = p * np.exp(rng.normal(0, rng.choice([0.1, 0.7, 1.5]), 60))
        q /= q.sum()
        (ids_p, logp), (ids_q, logq) = top(p, 5), top(q, 5)
        (found,) = kl_low(ids_p[None], logp[None], ids_q[None], logq[None])
        assert found == pytest.approx(kl_by_programme(p, q, set(ids_p.tolist()), set(ids_q.tolist())), abs=2e-6)
        assert found <= (p * np.log(p / q)).sum() + 1e-9


def test_the_divergence_of_whole_distributions_is_exact_and_of_a_lost_list_not_known(rng: np.random.Generator) -> None:
    p, q = rng.dirichlet(np.ones(8), size=2)
    ids = np.arange(8)
    both = kl_low(np.array([ids, ids]), np.log([p, p]), np.array([ids, np.full(8, -1)]), np.log([q, q]))
    assert both[0] == pytest.approx((p * np.log(p / q)).sum())
    assert math.isnan(both[1])
