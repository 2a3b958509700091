"""One model at one endpoint, spoken to in one dialect: puts questions, checks who answered, counts what was used."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.providers.http.transport import Answer, Failure, RequestFailedError, Transport
from harness.providers.wire.base import BadAnswerError, Dialect, Question, TextOrIds, read_text, read_usage
from harness.records import Observation, Usage

ANY_NAME = "*"
"""In `answers_as`: whatever name the first answer carries, as long as it stays the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What every request to a target shares.

    `answers_as`: the names that an answer's `model` may carry beside the asked one and its dated versions; `pinned`: the name
    that the first answer carried, which every later one must carry too. `body`: keys added to every request.
    """

    transport: Transport
    url: str
    model: str
    dialect: Dialect
    answers_as: tuple[str, ...] = ()
    pinned: str | None = None
    body: Mapping[str, Any] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)

    def request(self, prompts: Sequence[TextOrIds], question: Question) -> dict[str, Any]:
        """The body that is sent."""
        return {**self.dialect.request(self.model, prompts, question), **self.body}

    async def ask(
        self, prompts: Sequence[TextOrIds], question: Question, *, attempts: int | None = None
    ) -> tuple[list[Observation], Answer]:
        """The observations of one request for lists. Raises RequestFailedError."""
        answer = await self._send(prompts, question, attempts)
        try:
            return self.dialect.lists(answer.value, len(prompts), question), answer
        except BadAnswerError as exc:
            raise _bad(exc, answer) from exc

    async def draw(
        self, prompts: Sequence[TextOrIds], question: Question, *, attempts: int | None = None
    ) -> tuple[list[list[str]], Answer]:
        """The draws of one request, by prompt. Raises RequestFailedError."""
        answer = await self._send(prompts, question, attempts)
        try:
            return self.dialect.draws(answer.value, len(prompts), question), answer
        except BadAnswerError as exc:
            raise _bad(exc, answer) from exc

    async def _send(self, prompts: Sequence[TextOrIds], question: Question, attempts: int | None) -> Answer:
        answer = await self.transport.post(f"{self.url}{self.dialect.path}", self.request(prompts, question), attempts=attempts)
        self._count(answer)
        named = read_text(answer.value, "model")
        if named is not None and not self.accepts(named):
            said = self.transport.clean(f"the answer is from another model: {named!r}, not {self.pinned or self.model!r}")
            raise _bad(BadAnswerError(said), answer)
        return answer

    def accepts(self, named: str) -> bool:
        """Whether an answer that names its model so is one of ours."""
        if self.pinned is not None:
            return named == self.pinned
        dated = re.fullmatch(re.escape(self.model) + r"[-@:]\d[\d.-]*", named)
        return named == self.model or named in self.answers_as or ANY_NAME in self.answers_as or dated is not None

    def _count(self, answer: Answer) -> None:
        self.usage.requests += answer.attempts
        tokens = read_usage(answer.value)
        if tokens is not None:
            self.usage.told = True
            self.usage.input_tokens += tokens[0]
            self.usage.output_tokens += tokens[1]


def _bad(exc: BadAnswerError, answer: Answer) -> RequestFailedError:
    failed = RequestFailedError(Failure.UNUSABLE, f"bad answer: {exc}")
    failed.attempts = answer.attempts
    return failed
