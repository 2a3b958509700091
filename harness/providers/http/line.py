"""One model at one endpoint, spoken to in one dialect: puts questions, checks who answered, counts what was used."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from harness.providers.http.transport import Answer, Expected, Transport
from harness.providers.vocabulary import about_tokens
from harness.providers.wire.base import BadAnswerError, Dialect, Question, TextOrIds, choices_of, read_text, read_usage
from harness.records import Observation, Usage

_BASE_BYTES = 4 << 20
_PROMPT_BYTES = 64 << 10
_ENTRY_BYTES = 1 << 10
_DRAW_BYTES = 4 << 10
"""An entry takes 50 to 200 bytes on the wire: no honest answer is as large as these allow, and 100 MB are cut off soon."""

ANY_NAME = "*"
"""In `answers_as`: whatever name the first answer carries, as long as it stays the same."""

OTHER_MODEL = "the answer is from another model"
"""How the reason of a refused answer begins, after `bad answer: `, when it carries a name that is not ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What every request to a target shares.

    `answers_as`: the names that an answer's `model` may carry beside the asked one and its dated versions; `pinned`: the name
    that the first answer carried, which every later one must carry too. `body`: keys added to every request.
    `takes_temperature`: whether a request may hold one; without, the endpoint's own holds. `usage`: the transport's, which
    counts the requests there and their tokens here.
    """

    transport: Transport
    url: str
    model: str
    dialect: Dialect
    answers_as: tuple[str, ...] = ()
    pinned: str | None = None
    body: Mapping[str, Any] = field(default_factory=dict)
    takes_temperature: bool = True
    usage: Usage = field(default_factory=Usage)

    def request(self, prompts: Sequence[TextOrIds], question: Question) -> dict[str, Any]:
        """The body that is sent."""
        if not self.takes_temperature:
            question = replace(question, temperature=None)
        return {**self.dialect.request(self.model, prompts, question), **self.body}

    async def ask(
        self, prompts: Sequence[TextOrIds], question: Question, *, attempts: int | None = None
    ) -> tuple[list[Observation], Answer]:
        """The observations of one request for lists. Raises RequestFailedError."""
        came: list[list[Observation]] = []

        def read(value: object) -> None:
            self._check(value)
            came.append(self.dialect.lists(value, len(prompts), question))

        answer = await self._post(prompts, question, attempts, read)
        return came[-1], answer

    async def fetch(self, prompts: Sequence[TextOrIds], question: Question) -> tuple[list[dict[str, Any]], Answer]:
        """The choices of one request for lists, which the dialect can read later. Raises RequestFailedError."""
        came: list[list[dict[str, Any]]] = []

        def read(value: object) -> None:
            self._check(value)
            came.append(choices_of(value, len(prompts)))

        answer = await self._post(prompts, question, None, read)
        return came[-1], answer

    async def draw(
        self, prompts: Sequence[TextOrIds], question: Question, *, attempts: int | None = None
    ) -> tuple[list[list[str]], Answer]:
        """The draws of one request, by prompt. Raises RequestFailedError."""
        came: list[list[list[str]]] = []

        def read(value: object) -> None:
            self._check(value)
            came.append(self.dialect.draws(value, len(prompts), question))

        answer = await self._post(prompts, question, attempts, read)
        return came[-1], answer

    async def _post(
        self,
        prompts: Sequence[TextOrIds],
        question: Question,
        attempts: int | None,
        read: Callable[[Any], None],
    ) -> Answer:
        """The answer that `read` took; one that it refuses is asked for again."""
        expected = Expected(
            read=read,
            largest=_BASE_BYTES + len(prompts) * (_PROMPT_BYTES + _bytes_for_each(question)),
            tokens=sum(map(_n_tokens, prompts)) if self.transport.pace.counts_tokens else 0,
            kind="" if question.n_draws else "chosen" if question.wanted else "listed",
        )
        url, body = f"{self.url}{self.dialect.path}", self.request(prompts, question)
        return await self.transport.post(url, body, attempts=attempts, expect=expected)

    def _check(self, value: object) -> None:
        """Count an answer's tokens, and raise BadAnswerError where another model gave it."""
        tokens = read_usage(value)
        if tokens is not None:
            self.usage.told = True
            self.usage.counted += 1
            self.usage.input_tokens += tokens[0]
            self.usage.output_tokens += tokens[1]
        named = read_text(value, "model")
        if named is not None and not self.accepts(named):
            raise BadAnswerError(f"{OTHER_MODEL}: {named!r}, not {self.pinned or self.model!r}")

    def accepts(self, named: str) -> bool:
        """Whether an answer that names its model so is one of ours."""
        if self.pinned is not None:
            return named == self.pinned
        dated = re.fullmatch(re.escape(self.model) + r"[-@:]\d[\d.-]*", named)
        return named == self.model or named in self.answers_as or ANY_NAME in self.answers_as or dated is not None


def _bytes_for_each(question: Question) -> int:
    """What a prompt's part of an answer may hold, generously."""
    entries = max(question.n_logprobs, len(question.wanted))
    return entries * _ENTRY_BYTES + question.n_draws * (_DRAW_BYTES + question.max_tokens * _ENTRY_BYTES)


def _n_tokens(prompt: TextOrIds) -> int:
    return about_tokens(prompt) if isinstance(prompt, str) else len(prompt)
