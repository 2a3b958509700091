"""Tokens of two endpoints under common numbers."""

from __future__ import annotations

import numpy as np
import pytest

from harness.compare.naming import Naming, Told, shared_naming
from harness.records import Mode, Observation


def listed(*tokens: tuple[str, float], ids: tuple[int, ...] | None = None) -> Observation:
    return Observation(
        token_ids=None if ids is None else np.array(ids, np.int32),
        tokens=() if ids is not None else tuple(text for text, _ in tokens),
        logprobs=np.log([p for _, p in tokens]).astype(np.float32),
        mode=Mode.TOPK,
    )


def spell(number: int) -> str:
    return {4: " cat", 7: "dog", 8: " dog"}[number]


def test_ids_are_the_numbers_where_both_have_one_tokenizer() -> None:
    a = Told(rounds=[[listed((" cat", 0.6), ("dog", 0.3), ids=(4, 7))]], shows_lists=True, tokenizer="t", spell=spell)
    naming = shared_naming(a, a)
    assert naming.repeats(a, most=3).ids.tolist() == [[[4, 7, -1]]]
    assert naming.text(7) == "dog"


@pytest.mark.parametrize("other", [None, "u"])
def test_texts_are_compared_where_the_tokenizers_differ_or_are_not_known(other: str | None) -> None:
    a = Told(rounds=[[listed((" cat", 0.6), ("dog", 0.3), ids=(4, 7))]], shows_lists=True, tokenizer="t", spell=spell)
    b = Told(rounds=[[listed(("dog", 0.5), ("cat", 0.4))]], shows_lists=True, tokenizer=other)
    naming = shared_naming(a, b)
    one, two = naming.repeats(a, most=2), naming.repeats(b, most=2)
    assert one.ids[0, 0].tolist() == two.ids[0, 0, ::-1].tolist()
    assert naming.text(int(one.ids[0, 0, 0])) == "cat"


def test_tokens_that_are_spelled_alike_are_one_token_with_both_probabilities() -> None:
    told = Told(rounds=[[listed(("dog", 0.3), (" dog", 0.2), (" cat", 0.4))]], shows_lists=True)
    lists = Naming().repeats(told, most=3)
    assert np.exp(lists.logprobs[0, 0, :2]) == pytest.approx([0.5, 0.4])
    assert lists.ids[0, 0].tolist() == [0, 1, -1]


def test_draws_of_all_rounds_are_counted_together_and_failures_left_out() -> None:
    first = Observation(tokens=(" cat", "dog"), logprobs=np.log(np.float32([0.75, 0.25])), n_draws=4, mode=Mode.SAMPLED)
    second = Observation(tokens=("cat",), logprobs=np.log(np.float32([1.0])), n_draws=4, mode=Mode.SAMPLED)
    naming = Naming()
    counts = naming.counts(Told(rounds=[[first], [second], [Observation(error="lost")]], shows_lists=False))
    assert {naming.text(number): count for number, count in counts[0].items()} == {"cat": 7, "dog": 1}
