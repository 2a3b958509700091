"""The lexical pack: injections made from word lists alone. It looks inside no model and claims nothing about interference.

Arms: `self` (the concept's own words), `related` (other words near the concept), `matched` (for each related word one that
is far from the concept and alike in length, leading space, case and frequency), `random` (any other words).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from harness import paths
from harness.config import read_lines
from harness.packs.concepts import Concept, concept_names, find_concept
from harness.packs.embedder import REQUIREMENT
from harness.packs.pack import Arm, Draft
from harness.packs.sampling import draw, generator
from harness.records import Probe

Vectors = NDArray[np.float32]
WORDS = "words.txt"


@dataclass(frozen=True, slots=True, kw_only=True)
class LexicalSizes:
    """`injections` for each concept and arm, `words` in each. `n_related`: how many of the nearest words are related;
    `n_near`: how many of the nearest are kept out of `random` and `matched`."""

    injections: int = 100
    words: int = 16
    n_related: int = 150
    n_near: int = 2000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WordList:
    """Common words, most frequent first, with their unit vectors (n, d)."""

    words: tuple[str, ...]
    vectors: Vectors


def common_words() -> tuple[str, ...]:
    """The candidates, most frequent first: `prompts/words.txt` of the project, else the shipped one."""
    root = paths.project_root("prompts/concepts")
    own = root / "prompts" / WORDS if root else None
    return tuple(read_lines(own if own and own.is_file() else paths.shipped_root() / "prompts" / WORDS))


def draft_lexical(words: Sequence[str], sizes: LexicalSizes, *, seed: int, embed: Callable[[Sequence[str]], Vectors]) -> Draft:
    """The draft of the pack. `words`: candidates, most frequent first (rank stands for frequency); `embed`: texts to unit
    vectors (n, d)."""
    listed = WordList(words=tuple(words), vectors=embed(words))
    probes: list[Probe] = []
    for name in concept_names():
        concept = find_concept(name)
        probes += _concept_probes(concept, embed(sorted(concept.words)), listed, sizes, seed)
    return Draft(
        name="lexical",
        description="words of the concept, words near it, words matched to those, and random words",
        claims="nothing about interference: ordinary lexical and semantic priming, from word lists alone",
        maker="build-lexical",
        seed=seed,
        probes=probes,
        parameters={**asdict(sizes), "candidates": len(words)},
        sources={
            "words": "prompts/words.txt, whose order stands for frequency",
            "similarity": f"all-MiniLM-L6-v2 ({REQUIREMENT}), cosine with the lexicon's mean vector",
        },
    )


def _concept_probes(
    concept: Concept, lexicon_vectors: Vectors, listed: WordList, sizes: LexicalSizes, seed: int
) -> list[Probe]:
    centre = lexicon_vectors.mean(axis=0)
    similarity = listed.vectors @ (centre / np.linalg.norm(centre))  # (n_words,)
    nearest = np.argsort(-similarity, kind="stable")
    distinct = [i for i in nearest if not overlaps(listed.words[i], concept.words)]
    related = distinct[: sizes.n_related]
    near = set(nearest[: sizes.n_near].tolist())
    far = np.array([i for i in range(len(listed.words)) if i not in near and listed.words[i] not in concept.words])
    partner = {i: match(i, far, listed.words) for i in related}
    pools: dict[Arm, list[str]] = {
        "self": sorted(concept.words),
        "related": [listed.words[i] for i in related],
        "random": [listed.words[i] for i in far],
    }
    index = {listed.words[i]: i for i in related}
    probes: list[Probe] = []
    for arm, pool in pools.items():
        rng = generator(seed, "lexical", concept.name, arm)
        for n in range(sizes.injections):
            chosen = draw(pool, sizes.words, rng)
            probes.append(_probe(concept.name, arm, n, chosen))
            if arm == "related":
                matched = tuple(listed.words[partner[index[word]]] for word in chosen)
                probes.append(_probe(concept.name, "matched", n, matched, matched_to=f"related-{n:04d}"))
    return probes


def _probe(concept: str, arm: Arm, n: int, words: Sequence[str], **provenance: str) -> Probe:
    return Probe(
        concept=concept,
        arm=arm,
        injection_id=f"{arm}-{n:04d}",
        injection=tuple(f" {word}" for word in words),
        provenance=provenance,
    )


def overlaps(word: str, lexicon: frozenset[str]) -> bool:
    """Whether `word` shares its form with a word of the lexicon: equal, one inside the other, or alike in their first five
    letters. Near-spellings would make `related` a second `self`. Parts of three letters and fewer count for nothing."""
    inside, beginnings = _forms(lexicon)
    return word in lexicon or word in inside or word[:5] in beginnings or not lexicon.isdisjoint(_parts(word))


@lru_cache(maxsize=64)
def _forms(lexicon: frozenset[str]) -> tuple[frozenset[str], frozenset[str]]:
    """The parts of a lexicon's words, and their first five letters: to compare word by word takes a hundred times as long."""
    return frozenset(part for word in lexicon for part in _parts(word)), frozenset(word[:5] for word in lexicon)


def _parts(word: str) -> set[str]:
    """Every part of `word` of more than three letters."""
    return {word[i:j] for i in range(len(word) - 3) for j in range(i + 4, len(word) + 1)}


def match(i: int, candidates: NDArray[np.int64], words: Sequence[str]) -> int:
    """The candidate nearest to word `i` in frequency (log rank) among those of equal length; of nearly equal where none is.

    All words of the list are lower-case with a leading space, so case and space agree by construction.
    """
    lengths = np.array([len(words[j]) for j in candidates])
    same = candidates[np.abs(lengths - len(words[i])) == np.abs(lengths - len(words[i])).min()]
    return int(same[np.argmin(np.abs(np.log1p(same) - np.log1p(i)))])
