"""How many tokens of its own a server puts around a text: the BOS, which must be one whatever the route, and the template.

vLLM's `/tokenize` shows the very ids; elsewhere the count of prompt tokens in an answer has to do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from harness.providers.http.fitting import PROBE_TEXT, Form
from harness.providers.http.questions import Known
from harness.providers.http.transport import Answer, RequestFailedError
from harness.providers.vocabulary import Vocabulary
from harness.providers.wire.base import read_usage
from harness.providers.wire.chat import messages

BOS_TEXTS = ("<|begin_of_text|>", "<bos>", "<s>")
"""How common tokenizers spell the token that starts a text, for when the tokenizer itself is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """What stands around a text: findings about the BOS and the template, and notes on what is not as it must be."""

    bos: str
    template: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tokens:
    """A text as the server splits it."""

    ids: tuple[int, ...]
    texts: tuple[str, ...]


async def around(known: Known, first: Answer, *, shows_tokens: bool) -> Around:
    """`first`: the answer to the probe text, sent as text; `shows_tokens`: whether the server is one with `/tokenize`."""
    talks = not known.form.line.dialect.takes_many
    if shows_tokens:
        found = await (_conversation(known.form) if talks else _completion(known))
        if found is not None:
            return found
    return _counted(known, first, talks=talks)


async def _completion(known: Known) -> Around | None:
    """The BOS of a text, of a text that brings its own, and of the ids that we send."""
    plain = await _tokenise(known.form, prompt=PROBE_TEXT)
    if plain is None:
        return None
    starts = _starts(known.vocabulary)
    counts = {"text": _count(plain, starts)}
    notes = []
    spelled = "".join(plain.texts[: counts["text"]])
    if spelled:
        brought = await _tokenise(known.form, prompt=spelled + PROBE_TEXT, add_special_tokens=False)
        if brought is not None:
            counts["text that brings it"] = _count(brought, starts)
    if known.vocabulary is not None:
        own = known.vocabulary.encode([PROBE_TEXT])[0]
        counts["ids"] = _count(_Tokens(ids=own, texts=tuple(map(known.vocabulary.text, own))), starts)
        if own != plain.ids:
            notes.append(f"the server splits the probe text into other tokens than ours: {list(plain.ids)}, not {list(own)}")
    if len(set(counts.values())) > 1 or max(counts.values()) > 1:
        notes.append(f"the number of BOS tokens is not one by every route: {_said(counts)}")
    return Around(bos=_said(counts), template="none: a completion", notes=tuple(notes))


async def _conversation(form: Form) -> Around | None:
    """The BOS and the template's tokens around a conversation that holds the probe text."""
    continues = form.spec.chat.prefill != "none"
    asked = {"messages": messages(PROBE_TEXT, form.spec.chat), "add_generation_prompt": not continues}
    whole = await _tokenise(form, **asked, continue_final_message=continues)
    if whole is None:
        return None
    count = _count(whole, _starts(None))
    text = "".join(whole.texts)
    before, _, after = text.rpartition(PROBE_TEXT)
    digest = hashlib.sha256(f"{before}\0{after}".encode()).hexdigest()[:12]
    notes = [] if count < 2 else [f"a conversation starts with {count} BOS tokens"]
    if continues and after:
        notes.append(f"a prefilled text is followed by {after!r} where nothing should follow")
    return Around(
        bos=_said({"conversation": count}),
        template=f"{len(whole.ids)} tokens with the text; digest {digest}",
        notes=tuple(notes),
    )


def _counted(known: Known, first: Answer, *, talks: bool) -> Around:
    """What the count of prompt tokens tells."""
    usage = read_usage(first.value)
    template = "none: a completion"
    if usage is None or usage[0] == 0:
        return Around(bos="not known: the answer counts no tokens", template="not known" if talks else template)
    if known.vocabulary is None:
        said = f"not known without a tokenizer; {usage[0]} prompt tokens"
        return Around(bos=said, template=said if talks else template)
    own = len(known.vocabulary.encode_pieces([PROBE_TEXT])[0])
    more = usage[0] - own
    if talks:
        return Around(bos="not known: part of the template", template=f"{more} tokens around the text, by prompt_tokens")
    starts = len(known.vocabulary.encode([PROBE_TEXT])[0]) - own
    notes = (
        () if more == starts else (f"the server counts {usage[0]} tokens for the probe text sent as text, we {own + starts}",)
    )
    return Around(bos=f"{more} by prompt_tokens", template=template, notes=notes)


async def _tokenise(form: Form, **body: Any) -> _Tokens | None:
    """What the server's `/tokenize` says; None where it says nothing that can be used."""
    line = form.line
    asked = {"model": line.model, "return_token_strs": True, **body}
    try:
        answer = await line.transport.post(f"{line.url.removesuffix('/v1')}/tokenize", asked, attempts=1)
    except RequestFailedError:
        return None
    said = answer.value if isinstance(answer.value, dict) else {}
    ids, texts = said.get("tokens"), said.get("token_strs")
    if not isinstance(ids, list) or not ids or not all(isinstance(one, int) for one in ids):
        return None
    if not isinstance(texts, list) or len(texts) != len(ids) or not all(isinstance(one, str) for one in texts):
        return None
    return _Tokens(ids=tuple(ids), texts=tuple(_plain(text) for text in texts))


def _plain(text: str) -> str:
    """A token as vLLM writes it, with the marks that tokenizers put in place of blanks made blanks again."""
    return text.replace("Ġ", " ").replace("▁", " ").replace("Ċ", "\n")


def _starts(vocabulary: Vocabulary | None) -> tuple[str, ...]:
    added = vocabulary.encode([""])[0] if vocabulary is not None else ()
    return tuple(vocabulary.text(i) for i in added) if vocabulary is not None and added else BOS_TEXTS


def _count(tokens: _Tokens, starts: Sequence[str]) -> int:
    """How many tokens of a kind that starts a text stand at the beginning."""
    return next((i for i, text in enumerate(tokens.texts) if text not in starts), len(tokens.texts))


def _said(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} by {route}" for route, count in counts.items())
