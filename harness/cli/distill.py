"""`harness distill`: a probe pack from what small models look like inside; makes the maps that are missing."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from harness.cli.console import note
from harness.errors import MissingExtraError, StorageError
from harness.packs.concepts import concept_names
from harness.packs.embedder import Embedder
from harness.packs.lexical import common_words
from harness.packs.pack import write_pack
from harness.paths import reports_dir
from harness.providers.targets import Dtype

if TYPE_CHECKING:
    from harness.whitebox.distilling.predicting import Predictor

Directions = Literal["sae", "neurons", "unembedding", "random"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillOptions:
    """The options of `harness distill`."""

    sources: Annotated[str, Parameter(help="One source, or two with a comma between: smollm2-135m,gemma3-270m")]
    maps: Annotated[
        Path | None, Parameter(help="Folder with the maps of the sources; those missing are made there. Default: reports/")
    ] = None
    out: Annotated[Path | None, Parameter(help="Folder of the pack. Default: reports/pack-<sources>")] = None
    construction: Annotated[
        Literal["clean", "faithful", "intersection"],
        Parameter(help="How the arms' strings are chosen: with every control, or as published (united or intersected)"),
    ] = "clean"
    basis: Annotated[
        Directions, Parameter(help="Directions that stand for features: those of trained dictionaries, or others")
    ] = "sae"
    concept: Annotated[list[str] | None, Parameter(negative="", help="Concept to distil; repeat for several. Default: all")] = (
        None
    )
    injections: Annotated[int, Parameter(help="Injections for each concept and arm")] = 32
    strings: Annotated[int, Parameter(help="Words in an injection; published: 30")] = 16
    fewest: Annotated[int, Parameter(help="A concept with fewer interfering words than this is left out")] = 8
    max_similarity: Annotated[float, Parameter(help="Glosses nearer than this mean related things")] = 0.3
    min_recovered: Annotated[float, Parameter(help="Sites whose dictionary recovers less cross-entropy are left out")] = 0.8
    reserved: Annotated[int, Parameter(help="Sentences of each concept kept for predictions, and out of the pack")] = 4
    tokens: Annotated[int, Parameter(help="Tokens of text that a missing catalogue reads")] = 150_000
    dtype: Annotated[Dtype, Parameter(help="Number type of the sources' forward passes")] = "bfloat16"
    seed: Annotated[int, Parameter(help="Seed of every random choice")] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the maps of a source, or of two, lie."""

    source: str
    basis: Directions
    maps: Path

    def folder(self, stage: str) -> Path:
        from harness.whitebox.distilling.distill import map_name

        return self.maps / map_name(stage, self.source, self.basis)

    def is_there(self, stage: str) -> bool:
        from harness.whitebox.stage import MANIFEST

        return (self.folder(stage) / MANIFEST).is_file()


def distill(options: Annotated[DistillOptions, Parameter(name="*")]) -> int:
    """Make a probe pack of the text that fires features which interfere with a concept's, and of every control.

    Maps that are missing are made first; each stage goes on where it was interrupted.
    """
    try:
        from harness.whitebox.distilling.distill import Job, Options, draft_pack
        from harness.whitebox.distilling.injections import Sizes
    except ImportError as exc:
        raise MissingExtraError(exc.name or "torch", "whitebox") from exc

    sources = tuple(dict.fromkeys(part.strip() for part in options.sources.split(",") if part.strip()))
    out = (options.out or reports_dir() / f"pack-{'-'.join(sources)}").absolute()
    if out.exists() and any(out.iterdir()):
        raise StorageError(f"{out}: exists and is not empty", hint="remove it, or name a new folder with --out")
    maps = (options.maps or reports_dir()).absolute()
    with redirect_stdout(sys.stderr):  # the stages' tables are not what this verb prints
        _make_maps(sources, maps, options)
    job = Job(
        sources=sources,
        maps=maps,
        concepts=tuple(options.concept or concept_names()),
        words=common_words(),
        embed=Embedder(note).embed,
        open_predictor=lambda source: _predictor(Place(source=source, basis=options.basis, maps=maps), options.dtype),
        basis=options.basis,
        options=Options(
            construction=options.construction,
            sizes=Sizes(injections=options.injections, strings=options.strings, fewest=options.fewest),
            max_similarity=options.max_similarity,
            min_recovered=options.min_recovered,
            reserved=options.reserved,
            seed=options.seed,
        ),
    )
    pack = write_pack(draft_pack(job, out.name, note), out)
    note(f"{len(pack.concepts)} concepts, arms {', '.join(pack.arms)}, {sum(map(len, pack.probes.values()))} probes")
    print(pack.path)
    return 0


