"""`harness map catalogue`: what each feature of a source fires on, and a gloss for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from harness.cli.console import note, print_json, print_table
from harness.errors import MissingExtraError, UsageError
from harness.paths import reports_dir
from harness.providers.targets import Dtype
from harness.whitebox.sources.sites import Site

if TYPE_CHECKING:
    from harness.whitebox.features.glossing import GlossPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueOptions:
    """The options of `harness map catalogue`."""

    source: Annotated[str, Parameter(help="A source known by name, or any name with --model and --dictionary")]
    model: Annotated[Path | None, Parameter(help="Folder of the transformers model. Default: the source's own")] = None
    dictionary: Annotated[
        Path | None, Parameter(help="Folder of SAEs in SAELens' layout, one folder a site. Default: the source's own")
    ] = None
    site: Annotated[
        list[str] | None, Parameter(negative="", help="Site to read, such as resid_post.6; repeat for several. Default: all")
    ] = None
    text: Annotated[
        list[Path], Parameter(negative="", help="Text of your own, or a folder with WordNet's database; repeat for several")
    ] = field(default_factory=list)
    tokens: Annotated[int, Parameter(help="Tokens of text to read")] = 300_000
    keep_tokens: Annotated[int, Parameter(help="Of these, the first whose feature activations are kept")] = 100_000
    at_once: Annotated[int, Parameter(help="Sites read in one pass over the model; a killed pass starts again")] = 4
    gloss: Annotated[Literal["contexts", "neuronpedia", "llm", "none"], Parameter(help="Where glosses come from")] = "contexts"
    gloss_target: Annotated[str | None, Parameter(help="Target that glosses, with --gloss llm")] = None
    gloss_features: Annotated[
        int | None, Parameter(help="With --gloss llm: features of a site to gloss, the most frequent first. Default: all")
    ] = None
    exports: Annotated[Path | None, Parameter(help="Neuronpedia's exports: the folder above v1/")] = None
    from_exports: Annotated[
        bool, Parameter(negative="", show_default=False, help="Take the tables from the exports too, and run no model")
    ] = False
    explainer: Annotated[
        str | None, Parameter(help="With --gloss neuronpedia: whose explanations. Default: who explained most features")
    ] = None
    gloss_vectors: Annotated[
        Literal["packaged", "export"],
        Parameter(help="With --gloss neuronpedia: embed the texts anew, or take the export's own"),
    ] = "packaged"
    dtype: Annotated[Dtype, Parameter(help="Number type of the model's forward pass; dictionaries are float32")] = "bfloat16"
    out: Annotated[Path | None, Parameter(help="Output folder. Default: reports/catalogue-<source>")] = None
    seed: Annotated[int, Parameter(help="Seed of the texts that glosses are tested on")] = 0
    json: Annotated[bool, Parameter(negative="", show_default=False, help="Print the sites' numbers as JSON on stdout")] = False


def catalogue(options: Annotated[CatalogueOptions, Parameter(name="*")]) -> None:
    """Stream text through a source and keep, for each feature, where it fires most; then say in words what that is.

    A finished site is kept: the same command after an interruption goes on with the others, and another --gloss reads no
    text again.
    """
    rows = _from_exports(options) if options.from_exports else _from_model(options)
    if options.json:
        print_json(rows)
    else:
        _print_sites(rows)
    note(f"written: {_out(options)}")


def _from_model(options: CatalogueOptions) -> list[dict[str, Any]]:
    from harness.whitebox.sources import corpus as corpora
    from harness.whitebox.sources.dictionaries import choose, open_dictionaries

    try:
        from harness.whitebox.features.cataloguing import Job, Options, make_catalogue
        from harness.whitebox.sources.models import load_model
    except ImportError as exc:
        raise MissingExtraError(exc.name or "torch", "whitebox") from exc
    found = choose(open_dictionaries(options.source, options.dictionary, note), [Site.parse(s) for s in options.site or ()])
    amounts = Options(tokens=options.tokens, keep_tokens=options.keep_tokens, at_once=options.at_once)
    gloss = _plan(options)
    job = Job(
        dictionaries=found,
        model=load_model(options.source, note, dtype=options.dtype, folder=options.model),
        corpus=corpora.from_files(options.text) if options.text else corpora.shipped(note),
        out=_out(options),
        options=amounts,
        gloss=gloss,
    )
    return make_catalogue(job, note)


def _from_exports(options: CatalogueOptions) -> list[dict[str, Any]]:
    from harness.whitebox.sources.dictionaries import choose, open_dictionaries

    try:
        from harness.whitebox.features.export_catalogue import ExportJob, catalogue_from_exports
    except ImportError as exc:
        raise MissingExtraError(exc.name or "torch", "whitebox") from exc
    if options.exports is None:
        raise UsageError("where do Neuronpedia's exports lie?", hint="name the folder above v1/: --exports DIR")
    found = choose(open_dictionaries(options.source, options.dictionary, note), [Site.parse(s) for s in options.site or ()])
    job = ExportJob(dictionaries=found, exports=options.exports, out=_out(options), gloss=_plan(options))
    return catalogue_from_exports(job, note)


def _plan(options: CatalogueOptions) -> GlossPlan:
    from harness.whitebox.features.glossing import GlossPlan

    return GlossPlan(
        kind=options.gloss,
        target=options.gloss_target,
        n_features=options.gloss_features,
        exports=options.exports,
        explainer=options.explainer,
        vectors=options.gloss_vectors,
        seed=options.seed,
    )


def _out(options: CatalogueOptions) -> Path:
    return (options.out or reports_dir() / f"catalogue-{options.source}").absolute()


def _print_sites(rows: list[dict[str, Any]]) -> None:
    columns = ("site", "features", "silent", "tokens", "a token", "glosses", "gloss score", "seconds", "peak memory")
    cells = [
        (
            row["site"],
            f"{row['d_sae']:,}",
            f"{row['n_silent']:,}",
            "-" if row["n_tokens"] is None else f"{row['n_tokens']:,}",
            f"{row['l0']:.1f}",
            f"{row['n_glosses']:,}",
            "-" if row["mean_gloss_score"] is None else f"{row['mean_gloss_score']:.2f}",
            f"{row['seconds'] + row['gloss_seconds']:.1f}",
            f"{max(row['peak_memory_gb'], row['gloss_peak_memory_gb']):.2f} GB",
        )
        for row in rows
    ]
    print_table(columns, cells)
