"""Injections of every arm, each alike to the `high` one of the same number: string for string in shape, length and frequency.

Injection n of an arm takes, for each string of injection n of `high`, a string of the arm's own set that is like it: the
same leading space and case, then the smallest cost |difference in letters| + |difference in log frequency rank|. `matched`
takes the one of least cost; the others draw among the CHOICES best, `random` among the WIDE best. So arms differ in where
their strings come from, and as little as the sets allow in anything else; `balance` says how little.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from harness.packs.pack import Arm
from harness.packs.sampling import draw, generator
from harness.whitebox.distilling.token_sets import Sets

CHOICES = 8
WIDE = 200
MOST = 64
"""Strings of one injection at the most."""

_UNLIKE = 100.0
"""The cost of another shape: more than any difference in length and frequency."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """`injections` for each concept and arm, `strings` in each. A set with fewer than `fewest` strings gives no injection."""

    injections: int = 32
    strings: int = 16
    fewest: int = 8


class Pool:
    """The strings of a set, ready to be compared: shape codes, lengths and log ranks, (n,) each."""

    def __init__(self, texts: Sequence[str], rank: Mapping[str, int]) -> None:
        self.texts = tuple(texts)
        self._shapes = np.array([shape(text) for text in texts])
        self._lengths = np.array([len(text) for text in texts])
        self._ranks = np.log1p([rank.get(text, len(rank)) for text in texts])
        self._known: dict[str, list[str]] = {}

    def alike(self, text: str, rank: int, used: Sequence[str], choices: int, rng: np.random.Generator) -> str:
        """One of the `choices` unused strings most like `text`; a used one only where all near ones are."""
        nearest = self._nearest(text, rank)
        best = [other for other in nearest if other not in used][:choices] or nearest[:1]
        return best[int(rng.integers(len(best)))]

    def _nearest(self, text: str, rank: int) -> list[str]:
        """The strings most like `text`, best first, as many as any draw needs."""
        if text not in self._known:
            apart = np.abs(self._lengths - len(text)) + np.abs(self._ranks - np.log1p(rank))
            cost = np.where(self._shapes == shape(text), 0.0, _UNLIKE) + apart
            self._known[text] = [self.texts[at] for at in np.argsort(cost, kind="stable")[: WIDE + MOST]]
        return self._known[text]


def shape(text: str) -> str:
    """What the eye sees first: leading space, and whether it is lower-case, upper-case, capitalised, digits or else."""
    body = text.strip()
    kinds = {"lower": body.islower(), "title": body.istitle(), "upper": body.isupper(), "digit": body.isdigit()}
    kind = next((name for name, is_so in kinds.items() if is_so), "else")
    return f"{text[:1].isspace()}-{kind}-{body.isascii()}"


def draw_injections(sets: Sets, shuffled: Sequence[str], sizes: Sizes, seed: int) -> dict[Arm, tuple[tuple[str, ...], ...]]:
    """The injections of each arm that the sets can fill; without `high` none at all.

    `shuffled`: the strings of another concept's `high`.
    """
    if len(sets.high) < sizes.fewest:
        return {}
    rng = generator(seed, "distill", sets.concept, "high")
    high = tuple(draw(tuple(sets.high), sizes.strings, rng) for _ in range(sizes.injections))
    found: dict[Arm, tuple[tuple[str, ...], ...]] = {"high": high}
    sources: dict[Arm, tuple[Sequence[str], int]] = {
        "self": (sets.own, CHOICES),
        "low": (sets.low, CHOICES),
        "random": (sets.far, WIDE),
        "matched": (sets.far, 1),
        "shuffled": (shuffled, CHOICES),
        "related": (sets.related, CHOICES),
    }
    for arm, (texts, choices) in sources.items():
        if len(texts) >= sizes.fewest:
            found[arm] = _like(high, Pool(texts, sets.rank), sets.rank, choices, generator(seed, "distill", sets.concept, arm))
    return found


def balance(injections: Mapping[Arm, Sequence[Sequence[str]]], rank: Mapping[str, int]) -> dict[str, dict[str, float]]:
    """By arm: the mean length of a string in characters, and the mean of its log frequency rank."""
    means: dict[str, dict[str, float]] = {}
    for arm, drawn in injections.items():
        texts = [text for injection in drawn for text in injection]
        ranks = np.log1p([rank.get(text, len(rank)) for text in texts])
        means[arm] = {
            "length": round(float(np.mean([len(text) for text in texts])), 2),
            "log_rank": round(float(ranks.mean()), 2),
        }
    return means


def _like(
    high: Sequence[Sequence[str]], pool: Pool, rank: Mapping[str, int], choices: int, rng: np.random.Generator
) -> tuple[tuple[str, ...], ...]:
    """An injection for each of `high`."""
    found = []
    for injection in high:
        chosen: list[str] = []
        for text in injection:
            chosen.append(pool.alike(text, rank.get(text, len(rank)), chosen, choices, rng))
        found.append(tuple(chosen))
    return tuple(found)
