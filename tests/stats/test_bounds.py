"""Bounds from truncated lists: against linear programmes, against the truth, and at the edges of what a list can say."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.special import log_softmax

from harness.stats.bounds import difference_bounds, log_odds, mass_bounds, tv_bounds

Floats = NDArray[np.float64]
Ints = NDArray[np.integer]


def softmaxes(rng: np.random.Generator, n: int, n_vocab: int) -> tuple[Floats, Floats]:
    """n pairs of distributions, from nearly equal to unrelated, from flat to peaked."""
    logits = rng.normal(size=(n, n_vocab)) * rng.choice([0.5, 2.0, 5.0], size=(n, 1))
    moved = logits + rng.normal(size=(n, n_vocab)) * rng.choice([0.05, 0.5, 3.0], size=(n, 1))
    return np.exp(log_softmax(logits, axis=1)), np.exp(log_softmax(moved, axis=1))


def lists(probs: Floats, lengths: Ints) -> tuple[NDArray[np.int32], Floats]:
    """The likeliest `lengths` tokens of each row, padded with id -1 and, to be caught if read, NaN."""
    order = np.argsort(-probs, axis=1)[:, : lengths.max()].astype(np.int32)
    logprobs = np.log(np.take_along_axis(probs, order, axis=1))
    padding = np.arange(order.shape[1]) >= lengths[:, None]
    return np.where(padding, -1, order), np.where(padding, np.nan, logprobs)


def variable_bounds(p: Floats, top: Ints) -> list[tuple[float, float]]:
    """What the list `top` of p allows each token: its own probability, or anything up to the smallest listed one."""
    listed = set(top.tolist())
    tau = min(p[i] for i in listed)
    return [(p[i], p[i]) if i in listed else (0.0, tau) for i in range(len(p))]


def mass_by_programme(p: Floats, top: Ints, members: Ints, sign: int) -> float:
    cost = np.zeros(len(p))
    cost[members] = sign
    found = linprog(cost, A_eq=np.ones((1, len(p))), b_eq=[1.0], bounds=variable_bounds(p, top))
    return float(sign * found.fun)


def shift_by_programme(clean: tuple[Floats, Ints], injected: tuple[Floats, Ints], members: Ints, sign: int) -> float:
    """The least (sign 1) or largest (sign -1) mass of `members` in the injected less that in the clean distribution."""
    n = len(clean[0])
    cost = np.zeros(2 * n)
    cost[members], cost[n + members] = -sign, sign
    sums = np.kron(np.eye(2), np.ones(n))
    found = linprog(cost, A_eq=sums, b_eq=[1.0, 1.0], bounds=variable_bounds(*clean) + variable_bounds(*injected))
    return float(sign * found.fun)


def overlap_by_programme(p: Floats, q: Floats, top_p: Ints, top_q: Ints) -> float:
    """The largest sum of min(P, Q) that two lists allow: variables P, Q and their overlap O <= P, Q."""
    n = len(p)
    eye, zero = np.eye(n), np.zeros((n, n))
    sums = np.zeros((2, 3 * n))
    sums[0, :n] = sums[1, n : 2 * n] = 1
    found = linprog(
        np.repeat([0.0, 0.0, -1.0], n),
        A_ub=np.block([[-eye, zero, eye], [zero, -eye, eye]]),
        b_ub=np.zeros(2 * n),
        A_eq=sums,
        b_eq=[1.0, 1.0],
        bounds=variable_bounds(p, top_p) + variable_bounds(q, top_q) + [(0.0, 1.0)] * n,
    )
    return float(-found.fun)


def test_mass_bounds_are_the_ends_of_the_linear_programme() -> None:
    rng = np.random.default_rng(1)
    forced = 0
    for p in softmaxes(rng, 60, 9)[0]:
        top = np.argsort(-p)[: rng.integers(1, 6)]
        members = np.flatnonzero(rng.random(9) < 0.6)
        unlisted = np.setdiff1d(members, top)
        listed = p[np.intersect1d(members, top)].sum()
        low, high = mass_bounds(listed, len(unlisted), p[top].sum(), p[top].min(), 9, len(top))
        assert low == pytest.approx(mass_by_programme(p, top, members, 1), abs=1e-9)
        assert high == pytest.approx(mass_by_programme(p, top, members, -1), abs=1e-9)
        forced += low > listed + 1e-6
    assert forced > 5, "the lower end was never above the listed mass: the case is not tried"


@pytest.mark.parametrize("knows_vocabulary", [True, False])
def test_mass_bounds_contain_the_mass_of_a_thousand_softmaxes(knows_vocabulary: bool) -> None:
    rng = np.random.default_rng(2)
    p, _ = softmaxes(rng, 1000, 50)
    members = rng.random((1000, 50)) < 0.2
    listed = p >= -np.sort(-p, axis=1)[:, 4:5]
    listed_mass = (p * (members & listed)).sum(1)
    covered, smallest = (p * listed).sum(1), np.where(listed, p, 1).min(1)
    n_unlisted = (members & ~listed).sum(1) if knows_vocabulary else None
    low, high = mass_bounds(listed_mass, n_unlisted, covered, smallest, 50 if knows_vocabulary else None, 5)
    truth = (p * members).sum(1)
    assert low.shape == (1000,)
    assert ((low <= truth + 1e-12) & (truth <= high + 1e-12)).all()
    if not knows_vocabulary:
        np.testing.assert_allclose(low, listed_mass)
        np.testing.assert_allclose(high, listed_mass + 1 - covered)


def test_mass_bounds_without_the_length_of_the_list_are_only_wider() -> None:
    # The rest is .3; the 5 unlisted tokens outside the set take .25 of it at most, its own 3 at most .15.
    assert mass_bounds(0.2, 3, 0.7, 0.05, 12, 4) == (pytest.approx(0.25), pytest.approx(0.35))
    assert mass_bounds(0.2, 3, 0.7, 0.05, 12) == (pytest.approx(0.2), pytest.approx(0.35))


def test_rounding_of_a_whole_vocabulary_makes_no_mass_and_no_gap() -> None:
    low, high = mass_bounds([0.4, 1.0000002], 0, [0.9999998, 1.0000002], 1e-9, 100, 100)
    assert low.tolist() == high.tolist() == [0.4, 1.0]


def test_mass_bounds_of_a_failed_prompt_are_not_a_number() -> None:
    low, high = mass_bounds([np.nan, 0.1], 2, [np.nan, 0.9], [np.nan, 0.02], 1000, 5)
    assert np.isnan([low[0], high[0]]).all()
    assert (float(low[1]), float(high[1])) == (pytest.approx(0.1), pytest.approx(0.14))


def test_total_variation_has_the_lower_end_of_the_linear_programme() -> None:
    rng = np.random.default_rng(3)
    p, q = softmaxes(rng, 60, 40)
    len_p, len_q = rng.integers(1, 9, 60), rng.integers(1, 9, 60)
    low, _ = tv_bounds(*lists(p, len_p), *lists(q, len_q))
    tops = [(np.argsort(-p[i])[: len_p[i]], np.argsort(-q[i])[: len_q[i]]) for i in range(60)]
    expected = [1 - overlap_by_programme(p[i], q[i], *tops[i]) for i in range(60)]
    np.testing.assert_allclose(low, expected, atol=1e-8)
    assert (low > 0.01).sum() > 10


def test_total_variation_bounds_contain_the_truth_of_a_thousand_softmaxes() -> None:
    rng = np.random.default_rng(4)
    p, q = softmaxes(rng, 1000, 60)
    low, high = tv_bounds(*lists(p, rng.integers(1, 61, 1000)), *lists(q, rng.integers(1, 61, 1000)))
    truth = 0.5 * np.abs(p - q).sum(1)
    assert ((low <= truth + 1e-12) & (truth <= high + 1e-12)).all()
    assert (high - low).min() < 1e-9 < (high - low).max()


def test_the_upper_end_is_reached_by_tails_on_different_tokens() -> None:
    # P lists {0, 1}, Q lists {1, 2}; both rests of .3 go where the other has nothing, at most tau = .2 a token.
    p = np.array([0.5, 0.2, 0.0, 0.2, 0.1, 0.0, 0.0])
    q = np.array([0.0, 0.4, 0.3, 0.0, 0.0, 0.2, 0.1])
    q_list, p_list = np.array([[1, 2]]), np.array([[0, 1]])
    low, high = tv_bounds(p_list, np.log([[0.5, 0.2]]), q_list, np.log([[0.4, 0.3]]))
    assert high[0] == pytest.approx(0.5 * np.abs(p - q).sum())
    # Overlap .2 on token 1, a = min(.3, min(.5, .3)) = .3 on token 0, b = min(.3, min(.3, .2)) = .2 on token 2, and no rest.
    assert low[0] == pytest.approx(1 - 0.2 - 0.3 - 0.2 - 0.0)


def test_the_upper_end_is_reached_by_a_pair_of_distributions_that_the_lists_allow() -> None:
    """Both rests go to tokens that neither list has, no token in common, none above the smallest listed one."""
    rng = np.random.default_rng(9)
    p, q = softmaxes(rng, 40, 30)
    len_p, len_q = rng.integers(1, 9, 40), rng.integers(1, 9, 40)
    _, high = tv_bounds(*lists(p, len_p), *lists(q, len_q))
    for row in range(40):
        sides = np.zeros((2, 30 + 2 * 400))
        for side, (probs, n_listed) in enumerate(((p[row], len_p[row]), (q[row], len_q[row]))):
            top = np.argsort(-probs)[:n_listed]
            sides[side, top] = probs[top]
            rest, tau = 1 - probs[top].sum(), probs[top].min()
            n_needed = max(math.ceil(rest / tau), 1)
            assert n_needed <= 400
            sides[side, 30 + 400 * side :][:n_needed] = rest / n_needed
        assert high[row] == pytest.approx(0.5 * np.abs(sides[0] - sides[1]).sum(), abs=1e-9)


def test_whole_vocabularies_leave_no_gap() -> None:
    rng = np.random.default_rng(5)
    p, q = softmaxes(rng, 20, 300)
    whole = np.full(20, 300)
    low, high = tv_bounds(*lists(p, whole), *lists(q, whole))
    np.testing.assert_allclose(low, 0.5 * np.abs(p - q).sum(1), atol=1e-12)
    np.testing.assert_allclose(high, low, atol=1e-12)


def test_a_whole_vocabulary_against_a_short_list_of_itself_may_be_no_change() -> None:
    p, _ = softmaxes(np.random.default_rng(6), 20, 30)
    short_ids, short_logp = lists(p, np.full(20, 4))
    low, high = tv_bounds(*lists(p, np.full(20, 30)), short_ids, short_logp)
    np.testing.assert_allclose(low, 0, atol=1e-12)
    np.testing.assert_allclose(high, 1 - np.exp(short_logp).sum(1), atol=1e-12)


def test_lists_without_a_common_token_or_rest_are_as_far_apart_as_can_be() -> None:
    half = np.log([[0.5, 0.5]])
    assert tv_bounds(np.array([[0, 1]]), half, np.array([[2, 3]]), half) == (pytest.approx([1.0]), pytest.approx([1.0]))


def test_neither_order_nor_padding_nor_blocks_change_the_bounds() -> None:
    rng = np.random.default_rng(7)
    p, q = softmaxes(rng, 700, 500)
    ids_p, logp = lists(p, rng.integers(100, 401, 700))
    ids_q, logq = lists(q, rng.integers(100, 401, 700))
    low, high = tv_bounds(ids_p, logp, ids_q, logq)  # 560,000 entries: more than one block
    shuffle = rng.permuted(np.tile(np.arange(ids_p.shape[1]), (700, 1)), axis=1)
    shuffled = np.take_along_axis(ids_p, shuffle, 1), np.take_along_axis(logp, shuffle, 1)
    np.testing.assert_allclose(tv_bounds(*shuffled, ids_q, logq), (low, high), atol=1e-12)
    for row in (0, 350, 699):
        kept_p, kept_q = ids_p[row] >= 0, ids_q[row] >= 0
        alone = tv_bounds(ids_p[row, kept_p][None], logp[row, kept_p][None], ids_q[row, kept_q][None], logq[row, kept_q][None])
        np.testing.assert_allclose(np.ravel(alone), (low[row], high[row]), atol=1e-12)


def test_swapping_the_lists_swaps_nothing() -> None:
    rng = np.random.default_rng(8)
    p, q = (lists(side, rng.integers(1, 12, 50)) for side in softmaxes(rng, 50, 40))
    np.testing.assert_allclose(tv_bounds(*p, *q), tv_bounds(*q, *p), atol=1e-12)


@pytest.mark.parametrize("width", [0, 3])
def test_an_empty_list_gives_not_a_number(width: int) -> None:
    nothing = np.full((1, width), -1), np.full((1, width), np.nan)
    something = np.array([[4, 5]]), np.log([[0.5, 0.2]])
    assert np.isnan(tv_bounds(*nothing, *something)).all()
    assert np.isnan(tv_bounds(*something, *nothing)).all()


def test_large_ids_and_single_precision_are_matched_exactly() -> None:
    ids = np.array([[2**31 - 1, 0, 128_255]], np.int32)
    logprobs = np.log(np.array([[0.5, 0.3, 0.2]], np.float32))
    low, high = tv_bounds(ids, logprobs, ids[:, ::-1], logprobs[:, ::-1])
    assert high[0] == pytest.approx(0, abs=1e-7)
    assert 0 <= low[0] <= high[0]


def test_differences_take_the_far_ends() -> None:
    low, high = difference_bounds([0.3, 0.1], [0.5, 0.1], [0.1, 0.1], [0.2, 0.1])
    assert low.tolist() == pytest.approx([0.1, 0.0])
    assert high.tolist() == pytest.approx([0.4, 0.0])


@pytest.mark.parametrize("scale", [np.asarray, log_odds])
def test_shifts_lie_within_their_bounds_for_a_thousand_softmaxes(scale: Callable[[Floats], Floats]) -> None:
    """Of a set's mass and of its log-odds, from two top-5 lists."""
    rng = np.random.default_rng(10)
    members = rng.random((1000, 50)) < 0.2
    members[:, :2] = (True, False)
    bounds, masses = [], []
    for probs in softmaxes(rng, 1000, 50):
        listed = probs >= -np.sort(-probs, axis=1)[:, 4:5]
        unlisted = (members & ~listed).sum(1)
        covered, smallest = (probs * listed).sum(1), np.where(listed, probs, 1).min(1)
        bounds.append(mass_bounds((probs * (members & listed)).sum(1), unlisted, covered, smallest, 50, 5))
        masses.append((probs * members).sum(1))
    (low0, high0), (low1, high1) = ((scale(low), scale(high)) for low, high in bounds)
    low, high = difference_bounds(low1, high1, low0, high0)
    truth = scale(masses[1]) - scale(masses[0])
    assert ((low <= truth + 1e-9) & (truth <= high + 1e-9)).all()
    assert (np.isfinite(low) & np.isfinite(high) & (low < high)).sum() > 300


