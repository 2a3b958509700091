"""Next-token distributions that are a function of the model's name and the prompt's ids: the oracle of what was answered.

A distribution is one of a few shapes (log-probabilities, highest first) laid over the vocabulary in an order that the prompt
decides, so that its likeliest tokens cost no more than their number.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64s = NDArray[np.float64]

N_SHAPES = 16
_DECIMALS = 6
"""Log-probabilities are rounded before they are told and drawn from, so that what is on the wire is the whole truth."""


@dataclass(frozen=True, slots=True, eq=False)
class Shape:
    """`logprobs` (n_vocab,) in nats, highest first; `written`: the same as JSON; `cumulated`: sums of their probabilities."""

    logprobs: Float64s
    written: tuple[str, ...]
    cumulated: Float64s


@dataclass(frozen=True, slots=True, eq=False)
class NextToken:
    """The distribution after one prompt. The token at rank r is `order[(step * r + start) % n_vocab]`."""

    shape: Shape
    step: int
    start: int
    order: NDArray[np.int64]
    place: NDArray[np.int64]

    def likeliest(self, k: int) -> list[int]:
        """The ids of the `k` likeliest tokens, likeliest first."""
        ids: list[int] = self._at(np.arange(min(k, len(self.order)))).tolist()
        return ids

    def rank(self, token_id: int) -> int:
        """How many tokens are likelier than `token_id`."""
        n_vocab = len(self.order)
        return int((self.place[token_id] - self.start) * pow(self.step, -1, n_vocab) % n_vocab)

    def logprobs(self) -> Float64s:
        """The log-probability of every id, (n_vocab,)."""
        by_id = np.empty_like(self.shape.logprobs)
        by_id[self._at(np.arange(len(self.order)))] = self.shape.logprobs
        return by_id

    def draw(self, rng: np.random.Generator, n: int, *, temperature: float, bias: Mapping[int, float]) -> list[int]:
        """`n` ids from softmax((logprobs + bias) / temperature); at temperature 0 the arg-max, `n` times."""
        if not bias and temperature == 0:
            return [int(self.order[self.start])] * n
        if not bias and temperature == 1:
            cumulated = self.shape.cumulated
        else:
            logits = self.shape.logprobs.copy()
            for token_id, added in bias.items():
                logits[self.rank(token_id)] += added
            if temperature == 0:
                return [int(i) for i in self._at(np.full(n, logits.argmax()))]
            cumulated = _cumulated(logits / temperature)
        ids: list[int] = self._at(np.searchsorted(cumulated, rng.random(n), side="right")).tolist()
        return ids

    def _at(self, ranks: NDArray[np.int64]) -> NDArray[np.int64]:
        return self.order[(ranks * self.step + self.start) % len(self.order)]


class Model:
    """The distributions of the model called `name` over ids 0 to `n_vocab` - 1. Another name is another model."""

    def __init__(self, name: str, n_vocab: int) -> None:
        self.name = name
        self._key = hashlib.blake2b(name.encode(), digest_size=16).digest()
        rng = np.random.default_rng(int.from_bytes(self._key))
        self._order = rng.permutation(n_vocab)
        self._place = np.argsort(self._order)
        self._shapes = tuple(_shape(rng, n_vocab) for _ in range(N_SHAPES))

    def after(self, ids: Sequence[int]) -> NextToken:
        """The distribution of the token after the prompt `ids`."""
        n_vocab = len(self._order)
        number = self.number(ids)
        number, shape = divmod(number, N_SHAPES)
        number, start = divmod(number, n_vocab)
        step = number % n_vocab + 1
        while math.gcd(step, n_vocab) != 1:
            step += 1
        return NextToken(self._shapes[shape], step, start, self._order, self._place)

    def number(self, ids: Sequence[int]) -> int:
        """A number that stands for the prompt `ids`, another one for another model."""
        return int.from_bytes(hashlib.blake2b(array("q", ids).tobytes(), digest_size=16, key=self._key).digest())


def _shape(rng: np.random.Generator, n_vocab: int) -> Shape:
    """A scale of 2 to 4 nats leaves about half of the mass on the 30 likeliest of some thousand tokens."""
    logits = np.sort(rng.uniform(2, 4) * rng.standard_normal(n_vocab))[::-1]
    logprobs = np.round(logits - np.log(np.exp(logits).sum()), _DECIMALS)
    return Shape(logprobs, tuple(f"{value:.{_DECIMALS}f}" for value in logprobs), _cumulated(logprobs))


def _cumulated(logits: Float64s) -> Float64s:
    weights = np.exp(logits - logits.max()).cumsum()
    cumulated: Float64s = weights / weights[-1]
    return cumulated
