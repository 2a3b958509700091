"""Random draws: one generator for each purpose, all from one recorded seed."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")


def generator(seed: int, *names: str) -> np.random.Generator:
    """The generator for the purpose that `names` spell; equal arguments give equal streams on every platform.

    The names enter a SeedSequence as CRC-32 words, so that no purpose shares its stream with another.
    """
    return np.random.default_rng(np.random.SeedSequence([seed, *(zlib.crc32(name.encode()) for name in names)]))


def subset(items: Sequence[Item], n: int, rng: np.random.Generator) -> tuple[Item, ...]:
    """At most `n` items without replacement, in their own order; a smaller `n` gives a part of what a larger one gives."""
    return tuple(items[i] for i in sorted(rng.permutation(len(items))[:n]))


def draw(tokens: Sequence[str], n: int, rng: np.random.Generator) -> tuple[str, ...]:
    """`n` strings in random order without replacement; with replacement only where there are fewer than `n`, as published."""
    return tuple(tokens[i] for i in rng.choice(len(tokens), size=n, replace=len(tokens) < n))
