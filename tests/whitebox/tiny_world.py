"""A tiny model with a tokenizer, a catalogue of features whose interference is planted, and a concept, all fitting together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import transformers
from scipy import sparse
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from harness.packs.concepts import Concept, load_concept
from harness.providers.weights import digest_of
from harness.whitebox.features.catalogue import Catalogue
from harness.whitebox.sources.sites import Site

from .tiny_catalogue import SiteData, write_catalogue
from .tiny_models import LAYERS, WIDTH, strong

SITE = Site(layer=1, submodule="resid_post")
LEXICON = ["blue", "green", "pink", "red"]
COSINES = [0.15, 0.25, 0.35, 0.6]
EACH = 3
"""Features of each cosine with each target."""

TARGETS = [0, 1]
WITH = {0: range(2, 14), 1: range(14, 26)}
"""The features that interfere with each target, EACH for each of COSINES."""

NEUTRAL = range(26, 42)
ALIKE, SAYS_PINK, SAYS_WARM = 42, 43, 44
"""Features at cosine 0.5 with target 0 that may not be its candidates."""

D_SAE = 45
EXTRA = ["here", "is", "again", "(", ")", "the", "sky", "unk"]


def words() -> list[list[tuple[str, float]]]:
    """The top tokens of each feature."""
    own = [[("red", 1.0), ("blue", 0.9), ("warm", 0.85), ("low", 0.4)], [("green", 1.0), ("pink", 0.85)]]
    own += [[(f"a{n}", 1.0), (f"b{n}", 0.9), (f"c{n}", 0.6)] for n in range(2, D_SAE)]
    own[SAYS_PINK].insert(1, ("pink", 0.95))
    own[SAYS_WARM].insert(1, ("warm", 0.95))
    return own


def vocabulary() -> list[str]:
    """By id: the words in the order in which the catalogue numbers them."""
    return [*dict.fromkeys(word for listed in words() for word, _ in listed), *EXTRA]


def cosines() -> np.ndarray:
    """The planted cosine of each feature with each target, (D_SAE, 2)."""
    found = np.zeros((D_SAE, 2))
    found[0, 0] = found[1, 1] = 1.0
    for target, members in WITH.items():
        found[list(members), target] = np.repeat(COSINES, EACH)
    found[[ALIKE, SAYS_PINK, SAYS_WARM], 0] = 0.5
    return found


def similarities() -> np.ndarray:
    """The planted gloss similarity of each feature with target 0, (D_SAE,)."""
    found = np.linspace(0.02, 0.28, D_SAE)
    found[0], found[ALIKE] = 1.0, 0.8
    return found


def decoder(d_model: int = WIDTH) -> np.ndarray:
    """Rows with the planted cosines, (D_SAE, d_model): targets 0 and 1 are the first two coordinates."""
    rest = np.random.default_rng(3).standard_normal((D_SAE, d_model))
    rest[:, :2] = 0
    rest /= np.linalg.norm(rest, axis=1, keepdims=True)
    planted = cosines()
    rows = np.sqrt(1 - (planted**2).sum(axis=1, keepdims=True)) * rest
    rows[:, :2] += planted
    return rows.astype(np.float32)


def glosses() -> np.ndarray:
    s = similarities()[:, None]
    own = np.eye(D_SAE)
    return (s * own[0] + np.sqrt(1 - s**2) * own).astype(np.float32)


def codes(n_tokens: int = 200) -> sparse.csr_matrix:
    dense = np.random.default_rng(4).random((n_tokens, D_SAE))
    return sparse.csr_matrix(np.where(dense < 0.1, dense + 1, 0).astype(np.float32))


def covariance(d_model: int = WIDTH) -> np.ndarray:
    return np.diag(np.linspace(0.5, 2.0, d_model))


def gpt2(n_layer: int = LAYERS) -> Any:
    config = transformers.GPT2Config(
        vocab_size=len(vocabulary()), n_embd=WIDTH, n_layer=n_layer, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0
    )
    return strong(transformers.GPT2LMHeadModel(config))


def save_model(folder: Path, model: Any) -> Path:
    model.save_pretrained(folder)
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(vocabulary())}, unk_token="unk"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def make_catalogue(folder: Path, model_folder: Path, *sites: Site, W_dec: np.ndarray | None = None) -> Catalogue:
    rows = decoder() if W_dec is None else W_dec
    data = SiteData(W_dec=rows, tokens=words(), codes=codes(), gloss_vectors=glosses(), covariance=covariance())
    return write_catalogue(
        folder,
        source="tiny",
        sites=dict.fromkeys(sites or (SITE,), data),
        model={"name": "tiny", "folder": str(model_folder), "sha256": digest_of(model_folder)},
    )


def make_concept(folder: Path, name: str = "color", lexicon: list[str] = LEXICON, n_sentences: int = 8) -> Concept:
    folder = folder / name
    folder.mkdir(parents=True)
    (folder / "concept.toml").write_text(f'name = "{name}"\ngloss = "g"\nlexicon_source = "here"\nlicence = "none"\n')
    (folder / "lexicon.txt").write_text("\n".join(lexicon) + "\n")
    rng = np.random.default_rng(5)
    lines = [" ".join(["the", *(f"a{n}" for n in rng.integers(2, D_SAE, 4))]) for _ in range(n_sentences)]
    (folder / "sentences.txt").write_text("\n".join(lines) + "\n")
    return load_concept(folder)
