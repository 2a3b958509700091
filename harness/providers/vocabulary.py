"""A target's tokenizer: text to ids, ids to text, and its digest. Knows nothing of concepts or prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer

from harness.errors import UsageError

_CHARACTERS_A_TOKEN = 4


def spelling(text: str) -> str:
    """What a token's text spells: without one leading space, case folded."""
    return text.removeprefix(" ").casefold()


def about_tokens(text: str) -> int:
    """How many tokens a text has where its tokenizer is not known: four characters count as one."""
    return -(-len(text) // _CHARACTERS_A_TOKEN)


class Vocabulary:
    """A `tokenizers.Tokenizer` and the text of every id.

    `digest` is the sha256 of the tokenizer's serialised form, so that equal tokenizers have equal digests wherever they lie.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._size = int(tokenizer.get_vocab_size(with_added_tokens=True))  # counted anew at each call, which takes long

    @classmethod
    def load(cls, source: str | Path) -> Vocabulary:
        """From a `tokenizer.json`, a folder that holds one, or the name of a model on a hub; raises UsageError."""
        path = Path(source)
        file = path / "tokenizer.json" if path.is_dir() else path
        try:
            if file.is_file():
                return cls(Tokenizer.from_file(str(file)))
            return cls(Tokenizer.from_pretrained(str(source)))
        except Exception as exc:
            raise UsageError(
                f"no tokenizer at {source!s}: {exc}",
                hint="set `tokenizer` in the target's file to a folder with a tokenizer.json",
            ) from exc

    def __len__(self) -> int:
        return self._size

    def encode(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """The ids of each text, with the special tokens that the tokenizer itself puts before a prompt (one BOS or none)."""
        return [tuple(encoding.ids) for encoding in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=True)]

    def encode_pieces(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """The ids of each text as it continues another: without special tokens."""
        return [tuple(encoding.ids) for encoding in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def text(self, token_id: int) -> str:
        """The decoded text of one id; empty where the id is outside the vocabulary (padding rows of a model's head)."""
        return self.texts[token_id] if 0 <= token_id < len(self.texts) else ""

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """The decoded text of every id, in the order of ids."""
        return tuple(self._tokenizer.decode_batch([[i] for i in range(len(self))], skip_special_tokens=False))

    @cached_property
    def spellings(self) -> dict[str, list[int]]:
        """The ids that spell each text, without one leading space and ignoring case; special tokens left out."""
        ids: dict[str, list[int]] = {}
        for i, text in enumerate(self.texts):
            if i not in self.special_ids:
                ids.setdefault(spelling(text), []).append(i)
        return ids

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """The ids of special tokens (BOS, EOS, padding, ...)."""
        return frozenset(i for i, token in self._tokenizer.get_added_tokens_decoder().items() if token.special)

    @cached_property
    def digest(self) -> str:
        """sha256 of the serialised tokenizer, hex."""
        return hashlib.sha256(self._tokenizer.to_str().encode()).hexdigest()
