"""Sparse autoencoders for sites of a small model, trained with SAELens' classes on activations streamed from the model.

Several sites share one pass over the model: each forward pass feeds a trainer a site. Activations are shuffled in chunks,
divided by the mean norm of the centred activations times sqrt(1 / d_model) (SAELens' `expected_average_only_in`, but of
x - mean: the mean of a residual stream can be larger than all that varies), and the factor is folded into the weights in
the end, so that decoder rows live in the model's own space. The decoder's bias starts at the mean. Tokens whose norm is
above NORM_LIMIT medians are left out: such a token is a second attention sink, and outweighs a thousand others in the loss.

A finished site is a folder in SAELens' layout (cfg.json, sae_weights.safetensors) with a manifest.json, written whole or
not at all. Owns training only: `sae_quality` judges what comes out.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from harness.errors import MissingExtraError, UsageError
from harness.paths import make_dir, writing
from harness.whitebox.sources.sites import Site

MANIFEST = "manifest.json"

CHUNK = 16_384
"""Rows that are shuffled together; the first chunk also gives mean, scale and norm limit."""

NORM_LIMIT = 10.0
"""A token above so many times the median norm is left out. Ordinary ones stay below 3."""

DEAD_AFTER = 20_480
"""A feature silent for so many tokens is dead: the auxiliary loss makes it explain what the others leave."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a dictionary is trained, in one pass over `tokens` tokens. `aux` weighs the auxiliary loss of dead features.

    Gao et al. (2024, arXiv 2406.04093) train for billions of tokens with `aux` 1/32 and learning rates of about 2e-4. A
    million tokens are two thousand steps: there, 1 and 3e-3 leave 1% of the features dead where those leave more than half.
    """

    tokens: int = 1_000_000
    d_sae: int = 4096
    k: int = 32
    batch: int = 512
    lr: float = 3e-3
    warm_up: int = 20
    decay: float = 0.3
    aux: float = 1.0
    seed: int = 0

    def check(self) -> None:
        """Raises UsageError where the numbers make no dictionary."""
        if not 0 < self.k < self.d_sae:
            raise UsageError(f"k is {self.k}, d_sae {self.d_sae}: k must lie between", hint="try --k 32 --d-sae 4096")
        if self.tokens < CHUNK:
            raise UsageError(
                f"{self.tokens} tokens are too few", hint=f"at least {CHUNK}; a million is usual: --tokens 1000000"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a pass has come: rows that the site which has come least far was trained on."""

    done: int
    planned: int
    seconds: float


