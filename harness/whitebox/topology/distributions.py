"""How alike the features of a site are: the share of pairs whose glosses, or whose directions, are less alike than a level.

The published figures of this kind are the shares of pairs with a gloss similarity below 0.4, 0.3, 0.2 and 0.15 and with an
interference below 0.4 and 0.3 (Gong et al. 2026, appendix F). Interference is counted over all pairs by `tiles`; glosses are
compared in all pairs of at most EXACT features, else in SAMPLE pairs drawn with a seed: a share then has a standard error of
0.0005 at the most.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.packs.sampling import generator

Floats = NDArray[np.float32]

GLOSS_ROWS = 1 << 14
SAMPLE = 1_000_000
EXACT = 8192
BLOCK_ROWS = 512

SIMILARITIES = (0.40, 0.30, 0.20, 0.15)
INTERFERENCES = (0.40, 0.30)
"""The published levels."""

SIMILARITY_LEVELS = tuple(round(0.05 * step, 2) for step in range(-19, 20))


@dataclass(frozen=True, slots=True, kw_only=True)
class Similarities:
    """`share_below`: share of pairs with a similarity below each of SIMILARITY_LEVELS, None where there is no pair.

    `n_pairs`: how many were looked at, all there are or (`sampled`) drawn with replacement.
    """

    share_below: tuple[float | None, ...]
    n_pairs: int
    sampled: bool


def gloss_similarity(glosses: NDArray[np.floating], i: NDArray[np.integer], j: NDArray[np.integer]) -> Floats:
    """Cosine of the gloss vectors (n, d_embed) of each pair; NaN where a feature has none (a row of zeros, or NaN)."""
    found = np.empty(len(i), np.float32)
    for at in range(0, len(i), GLOSS_ROWS):
        part = slice(at, at + GLOSS_ROWS)
        one, other = (np.asarray(glosses[rows[part]], np.float32) for rows in (i, j))
        with np.errstate(invalid="ignore", divide="ignore"):
            norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
            found[part] = np.einsum("nd,nd->n", one, other) / norms
    return found.clip(-1, 1)


def similarities(glosses: NDArray[np.floating], *, seed: int, name: str) -> Similarities:
    """How the similarities of all pairs of gloss vectors (n, d_embed) are spread; rows of zeros or NaN are left out.

    `name` spells the purpose of the sample, so that no two sites draw the same pairs.
    """
    known = glosses[np.isfinite(glosses).all(axis=1) & glosses.any(axis=1)]
    sampled = len(known) > EXACT
    below, n_pairs = np.zeros(len(SIMILARITY_LEVELS), np.int64), 0
    for part in _sample(known, seed, name) if sampled else _all_pairs(known):
        part.sort()
        below += np.searchsorted(part, np.array(SIMILARITY_LEVELS, np.float32), side="left")
        n_pairs += len(part)
    shares = tuple((below / n_pairs).tolist()) if n_pairs else (None,) * len(SIMILARITY_LEVELS)
    return Similarities(share_below=shares, n_pairs=n_pairs, sampled=sampled)


def similarity_columns(found: Similarities | None) -> dict[str, float | int | bool | None]:
    """The published shares for a table: `similarity_below_40` of the pairs are below 0.40; all None without glosses."""
    shares = dict(zip(SIMILARITY_LEVELS, found.share_below, strict=True)) if found else {}
    return {
        **{f"similarity_below_{_hundredths(level)}": shares.get(level) for level in SIMILARITIES},
        "similarity_pairs": found.n_pairs if found else None,
        "similarity_sampled": found.sampled if found else None,
    }


def interference_columns(levels: Sequence[float], above: Sequence[int], n: int) -> dict[str, float | None]:
    """The published shares of the pairs of `n` directions, from how many lie above each level."""
    pairs = n * (n - 1) // 2
    counts = dict(zip(levels, above, strict=True))
    return {f"interference_below_{_hundredths(level)}": 1 - counts[level] / pairs if pairs else None for level in INTERFERENCES}


def _hundredths(level: float) -> str:
    return f"{round(level * 100):02d}"


def _all_pairs(vectors: NDArray[np.floating]) -> Iterator[Floats]:
    """The cosines of all pairs of rows, each once, a block of rows with all later ones at a time."""
    unit = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    for start in range(0, len(unit), BLOCK_ROWS):
        block = unit[start : start + BLOCK_ROWS] @ unit[start:].T
        rows, columns = np.ogrid[: block.shape[0], : block.shape[1]]
        yield block[columns > rows]


def _sample(vectors: NDArray[np.floating], seed: int, name: str) -> Iterator[Floats]:
    """The cosines of SAMPLE pairs of different rows, drawn with replacement."""
    rng = generator(seed, "gloss similarity", name)
    first = rng.integers(len(vectors), size=SAMPLE)
    second = rng.integers(len(vectors) - 1, size=SAMPLE)
    second += second >= first
    yield gloss_similarity(vectors, first, second)
