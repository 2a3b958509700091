"""Segments of text that two tokenizers cut differently, against a walk over characters."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from harness.errors import UsageError
from harness.whitebox.sharing import alignment
from harness.whitebox.sharing.alignment import align, pooled

Rows = list[tuple[int, int, int]]


def tokens_of(rng: np.random.Generator, lengths: list[int], *, missing: float = 0.0, after: int | None = None) -> np.ndarray:
    """Random tokens of 1 to 4 characters, some sharing a character with the next, of documents of these lengths; some are
    missing, and all behind the first `after`."""
    rows: Rows = []
    for document, length in enumerate(lengths):
        start = 0
        while start < length:
            end = min(start + int(rng.integers(1, 5)), length)
            rows.append((document, start, end))
            start = end - 1 if end - start > 1 and rng.random() < 0.1 else end
    rows = [row for row in rows[:after] if rng.random() >= missing]
    return np.array(rows, np.int32).reshape(-1, 3)


def by_characters(a: np.ndarray, b: np.ndarray) -> list[tuple[set[int], set[int]]]:
    """For each segment the rows of both, found by looking at every character of every document."""
    found = []
    for document in sorted({*a[:, 0].tolist(), *b[:, 0].tolist()} - {-1}):
        ends = [[(n, s, e) for n, (d, s, e) in enumerate(spans.tolist()) if d == document] for spans in (a, b)]
        last = max(e for rows in ends for _, _, e in rows)
        covered = [{c for _, s, e in rows for c in range(s, e)} for rows in ends]
        before = 0
        for place in range(1, last + 1):
            ended = [any(e == place for _, _, e in rows) for rows in ends]
            across = [any(s < place < e for _, s, e in rows) for rows in ends]
            if not all(ended) or any(across):
                continue
            if all(set(range(before, place)) <= known for known in covered):
                found.append(tuple({n for n, _, e in rows if before < e <= place} for rows in ends))
            before = place
    return found


@pytest.mark.parametrize("seed", range(12))
def test_segments_are_those_that_a_walk_over_characters_finds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 60, size=8).tolist()
    a, b = tokens_of(rng, lengths), tokens_of(rng, lengths)
    if seed % 3:  # tokens that a source left out, and a text that one of them broke off
        a, b = tokens_of(rng, lengths, missing=0.05), tokens_of(rng, lengths, after=70, missing=0.03)
    found = align(a, b)
    expected = by_characters(a, b)
    assert found.n == len(expected) > 0
    for number, rows in enumerate(expected):
        for segment, wanted in zip((found.a, found.b), rows, strict=True):
            assert set(np.flatnonzero(segment == number).tolist()) == wanted
    for segment in (found.a, found.b):
        kept = segment[segment >= 0]
        assert np.all(np.diff(kept) >= 0)
        assert set(kept.tolist()) == set(range(found.n))


def test_equal_tokens_are_a_segment_each_and_a_bos_is_in_none() -> None:
    spans = np.array([(-1, 0, 0), (0, 0, 3), (0, 3, 4), (-1, 0, 0), (1, 0, 2)], np.int32)
    found = align(spans, spans[[1, 2, 4]])
    assert (found.a.tolist(), found.b.tolist()) == ([-1, 0, 1, -1, 2], [0, 1, 2])


def test_a_space_that_belongs_to_no_token_is_not_missing_but_a_word_is() -> None:
    bare = np.array([(0, 0, 3), (0, 4, 7), (0, 8, 11), (0, 16, 19), (0, 20, 23)], np.int32)  # 12:15 is missing
    spaced = np.array([(0, 0, 3), (0, 3, 7), (0, 7, 11), (0, 11, 15), (0, 15, 19), (0, 19, 23)], np.int32)
    found = align(bare, spaced)
    assert found.a.tolist() == [0, 1, 2, -1, 3]
    assert found.b.tolist() == [0, 1, 2, -1, -1, 3]


def test_no_tokens_at_all_have_no_segments() -> None:
    none = np.zeros((0, 3), np.int32)
    assert align(none, np.array([(0, 0, 3)], np.int32)).n == 0
    assert align(none, none).n == 0


def test_spans_out_of_order_are_refused() -> None:
    with pytest.raises(UsageError, match="not in the order"):
        align(np.array([(1, 0, 2), (0, 0, 2)], np.int32), np.array([(0, 0, 2)], np.int32))


@pytest.mark.parametrize("at_once", [1, 3, 1000])
def test_a_segments_activation_is_the_largest_of_its_tokens(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignment, "SEGMENTS_AT_ONCE", at_once)
    rng = np.random.default_rng(0)
    codes = sparse.random(60, 12, density=0.3, format="csr", dtype=np.float32, random_state=1)
    segment = np.sort(rng.integers(0, 20, size=60))
    segment[rng.random(60) < 0.2] = -1
    found = pooled(codes, segment, 25)
    expected = np.zeros((25, 12), np.float32)
    for number in range(25):
        if np.any(segment == number):
            expected[number] = codes.toarray()[segment == number].max(axis=0)
    np.testing.assert_array_equal(found.toarray(), expected)
