"""From maps of the sources to a probe pack: text that, if interference transfers, shifts a model's next word towards a concept.

Reads what earlier stages left under one folder (`catalogue-<source>`, `topology-<source>`, and for two sources
`shared-<a>-<b>`), at the sites whose dictionaries are good enough. With one source `clean` takes its pairs above the
threshold that the nulls set for their site; with two, shared pairs only, and those from the published 0.2 on: being shared
is itself hardly chance.

The pack has its own copy of each concept, without the sentences that are reserved for predictions, and `links.jsonl`: every
pair that a probe's `provenance.links` names, with sources, sites, features, interference, similarity and words.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import tomli_w

from harness.errors import UsageError
from harness.packs.concepts import LEXICON, OFF_TYPE, SENTENCES, Concept, find_concept
from harness.packs.concepts import MANIFEST as CONCEPT_MANIFEST
from harness.packs.embedder import REQUIREMENT
from harness.packs.lexical import WordList
from harness.packs.pack import CONCEPTS, Arm, Draft, PoolRow
from harness.packs.sampling import generator, subset
from harness.packs.templates import find_template
from harness.providers.vocabulary import Vocabulary
from harness.records import Probe
from harness.whitebox.distilling.injections import Sizes, balance, draw_injections
from harness.whitebox.distilling.links import SPEAKS_OF, Link, SharedPairs, SiteFeatures, SiteWords
from harness.whitebox.distilling.predicting import Predictor
from harness.whitebox.distilling.token_sets import Construction, Lexicon, Sets, clean_sets, near_words, published_sets
from harness.whitebox.features.catalogue import Catalogue
from harness.whitebox.sharing.shared import read_shared
from harness.whitebox.sources.sites import Site
from harness.whitebox.stage import MANIFEST, read_manifest, stopwatch

LINKS = "links.jsonl"

PUBLISHED_ABOVE = 0.2
PUBLISHED_HIGH = {"pythia-70m": 0.5, "gpt2-small": 0.3}
"""Interference from which on a feature counts at all, and as high, as published; other sources take GPT-2's."""

