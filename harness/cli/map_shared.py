"""`harness map shared`: which interference pairs two sources have in common."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from harness.cli.console import note, print_json, print_table
from harness.errors import UsageError
from harness.paths import reports_dir
from harness.whitebox.sources.sites import Site

SITE_HELP = "Site of the {} source to match, such as resid_post.7; repeat for several. Default: all"


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedOptions:
    """The options of `harness map shared`."""

    sources: Annotated[str, Parameter(help="The two sources, A,B")]
    catalogue_a: Annotated[Path | None, Parameter(help="Catalogue of A. Default: reports/catalogue-A")] = None
    catalogue_b: Annotated[Path | None, Parameter(help="Catalogue of B. Default: reports/catalogue-B")] = None
    topology_a: Annotated[Path | None, Parameter(help="Topology of A, made with glosses. Default: reports/topology-A")] = None
    topology_b: Annotated[Path | None, Parameter(help="Topology of B, made with glosses. Default: reports/topology-B")] = None
    site_a: Annotated[list[str] | None, Parameter(negative="", help=SITE_HELP.format("first"))] = None
    site_b: Annotated[list[str] | None, Parameter(negative="", help=SITE_HELP.format("second"))] = None
    out: Annotated[Path | None, Parameter(help="Output folder. Default: reports/shared-A-B")] = None
    method: Annotated[
        Literal["correlation", "gloss", "affine"],
        Parameter(help="Features match by activations on the same text, by glosses (published), or by mapped decoder rows"),
    ] = "correlation"
    min_active: Annotated[int, Parameter(help="Segments of text that a feature must fire on")] = 10
    min_match: Annotated[
        float | None, Parameter(help="Least score of a match. Default: correlation 0.3, gloss 0.5, affine 0.4")
    ] = None
    candidates: Annotated[int, Parameter(help="Matches kept of a feature at each site of the other source")] = 5
    max_similarity: Annotated[float, Parameter(help="The glosses of a pair must be less alike")] = 0.3
    margin: Annotated[float, Parameter(help="By how much a shared pair must beat the next best, both ways")] = 0.05
    permutations: Annotated[int, Parameter(help="Draws of each null")] = 20
    seed: Annotated[int, Parameter(help="Seed of the nulls' draws")] = 0
    annotate: Annotated[
        str | None, Parameter(help="Target that judges whether a shared pair's words are related. See: harness targets list")
    ] = None
    annotate_second: Annotated[str | None, Parameter(help="A second one: how far both agree is told")] = None
    annotate_most: Annotated[int, Parameter(help="Shared pairs that are judged, the best first")] = 200
    json: Annotated[bool, Parameter(negative="", show_default=False, help="Print the manifest as JSON on stdout")] = False


def shared(options: Annotated[SharedOptions, Parameter(name="*")]) -> None:
    """Interference pairs that two sources have in common, both members matched, beside what chance would share.

    A finished combination of sites is kept: the same command after an interruption goes on where it stood.
    """
    from harness.whitebox.sharing.shared import Job, find_shared
    from harness.whitebox.sharing.shared_ends import End, Options

    a, b = _two(options)
    folders = {
        (stage, name): (given or reports_dir() / f"{stage}-{name}").absolute()
        for stage, name, given in (
            ("catalogue", a, options.catalogue_a),
            ("catalogue", b, options.catalogue_b),
            ("topology", a, options.topology_a),
            ("topology", b, options.topology_b),
        )
    }
    ends = [
        End(
            source=name,
            catalogue=folders["catalogue", name],
            topology=folders["topology", name],
            sites=tuple(Site.parse(site) for site in sites or ()),
        )
        for name, sites in ((a, options.site_a), (b, options.site_b))
    ]
    job = Job(
        a=ends[0],
        b=ends[1],
        out=(options.out or reports_dir() / f"shared-{a}-{b}").absolute(),
        options=Options(
            method=options.method,
            min_active=options.min_active,
            min_match=options.min_match,
            candidates=options.candidates,
            max_similarity=options.max_similarity,
            margin=options.margin,
            permutations=options.permutations,
            seed=options.seed,
        ),
    )
    found = find_shared(job, note)
    annotators = [target for target in (options.annotate, options.annotate_second) if target]
    if annotators:
        found["annotation"] = _annotate(job.out, [end.catalogue for end in ends], annotators, options.annotate_most)
    if options.json:
        print_json(found)
    else:
        _print(found)
    note(f"written: {job.out}, {found['seconds']:.1f} s, peak memory {found['peak_memory_gb']:.2f} GB")


def _two(options: SharedOptions) -> tuple[str, str]:
    names = [name.strip() for name in options.sources.split(",") if name.strip()]
    if len(names) != 2 or names[0] == names[1]:
        raise UsageError(
            f"--sources {options.sources}: a pair is shared by two different sources", hint="--sources pythia-70m,gpt2-small"
        )
    if options.annotate_second and not options.annotate:
        raise UsageError("--annotate-second without --annotate", hint="name the first annotator with --annotate TARGET")
    return names[0], names[1]


def _annotate(folder: Path, catalogues: Sequence[Path], targets: Sequence[str], most: int) -> dict[str, Any]:
    from harness.whitebox.features.catalogue import Catalogue
    from harness.whitebox.sharing.annotation import annotate_shared

    a, b = catalogues
    found = asyncio.run(annotate_shared(folder, (Catalogue(a), Catalogue(b)), targets, note, most=most))
    if agreement := found["agreement"]:
        kappa = agreement["problem"] if agreement["kappa"] is None else f"kappa {agreement['kappa']:.2f}"
        note(f"agreement of {' and '.join(targets)} on {agreement['n']} pairs: {kappa}")
    return found


def _print(found: Mapping[str, Any]) -> None:
    columns = ("sites", "pairs", "matched features", "shared", "by chance: mean", "max", "p", "partner drawn anew: of", "mean")
    cells = [
        (
            f"{row['site_a']} x {row['site_b']}",
            f"{row['pairs_a']:,} x {row['pairs_b']:,}",
            f"{row['mutual_matches']:,}",
            f"{row['shared']:,}",
            *_chance(row["null"]),
        )
        for row in found["rows"]
    ]
    if len(cells) > 1:
        cells.append(("all", "", "", f"{found['counts']['shared']:,}", *_chance(found["null"])))
    print_table(columns, cells)


def _chance(null: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    relabelled, partner = null["relabelled"], null["partner"]
    return (
        f"{relabelled['mean']:.2f}",
        f"{relabelled['max']}",
        f"{relabelled['p']:.3f}",
        f"{partner['observed']}",
        f"{partner['mean']:.2f}",
    )
