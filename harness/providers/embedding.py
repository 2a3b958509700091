"""A target's input embeddings, read row by row from a local safetensors folder; no model is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from harness.providers.targets import TargetSpec

TENSOR_NAMES = ("model.embed_tokens.weight", "transformer.wte.weight", "wte.weight", "gpt_neox.embed_in.weight")


class Embedding:
    """Rows of an embedding matrix (n_vocab, d_model) in float32."""

    def __init__(self, file: Path, name: str) -> None:
        self._file = safe_open(str(file), framework="numpy")
        self._rows = self._file.get_slice(name)  # type: ignore[no-untyped-call]
        self.n_vocab, self.d_model = self._rows.get_shape()

    def unit_rows(self, ids: NDArray[np.integer]) -> NDArray[np.float32]:
        """The rows of `ids` (n,), each divided by its norm: (n, d_model). A zero row stays zero."""
        rows = np.empty((len(ids), self.d_model), np.float32)
        for i, token_id in enumerate(ids.tolist()):
            rows[i] = self._rows[token_id : token_id + 1][0]
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        rows /= np.where(norms == 0, 1, norms)
        return rows


def find_embedding(spec: TargetSpec) -> Embedding | None:
    """The embeddings of a target whose weights lie on this machine in a type that numpy has, else None."""
    folder = spec.unpacked() or Path(spec.target.model)
    if not folder.is_dir():
        return None
    index = folder / "model.safetensors.index.json"
    files = json.loads(index.read_text())["weight_map"] if index.is_file() else {}
    for tensor in TENSOR_NAMES:
        file = folder / files.get(tensor, "model.safetensors")
        try:
            embedding = Embedding(file, tensor)
            embedding.unit_rows(np.zeros(1, np.int32))
        except (SafetensorError, OSError, TypeError):  # no such tensor or file, or bfloat16, which numpy lacks
            continue
        return embedding
    return None


class Similarity:
    """For each token, its largest cosine with any of a lexicon's tokens; worked out when a token is first asked for."""

    def __init__(self, embedding: Embedding, lexicon_ids: NDArray[np.integer]) -> None:
        self._embedding = embedding
        self._lexicon = embedding.unit_rows(lexicon_ids[lexicon_ids < embedding.n_vocab])  # (n_lexicon, d_model)
        self._known = np.full(embedding.n_vocab, np.nan, np.float32)

    def of(self, ids: NDArray[np.integer]) -> NDArray[np.float32]:
        """Cosines in [-1, 1] for `ids` of any shape; 0 at padding (-1) and where the lexicon is empty."""
        wanted = np.unique(ids[ids >= 0])
        new = wanted[np.isnan(self._known[wanted])]
        if len(new) and len(self._lexicon):
            self._known[new] = (self._embedding.unit_rows(new) @ self._lexicon.T).max(axis=1)
        elif len(new):
            self._known[new] = 0.0
        values: NDArray[np.float32] = np.where(ids >= 0, self._known[np.maximum(ids, 0)], np.float32(0))
        return values
