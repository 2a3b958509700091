"""The engine against transformers itself: one prompt at a time, eager attention, on tiny random models."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from harness.errors import UsageError  # noqa: E402
from harness.providers.engine import MAX_KEYS, PrefixEngine, chunks_of, pieces_of, shared_prefix  # noqa: E402
from harness.records import Lexicon, Mode, Observation, Readout  # noqa: E402

VOCABULARY = 97
WINDOW = 8
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
Build = Callable[[], Any]


def llama() -> Any:
    return _strong(transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE)))


def gemma3() -> Any:
    layers = ["sliding_attention", "full_attention", "sliding_attention"]
    config = transformers.Gemma3TextConfig(**SHAPE, sliding_window=WINDOW, layer_types=layers, query_pre_attn_scalar=8)
    return _strong(transformers.Gemma3ForCausalLM(config))


def mistral() -> Any:
    return _strong(transformers.MistralForCausalLM(transformers.MistralConfig(**SHAPE, sliding_window=WINDOW)))


def _strong(model: Any) -> Any:
    """Fixed random weights, large enough that every token of a prompt matters."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    return model.eval()


def plain_logprobs(build: Build, prompts: Sequence[Sequence[int]]) -> np.ndarray:
    """(n, V) log-probabilities from one plain forward pass a prompt."""
    model = build()
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        rows = [model(input_ids=torch.tensor([prompt])).logits[0, -1].double().log_softmax(-1) for prompt in prompts]
    return torch.stack(rows).numpy()


def readout(n_logprobs: int = 30, ids: Sequence[int] = (3, 5, 40)) -> Readout:
    lexicon = Lexicon(concept="color", words=frozenset(), token_ids=np.array(ids, np.int32), resolved_share=1.0, digest="d")
    return Readout(lexicon=lexicon, n_logprobs=n_logprobs)


def crossed(n_groups: int, n_sentences: int, prefix: int, seed: int = 0) -> tuple[list[tuple[int, ...]], list[str]]:
    """Random prompts of `n_groups` prefixes of about `prefix` tokens, each before the same sentences of 1 to 9 tokens."""
    rng = random.Random(seed)

    def draw(n: int) -> tuple[int, ...]:
        return tuple(rng.randrange(1, VOCABULARY) for _ in range(n))

    sentences = [draw(rng.randrange(1, 10)) for _ in range(n_sentences)]
    prefixes = [draw(max(prefix + rng.randrange(-3, 4), 0)) for _ in range(n_groups)]
    prompts = [start + sentence for start in prefixes for sentence in sentences]
    return prompts, [str(group) for group in range(n_groups) for _ in range(n_sentences)]


def dense(observations: Sequence[Observation]) -> np.ndarray:
    """(n, V) log-probabilities by id, from observations that list the whole vocabulary."""
    table = np.full((len(observations), VOCABULARY), np.nan)
    for row, seen in enumerate(observations):
        assert seen.error is None
        table[row, seen.token_ids] = seen.logprobs
    return table


@pytest.mark.parametrize("build", [llama, gemma3, mistral])
@pytest.mark.parametrize("prefix", [0, 4, 30])
def test_log_probabilities_equal_a_plain_forward_pass_of_each_prompt(build: Build, prefix: int) -> None:
    prompts, groups = crossed(3, 5, prefix)
    seen = PrefixEngine(build()).observe(prompts, groups, readout(VOCABULARY))
    np.testing.assert_allclose(dense(seen), plain_logprobs(build, prompts), atol=1e-4)


@pytest.mark.parametrize("build", [gemma3, mistral])
def test_the_oracle_feels_the_sliding_window_so_that_agreeing_with_it_means_something(build: Build) -> None:
    prompts, _ = crossed(1, 1, 30)
    wide = build()
    wide.config.sliding_window = 64
    for layer in wide.model.layers:
        layer.self_attn.sliding_window = 64
    wide.set_attn_implementation("eager")
    with torch.inference_mode():
        unlimited = wide(input_ids=torch.tensor(prompts)).logits[0, -1].log_softmax(-1).numpy()
    assert np.abs(unlimited - plain_logprobs(build, prompts)[0]).max() > 0.05