class SiteTrainer:
    """One site's dictionary while it is trained. Give it activations in any number; it shuffles and cuts them to batches."""

    def __init__(self, d_model: int, recipe: Recipe, metadata: Mapping[str, Any]) -> None:
        self.recipe = recipe
        self.rows = 0
        self.left_out = 0
        self._metadata = dict(metadata)
        self._d_model = d_model
        self._generator = torch.Generator().manual_seed(recipe.seed)
        self._waiting: list[Any] = []
        self._trainer: Any = None
        self.norm_limit = math.inf

    @property
    def done(self) -> bool:
        """Whether it has been trained on as many tokens as the recipe says."""
        return self.rows >= self.recipe.tokens

    def feed(self, activations: Any) -> None:
        """Take activations (n, d_model); trains as soon as a chunk is full."""
        if self.done:
            return
        self._waiting.append(activations)
        if sum(len(part) for part in self._waiting) >= CHUNK:
            self._train_on_waiting()

    def finish(self) -> Any:
        """The trained dictionary, in the model's own space. Raises UsageError where it was given too little."""
        if not self.done and self._waiting:
            self._train_on_waiting()
        if self._trainer is None or self.rows < self.recipe.batch:
            raise UsageError("the text gave too few tokens to train on", hint="give more with --text FILE")
        trainer = self._trainer
        trainer.sae.fold_activation_norm_scaling_factor(trainer.activation_scaler.scaling_factor)
        trainer.set_final_sae_metadata()
        return trainer.sae

    def _train_on_waiting(self) -> None:
        chunk = torch.cat(self._waiting)
        if self._trainer is None:
            self._start(chunk)
        fit = chunk.norm(dim=1) <= self.norm_limit
        self.left_out += int((~fit).sum())
        chunk = chunk[fit]
        chunk = chunk[torch.randperm(len(chunk), generator=self._generator)]
        batch = self.recipe.batch
        full = min(len(chunk) // batch, -(-(self.recipe.tokens - self.rows) // batch))
        for number in range(full):
            self._trainer.step(chunk[number * batch : (number + 1) * batch])
            self._trainer.n_training_steps += 1
        self.rows += full * batch
        self._waiting = [chunk[full * batch :]]

    def _start(self, chunk: Any) -> None:
        """A trainer whose scale and first bias are those of `chunk`."""
        norms = chunk.norm(dim=1)
        self.norm_limit = NORM_LIMIT * float(norms.median())
        chunk = chunk[norms <= self.norm_limit]
        mean = chunk.mean(0)
        spread = float((chunk - mean).norm(dim=1).mean())
        if not 0 < spread < math.inf:
            raise UsageError("the activations are all alike or not finite", hint="check the model's weights")
        self._trainer = new_trainer(self._d_model, self.recipe, self._metadata)
        scale = math.sqrt(self._d_model) / spread
        self._trainer.activation_scaler.scaling_factor = scale
        with torch.no_grad():
            self._trainer.sae.b_dec.copy_(mean * scale)


def new_trainer(d_model: int, recipe: Recipe, metadata: Mapping[str, Any]) -> Any:
    """SAELens' trainer of a TopK dictionary, its Adam in one kernel: on a processor that saves a fifth of the time."""
    sae_lens = import_sae_lens()
    config, base, training = (import_module(f"sae_lens.{name}") for name in ("config", "saes.sae", "training.sae_trainer"))

    steps = -(-recipe.tokens // recipe.batch)
    cfg = sae_lens.TopKTrainingSAEConfig(
        d_in=d_model,
        d_sae=recipe.d_sae,
        k=recipe.k,
        aux_loss_coefficient=recipe.aux,
        metadata=base.SAEMetadata(**metadata),
    )
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        sae = sae_lens.TopKTrainingSAE(cfg)
    trainer: Any = training.SAETrainer(
        config.SAETrainerConfig(
            total_training_samples=steps * recipe.batch,
            train_batch_size_samples=recipe.batch,
            lr=recipe.lr,
            lr_end=0.0,
            lr_warm_up_steps=min(recipe.warm_up, steps // 4),
            lr_decay_steps=int(recipe.decay * steps),
            dead_feature_window=max(1, DEAD_AFTER // recipe.batch),
        ),
        sae,
        iter(()),
    )
    for group in trainer.optimizer.param_groups:
        group.update(fused=True, foreach=False)
    return trainer


def import_sae_lens() -> Any:
    """The package sae_lens; raises MissingExtraError. Its own import warns of TransformerLens' next release."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return import_module("sae_lens")
    except ImportError as exc:
        raise MissingExtraError("sae_lens", "whitebox") from exc


def train(
    batches: Iterable[Mapping[Site, Any]], trainers: Mapping[Site, SiteTrainer], on_progress: Callable[[Progress], None]
) -> float:
    """Feed activations to all `trainers` until each has its tokens or the text ends; the seconds that it took."""
    started = time.perf_counter()
    planned = max(trainer.recipe.tokens for trainer in trainers.values())
    for activations in batches:
        for site, trainer in trainers.items():
            trainer.feed(activations[site])
        done = min(trainer.rows for trainer in trainers.values())
        on_progress(Progress(done=done, planned=planned, seconds=time.perf_counter() - started))
        if all(trainer.done for trainer in trainers.values()):
            break
    return time.perf_counter() - started


def site_dir(out: Path, site: Site) -> Path:
    """Where the dictionary of `site` lies under `out`."""
    return out / str(site)


def is_trained(out: Path, site: Site, key: Mapping[str, Any]) -> bool:
    """Whether `out` has the site's dictionary, trained in just this way; `key` is what its manifest must say.

    Raises UsageError where another one lies there.
    """
    path = site_dir(out, site) / MANIFEST
    if not path.is_file():
        return False
    found = json.loads(path.read_text(encoding="utf-8")).get("key", {})
    differing = sorted(name for name in {*found, *key} if found.get(name) != key.get(name))
    if differing:
        raise UsageError(
            f"{path.parent} was trained otherwise: {', '.join(differing)} differ",
            hint="name another folder with --out, or remove that one",
        )
    return True


def save(out: Path, site: Site, sae: Any, manifest: Mapping[str, Any]) -> Path:
    """Write the dictionary in SAELens' layout with its manifest, in one rename; the folder. Raises StorageError."""
    final = site_dir(make_dir(out), site)
    partial = final.with_name(f".{final.name}.partial")
    try:
        with writing(final, hint="free room, or name another folder with --out"):
            shutil.rmtree(partial, ignore_errors=True)
            sae.save_inference_model(partial)
            (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
            partial.rename(final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return final


def versions() -> dict[str, str]:
    """The packages that the weights depend on."""
    names = ("sae-lens", "transformer-lens", "torch", "transformers", "transfer-harness")
    return {name: importlib.metadata.version(name) for name in names}


def pass_groups(sites: Sequence[Site], size: int) -> Iterator[tuple[Site, ...]]:
    """Sites by depth, `size` to a pass over the model, so that an early pass can stop early."""
    ordered = sorted(sites)
    for start in range(0, len(ordered), size):
        yield tuple(ordered[start : start + size])
