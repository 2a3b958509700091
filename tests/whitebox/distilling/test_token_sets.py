"""Which strings an arm may draw from, and injections that are alike in everything else."""

from __future__ import annotations

import numpy as np
import pytest

from harness.packs.lexical import WordList
from harness.whitebox.distilling import token_sets
from harness.whitebox.distilling.injections import Sizes, balance, draw_injections, shape
from harness.whitebox.distilling.links import Link, Member
from harness.whitebox.distilling.token_sets import Lexicon, Sets, clean_sets, published_sets

WORDS = ("cat", "wolf", "beast", "tax", "rent", "loan", "coin", "fund", "bank", "sum", "cats", "plow", "farm", "oak")


def link(interference: float, *words: str, feature: int = 1, tokens: tuple[str, ...] = ()) -> Link:
    member = Member(source="s", site="resid_post.1", target=0, feature=feature, interference=interference, similarity=0.1)
    return Link(members=(member,), words=words, tokens=tokens or tuple(f" {word}" for word in words))


@pytest.fixture
def listed() -> WordList:
    vectors = np.tile(np.array([0.0, 1.0], np.float32), (len(WORDS), 1))
    vectors[:3] = (1.0, 0.0)  # cat, wolf and beast mean something alike
    return WordList(words=WORDS, vectors=vectors)


LEXICON = Lexicon.of("animal", frozenset({"cat"}), np.array([[1.0, 0.0]], np.float32))
RANK = {f" {word}": at for at, word in enumerate(WORDS)}


def test_clean_sets_hold_no_word_twice_and_none_of_the_lexicons_form(listed: WordList, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_sets, "NEAR_SHARE", 3 / len(WORDS))
    interference = {"tax": 1.5, "rent": 1.2, "loan": 0.1, "coin": 0.2, "fund": 0.9, "bank": 0.8, "unheard": 0.0}
    sets = clean_sets(
        LEXICON, [link(0.4, "tax", "cats", "wolf", "unheard"), link(0.6, "tax", feature=2)], interference, listed, RANK
    )
    assert list(sets.high) == [" tax"]  # cats looks like cat, wolf means something near, unheard has no frequency
    assert sets.high[" tax"].interference == 0.6
    assert sets.related == (" wolf", " beast")
    assert sets.low == (" loan",)  # the quarter that interferes least, of four
    assert sets.own == (" cat",)
    assert set(sets.far) == {" coin", " fund", " bank", " sum", " cats", " plow", " farm", " oak"}
    assert " rent" not in {*sets.far, *sets.low, *sets.related}  # interferes, but no link vouches for it
    every = [*sets.high, *sets.low, *sets.own, *sets.related, *sets.far]
    assert len(set(every)) == len(every)


def test_published_sets_drop_what_is_both_high_and_low_and_unite_or_intersect_sources() -> None:
    strong, weak = link(0.6, tokens=(" tax", " both", "ab")), link(0.3, tokens=(" rent", " both"))
    other = link(0.7, tokens=(" tax", " loan"))
    vocabularies = {"a": {" tax": 1, " rent": 2, " rest": 3}, "b": {" tax": 1, " loan": 2, " rest": 3}}
    links = {"a": [strong, weak], "b": [other]}
    thresholds = {"a": 0.5, "b": 0.5}
    united = published_sets(LEXICON, links, thresholds, vocabularies, (" wolf",), united=True)
    assert set(united.high) == {" tax", "ab", " loan"}
    assert united.low == (" rent",)
    assert " both" not in {*united.high, *united.low}
    common = published_sets(LEXICON, links, thresholds, vocabularies, (" wolf",), united=False)
    assert set(common.high) == {" tax"}
    assert (common.low, common.far) == ((), (" rest",))


def test_published_sets_take_ten_strings_of_a_feature() -> None:
    many = tuple(f" w{n}" for n in range(15))
    sets = published_sets(LEXICON, {"a": [link(0.6, tokens=many)]}, {"a": 0.5}, {"a": {}}, (), united=True)
    assert list(sets.high) == list(many[:10])


def sets_of(far: tuple[str, ...], rank: dict[str, int]) -> Sets:
    high = {text: link(0.5) for text in (" tax", " rent", " Loan", " money")}
    return Sets(
        concept="animal", high=high, low=(" sum",), own=(" cat", " cow", " Dog", " horse"), related=(), far=far, rank=rank
    )


def test_every_arm_is_like_the_high_injection_of_its_number() -> None:
    far = (" car", " oaks", " plow", " Farm", " chair", " extraordinarily")
    rank = {text: at for at, text in enumerate((" tax", " rent", " Loan", " money", *far, " cat", " cow", " Dog", " horse"))}
    drawn = draw_injections(sets_of(far, rank), (), Sizes(injections=5, strings=4, fewest=2), seed=1)
    assert set(drawn) == {"high", "self", "random", "matched"}  # low has one string, related and shuffled none
    for high, matched in zip(drawn["high"], drawn["matched"], strict=True):
        assert [shape(text) for text in high] == [shape(text) for text in matched]
        assert sum(abs(len(a) - len(b)) for a, b in zip(high, matched, strict=True)) <= 1
        assert len(set(matched)) == 4
    told = balance(drawn, rank)
    assert told["matched"]["length"] == pytest.approx(told["high"]["length"], abs=0.3)
    assert drawn == draw_injections(sets_of(far, rank), (), Sizes(injections=5, strings=4, fewest=2), seed=1)
    assert drawn != draw_injections(sets_of(far, rank), (), Sizes(injections=5, strings=4, fewest=2), seed=2)


def test_too_few_interfering_strings_give_no_injection() -> None:
    assert draw_injections(sets_of((" a", " b"), {}), (), Sizes(fewest=5), seed=0) == {}


@pytest.mark.parametrize(
    ("text", "told"), [(" tax", "True-lower-True"), ("Tax", "False-title-True"), (" ÉT", "True-upper-False")]
)
def test_the_shape_of_a_string(text: str, told: str) -> None:
    assert shape(text) == told
