"""Decoder directions of SAEs saved in SAELens' layout: a folder a site, `cfg.json` beside `sae_weights.safetensors`.

Only `W_dec` is read, a slice of rows at a time; nothing of SAELens is needed. Owns where a site's dictionary lies, what
its files must say to be believed, and the unit rows. What is done with them is `topology`'s matter.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from harness.errors import EndpointError, FileFormatError, MissingExtraError, UsageError
from harness.paths import cache_dir
from harness.whitebox.sources.sites import Site
from harness.whitebox.sources.sources import Release, Source, embedded_sites, find_source, sources

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]

WEIGHTS, CONFIG, DECODER = "sae_weights.safetensors", "cfg.json", "W_dec"

ROWS = 2048
"""Rows read at once: a few MB at any usual width."""

SKETCH_ROWS = 64
ALIKE = 0.999
"""Two trained dictionaries have hardly a row in common at this cosine; copies rounded to 16 bits have all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What `cfg.json` says of a dictionary, in the layout of SAELens 6 or the older one; None where it says nothing."""

    hook_name: str | None = None
    d_in: int | None = None
    d_sae: int | None = None
    normalize_activations: str | None = None
    prepend_bos: bool | None = None
    context_size: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dictionary:
    """One site's dictionary: a local `folder`, or a `release` to be fetched. Declared widths are None where unknown."""

    source: str
    site: Site
    folder: Path | None = None
    release: Release | None = None
    d_model: int | None = None
    d_sae: int | None = None

    @property
    def sae_id(self) -> str:
        """SAELens' id, made from layer and sub-module: other fields of its directory have misprints."""
        return self.site.hook_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """A dictionary on the disk. `revision`: the commit of the repository, None for a folder of the user's own."""

    dictionary: Dictionary
    weights: Path
    config: Config
    revision: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Directions:
    """The rows of a `W_dec` (d_sae, d_model) at unit length. Rows of zeros are dead: they have no direction.

    `unit` (n, d_model) holds the n living rows, `features` (n,) their numbers, ascending.
    """

    unit: Floats
    features: Ints
    d_sae: int

    @property
    def n_dead(self) -> int:
        """Features without a direction."""
        return self.d_sae - len(self.features)

    def sketch(self) -> Floats:
        """The directions of SKETCH_ROWS features at even distances, (SKETCH_ROWS, d_model); zeros where dead."""
        wanted = np.linspace(0, self.d_sae - 1, SKETCH_ROWS).round().astype(np.int32)
        at = np.searchsorted(self.features, wanted).clip(max=max(len(self.features) - 1, 0))
        rows = np.zeros((SKETCH_ROWS, self.unit.shape[1]), np.float32)
        if len(self.features):
            found = self.features[at] == wanted
            rows[found] = self.unit[at[found]]
        return rows


def alike(one: Floats, other: Floats) -> bool:
    """Whether two sketches are of one dictionary: most of the rows alive in both point the same way."""
    if one.shape != other.shape:
        return False
    alive = np.any(one != 0, axis=1) & np.any(other != 0, axis=1)
    cosines = np.einsum("nd,nd->n", one[alive], other[alive])
    return bool(alive.any() and np.mean(cosines > ALIKE) > 0.5)


def hub_dictionaries(source: Source) -> tuple[Dictionary, ...]:
    """All dictionaries of a declared source, to be fetched from the hub; nothing is fetched yet."""
    return tuple(
        Dictionary(source=source.name, site=site, release=source.release_of(site), d_model=source.d_model, d_sae=source.d_sae)
        for site in source.sites()
    )


def local_dictionaries(name: str, folder: Path, note: Callable[[str], None]) -> tuple[Dictionary, ...]:
    """The dictionaries under `folder`, each at the hook point its `cfg.json` names; hook points that are no sites get a note.

    Under the name of a declared source they must be that source's. Raises UsageError where there is none, and where two
    claim one site; FileFormatError for a file that does not fit.
    """
    source = sources().get(name)
    known = None if source is None else set(source.sites())
    found: dict[Site, Dictionary] = {}
    for weights in sorted(folder.rglob(WEIGHTS)):
        if weights.parent.name.startswith("."):  # half written, left behind by a process that was killed
            continue
        config = read_config(weights.with_name(CONFIG))
        site = Site.of_hook_name(config.hook_name or "")
        if site is None or (known is not None and site not in known):
            note(f"{weights.parent}: passed over, its hook point {config.hook_name!r} is no site of {name}")
            continue
        if site in found:
            raise UsageError(
                f"{weights.parent} and {found[site].folder} both say that they are {site.hook_name}",
                hint="one of them is a copy of another site's, or of another version: keep one",
            )
        if source is not None:
            _check_folder(weights.parent, source.release_of(site), site, source)
        found[site] = Dictionary(
            source=name,
            site=site,
            folder=weights.parent,
            release=None if source is None else source.release_of(site),
            d_model=config.d_in if source is None else source.d_model,
            d_sae=config.d_sae if source is None else source.d_sae,
        )
    if not found:
        raise UsageError(
            f"{folder}: no dictionary of {name} there",
            hint=f"a folder for each site, with {CONFIG} and {WEIGHTS}, as SAE.save_model of sae_lens writes it",
        )
    return tuple(found[site] for site in sorted(found))


