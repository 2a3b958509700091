"""Which interference pairs of one source are also pairs of another, both members matched, beside what chance would share.

For every site of a with every site of b: features that match (`matching`), pairs of a whose two features match those of a pair
of b at that one site (`pairing`), and of these the ones that are each other's best by a margin: the *shared pairs*. Best and
margin are among the pairs of the two sites: a pair that a source has at several sites would else be its own rival. Of the
pairs in `topology` only those whose glosses are unlike take part; where a gloss is missing nobody knows, and they are left out.

The output folder holds, for all combinations of sites that the last run asked for, and for each apart in `sites/<a>--<b>/`,

- `matches.parquet`: source_a, site_a, feature_a, source_b, site_b, feature_b, score, rank_ab (place of b among a's matches at
  that site, from 0, -1 beyond the candidates), rank_ba, mutual (both 0);
- `shared.parquet`: site_a, i_a, j_a, cosine_a, similarity_a, site_b, i_b, j_b, cosine_b, similarity_b, match_i, match_j, score,
  margin (null where not mutual), mutual, shared; i_b matches i_a and j_b matches j_a, so that i_b may be above j_b. A row for
  every pair's best partner; `read_shared` gives the shared ones;
- `null.parquet`: site_a, site_b, null, draw, observed, count. `relabelled`: shared pairs after b's features have swapped places
  within bins of density; `partner`: shared pairs (of DRAWN_ANEW at most) that would still count with one member of b's pair
  replaced by a feature of equal cosine (`observed` counts those for which there is such a feature);

and `manifest.json`: stage, sources, method, options, counts, null (observed, mean, max, p), sites, versions, seconds,
peak_memory_gb. `annotation` may add files of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from harness.errors import UsageError
from harness.packs.sampling import generator
from harness.paths import make_dir, writing
from harness.whitebox.sharing import pairing
from harness.whitebox.sharing.alignment import align
from harness.whitebox.sharing.matching import Entries, Matches, affine_map, best, correlations, cosines
from harness.whitebox.sharing.pairing import Candidates, Decision
from harness.whitebox.sharing.shared_ends import End, OpenedEnd, Options, SeenSite
from harness.whitebox.sources.sites import Site
from harness.whitebox.stage import (
    MANIFEST,
    NO_ROOM,
    RECORD,
    SITES,
    Record,
    Used,
    building,
    finished,
    join,
    read_manifest,
    stopwatch,
    versions,
    write_json,
    write_table,
)

FORMAT = 1
"""Raised when the files of a finished combination change their meaning: older ones are then computed again."""

RELABELLED, PARTNER = "relabelled", "partner"

DRAWN_ANEW = 1000
"""Shared pairs of one combination of sites that get another partner, at most: each takes some 20 ms with 32,768 features."""

_LABEL = pa.dictionary(pa.int8(), pa.string())
MATCHES = pa.schema(
    [
        *(
            (f"{name}_{end}", kind)
            for end in "ab"
            for name, kind in (("source", _LABEL), ("site", _LABEL), ("feature", pa.int32()))
        ),
        ("score", pa.float32()),
        *((name, pa.int32()) for name in ("rank_ab", "rank_ba")),
        ("mutual", pa.bool_()),
    ]
)
SHARED = pa.schema(
    [
        *(
            (f"{name}_{end}", kind)
            for end in "ab"
            for name, kind in (
                ("site", pa.string()),
                ("i", pa.int32()),
                ("j", pa.int32()),
                ("cosine", pa.float32()),
                ("similarity", pa.float32()),
            )
        ),
        *((name, pa.float32()) for name in ("match_i", "match_j", "score", "margin")),
        *((name, pa.bool_()) for name in ("mutual", "shared")),
    ]
)
NULL = pa.schema(
    [
        *((name, pa.string()) for name in ("site_a", "site_b", "null")),
        *((name, pa.int32()) for name in ("draw", "observed", "count")),
    ]
)
TABLES = {"matches": MATCHES, "shared": SHARED, "null": NULL}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Which pairs to match, and where to write."""

    a: End
    b: End
    out: Path
    options: Options = field(default_factory=Options)


