"""Scores of features with features, against dense matrices; candidates against a plain sort."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from scipy import sparse

from harness.whitebox.sharing import matching
from harness.whitebox.sharing.matching import Entries, active, affine_map, best, correlations, cosines


def codes(seed: int, *, n: int = 200, d: int = 30) -> sparse.csr_matrix:
    return sparse.csr_matrix(sparse.random(n, d, density=0.08, format="csr", dtype=np.float32, random_state=seed))


def as_dict(found: Iterable[Entries]) -> dict[tuple[int, int], float]:
    parts = list(found)
    return {(int(i), int(j)): float(s) for part in parts for i, j, s in zip(*part, strict=True)}


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_correlations_are_those_of_numpy_whatever_the_block(block: int) -> None:
    a, dense_b = codes(0), codes(1, d=20).toarray()
    dense_b[:, 3] = a.toarray()[:, 5] * 2
    dense_b[:, 4] = np.arange(200) == 0  # fires once
    dense_b[:, 6] = 1  # says nothing
    b = sparse.csr_matrix(dense_b)
    found = as_dict(correlations(a, b, min_active=3, at_least=1e-4, block=block))
    with np.errstate(invalid="ignore"):
        dense = np.corrcoef(a.toarray().T, b.toarray().T)[:30, 30:]
    together = (a.toarray() > 0).T.astype(int) @ (b.toarray() > 0)
    expected = {
        (i, j): dense[i, j]
        for i in range(30)
        for j in range(20)
        if dense[i, j] >= 1e-4 and together[i, j] and active(a, 3)[i] and active(b, 3)[j]
    }
    assert found == pytest.approx(expected, abs=1e-6)
    assert found[5, 3] == pytest.approx(1.0)
    assert not {j for _, j in found} & {4, 6}


def test_a_correlation_above_zero_needs_a_segment_on_which_both_fire() -> None:
    a, b = codes(2), codes(3)
    dense = np.corrcoef(a.toarray().T, b.toarray().T)[:30, 30:]
    apart = ((a.toarray() > 0).T.astype(int) @ (b.toarray() > 0)) == 0
    assert apart.any()
    assert np.all(dense[apart] < 0)


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_cosines_are_those_of_unit_rows_and_rows_of_zeros_have_none(block: int) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((20, 6)).astype(np.float32), rng.standard_normal((15, 6)).astype(np.float32)
    a[4] = 0
    found = as_dict(cosines(a, b, at_least=0.2, block=block))
    with np.errstate(invalid="ignore"):
        dense = (a @ b.T) / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)
    expected = {(i, j): dense[i, j] for i in range(20) for j in range(15) if dense[i, j] >= 0.2}
    assert found == pytest.approx(expected, abs=1e-6)


def test_the_affine_map_is_least_squares_of_the_reconstructions() -> None:
    rng = np.random.default_rng(0)
    one, other = codes(0), codes(1)
    decoders = [rng.standard_normal((30, d)).astype(np.float32) for d in (5, 4)]
    x, y = (c @ w for c, w in zip((one, other), decoders, strict=True))
    expected = np.linalg.lstsq(np.column_stack([x, np.ones(len(x))]), y, rcond=None)[0][:-1]
    found = affine_map((one, decoders[0]), (other, decoders[1]), ridge=0.0)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_decoder_rows_meet_their_own_in_a_turned_and_stretched_space(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "SEGMENTS_AT_ONCE", 33)
    rng = np.random.default_rng(0)
    W = rng.standard_normal((30, 8)).astype(np.float32)
    turned = W @ np.linalg.qr(rng.standard_normal((8, 8)))[0].astype(np.float32) * 3
    order = rng.permutation(30)
    carried = W @ affine_map((codes(0), W), (codes(0)[:, order], turned[order]))
    found = best(cosines(carried.astype(np.float32), turned[order], at_least=0.4), 1)
    top = found.mutual
    assert np.array_equal(order[found.b[top]], found.a[top])
    assert np.count_nonzero(top) == 30


@pytest.mark.parametrize("kept", [0, 10, 1 << 20])
def test_candidates_are_the_best_of_either_side_with_their_places(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "KEPT", kept)
    rng = np.random.default_rng(1)
    dense = rng.permutation(20 * 15).reshape(20, 15).astype(np.float32) / 300
    dense[3] = 0.0
    dense[4, :3] = 0.9  # ties go to the lower number

    def entries() -> Iterable[Entries]:
        for row in range(20):
            columns = np.flatnonzero(dense[row] > 0.2).astype(np.int32)
            yield np.full(len(columns), row, np.int32), columns, dense[row, columns]

    found = best(entries(), 2)
    ranks_ab = np.argsort(np.argsort(-dense, axis=1, kind="stable"), axis=1)
    ranks_ba = np.argsort(np.argsort(-dense, axis=0, kind="stable"), axis=0)
    wanted = (dense > 0.2) & ((ranks_ab < 2) | (ranks_ba < 2))
    assert set(zip(found.a.tolist(), found.b.tolist(), strict=True)) == set(zip(*map(list, np.nonzero(wanted)), strict=True))
    for a, b, score, ab, ba in zip(found.a, found.b, found.score, found.rank_ab, found.rank_ba, strict=True):
        assert score == dense[a, b]
        assert ab == (ranks_ab[a, b] if ranks_ab[a, b] < 2 else -1)
        assert ba == (ranks_ba[a, b] if ranks_ba[a, b] < 2 else -1)
    assert np.all(np.diff(found.a) >= 0)
    assert found.mutual.any()


def test_nothing_matches_nothing() -> None:
    empty = sparse.csr_matrix((10, 5), dtype=np.float32)
    found = best(correlations(empty, empty, min_active=1, at_least=0.3), 5)
    assert len(found.a) == len(found.mutual) == 0
