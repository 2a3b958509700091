"""Words and windows of text, and the columns of a site's tables."""

from __future__ import annotations

import numpy as np
import pytest

from harness.whitebox.features import catalogue
from harness.whitebox.features.catalogue_tables import WORD, Text, context_table, feature_table, token_table, window, word_at
from harness.whitebox.features.top_activations import Firings
from harness.whitebox.sources.sites import Site

SITE = Site(layer=2, submodule="mlp_out")


@pytest.mark.parametrize(
    ("text", "token", "word"),
    [
        ("a stronger one", "strong", "stronger"),
        ("a stronger one", " strong", "stronger"),
        ("a stronger one", "er", "stronger"),
        ("they don't know", "'t", "don't"),
        ("they don’t know", "don", "don’t"),
        ("a well-known man", "-", "well-known"),
        ("see-saw: a plank", ":", None),
        ("one - two", "-", None),
        ("snake_case here", "_", None),
        ("the 1920s were", "20", "1920s"),
        ("naïve façade", "ça", "façade"),
    ],
)
def test_a_token_lies_in_the_whole_word_around_it(text: str, token: str, word: str | None) -> None:
    start = text.index(token)
    assert word_at(list(WORD.finditer(text)), start, start + len(token)) == word


@pytest.mark.parametrize("start", [0, 3, 150, 396])
def test_a_window_of_a_long_text_holds_the_place(start: int) -> None:
    text = "".join(chr(ord("a") + number % 26) for number in range(400))
    shown, at, end = window(text, start, start + 4)
    assert shown[at:end] == text[start : start + 4]
    assert len(shown) == 200
    assert shown in text


def test_a_short_text_is_shown_whole() -> None:
    assert window("one two", 4, 7) == ("one two", 4, 7)


def test_tables_hold_the_columns_of_the_contract() -> None:
    text = Text(documents=("the strongest man", "no.\ttabs"), token_texts=("the", " strong", "est", "\n"))
    found = Firings(
        features=np.array([0, 0, 3, 3], np.int32),
        labels=np.array([1, 2, 3, 0], np.int32),
        values=np.array([2.5, 1.0, 0.5, 0.25], np.float32),
        spans=np.array([[0, 3, 10], [0, 10, 13], [1, 8, 9], [0, 0, 3]], np.int32),
    )
    tokens = token_table("tiny", SITE, found, text)
    assert tokens.schema == catalogue.TOKENS
    assert tokens["word"].to_pylist() == ["strongest", "strongest", "\n", "the"]
    assert tokens["token"].to_pylist() == [" strong", "est", "\n", "the"]
    assert tokens["rank"].to_pylist() == [0, 1, 0, 1]
    assert set(tokens["site"].to_pylist()) == {"mlp_out.2"}

    contexts = context_table("tiny", SITE, found.take(np.array([0, 2])), text, first_document=10)
    assert contexts.schema == catalogue.CONTEXTS
    marked = [row["text"][row["start"] : row["end"]] for row in contexts.to_pylist()]
    assert marked == [" strong", "\n"]
    assert contexts["document"].to_pylist() == [11, 13]

    nothing = found.take(np.zeros(0, np.int64))
    assert token_table("tiny", SITE, nothing, text).schema == catalogue.TOKENS
    assert len(context_table("tiny", SITE, nothing, text)) == 0


def test_features_without_a_number_or_a_gloss_have_nulls() -> None:
    numbers = [np.array([0.5, np.nan]), np.array([2.0, 0.0]), np.array([1.0, 0.0])]
    table = feature_table("tiny", SITE, numbers)
    assert table.schema == catalogue.FEATURES
    assert table["density"].to_pylist() == [0.5, None]
    assert table["gloss"].to_pylist() == [None, None]


def test_ids_of_an_unknown_tokenizer_are_not_made_up() -> None:
    text = Text(documents=("a b",), token_texts=("a",), ids_known=False)
    found = Firings(
        features=np.zeros(1, np.int32),
        labels=np.zeros(1, np.int32),
        values=np.ones(1, np.float32),
        spans=np.array([[0, 0, 1]], np.int32),
    )
    assert token_table("tiny", SITE, found, text)["token_id"].to_pylist() == [catalogue.UNKNOWN_ID]
