"""The completions translator, on JSON alone."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from harness.providers.vocabulary import Vocabulary
from harness.providers.wire import completions as wire
from harness.providers.wire.base import BadAnswerError, Question, read_text
from harness.records import Mode, Observation

VOCABULARY = Vocabulary(Tokenizer(models.WordLevel({f"w{i}": i for i in range(50)}, unk_token="w0")))

# What vLLM 0.32 answered to two prompts with logprobs 3 and return_tokens_as_token_ids, shortened to what matters.
RECORDED = """
{"id": "cmpl-1", "object": "text_completion", "model": "m", "system_fingerprint": "vllm-0.32.0-1a2b3c4d", "choices": [
 {"index": 1, "text": " b", "finish_reason": "length", "logprobs": {"text_offset": [0],
  "token_logprobs": [-1.25], "tokens": ["token_id:7"],
  "top_logprobs": [{"token_id:7": -1.25, "token_id:2": -2.5, "token_id:31": -3.0}]}},
 {"index": 0, "text": " a", "finish_reason": "length", "logprobs": {"text_offset": [0],
  "token_logprobs": [-0.5], "tokens": ["token_id:4"],
  "top_logprobs": [{"token_id:4": -0.5, "token_id:9": -2.0, "token_id:11": -2.75}]}}],
 "usage": {"prompt_tokens": 9, "total_tokens": 11, "completion_tokens": 2}}