def open_dictionaries(name: str, folder: Path | None, note: Callable[[str], None]) -> tuple[Dictionary, ...]:
    """The dictionaries of source `name`: those under `folder`, else those that `harness train-sae` left in the cache, else
    those that its declaration names on the hub."""
    if folder is None and (trained := trained_dir(name)).is_dir():
        return local_dictionaries(name, trained, note)
    if folder is None and name in embedded_sites():
        raise UsageError(f"no dictionaries of {name} have been trained yet", hint=f"harness train-sae --source {name}")
    if folder is None:
        return hub_dictionaries(find_source(name))
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder", hint="--dictionary takes the folder that holds the sites' folders")
    return local_dictionaries(name, folder, note)


def trained_dir(name: str) -> Path:
    """Where the dictionaries that were trained here for the source `name` lie, in the user's cache."""
    return cache_dir() / "saes" / name


def choose(dictionaries: Sequence[Dictionary], sites: Sequence[Site]) -> tuple[Dictionary, ...]:
    """Those of `sites`, in their own order, or all where none is named; raises UsageError for a site that is not there."""
    there = [dictionary.site for dictionary in dictionaries]
    for site in sites:
        if site not in there:
            raise UsageError(f"no dictionary for the site {site}", hint=f"there are: {', '.join(map(str, there))}")
    return tuple(dictionary for dictionary in dictionaries if not sites or dictionary.site in sites)


