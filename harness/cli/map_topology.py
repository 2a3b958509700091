"""`harness map topology`: which features of a site point the same way."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from harness.cli.console import note, print_json, print_table
from harness.errors import UsageError
from harness.paths import reports_dir
from harness.whitebox.sources.sites import Site


@dataclass(frozen=True, slots=True, kw_only=True)
class TopologyOptions:
    """The options of `harness map topology`."""

    source: Annotated[
        str, Parameter(help="A source known by name, or any name with --dictionary; several with commas: pythia-70m,gpt2-small")
    ]
    dictionary: Annotated[
        Path | None,
        Parameter(
            help="Folder of SAEs in SAELens' layout, one folder a site; of several sources, one folder a source. "
            "Default: trained here, else fetched from the hub"
        ),
    ] = None
    site: Annotated[list[str] | None, Parameter(negative="", help="Site to map, such as resid_post.6; repeat for several")] = (
        None
    )
    out: Annotated[
        Path | None, Parameter(help="Output folder; of several sources, their parent. Default: reports/topology-<source>")
    ] = None
    null: Annotated[Literal["larger", "isotropic", "matched"], Parameter(help="Null that sets the threshold of a site")] = (
        "larger"
    )
    null_pairs: Annotated[float, Parameter(help="Pairs that the null may put above the threshold of a site")] = 1.0
    threshold: Annotated[float | None, Parameter(help="One cosine for every site, instead of the null's")] = None
    covariance: Annotated[
        Path | None, Parameter(help="Safetensors, an activation covariance for each site; default: W_dec's own second moment")
    ] = None
    glosses: Annotated[Path | None, Parameter(help="Safetensors, the gloss vectors (d_sae, n) for each site")] = None
    seed: Annotated[int, Parameter(help="Seed of the matched null's draws")] = 0
    allow_alike: Annotated[
        bool, Parameter(negative="", show_default=False, help="Go on where two sites hold the same dictionary")
    ] = False
    json: Annotated[bool, Parameter(negative="", show_default=False, help="Print the sites' statistics as JSON on stdout")] = (
        False
    )


def topology(options: Annotated[TopologyOptions, Parameter(name="*")]) -> None:
    """Cosines of all decoder rows of each site: pairs above a threshold set by a null, and nearest neighbours.

    A finished site is kept: the same command after an interruption goes on with the site it stood at.
    """
    sources = [name.strip() for name in options.source.split(",") if name.strip()]
    if len(sources) != 1 and (options.covariance or options.glosses):
        raise UsageError("covariances and glosses are those of one source", hint="map one source at a time with them")
    rows = []
    for source in dict.fromkeys(sources):
        rows += _map(source, options, several=len(sources) > 1)
    if options.json:
        print_json(rows)
    else:
        _print_sites(rows)


def _map(source: str, options: TopologyOptions, *, several: bool) -> list[dict[str, Any]]:
    """Map the sites of one source; their statistics."""
    from harness.whitebox.sources.dictionaries import choose, open_dictionaries
    from harness.whitebox.topology.topology import Job, Options, map_topology, pick_device

    folder = options.dictionary / source if options.dictionary and several else options.dictionary
    out = (
        (options.out / f"topology-{source}" if several else options.out)
        if options.out
        else reports_dir() / f"topology-{source}"
    )
    job = Job(
        dictionaries=choose(open_dictionaries(source, folder, note), [Site.parse(site) for site in options.site or ()]),
        out=out.absolute(),
        options=Options(null=options.null, null_pairs=options.null_pairs, threshold=options.threshold, seed=options.seed),
        glosses=options.glosses,
        covariances=options.covariance,
        device=pick_device(),
        allow_alike=options.allow_alike,
    )
    rows = map_topology(job, note)
    note(f"written: {job.out}")
    return rows


def _print_sites(rows: list[dict[str, Any]]) -> None:
    shares = [name for name in rows[0] if name.startswith("similarity_below_")] if rows[0]["similarity_pairs"] else []
    several = len({row["source"] for row in rows}) > 1
    columns = (
        *("site", "features", "dead", "threshold", "pairs", "isotropic", "matched", "sd", "nearest: median", "99%"),
        *(f"{'glosses ' if name == shares[0] else ''}<0.{name[-2:]}" for name in shares),
    )
    cells = [
        (
            f"{row['source']} {row['site']}" if several else row["site"],
            f"{row['d_sae']:,}",
            f"{row['n_dead']:,}",
            f"{row['threshold']:.3f}",
            f"{row['n_pairs']:,}",
            f"{row['expected_isotropic']:.2g}",
            f"{row['expected_matched']:.2g}",
            _cell(row["sd_cosine"]),
            _cell(row["nearest_q50"]),
            _cell(row["nearest_q99"]),
            *("-" if row[name] is None else f"{row[name]:.1%}" for name in shares),
        )
        for row in rows
    ]
    print_table(columns, cells)


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
