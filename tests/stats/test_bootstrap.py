"""The crossed bootstrap: weights by hand, the exact variance of a resampled mean, and simulated nulls."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from harness.stats.bootstrap import Resampled, crossed_bootstrap, median_of

Floats = NDArray[np.float64]
S8, K5 = np.repeat(np.arange(8), 5), np.tile(np.arange(5), 8)


def mean_of(values: Floats) -> object:
    return lambda weights: weights @ values / weights.sum()


def test_weights_are_products_of_how_often_sentence_and_injection_were_drawn() -> None:
    seen: list[Floats] = []
    crossed_bootstrap(lambda weights: seen.append(weights) or 0.0, S8, [f"k{k}" for k in K5], seed=1, n_resamples=50)
    assert (seen[-1] == 1).all()  # the data themselves
    for weights in seen[:-1]:
        table = weights.reshape(8, 5)
        by_sentence, by_injection = table.sum(1) / 5, table.sum(0) / 8
        np.testing.assert_array_equal(table, np.outer(by_sentence, by_injection))
        assert (by_sentence.sum(), by_injection.sum()) == (8, 5)
        assert (by_sentence % 1 == 0).all()


def test_strata_are_resampled_within() -> None:
    strata = np.repeat(["b", "a"], 20)
    seen: list[Floats] = []
    crossed_bootstrap(lambda w: seen.append(w) or 0.0, S8, K5, seed=1, n_resamples=30, strata=strata)
    assert {weights[:20].sum() for weights in seen} == {weights[20:].sum() for weights in seen} == {20.0}
    assert any((w[:20].reshape(4, 5).sum(0) != w[20:].reshape(4, 5).sum(0)).any() for w in seen)  # injections drawn apart


def test_unbalanced_trials_of_any_order_have_their_own_weights() -> None:
    sentences, injections = np.array(["q", "p", "q", "r"]), np.array([7, 3, 3, 7])
    seen: list[Floats] = []
    crossed_bootstrap(lambda w: seen.append(w) or 0.0, sentences, injections, seed=2, n_resamples=40)
    for weights in seen[:-1]:
        assert weights[0] * weights[1] == 0 or weights[2] > 0  # q was drawn, and so was 3


def test_the_variance_of_a_mean_is_the_one_worked_out_for_the_pigeonhole() -> None:
    """By the law of total variance over both draws, of a full table's mean; SS are its sums of squares over S K.

    With v_s = mean of (row mean)^2, v_k = mean of (column mean)^2 and v_e the mean square of what both leave, all about the
    mean, the resampled mean has the variance v_s / S + v_k / K + v_e / (S K).
    """
    rng = np.random.default_rng(3)
    table = rng.normal(size=(8, 1)) + rng.normal(size=5) + rng.normal(size=(8, 5))
    rows, columns = table.mean(1) - table.mean(), table.mean(0) - table.mean()
    rest = table - table.mean() - rows[:, None] - columns
    expected = (rows**2).mean() / 8 + (columns**2).mean() / 5 + (rest**2).mean() / 40
    found = crossed_bootstrap(mean_of(table.ravel()), S8, K5, seed=1, n_resamples=8000)
    assert found.value == pytest.approx(table.mean())
    assert found.replicates.var() == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(("n_sentences", "n_injections", "expected"), [(100, 12, 0.058), (30, 8, 0.048)])
def test_a_true_null_is_rejected_about_as_often_as_was_measured(n_sentences: int, n_injections: int, expected: float) -> None:
    rng = np.random.default_rng(4)
    s, k = np.repeat(np.arange(n_sentences), n_injections), np.tile(np.arange(n_injections), n_sentences)
    runs, rejected = 300, 0
    spread = 0.3 * 2**0.5
    for run in range(runs):
        noise = 2**0.5 * rng.normal(size=(n_sentences, n_injections))
        table = spread * rng.normal(size=(n_sentences, 1)) + spread * rng.normal(size=n_injections) + noise
        low, high = crossed_bootstrap(mean_of(table.ravel()), s, k, seed=run, n_resamples=199).interval()
        rejected += low > 0 or high < 0
    assert rejected / runs == pytest.approx(expected, abs=0.04)


def test_the_median_shift_is_covered_where_trials_share_injections() -> None:
    """Trials resampled as if independent cover it seven times in ten."""
    rng = np.random.default_rng(5)
    s, k = np.repeat(np.arange(15), 20), np.tile(np.arange(20), 15)
    runs, covered, iid = 200, 0, 0
    for run in range(runs):
        values = (0.7 * rng.normal(size=20) + rng.standard_t(3, size=(15, 20))).ravel() + 0.4
        low, high = crossed_bootstrap(median_of(values), s, k, seed=run, n_resamples=199).interval()
        covered += low <= 0.4 <= high
        low, high = np.quantile(np.median(rng.choice(values, (199, 300)), axis=1), [0.025, 0.975])
        iid += low <= 0.4 <= high
    assert covered / runs >= 0.9
    assert iid / runs < 0.75


@pytest.mark.parametrize("n", [1, 2, 7, 40])
def test_the_median_is_numpys_of_the_repeated_values(n: int) -> None:
    rng = np.random.default_rng(n)
    values, weights = rng.normal(size=n).round(1), rng.integers(0, 3, n)
    weights[0] = 1
    assert median_of(values)(weights.astype(float)) == pytest.approx(np.median(np.repeat(values, weights)))
    assert np.isnan(median_of(values)(np.zeros(n)))


def test_equal_seeds_give_equal_resamples_and_a_constant_has_no_interval() -> None:
    values = np.arange(40.0)
    first, again, other = (crossed_bootstrap(median_of(values), S8, K5, seed=seed, n_resamples=50) for seed in (1, 1, 2))
    assert (first.replicates == again.replicates).all()
    assert (first.replicates != other.replicates).any()
    assert crossed_bootstrap(median_of(np.full(40, 0.3)), S8, K5, seed=1, n_resamples=50).interval() is None


def test_resamples_without_a_value_are_left_out_unless_they_are_many() -> None:
    replicates = np.arange(101.0)
    replicates[-1] = np.nan
    assert Resampled(value=1.0, replicates=replicates).interval(0.9) == (pytest.approx(4.95), pytest.approx(94.05))
    replicates[50:] = np.nan
    assert Resampled(value=1.0, replicates=replicates).interval() is None
