"""One request under way: what a fault is given, and what it can do with it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from aiohttp import web

from harness.faults.distribution import Model
from harness.faults.protocol import Question, write_answer
from harness.faults.tokens import Tokens

JSON = "application/json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the server is like.

    `rate`: the share of generation requests, from the one after `after` on, that meet one of `faults`.
    `model_changes_after`: from the next request on `other_model` answers, None for never. `version`: what /version says,
    None for none. `reset_s`: how long the rate limits ask to wait, `drip_s`: how long a slow answer takes, `hang_s`: how long
    silence lasts, `huge_bytes`: how long a huge answer is.
    """

    model: str = "fault-model"
    other_model: str = "another-model"
    seed: int = 0
    rate: float = 0.0
    faults: tuple[str, ...] = ()
    after: int = 0
    model_changes_after: int | None = None
    max_logprobs: int = 1000
    version: str | None = None
    reset_s: tuple[float, float] = (0.01, 0.05)
    hang_s: float = 600.0
    drip_s: float = 1.0
    huge_bytes: int = 100_000_000


@dataclass(slots=True, kw_only=True)
class Ledger:
    """What was served: `sequence` names the fault of each generation request in order of arrival, None for a true answer.

    `answered`: how often each prompt, by its ids, was sent a true answer as a whole, huge ones aside. `arrived`: requests at
    the host that redirects lead to, and `arrived_with_key`: those among them with an Authorization header. `drawn`: how often
    a prompt's samples were sent or set out to be; the next ones go on from there.
    """

    sequence: list[str | None] = field(default_factory=list)
    refused: int = 0
    answered: Counter[tuple[int, ...]] = field(default_factory=Counter)
    drawn: Counter[tuple[int, ...]] = field(default_factory=Counter)
    arrived: int = 0
    arrived_with_key: int = 0

    def as_dict(self) -> dict[str, Any]:
        """As GET /faults tells it; a prompt is its ids, joined by spaces."""
        served = Counter(name for name in self.sequence if name is not None)
        return {
            "requests": len(self.sequence),
            "refused": self.refused,
            "served": dict(sorted(served.items())),
            "answered": {" ".join(map(str, ids)): times for ids, times in self.answered.items()},
            "arrived_elsewhere": self.arrived,
            "arrived_elsewhere_with_key": self.arrived_with_key,
            "sequence": self.sequence,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One generation request. `rng` is its own; `elsewhere` the address of another host. `model` answers, which
    `is_true` or has taken the true one's place; `other` gives one that is never true.
    """

    request: web.Request
    question: Question
    settings: Settings
    tokens: Tokens
    model: Model
    is_true: bool
    other: Callable[[], Model]
    ledger: Ledger
    rng: np.random.Generator
    elsewhere: str

    def text(self, model: Model | None = None) -> str:
        """The answer as JSON; `model`: that of another one."""
        return write_answer(self.question, model or self.model, self.tokens, times=self.ledger.drawn.__getitem__)

    def text_to_send(self) -> str:
        """The answer as JSON, to be sent as it is: whoever asks next, even before it is delivered, gets other draws."""
        text = self.text()
        self.ledger.drawn.update(self.question.prompts)
        return text

    def delivered(self) -> None:
        """Note that the prompts were answered."""
        self.ledger.answered.update(self.question.prompts if self.is_true else ())

    def answer(self) -> web.StreamResponse:
        """The answer as it should be."""
        response = plain(self.text_to_send())
        self.delivered()
        return response

    def spoiled(self, change: Callable[[dict[str, Any], np.random.Generator], Collection[int] | None]) -> web.StreamResponse:
        """The answer after `change` worked on it; it returns the places of the choices it spoiled, None for all of them."""
        data: dict[str, Any] = json.loads(self.text())
        places = change(data, self.rng)
        if places is not None:
            missed = {place // self.question.n for place in places}
            sound = [prompt for i, prompt in enumerate(self.question.prompts) if i not in missed]
            self.ledger.drawn.update(sound)
            self.ledger.answered.update(sound if self.is_true else ())
        return plain(json.dumps(data))


def plain(text: str | bytes) -> web.Response:
    """A 200 with `text` as its JSON."""
    return web.Response(body=text, content_type=JSON)


def refusal(status: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    """An error answer in the protocol's form."""
    body = {"error": {"message": message, "type": "error", "code": status}}
    return web.Response(body=json.dumps(body), status=status, headers=headers, content_type=JSON)