def find_shared(job: Job, note: Callable[[str], None]) -> Record:
    """Match the pairs of two sources and write the output folder; its manifest, with `rows`, one for each combination of sites.

    Finished combinations are kept whatever happens later. Raises UsageError for sources that cannot be compared, and
    FileFormatError for files that do not fit.
    """
    clock = stopwatch()
    make_dir(job.out)
    ends = OpenedEnd(job.a, job.options), OpenedEnd(job.b, job.options)
    _check_comparable(job, *ends)
    digests = [{site: end.digests(site) for site in end.sites} for end in ends]
    keys = {
        (a, b): {"format": FORMAT, "options": asdict(job.options), "a": digests[0][a], "b": digests[1][b]}
        for a in ends[0].sites
        for b in ends[1].sites
    }
    records = {sites: finished(_folder(job.out, *sites), key) for sites, key in keys.items()}
    if job.options.method != "gloss" and None in records.values():
        _align(*ends, note)
    left: SeenSite | None = None
    done: list[Record] = []
    for number, ((site_a, site_b), record) in enumerate(records.items(), start=1):
        kept = ", kept from before" if record else ""
        if record is None:
            left = left if left is not None and left.site == site_a else ends[0].see(site_a, note)
            with writing(job.out, hint=NO_ROOM):
                record = _match_sites(job, left, ends[1].see(site_b, note), keys[site_a, site_b])
        done.append(record)
        note(f"{site_a} x {site_b}: {_told(record)}{kept} ({number}/{len(records)})")
    with writing(job.out, hint=NO_ROOM):
        manifest = _publish(job, done, clock())
    return {**manifest, "rows": [_row(record) for record in done]}


def read_shared(folder: Path) -> pa.Table:
    """The shared pairs in a folder of this stage, best score first, with the columns of `shared.parquet`.

    The two sources stand in `sources` of its manifest, a first. Raises FileFormatError where the stage has not finished.
    """
    read_manifest(folder, made_by="harness map shared --sources A,B")
    rows = pq.read_table(folder / "shared.parquet").cast(SHARED)
    rows = rows.filter(rows["shared"])
    return rows.take(pa.array(np.argsort(-rows["score"].to_numpy(), kind="stable")))


def _check_comparable(job: Job, a: OpenedEnd, b: OpenedEnd) -> None:
    if job.a.source == job.b.source:
        raise UsageError(f"both sources are {job.a.source}", hint="a pair is shared by two different sources: --sources A,B")
    if job.options.method == "gloss":
        return
    texts = [end.catalogue.manifest["corpus"]["sha256"] for end in (a, b)]
    if texts[0] != texts[1]:
        raise UsageError(
            f"the catalogues of {job.a.source} and {job.b.source} were made from different texts: their activations cannot be "
            "compared",
            hint="make both with the same --text of harness map catalogue, or compare glosses: --method gloss",
        )


def _align(a: OpenedEnd, b: OpenedEnd, note: Callable[[str], None]) -> None:
    found = align(a.catalogue.spans, b.catalogue.spans)
    if not found.n:
        raise UsageError(
            f"{a.end.source} and {b.end.source} have no text in common", hint="make both catalogues with more --keep-tokens"
        )
    for end, segment in ((a, found.a), (b, found.b)):
        end.segment, end.n_segments = segment, found.n
        note(f"{end.end.source}: {np.mean(segment >= 0):.1%} of {len(segment):,} tokens lie in {found.n:,} common segments")


def _entries(a: SeenSite, b: SeenSite, options: Options) -> Iterator[Entries]:
    """Scores of features of a with features of b."""
    if options.method == "correlation":
        return correlations(a.codes, b.codes, min_active=options.min_active, at_least=options.at_least)
    if a.vectors is None or b.vectors is None:
        raise AssertionError("both other methods compare vectors")
    one, other = a.vectors, b.vectors
    if options.method == "affine":
        carried = affine_map((a.codes, one), (b.codes, other))
        one, other = (one * a.usable[:, None]) @ carried.astype(np.float32), other * b.usable[:, None]
    elif one.shape[1] != other.shape[1]:
        raise UsageError(
            f"gloss vectors of {a.source} have {one.shape[1]} entries, of {b.source} {other.shape[1]}",
            hint="make both catalogues with the same --gloss",
        )
    return cosines(one, other, at_least=options.at_least)


