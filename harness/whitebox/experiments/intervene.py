"""Does interference bite? The shift of the next-token distribution towards a target, for interfering features and controls.

For each site and concept a few features that speak of the concept are the targets (`candidates`), each with arms of equally
many candidates. Each candidate is tried on every scored sentence of the concept, at every dose (`foci`). Every case is kept,
with its sign. The output folder (see `stage`) holds

- `effects.parquet`: source, site, focus, concept, target, arm, draw (its number in the arm), candidate (feature or neuron, null
  for a random direction), interference, similarity, density, coactivation, activation, degree (see `candidates.Candidate`),
  sentence_id, dose (standard deviations, or a neuron's factor; null for prompts), and the changes against the clean run:
  weighted_cosine, weighted_overlap (`measures`), log_odds_shift (of the lexicon's mass, nats), total_variation, top1_changed;
  beside them clean_weighted_cosine, clean_weighted_overlap, clean_log_odds;
- `table.json` (`effect_tables.tables`), `regressions.json` (`regressions.regressions`), `manifest.json`.

Doses are fixed in advance, or chosen for each target on sentences of the concept that are not scored: the one of the grid at
which the target's own direction raises the lexicon's log-odds most. All arms of the target get it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from harness.errors import UsageError
from harness.lexicon import resolve
from harness.packs.concepts import Concept
from harness.packs.sampling import generator
from harness.paths import make_dir, writing
from harness.providers.vocabulary import Vocabulary
from harness.records import Sentence
from harness.whitebox.clusters import neurons
from harness.whitebox.distilling.links import SiteFeatures
from harness.whitebox.experiments.candidates import BANDS, SELF, Band, Candidate, Chooser, NeuronChooser, Wanted, ranked
from harness.whitebox.experiments.effect_tables import tables
from harness.whitebox.experiments.firing import elsewhere, firings
from harness.whitebox.experiments.foci import (
    Answers,
    Compass,
    FeatureRunner,
    Focus,
    NeuronRunner,
    PromptRunner,
    Runner,
    TokenRunner,
)
from harness.whitebox.experiments.measures import Yardstick, top_ids_by_text, top_token_ids
from harness.whitebox.experiments.regressions import import_statsmodels, regressions
from harness.whitebox.features.catalogue import Catalogue, TopToken
from harness.whitebox.sources.activations import check_sites
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
    write_json,
    write_table,
)
from harness.whitebox.steering.steering import Reading, Steerer

FORMAT = 1
"""Raised when the files of a finished site change their meaning: older ones are then computed again."""

DOSES: dict[Focus, tuple[float, ...]] = {
    "prompt": (),
    "token": (2.0,),
    "feature": (2.0,),
    "neuron": (0.0, 0.5, 2.0, 5.0, 10.0, 20.0),
}
GRID = (0.5, 1.0, 2.0, 4.0, 8.0)
"""What a dose in standard deviations is chosen from, unless told otherwise."""

DEGREE_CUT = 0.4
"""The clusters of `harness map clusters` by which a neuron's degree is told, as published."""

_FLOATS = ("interference", "similarity", "density", "coactivation", "activation")
_CHANGES = ("weighted_cosine", "weighted_overlap", "log_odds_shift", "total_variation")
_CLEAN = ("clean_weighted_cosine", "clean_weighted_overlap", "clean_log_odds")
_TEXT = pa.dictionary(pa.int32(), pa.string())
EFFECTS = pa.schema(
    [
        *(pa.field(name, pa.dictionary(pa.int8(), pa.string())) for name in ("source", "site", "focus")),
        pa.field("concept", _TEXT),
        pa.field("target", pa.int32()),
        pa.field("arm", _TEXT),
        *(pa.field(name, pa.int32()) for name in ("draw", "candidate")),
        *(pa.field(name, pa.float32()) for name in _FLOATS),
        pa.field("degree", pa.int32()),
        pa.field("sentence_id", _TEXT),
        *(pa.field(name, pa.float32()) for name in ("dose", *_CHANGES)),
        pa.field("top1_changed", pa.bool_()),
        *(pa.field(name, pa.float32()) for name in _CLEAN),
    ]
)

