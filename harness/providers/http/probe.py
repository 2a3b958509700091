"""Finding out what an endpoint can do, by asking: tiny requests, those that depend on each other first, the rest at once.

Facts about endpoints move, so a claim of the target's file is a question here, never an answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from harness.errors import CapabilityError
from harness.providers.chosen import CHOSEN_IDS
from harness.providers.http import questions
from harness.providers.http.fitting import PROBE_TEXT, First, Form, Refused, ask, first_answer
from harness.providers.http.prefilling import prefill
from harness.providers.http.questions import Known
from harness.providers.http.tokenising import around
from harness.providers.http.transport import Answer
from harness.providers.vocabulary import Vocabulary
from harness.providers.wire.base import BadAnswerError, Question, TextOrIds, read_text
from harness.records import Mode, Observation

_SAME_NAT = 0.5
"""Log-probabilities of one prompt sent as text and as ids differ by less: noise is under 0.1, another prompt's many nats."""

_FEWER_PROMPTS = (8, 2)
"""Numbers of prompts to try where as many as the file allows are refused."""

_SHORT = 100
"""A list no longer than this that sums to one was made to: no model has so short a vocabulary."""


@dataclass(slots=True, kw_only=True)
class Way:
    """How prompts go and how tokens are named. `names`: the vocabulary, if tokens come named by id; `base`: the probe text's
    list in this way, `limit` its length."""

    vocabulary: Vocabulary | None
    prompt: TextOrIds = PROBE_TEXT
    limit: int = 0
    base: Observation | None = None
    names: Vocabulary | None = None
    token_ids: bool = False
    prompts_per_request: int = 1
    many_refused: str = ""
    chosen_ids: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What the endpoint was found to do. `named`: the model that answers name; `modes`: what is possible, the best first;
    `texts`: the answer to each question, by its name."""

    way: Way
    bias_ids: int
    modes: tuple[Mode, ...]
    named: str | None
    fingerprint: str | None
    texts: Mapping[str, str]


async def probe(form: Form, vocabulary: Vocabulary | None, *, shows_tokens: bool) -> Findings:
    """Ask; `form` is fitted to what comes back, `shows_tokens` says that the server has vLLM's `/tokenize`.

    Raises CapabilityError where nothing usable is shown, RequestFailedError where the endpoint fails.
    """
    first = await first_answer(form)
    chat = form.spec.chat
    prefilled = "none: a completion" if form.line.dialect.takes_many else await prefill(form, first)
    if form.spec.chat != chat:
        first = await first_answer(form)
    way = Way(vocabulary=vocabulary)
    if first.clear is not None:
        await _find_way(form, first, first.clear, way)
    else:
        form.notes.append(f"no log-probabilities are given, answers are drawn: {first.no_lists}")
    known = Known(form=form, prompt=way.prompt, asked=first.asked, base=way.base, vocabulary=way.vocabulary, names=way.names)
    raw, repeats, bias, draws, tokens = await asyncio.gather(
        questions.rawness(known),
        questions.repeatability(known),
        questions.bias(known),
        questions.draws(known),
        around(known, first.answer, shows_tokens=shows_tokens),
    )
    form.notes.extend(tokens.notes)
    if raw.number:
        form.line = replace(form.line, body={**form.line.body, "temperature": 1.0})
        form.notes.append(f"the list changes with the temperature: {raw.text}")
    if draws.number:
        form.claim(draws_per_request=draws.number)
    modes = _modes(form, way, draws=draws.number, bias=bias.number)
    texts = {
        "model": f"{_named(form, first)}, asked for as {form.line.model}",
        **_texts_of(way, first),
        "prefill": prefilled,
        "BOS": tokens.bos,
        "template": tokens.template,
        "list": raw.text,
        "sum of the list": _sum_of(form, way),
        "repeatability": repeats.text,
        "draws a request": draws.text,
        "logit_bias": bias.text,
        "temperature": "no: refused" if form.spec.claims.temperature is False else "yes",
        "rate-limit headers": _rate_limits(form, first.answer),
        "fingerprint": form.line.transport.clean(read_text(first.answer.value, "system_fingerprint") or "none"),
    }
    if not modes:
        raise CapabilityError(f"target {form.spec.name!r}: {form.line.url} gives neither log-probabilities nor draws")
    return Findings(
        way=way,
        bias_ids=bias.number,
        modes=modes,
        named=read_text(first.answer.value, "model"),
        fingerprint=read_text(first.answer.value, "system_fingerprint"),
        texts=texts,
    )


async def _find_way(form: Form, first: First, clear: Observation, way: Way) -> None:
    """Fill in `way`: whether ids are taken, whether tokens are named by id, how many prompts and chosen ids a request takes."""
    way.base, way.limit = clear, len(clear.tokens)
    if way.vocabulary is not None and form.line.dialect.takes_many:
        await _find_ids(form, first, clear, way)
    if way.vocabulary is not None:
        await _find_names(form, first, way)
    if form.line.dialect.takes_many:
        await _find_many(form, way)
    if way.names is not None and form.spec.claims.chosen_ids != 0:
        wanted = tuple(range(min(form.spec.claims.chosen_ids or CHOSEN_IDS, len(way.names))))
        seen = await ask(form.line, [way.prompt], Question(wanted=wanted, vocabulary=way.names))
        way.chosen_ids = 0 if isinstance(seen, Refused) else len(wanted)


async def _find_ids(form: Form, first: First, clear: Observation, way: Way) -> None:
    """Whether token ids are taken, and read as the same prompt as its text."""
    assert way.vocabulary is not None
    ids = way.vocabulary.encode([PROBE_TEXT])[0]
    seen = await ask(form.line, [ids], Question(n_logprobs=first.asked))
    if isinstance(seen, Refused):
        form.notes.append(f"token ids are refused, prompts go as text: {seen.reason}")
    elif not alike(seen[0][0], clear):
        form.notes.append("token ids are read as another prompt: not the served model's tokenizer, so prompts go as text")
        way.vocabulary = None
    else:
        way.prompt, way.token_ids, way.base = ids, True, seen[0][0]


async def _find_names(form: Form, first: First, way: Way) -> None:
    """Whether listed tokens come named by id."""
    question = Question(n_logprobs=first.asked, vocabulary=way.vocabulary)

    def readable_as_text(answer: Answer) -> bool:
        try:
            seen = form.line.dialect.lists(answer.value, 1, replace(question, vocabulary=None))
        except BadAnswerError:
            return False
        return seen[0].error is None

    seen = await ask(form.line, [way.prompt], question, surely=readable_as_text)
    if isinstance(seen, Refused):
        form.notes.append(f"tokens are not named by id, they are matched by text: {seen.reason}")
        return
    way.names, way.base = way.vocabulary, seen[0][0]
    way.limit = len(way.base.logprobs)  # among texts, tokens that read alike were counted once


async def _find_many(form: Form, way: Way) -> None:
    """How many prompts a request takes, up to what the file allows."""
    allowed = form.spec.endpoint.limits.prompts_per_request
    wanted = min(form.spec.claims.prompts_per_request or allowed, allowed)
    for n in (wanted, *(n for n in _FEWER_PROMPTS if n < wanted)):
        if n == 1:
            return
        seen = await ask(form.line, [way.prompt] * n, Question(n_logprobs=1, vocabulary=way.names))
        if not isinstance(seen, Refused):
            way.prompts_per_request = n
            break
        way.many_refused = seen.reason
    if way.prompts_per_request < wanted:
        number = "one prompt" if way.prompts_per_request == 1 else f"{way.prompts_per_request} prompts"
        form.notes.append(f"{number} a request, more are refused: {way.many_refused}")


def _modes(form: Form, way: Way, *, draws: int, bias: int) -> tuple[Mode, ...]:
    """What is possible, the best first."""
    able = {
        Mode.EXACT: bool(way.chosen_ids),
        Mode.TOPK: bool(way.limit),
        Mode.AMPLIFIED: bool(draws and bias) and way.vocabulary is not None and form.spec.claims.temperature is not False,
        Mode.SAMPLED: bool(draws),
    }
    return tuple(mode for mode, can in able.items() if can)


def _texts_of(way: Way, first: First) -> dict[str, str]:
    """What `way` says, as findings."""
    return {
        "token ids in": "yes" if way.token_ids else "no",
        "top-k limit": str(way.limit) if way.limit else f"0: {first.no_lists}",
        "tokens named by": "id" if way.names is not None else "text",
        "chosen ids": str(way.chosen_ids),
        "prompts a request": str(way.prompts_per_request),
    }


def _named(form: Form, first: First) -> str:
    """The model as the answers name it."""
    return form.line.transport.clean(read_text(first.answer.value, "model") or "not named in the answers")


def _sum_of(form: Form, way: Way) -> str:
    """How much of the probability the longest list covers; a list that was made to sum to one is noted."""
    if way.base is None or way.base.covered_mass is None:
        return "not asked: there is no list"
    covered, n = way.base.covered_mass, len(way.base.logprobs)
    if n <= _SHORT and abs(covered - 1) < 1e-6:
        form.notes.append("the listed log-probabilities sum to one: this endpoint seems to renormalise them over its list")
        return f"renormalised: {n} tokens sum to one"
    return f"{covered:.4f} over {n} tokens"


def _rate_limits(form: Form, answer: Answer) -> str:
    """The headers by which the endpoint tells its limits."""
    told = {name.lower(): value for name, value in answer.headers.items()}
    kept = [f"{name} {value}" for name, value in sorted(told.items()) if "ratelimit" in name or name == "retry-after"]
    return form.line.transport.clean("; ".join(kept)) or "none"


def alike(one: Observation, other: Observation) -> bool:
    """Whether two answers can be about the same prompt."""
    n = min(len(one.logprobs), len(other.logprobs), 5)
    return bool(np.abs(one.logprobs[:n] - other.logprobs[:n]).max() < _SAME_NAT)
