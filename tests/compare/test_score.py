"""The paired difference of two scores, from trials that are made up."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from harness.compare.score import UNITS, Key, Scored, difference, small_plan
from harness.evals.spec import Primary

LOG_ODDS = Primary(arm="high", control="matched", metric="delta_log_odds", margin=0.1)
KEYS: list[Key] = [
    (concept, arm, f"s{s}", f"i{i}")
    for concept in ("animal", "food")
    for arm in ("high", "matched")
    for s in range(6)
    for i in range(6)
]


def scored(value: Callable[[Key], float], *, width: float = 0.0, seen: tuple[str, int] = ("exact", 100)) -> Scored:
    """Trials that all metrics give the same value, known to `width`."""
    values = {key: value(key) for key in KEYS}
    ends = {key: (one - width / 2, one + width / 2) for key, one in values.items()}
    return Scored(
        bounds=dict.fromkeys(UNITS, ends),
        values=dict.fromkeys(UNITS, values),
        comparable=seen,
        primary=LOG_ODDS,
        failed_share=0.0,
    )


def shared(key: Key) -> float:
    """What both sides have in common: large, and of no interest."""
    return float(np.random.default_rng([sum(map(ord, part)) for part in key]).normal(0, 2))


def moved(by: float, noise: float = 0.01) -> Callable[[Key], float]:
    rng = np.random.default_rng(3)
    return lambda key: shared(key) + by * (key[1] == "high") + rng.normal(0, noise)


@pytest.mark.parametrize(
    ("by", "noise", "decision"),
    [(0.0, 0.01, "equivalent"), (0.3, 0.01, "different"), (-0.3, 0.01, "different"), (0.1, 0.05, "inconclusive")],
)
def test_what_both_share_drops_out_and_the_margin_decides(by: float, noise: float, decision: str) -> None:
    found = difference(scored(moved(by, noise)), scored(shared), LOG_ODDS, alpha=0.05)
    assert found.decision == decision
    assert found.estimate == pytest.approx(by, abs=0.03)
    assert found.n_trials == len(KEYS)


def test_the_same_values_to_the_bit_are_equivalent() -> None:
    found = difference(scored(shared), scored(shared), LOG_ODDS, alpha=0.05)
    assert (found.estimate, found.ci_low, found.ci_high, found.decision) == (0.0, 0.0, 0.0, "equivalent")


def test_sides_that_saw_unequally_much_are_compared_by_bounds() -> None:
    exact, listed = scored(moved(0), seen=("exact", 100)), scored(moved(0), width=0.5, seen=("topk", 20))
    found = difference(exact, listed, LOG_ODDS, alpha=0.05)
    assert found.decision == "inconclusive"
    assert found.ci_low is not None
    assert found.ci_low < -0.4
    assert difference(listed, listed, LOG_ODDS, alpha=0.05).decision == "equivalent"


def test_masses_are_compared_where_most_log_odds_are_not_known() -> None:
    half = scored(lambda key: shared(key) if key[2] in ("s0", "s1") else float("nan"))
    assert difference(half, half, LOG_ODDS, alpha=0.05).metric == "delta_mass"
    assert difference(half, half, LOG_ODDS, alpha=0.05).margin == 0.005
    assert difference(half, half, LOG_ODDS, alpha=0.05, mass_margin=0.02).margin == 0.02


def test_trials_without_a_value_leave_it_open_and_say_why() -> None:
    lost = scored(lambda _key: float("nan"))
    found = difference(lost, lost, LOG_ODDS, alpha=0.05)
    assert (found.estimate, found.decision, found.reason) == (None, "inconclusive", "no trials")


@pytest.mark.parametrize("metric", ["count_success", "mass_success"])
def test_a_success_may_be_the_score(metric: str) -> None:
    primary = Primary.model_validate(LOG_ODDS.model_dump() | {"metric": metric})
    found = difference(scored(moved(0.5)), scored(shared, seen=("topk", 20)), primary, alpha=0.05)
    assert (found.metric, found.unit, found.decision) == (metric, "share of 1", "different")


def test_the_small_plan_has_the_primary_arms_of_a_few_concepts() -> None:
    plan = small_plan("transfer", concepts=(), limit=4, seed=0)
    assert set(plan.arms) == {"high", "matched"}
    assert (len(plan.concepts), plan.sizes.injections, plan.sizes.sentences) == (8, 4, 4)
    assert plan.concepts == small_plan("transfer", concepts=(), limit=4, seed=0).concepts
    assert small_plan("transfer", concepts=("animal",), limit=4, seed=0).concepts == ("animal",)
