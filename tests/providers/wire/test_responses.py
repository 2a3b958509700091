"""OpenAI's responses translator, on JSON alone."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from harness.providers.targets import Chat
from harness.providers.wire.base import BadAnswerError, Question
from harness.providers.wire.responses import Responses
from harness.records import Mode

DIALECT = Responses(Chat(instruction="Go on: {text}"))
LIST = Question(n_logprobs=2)
DRAW = Question(n_draws=1, temperature=1.0, max_tokens=6)
REASONING = {"type": "reasoning", "id": "rs_1", "summary": [], "content": None}


def step(**listed: float) -> dict[str, Any]:
    """One output token with what was listed for it; the first one came."""
    top = [{"token": token, "logprob": value, "bytes": list(token.encode())} for token, value in listed.items()]
    return {**top[0], "top_logprobs": top}


def answer(*output: dict[str, Any], **beside: Any) -> dict[str, Any]:
    whole = {"id": "resp_1", "object": "response", "status": "incomplete", "error": None, "output": list(output)}
    return {**whole, "incomplete_details": {"reason": "max_output_tokens"}, **beside}


def says(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "message", "id": "msg_1", "status": "incomplete", "role": "assistant", "content": list(parts)}


def text(value: str, *steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "output_text", "text": value, "annotations": [], "logprobs": list(steps)}


def test_a_request_for_a_list_includes_it_and_stores_nothing() -> None:
    assert DIALECT.request("gpt-test", ["a b"], Question(n_logprobs=20)) == {
        "model": "gpt-test",
        "input": [{"role": "user", "content": "Go on: a b"}],
        "max_output_tokens": 16,
        "store": False,
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 20,
        "temperature": 0.0,
    }


def test_a_request_for_a_draw_asks_for_no_list_and_no_number_of_draws() -> None:
    body = DIALECT.request("gpt-test", ["a b"], Question(n_draws=1, temperature=1.0, max_tokens=40))
    assert not {"include", "top_logprobs", "n"} & set(body)
    assert body["max_output_tokens"] == 40
    assert not DIALECT.takes_draws


def test_the_list_is_that_of_the_first_token_behind_the_reasoning() -> None:
    first, second = step(dog=-0.5, cat=-1.5), step(the=-0.1, a=-3.0)
    (seen,) = DIALECT.lists(answer(REASONING, says(text("dogthe", first, second))), 1, LIST)
    assert seen.mode is Mode.TOPK
    assert seen.tokens == ("dog", "cat")
    np.testing.assert_allclose(seen.logprobs, [-0.5, -1.5])


def test_a_draw_is_the_text_of_the_messages() -> None:
    assert DIALECT.draws(answer(REASONING, says(text(" do"), text("g"))), 1, DRAW) == [[" dog"]]
    assert DIALECT.draws(answer(says(text("")), status="completed", incomplete_details=None), 1, DRAW) == [[""]]


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (answer(says(text(" dog"))), "no log-probabilities"),
        (answer(REASONING), r"no text \(max_output_tokens\)"),
        (answer(status="failed", error={"code": "server_error", "message": "It broke."}), r"no text \(It broke\.\)"),
        (answer(says({"type": "refusal", "refusal": "No."})), "refused"),
        (answer(says(text("dog", step(dog=0.5, cat=-1.0)))), "positive"),
        ({"output": None}, "no output"),
        ("dog", "no output"),
    ],
)
def test_what_is_no_list_is_a_failed_observation(value: object, problem: str) -> None:
    (seen,) = DIALECT.lists(value, 1, LIST)
    assert re.match(f"bad answer: .*{problem}", seen.error or "")


@pytest.mark.parametrize("value", [answer(REASONING), answer(says({"type": "refusal", "refusal": "No."})), {}])
def test_what_is_no_draw_is_refused(value: object) -> None:
    with pytest.raises(BadAnswerError):
        DIALECT.draws(value, 1, DRAW)
