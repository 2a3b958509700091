"""Simulated false alarms under optional stopping, coverage at all times, and power; the capital against a loop by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from harness.stats.sequential import MOST, log_capital, mean_limits

Floats = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int, int], Floats]

ALPHA = 0.05
RUNS, LENGTH = 3000, 300
SLACK = 3 * math.sqrt(ALPHA * (1 - ALPHA) / RUNS)

# Each draws (runs, length) values in [0, 1] with the mean 0.9.
AT_MEAN_09: dict[str, Draw] = {
    "rare ruin": lambda rng, n, t: (rng.random((n, t)) < 0.9).astype(float),
    "small losses": lambda rng, n, t: rng.beta(36, 4, (n, t)),
    "heavy losses": lambda rng, n, t: rng.beta(0.9, 0.1, (n, t)),
    "no spread": lambda _rng, n, t: np.full((n, t), 0.9),
    "two sides": lambda rng, n, t: rng.choice([0.8, 1.0], (n, t)),
}


def by_hand(values: list[float], m: float, guess: float) -> list[float]:
    """The bettor's log capital, value by value."""
    seen: list[float] = []
    squares = 0.0
    capital, course = 1.0, []
    for x in values:
        mean = (guess + sum(seen)) / (1 + len(seen))
        variance = (0.02 + squares) / (1 + len(seen))
        edge = mean - m
        bet = min(max(edge / (variance + edge * edge), 0.0), MOST / m)
        capital *= 1 + bet * (x - m)
        course.append(math.log(capital))
        seen.append(x)
        squares += (x - (guess + sum(seen)) / (1 + len(seen))) ** 2
    return course


def empirical_bernstein(values: Floats, alpha: float) -> tuple[Floats, Floats]:
    """Predictable-mixture empirical-Bernstein limits, two-sided at `alpha` (Waudby-Smith and Ramdas 2024, theorem 2)."""
    t = np.arange(1, len(values) + 1)
    mean = (0.5 + np.cumsum(values)) / (t + 1)
    variance = (0.25 + np.cumsum((values - mean) ** 2)) / (t + 1)
    mean_before, variance_before = np.r_[0.5, mean[:-1]], np.r_[0.25, variance[:-1]]
    bet = np.minimum(np.sqrt(2 * math.log(2 / alpha) / (variance_before * t * np.log1p(t))), 0.5)
    centre = np.cumsum(bet * values) / np.cumsum(bet)
    psi = -np.log1p(-bet) - bet
    width = (math.log(2 / alpha) + np.cumsum((values - mean_before) ** 2 * psi)) / np.cumsum(bet)
    return np.maximum.accumulate(centre - width), np.minimum.accumulate(centre + width)


def test_the_capital_is_what_a_bettor_who_reckons_by_hand_has() -> None:
    values = np.random.default_rng(0).random(40)
    for m, guess in ((0.3, 1.0), (0.5, 0.5), (0.9, 0.0)):
        assert np.allclose(log_capital(values, m, guess=guess), by_hand(values.tolist(), m, guess))


def test_a_bet_is_placed_before_the_value_is_seen() -> None:
    values = np.full(20, 0.8)
    changed = values.copy()
    changed[10:] = 0.0
    assert np.array_equal(log_capital(values, 0.5, guess=1.0)[:10], log_capital(changed, 0.5, guess=1.0)[:10])


