"""A catalogue made from Neuronpedia's exports alone, without running a model: tables and glosses, no codes and no moments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from harness.paths import make_dir, writing
from harness.whitebox.features.catalogue import CONTEXTS, TOKENS
from harness.whitebox.features.catalogue_tables import context_table, feature_table, token_table
from harness.whitebox.features.cataloguing import publish_tables, site_entry, site_row
from harness.whitebox.features.glossing import GlossPlan, ReadSite, check_plan, gloss_sites
from harness.whitebox.features.neuronpedia import Export, activation_batches, feature_numbers, find_export
from harness.whitebox.sources.dictionaries import Dictionary, Located, load, locate
from harness.whitebox.stage import (
    MANIFEST,
    NO_ROOM,
    RECORD,
    Record,
    building,
    finished,
    site_folder,
    stopwatch,
    versions,
    write_json,
)

FORMAT = 1
"""Raised when the files of a finished site change their meaning: older ones are then made again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportJob:
    """Whose catalogue to make from the exports under `exports`, and where to."""

    dictionaries: tuple[Dictionary, ...]
    exports: Path
    out: Path
    gloss: GlossPlan = field(default_factory=GlossPlan)


def catalogue_from_exports(job: ExportJob, note: Callable[[str], None]) -> list[dict[str, Any]]:
    """Catalogue every dictionary of the job and write the output folder; a row of numbers for each site.

    Finished sites are kept. Raises UsageError and FileFormatError for exports that are not there or do not fit.
    """
    located = {dictionary.site: locate(dictionary) for dictionary in job.dictionaries}
    check_plan(job.gloss, located.values())
    exports = {site: find_export(job.exports, found) for site, found in located.items()}
    source = job.dictionaries[0].source
    keys = {
        site: {"format": FORMAT, "source": source, "site": str(site), "sha256": export.digest("features", "activations")}
        for site, export in exports.items()
    }
    make_dir(job.out)
    sites: dict[Any, ReadSite] = {}
    records: dict[Any, Record] = {}
    for site, key in keys.items():
        folder = site_folder(job.out, site)
        record = finished(folder, key)
        if record is None:
            with writing(job.out, hint=NO_ROOM):
                record = _read_site(located[site], exports[site], key, folder)
            note(f"{source} {site}: {record['seconds']:.1f} s, peak memory {record['peak_memory_gb']:.2f} GB")
        else:
            note(f"{source} {site}: read before, kept")
        records[site] = record
        sites[site] = ReadSite(folder=folder, located=located[site], key=key)
    glossed = gloss_sites(job.gloss, sites, note)
    with writing(job.out, hint=NO_ROOM):
        publish_tables(job.out, list(keys))
        for name in ("spans.safetensors", "covariances.safetensors"):
            (job.out / name).unlink(missing_ok=True)
        every = (*records.values(), *glossed.values())
        manifest = {
            "stage": "catalogue",
            "source": source,
            "model": {"name": source, "folder": None, "sha256": None, "bos": None},
            "corpus": {"source": "Neuronpedia's exports", "licence": None, "sha256": None, "documents": None},
            "n_tokens": None,
            "sites": {str(site): site_entry(found) for site, found in located.items()},
            "gloss": job.gloss.told(),
            "versions": versions("numpy", "safetensors", "pyarrow"),
            "seconds": sum(record["seconds"] for record in every),
            "peak_memory_gb": max(record["peak_memory_gb"] for record in every),
        }
        write_json(job.out / MANIFEST, manifest)
    return [site_row(records[site], glossed[site]) for site in keys]


def _read_site(located: Located, export: Export, key: Record, folder: Path) -> Record:
    """One site's tables from its export into `folder`, which appears whole or not at all."""
    clock = stopwatch()
    dictionary = located.dictionary
    d_sae = load(located).d_sae
    density, largest = feature_numbers(export, d_sae)
    labels = (dictionary.source, dictionary.site)
    fires = np.zeros(d_sae, bool)
    skipped = 0
    with building(folder) as scratch:
        (folder.parents[1] / MANIFEST).unlink(missing_ok=True)  # it speaks of the sites as they were
        with (
            pq.ParquetWriter(scratch / "tokens.parquet", TOKENS, compression="zstd") as tokens,
            pq.ParquetWriter(scratch / "contexts.parquet", CONTEXTS, compression="zstd") as contexts,
        ):
            n_documents = 0
            for batch in activation_batches(export, d_sae):
                tokens.write_table(token_table(*labels, batch.tokens, batch.text))
                contexts.write_table(context_table(*labels, batch.contexts, batch.text, first_document=n_documents))
                n_documents += len(batch.text.documents)
                skipped += batch.n_skipped
                fires[batch.contexts.features] = True
        table = feature_table(*labels, [density, largest, np.full(d_sae, np.nan)])
        pq.write_table(table, scratch / "features.parquet", compression="zstd")
        used = asdict(clock())
        statistics = {
            "source": dictionary.source,
            "site": str(dictionary.site),
            "sha256": key["sha256"],
            "d_sae": d_sae,
            "n_tokens": None,
            "n_skipped": skipped,
            "n_silent": int((~fires).sum()),
            "l0": float(np.nansum(density)),
            "median_density": float(np.nanmedian(density)) if np.isfinite(density).any() else None,
            **used,
        }
        record = {"key": key, "statistics": statistics, **used}
        write_json(scratch / RECORD, record)
    return record