def _make_maps(sources: tuple[str, ...], maps: Path, options: DistillOptions) -> None:
    """Run the stages whose folders are not there yet, in order.

    The topology's null is matched to the decoder's own second moment: activations have a few directions of huge variance
    that no dictionary follows, so that a null matched to them expects cosines of 0.6 to 0.9 by chance and leaves nothing.
    """
    from harness.cli.map_catalogue import CatalogueOptions, catalogue
    from harness.cli.map_shared import SharedOptions, shared
    from harness.cli.map_topology import TopologyOptions, topology
    from harness.whitebox.distilling.distill import PUBLISHED_ABOVE

    places = [Place(source=source, basis=options.basis, maps=maps) for source in sources]
    for place in places:
        if not place.is_there("catalogue"):
            catalogue(
                CatalogueOptions(
                    source=place.source,
                    dictionary=_dictionaries(place, options),
                    tokens=options.tokens,
                    dtype=options.dtype,
                    out=place.folder("catalogue"),
                )
            )
        if not place.is_there("topology"):
            topology(
                TopologyOptions(
                    source=place.source,
                    dictionary=_dictionaries(place, options),
                    glosses=place.folder("catalogue") / "glosses.safetensors",
                    threshold=PUBLISHED_ABOVE,
                    out=place.folder("topology"),
                )
            )
    if len(places) != 2 or options.construction != "clean":
        return
    a, b = places
    pair = Place(source=f"{a.source}-{b.source}", basis=options.basis, maps=maps)
    if not pair.is_there("shared"):
        shared(
            SharedOptions(
                sources=f"{a.source},{b.source}",
                catalogue_a=a.folder("catalogue"),
                catalogue_b=b.folder("catalogue"),
                topology_a=a.folder("topology"),
                topology_b=b.folder("topology"),
                max_similarity=options.max_similarity,
                out=pair.folder("shared"),
            )
        )


def _dictionaries(place: Place, options: DistillOptions) -> Path | None:
    """The folder of a source's dictionaries, trained or written first where they are missing; None: those on the hub."""
    from harness.cli.train_sae import TrainOptions, train_sae
    from harness.whitebox.sources.bases import Basis, basis_dictionaries
    from harness.whitebox.sources.corpus import shipped
    from harness.whitebox.sources.dictionaries import open_dictionaries, trained_dir
    from harness.whitebox.sources.models import load_model
    from harness.whitebox.sources.sources import embedded_sites, find_source

    trained = trained_dir(place.source)
    declared = embedded_sites().get(place.source)
    if options.basis == "sae":
        if declared is None:
            return trained if trained.is_dir() else None
        if any(not (trained / str(site) / "cfg.json").is_file() for site in declared):
            train_sae(TrainOptions(source=place.source))
        return trained
    out = trained_dir(f"{place.source}-{options.basis}")
    sites = declared or (
        tuple(d.site for d in open_dictionaries(place.source, trained, note))
        if trained.is_dir()
        else find_source(place.source).sites()
    )
    model = load_model(place.source, note, dtype=options.dtype)
    basis = Basis(kind=options.basis, seed=options.seed, tokens="frequent")
    return basis_dictionaries(model, sites, basis, shipped(note), out, note)


def _predictor(place: Place, dtype: Dtype) -> Predictor:
    """The model that a catalogue was made from, ready to be asked."""
    from harness.whitebox.distilling.predicting import Predictor
    from harness.whitebox.features.catalogue import Catalogue
    from harness.whitebox.sources.models import load_model

    folder = Path(Catalogue(place.folder("catalogue")).model_reference()["folder"])
    return Predictor.of(load_model(place.source, note, dtype=dtype, folder=folder if folder.is_dir() else None))