Embed = Callable[[Sequence[str]], Any]
Open = Callable[[str], Predictor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a pack is made. `min_recovered`: sites whose dictionary recovers a smaller share of the cross-entropy are left out;
    those of unknown quality are kept. `reserved`: sentences of each concept that predictions are measured on."""

    construction: Construction = "clean"
    sizes: Sizes = field(default_factory=Sizes)
    max_similarity: float = 0.3
    min_recovered: float = 0.8
    reserved: int = 4
    template: str = "paren"
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to distil. `embed`: texts to unit vectors (n, d); `open_predictor`: a loaded source by name; `words`: most
    frequent first.
    """

    sources: tuple[str, ...]
    maps: Path
    concepts: tuple[str, ...]
    words: tuple[str, ...]
    embed: Embed
    open_predictor: Open
    basis: str = "sae"
    options: Options = field(default_factory=Options)

    @property
    def published(self) -> bool:
        """Whether the sets are made as published, each source's by itself."""
        return self.options.construction != "clean"

    @property
    def shared_only(self) -> bool:
        """Whether only pairs that two sources share count."""
        return len(self.sources) == 2 and not self.published


@dataclass(slots=True, kw_only=True)
class Found:
    """What the maps say of a concept: links by source (or of both, under `shared`), and each word's interference over its
    site's threshold."""

    links: dict[str, list[Link]] = field(default_factory=dict)
    interference: dict[str, float] = field(default_factory=dict)


SHARED = "shared"


def map_name(stage: str, source: str, basis: str) -> str:
    """The folder of a stage under the maps: `catalogue-gpt2-small`, with another basis `catalogue-gpt2-small-neurons`."""
    return f"{stage}-{source}" if basis == "sae" else f"{stage}-{source}-{basis}"


def draft_pack(job: Job, name: str, note: Callable[[str], None]) -> Draft:
    """The draft of a pack; raises UsageError where no concept has probes, FileFormatError for maps that are not finished."""
    if not 1 <= len(job.sources) <= 2:
        raise UsageError(f"{len(job.sources)} sources", hint="name one or two: --sources smollm2-135m,gemma3-270m")
    clock = stopwatch()
    catalogues = {source: Catalogue(job.maps / map_name("catalogue", source, job.basis)) for source in job.sources}
    sites, left_out = _good_sites(catalogues, job.options.min_recovered)
    concepts = {concept: find_concept(concept) for concept in job.concepts}
    found = _search(job, catalogues, sites, {name: _words(concept) for name, concept in concepts.items()})
    sets = _sets(job, catalogues, concepts, found)
    injections = _injections(job, sets, note)
    if not injections:
        raise UsageError(
            "no concept has enough interfering words for a probe",
            hint="map more sites or more text, lower --fewest, or take another --construction",
        )
    reserved = {name: _reserve(concepts[name], job.options) for name in injections}
    note(f"maps read, sets made: {clock()}")
    predictions = _predict(job, concepts, injections, reserved, note)
    probes, links = _probes(sets, injections, predictions)
    return Draft(
        name=name,
        description=f"words of features that interfere with a concept's in {' and '.join(job.sources)}, and controls alike",
        claims=_claims(job),
        maker="distill",
        seed=job.options.seed,
        probes=probes,
        pools=_pools(sets, injections) if job.published else (),
        parameters={
            **_parameters(job.options),
            "basis": job.basis,
            "concepts_without_probes": sorted(set(concepts) - set(injections)),
            "high_strings": {name: len(sets[name].high) for name in sorted(sets)},
            "balance": {name: balance(drawn, sets[name].rank) for name, drawn in injections.items()},
            "reserved_sentences": {name: list(texts) for name, texts in reserved.items()},
        },
        sources=_sources(job, catalogues, sites, left_out),
        files={LINKS: _lines(links), **_concept_files(concepts, reserved)},
    )


def _good_sites(catalogues: Mapping[str, Catalogue], least: float) -> tuple[dict[str, list[Site]], dict[str, dict[str, float]]]:
    """By source the sites to use, and those left out with the share of the cross-entropy that they recover."""
    used: dict[str, list[Site]] = {}
    left_out: dict[str, dict[str, float]] = {}
    for source, catalogue in catalogues.items():
        shares = {
            site: (catalogue.manifest["sites"][str(site)].get("quality") or {}).get("ce_recovered") for site in catalogue.sites
        }
        left_out[source] = {str(site): share for site, share in shares.items() if share is not None and share < least}
        used[source] = [site for site in catalogue.sites if str(site) not in left_out[source]]
        if not used[source]:
            raise UsageError(
                f"{source}: every site's dictionary recovers less than {least} of the cross-entropy",
                hint="train better ones (harness train-sae --tokens), or lower --min-recovered",
            )
    return used, left_out


def _words(concept: Concept) -> frozenset[str]:
    return frozenset(word.casefold() for word in concept.words)


def _search(
    job: Job, catalogues: Mapping[str, Catalogue], sites: Mapping[str, Sequence[Site]], words: Mapping[str, frozenset[str]]
) -> dict[str, Found]:
    """What each concept finds, one site's features in memory at a time."""
    found = {concept: Found() for concept in words}
    speaks_of = 0.0 if job.published else SPEAKS_OF
    close = job.options.max_similarity
    views: dict[tuple[str, str], SiteWords] = {}
    for source, catalogue in catalogues.items():
        thresholds = _thresholds(job.maps / map_name("topology", source, job.basis))
        for site in sites[source]:
            view = SiteWords(catalogue, site)
            views[source, str(site)] = view
            features = SiteFeatures(catalogue, site, view)
            above = PUBLISHED_ABOVE if job.published or job.shared_only else thresholds[str(site)]
            for concept, own in words.items():
                if not job.shared_only:
                    links = features.links(own, above=above, max_similarity=close, speaks_of=speaks_of)
                    found[concept].links.setdefault(source, []).extend(links)
                if not job.published:
                    _merge(found[concept].interference, features.word_interference(own, max_similarity=close), above)
    if job.shared_only:
        a, b = job.sources
        shared = SharedPairs(read_shared(job.maps / map_name("shared", f"{a}-{b}", job.basis)), (a, b), views)
        for concept, own in words.items():
            found[concept].links[SHARED] = list(shared.links(own))
    return found


def _merge(known: dict[str, float], more: Mapping[str, float], threshold: float) -> None:
    """Keep for each word the larger share of a site's threshold."""
    for word, value in more.items():
        known[word] = max(known.get(word, -np.inf), value / threshold)


def _thresholds(folder: Path) -> dict[str, float]:
    """The cosine above which both nulls expect hardly a pair, by site, whatever was kept."""
    read_manifest(folder, made_by="harness map topology")
    rows = pq.read_table(folder / "sites.parquet", columns=["site", "threshold_isotropic", "threshold_matched"]).to_pylist()
    return {row["site"]: max(row["threshold_isotropic"], row["threshold_matched"]) for row in rows}


def _sets(
    job: Job, catalogues: Mapping[str, Catalogue], concepts: Mapping[str, Concept], found: Mapping[str, Found]
) -> dict[str, Sets]:
    listed = WordList(words=job.words, vectors=job.embed(job.words))
    construction = job.options.construction
    rank = {f" {word}": at for at, word in enumerate(job.words)}
    vocabularies = {} if construction == "clean" else {name: _strings(catalogue) for name, catalogue in catalogues.items()}
    sets = {}
    for name, concept in concepts.items():
        words = _words(concept)
        lexicon = Lexicon.of(name, words, job.embed(sorted(words)))
        if construction == "clean":
            links = found[name].links.get(SHARED if job.shared_only else job.sources[0], [])
            sets[name] = clean_sets(lexicon, links, found[name].interference, listed, rank)
            continue
        sets[name] = published_sets(
            lexicon,
            {source: found[name].links.get(source, []) for source in job.sources},
            {source: PUBLISHED_HIGH.get(source, 0.3) for source in job.sources},
            vocabularies,
            near_words(lexicon, listed),
            united=construction == "faithful",
        )
    return sets


def _strings(catalogue: Catalogue) -> dict[str, int]:
    """The decodable strings of a source's vocabulary that are not blank, with the smallest id of each."""
    vocabulary = Vocabulary.load(catalogue.model_reference()["folder"])
    strings: dict[str, int] = {}
    for number, text in enumerate(vocabulary.texts):
        if number not in vocabulary.special_ids and text.strip() and "\ufffd" not in text:
            strings.setdefault(text, number)
    return strings


def _injections(
    job: Job, sets: Mapping[str, Sets], note: Callable[[str], None]
) -> dict[str, dict[Arm, tuple[tuple[str, ...], ...]]]:
    """The injections of every concept that has enough high strings; `shuffled` takes the next such concept's."""
    sizes = job.options.sizes
    able = [name for name, found in sets.items() if len(found.high) >= sizes.fewest]
    for name in sets:
        if name not in able:
            note(f"{name}: left out, {len(sets[name].high)} interfering words found, {sizes.fewest} needed")
    order = [able[at] for at in generator(job.options.seed, "distill", "shuffled").permutation(len(able))]
    after = dict(zip(order, order[1:] + order[:1], strict=True))
    drawn = {}
    for name in able:
        taken = {*sets[name].high, *sets[name].own, *sets[name].related, *sets[name].near}
        shuffled = [text for text in sets[after[name]].high if text not in taken] if len(able) > 1 else []
        drawn[name] = draw_injections(sets[name], shuffled, sizes, job.options.seed)
        note(f"{name}: {len(sets[name].high)} interfering words; arms {', '.join(drawn[name])}")
    return drawn


def _reserve(concept: Concept, options: Options) -> tuple[str, ...]:
    """The sentences of a concept that predictions are measured on."""
    if options.reserved >= len(concept.sentences):
        raise UsageError(
            f"{concept.name} has {len(concept.sentences)} sentences; {options.reserved} reserved leave none to score",
            hint="lower --reserved",
        )
    chosen = subset(concept.sentences, options.reserved, generator(options.seed, "distill", "reserved", concept.name))
    return tuple(sentence.text for sentence in chosen)


Drawn = Mapping[str, Mapping[Arm, tuple[tuple[str, ...], ...]]]
Predictions = dict[tuple[str, str, int], dict[str, float]]


def _predict(
    job: Job,
    concepts: Mapping[str, Concept],
    injections: Drawn,
    reserved: Mapping[str, Sequence[str]],
    note: Callable[[str], None],
) -> Predictions:
    """What each source shows for each injection: (concept, arm, number) to shifts by source."""
    template = find_template(job.options.template)
    found: Predictions = {}
    for source in job.sources if job.options.reserved else ():
        clock = stopwatch()
        predictor = job.open_predictor(source)
        for name, arms in injections.items():
            keys = [(name, arm, number) for arm, drawn in arms.items() for number in range(len(drawn))]
            shifts = predictor.shifts(
                concepts[name], reserved[name], [one for drawn in arms.values() for one in drawn], template
            )
            for key, shift in zip(keys, shifts.tolist(), strict=True):
                if np.isfinite(shift):
                    found.setdefault(key, {})[source] = round(shift, 4)
        note(f"{source}: predictions measured on {job.options.reserved} sentences a concept: {clock()}")
    return found


def _probes(sets: Mapping[str, Sets], injections: Drawn, predictions: Predictions) -> tuple[list[Probe], list[dict[str, Any]]]:
    """All probes, and the links that they name."""
    numbers: dict[Link, int] = {}
    rows: list[dict[str, Any]] = []
    probes = []
    for name, arms in injections.items():
        for arm, drawn in arms.items():
            for number, injection in enumerate(drawn):
                provenance: dict[str, Any] = {}
                if arm == "high":
                    provenance = _of_high(name, [sets[name].high[text] for text in injection], numbers, rows)
                elif arm == "matched":
                    provenance = {"matched_to": f"high-{number:04d}"}
                shifts = predictions.get((name, arm, number), {})
                probes.append(
                    Probe(
                        concept=name,
                        arm=arm,
                        injection_id=f"{arm}-{number:04d}",
                        injection=injection,
                        predicted_shift=round(float(np.mean(list(shifts.values()))), 4) if shifts else None,
                        provenance=provenance | ({"predicted": shifts} if len(shifts) > 1 else {}),
                    )
                )
    return probes, rows


def _of_high(name: str, links: Sequence[Link], numbers: dict[Link, int], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The provenance of a `high` probe; links that are new to `rows` are added there."""
    for link in links:
        if link not in numbers:
            numbers[link] = len(rows)
            members = [
                {**asdict(m), "interference": round(m.interference, 4), "similarity": round(m.similarity, 4)}
                for m in link.members
            ]
            rows.append({"link": len(rows), "concept": name, "members": members, "words": list(link.words)})
    return {
        "links": [numbers[link] for link in links],
        "interference": round(float(np.mean([link.interference for link in links])), 4),
        "similarity": round(float(np.mean([link.similarity for link in links])), 4),
    }


def _pools(sets: Mapping[str, Sets], injections: Drawn) -> list[PoolRow]:
    """Whole sets, for evals that draw afresh as published."""
    named: tuple[tuple[Arm, Callable[[Sets], Iterable[str]]], ...] = (
        ("self", lambda found: found.own),
        ("high", lambda found: found.high),
        ("low", lambda found: found.low),
        ("random", lambda found: found.far),
    )
    return [
        PoolRow(concept=name, arm=arm, tokens=texts)
        for name in injections
        for arm, strings in named
        if (texts := tuple(strings(sets[name])))
    ]


def _claims(job: Job) -> str:
    where = "pairs shared by both sources" if job.shared_only else "pairs of the sources"
    return (
        f"words of features that mean something else but interfere with the concept's ({where}) shift the next word towards it"
    )


def _parameters(options: Options) -> dict[str, Any]:
    plain = asdict(options)
    return {**{key: value for key, value in plain.items() if key not in ("sizes", "seed")}, **plain["sizes"]}


def _sources(
    job: Job,
    catalogues: Mapping[str, Catalogue],
    sites: Mapping[str, Sequence[Site]],
    left_out: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
    """Where everything comes from: models, dictionaries, text, by digest."""
    described: dict[str, Any] = {"similarity": f"all-MiniLM-L6-v2 ({REQUIREMENT})", "words": "prompts/words.txt"}
    for source, catalogue in catalogues.items():
        described[source] = {
            "model_sha256": catalogue.model_reference()["sha256"],
            "corpus": {key: value for key, value in catalogue.manifest["corpus"].items() if value is not None},
            "gloss": str(catalogue.manifest["gloss"].get("source")),
            "sites": {str(site): catalogue.manifest["sites"][str(site)]["sha256"] for site in sites[source]},
            "sites_left_out": dict(left_out[source]),
        }
    if job.shared_only:
        a, b = job.sources
        folder = job.maps / map_name("shared", f"{a}-{b}", job.basis)
        manifest = read_manifest(folder, made_by="harness map shared")
        described["shared"] = {"manifest": MANIFEST, **{k: manifest[k] for k in ("method", "counts") if k in manifest}}
    return described


def _concept_files(concepts: Mapping[str, Concept], reserved: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The pack's own copies of its concepts, without the reserved sentences."""
    files = {}
    for name, texts in reserved.items():
        concept, folder = concepts[name], f"{CONCEPTS}/{name}"
        files[f"{folder}/{CONCEPT_MANIFEST}"] = tomli_w.dumps(concept.manifest.model_dump())
        files[f"{folder}/{LEXICON}"] = _plain(sorted(concept.words))
        files[f"{folder}/{SENTENCES}"] = _plain(s.text for s in concept.sentences if s.text not in texts)
        if concept.off_type:
            files[f"{folder}/{OFF_TYPE}"] = _plain(s.text for s in concept.off_type)
    return files


def _plain(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return _plain(json.dumps(row, ensure_ascii=False) for row in rows)
