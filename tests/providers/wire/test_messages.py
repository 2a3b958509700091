"""Anthropic's messages translator, on JSON alone."""

from __future__ import annotations

from typing import Any

import pytest

from harness.providers.targets import Chat
from harness.providers.wire.base import BadAnswerError, Question, read_usage
from harness.providers.wire.messages import Messages

PREFILLED = Messages(Chat(prefill="assistant"))
DRAW = Question(n_draws=1, temperature=1.0, max_tokens=6)


def answer(*blocks: dict[str, Any], stop_reason: str = "max_tokens") -> dict[str, Any]:
    """A message of the specification's form."""
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-test",
        "content": list(blocks),
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": {"input_tokens": 12, "cache_read_input_tokens": 0, "output_tokens": 6},
    }


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


THINKING = {"type": "thinking", "thinking": "An animal, so", "signature": "EqQBCg"}


def draw(value: object) -> str:
    ((drawn,),) = PREFILLED.draws(value, 1, DRAW)
    return drawn


def test_a_prefilled_text_is_the_last_assistant_message_without_its_trailing_blanks() -> None:
    assert PREFILLED.request("claude-test", ["The dog chased the \n"], DRAW) == {
        "model": "claude-test",
        "max_tokens": 6,
        "temperature": 1.0,
        "messages": [
            {"role": "user", "content": "Continue the text."},
            {"role": "assistant", "content": "The dog chased the"},
        ],
    }


def test_a_text_that_is_told_keeps_its_blanks_and_the_system_prompt_is_a_key_of_its_own() -> None:
    dialect = Messages(Chat(system="Be brief.", instruction="Go on: {text}"))
    body = dialect.request("claude-test", ["a {text} b "], Question(n_draws=1, temperature=None, max_tokens=6))
    assert body == {
        "model": "claude-test",
        "max_tokens": 6,
        "system": "Be brief.",
        "messages": [{"role": "user", "content": "Go on: a {text} b "}],
    }


def test_the_text_blocks_are_joined_and_thinking_is_passed_over() -> None:
    assert draw(answer(THINKING, text(" do"), text("g and"))) == " dog and"


def test_an_answer_that_ends_at_once_is_an_empty_draw() -> None:
    assert draw(answer(stop_reason="end_turn")) == ""


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (answer(text("I"), stop_reason="refusal"), "refused"),
        (answer(THINKING), r"no text \(stop_reason max_tokens\)"),
        (answer({"type": "tool_use", "id": "t", "name": "f", "input": {}}, stop_reason="tool_use"), "no text"),
        (answer({"type": "text", "text": None}), "without text"),
        ({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, "Overloaded"),
        ({"type": "message", "content": " dog"}, "no content"),
        ([], "no content"),
    ],
)
def test_what_is_no_continuation_is_refused(value: object, problem: str) -> None:
    with pytest.raises(BadAnswerError, match=problem):
        draw(value)


def test_there_are_no_lists_and_one_draw_a_request() -> None:
    assert not PREFILLED.gives_lists
    assert not PREFILLED.takes_draws
    with pytest.raises(BadAnswerError, match="no log-probabilities"):
        PREFILLED.lists(answer(text(" dog")), 1, Question(n_logprobs=5))
    with pytest.raises(BadAnswerError, match="4 draws"):
        PREFILLED.draws(answer(text(" dog")), 1, Question(n_draws=4))


def test_a_bias_is_never_left_out_in_silence() -> None:
    assert "logit_bias" in PREFILLED.request("m", ["a"], Question(n_draws=1, bias={3: 6.0}))


def test_tokens_are_counted_under_the_apis_own_names() -> None:
    assert read_usage(answer(text(" dog"))) == (12, 6)
