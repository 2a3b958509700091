"""The questions that do not depend on each other: one or a few requests of one token each, put side by side.

Nothing here is fatal: what cannot be asked is answered with the reason.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from harness.providers.http.fitting import PROBE_TEXT, Form, Refused, ask, draw
from harness.providers.http.transport import Answer, RequestFailedError
from harness.providers.vocabulary import Vocabulary, spelling
from harness.providers.wire.base import BadAnswerError, Question, TextOrIds
from harness.records import Observation

COMPARED = 20
"""Tokens of a list that are compared from one answer to the next."""

REPEATS = 5
SAME_NAT = 0.2
"""Answers to one prompt differ by less: noise is under 0.1 nat, a temperature of one half moves a list by several."""

_DRAWS = 16
"""Draws a request that are tried where the target's file names no number."""

_BIASED_IDS = 300
"""Ids that a request is tried to bias where the target's file names no number: a large lexicon's."""

_STRONG = 100.0
_ODD_WORDS = ("zebra", "piano", "purple", "banana")
"""None of them goes on with the probe text: where one comes, a bias brought it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What the questions start from: the probe text as it is sent, and the list that came for it at temperature 0.

    `asked`: how many log-probabilities may be asked for, 0 where none are given (then `base` is None).
    """

    form: Form
    prompt: TextOrIds
    asked: int
    base: Observation | None
    vocabulary: Vocabulary | None
    names: Vocabulary | None

    def question(self, temperature: float = 0.0) -> Question:
        """A short list for the probe text."""
        return Question(n_logprobs=min(self.asked, COMPARED), vocabulary=self.names, temperature=temperature)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a question found: the text of the finding, and the number that follows from it."""

    text: str
    number: int = 0


async def list_at(known: Known, temperature: float) -> Observation | str:
    """The list at a temperature, or why there is none."""
    try:
        seen = await ask(known.form.line, [known.prompt], known.question(temperature))
    except RequestFailedError as exc:
        return exc.reason
    return seen.reason if isinstance(seen, Refused) else seen[0][0]


async def repeatability(known: Known) -> Found:
    """How far the same list moves from one answer to the next."""
    if known.base is None:
        return Found(text="not asked: there is no list")
    more = await asyncio.gather(*(list_at(known, 0.0) for _ in range(REPEATS - 1)))
    lists = [known.base, *(one for one in more if isinstance(one, Observation))]
    if len(lists) == 1:
        return Found(text=f"could not be asked: {more[0]}")
    moved = [change(lists[0], other) for other in lists[1:]]
    text = f"{max(one for one, _ in moved):.4f} nat at the most over {len(lists)} answers"
    return Found(text=text + ("" if all(same for _, same in moved) else "; the tokens listed differ"))


async def rawness(known: Known) -> Found:
    """Whether the temperature moves the list; number 1: at temperature 0 it is not the model's own, at 1 it is."""
    if known.base is None:
        return Found(text="not asked: there is no list")
    if known.form.spec.claims.temperature is False:
        return Found(text="not asked: no temperature may be set")
    half, one = await asyncio.gather(list_at(known, 0.5), list_at(known, 1.0))
    if isinstance(half, str) or isinstance(one, str):
        return Found(text=f"could not be asked: {half if isinstance(half, str) else one}")
    to_half, to_one = change(known.base, half)[0], change(known.base, one)[0]
    if max(to_half, to_one) < SAME_NAT:
        return Found(text="raw: the same at temperatures 0, 0.5 and 1")
    if to_one < SAME_NAT:
        return Found(text=f"processed: {to_half:.1f} nat from temperature 0 to 0.5, but at 0 it is as at 1")
    return Found(text=f"processed: {to_one:.1f} nat from temperature 0 to 1, so it is asked at 1", number=1)


