"""Bounded lists against brute force over everything that was seen."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from harness.whitebox.features.top_activations import Firings, TopActivations

D_SAE, LABELS = 7, 12


def firings(n: int, seed: int = 0, labels: int = LABELS, d_sae: int = D_SAE) -> Firings:
    """Random activations with many ties, in the order of the text."""
    rng = np.random.default_rng(seed)
    return Firings(
        features=rng.integers(0, d_sae, n).astype(np.int32),
        labels=rng.integers(0, labels, n).astype(np.int32),
        values=rng.integers(1, 30, n).astype(np.float32),
        spans=np.stack((np.arange(n), np.arange(n) % 50, np.arange(n) % 50 + 3), axis=1).astype(np.int32),
    )


def brute(found: Firings, limit: int) -> list[tuple[int, int, float, int]]:
    """(feature, label, value, document), best first: each label's largest value, at the earliest place that has it."""
    best: dict[tuple[int, int], tuple[float, int]] = {}
    for feature, label, value, document in zip(
        found.features.tolist(), found.labels.tolist(), found.values.tolist(), found.spans[:, 0].tolist(), strict=True
    ):
        if value > best.get((feature, label), (0.0, 0))[0]:
            best[feature, label] = (value, document)
    rows = []
    for wanted in range(D_SAE):
        own = [(f, label, *best[f, label]) for f, label in best if f == wanted]
        rows += sorted(own, key=lambda row: (-row[2], row[1]))[:limit]
    return rows


def rows(found: Firings) -> list[tuple[int, int, float, int]]:
    columns = (found.features, found.labels, found.values, found.spans[:, 0])
    return list(zip(*(column.tolist() for column in columns), strict=True))


@pytest.mark.parametrize("limit", [1, 3, 100])
@pytest.mark.parametrize(("cut", "buffer"), [(1, 1), (7, 50), (1000, 1 << 20), (60, 1)])
def test_what_is_kept_is_what_brute_force_finds_however_the_stream_is_cut(limit: int, cut: int, buffer: int) -> None:
    found = firings(600)
    top = TopActivations(D_SAE, limit, buffer=buffer)
    for start in range(0, len(found), cut):
        top.add(found.take(np.arange(start, min(start + cut, len(found)))))
    assert rows(top.best()) == brute(found, limit)
    assert rows(top.best()) == brute(found, limit)  # asking takes nothing away


def test_a_list_can_grow_after_it_was_asked_for() -> None:
    found = firings(400, seed=3)
    top = TopActivations(D_SAE, 4)
    top.add(found.take(np.arange(200)))
    assert rows(top.best()) == brute(found.take(np.arange(200)), 4)
    top.add(found.take(np.arange(200, 400)))
    assert rows(top.best()) == brute(found, 4)


def test_ranks_count_within_a_feature() -> None:
    top = TopActivations(D_SAE, 3)
    top.add(firings(300))
    assert top.best().ranks.tolist() == [0, 1, 2] * D_SAE
    assert TopActivations(D_SAE, 3).best().ranks.tolist() == []


def peak(n_batches: int) -> int:
    """Bytes held at the most while so many batches of ever new labels go by."""
    tracemalloc.start()
    top = TopActivations(64, 5, buffer=2000)
    for number in range(n_batches):
        batch = firings(1000, seed=number, labels=1 << 30, d_sae=64)
        top.add(batch)
    top.best()
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return held


def test_memory_does_not_grow_with_the_text() -> None:
    assert peak(200) < 1.1 * peak(20)
