"""Probe packs: a folder with `pack.toml`, `probes.jsonl` and, where it has them, `pools.jsonl` and `concepts/<name>/`.

Owns the records, reading with every check, and writing. Makers stand in their own files.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import Field, field_validator

from harness import __version__, paths
from harness.config import Strict, iter_jsonl, read_toml
from harness.errors import FileFormatError, StorageError, UnknownNameError
from harness.packs.concepts import Concept, find_concept
from harness.records import Probe

Arm = Literal["self", "high", "low", "random", "matched", "shuffled", "related"]
MANIFEST, PROBES, POOLS, CONCEPTS = "pack.toml", "probes.jsonl", "pools.jsonl", "concepts"


class PackManifest(Strict):
    """`pack.toml`. `digests`: sha256 of every other file of the pack, by its path inside the pack."""

    format: Literal[1]
    name: str
    description: str
    claims: str
    maker: str
    harness_version: str
    seed: int
    parameters: dict[str, Any] = Field(default_factory=dict)
    sources: dict[str, Any] = Field(default_factory=dict)
    digests: dict[str, str]


class ProbeRow(Strict):
    """A line of `probes.jsonl`."""

    concept: str
    arm: Arm
    injection_id: str = Field(min_length=1)
    injection: tuple[str, ...] = Field(min_length=1)
    predicted_shift: float | None = None
    provenance: dict[str, Any] = Field(default_factory=dict)

    @field_validator("injection")
    @classmethod
    def _not_blank(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not "".join(value).strip():
            raise ValueError("an empty injection")
        return value


class PoolRow(Strict):
    """A line of `pools.jsonl`: the strings that fresh injections of an arm are drawn from."""

    concept: str
    arm: Arm
    tokens: tuple[str, ...] = Field(min_length=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """A checked pack. `digest` changes with any file of it; `probes` by (concept, arm) in file order."""

    path: Path
    manifest: PackManifest
    digest: str
    probes: dict[tuple[str, str], tuple[Probe, ...]]
    pools: dict[tuple[str, str], tuple[str, ...]]

    @property
    def concepts(self) -> tuple[str, ...]:
        """The concepts that have probes or pools, sorted."""
        return tuple(sorted({concept for concept, _ in (*self.probes, *self.pools)}))

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms that any concept has, in the order of `Arm`."""
        present = {arm for _, arm in (*self.probes, *self.pools)}
        return tuple(arm for arm in Arm.__args__ if arm in present)  # type: ignore[attr-defined]

    def concept(self, name: str) -> Concept:
        """The concept as this pack sees it: its own copy, else the room's; raises UnknownNameError."""
        if name not in self.concepts:
            raise UnknownNameError(f"concept in pack {self.manifest.name!r}:", name, self.concepts)
        return find_concept(name, own=self.path / CONCEPTS)


def find_pack(name: str) -> Pack:
    """The pack called `name`, or in the folder that `name` is a path to; raises UnknownNameError, FileFormatError."""
    return load_pack(paths.find("prompts/packs", "pack", name).path)


def load_pack(folder: Path) -> Pack:
    """Read and check the pack in `folder`; raises FileFormatError naming file, line and field."""
    if not (folder / MANIFEST).is_file():
        raise FileFormatError(str(folder), f"no {MANIFEST} here, so this is no probe pack", hint="harness packs list")
    manifest = read_toml(folder / MANIFEST, PackManifest)
    _check_digests(folder, manifest)
    probes: dict[tuple[str, str], list[Probe]] = {}
    seen: set[tuple[str, str, str]] = set()
    known: set[str] = set()
    for number, row in iter_jsonl(folder / PROBES, ProbeRow):
        where = f"{folder / PROBES}:{number}"
        _check_concept(row.concept, folder, known, where)
        key = (row.concept, row.arm, row.injection_id)
        if key in seen:
            raise FileFormatError(where, f"key 'injection_id': {row.injection_id!r} stands twice in {row.concept}/{row.arm}")
        seen.add(key)
        probes.setdefault((row.concept, row.arm), []).append(Probe(**row.model_dump()))
    pools: dict[tuple[str, str], tuple[str, ...]] = {}
    if (folder / POOLS).exists():
        for number, pool in iter_jsonl(folder / POOLS, PoolRow):
            where = f"{folder / POOLS}:{number}"
            _check_concept(pool.concept, folder, known, where)
            if (pool.concept, pool.arm) in pools:
                raise FileFormatError(where, f"key 'arm': {pool.concept}/{pool.arm} has two pools")
            pools[pool.concept, pool.arm] = pool.tokens
    if not probes and not pools:
        raise FileFormatError(str(folder / PROBES), "no probes")
    digest = hashlib.sha256(manifest.model_dump_json().encode()).hexdigest()
    return Pack(path=folder, manifest=manifest, digest=digest, probes={k: tuple(v) for k, v in probes.items()}, pools=pools)


