"""Whether an endpoint goes on with a last assistant message, or takes it for a turn that is over."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from harness.providers.http.fitting import PROBE_TEXT, First, Form, Refused, ask, draw
from harness.providers.http.questions import COMPARED, SAME_NAT, change
from harness.providers.http.transport import RequestFailedError
from harness.providers.targets import Chat
from harness.providers.wire.base import Question
from harness.records import Observation

_CUT, _REST = PROBE_TEXT + " Par", "is"
"""A text that ends inside a word, and what can only be its end."""


async def prefill(form: Form, first: First) -> str:
    """What happens to a prefilled text; where it is not continued, `form` asks by instruction from now on.

    A continuation of the probe text begins with a space, as a new turn never does. Where no token does (some tokenizers'
    texts have none), a text cut inside a word decides.
    """
    chat = form.spec.chat
    if chat.prefill == "none":
        return "no: an instruction asks for the continuation"
    if _spaced(first) >= 0.5:
        return "yes: the text is continued"
    try:
        anew = first.clear is not None and await _starts_anew(form, chat, first.clear)
        word = "" if anew else await _after(form, _CUT)
    except RequestFailedError as exc:
        form.notes.append(f"whether a last assistant message is continued could not be asked: {exc.reason}")
        return f"unclear: {exc.reason}"
    if word.strip().startswith(_REST):
        return "yes: a word that was cut is continued"
    form.chat(chat.model_copy(update={"prefill": "none"}))
    form.notes.append("a last assistant message is not continued: an instruction asks for the continuation instead")
    return "no: ignored, the answer is the same without it" if anew else "no: the answer begins a new turn"


def _spaced(first: First) -> float:
    """The share of the first answer that begins with a space."""
    if first.clear is None:
        return float(first.drawn.removeprefix(PROBE_TEXT).startswith(" "))
    chances = np.exp(first.clear.logprobs.astype(np.float64))
    return float(chances[[token.startswith(" ") for token in first.clear.tokens]].sum() / chances.sum())


async def _starts_anew(form: Form, chat: Chat, prefilled: Observation) -> bool:
    """Whether the list is the same without the assistant message."""
    bare = form.make(chat.model_copy(update={"prefill": "none", "instruction": chat.opening}))
    seen = await ask(replace(form.line, dialect=bare), [PROBE_TEXT], Question(n_logprobs=min(len(prefilled.tokens), COMPARED)))
    return not isinstance(seen, Refused) and change(prefilled, seen[0][0])[0] < SAME_NAT


async def _after(form: Form, text: str) -> str:
    """The likeliest, or a drawn, continuation of a text."""
    seen = await draw(form.line, text, Question(n_draws=1, temperature=0.0))
    return "" if isinstance(seen, Refused) else seen[0][0].removeprefix(text)
