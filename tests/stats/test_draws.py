"""Counts of draws against scipy's own exact interval, closed forms and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from harness.stats.draws import binomial_interval, log_odds_of_draws, without_bias


@pytest.mark.parametrize(("hits", "n"), [(0, 20), (1, 20), (7, 20), (19, 20), (20, 20), (3, 400)])
def test_the_interval_is_scipys_exact_one(hits: int, n: int) -> None:
    expected = binomtest(hits, n).proportion_ci(0.95, method="exact")
    assert binomial_interval(hits, n) == (pytest.approx(expected.low), pytest.approx(expected.high))


def test_no_hits_leave_the_rule_of_three() -> None:
    _, high = binomial_interval(0, 300, level=0.90)  # one-sided 95%
    assert high == pytest.approx(1 - 0.05 ** (1 / 300))
    assert high == pytest.approx(3 / 300, rel=0.01)


@pytest.mark.parametrize("p", [0.003, 0.05, 0.4])
def test_the_interval_covers_at_least_as_promised(p: float) -> None:
    hits = np.arange(101)
    low, high = binomial_interval(hits, 100)
    assert binom.pmf(hits, 100, p)[(low <= p) & (p <= high)].sum() >= 0.95


def test_what_failed_stays_unknown() -> None:
    low, high = binomial_interval([np.nan, 2], [np.nan, 10])
    assert np.isnan(low[0])
    assert np.isnan(high[0])
    assert 0 < low[1] < 0.2 < high[1]


@pytest.mark.parametrize("bias", [-3.0, 0.0, 6.0, 40.0])
def test_a_bias_on_a_set_of_logits_is_undone_exactly(bias: float) -> None:
    logits = np.random.default_rng(0).standard_normal(50) * 3
    members = np.arange(7)

    def mass(of: np.ndarray) -> float:
        return float(np.exp(of)[members].sum() / np.exp(of).sum())

    raised = logits.copy()
    raised[members] += bias
    expected = mass(logits)
    if mass(raised) < 1 - 1e-9:
        assert without_bias(mass(raised), bias) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("p", [0.0005, 0.02, 0.3])
def test_the_amplified_log_odds_are_unbiased_to_three_standard_errors(p: float) -> None:
    """A mass that plain draws would hardly ever meet: 400 draws with a bias that is off by 0.7 nat, 4,000 times."""
    bias = -np.log(p / (1 - p)) + 0.7
    raised = 1 / (1 + (1 - p) / p * np.exp(-bias))
    hits = np.random.default_rng(1).binomial(400, raised, 4000)
    found = log_odds_of_draws(hits, 400, bias)
    error = found.mean() - np.log(p / (1 - p))
    assert abs(error) < 3 * found.std() / np.sqrt(4000)
    assert found.std() == pytest.approx(1 / np.sqrt(400 * raised * (1 - raised)), rel=0.05)
    assert found.std() < 1.1 * 2 / np.sqrt(400)


def test_amplified_intervals_cover_a_small_mass() -> None:
    p, bias = 0.001, 6.0
    raised = 1 / (1 + (1 - p) / p * np.exp(-bias))
    hits = np.random.default_rng(2).binomial(200, raised, 2000)
    low, high = (without_bias(end, bias) for end in binomial_interval(hits, 200))
    covered = np.mean((low <= p) & (p <= high))
    assert covered >= 0.945
    assert np.median(high / low) < 2.5
