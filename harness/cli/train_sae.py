"""`harness train-sae`: sparse autoencoders for sites of a small model, trained here on text that a package ships."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from harness.cli.console import note, print_table
from harness.errors import MissingExtraError, UsageError
from harness.providers.targets import Dtype
from harness.whitebox.sources import corpus as corpora
from harness.whitebox.sources.dictionaries import trained_dir
from harness.whitebox.sources.sites import Site
from harness.whitebox.sources.sources import embedded_sites
from harness.whitebox.usage import peak_memory_gb

if TYPE_CHECKING:
    from harness.whitebox.sources.models import LocalModel
    from harness.whitebox.training.training import Progress, Recipe, SiteTrainer

HELD_OUT_CONTEXTS = 64
"""Contexts of 128 tokens that quality is measured on: enough for two digits of the cross-entropy recovered."""

PROGRESS_EVERY_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """The options of `harness train-sae`."""

    source: Annotated[str, Parameter(help="Model: an embedded target's name, or the folder of a transformers model")]
    site: Annotated[
        list[str] | None,
        Parameter(
            negative="", help="Site, as SUBMODULE.LAYER; repeat for several. Default: those declared for an embedded source"
        ),
    ] = None
    tokens: Annotated[int, Parameter(help="Tokens to train each site on")] = 1_000_000
    d_sae: Annotated[int, Parameter(help="Features of a dictionary")] = 4096
    k: Annotated[int, Parameter(help="Features that may be active on a token")] = 32
    lr: Annotated[float, Parameter(help="Learning rate")] = 3e-3
    text: Annotated[
        list[Path], Parameter(negative="", help="Text of your own, or a folder with WordNet's database; repeat for several")
    ] = field(default_factory=list)
    out: Annotated[Path | None, Parameter(help="Folder for the dictionaries, one a site. Default: in the cache")] = None
    at_once: Annotated[int, Parameter(help="Sites trained in one pass over the model; a killed pass starts again")] = 4
    dtype: Annotated[Dtype, Parameter(help="Number type of the model's forward pass; dictionaries are float32")] = "bfloat16"
    seed: Annotated[int, Parameter(help="Seed of every random choice")] = 0
    json: Annotated[bool, Parameter(negative="", show_default=False, help="Print the manifests as JSON on stdout")] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What all sites of one call share."""

    source: LocalModel
    recipe: Recipe
    train: corpora.Corpus
    held_out: corpora.Corpus
    out: Path


def train_sae(options: Annotated[TrainOptions, Parameter(name="*")]) -> int:
    """Train a dictionary for each site and say how good it is, beside one of random directions.

    Sites that are trained are kept: the same command after an interruption goes on with the others.
    """
    sites = _sites(options)
    job = _job(options, sites)
    from harness.whitebox.training import training

    done = [site for site in sites if training.is_trained(job.out, site, _key(job, site))]
    for site in done:
        note(f"{site}: trained before, kept")
    for group in training.pass_groups([site for site in sites if site not in done], max(1, options.at_once)):
        _train(job, group)
    _show(job.out, sites, as_json=options.json)
    return 0


def _sites(options: TrainOptions) -> tuple[Site, ...]:
    """The sites that were asked for, else the declared ones; raises UsageError where there are none."""
    declared = embedded_sites()
    if not options.site and options.source not in declared:
        raise UsageError(f"which sites of {options.source}?", hint="name some, as --site resid_post.3 --site mlp_out.5")
    return tuple(dict.fromkeys(map(Site.parse, options.site or ()))) or declared[options.source]


def _job(options: TrainOptions, sites: Sequence[Site]) -> Job:
    """Everything that can be wrong is found out before a token is read."""
    try:
        from harness.whitebox.sources import activations
        from harness.whitebox.sources.models import load_model
        from harness.whitebox.training import training
    except ImportError as exc:
        raise MissingExtraError(exc.name or "torch", "whitebox") from exc

    training.import_sae_lens()
    recipe = training.Recipe(tokens=options.tokens, d_sae=options.d_sae, k=options.k, lr=options.lr, seed=options.seed)
    recipe.check()
    text = corpora.from_files(options.text) if options.text else corpora.shipped(note)
    train, held_out = text.split(seed=options.seed)
    source = load_model(options.source, note, dtype=options.dtype)
    activations.check_sites(source.model, sites)
    out = options.out or trained_dir(source.folder.name)
    return Job(source=source, recipe=recipe, train=train, held_out=held_out, out=out.absolute())


def _key(job: Job, site: Site) -> dict[str, Any]:
    """What a dictionary depends on: one trained otherwise is not taken for it."""
    from harness.whitebox.sources.activations import CONTEXT

    return {
        "model_sha256": job.source.digest,
        "site": str(site),
        "corpus_sha256": job.train.digest,
        "context": CONTEXT,
        "dtype": str(job.source.model.dtype).removeprefix("torch."),
        "recipe": asdict(job.recipe),
    }