def read_config(path: Path) -> Config:
    """`cfg.json` in either layout: SAELens 6 keeps the hook point under `metadata`, older versions at the top."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise FileFormatError(str(path), f"cannot be read: {exc.strerror or exc}") from exc
    except ValueError as exc:
        raise FileFormatError(str(path), f"not valid JSON: {exc}") from exc
    if not isinstance(data, dict):
        raise FileFormatError(str(path), "expected one JSON object")
    metadata = data.get("metadata")
    merged: dict[str, Any] = {**data, **(metadata if isinstance(metadata, dict) else {})}
    return Config(
        hook_name=merged.get("hook_name") or merged.get("hook_point"),
        d_in=merged.get("d_in"),
        d_sae=merged.get("d_sae"),
        normalize_activations=merged.get("normalize_activations"),
        prepend_bos=merged.get("prepend_bos"),
        context_size=merged.get("context_size"),
    )


def locate(dictionary: Dictionary) -> Located:
    """The dictionary's files on the disk, fetched from the hub first where it has no folder.

    Raises EndpointError with the command that would fetch them, MissingExtraError without huggingface_hub, and
    FileFormatError where `cfg.json` speaks of another site.
    """
    if dictionary.folder is not None:
        weights = dictionary.folder / WEIGHTS
        return Located(dictionary=dictionary, weights=weights, config=read_config(dictionary.folder / CONFIG))
    if dictionary.release is None:
        raise ValueError(f"{dictionary.source} {dictionary.site}: neither a folder nor a release")
    weights = _fetch(dictionary, dictionary.release, WEIGHTS)
    path = _fetch(dictionary, dictionary.release, CONFIG)
    config = read_config(path)
    if config.hook_name not in (None, dictionary.sae_id):
        raise FileFormatError(
            str(path),
            f"says that it is {config.hook_name}, expected {dictionary.sae_id}",
            hint="this revision of the repository holds another site's dictionary: leave the site out, or name a folder",
        )
    revision = next((after for before, after in zip(path.parts, path.parts[1:], strict=False) if before == "snapshots"), None)
    return Located(dictionary=dictionary, weights=weights, config=config, revision=revision)


def load(located: Located) -> Directions:
    """The unit rows of the dictionary; raises FileFormatError for a missing tensor, a wrong width, NaN or infinity."""
    path, dictionary = located.weights, located.dictionary
    found: list[Floats] = []
    features: list[Ints] = []
    start = 0
    d_sae, d_model = shape_of(located)
    for rows in decoder_rows(path):
        norms = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))
        if not np.isfinite(norms).all():
            bad = start + int(np.flatnonzero(~np.isfinite(norms))[0])
            raise FileFormatError(
                str(path),
                f"{DECODER} of {dictionary.sae_id} has NaN or infinity, first in feature {bad}",
                hint="the file is damaged, or its training diverged: fetch or train it again",
            )
        alive = norms > 0
        found.append((rows[alive] / norms[alive, None]).astype(np.float32))
        features.append((start + np.flatnonzero(alive)).astype(np.int32))
        start += len(rows)
    unit = np.concatenate(found) if found else np.zeros((0, d_model), np.float32)
    return Directions(unit=unit, features=np.concatenate(features) if features else np.zeros(0, np.int32), d_sae=d_sae)


def shape_of(located: Located) -> tuple[int, int]:
    """(d_sae, d_model) of the tensor W_dec, after comparing them with what is declared and configured."""
    path, dictionary, config = located.weights, located.dictionary, located.config
    with opened(path, "np") as file:
        shape = tuple(file.get_slice(DECODER).get_shape()) if DECODER in file.keys() else None  # noqa: SIM118  no mapping
        names = ", ".join(sorted(file.keys())) or "none"
    if shape is None or len(shape) != 2:
        raise FileFormatError(str(path), f"no matrix {DECODER}", hint=f"tensors there: {names}")
    for place, expected in (("its declaration", (dictionary.d_sae, dictionary.d_model)), (CONFIG, (config.d_sae, config.d_in))):
        for axis, got, wanted in zip(("d_sae", "d_model"), shape, expected, strict=True):
            if wanted is not None and got != wanted:
                raise FileFormatError(
                    str(path),
                    f"{DECODER} of {dictionary.sae_id} has {axis} {got}, {place} says {wanted}",
                    hint=f"is this a dictionary of {dictionary.source}, and of this site?",
                )
    return shape[0], shape[1]


def decoder_rows(path: Path) -> Iterator[Floats]:
    """The rows of W_dec, ROWS at a time, as float32 or float64. NumPy has no bfloat16: torch reads that one."""
    with opened(path, "np") as file:
        bfloat = file.get_slice(DECODER).get_dtype() == "BF16"
    with opened(path, "pt" if bfloat else "np") as file:
        view = file.get_slice(DECODER)
        d_sae = view.get_shape()[0]
        for start in range(0, d_sae, ROWS):
            rows: Any = view[start : min(start + ROWS, d_sae)]
            rows = rows.float().numpy() if bfloat else rows
            yield rows.astype(np.float32) if rows.dtype == np.float16 else rows


def opened(path: Path, framework: str) -> Any:
    """A safetensors file, open; raises FileFormatError where it is missing or damaged."""
    try:
        return safe_open(path, framework=framework)
    except SafetensorError as exc:
        raise FileFormatError(str(path), f"not a readable safetensors file: {exc}", hint="fetch it again") from exc
    except OSError as exc:
        raise FileFormatError(str(path), f"cannot be read: {exc.strerror or exc}") from exc


def _check_folder(folder: Path, release: Release, site: Site, source: Source) -> None:
    """Refuse a folder named after another layer of the release than its `cfg.json` speaks of."""
    named = [layer for layer in range(source.layers) if release.folder(layer) == folder.name]
    if named and site.layer not in named:
        raise FileFormatError(
            str(folder / CONFIG),
            f"says that it is {site.hook_name}, but the folder is that of layer {named[0]}",
            hint="one upload of layer 8 once held layer 9: fetch it again, or leave the folder out",
        )


def _fetch(dictionary: Dictionary, release: Release, file: str) -> Path:
    """One file of the dictionary's folder in its repository, in the hub's own cache."""
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError
    except ImportError as exc:
        raise MissingExtraError("huggingface_hub", "whitebox") from exc
    name = f"{release.folder(dictionary.site.layer)}/{file}"
    try:
        return Path(hf_hub_download(release.repository, name, revision=release.revision))
    except (OSError, EntryNotFoundError) as exc:
        told = str(exc).strip().splitlines() or [type(exc).__name__]
        revision = f" --revision {release.revision}" if release.revision else ""
        raise EndpointError(
            f"{release.repository}: {name} cannot be fetched: {told[0]}",
            hint=f"where there is a network: hf download {release.repository}{revision} --include '*/{WEIGHTS}' '*/{CONFIG}' "
            f"--local-dir DIR/{release.release}; then: harness map topology --source {dictionary.source} --dictionary DIR",
        ) from exc
