"""Pairs matched to pairs, against a search over all of them."""

from __future__ import annotations

import numpy as np
import pytest

from harness.whitebox.sharing import pairing
from harness.whitebox.sharing.matching import Entries, Matches, best
from harness.whitebox.sharing.pairing import Pairs, candidates, decide, partner_chance, relabelled


def pairs(*listed: tuple[int, int]) -> Pairs:
    n = len(listed)
    i, j = np.array(listed, np.int32).reshape(-1, 2).T
    return Pairs(i=i, j=j, cosine=np.full(n, 0.6, np.float32), similarity=np.zeros(n, np.float32))


def matching(scores: dict[tuple[int, int], float]) -> Matches:
    entries: Entries = (
        np.array([a for a, _ in scores], np.int32),
        np.array([b for _, b in scores], np.int32),
        np.array(list(scores.values()), np.float32),
    )
    return best([entries], 5)


def random_case(seed: int) -> tuple[Pairs, Pairs, Matches]:
    rng = np.random.default_rng(seed)
    both = [pairs(*{tuple(sorted(rng.choice(12, 2, replace=False).tolist())) for _ in range(20)}) for _ in range(2)]
    scores = {(int(a), int(b)): round(float(rng.uniform(0.3, 1)), 3) for a, b in rng.integers(12, size=(50, 2))}
    return both[0], both[1], matching(scores)


def by_search(a: Pairs, b: Pairs, matches: Matches) -> dict[tuple[int, int], tuple[float, set[tuple[int, int]]]]:
    """For each pair of a with each of b the best joint score, and the ways (i_b, j_b) that reach it."""
    score = {(int(x), int(y)): float(s) for x, y, s in zip(matches.a, matches.b, matches.score, strict=True)}
    found: dict[tuple[int, int], tuple[float, set[tuple[int, int]]]] = {}
    for p, (i, j) in enumerate(zip(a.i.tolist(), a.j.tolist(), strict=True)):
        for q, (x, y) in enumerate(zip(b.i.tolist(), b.j.tolist(), strict=True)):
            ways = {way: min(score.get((i, way[0]), 0.0), score.get((j, way[1]), 0.0)) for way in ((x, y), (y, x))}
            if top := max(ways.values()):
                found[p, q] = (top, {way for way, s in ways.items() if s == top})
    return found


@pytest.mark.parametrize("at_once", [1, 1 << 20])
@pytest.mark.parametrize("seed", range(5))
def test_candidates_are_all_pairs_whose_members_match_in_either_order(
    seed: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairing, "COMBINATIONS", at_once)
    a, b, matches = random_case(seed)
    found = candidates(a, b, matches)
    expected = by_search(a, b, matches)
    assert len(expected) > 10
    assert sorted(zip(found.a.tolist(), found.b.tolist(), strict=True)) == sorted(expected)
    for p, q, way, score in zip(found.a, found.b, zip(found.i_b, found.j_b, strict=True), found.score, strict=True):
        assert expected[p, q][0] == pytest.approx(score)
        assert tuple(map(int, way)) in expected[p, q][1]


@pytest.mark.parametrize("seed", range(5))
def test_a_shared_pair_is_best_both_ways_by_the_margin(seed: int) -> None:
    a, b, matches = random_case(seed)
    found = candidates(a, b, matches)
    score = {(int(p), int(q)): float(s) for p, q, s in zip(found.a, found.b, found.score, strict=True)}
    decision = decide(found, 0.05)
    for row, (p, q) in enumerate(score):
        rivals = [[s for way, s in score.items() if way != (p, q) and way[end] == (p, q)[end]] for end in (0, 1)]
        margin = min(score[p, q] - max(others, default=0.0) for others in rivals)
        if decision.mutual[row]:
            assert margin == pytest.approx(decision.margin[row], abs=1e-6)
            assert decision.shared[row] == (decision.margin[row] >= 0.05)
        else:
            assert margin <= 0
            assert np.isnan(decision.margin[row])
            assert not decision.shared[row]
    assert decision.shared.any()


def test_a_near_rival_in_either_direction_leaves_a_pair_unshared() -> None:
    a, b = pairs((0, 1), (2, 3)), pairs((0, 1), (2, 3), (2, 4))
    matches = matching({(0, 0): 0.9, (1, 1): 0.9, (2, 2): 0.9, (3, 3): 0.8, (3, 4): 0.78})
    decision = decide(candidates(a, b, matches), 0.05)
    assert decision.mutual.tolist() == [True, True, False]
    assert decision.shared.tolist() == [True, False, False]
    assert decide(candidates(a, b, matches), 0.01).shared.tolist() == [True, True, False]


def test_without_pairs_or_matches_nothing_is_shared() -> None:
    for a, b, matches in ((pairs(), pairs((0, 1)), matching({(0, 0): 1.0})), (pairs((0, 1)), pairs(), matching({}))):
        assert not decide(candidates(a, b, matches), 0.05).shared.any()


def test_relabelling_swaps_usable_features_of_about_equal_density() -> None:
    rng = np.random.default_rng(0)
    density = rng.permutation(np.linspace(0.001, 0.1, 400)).astype(np.float32)
    usable = np.ones(400, bool)
    usable[::7] = False
    features = np.flatnonzero(usable).astype(np.int32)
    matches = matching({(int(b), int(b)): 0.5 for b in features})
    found = relabelled(matches, density, usable, rng)
    assert sorted(found.b.tolist()) == features.tolist()
    assert np.mean(found.b == features) < 0.1
    assert np.abs(density[found.b] - density[features]).max() <= 0.0115  # a bin is a tenth of what is usable
    assert np.array_equal(found.a, matches.a)


def test_a_partner_of_equal_cosine_counts_if_it_matches_too() -> None:
    unit = np.zeros((8, 3), np.float32)
    unit[0] = (1, 0, 0)
    for feature, cosine in ((1, 0.62), (2, 0.61), (3, 0.63), (4, 0.64), (5, 0.2), (6, 0.61)):
        unit[feature] = (cosine, 0, np.sqrt(1 - cosine**2))
    usable = np.array([True] * 6 + [False, True])
    a, b = pairs((0, 1)), pairs((0, 1))
    matches = matching({(0, 0): 0.9, (1, 1): 0.9, (1, 2): 0.4, (1, 5): 0.4})
    found = candidates(a, b, matches)
    # with feature 0 kept: 2, 3 and 4 have the cosine of 1, and 2 matches too; with 1 kept no other is as near to it as 0 is
    assert partner_chance(found, matches, a, unit, usable).tolist() == pytest.approx([1 / 3])
    assert np.isnan(partner_chance(found, matches, a, np.eye(8, dtype=np.float32), usable & (np.arange(8) < 2)))[0]
