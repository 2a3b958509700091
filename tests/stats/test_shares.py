"""Distances of drawn tokens: unbiased, and with p-values that keep to their level."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from harness.stats.shares import distance_between, distance_to, p_between, p_of_draws

Floats = NDArray[np.float64]

P = np.array([0.5, 0.3, 0.15, 0.05])
Q = np.array([0.4, 0.3, 0.1, 0.2])


def drawn(p: Floats, n_draws: int, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    return np.asarray(rng.multinomial(n_draws, p, size=n), np.int64)


@pytest.mark.parametrize("q", [P, Q])
def test_both_distances_are_unbiased(q: Floats) -> None:
    rng = np.random.default_rng(1)
    true = ((P - q) ** 2).sum()
    n = 20_000
    for found in (
        distance_to(drawn(P, 12, n, rng), np.tile(q, (n, 1))),
        distance_between(drawn(P, 12, n, rng), drawn(q, 7, n, rng)),
    ):
        assert abs(found.mean() - true) < 4 * found.std() / np.sqrt(n)


def test_the_distance_between_is_the_share_of_equal_pairs_within_less_across() -> None:
    x, y = [0, 0, 1], [0, 1]
    within_x = np.mean([x[i] == x[j] for i in range(3) for j in range(3) if i != j])
    within_y = np.mean([y[i] == y[j] for i in range(2) for j in range(2) if i != j])
    across = np.mean([one == other for one in x for other in y])
    (found,) = distance_between(np.array([[2, 1, 0]]), np.array([[1, 1, 0]]))
    assert found == pytest.approx(within_x + within_y - 2 * across)


def test_a_side_with_one_draw_is_not_known() -> None:
    assert np.isnan(distance_between(np.array([[1, 0]]), np.array([[2, 1]])))


def test_p_values_keep_to_their_level_and_find_a_difference() -> None:
    rng = np.random.default_rng(2)
    n = 5
    known = np.tile(P, (n, 1))
    null = [
        (p_of_draws(drawn(P, 20, n, rng), known, n=99), p_between(drawn(P, 20, n, rng), drawn(P, 20, n, rng), n=99))
        for _ in range(150)
    ]
    assert (np.abs(np.mean(np.array(null) <= 0.1, axis=0) - 0.1) < 0.075).all()
    assert p_of_draws(drawn(Q, 80, n, rng), known, n=99) == 0.01
    assert p_between(drawn(Q, 120, n, rng), drawn(P, 120, n, rng), n=99) <= 0.02
