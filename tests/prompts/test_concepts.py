"""Every shipped concept: enough words, enough sentences, and no two of them alike."""

from __future__ import annotations

import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

ROOM = Path(__file__).parents[2] / "prompts" / "concepts"
CONCEPTS = sorted(path.name for path in ROOM.iterdir() if path.is_dir())
REQUIRED = {
    "animal",
    "body",
    "building",
    "clothing",
    "color",
    "emotion",
    "family",
    "food",
    "furniture",
    "location",
    "material",
    "money",
    "music",
    "number",
    "person",
    "plant",
    "profession",
    "science",
    "shape",
    "sport",
    "time",
    "tool",
    "vehicle",
    "weather",
}
SMALL_LEXICONS = {"color": 40, "number": 60, "weather": 60, "shape": 50, "family": 50, "furniture": 60, "money": 60}
DEFAULT_LEXICON = 120


def lines(concept: str, name: str) -> list[str]:
    text = (ROOM / concept / name).read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def words(sentence: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", sentence.lower())


def test_the_required_concepts_are_there() -> None:
    assert set(CONCEPTS) >= REQUIRED


@pytest.mark.parametrize("concept", CONCEPTS)
def test_the_lexicon_is_single_lower_case_words_without_repeats(concept: str) -> None:
    lexicon = lines(concept, "lexicon.txt")
    assert len(lexicon) >= SMALL_LEXICONS.get(concept, DEFAULT_LEXICON)
    assert not [word for word, n in Counter(lexicon).items() if n > 1]
    assert not [word for word in lexicon if " " in word or word != word.lower()]
    assert lexicon == sorted(lexicon)


@pytest.mark.parametrize("concept", CONCEPTS)
@pytest.mark.parametrize(("file", "least"), [("sentences.txt", 60), ("off_type.txt", 15)])
def test_sentences_are_unfinished_and_of_the_right_length(concept: str, file: str, least: int) -> None:
    sentences = lines(concept, file)
    assert len(sentences) >= least
    assert not [s for s in sentences if not 5 <= len(s.split()) <= 20]
    assert not [s for s in sentences if not s[-1].isalpha()], "a sentence stops before the word, with no punctuation"


@pytest.mark.parametrize("concept", CONCEPTS)
def test_no_lexicon_word_stands_in_its_own_sentences(concept: str) -> None:
    lexicon = set(lines(concept, "lexicon.txt"))
    found = {s: hit for s in lines(concept, "sentences.txt") if (hit := lexicon.intersection(words(s)))}
    assert not found


@pytest.mark.parametrize("concept", CONCEPTS)
def test_sentences_vary_in_their_last_words_and_their_frames(concept: str) -> None:
    sentences = lines(concept, "sentences.txt")
    last = Counter(words(s)[-1] for s in sentences)
    assert max(last.values()) <= 0.2 * len(sentences), last.most_common(3)
    assert len(last) >= 12
    openings = Counter(tuple(words(s)[:3]) for s in sentences)
    assert max(openings.values()) <= 2, openings.most_common(3)
    alike = [
        (a, b)
        for a, b in combinations(sentences, 2)
        if len(set(words(a)) & set(words(b))) > 0.6 * len(set(words(a)) | set(words(b)))
    ]
    assert not alike


def test_no_sentence_is_used_twice_anywhere() -> None:
    counts = Counter(" ".join(words(s)) for c in CONCEPTS for f in ("sentences.txt", "off_type.txt") for s in lines(c, f))
    assert not [s for s, n in counts.items() if n > 1]