def _match_sites(job: Job, a: SeenSite, b: SeenSite, key: Record) -> Record:
    """Compute one combination of sites into its folder, which appears whole or not at all."""
    clock, options = stopwatch(), job.options
    matches = best(_entries(a, b, options), options.candidates)
    found = pairing.candidates(a.pairs, b.pairs, matches)
    decision = pairing.decide(found, options.margin)
    null = {RELABELLED: _relabelled(a, b, matches, options), PARTNER: _partner(a, b, matches, found[decision.shared], options)}
    with building(_folder(job.out, a.site, b.site)) as scratch:
        write_table(scratch / "matches.parquet", _matches_table(a, b, matches))
        write_table(scratch / "shared.parquet", _shared_table(a, b, found[decision.best], decision))
        write_table(scratch / "null.parquet", _null_table(a, b, null))
        record = {
            "key": key,
            "counts": {
                "segments": None if a.codes is None else a.codes.shape[0],
                "features_a": int(a.usable.sum()),
                "features_b": int(b.usable.sum()),
                "matches": len(matches.a),
                "mutual_matches": int(matches.mutual.sum()),
                "pairs_a": len(a.pairs),
                "pairs_b": len(b.pairs),
                "unknown_a": a.n_unknown,
                "unknown_b": b.n_unknown,
                "candidates": len(found.a),
                "shared": int(decision.shared.sum()),
            },
            "null": {name: {"observed": observed, "counts": counts} for name, (observed, counts) in null.items()},
            **asdict(clock()),
        }
        write_json(scratch / RECORD, record)
    return record


def _relabelled(a: SeenSite, b: SeenSite, matches: Matches, options: Options) -> tuple[int, list[int]]:
    """Shared pairs as they are, and with b's features put in another's place. A site of b is relabelled alike for all of a's:
    so that the draws of all combinations can be added up."""
    counts = []
    for draw in range(-1, options.permutations):
        rng = generator(options.seed, RELABELLED, str(b.site), str(draw))
        drawn = matches if draw < 0 else pairing.relabelled(matches, b.density, b.usable, rng)
        found = pairing.decide(pairing.candidates(a.pairs, b.pairs, drawn), options.margin)
        counts.append(int(found.shared.sum()))
    return counts[0], counts[1:]


def _partner(a: SeenSite, b: SeenSite, matches: Matches, shared: Candidates, options: Options) -> tuple[int, list[int]]:
    """Shared pairs that could be drawn anew, and how many of them would still count, in each draw."""
    if not len(shared.a):
        return 0, [0] * options.permutations
    rng = generator(options.seed, PARTNER, str(a.site), str(b.site))
    some = np.sort(rng.permutation(len(shared.a))[:DRAWN_ANEW])
    chance = pairing.partner_chance(shared[some], matches, a.pairs, b.directions(), b.usable)
    chance = chance[~np.isnan(chance)]
    drawn = rng.random((options.permutations, len(chance))) < chance
    return len(chance), [int(n) for n in drawn.sum(axis=1)]


def _matches_table(a: SeenSite, b: SeenSite, found: Matches) -> pa.Table:
    n = len(found.a)
    labels = [[_same(end.source, n), _same(str(end.site), n)] for end in (a, b)]
    columns = [*labels[0], found.a, *labels[1], found.b, found.score, found.rank_ab, found.rank_ba, found.mutual]
    return pa.table([pa.array(column) for column in columns], schema=MATCHES)


