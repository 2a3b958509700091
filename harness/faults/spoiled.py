"""Faults of the answer itself: JSON that is none, choices that do not fit the prompts, numbers that are no log-probabilities.

The registry is `registry`'s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np
from aiohttp import web

from harness.faults.call import Call, plain

Answer = dict[str, Any]


async def truncated_json(call: Call) -> web.StreamResponse:
    """JSON that stops in the middle, sent as if it were whole"""
    text = call.text()
    return plain(text[: int(call.rng.integers(1, len(text)))])


async def invalid_json(call: Call) -> web.StreamResponse:
    """what almost is JSON: a key without quotes, two documents in one, a trailing comma, or bytes that are no text"""
    text = call.text()
    ways: tuple[bytes, ...] = (
        text.replace('"choices"', "choices", 1).encode(),
        (text + text).encode(),
        (text[:-1] + ",}").encode(),
        text.replace("e", "\N{EURO SIGN}", 1).encode("cp1252"),
    )
    return plain(ways[int(call.rng.integers(len(ways)))])


async def fewer_choices(call: Call) -> web.StreamResponse:
    """one choice too few"""

    def change(answer: Answer, rng: np.random.Generator) -> None:
        answer["choices"].pop(int(rng.integers(len(answer["choices"]))))

    return call.spoiled(change)


async def more_choices(call: Call) -> web.StreamResponse:
    """one choice too many, with the next number"""

    def change(answer: Answer, rng: np.random.Generator) -> None:
        choices = answer["choices"]
        choices.append(choices[int(rng.integers(len(choices)))] | {"index": len(choices)})

    return call.spoiled(change)


async def duplicated_choices(call: Call) -> web.StreamResponse:
    """two choices with one number; of several the count is right, and one prompt's is missing"""

    def change(answer: Answer, rng: np.random.Generator) -> None:
        choices = answer["choices"]
        if len(choices) == 1:
            choices.append(dict(choices[0]))
        else:
            kept, lost = rng.choice(len(choices), 2, replace=False)
            choices[lost]["index"] = choices[kept]["index"]

    return call.spoiled(change)


async def reordered_choices(call: Call) -> web.StreamResponse:
    """a true answer whose choices come in another order; each has its own number"""

    def change(answer: Answer, rng: np.random.Generator) -> tuple[()]:
        order = rng.permutation(len(answer["choices"]))
        answer["choices"] = [answer["choices"][i] for i in order]
        return ()

    return call.spoiled(change)


async def nan_logprob(call: Call) -> web.StreamResponse:
    """NaN in place of one choice's log-probability"""
    return call.spoiled(_with_logprob(math.nan, of_likeliest=False))


async def floor_logprob(call: Call) -> web.StreamResponse:
    """-9999, which stands for minus infinity, as one choice's lowest log-probability"""
    return call.spoiled(_with_logprob(-9999.0, of_likeliest=False))


async def positive_logprob(call: Call) -> web.StreamResponse:
    """a positive number as one choice's highest log-probability"""
    return call.spoiled(_with_logprob(0.75, of_likeliest=True))


async def empty_lists(call: Call) -> web.StreamResponse:
    """one choice with empty lists of log-probabilities, or no choice at all"""

    def change(answer: Answer, rng: np.random.Generator) -> Collection[int] | None:
        place = int(rng.integers(len(answer["choices"])))
        logprobs = answer["choices"][place]["logprobs"]
        if logprobs is None or rng.random() < 1 / 3:
            answer["choices"] = []
            return None
        if rng.random() < 0.5:
            logprobs.update({key: [] for key in logprobs})
        elif "content" in logprobs:
            logprobs["content"][0]["top_logprobs"] = []
        else:
            logprobs["top_logprobs"] = [{}]
        return (place,)

    return call.spoiled(change)


async def other_model(call: Call) -> web.StreamResponse:
    """the answer of another model, which gives its own name"""
    return plain(call.text(call.other()))


def _with_logprob(value: float, *, of_likeliest: bool) -> Callable[[Answer, np.random.Generator], Collection[int]]:
    """Put `value` in place of the likeliest or the unlikeliest listed token of one choice."""

    def change(answer: Answer, rng: np.random.Generator) -> Collection[int]:
        place = int(rng.integers(len(answer["choices"])))
        slots = list(_slots(answer["choices"][place]["logprobs"]))
        pick = max if of_likeliest else min
        holder, key = pick(slots, key=lambda slot: slot[0][slot[1]])
        listed = holder[key]
        for other, name in slots:  # the drawn token is told twice
            if other[name] == listed:
                other[name] = value
        return (place,)

    return change


def _slots(logprobs: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """(container, key) of each log-probability at a choice's first place."""
    if "content" in logprobs:
        first = logprobs["content"][0]
        yield first, "logprob"
        yield from ((entry, "logprob") for entry in first["top_logprobs"])
    else:
        yield logprobs["token_logprobs"], 0
        yield from ((logprobs["top_logprobs"][0], name) for name in logprobs["top_logprobs"][0])
