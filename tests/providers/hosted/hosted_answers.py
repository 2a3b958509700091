"""Answers of OpenAI's and Anthropic's APIs, field for field as their specifications have them, from a model of this file.

The model is a function of the prompt's text alone, so a test computes what must come back without asking.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

WORDS = [
    *(" dog", " cat", " lion", " horse", " tiger", " sheep", " Tuesday", " red", " happy", " angry", " Paris"),
    *(f" word{chr(97 + i)}{chr(97 + j)}" for i in range(6) for j in range(10)),
]

Body = dict[str, Any]


def logprobs_of(text: str) -> np.ndarray:
    """The log-probability of each of `WORDS` after `text`, (len(WORDS),) float64."""
    logits = 2 * np.random.default_rng([3, zlib.crc32(text.encode())]).standard_normal(len(WORDS))
    return logits - np.log(np.exp(logits).sum())


def drawn(text: str, number: int) -> str:
    """The continuation of `text` in draw `number`."""
    p = np.exp(logprobs_of(text))
    return WORDS[int(np.random.default_rng([5, number, zlib.crc32(text.encode())]).choice(len(WORDS), p=p / p.sum()))]


def best(text: str) -> str:
    """The likeliest continuation."""
    return WORDS[int(logprobs_of(text).argmax())]


def top(text: str, k: int) -> list[tuple[str, float]]:
    """The `k` likeliest tokens with their log-probabilities, highest first."""
    logprobs = logprobs_of(text)
    return [(WORDS[i], float(logprobs[i])) for i in np.argsort(-logprobs)[:k].tolist()]


def said(messages: list[Body]) -> str:
    """What the model goes on with: the last message."""
    return str(messages[-1]["content"])


def _step(text: str, token: str, k: int) -> Body:
    listed = [{"token": t, "logprob": p, "bytes": list(t.encode())} for t, p in top(text, k)]
    own = float(logprobs_of(text)[WORDS.index(token)])
    return {"token": token, "logprob": own, "bytes": list(token.encode()), "top_logprobs": listed}


def chat(body: Body, number: int) -> Body:
    """An answer of `/chat/completions`; `number` counts the earlier draws of the same text."""
    text, k = said(body["messages"]), body.get("top_logprobs", 0)
    greedy = body.get("temperature") == 0
    choices = []
    for index in range(body.get("n", 1)):
        token = best(text) if greedy else drawn(text, number + index)
        logprobs = {"content": [_step(text, token, k)], "refusal": None} if body.get("logprobs") else None
        message = {"role": "assistant", "content": token, "refusal": None, "annotations": []}
        choices.append({"index": index, "message": message, "logprobs": logprobs, "finish_reason": "length"})
    read, written = len(text.split()), len(choices)
    return {
        "id": "chatcmpl-B9MHDbslfkBeAs8l4bebGdFOJ6PeG",
        "object": "chat.completion",
        "created": 1741570283,
        "model": f"{body['model']}-2026-08-06",
        "choices": choices,
        "usage": {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": 0,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        },
        "service_tier": "default",
        "system_fingerprint": "fp_fc9f1d7035",
    }


def completion(body: Body, number: int) -> Body:
    """An answer of the legacy `/completions`, to one text or several."""
    prompts = [body["prompt"]] if isinstance(body["prompt"], str) else body["prompt"]
    choices: list[Body] = []
    for text in prompts:
        for index in range(body.get("n", 1)):
            token = best(text) if body.get("temperature") == 0 else drawn(text, number + index)
            listed = dict(top(text, body["logprobs"])) if "logprobs" in body else {}
            own = float(logprobs_of(text)[WORDS.index(token)])
            logprobs = {"tokens": [token], "token_logprobs": [own], "top_logprobs": [listed], "text_offset": [len(text)]}
            choices.append(
                {
                    "text": token,
                    "index": len(choices),
                    "logprobs": logprobs if listed else None,
                    "finish_reason": "length",
                }
            )
    read = sum(len(text.split()) for text in prompts)
    return {
        "id": "cmpl-uqkvlQyYK7bGYrRHQ0eXlWi7",
        "object": "text_completion",
        "created": 1589478378,
        "model": body["model"],
        "choices": choices,
        "usage": {"prompt_tokens": read, "completion_tokens": len(choices), "total_tokens": read + len(choices)},
    }


def response(body: Body, number: int) -> Body:
    """An answer of `/responses`: the same token again and again until `max_output_tokens`."""
    text = said(body["input"])
    token = best(text) if body.get("temperature") == 0 else drawn(text, number)
    part: Body = {"type": "output_text", "text": token, "annotations": []}
    if "message.output_text.logprobs" in body.get("include", []):
        part["logprobs"] = [_step(text, token, body["top_logprobs"])] * 2
    read, limit = len(text.split()), body["max_output_tokens"]
    message = {"type": "message", "id": "msg_67ccd", "status": "incomplete", "role": "assistant", "content": [part]}
    return {
        "id": "resp_67ccd2bed1ec8190b14f964abc0542670bb6a6b452d3795b",
        "object": "response",
        "created_at": 1741476542,
        "status": "incomplete",
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"},
        "instructions": None,
        "max_output_tokens": limit,
        "model": f"{body['model']}-2026-08-06",
        "output": [message],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": body.get("store", True),
        "temperature": body.get("temperature", 1.0),
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": {
            "input_tokens": read,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": limit,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": read + limit,
        },
        "user": None,
        "metadata": {},
    }


def message(body: Body, number: int) -> Body:
    """An answer of Anthropic's `/messages`."""
    text = said(body["messages"])
    return {
        "id": "msg_013Zva2CMHLNnXjNJJKqJ2EF",
        "type": "message",
        "role": "assistant",
        "model": f"{body['model']}-20260929",
        "content": [{"type": "text", "text": f"{drawn(text, number)} and"}],
        "container": None,
        "stop_reason": "max_tokens",
        "stop_sequence": None,
        "stop_details": None,
        "usage": {
            "input_tokens": len(text.split()),
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 3,
            "service_tier": "standard",
        },
    }
