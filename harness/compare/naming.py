"""Tokens of two endpoints under common numbers: by id where both speak of one vocabulary, else by their text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from harness.records import Observation
from harness.stats.distances import Repeats

Spell = Callable[[int], str]
"""The text of a token id."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Told:
    """What one side said to the same prompts: `rounds` of one observation for each prompt. `shows_lists`: whether those are
    lists of likeliest tokens, else draws. `tokenizer`: its digest; `spell`: the text of its ids; None where not known."""

    rounds: Sequence[Sequence[Observation]]
    shows_lists: bool
    tokenizer: str | None = None
    spell: Spell | None = None


class Naming:
    """Numbers for tokens, equal for equal tokens of both sides: the ids, where `spell` says how they are spelled, else by text.

    By text, tokens that are spelled alike are one token, and one leading space is not told apart: endpoints that answer in
    conversations leave it out.
    """

    def __init__(self, spell: Spell | None = None) -> None:
        self.by_id = spell is not None
        self._spell = spell
        self._numbers: dict[str, int] = {}
        self._texts: list[str] = []

    def number(self, text: str) -> int:
        """The number of a token's text."""
        text = text.removeprefix(" ")
        if text not in self._numbers:
            self._numbers[text] = len(self._texts)
            self._texts.append(text)
        return self._numbers[text]

    def text(self, number: int) -> str:
        """How a numbered token is spelled."""
        return self._texts[number] if self._spell is None else self._spell(number)

    def __len__(self) -> int:
        """How many texts are numbered."""
        return len(self._texts)

    def repeats(self, told: Told, *, most: int) -> Repeats:
        """The lists of all rounds, (r, n, most), highest first."""
        rounds = told.rounds
        shape = (len(rounds), len(rounds[0]) if rounds else 0, most)
        ids, logprobs = np.full(shape, -1, np.int64), np.full(shape, -np.inf)
        for r, observations in enumerate(rounds):
            for i, seen in enumerate(observations):
                named = self._listed(seen, told.spell)
                likeliest = sorted(named.items(), key=lambda one: -one[1])[:most]
                if likeliest:
                    ids[r, i, : len(likeliest)], logprobs[r, i, : len(likeliest)] = zip(*likeliest, strict=True)
        return Repeats(ids=ids, logprobs=logprobs)

    def _listed(self, seen: Observation, spell: Spell | None) -> Mapping[int, float]:
        if seen.error is not None or seen.n_draws:
            return {}
        if self.by_id and seen.token_ids is not None:
            return dict(zip(seen.token_ids.tolist(), seen.logprobs.tolist(), strict=True))
        named: defaultdict[int, float] = defaultdict(lambda: -np.inf)
        for text, logprob in zip(_texts(seen, spell), seen.logprobs.tolist(), strict=True):
            number = self.number(text)
            named[number] = float(np.logaddexp(named[number], logprob))
        return named

    def counts(self, told: Told) -> list[dict[int, int]]:
        """How often each token was drawn after each prompt, all rounds together."""
        rounds = told.rounds
        found: list[dict[int, int]] = [defaultdict(int) for _ in (rounds[0] if rounds else ())]
        for observations in rounds:
            for counted, seen in zip(found, observations, strict=True):
                if seen.error is None and seen.n_draws:
                    for text, share in zip(seen.tokens, np.exp(seen.logprobs), strict=True):
                        counted[self.number(text)] += round(float(share) * seen.n_draws)
        return found


def shared_naming(a: Told, b: Told) -> Naming:
    """By id where both tokenizers are known to be one and every list names its tokens by id."""
    same = a.tokenizer is not None and a.tokenizer == b.tokenizer
    lists = (seen for told in (a, b) for observations in told.rounds for seen in observations)
    by_id = same and all(seen.token_ids is not None or seen.error is not None for seen in lists)
    return Naming(a.spell if by_id else None)


def _texts(seen: Observation, spell: Spell | None) -> Sequence[str]:
    if seen.token_ids is None or len(seen.tokens):
        return seen.tokens
    return [f"#{i}" if spell is None else spell(i) for i in seen.token_ids.tolist()]