NOBODY = "no feature speaks of it"
ALONE = "no feature interferes with those that speak of it"
UNSPELT = "no token of the model is one of its words"
UNREAD = "no context of its features can be read"

Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """What is tried. `doses`: all are applied, or with `held_out` one of them is chosen for each target; none means the usual
    ones of the focus. `sentences`: scored for each concept, and as many others to choose the dose on."""

    focus: Focus
    targets: int = 4
    candidates: int = 3
    sentences: int = 6
    doses: tuple[float, ...] = ()
    held_out: bool = False
    bands: tuple[Band, ...] = BANDS
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("targets", "candidates", "sentences"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}: {getattr(self, name)} is not above 0")
        if self.focus == "prompt" and (self.doses or self.held_out):
            raise UsageError("an injection into the prompt has no dose", hint="leave out --dose and --dose-from-held-out")
        if not np.isfinite(self.doses).all():
            raise UsageError("doses must be finite numbers", hint="for example --dose 2")
        if not self.bands:
            raise UsageError("no band of interference", hint="for example --band 0.2-0.3")

    @property
    def grid(self) -> tuple[float, ...]:
        """The doses that are applied or chosen from; one that is nothing for prompts."""
        usual = GRID if self.held_out and self.focus != "neuron" else DOSES[self.focus]
        return self.doses or usual or (np.nan,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to intervene on. `model` computes in float32. `places`: the site of `model` for each site of the catalogue where
    it is another model than the source; None for the source. `clusters`: folder of `harness map clusters`, if there is one."""

    catalogue: Catalogue
    model: LocalModel
    out: Path
    design: Design
    sites: tuple[Site, ...]
    concepts: tuple[Concept, ...]
    places: dict[Site, Site] | None = None
    clusters: Path | None = None


class _Bench:
    """What all sites of a job share: the model made ready for the focus, its vocabulary, and the concepts' words in it."""

    def __init__(self, job: Job) -> None:
        self.vocabulary = Vocabulary(job.model.tokenizer)
        self.yardstick = Yardstick(job.model.model)
        self.lexicons = {concept.name: resolve(concept, self.vocabulary, first_token=False) for concept in job.concepts}
        self.steerer = None if job.design.focus == "prompt" else Steerer(job.model.model)
        self.answers = Answers(job.model.model) if self.steerer is None else None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Asked:
    """A concept at a site: the scored sentences, the others, the lexicon's ids, the targets' cases and their top tokens."""

    concept: str
    scored: tuple[Sentence, ...]
    others: tuple[Sentence, ...]
    lexicon: list[int]
    cases: dict[int, tuple[Candidate, ...]]
    top: dict[int, tuple[int, ...]]


def run_interventions(job: Job, note: Callable[[str], None]) -> Record:
    """Run every site of the job and write the output folder; its `table.json` and `regressions.json` under `table` and
    `regressions`, and the manifest under `manifest`.

    Finished sites are kept. A concept that no feature speaks of is told and left out. Raises UsageError for neurons of another
    model than the source, and what reading catalogue and model raises.
    """
    if job.places is not None and job.design.focus == "neuron":
        raise UsageError("neurons are those of the source", hint="leave out --model, or take another --focus")
    import_statsmodels()  # rather than miss it when all is done
    check_sites(job.model.model, [_place(job, site) for site in job.sites])
    make_dir(job.out)
    bench = _Bench(job)
    done: list[Record] = []
    for number, site in enumerate(job.sites, start=1):
        degrees = _degrees(job, site) if job.design.focus == "neuron" else None
        key = _key(job, site, bench, degrees)
        folder = site_folder(job.out, site)
        record = finished(folder, key)
        kept = "" if record is None else ", kept from before"
        with writing(job.out, hint=NO_ROOM):
            record = record or _run_site(job, site, bench, degrees, folder, key, note)
        done.append(record)
        note(f"{job.catalogue.source} {site}: {_told(record)}{kept} ({number}/{len(job.sites)})")
    with writing(job.out, hint=NO_ROOM):
        return _publish(job, done)


def _place(job: Job, site: Site) -> Site:
    """Where the model is steered for a site of the catalogue."""
    return site if job.places is None else job.places[site]


def _degrees(job: Job, site: Site) -> tuple[NDArray[np.int64], str]:
    """How many clusters each neuron serves at DEGREE_CUT, or how many features, (d_model,); and which of the two."""
    path = None if job.clusters is None else site_folder(job.clusters, site) / "neurons.parquet"
    if path is not None and path.is_file():
        table = pq.read_table(path, filters=[("cut", "=", DEGREE_CUT)])
        if len(table):
            return table.sort_by("neuron")["degree"].to_numpy().astype(np.int64), "clusters"
    linked = neurons.links_of(job.catalogue.directions(site).unit, neurons.Linking())
    return np.bincount(linked.neuron, minlength=linked.d_model), "features"


def _key(job: Job, site: Site, bench: _Bench, degrees: tuple[NDArray[np.int64], str] | None) -> dict[str, Any]:
    """Everything that a site's numbers depend on."""
    catalogue = job.catalogue
    record = json.loads((site_folder(catalogue.folder, site) / RECORD).read_text(encoding="utf-8"))
    glosses = hashlib.sha256(catalogue.gloss_vectors(site).tobytes()).hexdigest()
    return {
        "format": FORMAT,
        "source": catalogue.source,
        "site": str(site),
        "place": str(_place(job, site)),
        "model": {"sha256": job.model.digest, "tokenizer": bench.vocabulary.digest, "bos": job.model.bos},
        "catalogue": {"key": record["key"], "glosses": glosses, **catalogue.manifest["sites"][str(site)]},
        "concepts": {concept.name: concept.digest for concept in job.concepts},
        "design": asdict(job.design) | {"doses": [str(dose) for dose in job.design.grid]},
        "degrees": None if degrees is None else hashlib.sha256(degrees[0].tobytes()).hexdigest(),
    }


def _run_site(  # noqa: PLR0913  what `run_interventions` knows of the site
    job: Job,
    site: Site,
    bench: _Bench,
    degrees: tuple[NDArray[np.int64], str] | None,
    folder: Path,
    key: Record,
    note: Callable[[str], None],
) -> Record:
    """Try everything at one site, into `folder`, which appears whole or not at all."""
    clock = stopwatch()
    chooser = _chooser(job, site, degrees)
    asked, silent = _asked(job, site, bench, chooser)
    runner = _runner(job, site, bench, chooser.features, asked)
    tried: list[pa.Table] = [EFFECTS.empty_table()]
    for one in asked:
        found = pa.Table.from_pylist(_try(job, site, bench, runner, one), schema=EFFECTS)
        if not len(found):
            silent[one.concept] = UNREAD
        tried.append(found)
        note(f"{site} {one.concept}: {len(found):,} cases, {clock()}")
    for concept, reason in silent.items():
        note(f"{site} {concept}: left out, {reason}")
    effects = pa.concat_tables(tried).unify_dictionaries().combine_chunks()
    with building(folder) as scratch:
        write_table(scratch / "effects.parquet", effects)
        record = {
            "key": key,
            "n_cases": len(effects),
            "targets": {one.concept: list(one.cases) for one in asked if one.concept not in silent},
            "silent": silent,
            "empty_arms": _empty(job, effects),
            "degrees_of": None if degrees is None else degrees[1],
            **asdict(clock()),
        }
        write_json(scratch / RECORD, record)
    return record


def _chooser(job: Job, site: Site, degrees: tuple[NDArray[np.int64], str] | None) -> Chooser | NeuronChooser:
    design = job.design
    wanted = Wanted(
        targets=design.targets,
        candidates=design.candidates,
        bands=design.bands,
        named=design.focus == "prompt",
        seed=design.seed,
    )
    if degrees is None:
        return Chooser(job.catalogue, site, wanted)
    mean, covariance = (moment.astype(np.float64) for moment in job.catalogue.moments(site))
    return NeuronChooser(SiteFeatures(job.catalogue, site), wanted, degrees[0], np.sqrt(mean**2 + covariance.diagonal()))


def _asked(job: Job, site: Site, bench: _Bench, chooser: Chooser | NeuronChooser) -> tuple[list[_Asked], dict[str, str]]:
    """The concepts that something can be asked about, and why not about the others."""
    asked, silent = [], {}
    for concept in job.concepts:
        ids, words = bench.lexicons[concept.name].token_ids, bench.lexicons[concept.name].words
        cases = chooser.targets(words)
        if ids is None or not len(ids):
            silent[concept.name] = UNSPELT
        elif not cases:
            silent[concept.name] = ALONE if ranked(chooser.features, words) else NOBODY
        else:
            scored, others = split(concept, job.design)
            top = job.catalogue.top_tokens(site, cases.keys())
            goals = {target: _top_ids(job, bench, top[target]) for target in cases}
            asked.append(
                _Asked(concept=concept.name, scored=scored, others=others, lexicon=ids.tolist(), cases=cases, top=goals)
            )
    return asked, silent


def split(concept: Concept, design: Design) -> tuple[tuple[Sentence, ...], tuple[Sentence, ...]]:
    """The sentences that are scored, and as many others (or as are left) for choosing the dose; raises UsageError for none."""
    order = generator(design.seed, "sentences", concept.name).permutation(len(concept.sentences))
    drawn = [concept.sentences[at] for at in order]
    scored, others = tuple(drawn[: design.sentences]), tuple(drawn[design.sentences : 2 * design.sentences])
    if design.held_out and not others:
        raise UsageError(
            f"{concept.name}: all {len(drawn)} sentences are scored, none is left to choose the dose on",
            hint="score fewer with --sentences",
        )
    return scored, others


def _top_ids(job: Job, bench: _Bench, tokens: list[TopToken]) -> tuple[int, ...]:
    """The target's top tokens in the vocabulary of the model that is steered."""
    known = top_token_ids(tokens) if job.places is None else None
    return top_ids_by_text(tokens, bench.vocabulary) if known is None else known


def _runner(job: Job, site: Site, bench: _Bench, features: SiteFeatures, asked: Sequence[_Asked]) -> Runner:
    focus, seed = job.design.focus, job.design.seed
    wanted = sorted({c.feature for one in asked for cases in one.cases.values() for c in cases if c.feature is not None})
    if bench.answers is not None:
        words = {feature: list(dict.fromkeys(features.words.high(feature)[1])) for feature in wanted}
        return PromptRunner(bench.answers, bench.vocabulary, words, seed)
    assert bench.steerer is not None
    if focus == "neuron":
        return NeuronRunner(bench.steerer, bench.vocabulary, site)
    contexts = firings(job.catalogue.table(site, "contexts"), wanted, job.model)
    if job.places is None:
        trace = float(np.trace(job.catalogue.moments(site)[1].astype(np.float64)))
        directions = dict(zip(wanted, features.unit[np.searchsorted(features.features, wanted)], strict=True))
        std = (trace / features.unit.shape[1]) ** 0.5
    else:
        known = elsewhere(job.model.model, _place(job, site), contexts)
        directions, std = known.directions, known.std
    compass = Compass(site=_place(job, site), directions=directions, d_model=bench.steerer.decoder.d_model, std=std, seed=seed)
    if focus == "token":
        return TokenRunner(bench.steerer, bench.vocabulary, compass, contexts)
    return FeatureRunner(bench.steerer, bench.vocabulary, compass)


def _try(job: Job, site: Site, bench: _Bench, runner: Runner, one: _Asked) -> list[Row]:
    """Every case of a concept on every scored sentence, at every dose."""
    able = {t: [case for case in cases if runner.able(case)] for t, cases in one.cases.items()}
    able = {t: cases for t, cases in able.items() if any(case.arm == SELF for case in cases)}
    cases = [case for listed in able.values() for case in listed]
    if not cases:
        return []
    order = list(able)
    vectors = bench.yardstick.vectors([one.top[target] for target in order])

    def read(clean: Any) -> Reading:
        return Reading(clean, [one.lexicon], vectors)

    grid = np.array(job.design.grid, np.float64)
    doses = np.tile(grid, (len(cases), 1))
    if job.design.held_out:
        chosen = dict(zip(order, _held_out_doses(runner, one, [able[t][0] for t in order], grid, read), strict=True))
        doses = np.array([[chosen[case.target]] for case in cases])
    rows: list[Row] = []
    outcomes = runner.run([sentence.text for sentence in one.scored], cases, doses, read)
    for sentence, (reading, effects) in zip(one.scored, outcomes, strict=True):
        for i, k in np.ndindex(doses.shape):
            at = order.index(cases[i].target)
            rows.append(
                {
                    **_labels(job, site, one.concept, cases[i]),
                    "sentence_id": sentence.sentence_id,
                    "dose": None if np.isnan(doses[i, k]) else doses[i, k],
                    "weighted_cosine": effects.expectation_shift[at, i, k],
                    "weighted_overlap": effects.expectation_shift[len(order) + at, i, k],
                    "log_odds_shift": effects.log_odds_shift[0, i, k],
                    "total_variation": effects.total_variation[i, k],
                    "top1_changed": bool(effects.top1_changed[i, k]),
                    "clean_weighted_cosine": reading.clean_expectations[at],
                    "clean_weighted_overlap": reading.clean_expectations[len(order) + at],
                    "clean_log_odds": reading.clean_log_odds[0],
                }
            )
    return rows


def _held_out_doses(
    runner: Runner,
    one: _Asked,
    own: Sequence[Candidate],
    grid: NDArray[np.float64],
    read: Callable[[Any], Reading],
) -> list[float]:
    """For each target the dose of its own direction that raises the log-odds most, on average over the other sentences."""
    doses = np.tile(grid, (len(own), 1))
    outcomes = runner.run([sentence.text for sentence in one.others], own, doses, read)
    mean = np.mean([effects.log_odds_shift[0] for _, effects in outcomes], axis=0)  # (n_targets, k)
    best: list[float] = grid[np.nan_to_num(mean, nan=-np.inf).argmax(axis=1)].tolist()
    return best


def _labels(job: Job, site: Site, concept: str, case: Candidate) -> Row:
    """What is known of a case before anything is run."""
    return {
        "source": job.catalogue.source,
        "site": str(site),
        "focus": job.design.focus,
        "concept": concept,
        "target": case.target,
        "arm": case.arm,
        "draw": case.draw,
        "candidate": case.feature,
        **{name: getattr(case, name) for name in (*_FLOATS, "degree")},
    }


def _empty(job: Job, effects: pa.Table) -> list[str]:
    """The bands of interference that no target had a candidate in."""
    there = set(effects["arm"].to_pylist())
    return [] if job.design.focus == "neuron" else [str(band) for band in job.design.bands if str(band) not in there]


def _told(record: Record) -> str:
    empty = f", nothing in {', '.join(record['empty_arms'])}" if record["empty_arms"] else ""
    n = sum(map(len, record["targets"].values()))
    return (
        f"{n} targets of {len(record['targets'])} concepts, {record['n_cases']:,} cases{empty}, {record['seconds']:.1f} s, "
        f"peak memory {record['peak_memory_gb']:.2f} GB"
    )


def _publish(job: Job, done: Sequence[Record]) -> Record:
    """Join the sites' cases and write what they say."""
    folders = [job.out / "sites" / record["key"]["site"] for record in done]
    join([folder / "effects.parquet" for folder in folders], EFFECTS, job.out / "effects.parquet")
    effects = pq.read_table(job.out / "effects.parquet")
    manifest = {
        "stage": "intervene",
        "source": job.catalogue.source,
        "catalogue": str(job.catalogue.folder),
        "model": {"name": job.model.name, "sha256": job.model.digest, "is_source": job.places is None},
        "design": done[0]["key"]["design"],
        "n_cases": len(effects),
        "sites": {
            record["key"]["site"]: {
                "place": record["key"]["place"],
                **{name: record[name] for name in ("n_cases", "targets", "silent", "empty_arms", "degrees_of", "seconds")},
            }
            for record in done
        },
        "versions": versions("numpy", "torch", "transformers", "pyarrow"),
        "seconds": sum(record["seconds"] for record in done),
        "peak_memory_gb": max(record["peak_memory_gb"] for record in done),
    }
    found = {"manifest": manifest, "table": tables(effects), "regressions": regressions(effects)}
    for name, file in (("table", "table.json"), ("regressions", "regressions.json"), ("manifest", MANIFEST)):
        write_json(job.out / file, found[name])
    return found
