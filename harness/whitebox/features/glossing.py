"""Which glosses a catalogue gets, and giving them to its sites one by one: made once, kept under a key of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from harness.errors import UsageError
from harness.packs import embedder
from harness.paths import writing
from harness.providers.base import Provider
from harness.providers.targets import OpenOptions, find_target, open_target
from harness.whitebox.features import autointerp, neuronpedia
from harness.whitebox.features.glosses import Gloss, Kind, embedded, from_words, is_glossed, write_glosses
from harness.whitebox.sources.dictionaries import Located, shape_of
from harness.whitebox.sources.sites import Site
from harness.whitebox.stage import MANIFEST, NO_ROOM, Record, stopwatch

FORMAT = 1
"""Raised when glosses change their meaning: older ones are then made again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GlossPlan:
    """Where glosses come from.

    `target`: the language model that `llm` asks; `n_features`: how many features of a site it is asked about, those that
    fire most often; `seed`: of the texts of its test. `exports`, `explainer`, `vectors`: of `neuronpedia`; `export` takes the
    embeddings that the export holds, `packaged` embeds its texts anew, as everywhere else.
    """

    kind: Kind = "contexts"
    target: str | None = None
    n_features: int | None = None
    exports: Path | None = None
    explainer: str | None = None
    vectors: Literal["packaged", "export"] = "packaged"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise UsageError(f"gloss: {self.kind!r} is none of {', '.join(get_args(Kind))}")
        if self.kind == "llm" and self.target is None:
            raise UsageError("which language model is to gloss?", hint="name one: --gloss-target smollm2-135m")
        if self.kind == "neuronpedia" and self.exports is None:
            raise UsageError("where do Neuronpedia's exports lie?", hint="name the folder above v1/: --exports DIR")
        if self.n_features is not None and self.n_features < 1:
            raise UsageError(f"gloss features: {self.n_features} is not above 0")

    def told(self) -> dict[str, Any]:
        """What the manifest says of the glosses."""
        made = {"source": self.kind, "embedder": embedder.REQUIREMENT if self.kind != "none" else None}
        if self.kind == "llm":
            return {**made, "target": self.target, "n_features": self.n_features, "seed": self.seed}
        if self.kind == "neuronpedia":
            own = self.vectors == "packaged"
            return {**made, "embedder": made["embedder"] if own else "export", "explainer": self.explainer}
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadSite:
    """A site whose tables stand: its folder, its dictionary, and the key under which it was read."""

    folder: Path
    located: Located
    key: Record


def check_plan(plan: GlossPlan, sites: Iterable[Located]) -> None:
    """Raises UnknownNameError for a target, UsageError for an export that is not there, so that no text is read in vain."""
    if plan.kind == "llm":
        find_target(plan.target or "")
    elif plan.kind == "neuronpedia" and plan.exports is not None:
        for located in sites:
            neuronpedia.find_export(plan.exports, located).batches("explanations")


def gloss_sites(plan: GlossPlan, sites: Mapping[Site, ReadSite], note: Callable[[str], None]) -> dict[Site, Record]:
    """Glosses for `sites`, those that have them kept; what is told of each site's glosses.

    Raises UsageError and UnknownNameError for a target or an export that is not there, and what opening a target raises.
    """
    done: dict[Site, Record] = {}
    with ExitStack() as stack:
        maker = _Maker(plan, note, stack)
        for site, read in sites.items():
            key = _key(plan, read)
            record = is_glossed(read.folder, key)
            if record is None:
                clock = stopwatch()
                glosses, vectors = maker.make(read)
                with writing(read.folder, hint=NO_ROOM):
                    (read.folder.parents[1] / MANIFEST).unlink(missing_ok=True)  # it speaks of the sites as they were
                    record = write_glosses(read.folder, glosses, vectors, {"key": key, **asdict(clock())})
                if plan.kind != "none":
                    note(f"{site}: {_told(record)}")
            done[site] = record
    return done


class _Maker:
    """Makes a site's glosses; embedder and target are opened when the first site needs them."""

    def __init__(self, plan: GlossPlan, note: Callable[[str], None], stack: ExitStack) -> None:
        self._plan = plan
        self._note = note
        self._stack = stack

    def make(self, read: ReadSite) -> tuple[dict[int, Gloss], NDArray[np.float32] | None]:
        """Glosses and their vectors."""
        plan, d_sae = self._plan, shape_of(read.located)[0]
        if plan.kind == "none":
            return {}, None
        if plan.kind == "neuronpedia" and plan.exports is not None:
            export = neuronpedia.find_export(plan.exports, read.located)
            glosses, embeddings = neuronpedia.explanations(export, d_sae, plan.explainer)
            if plan.vectors == "export":
                return glosses, neuronpedia.vectors(export, embeddings, glosses, d_sae)
        elif plan.kind == "llm":
            ask = autointerp.Interpreter(self._provider, seed=plan.seed, note=self._note)
            glosses = self._runner.run(ask.gloss_site(read.folder, plan.n_features))
        else:
            glosses = from_words(read.folder / "tokens.parquet")
        return glosses, embedded(glosses, d_sae, self._embedder.embed)

    @cached_property
    def _embedder(self) -> embedder.Embedder:
        return embedder.Embedder(self._note)

    @cached_property
    def _runner(self) -> asyncio.Runner:
        return self._stack.enter_context(asyncio.Runner())

    @cached_property
    def _provider(self) -> Provider:
        provider = self._runner.run(open_target(find_target(self._plan.target or ""), OpenOptions(note=self._note)))
        self._stack.callback(lambda: self._runner.run(provider.aclose()))
        return provider


def _key(plan: GlossPlan, read: ReadSite) -> dict[str, Any]:
    """Everything that a site's glosses depend on: the reading, and the plan with the digests of what it names."""
    key: dict[str, Any] = {"format": FORMAT, "kind": plan.kind, "reading": read.key, "embedder": embedder.REQUIREMENT}
    if plan.kind == "llm":
        spec = find_target(plan.target or "")
        asked = {"name": spec.name, "address": spec.base_url(), **spec.target.model_dump(mode="json")}
        return {**key, "target": asked, "n_features": plan.n_features, "seed": plan.seed, "protocol": autointerp.PROTOCOL}
    if plan.kind == "neuronpedia" and plan.exports is not None:
        export = neuronpedia.find_export(plan.exports, read.located)
        return {**key, "sha256": export.digest("explanations"), "explainer": plan.explainer, "vectors": plan.vectors}
    return key


def _told(record: Record) -> str:
    score = "" if record["mean_score"] is None else f", mean score {record['mean_score']:.2f}"
    return f"{record['n_glosses']:,} glosses{score}, {record['seconds']:.1f} s, peak memory {record['peak_memory_gb']:.2f} GB"
