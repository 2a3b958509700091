"""The fault server's vocabulary: single characters, and whole words with a leading space.

Owns the tokenizer, the chat template, and their files, so that a target can name the folder as its `tokenizer`.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import jinja2
from tokenizers import Tokenizer, decoders, models, processors

from harness.errors import StorageError

BOS, EOS, UNKNOWN = "<s>", "</s>", "<unk>"
SPECIAL = (BOS, EOS, UNKNOWN, "<|system|>", "<|user|>", "<|assistant|>")
BOS_ID, EOS_ID = 0, 1

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

_CHARACTER_SCORE = -10.0
"""A word scores -1: of all ways to cut a text, the one with the fewest single characters wins."""


class Tokens:
    """Texts to ids and back. Every text that `words` and ASCII can spell survives the way there and back unchanged.

    `texts` holds the text of each id; no two ids share one.
    """

    def __init__(self, words: Iterable[str]) -> None:
        words = sorted(set(words))
        printable = {char for char in string.printable if char.isprintable() or char == "\n"}
        characters = sorted(printable | set("".join(words)))
        spaced = [f" {word}" for word in words]
        self.texts = (*SPECIAL, *characters, *spaced)
        scores = [(text, _CHARACTER_SCORE if len(text) == 1 else -1.0) for text in self.texts]
        self._tokenizer = Tokenizer(models.Unigram(scores, unk_id=SPECIAL.index(UNKNOWN)))
        self._tokenizer.decoder = decoders.Fuse()
        self._tokenizer.add_special_tokens(list(SPECIAL))
        self._tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, BOS_ID)])
        self._template = jinja2.Environment(keep_trailing_newline=True).from_string(CHAT_TEMPLATE)

    def __len__(self) -> int:
        return len(self.texts)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> tuple[int, ...]:
        """The ids of `text`, after a BOS unless told otherwise."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def encode_chat(self, messages: Sequence[Mapping[str, str]], *, generation_prompt: bool, open_end: bool) -> tuple[int, ...]:
        """The ids of a conversation; `open_end` leaves its last message unfinished."""
        text = self._template.render(messages=messages, add_generation_prompt=generation_prompt, bos_token=BOS, eos_token=EOS)
        return self.encode(text.removesuffix(EOS) if open_end else text, add_special_tokens=False)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, special tokens included."""
        return "".join(self.texts[i] for i in ids)

    @cached_property
    def quoted(self) -> tuple[str, ...]:
        """The text of each id as a JSON string."""
        return tuple(json.dumps(text) for text in self.texts)

    @cached_property
    def quoted_ids(self) -> tuple[str, ...]:
        """`token_id:N` of each id as a JSON string."""
        return tuple(f'"token_id:{i}"' for i in range(len(self.texts)))

    @cached_property
    def quoted_bytes(self) -> tuple[str, ...]:
        """The UTF-8 bytes of each id's text as a JSON list."""
        return tuple(json.dumps(list(text.encode())) for text in self.texts)

    def write(self, folder: Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`; raises StorageError."""
        config = {"bos_token": BOS, "eos_token": EOS, "unk_token": UNKNOWN, "chat_template": CHAT_TEMPLATE}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "tokenizer.json").write_text(self._tokenizer.to_str(pretty=True), encoding="utf-8")
            text = json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **config}, indent=2)
            (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
        except OSError as exc:
            raise StorageError(f"cannot write the tokenizer to {folder}: {exc.strerror or exc}") from exc
