"""A target behind an endpoint: batches of prompts to requests, answers to observations, in the mode that is asked for.

Takes a batch apart where one prompt sinks the rest. The wire formats are `wire`'s, the sending `line`'s and `transport`'s,
what the endpoint can do `probe`'s.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from typing import Any, Protocol, runtime_checkable

from harness.providers.base import Fetched
from harness.providers.chosen import passes, with_mass
from harness.providers.http.drawing import Drawer
from harness.providers.http.line import Line
from harness.providers.http.tokenising import BOS_TEXTS
from harness.providers.http.transport import Failure, RequestFailedError, Transport
from harness.providers.targets import TargetSpec
from harness.providers.vocabulary import Vocabulary
from harness.providers.wire.base import Question, TextOrIds
from harness.records import Lexicon, Lists, Mode, Observation, Prompt, Readout, TargetInfo, Usage

_CONTENT_STATUSES = frozenset({400, 413, 422, 500})
"""Refusals that may be about what a request holds; others (404, 429, 503, ...) are about the endpoint."""

_READ_AT_ONCE = 8
"""Choices of one answer that are enough to be read together right away, while they are in the processor's cache."""

_READ_TOGETHER = 64
"""Choices: where one of them needs a closer look, all of these are read one by one."""


@runtime_checkable
class ReadsChoices(Protocol):
    """A dialect whose lists can be read without the answers they came in."""

    def read_choices(self, choices: Sequence[dict[str, Any]], question: Question) -> Lists | list[Observation]:
        """What each says; a choice that cannot be used is an observation with `error`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Prompts that fit into one request, and their places among those that were asked for."""

    places: Sequence[int]
    prompts: Sequence[TextOrIds]
    has_bos: bool

    def only(self, chosen: Sequence[int]) -> Batch:
        """The prompts at these positions of the batch."""
        return replace(self, places=[self.places[i] for i in chosen], prompts=[self.prompts[i] for i in chosen])

    def halves(self) -> tuple[Batch, Batch]:
        """The first and the second half."""
        middle = len(self.places) // 2
        return self.only(range(middle)), self.only(range(middle, len(self.places)))


