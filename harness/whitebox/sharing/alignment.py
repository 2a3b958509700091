"""Text that two tokenizers cut differently, aligned at characters.

A document is cut where tokens of both sources end: up to such a character both models have read exactly the same text. A
segment lies between two such places, and a feature's activation on it is its largest on the tokens inside. Knows spans and
sparse codes, neither catalogues nor files.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from harness.errors import UsageError

Spans = NDArray[np.int32]
Ints = NDArray[np.int64]

SPACED = 0.1
"""Of a tokenizer that counts the space before a word to no token, about every second token lies one character behind the last
one; of any other, one in a context of 128 at the most, where the first position is left out."""

SEGMENTS_AT_ONCE = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Alignment:
    """The segment of each row of `spans` of either source, -1 for a token in no segment; `n` segments, ascending in both."""

    a: Ints
    b: Ints
    n: int


def align(a: Spans, b: Spans) -> Alignment:
    """Segments that both sources have read whole, from the spans (n_tokens, 3) of their tokens in the order of the text.

    A segment in which a source misses a token is left out, and so is what one of them has not read; a token that shares a
    character with the next one (bytes of one character) ends nowhere. Rows without a document (-1) are passed over. Raises
    UsageError for spans that are not in order.
    """
    width = 1 + max((int(spans[:, 2].max()) for spans in (a, b) if len(spans)), default=0)
    one, other = (_Read.of(spans, width) for spans in (a, b))
    places = np.intersect1d(one.cuts, other.cuts, assume_unique=True)
    at_a, at_b = (_place_of(read, places, width) for read in (one, other))
    broken = np.zeros(len(places), bool)
    for read, at in ((one, at_a), (other, at_b)):
        broken[at[read.gap & (at >= 0)]] = True
    number = np.where(broken, -1, np.cumsum(~broken) - 1)
    number = np.append(number, -1)  # what is at -1 stays there
    found = []
    for spans, read, at in ((a, one, at_a), (b, other, at_b)):
        segment = np.full(len(spans), -1, np.int64)
        segment[read.rows] = number[at]
        found.append(segment)
    return Alignment(a=found[0], b=found[1], n=int(np.count_nonzero(~broken)))


def pooled(codes: sparse.csr_matrix, segment: Ints, n: int) -> sparse.csr_matrix:
    """The largest of the non-negative `codes` (n_tokens, d_sae) within each of `n` segments, (n, d_sae) float32.

    `segment` (n_tokens,) ascends but for -1, the rows to be left out.
    """
    kept = np.flatnonzero(segment >= 0)
    codes, segment = codes[kept], segment[kept]
    parts = [sparse.csr_matrix((0, codes.shape[1]), dtype=np.float32)]
    for start in range(0, n, SEGMENTS_AT_ONCE):
        stop = min(start + SEGMENTS_AT_ONCE, n)
        first, last = np.searchsorted(segment, (start, stop))
        parts.append(_largest(codes[first:last], segment[first:last] - start, stop - start))
    return sparse.csr_matrix(sparse.vstack(parts, format="csr"))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Read:
    """What one source has read. A place is document * width + character.

    `rows`: the rows of its spans that lie in a document; `ends` (len(rows),): where each ends; `gap`: whether text that no
    token stands for lies before it; `cuts`: where a token ends and the next one does not begin before that, ascending.
    """

    rows: Ints
    ends: Ints
    gap: NDArray[np.bool_]
    cuts: Ints

    @classmethod
    def of(cls, spans: Spans, width: int) -> _Read:
        rows = np.flatnonzero(spans[:, 0] >= 0)
        document, start, end = spans[rows].astype(np.int64).T
        starts, ends, begins = document * width + start, document * width + end, document * width
        if np.any(ends[1:] < ends[:-1]):
            raise UsageError(
                "the tokens of a catalogue are not in the order of its text",
                hint="spans.safetensors is damaged: make the catalogue again with harness map catalogue",
            )
        before = np.maximum(np.append(-1, ends[:-1]), begins) if len(rows) else ends
        skipped = starts - before
        spaced = np.mean(skipped == 1) > SPACED if len(rows) else False
        cut = np.append(starts[1:] >= ends[:-1], True)[: len(rows)]
        return cls(rows=rows, ends=ends, gap=skipped > int(spaced), cuts=np.unique(ends[cut]))


def _place_of(read: _Read, places: Ints, width: int) -> Ints:
    """The index of the first of `places` at or behind the end of each token, -1 where its document has none."""
    at = np.searchsorted(places, read.ends)
    there = np.append(places, -1)[at] // width == read.ends // width
    return np.where(there, at, -1)


def _largest(codes: sparse.csr_matrix, segment: Ints, n: int) -> sparse.csr_matrix:
    width = codes.shape[1]
    places = np.repeat(segment, np.diff(codes.indptr)) * width + codes.indices
    order = np.argsort(places, kind="stable")
    places, values = places[order], codes.data[order]
    first = np.flatnonzero(np.diff(places, prepend=-1))
    largest = np.maximum.reduceat(values, first) if len(first) else values
    there = largest > 0
    rows, columns = np.divmod(places[first][there], width)
    return sparse.csr_matrix((largest[there].astype(np.float32), (rows, columns)), shape=(n, width))