@pytest.mark.parametrize("guess", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("draw", AT_MEAN_09.values(), ids=AT_MEAN_09)
def test_looking_after_every_value_hardly_ever_passes_what_is_at_the_margin(draw: Draw, guess: float) -> None:
    values = draw(np.random.default_rng(1), RUNS, LENGTH)
    ever = (log_capital(values, 0.9, guess=guess) >= -math.log(ALPHA)).any(axis=1)
    assert ever.mean() <= ALPHA + SLACK


@pytest.mark.parametrize("draw", AT_MEAN_09.values(), ids=AT_MEAN_09)
def test_looking_after_every_value_hardly_ever_fails_what_is_at_the_margin(draw: Draw) -> None:
    values = 1 - draw(np.random.default_rng(2), RUNS, LENGTH)
    ever = (log_capital(values, 0.1, guess=0.0) >= -math.log(ALPHA)).any(axis=1)
    assert ever.mean() <= ALPHA + SLACK


def test_so_it_is_with_a_fixed_set_of_clusters_in_random_order_though_those_of_a_concept_are_alike() -> None:
    rng = np.random.default_rng(10)
    concepts = np.repeat(rng.beta(4, 1, 24), 12)
    population = np.clip(concepts + rng.normal(0, 0.02, 288), 0, 1)
    orders = np.array([rng.permutation(population) for _ in range(RUNS)])
    at = population.mean()
    for values, mean in ((orders, at), (1 - orders, 1 - at)):
        ever = (log_capital(values, mean, guess=1.0) >= -math.log(ALPHA)).any(axis=1)
        assert ever.mean() <= ALPHA + SLACK


@pytest.mark.parametrize("draw", AT_MEAN_09.values(), ids=AT_MEAN_09)
def test_the_limits_hold_the_mean_at_all_times_at_once(draw: Draw) -> None:
    samples = draw(np.random.default_rng(3), 150, 120) - 1
    missed = 0
    for values in samples:
        limits = mean_limits(values, values, span=(-1.0, 0.0), guess=0.0, alpha=ALPHA, at=-0.2)
        missed += bool((limits.low > -0.1 + 1e-12).any() or (limits.high < -0.1 - 1e-12).any())
    assert missed / 150 <= 2 * ALPHA + 3 * math.sqrt(2 * ALPHA / 150)


def test_a_regression_beyond_the_margin_is_found_and_never_passed() -> None:
    rng = np.random.default_rng(4)
    lengths = []
    for _ in range(100):
        values = -rng.beta(2, 8, 150)  # mean -0.2
        limits = mean_limits(values, values, span=(-1.0, 0.0), guess=0.0, alpha=0.01, at=-0.05)
        assert limits.low[-1] < -0.05
        assert limits.high[-1] <= -0.05
        lengths.append(int(np.argmax(limits.high <= -0.05)) + 1)
    assert np.median(lengths) < 40


def test_no_change_at_all_passes_almost_as_soon_as_any_method_can() -> None:
    for margin, alpha in ((0.05, 0.01), (0.1, 0.05), (0.02, 0.01)):
        soonest = math.log(alpha) / math.log(1 - margin)
        limits = mean_limits(np.zeros(400), np.zeros(400), span=(-1.0, 0.0), guess=0.0, alpha=alpha, at=-margin)
        assert soonest <= np.argmax(limits.low >= -margin) + 1 <= 1.15 * soonest


def test_limits_only_draw_closer_and_hold_the_running_mean_of_even_values() -> None:
    values = np.random.default_rng(5).uniform(-0.5, 0.5, 200)
    limits = mean_limits(values, values, span=(-1.0, 1.0), guess=0.0, alpha=0.01, at=-0.1)
    assert (np.diff(limits.low) >= 0).all()
    assert (np.diff(limits.high) <= 0).all()
    assert limits.low[-1] < values.mean() < limits.high[-1]


def test_mirrored_values_have_mirrored_limits() -> None:
    values = np.random.default_rng(6).beta(2, 5, 80)
    one = mean_limits(values, values, span=(0.0, 1.0), guess=0.5, alpha=0.01, at=0.25)
    other = mean_limits(1 - values, 1 - values, span=(0.0, 1.0), guess=0.5, alpha=0.01, at=0.75)
    assert np.allclose(one.low, 1 - other.high)
    assert np.allclose(one.high, 1 - other.low)


def test_values_known_within_bounds_have_the_limits_of_both_ends() -> None:
    values = np.random.default_rng(7).uniform(-0.2, 0.2, 100)
    low, high = values - 0.1, values + 0.1
    both = mean_limits(low, high, span=(-1.0, 1.0), guess=0.0, alpha=0.01, at=-0.3)
    assert np.array_equal(both.low, mean_limits(low, low, span=(-1.0, 1.0), guess=0.0, alpha=0.01, at=-0.3).low)
    assert np.array_equal(both.high, mean_limits(high, high, span=(-1.0, 1.0), guess=0.0, alpha=0.01, at=-0.3).high)


def test_the_limits_are_closer_than_those_of_empirical_bernstein() -> None:
    rng = np.random.default_rng(8)
    for _ in range(20):
        values = rng.beta(8, 2, 200)
        limits = mean_limits(values, values, span=(0.0, 1.0), guess=0.5, alpha=0.025, at=0.5)
        low, high = empirical_bernstein(values, 0.05)
        assert low[-1] < 0.8 < high[-1]
        assert limits.high[-1] - limits.low[-1] < high[-1] - low[-1]


def test_the_limit_is_at_the_margin_exactly_when_the_margin_is_refuted() -> None:
    values = np.random.default_rng(9).beta(0.5, 12, 300) * -1
    limits = mean_limits(values, values, span=(-1.0, 0.0), guess=0.0, alpha=0.01, at=-0.0777)
    capital = np.maximum.accumulate(log_capital(1 + values, 1 - 0.0777, guess=1.0))
    assert np.array_equal(limits.low >= -0.0777, capital >= -math.log(0.01))
    assert 0 < (limits.low >= -0.0777).sum() < 300
