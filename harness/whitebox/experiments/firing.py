"""Where features fire in text: a context cut behind the token it fires on; and what another model computes there.

A context is text and the characters of a token. It is tokenised by whichever model reads it: the token that fires is the last
one that overlaps these characters. What follows it is dropped, since a causal model's activation there does not depend on it.

A model that has no dictionary has no decoder directions. In their place stands, for each feature, the difference in means:
the mean of the model's activations at the feature's firing positions minus the mean over all positions of all contexts that
are read (Marks and Tegmark 2023 call such a direction a mass-mean probe).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from harness.errors import UsageError
from harness.whitebox.sources.activations import BATCH, CONTEXT, batched, read
from harness.whitebox.sources.models import LocalModel
from harness.whitebox.sources.sites import Site

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Elsewhere:
    """Directions in a model without a dictionary, unit vectors (d_model,) by feature.

    `std`: the square root of the mean variance of the site's coordinates over the positions read.
    """

    directions: dict[int, NDArray[np.float32]]
    std: float


def firings(contexts: pa.Table, features: Iterable[int], model: LocalModel) -> dict[int, list[Ids]]:
    """The contexts of each of `features` as token ids that end with the token it fires on, strongest first.

    A context in which that token would be the first of all, where a model keeps its attention sink, is left out.
    """
    wanted = set(features)
    rows = contexts.filter(pa.array(np.isin(contexts["feature"].to_numpy(), list(wanted)))).to_pylist()
    rows.sort(key=lambda row: (row["feature"], row["rank"]))
    head = () if model.bos is None else (model.bos,)
    found: dict[int, list[Ids]] = {feature: [] for feature in sorted(wanted)}
    encodings = model.tokenizer.encode_batch([row["text"] for row in rows], add_special_tokens=False)
    for row, encoding in zip(rows, encodings, strict=True):
        covering = [at for at, (start, end) in enumerate(encoding.offsets) if start < row["end"] and end > row["start"]]
        if covering and (head or covering[-1]):
            ids = encoding.ids[: covering[-1] + 1]
            found[row["feature"]].append((*head, *ids[len(head) - CONTEXT :]))
    return found


def elsewhere(model: Any, site: Site, contexts: dict[int, list[Ids]]) -> Elsewhere:
    """The differences in means at `site` of `model`; features without a context are left out.

    The first position of a context counts nowhere. Raises UsageError where nothing can be read.
    """
    owners: dict[Ids, list[int]] = {}
    for feature, listed in contexts.items():
        for ids in listed:
            owners.setdefault(ids, []).append(feature)
    if not owners:
        raise UsageError(f"{site}: no feature has a context to read", hint="make the catalogue from more text")
    width = int(model.config.get_text_config().hidden_size)
    sums = {feature: np.zeros(width) for feature, listed in contexts.items() if listed}
    n, total, square = 0, np.zeros(width), np.zeros(width)
    order = sorted(owners, key=len)
    for part in batched(order, BATCH):
        for ids, x in zip(part, _read(model, site, part), strict=True):
            n, total, square = n + len(x), total + x.sum(0), square + (x**2).sum(0)
            for feature in owners[ids]:
                sums[feature] += x[-1]
    mean = total / n
    raw = {feature: value / len(contexts[feature]) - mean for feature, value in sums.items()}
    directions = {f: (v / np.linalg.norm(v)).astype(np.float32) for f, v in raw.items() if np.linalg.norm(v) > 0}
    return Elsewhere(directions=directions, std=float(np.sqrt(np.maximum(square / n - mean**2, 0).mean())))


def _read(model: Any, site: Site, part: Sequence[Ids]) -> list[NDArray[np.float64]]:
    """The activations of each context behind its first position, (length - 1, d_model) each; padded on the right."""
    longest = max(map(len, part))
    padded = [[*ids, *[ids[-1]] * (longest - len(ids))] for ids in part]
    (found,) = read(model, [padded], [site])
    x = found[site].reshape(len(part), longest - 1, -1).to(torch.float64).cpu().numpy()
    return [rows[: len(ids) - 1] for rows, ids in zip(x, part, strict=True)]