class HttpProvider:
    """Next-token distributions over HTTP, as far as the endpoint shows them.

    `names`: the vocabulary whose ids name the listed tokens, None where they come as text.
    """

    def __init__(
        self, spec: TargetSpec, line: Line, info: TargetInfo, *, vocabulary: Vocabulary | None, names: Vocabulary | None
    ) -> None:
        self.info = info
        self.vocabulary = vocabulary
        self.usage: Usage | None = line.usage
        self.batch_size = info.capabilities.max_prompts_per_request
        self.concurrency = line.transport.pace.cap
        self._attempts = spec.endpoint.limits.attempts
        self._spec = spec
        self._line = line
        self._names = names
        self._bos_texts = _bos_texts(vocabulary)
        self._reads_choices = isinstance(line.dialect, ReadsChoices)
        self._drawer = Drawer(spec, line)
        self._question = lru_cache(maxsize=16)(
            lambda n_logprobs, has_bos: Question(n_logprobs=n_logprobs, vocabulary=names, has_bos=has_bos)
        )

    async def observe(self, prompts: Sequence[Prompt], readout: Readout) -> list[Observation]:
        """One observation for each prompt, in order; those that failed carry their error."""
        mode = readout.mode or self.info.capabilities.mode
        if mode.drawn:
            return await self._drawer.observe([self._sent(prompt) for prompt in prompts], readout, mode)
        found: dict[int, Observation] = {}
        for batch in self._batches([self._sent(prompt) for prompt in prompts]):
            seen = await self._ask(batch, self._question(self._listed(readout), batch.has_bos))
            if mode is Mode.EXACT:
                seen = await self._with_mass(batch, seen, readout.lexicon)
            found.update(zip(batch.places, seen, strict=True))
        return [found[place] for place in range(len(prompts))]

    async def fetch(self, prompts: Sequence[Prompt], readout: Readout) -> Fetched | list[Observation]:
        """The choices that answer the prompts, unread, where one request for lists is all they take; else as `observe`."""
        mode = readout.mode or self.info.capabilities.mode
        sent = [self._sent(prompt) for prompt in prompts]
        alone = self._reads_choices and mode is Mode.TOPK and len(sent) <= self.batch_size
        if not alone or str in map(type, sent):
            return await self.observe(prompts, readout)
        question = self._question(self._listed(readout), False)
        start = time.perf_counter()
        try:
            choices, answer = await self._line.fetch(sent, question)
        except RequestFailedError as exc:
            return await self._ask_apart(Batch(places=range(len(sent)), prompts=sent, has_bos=False), question, exc, start)
        raw: Any = (choices, question)
        if len(sent) >= _READ_AT_ONCE:
            read = self._read(choices, question)
            if not isinstance(read, Lists):
                _told(read, [answer.attempts] * len(read), [time.perf_counter() - start] * len(read))
                return await self._mended(Batch(places=range(len(sent)), prompts=sent, has_bos=False), question, read)
            raw = (read, None)
        return Fetched(
            raw=raw,
            entries=len(choices) * question.n_logprobs,
            attempts=answer.attempts,
            latency_s=time.perf_counter() - start,
        )

    def read(self, fetched: Sequence[Fetched]) -> list[Lists | list[Observation]]:
        """What they say, read together as far as the question is the same."""
        found: list[Lists | list[Observation]] = []
        for _, group in groupby(fetched, key=lambda one: id(one.raw[1])):
            members = list(group)
            question = members[0].raw[1]
            if question is None:
                found += [
                    _told(one.raw[0], [one.attempts] * len(one.raw[0]), [one.latency_s] * len(one.raw[0])) for one in members
                ]
                continue
            choices = [choice for one in members for choice in one.raw[0]]
            attempts = [one.attempts for one in members for _ in one.raw[0]]
            latency_s = [one.latency_s for one in members for _ in one.raw[0]]
            for start in range(0, len(choices), _READ_TOGETHER):
                part = slice(start, start + _READ_TOGETHER)
                found.append(_told(self._read(choices[part], question), attempts[part], latency_s[part]))
        return found

    def _read(self, choices: Sequence[dict[str, Any]], question: Question) -> Lists | list[Observation]:
        dialect = self._line.dialect
        assert isinstance(dialect, ReadsChoices)
        return dialect.read_choices(choices, question)

    def _listed(self, readout: Readout) -> int:
        limit = self.info.capabilities.max_logprobs
        return min(readout.n_logprobs, limit) if limit else readout.n_logprobs

    async def aclose(self) -> None:
        """Close the connections."""
        await self._line.transport.aclose()

    @property
    def transport(self) -> Transport:
        """What sends the requests."""
        return self._line.transport

    def over(self, transport: Transport) -> HttpProvider:
        """The same target with its requests sent by `transport`, and counted apart."""
        line = replace(self._line, transport=transport, usage=Usage())
        return HttpProvider(self._spec, line, self.info, vocabulary=self.vocabulary, names=self._names)

    def _sent(self, prompt: Prompt) -> TextOrIds:
        """The prompt as it is sent: its ids where the endpoint takes ids."""
        ids = prompt.token_ids if self.info.capabilities.token_ids else None
        return prompt.text if ids is None else ids

    def _batches(self, sent: Sequence[TextOrIds]) -> Iterator[Batch]:
        """The prompts in requests: ids and texts apart, and texts with a BOS of their own apart from those without."""
        kinds: dict[tuple[bool, bool], list[int]] = {}
        for place, one in enumerate(sent):
            has_bos = isinstance(one, str) and one.startswith(self._bos_texts)
            kinds.setdefault((isinstance(one, str), has_bos), []).append(place)
        for (_, has_bos), places in kinds.items():
            for start in range(0, len(places), self.batch_size):
                chosen = places[start : start + self.batch_size]
                yield Batch(places=chosen, prompts=[sent[place] for place in chosen], has_bos=has_bos)

    async def _with_mass(self, batch: Batch, seen: list[Observation], lexicon: Lexicon) -> list[Observation]:
        """`seen` with the lexicon's mass, from its ids' own log-probabilities: requests that read the server's prefix cache."""
        ids = [] if lexicon.token_ids is None else lexicon.token_ids.tolist()
        parts = [
            await self._ask(batch, Question(wanted=part, vocabulary=self._names, has_bos=batch.has_bos))
            for part in passes(ids, self.info.capabilities.chosen_ids)
        ]
        return with_mass(seen, parts)

    async def _ask(
        self, batch: Batch, question: Question, *, before: int = 0, attempts: int | None = None
    ) -> list[Observation]:
        """The batch's observations; `before` counts the attempts that were made with these prompts in larger batches."""
        start = time.perf_counter()
        try:
            observations, answer = await self._line.ask(batch.prompts, question, attempts=attempts)
        except RequestFailedError as exc:
            return await self._ask_apart(batch, question, exc, start, before=before, attempts=attempts)
        took_s, made = time.perf_counter() - start, before + answer.attempts
        for observation in observations:
            _stamp(observation, made, took_s)
        return await self._mended(batch, question, observations)

    async def _ask_apart(
        self,
        batch: Batch,
        question: Question,
        exc: RequestFailedError,
        start: float,
        *,
        before: int = 0,
        attempts: int | None = None,
    ) -> list[Observation]:
        """The observations of a batch whose request failed at last: of its halves, where one prompt may have sunk the rest."""
        before += exc.attempts
        if len(batch.places) > 1 and _may_be_one_prompts_fault(exc):
            # Retries were spent on the whole; each part is asked once more, or a dead endpoint would cost hours.
            attempts = 1 if exc.attempts >= self._attempts else attempts
            return [
                observation
                for half in batch.halves()
                for observation in await self._ask(half, question, before=before, attempts=attempts)
            ]
        failed = Observation(error=exc.reason, attempts=before, latency_s=time.perf_counter() - start)
        return [failed] * len(batch.places)

    async def _mended(self, batch: Batch, question: Question, observations: list[Observation]) -> list[Observation]:
        """The observations with the bad ones among them asked for again, by themselves and within bounds."""
        bad = [i for i, observation in enumerate(observations) if observation.error is not None]
        if not bad:
            return observations
        start, first = time.perf_counter(), observations[bad[0]]
        made = first.attempts
        for _ in range(self._attempts - 1):
            try:
                again, answer = await self._line.ask(batch.only(bad).prompts, question)
            except RequestFailedError as exc:  # what the answers said stays the reason
                made += exc.attempts
                break
            made += answer.attempts
            for i, observation in zip(bad, again, strict=True):
                _stamp(observation, made, first.latency_s + time.perf_counter() - start)
                observations[i] = observation
            bad = [i for i in bad if observations[i].error is not None]
            if not bad:
                return observations
        took_s = first.latency_s + time.perf_counter() - start
        for i in bad:
            error = self._line.transport.clean(observations[i].error or "")
            observations[i] = replace(observations[i], error=error, attempts=made, latency_s=took_s)
        return observations