def test_the_bounds_of_a_shift_are_the_ends_of_the_linear_programme() -> None:
    rng = np.random.default_rng(11)
    for p, q in zip(*softmaxes(rng, 30, 9), strict=True):
        members, ends, programme = np.flatnonzero(rng.random(9) < 0.6), [], []
        for probs in (p, q):
            top = np.argsort(-probs)[: rng.integers(1, 6)]
            unlisted, listed = np.setdiff1d(members, top), np.intersect1d(members, top)
            ends += mass_bounds(probs[listed].sum(), len(unlisted), probs[top].sum(), probs[top].min(), 9, len(top))
            programme.append((probs, top))
        found = difference_bounds(ends[2], ends[3], ends[0], ends[1])
        for end, sign in zip(found, (1, -1), strict=True):
            assert end == pytest.approx(shift_by_programme(*programme, members, sign), abs=1e-8)


def test_log_odds_of_bounds_show_what_is_not_identified() -> None:
    low0, high0 = log_odds([0.0, 0.0, 0.2]), log_odds([0.3, 0.0, 0.2])
    low1, high1 = log_odds([0.1, 0.0, 0.5]), log_odds([0.4, 0.0, 1.0])
    low, high = difference_bounds(low1, high1, low0, high0)
    assert low.tolist() == pytest.approx([math.log(1 / 9) - math.log(3 / 7), -math.inf, math.log(4)])
    assert high.tolist() == [math.inf, math.inf, math.inf]


def test_log_odds_match_the_definition_and_refuse_what_is_no_probability() -> None:
    assert log_odds([1e-6, 0.25]).tolist() == pytest.approx([math.log(1e-6 / (1 - 1e-6)), math.log(1 / 3)])
    assert log_odds([0.0, 1.0]).tolist() == [-math.inf, math.inf]
    assert np.isnan(log_odds([np.nan, 1.5])).all()
    assert np.isnan(difference_bounds(np.nan, 1.0, 0.0, 1.0)[0])