def test_the_listed_tokens_are_the_likeliest_and_come_highest_first() -> None:
    prompts, groups = crossed(2, 3, 6)
    expected = plain_logprobs(llama, prompts)
    for row, seen in enumerate(PrefixEngine(llama()).observe(prompts, groups, readout(30))):
        assert seen.token_ids is not None
        assert (seen.token_ids.dtype, seen.logprobs.dtype, seen.mode) == (np.int32, np.float32, Mode.EXACT)
        assert (seen.covered_mass, len(seen.logprobs)) == (1.0, 30)
        assert np.all(np.diff(seen.logprobs) <= 0)
        np.testing.assert_allclose(seen.logprobs, np.sort(expected[row])[::-1][:30], atol=1e-4)
        np.testing.assert_allclose(seen.logprobs, expected[row, seen.token_ids], atol=1e-4)


def test_the_lexicon_mass_is_the_sum_over_its_ids_and_its_bounds_meet() -> None:
    prompts, groups = crossed(2, 4, 6)
    ids = [2, 11, 60, 96]
    expected = np.exp(plain_logprobs(gemma3, prompts))[:, ids].sum(-1)
    seen = PrefixEngine(gemma3()).observe(prompts, groups, readout(5, ids))
    np.testing.assert_allclose([one.mass_low for one in seen], expected, rtol=1e-4)
    assert [one.mass_low for one in seen] == [one.mass_high for one in seen]


def test_an_empty_lexicon_has_no_mass_and_the_whole_vocabulary_has_all_of_it() -> None:
    engine = PrefixEngine(llama())
    assert engine.observe([(4, 5)], ["a"], readout(3, []))[0].mass_low == 0.0
    assert engine.observe([(4, 5)], ["a"], readout(3, range(VOCABULARY)))[0].mass_low == pytest.approx(1.0, abs=1e-6)


def test_ids_that_the_head_has_no_row_for_add_no_mass() -> None:
    engine = PrefixEngine(llama())
    within, beyond = (engine.observe([(4, 5)], ["a"], readout(3, ids))[0] for ids in ([3], [3, VOCABULARY + 5]))
    assert within.mass_low == beyond.mass_low


def test_how_prompts_are_grouped_and_cut_does_not_change_the_answers() -> None:
    prompts, groups = crossed(4, 6, 20)
    grouped = dense(PrefixEngine(gemma3()).observe(prompts, groups, readout(VOCABULARY)))
    alone = [f"{number}" for number in range(len(prompts))]
    apart = dense(PrefixEngine(gemma3()).observe(prompts, alone, readout(VOCABULARY)))
    cut = dense(PrefixEngine(gemma3(), max_tokens=25).observe(prompts, groups, readout(VOCABULARY)))
    np.testing.assert_allclose(apart, grouped, atol=1e-4)
    np.testing.assert_allclose(cut, grouped, atol=1e-4)


def test_answers_come_in_the_order_of_the_prompts_even_where_groups_are_interleaved() -> None:
    prompts, groups = crossed(3, 4, 10)
    order = random.Random(1).sample(range(len(prompts)), len(prompts))
    mixed = [prompts[i] for i in order]
    seen = PrefixEngine(llama()).observe(mixed, [groups[i] for i in order], readout(VOCABULARY))
    np.testing.assert_allclose(dense(seen), plain_logprobs(llama, mixed), atol=1e-4)


def test_equal_batches_give_equal_answers_bit_for_bit() -> None:
    prompts, groups = crossed(4, 6, 20)
    model = llama().to(torch.bfloat16)
    engine = PrefixEngine(model)
    first, second = (engine.observe(prompts, groups, readout(VOCABULARY)) for _ in range(2))
    assert dense(first).tobytes() == dense(second).tobytes()
    assert [one.mass_low for one in first] == [one.mass_low for one in second]


def test_equal_prompts_and_prompts_inside_one_another_are_answered() -> None:
    prompts = [(5, 6, 7), (5, 6, 7), (5,), (5, 6)]
    seen = PrefixEngine(llama()).observe(prompts, ["a"] * 4, readout(VOCABULARY))
    np.testing.assert_allclose(dense(seen), plain_logprobs(llama, prompts), atol=1e-4)


