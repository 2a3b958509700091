"""The chat completions wire format: a prompt becomes a conversation whose answer goes on with the text.

Where the endpoint continues a last assistant message (prefill), the prompt is that message, and the next token is exactly the
one a completion would give after the chat template; elsewhere an instruction asks for the continuation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.providers.targets import Chat
from harness.providers.wire.base import BadAnswerError, Question, TextOrIds, choices_of
from harness.providers.wire.completions import read_step, shared_keys
from harness.records import Observation


class ChatCompletions:
    """`POST /chat/completions`; `form` says how a text becomes messages."""

    path = "/chat/completions"
    takes_many = False
    takes_draws = True
    gives_lists = True

    def __init__(self, form: Chat) -> None:
        self._form = form

    def request(self, model: str, prompts: Sequence[TextOrIds], question: Question) -> dict[str, Any]:
        """The body that puts `question` to a prompt; a conversation takes one text."""
        body: dict[str, Any] = {
            "model": model,
            "messages": messages(only_text(prompts), self._form),
            self._form.max_tokens_key: question.max_tokens,
        }
        if self._form.prefill == "continue_final_message":
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        if question.n_draws:
            return body | {"n": question.n_draws} | shared_keys(question)
        body |= {"logprobs": True, "top_logprobs": 1 if question.wanted else question.n_logprobs}
        if question.wanted:
            body["logprob_token_ids"] = list(question.wanted)
        if question.vocabulary is not None:
            body["return_tokens_as_token_ids"] = True
        return body | shared_keys(question)

    def lists(self, answer: object, n_prompts: int, question: Question) -> list[Observation]:
        """The observation of the first token that the answer generated."""
        observations = []
        for choice in choices_of(answer, n_prompts):
            try:
                observations.append(_read_choice(choice, question))
            except BadAnswerError as exc:
                observations.append(Observation(error=f"bad answer: {exc}"))
        return observations

    def draws(self, answer: object, n_prompts: int, question: Question) -> list[list[str]]:
        """The drawn continuations of the prompt."""
        choices = choices_of(answer, n_prompts * question.n_draws)
        texts = [_content(choice) for choice in choices]
        if question.max_tokens > 1 and any(
            not text and choice.get("finish_reason") == "length" for text, choice in zip(texts, choices, strict=True)
        ):
            raise BadAnswerError(f"no text within {question.max_tokens} tokens: the model spends them before it says a word")
        return [texts]


def only_text(prompts: Sequence[TextOrIds]) -> str:
    """The one text of a request that takes one; token ids have no place in a conversation."""
    (prompt,) = prompts
    if not isinstance(prompt, str):
        raise TypeError("a conversation takes text, not token ids")
    return prompt


def messages(text: str, form: Chat) -> list[dict[str, str]]:
    """The conversation whose answer goes on with `text`."""
    system = [{"role": "system", "content": form.system}] if form.system else []
    if form.prefill == "none":
        return [*system, {"role": "user", "content": form.instruction.replace("{text}", text)}]
    return [*system, {"role": "user", "content": form.opening}, {"role": "assistant", "content": text}]


def _content(choice: dict[str, Any]) -> str:
    message = choice.get("message")
    content = message.get("content") if isinstance(message, dict) else None
    if content is None and isinstance(message, dict):  # some hosts write null for an empty text
        return ""
    if not isinstance(content, str):
        raise BadAnswerError("a choice without a message")
    return content


def _read_choice(choice: dict[str, Any], question: Question) -> Observation:
    logprobs = choice.get("logprobs")
    steps = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(steps, list) or not steps or not isinstance(steps[0], dict):
        raise BadAnswerError("no log-probabilities")
    return read_step(steps[0], question)