def _shared_table(a: SeenSite, b: SeenSite, found: Candidates, decision: Decision) -> pa.Table:
    """`found`: the candidates that `decision` calls best."""
    of_a, of_b = a.pairs, b.pairs
    columns = [
        [str(a.site)] * len(found.a),
        *(values[found.a] for values in (of_a.i, of_a.j, of_a.cosine, of_a.similarity)),
        [str(b.site)] * len(found.a),
        found.i_b,
        found.j_b,
        *(values[found.b] for values in (of_b.cosine, of_b.similarity)),
        *(found.match_i, found.match_j, found.score),
        pa.array(decision.margin[decision.best], from_pandas=True),
        *(flags[decision.best] for flags in (decision.mutual, decision.shared)),
    ]
    return pa.table([pa.array(column, kind.type) for column, kind in zip(columns, SHARED, strict=True)], schema=SHARED)


def _null_table(a: SeenSite, b: SeenSite, null: Mapping[str, tuple[int, list[int]]]) -> pa.Table:
    rows = [
        {"site_a": str(a.site), "site_b": str(b.site), "null": name, "draw": draw, "observed": observed, "count": count}
        for name, (observed, counts) in null.items()
        for draw, count in enumerate(counts)
    ]
    return pa.Table.from_pylist(rows, schema=NULL)


def _same(label: str, n: int) -> pa.DictionaryArray:
    """A column of n times `label`."""
    return pa.DictionaryArray.from_arrays(np.zeros(n, np.int8), pa.array([label]))


def _folder(out: Path, a: Site, b: Site) -> Path:
    return out / SITES / f"{a}--{b}"


def _chance(observed: int, counts: Sequence[int]) -> Record:
    """What was observed beside the counts of a null. p: the chance of as many or more, the observed draw counted in."""
    return {
        "observed": observed,
        "mean": float(np.mean(counts)),
        "max": int(max(counts)),
        "p": (1 + sum(count >= observed for count in counts)) / (1 + len(counts)),
    }


def _row(record: Record) -> Record:
    """What is told of one combination of sites."""
    return {
        "site_a": record["key"]["a"]["site"],
        "site_b": record["key"]["b"]["site"],
        **record["counts"],
        "null": {name: _chance(found["observed"], found["counts"]) for name, found in record["null"].items()},
        **{name: record[name] for name in ("seconds", "peak_memory_gb")},
    }


def _told(record: Record) -> str:
    counts, null = record["counts"], record["null"][RELABELLED]
    used = Used(seconds=record["seconds"], peak_memory_gb=record["peak_memory_gb"])
    return (
        f"{counts['mutual_matches']:,} features matched, {counts['shared']:,} pairs shared of {counts['pairs_a']:,} and "
        f"{counts['pairs_b']:,}, by chance {np.mean(null['counts']):.2g}; {used}"
    )


def _publish(job: Job, done: Sequence[Record], used: Used) -> Record:
    """Join the combinations' tables and write the manifest."""
    folders = [job.out / SITES / f"{record['key']['a']['site']}--{record['key']['b']['site']}" for record in done]
    for name, schema in TABLES.items():
        join([folder / f"{name}.parquet" for folder in folders], schema, job.out / f"{name}.parquet")
    null = {
        name: _chance(
            sum(record["null"][name]["observed"] for record in done),
            np.sum([record["null"][name]["counts"] for record in done], axis=0).tolist(),
        )
        for name in (RELABELLED, PARTNER)
    }
    rows = pq.read_table(job.out / "shared.parquet", filters=[("shared", "=", True)])
    pairs = {
        f"shared_pairs_{end}": rows.group_by([f"site_{end}", f"i_{end}", f"j_{end}"]).aggregate([]).num_rows for end in "ab"
    }
    manifest = {
        "stage": "shared",
        "sources": [job.a.source, job.b.source],
        "method": job.options.method,
        "options": {**asdict(job.options), "min_match": job.options.at_least},
        "counts": {"shared": rows.num_rows, **pairs},
        "null": null,
        "sites": {
            folder.name: {**record["counts"], **{end: record["key"][end] for end in "ab"}}
            for folder, record in zip(folders, done, strict=True)
        },
        "versions": versions("numpy", "scipy", "pyarrow"),
        **asdict(used),
    }
    write_json(job.out / MANIFEST, manifest)
    return manifest
