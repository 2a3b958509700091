"""OpenAI's responses wire format: the first output token's list, or one draw a request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from harness.providers.targets import Chat
from harness.providers.wire.base import BadAnswerError, Question, TextOrIds, read_text
from harness.providers.wire.chat import messages, only_text
from harness.providers.wire.completions import read_step, shared_keys
from harness.records import Observation

MIN_TOKENS = 16
"""The least that `max_output_tokens` takes; a smaller number is refused."""

MAX_LISTED = 20
"""The most that `top_logprobs` takes."""


class Responses:
    """`POST /responses`; `form` says how a text becomes messages. Nothing is stored at the endpoint."""

    path = "/responses"
    takes_many = False
    takes_draws = False
    gives_lists = True

    def __init__(self, form: Chat) -> None:
        self._form = form

    def request(self, model: str, prompts: Sequence[TextOrIds], question: Question) -> dict[str, Any]:
        """The body that puts `question` to a text."""
        body: dict[str, Any] = {
            "model": model,
            "input": messages(only_text(prompts), self._form),
            "max_output_tokens": max(question.max_tokens, MIN_TOKENS),
            "store": False,
        }
        if not question.n_draws:
            body |= {"include": ["message.output_text.logprobs"], "top_logprobs": question.n_logprobs}
        return body | shared_keys(question)

    def lists(self, answer: object, n_prompts: int, question: Question) -> list[Observation]:
        """The observation of the first token that the answer generated."""
        _one(n_prompts)
        try:
            for part in _texts(answer):
                steps = part.get("logprobs")
                if not isinstance(steps, list) or not steps or not isinstance(steps[0], dict):
                    raise BadAnswerError("no log-probabilities")
                return [read_step(steps[0], question)]
            raise BadAnswerError(_why_empty(answer))
        except BadAnswerError as exc:
            return [Observation(error=f"bad answer: {exc}")]

    def draws(self, answer: object, n_prompts: int, question: Question) -> list[list[str]]:
        """The one continuation that an answer holds."""
        _one(n_prompts)
        if question.n_draws != 1:
            raise BadAnswerError(f"one answer for {question.n_draws} draws")
        texts = [read_text(part, "text") for part in _texts(answer)]
        if not texts:
            raise BadAnswerError(_why_empty(answer))
        if any(text is None for text in texts):
            raise BadAnswerError("a part without text")
        return [["".join(text for text in texts if text)]]


def _one(n_prompts: int) -> None:
    if n_prompts != 1:
        raise BadAnswerError(f"one answer for {n_prompts} prompts")


def _texts(answer: object) -> Iterator[dict[str, Any]]:
    """The text parts of the answer's messages; reasoning stands beside them and is passed over."""
    output = answer.get("output") if isinstance(answer, dict) else None
    if not isinstance(output, list):
        raise BadAnswerError("no output")
    for item in output:
        if read_text(item, "type") != "message":
            continue
        content = item.get("content")
        if not isinstance(content, list):
            raise BadAnswerError("a message without content")
        for part in content:
            if read_text(part, "type") == "refusal":
                raise BadAnswerError("the model refused to answer")
            if read_text(part, "type") == "output_text":
                yield part


def _why_empty(answer: object) -> str:
    """What an answer without text says of itself: an error, or what cut it off."""
    assert isinstance(answer, dict)
    said = read_text(answer.get("error"), "message") or read_text(answer.get("incomplete_details"), "reason")
    return f"no text ({said or read_text(answer, 'status') or 'no reason given'})"
