"""Numbers about a site's activations and its features' activations, summed up while text streams by."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from harness.whitebox.features.codes import Codes


class FeatureStatistics:
    """How often and how strongly each of `d_sae` features fires."""

    def __init__(self, d_sae: int) -> None:
        self.n_rows = 0
        self.count = np.zeros(d_sae, np.int64)
        self.largest = np.zeros(d_sae, np.float32)
        self._total = np.zeros(d_sae)

    def add(self, codes: Codes) -> None:
        """Take the codes of some more rows."""
        d_sae = len(self.count)
        self.n_rows += codes.n_rows
        self.count += np.bincount(codes.features, minlength=d_sae)
        self._total += np.bincount(codes.features, weights=codes.values, minlength=d_sae)
        np.maximum.at(self.largest, codes.features, codes.values)

    @property
    def density(self) -> NDArray[np.float64]:
        """Share of rows on which each feature fires, (d_sae,)."""
        return self.count / max(self.n_rows, 1)

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean activation over the rows on which a feature fires, 0 where it never does, (d_sae,)."""
        return self._total / np.maximum(self.count, 1)


class Moments:
    """Mean and covariance of activations. Products are taken of float32 differences from the first rows' mean, and summed in
    float64: the mean of a residual stream can be larger than all that varies, and would cost digits."""

    def __init__(self, d_model: int) -> None:
        self.n_rows = 0
        self._shift: Any = None
        self._sum = torch.zeros(d_model, dtype=torch.float64)
        self._products = torch.zeros(d_model, d_model, dtype=torch.float64)

    def add(self, activations: Any) -> None:
        """Take activations (n, d_model)."""
        if not len(activations):
            return
        if self._shift is None:
            self._shift = activations.double().mean(0).float()
        centred = activations - self._shift
        self.n_rows += len(centred)
        self._sum += centred.sum(0, dtype=torch.float64).cpu()
        self._products += (centred.T @ centred).double().cpu()

    def tensors(self) -> dict[str, NDArray[np.float32]]:
        """`mean` (d_model,) and `covariance` (d_model, d_model, divided by the number of rows), float32; zeros without rows."""
        n = max(self.n_rows, 1)
        mean = self._sum / n
        covariance = self._products / n - torch.outer(mean, mean)
        shift = torch.zeros_like(mean) if self._shift is None else self._shift.double().cpu()
        return {"mean": (mean + shift).float().numpy(), "covariance": covariance.float().numpy()}