def _told(read: Lists | list[Observation], attempts: list[int], latency_s: list[float]) -> Lists | list[Observation]:
    """What was read, with how it came to be."""
    if isinstance(read, Lists):
        return replace(read, attempts=attempts, latency_s=latency_s)
    for observation, made, took_s in zip(read, attempts, latency_s, strict=True):
        _stamp(observation, made, took_s)
    return read


def _stamp(observation: Observation, attempts: int, latency_s: float) -> None:
    """Note how it came to be, on an observation that is fresh from the dialect and so far nobody else's.

    A changed copy of each would take a tenth of the time that the client spends on a prompt.
    """
    object.__setattr__(observation, "attempts", attempts)
    object.__setattr__(observation, "latency_s", latency_s)


def is_refusal(exc: RequestFailedError) -> bool:
    """The endpoint answered, and says no to this request (not: to us, or to everyone)."""
    return exc.failure is Failure.UNUSABLE or exc.status in _CONTENT_STATUSES


def _may_be_one_prompts_fault(exc: RequestFailedError) -> bool:
    return is_refusal(exc) or exc.failure in (Failure.UNREADABLE, Failure.BROKEN)


def _bos_texts(vocabulary: Vocabulary | None) -> tuple[str, ...]:
    """What a text starts with when it holds its BOS already; nothing where the tokenizer adds none."""
    if vocabulary is None:
        return BOS_TEXTS
    added = vocabulary.encode([""])[0]
    return ("".join(vocabulary.text(token_id) for token_id in added),) if added else ()
