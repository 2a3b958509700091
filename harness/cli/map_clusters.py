"""`harness map clusters`: which features mean alike, and how many meanings a neuron serves."""

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
class ClusterOptions:
    """The options of `harness map clusters`."""

    source: Annotated[str | None, Parameter(help="Source whose catalogue lies in reports/catalogue-<source>")] = None
    catalogue: Annotated[Path | None, Parameter(help="Folder of the catalogue, in place of --source")] = None
    site: Annotated[
        list[str] | None, Parameter(negative="", help="Site to cluster, such as resid_post.6; repeat for several")
    ] = None
    linkage: Annotated[
        Literal["average", "complete", "single"] | None,
        Parameter(help="How near two clusters are: mean, farthest or nearest pair. Default: average; single with a graph"),
    ] = None
    cut: Annotated[
        list[float] | None,
        Parameter(
            negative="", consume_multiple=True, help="Similarities at which the tree is cut. Default: 0.40 0.30 0.20 0.15"
        ),
    ] = None
    method: Annotated[
        Literal["exact", "graph"], Parameter(help="From all pairs (32,768 features: 9 GB), or from nearest neighbours (1 GB)")
    ] = "exact"
    neighbours: Annotated[int, Parameter(help="Neighbours of each feature in the graph")] = 15
    link: Annotated[float, Parameter(help="Entry of a decoder row above which a feature is linked to a neuron")] = 0.2
    top: Annotated[int, Parameter(help="Largest entries of a decoder row that can be links")] = 3
    absolute: Annotated[
        bool, Parameter(negative="", show_default=False, help="Count negative entries too, by size; published: ignored")
    ] = False
    out: Annotated[Path | None, Parameter(help="Output folder. Default: reports/clusters-<source>")] = None
    json: Annotated[bool, Parameter(negative="", show_default=False, help="Print the counts at each cut as JSON on stdout")] = (
        False
    )


def clusters(options: Annotated[ClusterOptions, Parameter(name="*")] = ClusterOptions()) -> None:
    """Clusters of the features' glosses at several similarities, and how many of them each neuron serves.

    A finished site is kept: the same command after an interruption goes on with the site it stood at.
    """
    from harness.whitebox.clusters.clusters import CUTS, Job, Options, map_clusters
    from harness.whitebox.clusters.neurons import Linking
    from harness.whitebox.features.catalogue import Catalogue

    if (options.source is None) == (options.catalogue is None):
        raise UsageError("whose features?", hint="add either --source NAME or --catalogue DIR")
    chosen = Options(
        linkage=options.linkage or ("average" if options.method == "exact" else "single"),
        method=options.method,
        cuts=tuple(options.cut or CUTS),
        neighbours=options.neighbours,
        linking=Linking(link=options.link, top=options.top, absolute=options.absolute),
    )
    catalogue = Catalogue(options.catalogue or reports_dir() / f"catalogue-{options.source}")
    out = (options.out or reports_dir() / f"clusters-{catalogue.source}").absolute()
    sites = tuple(Site.parse(text) for text in options.site or ())
    rows = map_clusters(Job(catalogue=catalogue, out=out, sites=sites, options=chosen), note)
    if options.json:
        print_json(rows)
    else:
        _print_cuts(rows)
    note(f"written: {out}")


def _print_cuts(rows: list[dict[str, Any]]) -> None:
    columns = ("site", "cut", "features", "clusters", "largest", "alone", "links", "degree: chance", "largest", "super", "from")
    cells = [
        (
            row["site"],
            f"{row['cut']:.2f}",
            *(f"{row[name]:,}" for name in ("n_features", "n_clusters", "largest", "n_alone", "n_links")),
            f"{row['expected_degree']:.1f}",
            *(f"{row[name]:,}" for name in ("largest_degree", "n_super", "super_degree")),
        )
        for row in rows
    ]
    print_table(columns, cells)
