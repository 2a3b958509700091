"""Small models to look inside, by name: the embedded targets, or a folder of any causal model of transformers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import MissingExtraError, UnknownNameError, UsageError
from harness.providers import weights
from harness.providers.embedded import quiet
from harness.providers.targets import Dtype, all_targets


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalModel:
    """A loaded model. `bos`: the id that its tokenizer puts before every text, or None; `digest`: sha256 of the weights."""

    name: str
    folder: Path
    digest: str
    model: Any
    tokenizer: Any
    bos: int | None


def load_model(name: str, note: Callable[[str], None], *, dtype: Dtype = "bfloat16") -> LocalModel:
    """The embedded model `name`, fetched first where it is missing, or the model in the folder `name`.

    Raises UnknownNameError, UsageError for a folder that transformers cannot load, MissingExtraError, and what
    `weights.fetch` raises.
    """
    try:
        import torch
        from tokenizers import Tokenizer
        from transformers import AutoModelForCausalLM
    except ImportError as exc:
        raise MissingExtraError("transformers", "embedded") from exc
    folder = _folder(name, note)
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
    if name not in packaged:
        raise UnknownNameError("source", name, packaged)
    return weights.fetch(name, packaged[name], note)


def _bos(model: Any, tokenizer: Any) -> int | None:
    first = tokenizer.encode("a").ids[0]
    return first if first == model.config.get_text_config().bos_token_id else None
