"""A stage's output folder: each site written whole under a key, tables joined over sites, a manifest.

    <out>/sites/<site>/        a site's own tables, and `site.json`, written last
    <out>/<table>.parquet      the tables of all sites that the last run asked for, one after another
    <out>/manifest.json        what they were made from

A site whose `site.json` has the key of what is asked for is not computed again, so that a stage that was interrupted goes on
with the site it stood at. Owns files only; what a key must hold is the stage's own matter.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from harness.errors import FileFormatError
from harness.whitebox.sources.sites import Site
from harness.whitebox.usage import peak_memory_gb

NO_ROOM = "make room, or name another folder with --out; finished sites are kept"
SITES, RECORD, MANIFEST = "sites", "site.json", "manifest.json"

Record = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """What a site, or a stage, took: wall-clock seconds, and the most memory this process had held by its end (10^9 bytes)."""

    seconds: float
    peak_memory_gb: float

    def __str__(self) -> str:
        return f"{self.seconds:.1f} s, peak memory {self.peak_memory_gb:.2f} GB"


def stopwatch() -> Callable[[], Used]:
    """Start a clock; what it returns reads it."""
    started = time.perf_counter()
    return lambda: Used(seconds=time.perf_counter() - started, peak_memory_gb=peak_memory_gb())


def site_folder(out: Path, site: Site) -> Path:
    """Where `site` lies in a stage's folder."""
    return out / SITES / str(site)


def finished(folder: Path, key: Mapping[str, Any], name: str = RECORD) -> Record | None:
    """The record of a site (or of a part of it, `name`) that is done under this key, else None."""
    try:
        record = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("key") == json.loads(json.dumps(key)) else None


@contextmanager
def building(folder: Path) -> Iterator[Path]:
    """A scratch folder that takes the place of `folder` when the block ends well, and is left behind for the next try else."""
    scratch = folder.with_name(f".{folder.name}")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    yield scratch
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)


@contextmanager
def whole(final: Path) -> Iterator[Path]:
    """A temporary name beside `final`, renamed to it when the block ends well."""
    path = final.with_name(f".{final.name}")
    yield path
    os.replace(path, final)


def write_json(path: Path, data: Any) -> None:
    """`data` as `path`, whole or not at all."""
    with whole(path) as part:
        part.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_table(path: Path, rows: pa.Table) -> None:
    """`rows` as `path`, whole or not at all."""
    with whole(path) as part:
        pq.write_table(rows, part, compression="zstd")


def join(parts: Sequence[Path], schema: pa.Schema, out: Path) -> None:
    """The tables `parts` one after another as `out`, a row group at a time."""
    with whole(out) as path, pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for part in parts:
            with pq.ParquetFile(part) as file:
                for batch in file.iter_batches():
                    writer.write_batch(batch.cast(schema))


def read_manifest(folder: Path, *, made_by: str) -> Record:
    """The manifest of a finished stage; raises FileFormatError whose hint is `made_by`, the command that makes one."""
    path = folder / MANIFEST
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise FileFormatError(str(folder), f"no {MANIFEST} there: the stage has not finished", hint=made_by) from exc
    except (OSError, ValueError) as exc:
        raise FileFormatError(str(path), f"cannot be read: {exc}", hint=made_by) from exc
    if not isinstance(data, dict):
        raise FileFormatError(str(path), "expected one JSON object", hint=made_by)
    return data


def versions(*names: str) -> dict[str, str]:
    """Versions of the packages that a stage's numbers depend on, ours first."""
    return {name: importlib.metadata.version(name) for name in ("transfer-harness", *names)}
