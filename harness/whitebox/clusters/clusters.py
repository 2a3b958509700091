"""Which features of a site mean alike, and how many meanings a neuron serves: clusters of glosses, cut at several similarities.

The output folder holds, joined over sites and in `sites/<site>/` for each site apart,

- `clusters.parquet`: source, site, feature, cut, cluster: at each cut the cluster of every feature that has a gloss, numbered
  in the order of their first features;
- `neurons.parquet`: source, site, cut, neuron, degree (distinct clusters linked), n_features (linked), band (null for the
  degree 0), expected (the degree that chance gives), super; a row for every neuron and cut;

for each site apart `linkage.safetensors`: `tree` (n - 1, 4) as in `linkage`, and `features` (n,), the feature of each of its
rows; and `manifest.json` with, for each site, the counts at each cut (`map_clusters` names them).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from safetensors.numpy import save_file

from harness.errors import UsageError
from harness.paths import make_dir, writing
from harness.providers.weights import sha256
from harness.whitebox.clusters import neighbour_graph
from harness.whitebox.clusters.linkage import Floats, Linkage, cut, exact_tree
from harness.whitebox.clusters.neighbour_graph import NEIGHBOURS, graph_tree
from harness.whitebox.clusters.neurons import NAMES, Degrees, Linking, band, degrees, links_of
from harness.whitebox.features.catalogue import Catalogue
from harness.whitebox.sources.sites import Site
from harness.whitebox.stage import (
    MANIFEST,
    NO_ROOM,
    RECORD,
    Record,
    building,
    finished,
    join,
    site_folder,
    stopwatch,
    versions,
    write_json,
    write_table,
)

FORMAT = 1
"""Raised when the files of a finished site change their meaning: older ones are then computed again."""

CUTS = (0.40, 0.30, 0.20, 0.15)
"""The published similarities."""

Method = Literal["exact", "graph"]

_TEXT = pa.dictionary(pa.int8(), pa.string())
_LABELS = [pa.field(name, _TEXT) for name in ("source", "site")]
CLUSTERS = pa.schema([*_LABELS, ("feature", pa.int32()), ("cut", pa.float64()), ("cluster", pa.int32())])
NEURONS = pa.schema(
    [
        *_LABELS,
        ("cut", pa.float64()),
        *((name, pa.int32()) for name in ("neuron", "degree", "n_features")),
        ("band", _TEXT),
        ("expected", pa.float64()),
        ("super", pa.bool_()),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How features are clustered and linked to neurons. `cuts`: similarities; `neighbours`: those of a feature in the graph."""

    linkage: Linkage = "average"
    method: Method = "exact"
    cuts: tuple[float, ...] = CUTS
    neighbours: int = NEIGHBOURS
    linking: Linking = field(default_factory=Linking)

    def __post_init__(self) -> None:
        if self.method == "graph" and self.linkage != "single":
            raise UsageError(
                f"a graph of nearest neighbours gives single linkage, not {self.linkage}",
                hint="add --linkage single, or take --method exact",
            )
        if not self.cuts or len(set(self.cuts)) < len(self.cuts) or not all(0 < cut < 1 for cut in self.cuts):
            raise UsageError(
                f"cuts: {', '.join(map(str, self.cuts)) or 'none'}", hint="similarities between 0 and 1, each once"
            )
        if self.neighbours < 1:
            raise UsageError(f"neighbours: {self.neighbours} is not above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to cluster and where to; no `sites` means all of the catalogue."""

    catalogue: Catalogue
    out: Path
    sites: tuple[Site, ...] = ()
    options: Options = field(default_factory=Options)


def map_clusters(job: Job, note: Callable[[str], None]) -> list[dict[str, Any]]:
    """Cluster every site of the job and write the output folder; a row for each site and cut.

    A row: source, site, cut, linkage, method, n_features (with a gloss), n_without (a gloss), n_parts (of the graph),
    n_clusters, largest, n_alone (clusters of one), n_links, expected_degree, super_degree, n_super, largest_degree, bands
    (neurons in each). Finished sites are kept. Raises UsageError where a site has no gloss and where memory does not suffice.
    """
    sites = job.sites or job.catalogue.sites
    make_dir(job.out)
    done: list[Record] = []
    for number, site in enumerate(sites, start=1):
        vectors = job.catalogue.gloss_vectors(site)
        key = _key(job, site, vectors)
        folder = site_folder(job.out, site)
        record = finished(folder, key)
        kept = "" if record is None else ", kept from before"
        if record is None:
            with writing(job.out, hint=NO_ROOM):
                record = _map_site(job, site, vectors, key, folder)
        done.append(record)
        note(f"{job.catalogue.source} {site}: {_told(record)}{kept} ({number}/{len(sites)})")
    with writing(job.out, hint=NO_ROOM):
        _publish(job, done)
    return [_row(record, counts) for record in done for counts in record["cuts"]]


def _key(job: Job, site: Site, vectors: NDArray[np.float32]) -> Record:
    """Everything that a site's numbers depend on."""
    return {
        "format": FORMAT,
        "source": job.catalogue.source,
        "site": str(site),
        "sha256": sha256(job.catalogue.dictionary(site).weights),
        "glosses": hashlib.sha256(np.ascontiguousarray(vectors).data).hexdigest(),
        "options": asdict(job.options),
    }


def _map_site(job: Job, site: Site, vectors: NDArray[np.float32], key: Record, folder: Path) -> Record:
    """Cluster one site into `folder`, which appears whole or not at all."""
    clock = stopwatch()
    options = job.options
    features = np.flatnonzero(np.isfinite(vectors).all(axis=1) & vectors.any(axis=1)).astype(np.int32)
    if not len(features):
        raise UsageError(
            f"{job.catalogue.folder}: no feature of {site} has a gloss", hint="harness map catalogue --gloss contexts"
        )
    tree = _tree(vectors[features], options)
    labels = [cut(tree, similarity) for similarity in options.cuts]
    directions = job.catalogue.directions(site)
    links = links_of(directions.unit, options.linking)
    served: list[Degrees] = []
    for clusters in labels:
        of = np.full(directions.d_sae, -1, np.int32)
        of[features] = clusters
        served.append(degrees(links, of[directions.features]))
    names = (job.catalogue.source, str(site))
    with building(folder) as scratch:
        save_file({"tree": tree, "features": features}, scratch / "linkage.safetensors")
        write_table(scratch / "clusters.parquet", _cluster_table(names, options.cuts, features, labels))
        write_table(scratch / "neurons.parquet", _neuron_table(names, options.cuts, served))
        record = {
            "key": key,
            "features": {
                "n_features": len(features),
                "n_without": len(vectors) - len(features),
                "n_parts": neighbour_graph.n_parts(tree),
            },
            "cuts": [
                {"cut": similarity, **_counts(clusters), **_neuron_counts(found)}
                for similarity, clusters, found in zip(options.cuts, labels, served, strict=True)
            ],
            **asdict(clock()),
        }
        write_json(scratch / RECORD, record)
    return record


def _tree(vectors: NDArray[np.float32], options: Options) -> Floats:
    return exact_tree(vectors, options.linkage) if options.method == "exact" else graph_tree(vectors, options.neighbours)


def _counts(clusters: NDArray[np.int32]) -> dict[str, int]:
    sizes = np.bincount(clusters)
    return {"n_clusters": len(sizes), "largest": int(sizes.max()), "n_alone": int(np.count_nonzero(sizes == 1))}


def _neuron_counts(found: Degrees) -> dict[str, Any]:
    bands = [band(degree) for degree in found.degree.tolist()]
    return {
        "n_links": int(found.n_features.sum()),
        "expected_degree": found.expected,
        "super_degree": found.super_degree,
        "n_super": int(np.count_nonzero(found.is_super)),
        "largest_degree": int(found.degree.max()),
        "bands": {name: bands.count(name) for name in NAMES},
    }


def _cluster_table(
    names: tuple[str, str], cuts: Sequence[float], features: NDArray[np.int32], labels: Sequence[NDArray[np.int32]]
) -> pa.Table:
    columns = {
        "feature": np.tile(features, len(cuts)),
        "cut": np.repeat(cuts, len(features)),
        "cluster": np.concatenate(labels),
    }
    return _table(CLUSTERS, names, columns)


def _neuron_table(names: tuple[str, str], cuts: Sequence[float], served: Sequence[Degrees]) -> pa.Table:
    d_model = len(served[0].degree)
    degree = np.concatenate([found.degree for found in served])
    columns = {
        "cut": np.repeat(cuts, d_model),
        "neuron": np.tile(np.arange(d_model), len(cuts)),
        "degree": degree,
        "n_features": np.concatenate([found.n_features for found in served]),
        "band": [band(each) for each in degree.tolist()],
        "expected": np.repeat([found.expected for found in served], d_model),
        "super": np.concatenate([found.is_super for found in served]),
    }
    return _table(NEURONS, names, columns)


def _table(schema: pa.Schema, names: tuple[str, str], columns: Mapping[str, Any]) -> pa.Table:
    """Columns under the source's and the site's name, in the types of `schema`."""
    arrays = {name: pa.array(values) for name, values in columns.items()}
    n = len(next(iter(arrays.values())))
    for label, name in zip(("source", "site"), names, strict=True):
        arrays[label] = pa.DictionaryArray.from_arrays(np.zeros(n, np.int8), pa.array([name]))
    return pa.Table.from_pydict({name: arrays[name] for name in schema.names}).cast(schema)


def _row(record: Record, counts: Mapping[str, Any]) -> dict[str, Any]:
    """What `map_clusters` returns of one cut through one site."""
    key = record["key"]
    options = {name: key["options"][name] for name in ("linkage", "method")}
    return {"source": key["source"], "site": key["site"], "cut": counts["cut"], **options, **record["features"], **counts}


def _told(record: Mapping[str, Any]) -> str:
    found = record["features"]
    without = f", {found['n_without']:,} without a gloss" if found["n_without"] else ""
    parts = f", {found['n_parts']:,} parts of the graph" if record["key"]["options"]["method"] == "graph" else ""
    return (
        f"{found['n_features']:,} features{without}{parts}, {record['seconds']:.1f} s, "
        f"peak memory {record['peak_memory_gb']:.2f} GB"
    )


def _publish(job: Job, done: Sequence[Record]) -> None:
    """Join the sites' tables and write the manifest."""
    folders = [site_folder(job.out, Site.parse(record["key"]["site"])) for record in done]
    for name, schema in (("clusters.parquet", CLUSTERS), ("neurons.parquet", NEURONS)):
        join([folder / name for folder in folders], schema, job.out / name)
    manifest = {
        "stage": "clusters",
        "source": job.catalogue.source,
        "catalogue": str(job.catalogue.folder),
        "gloss": job.catalogue.manifest.get("gloss"),
        "options": asdict(job.options),
        "sites": {
            record["key"]["site"]: {
                **{name: record["key"][name] for name in ("sha256", "glosses")},
                **record["features"],
                "cuts": record["cuts"],
            }
            for record in done
        },
        "versions": versions("numpy", "scipy", "safetensors", "pyarrow"),
        "seconds": sum(record["seconds"] for record in done),
        "peak_memory_gb": max(record["peak_memory_gb"] for record in done),
    }
    write_json(job.out / MANIFEST, manifest)
