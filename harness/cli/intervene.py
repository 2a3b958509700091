"""`harness intervene`: whether interfering features move a model's next word towards a target, at four foci."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from harness.cli.console import note, print_json, print_table
from harness.errors import MissingExtraError, UsageError
from harness.packs.concepts import concept_names, find_concept
from harness.paths import reports_dir
from harness.whitebox.sources.sites import Site

if TYPE_CHECKING:
    from harness.whitebox.features.catalogue import Catalogue
    from harness.whitebox.sources.models import LocalModel


@dataclass(frozen=True, slots=True, kw_only=True)
class InterveneOptions:
    """The options of `harness intervene`."""

    source: Annotated[str, Parameter(help="The source whose features are tried")]
    focus: Annotated[Literal["prompt", "token", "feature", "neuron"], Parameter(help="What is changed")] = "feature"
    catalogue: Annotated[Path | None, Parameter(help="Folder of its catalogue. Default: reports/catalogue-<source>")] = None
    model: Annotated[
        str | None, Parameter(help="Another causal model to try them on, by name or folder. Default: the source itself")
    ] = None
    model_site: Annotated[
        str | None, Parameter(help="Site of --model to steer at. Default: the same sub-module at the same share of its depth")
    ] = None
    site: Annotated[list[str] | None, Parameter(negative="", help="Site of the catalogue; repeat for several")] = None
    concept: Annotated[list[str] | None, Parameter(negative="", help="Concept; repeat for several. Default: all")] = None
    targets: Annotated[int, Parameter(help="Target features of a concept and site")] = 4
    candidates: Annotated[int, Parameter(help="Candidates in each arm of a target")] = 3
    sentences: Annotated[int, Parameter(help="Sentences of a concept that are scored")] = 6
    dose: Annotated[
        list[float] | None,
        Parameter(
            negative="",
            help="Dose in standard deviations of the site's activation, or a neuron's factor; repeat for several. "
            "Default: 2; neurons: 0, 0.5, 2, 5, 10, 20",
        ),
    ] = None
    dose_from_held_out: Annotated[
        bool,
        Parameter(negative="", show_default=False, help="Choose each target's dose among them on sentences not scored"),
    ] = False
    band: Annotated[
        list[str] | None,
        Parameter(negative="", help="Band of interference, as LOW-HIGH; repeat. Default: 0.1-0.2, 0.2-0.3, 0.3-0.4, 0.4-1"),
    ] = None
    clusters: Annotated[
        Path | None, Parameter(help="Folder of its clusters, for a neuron's degree. Default: reports/clusters-<source>")
    ] = None
    seed: Annotated[int, Parameter(help="Seed of every random choice")] = 0
    out: Annotated[Path | None, Parameter(help="Output folder. Default: reports/intervene-<source>-<focus>")] = None
    json: Annotated[bool, Parameter(negative="", show_default=False, help="Print table and regressions as JSON")] = False


def intervene(options: Annotated[InterveneOptions, Parameter(name="*")]) -> None:
    """Shifts of the next word towards target features, by interference band, beside controls: signed, over all cases.

    A finished site is kept: the same command after an interruption goes on with the site it stood at.
    """
    try:
        from harness.whitebox.experiments.candidates import BANDS, Band
        from harness.whitebox.experiments.intervene import Design, Job, run_interventions
        from harness.whitebox.features.catalogue import Catalogue
    except ImportError as exc:
        raise MissingExtraError(exc.name or "torch", "whitebox") from exc

    design = Design(
        focus=options.focus,
        targets=options.targets,
        candidates=options.candidates,
        sentences=options.sentences,
        doses=tuple(options.dose or ()),
        held_out=options.dose_from_held_out,
        bands=tuple(map(Band.parse, options.band or ())) or BANDS,
        seed=options.seed,
    )
    if options.model_site and not options.model:
        raise UsageError("--model-site without --model", hint="a source is steered at the sites of its catalogue: --site")
    concepts = tuple(find_concept(name) for name in options.concept or concept_names())
    catalogue = Catalogue(options.catalogue or reports_dir() / f"catalogue-{options.source}")
    if catalogue.source != options.source:
        raise UsageError(f"{catalogue.folder}: is the catalogue of {catalogue.source}", hint="name its folder with --catalogue")
    sites = tuple(map(Site.parse, options.site or ())) or catalogue.sites
    for site in sites:
        catalogue.dictionary(site)
    model, places = _model(options, catalogue, sites)
    job = Job(
        catalogue=catalogue,
        model=model,
        out=(options.out or reports_dir() / f"intervene-{options.source}-{options.focus}").absolute(),
        design=design,
        sites=sites,
        concepts=concepts,
        places=places,
        clusters=options.clusters or reports_dir() / f"clusters-{options.source}",
    )
    found = run_interventions(job, note)
    if options.json:
        print_json(found)
    else:
        _print_means(found["table"]["arms"])
        _print_contrasts(found["table"]["arms"])
        _print_regressions(found["regressions"])
    used = found["manifest"]
    note(f"{used['n_cases']:,} cases, {used['seconds']:.1f} s, peak memory {used['peak_memory_gb']:.2f} GB; written: {job.out}")


def _model(
    options: InterveneOptions, catalogue: Catalogue, sites: Sequence[Site]
) -> tuple[LocalModel, dict[Site, Site] | None]:
    """The model to steer, and where it is steered if it is not the source."""
    from harness.whitebox.experiments.steered_model import same_depth, source_model
    from harness.whitebox.sources.models import load_model

    if options.model is None:
        return source_model(catalogue, note), None
    model = load_model(options.model, note, dtype="float32")
    if options.model_site is not None:
        return model, dict.fromkeys(sites, Site.parse(options.model_site))
    return model, same_depth(sites, catalogue, model)


def _print_means(rows: list[dict[str, Any]]) -> None:
    from harness.whitebox.experiments.effect_tables import MEASURES

    cells = [
        (row["arm"], str(row["n_targets"]), f"{row['n_cases']:,}", *(_interval(row["means"][name]) for name in MEASURES))
        for row in rows
    ]
    print_table(("arm", "targets", "cases", *(name.replace("_", " ") for name in MEASURES)), cells)


def _print_contrasts(rows: list[dict[str, Any]]) -> None:
    from harness.whitebox.experiments.effect_tables import EFFECTS

    cells = [
        (row["arm"], control, *(_interval(found[name]) for name in EFFECTS))
        for row in rows
        for control, found in row["contrasts"].items()
    ]
    print_table(("arm", "minus", *(name.replace("_", " ") for name in EFFECTS)), cells)


def _print_regressions(rows: list[dict[str, Any]]) -> None:
    cells = []
    for row in rows:
        name = f"{row['model']} {row['measure'].replace('_', ' ')}"
        if row["coefficients"] is None:
            cells.append((name, f"{row['n_cases']:,}", "-", row["reason"], "-"))
        for term, found in (row["coefficients"] or {}).items():
            if term != "constant" and not term.startswith("site "):
                p = "-" if found["p"] is None else f"{found['p']:.2g}"
                cells.append((name, f"{row['n_cases']:,}", term, _interval(found), p))
    print_table(("regression", "cases", "on", "coefficient", "p"), cells)


def _interval(found: dict[str, Any]) -> str:
    """`0.0123 [-0.002, 0.034]`, to three digits."""
    if found["value"] is None:
        return f"- ({found['reason']})"
    if found["ci_low"] is None:
        return f"{found['value']:.3g} ({found['reason']})"
    return f"{found['value']:.3g} [{found['ci_low']:.3g}, {found['ci_high']:.3g}]"
