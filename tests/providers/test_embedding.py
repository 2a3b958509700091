"""Cosines with a lexicon, read from a safetensors file, against a plain computation on the whole matrix."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from harness.providers.embedding import Embedding, Similarity

N_VOCAB, D_MODEL = 40, 6
NAME = "model.embed_tokens.weight"


@pytest.fixture
def rows(tmp_path: Path) -> tuple[np.ndarray, Embedding]:
    matrix = np.random.default_rng(0).normal(size=(N_VOCAB, D_MODEL)).astype(np.float32)
    matrix[7] = 0
    save_file({NAME: matrix}, tmp_path / "model.safetensors")
    return matrix, Embedding(tmp_path / "model.safetensors", NAME)


def test_a_tokens_similarity_is_its_largest_cosine_with_the_lexicon(rows: tuple[np.ndarray, Embedding]) -> None:
    matrix, embedding = rows
    lexicon, ids = [3, 11, 29], np.array([[0, 3, 12], [29, 5, 39]])
    expected = [
        [
            max(float(matrix[i] @ matrix[j] / np.linalg.norm(matrix[i]) / np.linalg.norm(matrix[j])) for j in lexicon)
            for i in line
        ]
        for line in ids
    ]
    similarity = Similarity(embedding, np.array(lexicon))
    np.testing.assert_allclose(similarity.of(ids), expected, atol=1e-6)
    np.testing.assert_allclose(similarity.of(ids[::-1]), expected[::-1], atol=1e-6)


def test_padding_and_rows_of_zeros_are_similar_to_nothing(rows: tuple[np.ndarray, Embedding]) -> None:
    assert Similarity(rows[1], np.array([3])).of(np.array([-1, 7])).tolist() == [0, 0]


def test_lexicon_ids_beyond_the_matrix_are_left_out_and_an_empty_lexicon_is_similar_to_nothing(
    rows: tuple[np.ndarray, Embedding],
) -> None:
    _, embedding = rows
    with_extra, without = (Similarity(embedding, np.array(ids)).of(np.arange(5)) for ids in ([3, N_VOCAB + 4], [3]))
    assert with_extra.tolist() == without.tolist()
    assert Similarity(embedding, np.array([], int)).of(np.arange(3)).tolist() == [0, 0, 0]
