"""The stage `catalogue`: what each feature of a source's dictionaries fires on, found by streaming text through the model.

`catalogue` says what the folder holds. All sites of a pass are read at once, `at_once` of them, in one run of the model over
the text; each is then written whole under a key of everything it depends on, so that an interrupted pass is read again and a
finished one is not. Glosses have a key of their own: other glosses need no other reading. Owns the order of the work and the
folder; tables, bounded lists, codes, glosses stand in files of their own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from harness.errors import FileFormatError, UsageError
from harness.paths import make_dir, writing
from harness.providers.vocabulary import Vocabulary
from harness.providers.weights import sha256
from harness.whitebox.features.activation_statistics import FeatureStatistics, Moments
from harness.whitebox.features.catalogue import CONTEXTS, FEATURES, TOKENS, TOP_CONTEXTS, TOP_TOKENS
from harness.whitebox.features.catalogue_tables import Text, context_table, feature_table, token_table
from harness.whitebox.features.codes import KeptCodes, open_encoder, training_record
from harness.whitebox.features.glossing import GlossPlan, ReadSite, check_plan, gloss_sites
from harness.whitebox.features.tensor_files import join_tensors
from harness.whitebox.features.top_activations import Firings, TopActivations
from harness.whitebox.sources import activations, dictionaries, packing
from harness.whitebox.sources.corpus import Corpus
from harness.whitebox.sources.dictionaries import Located, locate, shape_of
from harness.whitebox.sources.models import LocalModel
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
    whole,
    write_json,
    write_table,
)
from harness.whitebox.training.training import import_sae_lens, pass_groups

FORMAT = 1
"""Raised when the files of a finished site change their meaning: older ones are then made again."""

CHARACTERS = 5
"""Of a token of English, somewhat more than there are: a text much longer than what is asked for is then read at intervals."""

PROGRESS_EVERY_S = 10.0

TABLES = {"features": FEATURES, "tokens": TOKENS, "contexts": CONTEXTS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How much is read. `tokens`: a site, at least; `keep_tokens`: of these, the first whose codes are kept."""

    tokens: int = 300_000
    keep_tokens: int = 100_000
    at_once: int = 4

    def __post_init__(self) -> None:
        for name in ("tokens", "keep_tokens", "at_once"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name.replace('_', ' ')}: {getattr(self, name)} is not above 0")


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to catalogue, with which model, on which text, and where to."""

    dictionaries: tuple[dictionaries.Dictionary, ...]
    model: LocalModel
    corpus: Corpus
    out: Path
    options: Options = field(default_factory=Options)
    gloss: GlossPlan = field(default_factory=GlossPlan)

    @property
    def source(self) -> str:
        """The name of the dictionaries' source."""
        return self.dictionaries[0].source

    @cached_property
    def text(self) -> Text:
        """What spans and token ids mean."""
        return Text(documents=self.corpus.documents, token_texts=Vocabulary(self.model.tokenizer).texts)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rows:
    """The tokens of some contexts that activations are read of: `ids` (n,) int32, `spans` (n, 3) int32."""

    contexts: list[list[int]]
    ids: NDArray[np.int32]
    spans: NDArray[np.int32]


def make_catalogue(job: Job, note: Callable[[str], None]) -> list[dict[str, Any]]:
    """Catalogue every dictionary of the job and write the output folder; a row of numbers for each site.

    Finished sites are kept whatever happens later. Raises UsageError and FileFormatError for what cannot be read, before any
    text is, and what glosses raise.
    """
    import_sae_lens()
    located = {dictionary.site: locate(dictionary) for dictionary in job.dictionaries}
    check_fit(job.model, located)
    check_plan(job.gloss, located.values())
    make_dir(job.out)
    keys = {site: _key(job, found) for site, found in located.items()}
    missing = [site for site, key in keys.items() if finished(site_folder(job.out, site), key) is None]
    for site in keys:
        if site not in missing:
            note(f"{job.source} {site}: read before, kept")
    for group in pass_groups(missing, job.options.at_once):
        _read_pass(job, {site: located[site] for site in group}, keys, note)
    folders = {site: site_folder(job.out, site) for site in keys}
    sites = {site: ReadSite(folder=folders[site], located=located[site], key=key) for site, key in keys.items()}
    glossed = gloss_sites(job.gloss, sites, note)
    with writing(job.out, hint=NO_ROOM):
        records = {site: finished(folders[site], key) or {} for site, key in keys.items()}
        _write_spans(job)
        publish_tables(job.out, list(keys))
        join_tensors(
            {str(site): folders[site] / "moments.safetensors" for site in keys},
            "covariance",
            job.out / "covariances.safetensors",
        )
        write_json(job.out / MANIFEST, _manifest(job, located, records, glossed))
    return [site_row(records[site], glossed[site]) for site in keys]


