"""Finished runs, read back by the verbs that judge runs. Owns what makes a folder a run and its tables whole; what the columns
mean stands with what writes them (`parquet`, `harness.evals.score`)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from harness.config import read_text
from harness.errors import FileFormatError, UsageError
from harness.evals.measures import ALL
from harness.evals.score import Columns
from harness.reports.run import MANIFEST, SUMMARY

TRIALS, OBSERVATIONS = "trials.parquet", "observations.parquet"

_MANIFEST_KEYS = ("run_id", "eval", "pack", "target", "seed", "sizes", "arms", "concepts", "counts")
_SUMMARY_KEYS = ("run_id", "target", "primary", "cells", "contrasts")
_AGAIN = "run it again: answers that are journalled are not asked twice"


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedRun:
    """A run's folder with both its records as they were written.

    Columns come in the plan's order, of one concept or of all: numbers and flags as float64, NaN where missing; text as str,
    "" where missing; lists as objects, each an array or None.
    """

    folder: Path
    manifest: dict[str, Any]
    summary: dict[str, Any]

    def trials(self, columns: Sequence[str], *, concept: str | None = None) -> Columns:
        """The named columns of `trials.parquet`; raises FileFormatError where the table is not the one that was written."""
        cells = [cell for cell in self.summary["cells"] if cell["concept"] != ALL]
        return _read(self.folder / TRIALS, columns, concept, n_rows=sum(cell["n_trials"] for cell in cells))

    def observations(self, columns: Sequence[str], *, concept: str | None = None) -> Columns:
        """The named columns of `observations.parquet`; raises FileFormatError like `trials`."""
        return _read(self.folder / OBSERVATIONS, columns, concept, n_rows=self.manifest["counts"]["planned"])


def read_run(folder: Path) -> FinishedRun:
    """The run in `folder`; raises UsageError where there is none, FileFormatError where its records were cut short or edited.

    The tables are read, and checked, when they are asked for.
    """
    missing = [name for name in (MANIFEST, SUMMARY) if not (folder / name).is_file()]
    if missing:
        raise UsageError(
            f"{folder}: no run, it has no {missing[0]}" if folder.is_dir() else f"{folder}: no such folder",
            hint="name a folder that `harness run` wrote, such as reports/<run-id>",
        )
    manifest = _read_record(folder / MANIFEST, _MANIFEST_KEYS)
    summary = _read_record(folder / SUMMARY, _SUMMARY_KEYS)
    for key in ("run_id", "target"):
        if manifest[key] != summary[key]:
            problem = f"key {key!r}: {summary[key]!r}, but {MANIFEST} says {manifest[key]!r}"
            raise FileFormatError(str(folder / SUMMARY), problem, hint="the files of two runs lie in one folder")
    return FinishedRun(folder=folder, manifest=manifest, summary=summary)


def _read_record(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    try:
        record = json.loads(read_text(path))
    except json.JSONDecodeError as exc:
        where = f"{path}:{exc.lineno}"
        raise FileFormatError(where, f"not valid JSON: {exc.msg} at column {exc.colno}", hint=_AGAIN) from exc
    if not isinstance(record, dict):
        raise FileFormatError(str(path), "a JSON object expected", hint=_AGAIN)
    for key in keys:
        if key not in record:
            raise FileFormatError(str(path), f"key {key!r} is missing", hint=_AGAIN)
    return record


def _read(path: Path, columns: Sequence[str], concept: str | None, *, n_rows: int) -> Columns:
    """`n_rows`: how many rows the whole file has if it is the one that was written."""
    with _parquet(path), pq.ParquetFile(path) as file:
        unknown = [name for name in columns if name not in file.schema_arrow.names]
        if unknown:
            raise FileFormatError(str(path), f"no column {unknown[0]!r}", hint=f"another version wrote it; {_AGAIN}")
        if file.metadata.num_rows != n_rows:
            raise FileFormatError(str(path), f"{file.metadata.num_rows:,} rows, but the run has {n_rows:,}", hint=_AGAIN)
        table = file.read(columns=list(columns)) if concept is None else _of_concept(file, columns, concept)
    return {name: _array(table.column(name).combine_chunks()) for name in columns}


def _of_concept(file: pq.ParquetFile, columns: Sequence[str], concept: str) -> pa.Table:
    """The concept's rows, a row group at a time: lists of a thousand tokens for all concepts would not fit into memory."""
    wanted = list(dict.fromkeys([*columns, "concept"]))
    parts = (file.read_row_group(group, columns=wanted) for group in range(file.num_row_groups))
    return pa.concat_tables(part.filter(pc.equal(part["concept"], concept)) for part in parts)


@contextmanager
def _parquet(path: Path) -> Iterator[None]:
    """What pyarrow and the system say against a file as FileFormatError."""
    try:
        yield
    except FileNotFoundError as exc:
        raise FileFormatError(str(path), "missing", hint=_AGAIN) from exc
    except (pa.ArrowException, OSError) as exc:
        problem = f"cannot be read as Parquet: {str(exc).splitlines()[0]}"
        raise FileFormatError(str(path), problem, hint=_AGAIN) from exc


def _array(column: pa.Array) -> Any:
    if pa.types.is_list(column.type):
        return column.to_numpy(zero_copy_only=False)
    if pa.types.is_string(column.type):
        encoded = column.dictionary_encode()
        words = np.array([*encoded.dictionary.to_pylist(), ""], np.str_)
        return words[pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False)]  # -1: the last word, which is empty
    return column.cast(pa.float64()).to_numpy(zero_copy_only=False)
