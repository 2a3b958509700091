"""Rank correlation of predicted and observed shifts."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from harness.stats import rank
from harness.stats.rank import spearman


def correlated(n: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(11)
    x = rng.normal(size=n)
    return np.round(x, 1), np.round(x + noise * rng.normal(size=n), 1)  # rounded: with ties


def test_rho_and_p_are_those_of_scipy() -> None:
    x, y = correlated(20, 3.0)
    found, expected = spearman(x, y, seed=1), stats.spearmanr(x, y)
    assert found.n == 20
    assert found.rho == pytest.approx(expected.statistic, abs=1e-12)
    assert found.p == pytest.approx(expected.pvalue, abs=0.02)
    assert 0.01 < expected.pvalue < 0.5
    assert found.reason is None


def test_memory_batches_do_not_change_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = correlated(60, 1.0)
    whole = spearman(x, y, seed=2)
    monkeypatch.setattr(rank, "_BATCH_ENTRIES", 60 * 77)
    parts = spearman(x, y, seed=2)
    assert parts == whole


def test_equal_seeds_give_equal_answers() -> None:
    x, y = correlated(30, 4.0)
    assert spearman(x, y, seed=7) == spearman(x, y, seed=7)
    assert spearman(x, y, seed=7) != spearman(x, y, seed=8)


def test_five_points_in_perfect_order_are_not_certain() -> None:
    found = spearman([1, 2, 3, 4, 5], [10, 20, 25, 50, 100], seed=1)
    assert found.rho == pytest.approx(1.0)
    assert found.p == pytest.approx(2 / 120)  # 2 of the 5! orders are as extreme
    assert found.reason is None


def test_four_points_say_nothing() -> None:
    found = spearman([1, 2, 3, 4], [1, 2, 3, 4], seed=1)
    assert (found.n, found.rho, found.p, found.reason) == (4, None, None, "fewer than 5 points")


@pytest.mark.parametrize("constant_first", [True, False])
def test_a_constant_side_says_nothing(constant_first: bool) -> None:
    varied, constant = np.arange(8.0), np.full(8, 0.1)
    sides = (constant, varied) if constant_first else (varied, constant)
    found = spearman(*sides, seed=1)
    assert (found.rho, found.p, found.reason) == (None, None, rank.CONSTANT)


def test_points_that_are_not_finite_are_dropped() -> None:
    x, y = correlated(20, 1.0)
    holes = spearman([*x, np.nan, 1.0, 2.0], [*y, 0.0, np.nan, -np.inf], seed=4)
    assert holes == spearman(x, y, seed=4)
