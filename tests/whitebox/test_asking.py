"""Continuations and answers of a provider that says what it is told to, with and without a vocabulary."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest

from harness.providers.scripted import ScriptedProvider
from harness.whitebox.asking import Answer, Asker


def asker(says: Callable[[str], Mapping[str, float]]) -> Asker:
    return Asker(ScriptedProvider(lambda prompt: says(prompt.text)))


def test_the_likeliest_token_is_put_behind_the_text_until_it_stops() -> None:
    script = {"Say:": " one", "Say: one": " two", "Say: one two": ".", "Say: one two.": " three", "Go:": "\n", "Go:\n": " on"}

    def says(text: str) -> Mapping[str, float]:
        return {script.get(text, "\n"): 0.6, " other": 0.3}

    found = asyncio.run(asker(says).continuations(["Say:", "Go:"], max_tokens=9, stop="\n."))
    assert found == ["one two.", "on"]
    assert asyncio.run(asker(says).continuations(["Say:"], max_tokens=9, stop="\n")) == ["one two. three"]
    assert asyncio.run(asker(says).continuations(["Say:"], max_tokens=1, stop="\n")) == ["one"]


def test_an_answer_is_the_share_of_yes_however_it_is_spelt() -> None:
    (found,) = asyncio.run(asker(lambda _: {" Yes": 0.3, "yes": 0.1, " no": 0.2, " maybe": 0.4}).answers(["Is it?"]))
    assert found.p_yes == pytest.approx(0.4 / 0.6)


def test_no_yes_and_no_no_is_no_answer() -> None:
    (found,) = asyncio.run(asker(lambda _: {" maybe": 0.9}).answers(["Is it?"]))
    assert found == Answer(error="neither yes nor no is among the 1 likeliest tokens")
