"""Anthropic's messages wire format. It has no log-probabilities in any answer: what a model shows is what it draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.providers.targets import Chat
from harness.providers.wire.base import BadAnswerError, Question, TextOrIds, read_text
from harness.providers.wire.chat import messages, only_text
from harness.records import Observation

NO_LISTS = "the messages API gives no log-probabilities, only draws"


class Messages:
    """`POST /messages`; `form` says how a text becomes messages. One draw a request."""

    path = "/messages"
    takes_many = False
    takes_draws = False
    gives_lists = False

    def __init__(self, form: Chat) -> None:
        self._form = form

    def request(self, model: str, prompts: Sequence[TextOrIds], question: Question) -> dict[str, Any]:
        """The body that asks for one continuation of a text.

        A prefilled text loses its trailing blanks: the API refuses an assistant message that ends in one, and a first word
        is read without those before it. A bias is put in for the API to refuse: left out, it would be taken for obeyed.
        """
        said = messages(only_text(prompts), self._form)
        if self._form.prefill != "none":
            said[-1]["content"] = said[-1]["content"].rstrip()
        body: dict[str, Any] = {"model": model, "max_tokens": question.max_tokens}
        if said[0]["role"] == "system":  # a key of its own here, no message
            body["system"] = said.pop(0)["content"]
        body["messages"] = said
        if question.temperature is not None:  # without `top_p`: models refuse the two together
            body["temperature"] = question.temperature
        if question.bias:
            body["logit_bias"] = {str(token_id): value for token_id, value in question.bias.items()}
        return body

    def lists(self, answer: object, n_prompts: int, question: Question) -> list[Observation]:
        """Always raises BadAnswerError."""
        del answer, n_prompts, question
        raise BadAnswerError(NO_LISTS)

    def draws(self, answer: object, n_prompts: int, question: Question) -> list[list[str]]:
        """The one continuation that an answer holds; empty where the model ended at once."""
        if n_prompts != 1 or question.n_draws != 1:
            raise BadAnswerError(f"one answer for {n_prompts} prompts with {question.n_draws} draws")
        if read_text(answer, "type") == "error":
            raise BadAnswerError(f"an error in place of a message: {_error_text(answer)}")
        content = answer.get("content") if isinstance(answer, dict) else None
        if not isinstance(content, list):
            raise BadAnswerError("no content")
        stopped = read_text(answer, "stop_reason")
        if stopped == "refusal":
            raise BadAnswerError("the model refused to answer")
        texts = [read_text(block, "text") for block in content if read_text(block, "type") == "text"]
        if any(text is None for text in texts):
            raise BadAnswerError("a text block without text")
        if not texts and stopped not in ("end_turn", "stop_sequence"):  # thinking took the tokens, or a tool was called
            raise BadAnswerError(f"no text (stop_reason {stopped})")
        return [["".join(text for text in texts if text)]]


def _error_text(answer: object) -> str:
    error = answer.get("error") if isinstance(answer, dict) else None
    return read_text(error, "message") or "no message"
