"""A list on another scale leaves a slope, a renormalised one an offset."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax

from harness.stats.distances import Repeats
from harness.stats.scaling import scaling


def listed(logits: np.ndarray, k: int = 20) -> Repeats:
    x = log_softmax(logits, axis=2)
    ids = np.argsort(-x, axis=2)[:, :, :k]
    return Repeats(ids=ids, logprobs=np.take_along_axis(x, ids, axis=2))


@pytest.fixture
def logits() -> np.ndarray:
    return np.repeat(3 * np.random.default_rng(3).standard_normal((1, 20, 200)), 2, axis=0)


@pytest.mark.parametrize("temperature", [0.5, 0.7, 1.3])
def test_a_temperature_is_the_slope(temperature: float, logits: np.ndarray) -> None:
    found = scaling(listed(logits / temperature), listed(logits))
    assert found.slope == pytest.approx(1 / temperature - 1)
    assert found.explained == pytest.approx(1)
    assert found.common == 1


def test_a_renormalised_list_is_an_offset_alone(logits: np.ndarray) -> None:
    b = listed(logits)
    missing = np.log(np.exp(b.logprobs).sum(axis=2, keepdims=True))
    found = scaling(Repeats(ids=b.ids, logprobs=b.logprobs - missing), b)
    assert found.slope == pytest.approx(0, abs=1e-12)
    assert found.explained is None
    assert found.offset == pytest.approx(-missing.mean())


def test_noise_is_not_explained_by_a_slope(logits: np.ndarray) -> None:
    rng = np.random.default_rng(4)
    found = scaling(listed(logits + 0.2 * rng.standard_normal((1, *logits.shape[1:]))), listed(logits))
    assert found.explained is not None
    assert found.explained < 0.3


def test_lists_without_common_tokens_have_no_scale(logits: np.ndarray) -> None:
    b = listed(logits)
    found = scaling(Repeats(ids=b.ids + 1000, logprobs=b.logprobs), b)
    assert (found.slope, found.explained, found.offset, found.common) == (None, None, None, 0)
