"""A tiny model in a folder, a text, and dictionaries of its sites saved by SAELens, for tests that run a whole stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from harness.whitebox.sources.sites import Site
from harness.whitebox.training.training import import_sae_lens

from .tiny_models import VOCABULARY, WIDTH, llama

D_SAE = 24


def write_model(folder: Path) -> Path:
    """A tiny Llama with a tokenizer of the words w0 to w60."""
    model = llama()
    model.config.max_position_embeddings = 128
    model.save_pretrained(folder)
    tokenizer = Tokenizer(WordLevel({f"w{number}": number for number in range(VOCABULARY)}, unk_token="w0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def write_text(path: Path, *, documents: int = 160, words: int = 40, seed: int = 0) -> Path:
    """Paragraphs of random words."""
    rng = np.random.default_rng(seed)
    drawn = [[f"w{number}" for number in rng.integers(1, VOCABULARY, words)] for _ in range(documents)]
    path.write_text("\n\n".join(" ".join(paragraph) for paragraph in drawn))
    return path


def write_sae(folder: Path, site: Site, *, architecture: str = "topk", d_in: int = WIDTH, seed: int = 0, **config: Any) -> Path:
    """A random dictionary of `site`, saved by SAELens in folder/<site>."""
    sae_lens = import_sae_lens()
    shape = {"d_in": d_in, "d_sae": D_SAE, **config}
    if architecture == "topk":
        sae = sae_lens.TopKSAE(sae_lens.TopKSAEConfig(k=4, **shape))
    else:
        sae = sae_lens.StandardSAE(sae_lens.StandardSAEConfig(**shape))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.1 if name.startswith("b_") else 1.0))
    sae.cfg.metadata.hook_name = site.hook_name
    sae.save_model(folder / str(site))
    return folder / str(site)


def damage(sae: Path, name: str) -> None:
    """Put a NaN into one of the saved tensors."""
    weights = load_file(sae / "sae_weights.safetensors")
    weights[name].view(-1)[5] = float("nan")
    save_file(weights, sae / "sae_weights.safetensors")


def make_older(sae: Path, **fields: Any) -> None:
    """Rewrite cfg.json in the layout of SAELens before version 6, `fields` at the top."""
    config = json.loads((sae / "cfg.json").read_text())
    hook = config["metadata"]["hook_name"]
    kept = {name: config[name] for name in ("d_in", "d_sae", "dtype", "device", "apply_b_dec_to_input")}
    older = {**kept, "hook_name": hook, "model_name": "tiny", "prepend_bos": False, "context_size": 64, **fields}
    (sae / "cfg.json").write_text(json.dumps(older))