def test_a_bad_prompt_is_an_observation_with_an_error_and_the_rest_goes_on() -> None:
    prompts = [(5, 6, 7), (), (1,) * 65, (5, VOCABULARY), (5, -1), (5, 6, 8)]
    seen = PrefixEngine(llama()).observe(prompts, ["a"] * 6, readout(VOCABULARY))
    assert [one.error for one in seen] == [
        None,
        "the prompt has no token",
        "the prompt has 65 tokens; the model takes at most 64",
        "the prompt has a token id outside 0..96",
        "the prompt has a token id outside 0..96",
        None,
    ]
    assert all(one.mass_low is None and one.token_ids is None for one in seen[1:5])
    np.testing.assert_allclose(dense([seen[0], seen[5]]), plain_logprobs(llama, [prompts[0], prompts[5]]), atol=1e-4)


def test_no_prompts_give_no_observations() -> None:
    assert PrefixEngine(llama()).observe([], [], readout()) == []


@pytest.mark.parametrize(
    "failure", [RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), torch.OutOfMemoryError("x")]
)
def test_running_out_of_memory_fails_the_prompts_of_that_pass_only(failure: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = PrefixEngine(llama(), max_tokens=6)
    real = engine._logits

    def logits(prompts: Any, chunk: Any) -> Any:
        if any(0 in piece.members for piece in chunk):
            raise failure
        return real(prompts, chunk)

    monkeypatch.setattr(engine, "_logits", logits)
    seen = engine.observe([(1, 2, 3, 4), (5, 6, 7, 8)], ["a", "b"], readout())
    assert [one.error for one in seen] == ["out of memory", None]


def test_the_check_leaves_every_number_of_the_model_as_it_was() -> None:
    model = gemma3().to(torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    buffers = {name: (tensor.dtype, tensor.clone()) for name, tensor in model.named_buffers()}
    PrefixEngine(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    for name, tensor in model.named_buffers():
        assert tensor.dtype == buffers[name][0]
        assert torch.equal(tensor, buffers[name][1])


def test_other_failures_of_the_model_are_not_taken_for_a_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = PrefixEngine(llama())

    def broken(*_: Any) -> Any:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(engine, "_logits", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        engine.observe([(1, 2)], ["a"], readout())


def test_a_distribution_that_is_not_finite_is_an_error() -> None:
    model = llama()
    engine = PrefixEngine(model)
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    assert engine.observe([(1, 2)], ["a"], readout())[0].error == "the model gave no finite distribution"


def test_attention_that_caps_its_scores_is_refused() -> None:
    config = transformers.Gemma2Config(**SHAPE, sliding_window=WINDOW, query_pre_attn_scalar=8)
    with pytest.raises(UsageError, match="Gemma2ForCausalLM cannot share prefixes: its attention caps the scores"):
        PrefixEngine(_strong(transformers.Gemma2ForCausalLM(config)))


def test_a_model_whose_answers_change_when_packed_is_refused() -> None:
    config = transformers.GptOssConfig(**SHAPE, num_local_experts=2, num_experts_per_tok=1, sliding_window=WINDOW)
    with pytest.raises(UsageError, match="GptOssForCausalLM cannot share prefixes: its logits change"):
        PrefixEngine(_strong(transformers.GptOssForCausalLM(config)))


@pytest.mark.parametrize(
    ("prompts", "shared"),
    [([(1, 2, 3)], 0), ([(1, 2, 3), (1, 2, 4)], 2), ([(1, 2), (1, 2, 3)], 1), ([(1,), (1,)], 0), ([(1, 2), (3, 2)], 0)],
)
def test_a_shared_prefix_leaves_each_prompt_a_token_of_its_own(prompts: list[tuple[int, ...]], shared: int) -> None:
    assert shared_prefix(prompts) == shared


def test_passes_stay_within_the_limits_and_hold_every_prompt_once() -> None:
    prompts, groups = crossed(6, 9, 12)
    prompts = [(1,) * 3000 + prompt if group == "5" else prompt for prompt, group in zip(prompts, groups, strict=True)]
    members = {group: [i for i, label in enumerate(groups) if label == group] for group in dict.fromkeys(groups)}
    pieces = [piece for numbers in members.values() for piece in pieces_of(prompts, numbers, 60)]
    chunks = list(chunks_of(prompts, pieces, 60))
    assert sorted(i for chunk in chunks for piece in chunk for i in piece.members) == list(range(len(prompts)))
    for chunk in chunks:
        tokens = sum(p.shared + sum(len(prompts[i]) - p.shared for i in p.members) for p in chunk)
        assert tokens <= 60 or sum(len(piece.members) for piece in chunk) == 1
        assert sum(len(prompts[i]) for piece in chunk for i in piece.members) <= MAX_KEYS
