"""The chat completions translator, on JSON alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from harness.providers.targets import Chat
from harness.providers.wire.base import BadAnswerError, Question
from harness.providers.wire.chat import ChatCompletions
from harness.records import Mode

TOLD = ChatCompletions(Chat(instruction="Go on: {text}"))
DRAWS = Question(n_draws=2, temperature=1.0, max_tokens=6)


def choice(content: str | None, *listed: tuple[str, float], index: int = 0, finish: str = "length") -> dict[str, Any]:
    """A choice of the specification's form; the first listed token came."""
    top = [{"token": token, "logprob": value, "bytes": list(token.encode())} for token, value in listed]
    logprobs = {"content": [{**top[0], "top_logprobs": top}], "refusal": None} if top else None
    message = {"role": "assistant", "content": content, "refusal": None}
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish}


def answer(*choices: dict[str, Any]) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "object": "chat.completion", "model": "gpt-test", "choices": list(choices)}


def test_a_text_is_told_where_nothing_can_be_prefilled() -> None:
    assert TOLD.request("gpt-test", ["a {text} b"], Question(n_logprobs=20)) == {
        "model": "gpt-test",
        "messages": [{"role": "user", "content": "Go on: a {text} b"}],
        "max_tokens": 1,
        "logprobs": True,
        "top_logprobs": 20,
        "temperature": 0.0,
    }


@pytest.mark.parametrize(
    ("prefill", "beside"),
    [("assistant", {}), ("continue_final_message", {"continue_final_message": True, "add_generation_prompt": False})],
)
def test_a_prefilled_text_is_the_last_message(prefill: Any, beside: dict[str, bool]) -> None:
    dialect = ChatCompletions(Chat(prefill=prefill, system="S", opening="O", max_tokens_key="max_completion_tokens"))
    body = dialect.request("m", ["a b"], Question(n_draws=1, temperature=None, max_tokens=6))
    assert body == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "S"},
            {"role": "user", "content": "O"},
            {"role": "assistant", "content": "a b"},
        ],
        "max_completion_tokens": 6,
        "n": 1,
        **beside,
    }


def test_a_list_is_that_of_the_first_token() -> None:
    (seen,) = TOLD.lists(answer(choice(" dog", (" dog", -0.5), (" cat", -1.5))), 1, Question(n_logprobs=20))
    assert seen.mode is Mode.TOPK
    assert seen.tokens == (" dog", " cat")
    np.testing.assert_allclose(seen.logprobs, [-0.5, -1.5])


def test_the_stand_in_for_very_unlikely_is_no_log_probability() -> None:
    (seen,) = TOLD.lists(answer(choice(" dog", (" dog", -0.5), (" cat", -9999.0))), 1, Question(n_logprobs=20))
    assert "stand-in" in (seen.error or "")


def test_draws_come_by_index_and_null_is_an_empty_text() -> None:
    drawn = TOLD.draws(answer(choice(" cat", index=1), choice(None, index=0, finish="stop")), 1, DRAWS)
    assert drawn == [["", " cat"]]


@pytest.mark.parametrize("content", ["", None])
def test_no_text_where_every_token_was_taken_is_no_draw(content: str | None) -> None:
    with pytest.raises(BadAnswerError, match="no text within 6 tokens"):
        TOLD.draws(answer(choice(" cat"), choice(content, index=1)), 1, DRAWS)


def test_one_token_without_a_text_is_a_draw() -> None:
    question = Question(n_draws=1, temperature=1.0, max_tokens=1)
    assert TOLD.draws(answer(choice("")), 1, question) == [[""]]


def test_a_conversation_takes_one_text_and_no_ids() -> None:
    with pytest.raises(TypeError, match="not token ids"):
        TOLD.request("m", [[1, 2]], Question(n_logprobs=1))
    with pytest.raises(ValueError, match="too many values"):
        TOLD.request("m", ["a", "b"], Question(n_logprobs=1))
