"""Streamed numbers against NumPy on all rows at once."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from harness.whitebox.features.activation_statistics import FeatureStatistics, Moments  # noqa: E402
from harness.whitebox.features.codes import Codes  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


def test_moments_are_those_of_all_rows_even_far_from_zero() -> None:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((500, 6)) @ rng.standard_normal((6, 6)) + 3000).astype(np.float32)
    moments = Moments(6)
    for part in (x[:7], x[7:7], x[7:450], x[450:]):
        moments.add(torch.tensor(part))
    found = moments.tensors()
    np.testing.assert_allclose(found["mean"], x.astype(np.float64).mean(0), rtol=1e-6)
    np.testing.assert_allclose(found["covariance"], np.cov(x.astype(np.float64).T, bias=True), rtol=1e-4, atol=1e-4)
    assert moments.n_rows == 500


def test_without_rows_the_moments_are_zero() -> None:
    assert not any(tensor.any() for tensor in Moments(3).tensors().values())


def test_density_largest_and_mean_activation_are_those_of_the_dense_matrix() -> None:
    rng = np.random.default_rng(1)
    dense = (rng.random((90, 5)) * (rng.random((90, 5)) < 0.3)).astype(np.float32)
    dense[:, 4] = 0
    statistics = FeatureStatistics(5)
    for part in (dense[:40], dense[40:]):
        row, feature = part.nonzero()
        statistics.add(
            Codes(rows=row.astype(np.int32), features=feature.astype(np.int32), values=part[row, feature], n_rows=len(part))
        )
    np.testing.assert_allclose(statistics.density, (dense > 0).mean(0))
    np.testing.assert_allclose(statistics.largest, dense.max(0))
    fires = np.maximum((dense > 0).sum(0), 1)
    np.testing.assert_allclose(statistics.mean, dense.sum(0) / fires, rtol=1e-6)
