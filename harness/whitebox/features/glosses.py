"""What a feature means, in words: glosses from its top words, and how glosses of any kind are written beside a site's tables.

A site's glosses are made after the text was read and stand under a key of their own (`gloss.json`), so that other glosses
need no other reading. Glosses of a language model are `autointerp`'s, those of Neuronpedia `neuronpedia`'s matter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors.numpy import save_file

from harness.whitebox.features.catalogue import FEATURES
from harness.whitebox.stage import Record, finished, whole, write_json, write_table

RECORD = "gloss.json"
VECTORS = "glosses.safetensors"
TENSOR = "vectors"

N_WORDS = 8
STRONG = 0.5
"""A word counts where the feature fires at this share of its largest activation, or more."""

Kind = Literal["contexts", "neuronpedia", "llm", "none"]
Embed = Callable[[Sequence[str]], NDArray[np.float32]]
"""Texts to unit vectors (n, e)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gloss:
    """`source`: who says so. `score`: balanced accuracy in [0, 1] of a held-out detection test, None where none was made."""

    text: str
    source: str
    score: float | None = None


Glosses = Mapping[int, Gloss]
"""By feature; features without a gloss are not in it."""


def from_words(tokens: Path) -> dict[int, Gloss]:
    """For each feature of a site's `tokens.parquet` its strongest words, one after another."""
    words: dict[int, dict[str, None]] = {}
    largest: dict[int, float] = {}
    with pq.ParquetFile(tokens) as file:
        for batch in file.iter_batches(columns=["feature", "word", "value"]):  # the strongest row of a feature comes first
            for feature, word, value in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                listed = words.setdefault(feature, {})
                strong = value >= STRONG * largest.setdefault(feature, value)
                if strong and len(listed) < N_WORDS and (spelled := word.strip().casefold()):
                    listed[spelled] = None
    return {feature: Gloss(text=", ".join(listed), source="contexts") for feature, listed in words.items() if listed}


def is_glossed(folder: Path, key: Mapping[str, Any]) -> Record | None:
    """The record of the glosses in a site's folder where they were made under this key, else None."""
    return finished(folder, key, RECORD)


def write_glosses(folder: Path, glosses: Glosses, vectors: NDArray[np.float32] | None, record: Mapping[str, Any]) -> Record:
    """Put `glosses` into the `features.parquet` of a site's folder and their vectors beside it; `record`, with its key, last.

    `vectors` (d_sae, e), zeros where a feature has no gloss; None without glosses.
    """
    (folder / RECORD).unlink(missing_ok=True)
    features = pq.read_table(folder / "features.parquet")
    found = [glosses.get(feature) for feature in range(len(features))]
    for name, values in (
        ("gloss", [None if gloss is None else gloss.text for gloss in found]),
        ("gloss_source", [None if gloss is None else gloss.source for gloss in found]),
        ("gloss_score", [None if gloss is None else gloss.score for gloss in found]),
    ):
        field = FEATURES.field(name)
        features = features.set_column(features.schema.get_field_index(name), field, pa.array(values, field.type))
    write_table(folder / "features.parquet", features)
    if vectors is None:
        (folder / VECTORS).unlink(missing_ok=True)
    else:
        with whole(folder / VECTORS) as part:
            save_file({TENSOR: vectors}, part)
    scores = [gloss.score for gloss in glosses.values() if gloss.score is not None]
    told = {**record, "n_glosses": len(glosses), "mean_score": float(np.mean(scores)) if scores else None}
    write_json(folder / RECORD, told)
    return told


def embedded(glosses: Glosses, d_sae: int, embed: Embed) -> NDArray[np.float32]:
    """The vectors of the glosses' texts, (d_sae, e) float32, zeros where a feature has none; each text is embedded once."""
    features = sorted(glosses)
    texts = list(dict.fromkeys(glosses[feature].text for feature in features))
    number = {text: at for at, text in enumerate(texts)}
    found = embed(texts)
    vectors = np.zeros((d_sae, found.shape[1]), np.float32)
    vectors[features] = found[[number[glosses[feature].text] for feature in features]]
    return vectors
