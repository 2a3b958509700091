"""The tables of a catalogue's site: features, top tokens, top contexts. Owns words and windows of text, and the columns."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from harness.whitebox.features.catalogue import CONTEXTS, FEATURES, TOKENS, UNKNOWN_ID
from harness.whitebox.features.top_activations import Firings
from harness.whitebox.sources.sites import Site

WINDOW = 200
"""Characters of a context, about."""

WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
"""Letters and digits, with apostrophes and hyphens inside."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Text:
    """What spans point into: documents by number, and the text of each token id.

    `ids_known`: whether the ids are those of the model's tokenizer.
    """

    documents: Sequence[str]
    token_texts: Sequence[str]
    ids_known: bool = True


def word_at(words: Sequence[re.Match[str]], start: int, end: int) -> str | None:
    """The first of a document's `words` that shares a character with start:end, None where there is none."""
    at = bisect_right(words, start, key=lambda word: word.end())
    return words[at][0] if at < len(words) and words[at].start() < end else None


def window(text: str, start: int, end: int) -> tuple[str, int, int]:
    """About WINDOW characters of `text` around start:end, and where these lie in them."""
    left = max(0, min(start - WINDOW // 2, len(text) - WINDOW))
    right = max(end, left + WINDOW)
    return text[left:right], start - left, end - left


def token_table(source: str, site: Site, tokens: Firings, text: Text) -> pa.Table:
    """Rows of `tokens.parquet`; labels are token ids."""
    places, at = _distinct(tokens.spans)
    spelled = [text.token_texts[label] for label in tokens.labels.tolist()]
    known = list(_words(text, places))
    words = [known[place] or token for place, token in zip(at.tolist(), spelled, strict=True)]
    ids = tokens.labels if text.ids_known else np.full(len(tokens), UNKNOWN_ID, np.int32)
    return _table(source, site, [tokens.features, tokens.ranks, ids, spelled, words, tokens.values], TOKENS)


def context_table(source: str, site: Site, contexts: Firings, text: Text, *, first_document: int = 0) -> pa.Table:
    """Rows of `contexts.parquet`; labels are documents, counted from `first_document` in the table."""
    places, at = _distinct(contexts.spans)
    windows = [window(text.documents[document] + "\n", start, end) for document, start, end in places.tolist()]
    texts = pa.array([shown for shown, _, _ in windows], pa.string()).take(pa.array(at))
    bounds = np.array([(start, end) for _, start, end in windows], np.int32).reshape(-1, 2)[at]
    documents = contexts.labels + np.int32(first_document)
    columns = [contexts.features, contexts.ranks, contexts.values, documents, bounds[:, 0], bounds[:, 1], texts]
    return _table(source, site, columns, CONTEXTS)


def feature_table(source: str, site: Site, numbers: Sequence[NDArray[np.floating]]) -> pa.Table:
    """`features.parquet` of a site, without glosses. `numbers`: density, max_act, mean_act, each (d_sae,); NaN is null."""
    d_sae = len(numbers[0])
    nothing = [None] * d_sae
    shown = [pa.array(column, from_pandas=True) for column in numbers]
    columns = [np.arange(d_sae), *shown, nothing, nothing, nothing]
    return _table(source, site, columns, FEATURES)


def _table(source: str, site: Site, columns: Sequence[object], schema: pa.Schema) -> pa.Table:
    """`columns` behind the columns source and site."""
    n = len(columns[0])  # type: ignore[arg-type]
    labels = [pa.DictionaryArray.from_arrays(np.zeros(n, np.int8), pa.array([label])) for label in (source, str(site))]
    fields = list(schema)[len(labels) :]
    arrays = [_array(column, field.type) for column, field in zip(columns, fields, strict=True)]
    return pa.Table.from_arrays([*labels, *arrays], schema=schema)


def _array(column: object, kind: pa.DataType) -> pa.Array:
    return (column if isinstance(column, pa.Array) else pa.array(column)).cast(kind)


def _distinct(spans: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The distinct spans by document, and the number of each row's: many features fire at one place."""
    places, at = np.unique(spans, axis=0, return_inverse=True)
    return places, at.reshape(-1)


def _words(text: Text, places: NDArray[np.int32]) -> Iterator[str | None]:
    """The word at each place; places come by document."""
    number, words = -1, list[re.Match[str]]()
    for document, start, end in places.tolist():
        if document != number:
            number, words = document, list(WORD.finditer(text.documents[document]))
        yield word_at(words, start, end)
