"""Which features of a site point the same way: exact cosines of all decoder rows, a threshold from two nulls, and statistics.

The output folder holds

- `sites/<site>/`: a site's own `pairs.parquet`, `nearest.parquet`, `sketch.safetensors` and, written last, `site.json`. A
  site whose `site.json` has the key of what is asked for (digests, options) is not computed again;
- `pairs.parquet`: source, site, i, j, cosine, gloss_similarity (null without glosses); i < j, above the site's threshold;
- `nearest.parquet`: source, site, i, j, cosine: every feature's nearest other one, null for features without a direction;
- `sites.parquet`: one row of statistics a site; `levels.parquet`: pairs above each cosine, beside what each null expects;
- with glosses, `similarity.parquet`: source, site, similarity, share_below: how alike the glosses of all pairs are, whatever
  their cosine, and `similarity.svg`, the same drawn (`distributions`);
- `manifest.json`: sources, digests, options, versions; `topology.svg`: the levels, drawn.

All but `sites/` speaks of the sites that the last run asked for; `sites/` keeps the others too.
Everything is streamed: memory holds one dictionary and one tile of cosines, whatever the number of pairs.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from harness.errors import FileFormatError, UsageError
from harness.paths import make_dir, writing
from harness.providers.weights import sha256
from harness.whitebox.sources.dictionaries import Dictionary, Directions, Located, alike, load, locate, opened
from harness.whitebox.sources.sites import Site
from harness.whitebox.sources.sources import NATURAL_DOSE
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
    whole,
    write_json,
    write_table,
)
from harness.whitebox.topology import nulls
from harness.whitebox.topology.distributions import (
    SIMILARITY_LEVELS,
    gloss_similarity,
    interference_columns,
    similarities,
    similarity_columns,
)
from harness.whitebox.topology.tiles import Scan, make_tile, scan, tile_rows
from harness.whitebox.topology.topology_plot import draw, draw_similarity

FORMAT = 2
"""Raised when the files of a finished site change their meaning: older ones are then computed again."""

LEVELS = tuple(round(0.05 * step, 2) for step in range(1, 20))
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)

PAIRS = pa.schema(
    [
        *((name, pa.dictionary(pa.int8(), pa.string())) for name in ("source", "site")),
        *((name, pa.int32()) for name in ("i", "j")),
        *((name, pa.float32()) for name in ("cosine", "gloss_similarity")),
    ]
)
NEAREST = pa.schema([PAIRS.field(name) for name in ("source", "site", "i", "j", "cosine")])

ChosenNull = Literal["larger", "isotropic", "matched"]
Device = str


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a site's threshold is set: the smallest at which `null` expects at most `null_pairs` pairs, or `threshold` itself.

    `larger`: the larger one of the two nulls' thresholds.
    """

    null: ChosenNull = "larger"
    null_pairs: float = 1.0
    threshold: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.null_pairs > 0:
            raise UsageError(f"expected null pairs: {self.null_pairs} is not above 0")
        if self.threshold is not None and not 0 <= self.threshold < 1:
            raise UsageError(f"threshold: {self.threshold} is not in [0, 1)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to map and where to. `glosses` and `covariances`: safetensors files with one tensor for each site, by its name:
    gloss vectors (d_sae, d_embed), of zeros where a feature has none; activation covariances (d_model, d_model)."""

    dictionaries: tuple[Dictionary, ...]
    out: Path
    options: Options = field(default_factory=Options)
    glosses: Path | None = None
    covariances: Path | None = None
    device: Device = "cpu"
    allow_alike: bool = False


def map_topology(job: Job, note: Callable[[str], None]) -> list[dict[str, Any]]:
    """Map every dictionary of the job and write the output folder; the rows of `sites.parquet`.

    Finished sites are kept whatever happens later. Raises UsageError where two sites hold one dictionary, and what
    reading a dictionary raises.
    """
    make_dir(job.out)
    done: list[dict[str, Any]] = []
    sketches: dict[Site, NDArray[np.float32]] = {}
    files = {path: _digest(path) for path in (job.glosses, job.covariances) if path is not None}
    for number, dictionary in enumerate(job.dictionaries, start=1):
        located = locate(dictionary)
        key = _key(job, located, files)
        folder = site_folder(job.out, dictionary.site)
        record = finished(folder, key)
        with writing(job.out, hint=NO_ROOM):
            if record is None:
                record = _map_site(job, located, key, folder)
                kept = ""
            else:
                kept = ", kept from before"
        _check_alike(job, dictionary.site, load_file(folder / "sketch.safetensors")["sketch"], sketches, note)
        done.append(record)
        note(f"{dictionary.source} {dictionary.site}: {_told(record)}{kept} ({number}/{len(job.dictionaries)})")
    with writing(job.out, hint=NO_ROOM):
        _publish(job, done)
    return [_row(record) for record in done]


def pick_device() -> Device:
    """`cuda` where torch is installed and finds a GPU, else `cpu`."""
    if importlib.util.find_spec("torch") is None:
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _key(job: Job, located: Located, files: Mapping[Path, str]) -> dict[str, Any]:
    """Everything that a site's numbers depend on."""
    return {
        "format": FORMAT,
        "source": located.dictionary.source,
        "site": str(located.dictionary.site),
        "sha256": sha256(located.weights),
        "options": asdict(job.options),
        "glosses": files.get(job.glosses) if job.glosses else None,
        "covariances": files.get(job.covariances) if job.covariances else None,
    }


def _map_site(job: Job, located: Located, key: Record, folder: Path) -> Record:
    """Compute one site into `folder`, which appears whole or not at all."""
    clock = stopwatch()
    dictionary = located.dictionary
    directions = load(located)
    moment = _second_moment(dictionary.site, directions)
    both = _nulls(job, dictionary.site, moment)
    thresholds = {null.name: nulls.threshold_of(null, len(directions.features), job.options.null_pairs) for null in both}
    threshold = _threshold(job.options, thresholds)
    tile = make_tile(directions.unit, tile_rows(len(directions.unit)), job.device)
    labels = (dictionary.source, str(dictionary.site))
    glosses = None if job.glosses is None else _tensor(job.glosses, dictionary.site, rows=directions.d_sae)
    spread = None if glosses is None else similarities(glosses[directions.features], seed=job.options.seed, name=labels[1])
    with building(folder) as scratch:
        with _PairWriter(scratch / "pairs.parquet", labels, directions, glosses) as writer:
            seen = scan(directions.unit, threshold, LEVELS, writer.add, tile)
        write_table(scratch / "nearest.parquet", _nearest(labels, directions, seen))
        save_file({"sketch": directions.sketch()}, scratch / "sketch.safetensors")
        record = {
            "key": key,
            "dictionary": _provenance(located),
            "statistics": {
                **_statistics(directions, seen, moment),
                "threshold": threshold,
                **{f"threshold_{name}": value for name, value in thresholds.items()},
                "matched_to": "activation_covariance" if job.covariances else "decoder_second_moment",
                "n_pairs": writer.n_pairs,
                **{f"expected_{null.name}": nulls.expected_pairs(null, len(directions.features), threshold) for null in both},
                **interference_columns(LEVELS, seen.above.tolist(), len(directions.features)),
                **similarity_columns(spread),
            },
            "levels": {
                "cosine": list(LEVELS),
                "pairs": seen.above.tolist(),
                **{n.name: [nulls.expected_pairs(n, len(directions.features), level) for level in LEVELS] for n in both},
            },
            "similarity": spread and {"similarity": list(SIMILARITY_LEVELS), "share_below": list(spread.share_below)},
            **asdict(clock()),
        }
        write_json(scratch / RECORD, record)
    return record


def _second_moment(site: Site, directions: Directions) -> NDArray[np.float32]:
    """The mean of u u' over the unit rows u, (d_model, d_model)."""
    unit = directions.unit
    if not len(unit):
        raise UsageError(f"{site}: every row of W_dec is zero", hint="is this a trained dictionary?")
    moment: NDArray[np.float32] = (unit.T @ unit) / np.float32(len(unit))
    return moment


def _nulls(job: Job, site: Site, moment: NDArray[np.float32]) -> tuple[nulls.Null, ...]:
    """The isotropic null and the matched one; without activations, matched to the decoder rows' own second moment.

    That one shares the dictionary's structure, so that it expects more pairs than activations alone would make it.
    """
    covariance = moment if job.covariances is None else _tensor(job.covariances, site, rows=len(moment))
    return nulls.Isotropic(d=len(moment)), nulls.matched(covariance, seed=job.options.seed, draws=nulls.DRAWS)


def _digest(path: Path) -> str:
    """The digest of a file of tensors, once it is seen to be one."""
    with opened(path, "np"):
        return sha256(path)


def _threshold(options: Options, found: Mapping[str, float]) -> float:
    if options.threshold is not None:
        return options.threshold
    return max(found.values()) if options.null == "larger" else found[options.null]


def _tensor(path: Path, site: Site, *, rows: int) -> NDArray[np.float32]:
    """The tensor of `site` in a safetensors file that has one a site; raises FileFormatError."""
    with opened(path, "np") as file:
        if str(site) not in file.keys():  # noqa: SIM118  no mapping
            raise FileFormatError(str(path), f"no tensor {str(site)!r}", hint="one tensor for each site, by the site's name")
        tensor: NDArray[np.float32] = file.get_tensor(str(site))
    if tensor.ndim != 2 or len(tensor) != rows:
        raise FileFormatError(str(path), f"tensor {str(site)!r} has the shape {tensor.shape}, expected {rows} rows")
    return tensor


class _PairWriter:
    """Pairs to Parquet, a tile at a time; a context manager."""

    def __init__(
        self, path: Path, labels: tuple[str, str], directions: Directions, glosses: NDArray[np.float32] | None
    ) -> None:
        self._writer = pq.ParquetWriter(path, PAIRS, compression="zstd")
        self._labels = labels
        self._features = directions.features
        self._glosses = glosses
        self.n_pairs = 0

    def __enter__(self) -> _PairWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def add(self, first: NDArray[np.int64], second: NDArray[np.int64], cosine: NDArray[np.float32]) -> None:
        """Write the pairs of living rows `first` and `second` under their features' numbers."""
        i, j = self._features[first], self._features[second]
        similarity = np.full(len(i), np.nan, np.float32) if self._glosses is None else gloss_similarity(self._glosses, i, j)
        columns = [i, j, cosine, pa.array(similarity, from_pandas=True)]
        self._writer.write_batch(pa.record_batch([*_labels(self._labels, len(i)), *columns], schema=PAIRS))
        self.n_pairs += len(i)


def _labels(labels: tuple[str, str], n: int) -> list[pa.DictionaryArray]:
    """The columns source and site of n rows."""
    return [pa.DictionaryArray.from_arrays(np.zeros(n, np.int8), pa.array([label])) for label in labels]


def _nearest(labels: tuple[str, str], directions: Directions, seen: Scan) -> pa.Table:
    """Every feature's nearest other one, (d_sae,) rows."""
    known = seen.nearest >= 0
    nearest = np.full(directions.d_sae, -1, np.int32)
    cosine = np.full(directions.d_sae, np.nan, np.float32)
    nearest[directions.features[known]] = directions.features[seen.nearest[known]]
    cosine[directions.features[known]] = seen.cosine[known]
    columns = [
        *_labels(labels, directions.d_sae),
        np.arange(directions.d_sae, dtype=np.int32),
        pa.array(nearest, mask=nearest < 0),
        pa.array(cosine, from_pandas=True),
    ]
    return pa.Table.from_arrays([pa.array(column) for column in columns], schema=NEAREST)


def _statistics(directions: Directions, seen: Scan, moment: NDArray[np.float32]) -> dict[str, Any]:
    """Counts, mean and spread of all pairs' cosines (from the rows' sum and second moment, exactly), nearest neighbours."""
    unit, n = directions.unit, len(directions.features)
    pairs = n * (n - 1)
    mean = spread = None
    if pairs:
        total = unit.sum(axis=0, dtype=np.float64)
        mean = float((total @ total - n) / pairs)
        spread = float(np.sqrt(max((np.sum(moment.astype(np.float64) ** 2) * n**2 - n) / pairs - mean**2, 0.0)))
    near = seen.cosine[seen.nearest >= 0]
    return {
        "d_sae": directions.d_sae,
        "d_model": unit.shape[1],
        "n_dead": directions.n_dead,
        "mean_cosine": mean,
        "sd_cosine": spread,
        "sd_isotropic": unit.shape[1] ** -0.5,
        **{f"nearest_q{round(q * 100):02d}": float(np.quantile(near, q)) if len(near) else None for q in QUANTILES},
    }


def _provenance(located: Located) -> dict[str, Any]:
    """Where a dictionary came from and what its activations are."""
    dictionary, config, release = located.dictionary, located.config, located.dictionary.release
    normalize = config.normalize_activations or (release.normalize_activations if release else None)
    return {
        "sae_id": dictionary.sae_id,
        "release": release.release if release else None,
        "repository": release.repository if release and dictionary.folder is None else None,
        "revision": located.revision,
        "path": str(dictionary.folder) if dictionary.folder else release.folder(dictionary.site.layer) if release else None,
        "normalize_activations": normalize,
        "natural_dose": NATURAL_DOSE.get(normalize or ""),
        "prepend_bos": config.prepend_bos if config.prepend_bos is not None or not release else release.prepend_bos,
        "context_size": config.context_size or (release.context_size if release else None),
    }


def _check_alike(
    job: Job,
    site: Site,
    sketch: NDArray[np.float32],
    sketches: dict[Site, NDArray[np.float32]],
    note: Callable[[str], None],
) -> None:
    """Refuse (or, where allowed, tell) that `site` holds the dictionary of an earlier one; then remember its sketch."""
    twin = next((other for other, known in sketches.items() if alike(sketch, known)), None)
    sketches[site] = sketch
    if twin is None:
        return
    message = f"{twin} and {site} hold the same dictionary: one of the two files is another site's"
    if not job.allow_alike:
        raise UsageError(message, hint="fetch the right file, choose sites with --site, or go on with --allow-alike")
    note(f"warning: {message}")


def _told(record: Mapping[str, Any]) -> str:
    found = record["statistics"]
    dead = f", {found['n_dead']:,} dead" if found["n_dead"] else ""
    return (
        f"{found['n_pairs']:,} pairs above {found['threshold']:.3f}{dead}, {record['seconds']:.1f} s, "
        f"peak memory {record['peak_memory_gb']:.2f} GB"
    )


def _row(record: Mapping[str, Any]) -> dict[str, Any]:
    """A row of `sites.parquet`."""
    key = record["key"]
    return {
        **{name: key[name] for name in ("source", "site", "sha256")},
        **record["dictionary"],
        **record["statistics"],
        **{name: record[name] for name in ("seconds", "peak_memory_gb")},
    }


def _curves(done: Sequence[Record], name: str) -> pa.Table:
    """The columns that a site's record keeps under `name`, of all sites one after another."""
    return pa.Table.from_pylist(
        [
            {"source": record["key"]["source"], "site": record["key"]["site"], **dict(zip(record[name], values, strict=True))}
            for record in done
            for values in zip(*record[name].values(), strict=True)
        ]
    )


def _publish(job: Job, done: Sequence[Record]) -> None:
    """Join the sites' tables, write statistics, plot and manifest, each under its own name only when it is whole."""
    folders = [job.out / "sites" / record["key"]["site"] for record in done]
    for name, schema in (("pairs.parquet", PAIRS), ("nearest.parquet", NEAREST)):
        join([folder / name for folder in folders], schema, job.out / name)
    write_table(job.out / "sites.parquet", pa.Table.from_pylist([_row(record) for record in done]))
    write_table(job.out / "levels.parquet", _curves(done, "levels"))
    with whole(job.out / "topology.svg") as path:
        path.write_text(draw([(record["key"]["site"], record["levels"]) for record in done]), encoding="utf-8")
    if job.glosses is not None:
        write_table(job.out / "similarity.parquet", _curves(done, "similarity"))
        with whole(job.out / "similarity.svg") as path:
            path.write_text(draw_similarity([(r["key"]["site"], r["similarity"]) for r in done]), encoding="utf-8")
    else:  # an earlier run's would speak of other sites
        for name in ("similarity.parquet", "similarity.svg"):
            (job.out / name).unlink(missing_ok=True)
    manifest = {
        "stage": "topology",
        "source": done[0]["key"]["source"],
        "options": asdict(job.options),
        "glosses_sha256": done[0]["key"]["glosses"],
        "covariances_sha256": done[0]["key"]["covariances"],
        "sites": {record["key"]["site"]: {"sha256": record["key"]["sha256"], **record["dictionary"]} for record in done},
        "versions": versions("numpy", "scipy", "safetensors", "pyarrow"),
        "device": job.device,
        "seconds": sum(record["seconds"] for record in done),
        "peak_memory_gb": max(record["peak_memory_gb"] for record in done),
    }
    write_json(job.out / MANIFEST, manifest)
