"""What the wire formats share: the question that a request puts to its prompts, and the verbs of a dialect.

Everything under `wire` is pure: no I/O and no clock. `http` sends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from harness.providers.vocabulary import Vocabulary
from harness.records import Observation

TextOrIds = str | Sequence[int]
"""A prompt as it is sent."""


class BadAnswerError(Exception):
    """An answer that does not say what was asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a request asks of each of its prompts: a list of log-probabilities, or draws.

    `n_logprobs`: how many likeliest next tokens to list. `wanted`: list exactly these ids instead. `vocabulary`: have tokens
    named by id, ids of this vocabulary. `has_bos`: texts hold their BOS, so the server must not add one.
    `n_draws`: draw so many continuations at `temperature` (None: the endpoint's own) and list nothing; `max_tokens` long,
    with `bias` (nats, by token id) added to the logits.
    """

    n_logprobs: int = 0
    wanted: tuple[int, ...] = ()
    vocabulary: Vocabulary | None = None
    has_bos: bool = False
    n_draws: int = 0
    temperature: float | None = 0.0
    max_tokens: int = 1
    bias: Mapping[int, float] = field(default_factory=dict)


class Dialect(Protocol):
    """The wire format of one API. `path` is joined to the endpoint's address; `takes_many`: several prompts fit one request;
    `takes_draws`: one request may ask for several draws; `gives_lists`: it has log-probabilities at all."""

    path: str
    takes_many: bool
    takes_draws: bool
    gives_lists: bool

    def request(self, model: str, prompts: Sequence[TextOrIds], question: Question) -> dict[str, Any]:
        """The body that puts `question` to each prompt (texts or token ids, not both)."""
        ...

    def lists(self, answer: object, n_prompts: int, question: Question) -> list[Observation]:
        """One observation for each prompt, in order; a choice that cannot be used is one with `error`.

        Raises BadAnswerError where the choices cannot be told apart.
        """
        ...

    def draws(self, answer: object, n_prompts: int, question: Question) -> list[list[str]]:
        """The drawn continuations of each prompt, in order; raises BadAnswerError."""
        ...


def choices_of(answer: object, n_expected: int) -> list[dict[str, Any]]:
    """The choices of an OpenAI-like answer by index; raises BadAnswerError where they are not `n_expected` distinct ones."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise BadAnswerError("no list of choices")
    if len(choices) != n_expected:
        raise BadAnswerError(f"{len(choices)} choices for {n_expected} prompts")
    if n_expected == 1:
        return choices
    by_index = {choice["index"]: choice for choice in choices if isinstance(choice.get("index"), int)}
    if by_index.keys() != set(range(n_expected)):
        raise BadAnswerError(f"the choices are not numbered 0 to {n_expected - 1}")
    return [by_index[index] for index in range(n_expected)]


def read_text(answer: object, key: str) -> str | None:
    """The text under `key` of an answer, None where there is none."""
    value = answer.get(key) if isinstance(answer, dict) else None
    return value if isinstance(value, str) else None


def read_usage(answer: object) -> tuple[int, int] | None:
    """(input, output) tokens as an answer counts them, None where it does not."""
    usage = answer.get("usage") if isinstance(answer, dict) else None
    if not isinstance(usage, dict):
        return None
    for read, written in (("prompt_tokens", "completion_tokens"), ("input_tokens", "output_tokens")):
        n_read, n_written = usage.get(read), usage.get(written)
        if isinstance(n_read, int) and n_read >= 0:
            return n_read, n_written if isinstance(n_written, int) and n_written >= 0 else 0
    return None
