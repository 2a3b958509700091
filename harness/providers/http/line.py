"""One model at one endpoint, spoken to in one dialect: puts questions, checks who answered, counts what was used."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from harness.providers.http.transport import Answer, Expected, Transport
from harness.providers.wire.base import BadAnswerError, Dialect, Question, TextOrIds, read_text, read_usage
from harness.records import Observation, Usage

T = TypeVar("T")

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
        return await self._put(prompts, question, self.dialect.lists, attempts)

    async def draw(
        self, prompts: Sequence[TextOrIds], question: Question, *, attempts: int | None = None
    ) -> tuple[list[list[str]], Answer]:
        """The draws of one request, by prompt. Raises RequestFailedError."""
        return await self._put(prompts, question, self.dialect.draws, attempts)

    async def _put(
        self,
        prompts: Sequence[TextOrIds],
        question: Question,
        read: Callable[[object, int, Question], list[T]],
        attempts: int | None,
    ) -> tuple[list[T], Answer]:
        """What `read` makes of the answer; one that it refuses, or that another model gave, is asked for again."""
        came: list[list[T]] = []

        def take(value: Any) -> None:
            self._count(value)
            named = read_text(value, "model")
            if named is not None and not self.accepts(named):
                raise BadAnswerError(f"the answer is from another model: {named!r}, not {self.pinned or self.model!r}")
            came.append(read(value, len(prompts), question))

        expected = Expected(
            read=take,
            largest=_BASE_BYTES + len(prompts) * (_PROMPT_BYTES + _bytes_for_each(question)),
            tokens=sum(map(_n_tokens, prompts)) if self.transport.pace.counts_tokens else 0,
        )
        url = f"{self.url}{self.dialect.path}"
        answer = await self.transport.post(url, self.request(prompts, question), attempts=attempts, expect=expected)
        return came[-1], answer

    def accepts(self, named: str) -> bool:
        """Whether an answer that names its model so is one of ours."""
        if self.pinned is not None:
            return named == self.pinned
        dated = re.fullmatch(re.escape(self.model) + r"[-@:]\d[\d.-]*", named)
        return named == self.model or named in self.answers_as or ANY_NAME in self.answers_as or dated is not None

    def _count(self, value: object) -> None:
        tokens = read_usage(value)
        if tokens is not None:
            self.usage.told = True
            self.usage.counted += 1
            self.usage.input_tokens += tokens[0]
            self.usage.output_tokens += tokens[1]


def _bytes_for_each(question: Question) -> int:
    """What a prompt's part of an answer may hold, generously."""
    entries = max(question.n_logprobs, len(question.wanted))
    return entries * _ENTRY_BYTES + question.n_draws * (_DRAW_BYTES + question.max_tokens * _ENTRY_BYTES)


def _n_tokens(prompt: TextOrIds) -> int:
    return -(-len(prompt) // 4) if isinstance(prompt, str) else len(prompt)
