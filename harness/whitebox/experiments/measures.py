"""How far a next-token distribution leans towards a target feature: weighted cosine and weighted overlap (Gong et al. 2026).

    weighted cosine    sum over the vocabulary of p(t) * max over u in T of cos(E_t, E_u)
    weighted overlap   sum over T of p(t)

T are the target feature's top tokens, those at TOP of its largest activation or above; E are the model's input embeddings as
they are. Both are expected values of a vector over the vocabulary, so that the steering engine reads them of each batch.

Owns the vectors. Log-odds of a lexicon and damage (total variation, top-1) are `steering`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from harness.providers.vocabulary import Vocabulary, spelling
from harness.whitebox.features.catalogue import UNKNOWN_ID, TopToken

TOP = 0.5
"""Share of a feature's largest activation from which a token counts as one of its top tokens."""

ROWS = 1 << 14
"""Embeddings compared at once: some tens of MB."""


class Yardstick:
    """The vectors of weighted cosine and weighted overlap over the vocabulary of a causal model of transformers."""

    def __init__(self, model: Any) -> None:
        self._embeddings = model.get_input_embeddings().weight.detach()
        self._size = int(model.get_output_embeddings().weight.shape[0])

    def vectors(self, top_tokens: Sequence[Sequence[int]]) -> Tensor:
        """(2 n, V) for n sets of token ids: first the n of weighted cosine, then the n of weighted overlap.

        An embedding of zeros (a padding row) has cosine 0 with everything.
        """
        found = torch.zeros(2 * len(top_tokens), self._size, device=self._embeddings.device)
        for row, ids in enumerate(top_tokens):
            wanted = torch.as_tensor(sorted(set(ids)), dtype=torch.long, device=found.device)
            found[row] = self._nearest(wanted)
            found[len(top_tokens) + row, wanted] = 1.0
        return found

    def _nearest(self, ids: Tensor) -> Tensor:
        """The largest cosine of each token's embedding with those of `ids`, (V,)."""
        nearest = torch.zeros(self._size, device=self._embeddings.device)
        goals = _unit(self._embeddings[ids])
        for start in range(0, min(self._size, len(self._embeddings)), ROWS):
            part = _unit(self._embeddings[start : start + ROWS])[: self._size - start]
            nearest[start : start + len(part)] = (part @ goals.T).amax(-1)
        return nearest


def top_token_ids(tokens: Sequence[TopToken]) -> tuple[int, ...] | None:
    """The ids of a feature's top tokens in its source's vocabulary; None where the catalogue has none. Highest come first."""
    ids = tuple(token.token_id for token in _top(tokens))
    return None if UNKNOWN_ID in ids else ids


def top_ids_by_text(tokens: Sequence[TopToken], vocabulary: Vocabulary) -> tuple[int, ...]:
    """The same in any vocabulary: the id that decodes to a token's text, else the first id of that text."""
    texts = [token.token for token in _top(tokens)]
    pieces = vocabulary.encode_pieces(texts)
    found = [_id_of(text, vocabulary, ids) for text, ids in zip(texts, pieces, strict=True)]
    return tuple(dict.fromkeys(number for number in found if number is not None))


def _id_of(text: str, vocabulary: Vocabulary, pieces: Sequence[int]) -> int | None:
    same = [number for number in vocabulary.spellings.get(spelling(text), ()) if vocabulary.texts[number] == text]
    return min(same) if same else pieces[0] if pieces else None


def _top(tokens: Sequence[TopToken]) -> list[TopToken]:
    return [token for token in tokens if token.value >= TOP * tokens[0].value]


def _unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows.float(), dim=-1)
