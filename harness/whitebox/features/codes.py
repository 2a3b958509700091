"""Feature activations of a site's dictionary, sparse: opening a dictionary with SAELens, encoding, and keeping what was found.

A dictionary that `train-sae` made leaves out tokens whose norm is above its limit (see `training`): they have no codes here
either, and do not count in the moments.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from harness.errors import FileFormatError
from harness.whitebox.sources.dictionaries import Located
from harness.whitebox.training.training import MANIFEST, import_sae_lens

CELLS = 1 << 24
"""Of the dense feature activations that exist at once: 64 MB of float32."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Codes:
    """Activations above zero: `rows`, `features` (n,) int32, `values` (n,) float32, by row and then by feature."""

    rows: NDArray[np.int32]
    features: NDArray[np.int32]
    values: NDArray[np.float32]
    n_rows: int


class Encoder:
    """A dictionary ready to encode: `encode` of `sae` gives (n, d_sae) for activations (n, d_model)."""

    def __init__(self, sae: Any, *, norm_limit: float = math.inf, cells: int = CELLS) -> None:
        self.norm_limit = norm_limit
        self.d_sae, self.d_model = (int(size) for size in sae.W_dec.shape)
        self._sae = sae
        self._rows = max(1, cells // self.d_sae)

    def fit(self, activations: Any) -> Any:
        """Which rows of (n, d_model) activations the dictionary speaks of, (n,) bool."""
        return activations.norm(dim=1) <= self.norm_limit

    def encode(self, activations: Any) -> Codes:
        """The codes of (n, d_model) float32 activations, a slice of rows at a time; none for rows that do not fit."""
        parts: list[tuple[Any, Any, Any]] = []
        with torch.no_grad():
            for start in range(0, len(activations), self._rows):
                x = activations[start : start + self._rows]
                dense = self._sae.encode(x)
                rows, features = ((dense > 0) & self.fit(x)[:, None]).nonzero(as_tuple=True)
                parts.append((rows + start, features, dense[rows, features]))
        rows, features, values = (torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True))
        return Codes(
            rows=rows.astype(np.int32),
            features=features.astype(np.int32),
            values=values.astype(np.float32),
            n_rows=len(activations),
        )


class KeptCodes:
    """The codes of the first `limit` rows, in compressed rows."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._n_rows = 0
        self._counts: list[NDArray[np.int64]] = []
        self._features: list[NDArray[np.int32]] = []
        self._values: list[NDArray[np.float32]] = []

    def add(self, codes: Codes) -> None:
        """Take the codes of the rows that follow."""
        wanted = min(codes.n_rows, self._limit - self._n_rows)
        if wanted <= 0:
            return
        kept = int(np.searchsorted(codes.rows, wanted))
        self._counts.append(np.bincount(codes.rows[:kept], minlength=wanted))
        self._features.append(codes.features[:kept].copy())
        self._values.append(codes.values[:kept].copy())
        self._n_rows += wanted

    def tensors(self) -> dict[str, NDArray[Any]]:
        """indptr (n_rows + 1,) int64, indices (n,) int32, values (n,) float32."""
        counts = np.concatenate([np.zeros(1, np.int64), *self._counts])
        return {
            "indptr": np.cumsum(counts, dtype=np.int64),
            "indices": np.concatenate([np.empty(0, np.int32), *self._features]),
            "values": np.concatenate([np.empty(0, np.float32), *self._values]),
        }


def open_encoder(located: Located) -> Encoder:
    """The dictionary, opened with SAELens in float32, in its present layout or the one before version 6.

    Raises MissingExtraError, and FileFormatError for what SAELens cannot load and for weights that are not finite.
    """
    sae_lens = import_sae_lens()
    folder = located.weights.parent
    try:
        sae = sae_lens.SAE.load_from_disk(folder, device="cpu", dtype="float32").eval()
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as exc:
        told = str(exc).strip().splitlines() or [type(exc).__name__]
        raise FileFormatError(
            str(folder), f"sae_lens cannot load it: {told[0]}", hint="save it with SAE.save_model of sae_lens"
        ) from exc
    for name, tensor in sae.state_dict().items():
        if not bool(torch.isfinite(tensor).all()):
            raise FileFormatError(
                str(located.weights),
                f"{name} has NaN or infinity",
                hint="the file is damaged, or its training diverged: fetch or train it again",
            )
    return Encoder(sae, norm_limit=float(training_record(folder).get("norm_limit", math.inf)))


def training_record(folder: Path) -> dict[str, Any]:
    """What `train-sae` wrote beside the dictionary in `folder`; empty where it did not train it."""
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