"""


ask = wire.Completions().request


def read(answer: object, n_prompts: int, n_logprobs: int, vocabulary: Vocabulary | None) -> list[Observation]:
    return wire.Completions().lists(answer, n_prompts, Question(n_logprobs=n_logprobs, vocabulary=vocabulary))


def answer(*lists: dict[str, Any], sampled: str | None = None) -> dict[str, Any]:
    """An answer with one choice for each list; the first entry was sampled unless `sampled` says otherwise."""
    return {
        "choices": [
            {"index": i, "logprobs": {"tokens": [sampled or next(iter(top), "token_id:0")], "top_logprobs": [top]}}
            for i, top in enumerate(lists)
        ]
    }


def read_one(top: dict[str, Any], *, k: int = 5, sampled: str | None = None, names: Any = VOCABULARY) -> Observation:
    (observation,) = read(answer(top, sampled=sampled), 1, k, names)
    return observation


def ids_of(observation: Observation) -> list[int]:
    assert observation.token_ids is not None
    return observation.token_ids.tolist()


def test_a_request_holds_what_the_endpoint_needs_and_nothing_else() -> None:
    assert ask("m", [[1, 2], [3]], Question(n_logprobs=30, vocabulary=VOCABULARY)) == {
        "model": "m",
        "prompt": [[1, 2], [3]],
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": 30,
        "return_tokens_as_token_ids": True,
    }
    assert ask("m", ["<s>a", "<s>b"], Question(n_logprobs=5, has_bos=True)) == {
        "model": "m",
        "prompt": ["<s>a", "<s>b"],
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": 5,
        "add_special_tokens": False,
    }


def test_a_lone_prompt_is_sent_bare() -> None:
    assert ask("m", ["a"], Question(n_logprobs=5))["prompt"] == "a"
    assert json.loads(json.dumps(ask("m", [(1, 2)], Question(n_logprobs=5))))["prompt"] == [1, 2]


def test_a_recorded_answer_is_read_by_index() -> None:
    first, second = read(json.loads(RECORDED), 2, 3, VOCABULARY)
    assert first.token_ids is not None
    assert first.token_ids.dtype == np.int32
    assert first.logprobs.dtype == np.float32
    assert first.token_ids.tolist() == [4, 9, 11]
    assert first.tokens == ()
    assert first.logprobs.tolist() == [-0.5, -2.0, -2.75]
    assert first.covered_mass == pytest.approx(math.exp(-0.5) + math.exp(-2.0) + math.exp(-2.75))
    assert first.mode is Mode.TOPK
    assert (first.mass_low, first.mass_high, first.error) == (None, None, None)
    assert ids_of(second) == [7, 2, 31]
    assert read_text(json.loads(RECORDED), "system_fingerprint") == "vllm-0.32.0-1a2b3c4d"


@given(
    st.lists(st.integers(0, 49), min_size=1, max_size=40, unique=True),
    st.integers(1, 45),
    st.randoms(use_true_random=False),
)
def test_the_list_is_ranked_whatever_order_it_came_in(ids: list[int], k: int, random: Any) -> None:
    logprobs = [-4.0 - random.randrange(5) for _ in ids]  # few values: many ties
    top = {f"token_id:{i}": lp for i, lp in zip(ids, logprobs, strict=True)}
    best = max(top, key=lambda name: top[name])
    observation = read_one(top, k=k, sampled=best)
    expected = sorted(zip(logprobs, ids, strict=True), key=lambda pair: (-pair[0], pair[1]))[:k]
    assert observation.token_ids is not None
    assert list(zip(observation.logprobs, observation.token_ids, strict=True)) == expected


def test_a_sampled_token_from_outside_the_top_k_is_left_out() -> None:
    top = {"token_id:30": -6.0, "token_id:1": -1.0, "token_id:2": -1.5}
    observation = read_one(top, k=2, sampled="token_id:30")
    assert ids_of(observation) == [1, 2]
    assert observation.covered_mass == pytest.approx(math.exp(-1.0) + math.exp(-1.5))
    # Also where the endpoint lists fewer than were asked for, so that the count does not give it away.
    assert ids_of(read_one(top, k=5, sampled="token_id:30")) == [1, 2]
    # The same in text.
    texts = {" rare": -6.0, " a": -1.0, " b": -1.5}
    assert read_one(texts, k=2, sampled=" rare", names=None).tokens == (" a", " b")


def test_the_likeliest_token_stays_even_in_a_tie_of_all() -> None:
    assert ids_of(read_one({"token_id:3": -1.0, "token_id:1": -1.0}, sampled="token_id:3")) == [1, 3]
    assert ids_of(read_one({"token_id:3": -1.0}, k=1)) == [3]


def test_texts_keep_their_spaces_and_carry_no_ids() -> None:
    observation = read_one({"dog": -2.0, " dog": -1.0, "\n": -2.0}, sampled=" dog", names=None)
    assert observation.token_ids is None
    assert observation.tokens == (" dog", "\n", "dog")
    assert observation.mode is Mode.TOPK


def test_a_list_of_the_whole_vocabulary_is_exact() -> None:
    top = {f"token_id:{i}": math.log(1 / 50) for i in range(50)}
    observation = read_one(top, k=50)
    assert observation.mode is Mode.EXACT
    assert observation.covered_mass == pytest.approx(1.0)
    assert read_one(top, k=49).mode is Mode.TOPK


def test_rounding_above_one_is_taken_for_one() -> None:
    observation = read_one({"token_id:1": 0.0004})
    assert observation.logprobs.tolist() == [0.0]
    assert observation.covered_mass == 1.0


@pytest.mark.parametrize(
    ("top", "words"),
    [
        ({"token_id:1": float("nan")}, "not finite"),
        ({"token_id:1": -1.0, "token_id:2": float("-inf")}, "not finite"),
        ({"token_id:1": -1.0, "token_id:2": -9999.0}, "a stand-in for minus infinity (-9999)"),
        ({"token_id:1": -1.0, "token_id:2": -3.4028235e38}, "a stand-in for minus infinity (-3.40282e+38)"),
        ({"token_id:1": 0.3}, "positive (0.3)"),
        ({"token_id:1": -(10**400)}, "not finite"),
        ({"token_id:1": None}, "no number"),
        ({"token_id:1": "-1.0"}, "no number"),
        ({"token_id:1": True}, "no number"),
        ({}, "an empty list"),
        ({"token_id:1": -0.5, "token_id:2": -0.5}, "sum to 1.2131"),
        ({"token_id:1": -1.0, "token_id:01": -1.5}, "listed twice"),
        ({"token_id:99999999999": -1.0}, "out of range"),
        ({" Paris": -1.0}, "a token is not named by its id"),
        ({"token_id:-1": -1.0}, "not named by its id"),
        ({"token_id:1_0": -1.0}, "not named by its id"),
        ({"token_id:1": -1.0, "token_id:": -2.0}, "not named by its id"),
        ({"token_id:1": -1.0, "": -2.0}, "not named by its id"),
        ({"token_id:1,token_id:2": -1.0}, "not named by its id"),
    ],
)
def test_a_wrong_list_fails_its_own_prompt_only(top: dict[str, Any], words: str) -> None:
    good = {"token_id:1": -1.0}
    before, failed, after = read(answer(good, top, good), 3, 5, VOCABULARY)
    assert failed.error is not None
    assert failed.error.startswith("bad answer: ")
    assert words in failed.error
    assert (failed.tokens, failed.covered_mass, failed.mode, len(failed.logprobs)) == ((), None, None, 0)
    assert before.error is after.error is None


@pytest.mark.parametrize(
    "choice", [{}, {"logprobs": None}, {"logprobs": {"top_logprobs": []}}, {"logprobs": {"top_logprobs": [None]}}]
)
def test_a_choice_without_log_probabilities_is_an_error(choice: dict[str, Any]) -> None:
    (observation,) = read({"choices": [choice]}, 1, 5, VOCABULARY)
    assert observation.error == "bad answer: no log-probabilities"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "no list of choices"),
        ({"error": "busy"}, "no list of choices"),
        ({"choices": [1, 2]}, "no list of choices"),
        ({"choices": answer({"token_id:1": -1.0})["choices"]}, "1 choices for 2 prompts"),
        ({"choices": [{"index": 0}, {"index": 0}]}, "not numbered 0 to 1"),
        ({"choices": [{"index": 1}, {"index": 2}]}, "not numbered 0 to 1"),
        ({"choices": [{"index": []}, {"index": None}]}, "not numbered 0 to 1"),
    ],
)
def test_choices_that_cannot_be_told_apart_fail_the_answer(data: Any, words: str) -> None:
    with pytest.raises(BadAnswerError, match=words):
        read(data, 2, 5, VOCABULARY)


def test_served_models_are_read_with_what_they_were_loaded_from() -> None:
    data = {"data": [{"id": "a", "root": "/w/a"}, {"id": "b"}, {"id": 3}, "c"]}
    assert wire.read_models(data) == {"a": "/w/a", "b": None}
    with pytest.raises(BadAnswerError):
        wire.read_models({"models": []})


def test_the_limit_that_a_refusal_states_is_found() -> None:
    said = "HTTP 400: Requested sample logprobs of 1000, which is greater than max allowed: 20"
    assert wire.stated_limit(said) == 20
    assert wire.stated_limit("HTTP 400: logprobs out of range") is None


def lists_strategy(length: int) -> st.SearchStrategy[dict[str, float]]:
    """Lists of one length, mostly ranked as servers rank them; some out of order, tied, or spoiled."""
    ids = st.lists(st.integers(0, 60), min_size=length, max_size=length, unique=True)
    plain = st.lists(st.floats(-40, -4, width=32), min_size=length, max_size=length, unique=True).map(
        lambda values: sorted(values, reverse=True)
    )
    odd = st.lists(st.sampled_from([-4.0, -5.0, -9999.0, 0.5, math.nan, 0.0, -(10.0**39)]), min_size=length, max_size=length)
    return st.tuples(ids, st.one_of(plain, plain, plain, odd)).map(
        lambda pair: {f"token_id:{i}": value for i, value in zip(*pair, strict=True)}
    )


@given(st.integers(1, 5).flatmap(lambda length: st.lists(lists_strategy(length), min_size=3, max_size=6)), st.integers(1, 6))
def test_lists_read_together_are_what_each_is_by_itself(lists: list[dict[str, float]], k: int) -> None:
    together = read(answer(*lists), len(lists), k, VOCABULARY)
    for top, seen in zip(lists, together, strict=True):
        alone = read_one(top, k=k)
        for name in Observation.__slots__:
            one, other = getattr(seen, name), getattr(alone, name)
            if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
                assert one.dtype == other.dtype
                assert one.tobytes() == other.tobytes()
            else:
                assert one == other, "to the last bit"


@given(st.lists(st.text(alphabet="token_id:,0 1x²-\n", max_size=14), min_size=1, max_size=4))
def test_only_names_of_ids_are_taken_for_ids(names: list[str]) -> None:
    valid = all(name.startswith("token_id:") and name[9:].isdecimal() and name[9:].isascii() for name in names)
    if valid:
        assert wire.token_ids(names) == [int(name[9:]) for name in names]
    else:
        with pytest.raises(BadAnswerError):
            wire.token_ids(names)


@given(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=40))
def test_the_ids_in_names_are_read(ids: list[int]) -> None:
    assert wire.token_ids([f"token_id:{i}" for i in ids]) == ids


def test_half_of_a_surrogate_pair_in_a_token_is_no_crash_later() -> None:
    """Some servers tell a token of half a character so."""
    observation = read_one(json.loads('{"\\ud83d": -1.0, " a": -2.0}'), names=None)
    assert all(token.encode() for token in observation.tokens)
    assert len(observation.tokens) == 2