def check_fit(model: LocalModel, located: Mapping[Site, Located]) -> None:
    """Raises UsageError for a site that `model` has not, FileFormatError for a dictionary of another width."""
    activations.check_sites(model.model, list(located))
    d_model = int(model.model.config.get_text_config().hidden_size)
    for site, found in located.items():
        if (width := shape_of(found)[1]) != d_model:
            raise FileFormatError(
                str(found.weights),
                f"the dictionary of {site} has width {width}, the model {model.name} has {d_model} there",
                hint="is this a dictionary of that model? name the right folder with --dictionary, or the model with --model",
            )


def read_rows(corpus: Corpus, model: LocalModel, tokens: int) -> Iterator[Rows]:
    """The contexts that hold the first `tokens` tokens which are read, a batch at a time, in the corpus' own order.

    Of a corpus that is much longer every n-th document is read, the same ones whatever the tokenizer.
    """
    every = max(1, sum(map(len, corpus.documents)) // (CHARACTERS * tokens))
    found = packing.packed(corpus.documents[::every], model.tokenizer, bos=model.bos)
    for batch in activations.batched(islice(found, -(-tokens // (activations.CONTEXT - 1)))):
        ids = [context.ids for context in batch]
        spans = np.concatenate([context.spans[1:] for context in batch])
        spans[:, 0] *= every
        yield Rows(contexts=ids, ids=np.array([context[1:] for context in ids], np.int32).reshape(-1), spans=spans)


class SiteReader:
    """One site's catalogue while text streams by. Memory does not grow with the text."""

    def __init__(self, located: Located, options: Options) -> None:
        self.site = located.dictionary.site
        self._encoder = open_encoder(located)
        d_sae = self._encoder.d_sae
        self.statistics = FeatureStatistics(d_sae)
        self.moments = Moments(self._encoder.d_model)
        self._tokens = TopActivations(d_sae, TOP_TOKENS)
        self._contexts = TopActivations(d_sae, TOP_CONTEXTS)
        self._kept = KeptCodes(options.keep_tokens)

    def add(self, found: Any, rows: Rows) -> None:
        """Take the activations (n, d_model) of `rows`; raises UsageError where they are not finite."""
        if not bool(torch.isfinite(found.sum())):
            raise UsageError(
                f"{self.site}: the model's activations are not finite", hint="try --dtype float32, or check the model's weights"
            )
        codes = self._encoder.encode(found)
        self.statistics.add(codes)
        self.moments.add(found[self._encoder.fit(found)])
        self._kept.add(codes)
        spans = rows.spans[codes.rows]
        for kept, labels in ((self._tokens, rows.ids[codes.rows]), (self._contexts, spans[:, 0])):
            kept.add(Firings(features=codes.features, labels=labels, values=codes.values, spans=spans))

    def write(self, folder: Path, source: str, text: Text) -> dict[str, Any]:
        """The site's tables and tensors into `folder`; its numbers."""
        found = self.statistics
        write_table(folder / "features.parquet", feature_table(source, self.site, [found.density, found.largest, found.mean]))
        write_table(folder / "tokens.parquet", token_table(source, self.site, self._tokens.best(), text))
        write_table(folder / "contexts.parquet", context_table(source, self.site, self._contexts.best(), text))
        save_file(self._kept.tensors(), folder / "codes.safetensors")
        save_file(self.moments.tensors(), folder / "moments.safetensors")
        return {
            "d_sae": len(found.count),
            "n_tokens": found.n_rows,
            "n_left_out": found.n_rows - self.moments.n_rows,
            "n_silent": int((found.count == 0).sum()),
            "l0": float(found.density.sum()),
            "median_density": float(np.median(found.density)),
        }


def _key(job: Job, located: Located) -> dict[str, Any]:
    """Everything that a reading depends on."""
    return {
        "format": FORMAT,
        "source": job.source,
        "site": str(located.dictionary.site),
        "sha256": sha256(located.weights),
        **_text_key(job),
    }


def _text_key(job: Job) -> dict[str, Any]:
    """What the rows depend on, and the activations there."""
    return {
        "model_sha256": job.model.digest,
        "dtype": str(job.model.model.dtype).removeprefix("torch."),
        "corpus_sha256": job.corpus.digest,
        "context": activations.CONTEXT,
        "tokens": job.options.tokens,
        "keep_tokens": job.options.keep_tokens,
    }


def _read_pass(job: Job, located: Mapping[Site, Located], keys: Mapping[Site, Record], note: Callable[[str], None]) -> None:
    """One run of the model over the text for some sites, then their folders."""
    clock = stopwatch()
    for dictionary in located.values():
        dictionaries.load(dictionary)  # NaN in W_dec is told before any text is read
    readers = {site: SiteReader(dictionary, job.options) for site, dictionary in located.items()}
    note(f"{job.source}: reading {job.options.tokens:,} tokens of {job.corpus.source} for {', '.join(map(str, located))}")
    show = _progress(job.options.tokens, note)
    n_rows = 0
    for rows in read_rows(job.corpus, job.model, job.options.tokens):
        (found,) = activations.read(job.model.model, [rows.contexts], list(readers))
        for site, reader in readers.items():
            reader.add(found[site], rows)
        n_rows += len(rows.ids)
        show(n_rows)
    if not n_rows:
        raise UsageError(
            f"{job.corpus.source}: too little text to fill one context of {activations.CONTEXT} tokens",
            hint="give more with --text FILE",
        )
    reading = clock().seconds / len(located)
    for site in located:
        statistics = _write_site(job, readers.pop(site), keys[site], reading)
        note(f"{job.source} {site}: {_told(statistics)}")


def _write_site(job: Job, reader: SiteReader, key: Record, reading: float) -> dict[str, Any]:
    """One site's folder, which appears whole or not at all; its numbers. `reading`: seconds that went before."""
    clock = stopwatch()
    folder = site_folder(job.out, reader.site)
    with writing(job.out, hint=NO_ROOM), building(folder) as scratch:
        (job.out / MANIFEST).unlink(missing_ok=True)  # it speaks of the sites as they were
        numbers = reader.write(scratch, job.source, job.text)
        now = clock()
        used = {"seconds": reading + now.seconds, "peak_memory_gb": now.peak_memory_gb}
        statistics = {"source": job.source, "site": str(reader.site), "sha256": key["sha256"], **numbers, **used}
        write_json(scratch / RECORD, {"key": key, "statistics": statistics, **used})
    return statistics


def _told(found: Mapping[str, Any]) -> str:
    return (
        f"{found['n_tokens']:,} tokens, {found['l0']:.1f} features a token, {found['n_silent']:,} of {found['d_sae']:,} "
        f"silent, {found['seconds']:.1f} s, peak memory {found['peak_memory_gb']:.2f} GB"
    )


def _progress(planned: int, note: Callable[[str], None]) -> Callable[[int], None]:
    """A line every ten seconds: tokens, rate, time left."""
    started = last = time.perf_counter()

    def show(done: int) -> None:
        nonlocal last
        now = time.perf_counter()
        if now - last < PROGRESS_EVERY_S:
            return
        last = now
        rate = done / (now - started)
        note(f"{done:,}/{planned:,} tokens, {rate:.0f}/s, {max(planned - done, 0) / rate:.0f} s left")

    return show


def _write_spans(job: Job) -> None:
    """`spans.safetensors`: of the tokens whose codes are kept. They depend on text and tokenizer alone, so that they fit sites
    of every pass."""
    spans: list[NDArray[np.int32]] = []
    wanted = job.options.keep_tokens
    for rows in read_rows(job.corpus, job.model, job.options.tokens):
        spans.append(rows.spans[:wanted])
        wanted -= len(spans[-1])
        if wanted <= 0:
            break
    with whole(job.out / "spans.safetensors") as part:
        save_file({"spans": np.ascontiguousarray(np.concatenate(spans))}, part)


def publish_tables(out: Path, sites: Sequence[Site]) -> None:
    """Join the sites' tables and gloss vectors."""
    folders = {site: site_folder(out, site) for site in sites}
    for name, schema in TABLES.items():
        join([folder / f"{name}.parquet" for folder in folders.values()], schema, out / f"{name}.parquet")
    vectors = {str(site): folder / "glosses.safetensors" for site, folder in folders.items()}
    if all(path.is_file() for path in vectors.values()):
        join_tensors(vectors, "vectors", out / "glosses.safetensors")
    else:
        (out / "glosses.safetensors").unlink(missing_ok=True)


def _manifest(
    job: Job, located: Mapping[Site, Located], records: Mapping[Site, Record], glossed: Mapping[Site, Record]
) -> dict[str, Any]:
    model = job.model
    return {
        "stage": "catalogue",
        "source": job.source,
        "model": {"name": model.name, "folder": str(model.folder.absolute()), "sha256": model.digest, "bos": model.bos},
        "corpus": {
            "source": job.corpus.source,
            "licence": job.corpus.licence,
            "sha256": job.corpus.digest,
            "documents": len(job.corpus.documents),
        },
        "options": asdict(job.options),
        "n_tokens": next(iter(records.values()))["statistics"]["n_tokens"],
        "sites": {str(site): site_entry(found) for site, found in located.items()},
        "gloss": job.gloss.told(),
        "versions": versions("torch", "transformers", "sae-lens", "numpy", "safetensors", "pyarrow"),
        "seconds": sum(record["seconds"] for record in (*records.values(), *glossed.values())),
        "peak_memory_gb": max(record["peak_memory_gb"] for record in (*records.values(), *glossed.values())),
    }


def site_row(record: Record, glossed: Record) -> dict[str, Any]:
    """The numbers of a site, those of its glosses among them."""
    numbers = {f"gloss_{name}": glossed[name] for name in ("seconds", "peak_memory_gb")}
    return {**record["statistics"], "n_glosses": glossed["n_glosses"], "mean_gloss_score": glossed["mean_score"], **numbers}


def site_entry(located: Located) -> dict[str, Any]:
    """What the manifest says of a site."""
    folder = located.weights.parent.absolute()
    return {
        "sha256": sha256(located.weights),
        "folder": str(folder),
        "d_sae": shape_of(located)[0],
        "quality": training_record(folder).get("quality"),
    }