async def draws(known: Known) -> Found:
    """How many draws a request may ask for: the number."""
    form = known.form
    wanted = (form.spec.claims.draws_per_request or _DRAWS) if form.line.dialect.takes_draws else 1
    reason = ""
    for n in dict.fromkeys((wanted, 1)):
        try:
            seen = await draw(form.line, known.prompt, Question(n_draws=n, temperature=1.0))
        except RequestFailedError as exc:
            return Found(text=f"could not be asked: {exc.reason}")
        if isinstance(seen, Refused):
            reason = seen.reason
            continue
        text = str(n)
        if reason:
            text += f", {wanted} are refused: {reason}"
        if any(one.startswith(PROBE_TEXT) for one in seen[0]):
            text += "; a draw repeats the prefilled text, which is cut off"
        return Found(text=text, number=n)
    return Found(text=f"none: {reason}")


async def bias(known: Known) -> Found:
    """How many ids `logit_bias` takes (the number), and whether the list shows the logits before it or after."""
    vocabulary, claimed = known.vocabulary, known.form.spec.claims.bias_ids
    if vocabulary is None:
        return Found(text="not asked: the target's vocabulary is not known")
    if claimed == 0:
        return Found(text="0: the target's file says so")
    reason = ""
    for n in dict.fromkeys((min(claimed or _BIASED_IDS, len(vocabulary)), 1)):
        try:
            found = await _biased(known, vocabulary, n)
        except RequestFailedError as exc:
            return Found(text=f"could not be asked: {exc.reason}")
        if isinstance(found, Found):
            return Found(text=found.text + (f"; more are refused: {reason}" if reason else ""), number=found.number)
        reason = found
    return Found(text=f"0: refused: {reason}")


async def _biased(known: Known, vocabulary: Vocabulary, n: int) -> Found | str:
    """What a bias on `n` ids does, or why it is refused."""
    odd = _odd_id(known, vocabulary)
    others = [i for i in range(len(vocabulary)) if i != odd and i not in vocabulary.special_ids][: n - 1]
    values = {odd: _STRONG} | dict.fromkeys(others, -1.0)
    line = known.form.line
    drawn = Question(n_draws=1, temperature=1.0, bias=values)
    if known.base is None:
        seen = await draw(line, known.prompt, drawn)
        if isinstance(seen, Refused):
            return seen.reason
        (text,), listed = seen[0], None
    else:
        answered = await ask(line, [known.prompt], replace(known.question(), bias=values))
        if isinstance(answered, Refused):
            return answered.reason
        (listed,), answer = answered
        text = _text_of(known, answer)
    if spelling(text.removeprefix(PROBE_TEXT)) != spelling(vocabulary.text(odd)):
        return Found(text="0: accepted and ignored")
    when = "" if listed is None else f"; the list stands {'before' if change(known.base, listed)[0] < SAME_NAT else 'after'} it"
    return Found(text=f"{len(values)}{when}", number=len(values))


def _odd_id(known: Known, vocabulary: Vocabulary) -> int:
    """An id that nobody would say next."""
    for word in _ODD_WORDS:
        for i in vocabulary.spellings.get(word, ()):
            if vocabulary.text(i) in (f" {word}", word):
                return i
    listed = set(known.base.tokens) if known.base is not None else set()
    ids = set() if known.base is None or known.base.token_ids is None else set(known.base.token_ids[:COMPARED].tolist())
    texts = vocabulary.texts
    return next(
        (i for i in reversed(range(len(texts))) if texts[i].strip().isalnum() and i not in ids and texts[i] not in listed),
        len(texts) - 1,
    )


def _text_of(known: Known, answer: Answer) -> str:
    """The text that was drawn beside a list."""
    try:
        return known.form.line.dialect.draws(answer.value, 1, Question(n_draws=1))[0][0]
    except BadAnswerError:
        return ""


def change(one: Observation | None, other: Observation) -> tuple[float, bool]:
    """(the largest change of a log-probability that both lists show, whether they show the same tokens)."""
    first, second = _listed(one) if one is not None else {}, _listed(other)
    n = min(len(first), len(second), COMPARED)
    both = [name for name in list(first)[:n] if name in second]
    moved = max((abs(first[name] - second[name]) for name in both), default=float("inf"))
    return moved, set(list(first)[:n]) == set(list(second)[:n])


def _listed(seen: Observation) -> dict[int | str, float]:
    names: Sequence[int | str] = seen.tokens if seen.token_ids is None else seen.token_ids.tolist()
    return dict(zip(names, seen.logprobs.tolist(), strict=True))
