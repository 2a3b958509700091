"""Exact cosines of all pairs of unit rows, a tile at a time: who is nearest, and which pairs lie above a threshold.

A tile is a run of rows against itself and all later rows, so that every pair is computed once and half of the square
matrix never is. NumPy on the CPU, torch on a GPU: the two differ in nothing but rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]

TILE_CELLS = 1 << 24
"""Cosines of one tile: 64 MB, and 0.5 GB where every one of them is kept."""

MAX_ROWS = 1024

Emit = Callable[[Indices, Indices, Floats], None]
"""Takes the pairs of one tile: first and second row (first < second, in dictionary order), cosine."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scan:
    """`nearest` (n,): each row's nearest other row, the first of equals, -1 where there is none; `cosine` (n,): how near, NaN.

    `above` (n_levels,): pairs with a cosine above each level.
    """

    nearest: Indices
    cosine: Floats
    above: Indices


class Tile(Protocol):
    """The cosines of rows `start:stop` with rows `start:n`, on some device."""

    def fill(self, start: int, stop: int) -> None:
        """Compute them; a row's cosine with itself counts as minus infinity."""

    def rows(self) -> tuple[Floats, Indices]:
        """Each row's largest cosine, and the first column that has it, counted from `start`."""

    def columns(self, best: Floats) -> tuple[Indices, Floats, Indices]:
        """The columns beyond the tile's own rows whose largest cosine exceeds `best`: which, how large, in which row."""

    def upper(self) -> None:
        """Put minus infinity wherever the column is not later than the row."""

    def count(self, level: float) -> int:
        """How many cosines exceed `level`."""

    def above(self, level: float) -> tuple[Indices, Indices, Floats]:
        """Row, column (both counted from `start`) and cosine of those that exceed `level`, in order."""


class NumpyTile:
    """A tile in memory that is allocated once."""

    def __init__(self, unit: Floats, n_rows: int) -> None:
        self._unit = unit
        self._memory = np.empty(min(n_rows, len(unit)) * len(unit), np.float32)
        self._cells = np.empty((0, 0), np.float32)

    def fill(self, start: int, stop: int) -> None:
        shape = (stop - start, len(self._unit) - start)
        self._cells = self._memory[: shape[0] * shape[1]].reshape(shape)
        np.matmul(self._unit[start:stop], self._unit[start:].T, out=self._cells)
        np.fill_diagonal(self._cells, -np.inf)

    def rows(self) -> tuple[Floats, Indices]:
        column = self._cells.argmax(axis=1)
        return self._cells[np.arange(len(column)), column], column

    def columns(self, best: Floats) -> tuple[Indices, Floats, Indices]:
        later = self._cells[:, len(self._cells) :]
        largest = later.max(axis=0)
        better = np.flatnonzero(largest > best)
        return better, largest[better], later[:, better].argmax(axis=0)

    def upper(self) -> None:
        n = len(self._cells)
        self._cells[:, :n][np.tril_indices(n)] = -np.inf

    def count(self, level: float) -> int:
        return int(np.count_nonzero(self._cells > np.float32(level)))

    def above(self, level: float) -> tuple[Indices, Indices, Floats]:
        flat = np.flatnonzero(self._cells.ravel() > np.float32(level))
        row, column = np.divmod(flat, self._cells.shape[1])
        return row, column, self._cells.ravel()[flat]


class TorchTile:
    """A tile on a device of torch's; only what was asked for comes back."""

    def __init__(self, unit: Floats, device: str) -> None:
        import torch

        self._torch = torch
        self._unit = torch.from_numpy(unit).to(device)
        self._cells: Any = None

    def fill(self, start: int, stop: int) -> None:
        self._cells = self._unit[start:stop] @ self._unit[start:].T
        self._cells.fill_diagonal_(-float("inf"))

    def rows(self) -> tuple[Floats, Indices]:
        cosine, column = self._cells.max(dim=1)
        return cosine.cpu().numpy(), column.cpu().numpy()

    def columns(self, best: Floats) -> tuple[Indices, Floats, Indices]:
        later = self._cells[:, len(self._cells) :]
        largest, row = later.max(dim=0)
        better = np.flatnonzero(largest.cpu().numpy() > best)
        return better, largest.cpu().numpy()[better], row.cpu().numpy()[better]

    def upper(self) -> None:
        n = len(self._cells)
        ones = self._torch.ones(n, n, dtype=self._torch.bool, device=self._cells.device)
        self._cells[:, :n].masked_fill_(ones.tril(), -float("inf"))

    def count(self, level: float) -> int:
        return int(self._torch.count_nonzero(self._cells > np.float32(level).item()))

    def above(self, level: float) -> tuple[Indices, Indices, Floats]:
        row, column = (self._cells > np.float32(level).item()).nonzero(as_tuple=True)
        return row.cpu().numpy(), column.cpu().numpy(), self._cells[row, column].cpu().numpy()


def tile_rows(n: int) -> int:
    """How many rows a tile of n columns has."""
    return max(min(TILE_CELLS // max(n, 1), MAX_ROWS, n), 1)


def make_tile(unit: Floats, n_rows: int, device: str) -> Tile:
    """A tile on `device`: `cpu`, or what torch calls a GPU."""
    return NumpyTile(unit, n_rows) if device == "cpu" else TorchTile(unit, device)


def scan(unit: Floats, threshold: float, levels: Sequence[float], emit: Emit, tile: Tile | None = None) -> Scan:
    """All pairs of the rows of `unit` (n, d) once: `emit` gets those above `threshold`, in order of (first, second).

    Rows are taken to have unit length. Memory: one tile, and what `emit` keeps.
    """
    n = len(unit)
    n_rows = tile_rows(n)
    tile = NumpyTile(unit, n_rows) if tile is None else tile
    nearest = np.full(n, -1, np.int64)
    cosine = np.full(n, -np.inf, np.float32)
    above = np.zeros(len(levels), np.int64)
    for start in range(0, n, n_rows):
        stop = min(start + n_rows, n)
        tile.fill(start, stop)
        largest, column = tile.rows()
        better = largest > cosine[start:stop]  # earlier tiles hold smaller numbers, which win among equals
        cosine[start:stop][better] = largest[better]
        nearest[start:stop][better] = start + column[better]
        if stop < n:
            columns, largest, row = tile.columns(cosine[stop:])
            cosine[stop + columns], nearest[stop + columns] = largest, start + row
        tile.upper()
        first, second, kept = tile.above(threshold)
        above += [int(np.count_nonzero(kept > np.float32(x))) if x >= threshold else tile.count(x) for x in levels]
        if len(kept):
            emit(start + first, start + second, np.minimum(kept, np.float32(1)))
    cosine[nearest < 0] = np.nan
    return Scan(nearest=nearest, cosine=np.minimum(cosine, np.float32(1)), above=above)