def _check_concept(name: str, folder: Path, known: set[str], where: str) -> None:
    if name in known:
        return
    try:
        find_concept(name, own=folder / CONCEPTS)
    except UnknownNameError as exc:
        raise FileFormatError(where, f"key 'concept': {exc.message}", hint=exc.hint) from exc
    known.add(name)


def _check_digests(folder: Path, manifest: PackManifest) -> None:
    for name, expected in manifest.digests.items():
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise FileFormatError(str(folder / MANIFEST), f"key 'digests.{name}': a path outside the pack")
        got = file_digest(folder / name)
        if got != expected:
            raise FileFormatError(
                str(folder / name),
                f"does not match its digest in {MANIFEST}: expected {expected[:12]}..., got {got[:12]}...",
                hint=f"harness packs seal {folder} accepts an edit that you meant",
            )
    present = {PROBES, *(p.relative_to(folder).as_posix() for p in _other_files(folder))}
    missing = sorted(present - set(manifest.digests))
    if missing:
        raise FileFormatError(str(folder / MANIFEST), f"key 'digests': no digest for {missing[0]!r}")


def _other_files(folder: Path) -> list[Path]:
    """The files of a pack, apart from its manifest and its README, that must have a digest."""
    pools = [folder / POOLS] if (folder / POOLS).exists() else []
    return [*pools, *sorted(p for p in (folder / CONCEPTS).rglob("*") if p.is_file())]


def file_digest(path: Path) -> str:
    """sha256 of a file, hex; raises FileFormatError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as exc:
        raise FileFormatError(str(path), f"cannot be read: {exc.strerror or exc}") from exc


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A pack that is about to be written. `files`: further text files by their path inside the pack."""

    name: str
    description: str
    claims: str
    maker: str
    seed: int
    probes: Sequence[Probe]
    pools: Sequence[PoolRow] = ()
    parameters: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)


def write_pack(draft: Draft, folder: Path) -> Pack:
    """Write `draft` to `folder` and read it back with every check.

    Raises StorageError where `folder` is not empty or cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StorageError(f"{folder}: exists and is not empty", hint="remove it, or name a new folder with --out")
    rows = (
        ProbeRow(
            concept=p.concept,
            arm=p.arm,
            injection_id=p.injection_id,
            injection=p.injection,
            predicted_shift=p.predicted_shift,
            provenance=dict(p.provenance),
        )
        for p in draft.probes
    )
    files = {PROBES: _jsonl(rows), **draft.files}
    if draft.pools:
        files[POOLS] = _jsonl(draft.pools)
    paths.make_dir(folder)
    for name, text in files.items():
        paths.make_dir((folder / name).parent)
        (folder / name).write_text(text, encoding="utf-8")
    manifest = PackManifest(
        format=1,
        name=draft.name,
        description=draft.description,
        claims=draft.claims,
        maker=draft.maker,
        harness_version=__version__,
        seed=draft.seed,
        parameters=draft.parameters,
        sources=draft.sources,
        digests={name: file_digest(folder / name) for name in sorted(files)},
    )
    _write_manifest(manifest, folder)
    return load_pack(folder)


def seal(folder: Path) -> Pack:
    """Bring the digests of an edited pack up to date and read it with every check."""
    manifest = read_toml(folder / MANIFEST, PackManifest)
    names = [PROBES, *(p.relative_to(folder).as_posix() for p in _other_files(folder))]
    _write_manifest(manifest.model_copy(update={"digests": {n: file_digest(folder / n) for n in sorted(names)}}), folder)
    return load_pack(folder)


def _write_manifest(manifest: PackManifest, folder: Path) -> None:
    (folder / MANIFEST).write_text(tomli_w.dumps(manifest.model_dump()), encoding="utf-8")


def _jsonl(rows: Iterable[Strict]) -> str:
    return "".join(json.dumps(row.model_dump(exclude_defaults=True), ensure_ascii=False) + "\n" for row in rows)


def describe(pack: Pack) -> dict[str, Any]:
    """What `harness packs show` prints: counts by arm, and the manifest."""
    counts = Counter(dict.fromkeys(pack.arms, 0))
    for (_, arm), probes in pack.probes.items():
        counts[arm] += len(probes)
    return {
        "name": pack.manifest.name,
        "path": str(pack.path),
        "digest": pack.digest,
        "description": pack.manifest.description,
        "claims": pack.manifest.claims,
        "concepts": list(pack.concepts),
        "probes": dict(counts),
        "pools": sorted({arm for _, arm in pack.pools}),
        "parameters": pack.manifest.parameters,
        "sources": pack.manifest.sources,
    }