def _train(job: Job, sites: Sequence[Site]) -> None:
    """One pass over the model for `sites`, their quality, and their folders."""
    from harness.whitebox.sources import activations, packing
    from harness.whitebox.training import training

    held_out = _held_out(job)
    note(f"{job.source.name}: {', '.join(map(str, sites))} on {job.recipe.tokens:,} tokens of {job.train.source}")
    trainers = {
        site: training.SiteTrainer(job.source.model.config.get_text_config().hidden_size, job.recipe, _metadata(job, site))
        for site in sites
    }
    texts = packing.contexts(job.train.documents, job.source.tokenizer, bos=job.source.bos)
    batches = activations.read(job.source.model, activations.batched(texts), sites)
    seconds = training.train(batches, trainers, _progress(len(sites)))
    for site, trainer in trainers.items():
        _finish(job, site, trainer, held_out, seconds / len(sites))


def _finish(job: Job, site: Site, trainer: SiteTrainer, held_out: list[list[int]], seconds: float) -> None:
    """Judge and write one trained site."""
    from harness.whitebox.training import sae_quality, training

    sae = trainer.finish().eval()
    if trainer.rows < job.recipe.tokens:
        note(f"{site}: the text ended after {trainer.rows:,} of {job.recipe.tokens:,} tokens")
    started = time.perf_counter()
    judged, control = sae_quality.beside_random(
        job.source.model, held_out, site, sae, norm_limit=trainer.norm_limit, seed=job.recipe.seed
    )
    judging = time.perf_counter() - started
    memory_gb = peak_memory_gb()
    manifest = {
        "key": _key(job, site),
        "source": job.source.name,
        "corpus": {"source": job.train.source, "licence": job.train.licence, "documents": len(job.train.documents)},
        "tokens_trained": trainer.rows,
        "tokens_left_out": trainer.left_out,
        "norm_limit": trainer.norm_limit,
        "constants": {"chunk": training.CHUNK, "norm_limit_medians": training.NORM_LIMIT, "dead_after": training.DEAD_AFTER},
        "quality": asdict(judged),
        "random_control": asdict(control),
        "seconds": {"training": round(seconds, 1), "quality": round(judging, 1)},
        "peak_memory_gb": round(memory_gb, 2),
        "versions": training.versions(),
    }
    folder = training.save(job.out, site, sae, manifest)
    note(f"{site}: {seconds:.0f} s training, {judging:.0f} s judging, peak memory {memory_gb:.1f} GB: {folder}")


def _held_out(job: Job) -> list[list[int]]:
    """The contexts to judge on; raises UsageError where the text gives none."""
    from harness.whitebox.sources.packing import contexts

    found = list(islice(contexts(job.held_out.documents, job.source.tokenizer, bos=job.source.bos), HELD_OUT_CONTEXTS))
    if not found:
        raise UsageError(f"{job.held_out.source}: too little text to hold any out", hint="give more with --text FILE")
    return found


def _metadata(job: Job, site: Site) -> dict[str, Any]:
    """What SAELens keeps beside the weights, under its own names."""
    from harness.whitebox.sources.activations import CONTEXT

    return {
        "model_name": job.source.name,
        "hook_name": site.hook_name,
        "prepend_bos": job.source.bos is not None,
        "context_size": CONTEXT,
        "dataset_path": job.train.source,
    }


def _progress(n_sites: int) -> Callable[[Progress], None]:
    """A line every ten seconds: tokens, rate, time left."""
    last = time.perf_counter()

    def show(progress: Progress) -> None:
        nonlocal last
        now = time.perf_counter()
        if now - last < PROGRESS_EVERY_S or progress.done == 0:
            return
        last = now
        rate = progress.done / progress.seconds
        left = (progress.planned - progress.done) / rate
        note(f"{progress.done:,}/{progress.planned:,} tokens, {rate:.0f}/s at {n_sites} sites, {left:.0f} s left")

    return show


def _show(out: Path, sites: Sequence[Site], *, as_json: bool) -> None:
    """The sites' manifests: a table by cross-entropy recovered, best first, or JSON."""
    from harness.whitebox.training.training import MANIFEST, site_dir

    manifests = [json.loads((site_dir(out, site) / MANIFEST).read_text(encoding="utf-8")) for site in sites]
    if as_json:
        sys.stdout.write(json.dumps(manifests, ensure_ascii=False) + "\n")
        return
    manifests.sort(key=lambda manifest: -(manifest["quality"]["ce_recovered"] or 0))
    rows = []
    for manifest in manifests:
        for name, values in (("trained", manifest["quality"]), ("random", manifest["random_control"])):
            shares = [values[key] for key in ("explained_variance", "alive_share", "ce_recovered", "ce_recovered_zero")]
            cells = ["-" if share is None else f"{share:.3f}" for share in shares]
            rows.append((manifest["key"]["site"], name, f"{values['l0']:.1f}", *cells))
    print_table(("site", "dictionary", "L0", "explained", "alive", "CE recovered (mean)", "CE recovered (zero)"), rows)
