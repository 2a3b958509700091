"""Documents packed into contexts of one length, each token with the characters it stands for.

Documents lie end to end, a newline behind each, cut wherever a context is full. The characters of a token are those of its own
document, so that two models with different tokenizers can be compared on the same text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.whitebox.sources.activations import CONTEXT, batched

NO_DOCUMENT = -1

_ENCODE_AT_ONCE = 512


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Packed:
    """One context. `spans` (T, 3) int32: document, first character, character after the last; (-1, 0, 0) for a BOS."""

    ids: list[int]
    spans: NDArray[np.int32]


def packed(documents: Iterable[str], tokenizer: Any, *, length: int = CONTEXT, bos: int | None = None) -> Iterator[Packed]:
    """`documents` in contexts of exactly `length` tokens, each beginning with `bos` where one is given.

    `tokenizer` is one of the tokenizers package. What is left at the end and fills no context is dropped.
    """
    head = [] if bos is None else [bos]
    head_spans = np.array([(NO_DOCUMENT, 0, 0)] * len(head), np.int32).reshape(-1, 3)
    room = length - len(head)
    ids: list[int] = []
    spans: list[tuple[int, int, int]] = []
    number = 0
    for part in batched(documents, _ENCODE_AT_ONCE):
        for encoding in tokenizer.encode_batch([text + "\n" for text in part], add_special_tokens=False):
            ids.extend(encoding.ids)
            spans.extend((number, start, end) for start, end in encoding.offsets)
            number += 1
        full = len(ids) // room * room
        for start in range(0, full, room):
            own = np.array(spans[start : start + room], np.int32)
            yield Packed(ids=head + ids[start : start + room], spans=np.concatenate((head_spans, own)))
        del ids[:full], spans[:full]


def contexts(documents: Iterable[str], tokenizer: Any, *, length: int = CONTEXT, bos: int | None = None) -> Iterator[list[int]]:
    """The token ids of `packed`."""
    return (context.ids for context in packed(documents, tokenizer, length=length, bos=bos))
