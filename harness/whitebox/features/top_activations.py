"""Where each feature fires most, kept in bounded memory while text streams by.

Owns the bounded lists only: what a label is (a token, a document), and what is made of the places, is the caller's matter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BUFFER = 1 << 20
"""Rows that wait before they are merged: a merge sorts these and all that is kept."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Firings:
    """Activations of features: `features`, `labels` (n,) int32, `values` (n,) float32, `spans` (n, 3) int32 (see `packing`)."""

    features: NDArray[np.int32]
    labels: NDArray[np.int32]
    values: NDArray[np.float32]
    spans: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.features)

    def take(self, chosen: NDArray[np.integer] | NDArray[np.bool_]) -> Firings:
        """Some of the rows, by number or by mask."""
        return Firings(
            features=self.features[chosen], labels=self.labels[chosen], values=self.values[chosen], spans=self.spans[chosen]
        )

    @property
    def ranks(self) -> NDArray[np.int64]:
        """The place of each row among those of its feature, from 0; rows of a feature must lie together."""
        number = np.arange(len(self))
        first = np.ones(len(self), bool)
        first[1:] = self.features[1:] != self.features[:-1]
        return number - np.maximum.accumulate(np.where(first, number, 0))


class TopActivations:
    """For each of `d_sae` features the `limit` labels with the largest activations, each label with its largest one.

    Where activations are equal, the earlier place speaks for a label and the lower label comes first: what is kept does not
    depend on how the stream is cut. Memory: at most d_sae * limit + BUFFER rows and one call's, twice while they are merged.
    """

    def __init__(self, d_sae: int, limit: int, *, buffer: int = BUFFER) -> None:
        self._limit = limit
        self._buffer = buffer
        self._kept = _empty()
        self._waiting: list[Firings] = []
        self._n_waiting = 0
        self._floor = np.zeros(d_sae, np.float32)

    def add(self, found: Firings) -> None:
        """Take the activations of some more text, in its order."""
        found = found.take(found.values >= self._floor[found.features])
        self._waiting.append(found)
        self._n_waiting += len(found)
        if self._n_waiting >= self._buffer:
            self._merge()

    def best(self) -> Firings:
        """What is kept: by feature, the largest activation first."""
        self._merge()
        return self._kept

    def _merge(self) -> None:
        """Bring what waits and what is kept down to the limits, and raise the floors."""
        if not self._waiting:
            return
        both = _joined([self._kept, *self._waiting])  # in the order of the text: the sorts below are stable
        self._waiting, self._n_waiting = [], 0
        key = both.features.astype(np.int64) << 32 | both.labels
        order = np.lexsort((-both.values, key))
        key = key[order]
        distinct = both.take(order[np.append(True, key[1:] != key[:-1])[: len(key)]])
        ranked = distinct.take(np.lexsort((-distinct.values, distinct.features)))
        ranks = ranked.ranks
        self._kept = ranked.take(ranks < self._limit)
        full = ranks == self._limit - 1
        self._floor[ranked.features[full]] = ranked.values[full]


def _empty() -> Firings:
    none = np.empty(0, np.int32)
    return Firings(features=none, labels=none, values=np.empty(0, np.float32), spans=np.empty((0, 3), np.int32))


def _joined(parts: list[Firings]) -> Firings:
    return Firings(
        features=np.concatenate([part.features for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        values=np.concatenate([part.values for part in parts]),
        spans=np.concatenate([part.spans for part in parts]),
    )
