"""The lexical pack: its arms are what they say, checked with an embedder that anyone can see through."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from harness.packs.concepts import find_concept
from harness.packs.lexical import LexicalSizes, Vectors, common_words, draft_lexical, match, overlaps
from harness.packs.pack import find_pack
from harness.packs.sampling import generator

# None of them shares its form with a word of the lexicon.
ANIMALISH = ["farm", "hunting", "barking", "stable", "pasture", "breeding", "wildlife", "hooves"]


def embed(texts: Sequence[str]) -> Vectors:
    """Words of the animal world point along the first axis, the rest anywhere across it."""
    animal = find_concept("animal").words | set(ANIMALISH)
    vectors = np.empty((len(texts), 8), np.float32)
    for i, text in enumerate(texts):
        vector = np.random.default_rng(zlib.crc32(text.encode())).normal(size=8)
        vector[0] = 9.0 if text in animal else 0.0
        vectors[i] = vector / np.linalg.norm(vector)
    return vectors


@pytest.fixture(scope="module")
def probes() -> dict[str, list[tuple[str, ...]]]:
    rest = [word for word in common_words()[:3000] if word not in ANIMALISH]
    sizes = LexicalSizes(injections=5, words=4, n_related=len(ANIMALISH), n_near=60)
    draft = draft_lexical([*rest, *ANIMALISH], sizes, seed=0, embed=embed)
    found: dict[str, list[tuple[str, ...]]] = {}
    for probe in draft.probes:
        if probe.concept == "animal":
            found.setdefault(probe.arm, []).append(tuple(word.strip() for word in probe.injection))
    return found


def test_every_arm_has_its_injections(probes: dict[str, list[tuple[str, ...]]]) -> None:
    assert {arm: len(found) for arm, found in probes.items()} == {"self": 5, "related": 5, "matched": 5, "random": 5}
    assert all(len(words) == 4 for found in probes.values() for words in found)


def test_self_is_the_lexicon_and_related_is_near_it_without_being_it(probes: dict[str, list[tuple[str, ...]]]) -> None:
    lexicon = find_concept("animal").words
    assert {word for words in probes["self"] for word in words} <= lexicon
    related = {word for words in probes["related"] for word in words}
    assert related <= set(ANIMALISH)
    assert not any(overlaps(word, lexicon) for word in related)


def test_matched_words_have_their_partners_length_and_are_far_from_the_concept(
    probes: dict[str, list[tuple[str, ...]]],
) -> None:
    lexicon = find_concept("animal").words
    for related, matched in zip(probes["related"], probes["matched"], strict=True):
        assert [len(word) for word in related] == [len(word) for word in matched]
        assert not set(matched) & (lexicon | set(ANIMALISH))


def test_matching_takes_the_nearest_rank_among_equal_lengths() -> None:
    words = ["aaaa", "bbbbb", "cccc", "dddd", "eeeee"]
    assert match(3, np.array([0, 1, 2, 4]), words) == 2


def test_shared_forms_are_recognised() -> None:
    lexicon = frozenset({"dog", "horse", "elephant"})
    assert all(overlaps(word, lexicon) for word in ("dog", "horses", "elephantine", "elepha"))
    assert not any(overlaps(word, lexicon) for word in ("dogma", "house", "farm"))


def test_the_shipped_pack_is_balanced_and_claims_nothing(root: Path) -> None:
    pack = find_pack(str(root / "prompts/packs/lexical"))
    assert "nothing about interference" in pack.manifest.claims
    assert len({len(found) for found in pack.probes.values()}) == 1
    length = {
        arm: np.mean([len("".join(p.injection)) for (_, a), ps in pack.probes.items() if a == arm for p in ps])
        for arm in pack.arms
    }
    assert length["matched"] == pytest.approx(length["related"], rel=0.01)


def test_generators_of_different_purposes_differ() -> None:
    draws = [generator(0, *names).random() for names in (("a", "b"), ("b", "a"), ("ab",), ("a",))]
    assert len(set(draws)) == 4
    assert generator(0, "a").random() == draws[3]
