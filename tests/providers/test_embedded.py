"""The embedded provider on a tiny model of a user's own, and once on the packaged SmolLM2."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402

from harness import paths  # noqa: E402
from harness.errors import FileFormatError, MissingExtraError, UsageError  # noqa: E402
from harness.providers.embedded import open_provider  # noqa: E402
from harness.providers.targets import Endpoint, OpenOptions, Target, TargetSpec, find_target, open_target  # noqa: E402
from harness.records import Lexicon, Mode, Prompt, Readout  # noqa: E402

WORDS = ["red", "green", "blue", "cat", "dog", "sun", "runs", "sees", "a", "the", "[END]"]
T = TypeVar("T")


def wait(answer: Awaitable[T]) -> T:
    async def run() -> T:
        return await answer

    return asyncio.run(run())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny random Llama and a tokenizer of whole words, as a user would have them."""
    folder = tmp_path / "model"
    torch.manual_seed(3)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=len(WORDS), max_position_embeddings=32, initializer_range=0.5, **shape)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def spec_of(model: Path | str, **target: Any) -> TargetSpec:
    mine = Target(model=str(model), **{"dtype": "float32"} | target)
    endpoint = Endpoint(api="embedded", targets={"mine": mine})
    found = paths.Found(name="local", path=Path("providers/local.toml"), origin="project")
    return TargetSpec(name="mine", target=mine, endpoint_name="local", endpoint=endpoint, found=found)


def prompt_of(text: str, token_ids: Sequence[int] | None = None, group: str = "g") -> Prompt:
    return Prompt(
        prompt_id=text,
        concept="color",
        arm="self",
        sentence_id="s",
        injection_id="i",
        template="plain",
        group=group,
        text=text,
        token_ids=None if token_ids is None else tuple(token_ids),
    )


def readout(ids: Sequence[int], n_logprobs: int = 5) -> Readout:
    lexicon = Lexicon(concept="color", words=frozenset(), token_ids=np.array(ids, np.int32), resolved_share=1.0, digest="d")
    return Readout(lexicon=lexicon, n_logprobs=n_logprobs)


def test_a_model_of_ones_own_answers_for_ids_and_for_text_alike(folder: Path) -> None:
    provider = wait(open_provider(spec_of(folder), OpenOptions()))
    ids = [WORDS.index(word) for word in ["the", "cat", "sees"]]
    by_ids, by_text = wait(provider.observe([prompt_of("", ids), prompt_of("the cat sees", group="other")], readout([0, 1, 2])))
    model = transformers.LlamaForCausalLM.from_pretrained(folder)
    with torch.inference_mode():
        expected = model(input_ids=torch.tensor([ids])).logits[0, -1].softmax(-1)
    assert by_ids.mass_low == pytest.approx(expected[:3].sum().item(), rel=1e-4)
    assert by_text.mass_low == pytest.approx(by_ids.mass_low, rel=1e-4)
    assert by_ids.token_ids is not None
    assert by_ids.token_ids[0] == expected.argmax().item()
    assert by_ids.latency_s > 0


def test_who_answered_is_told_with_the_digest_of_the_weights(folder: Path) -> None:
    provider = wait(open_provider(spec_of(folder), OpenOptions()))
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    info = provider.info
    assert (info.target, info.endpoint, info.model, info.revision) == ("mine", "embedded", str(folder), digest)
    assert info.settings["weights_sha256"] == digest
    assert info.settings["dtype"] == "float32"
    assert info.settings["torch"] == torch.__version__.partition("+")[0] or "+" in str(info.settings["torch"])
    assert provider.vocabulary is not None
    assert info.tokenizer_digest == provider.vocabulary.digest
    assert (info.capabilities.mode, info.capabilities.token_ids) == (Mode.EXACT, True)
    assert info.capabilities.max_logprobs is None
    assert info.capabilities.max_prompts_per_request == provider.batch_size


def test_the_dtype_asked_for_wins_over_the_targets(folder: Path) -> None:
    for asked, told in ((None, "bfloat16"), ("float32", "float32")):
        provider = wait(open_provider(spec_of(folder, dtype="bfloat16"), OpenOptions(dtype=asked)))
        assert provider.info.settings["dtype"] == told


def test_opening_and_asking_print_nothing(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    provider = wait(open_provider(spec_of(folder), OpenOptions()))
    wait(provider.observe([prompt_of("the cat")], readout([0])))
    assert capfd.readouterr() == ("", "")


def test_a_prompt_that_fails_is_a_record_beside_the_others(folder: Path) -> None:
    provider = wait(open_provider(spec_of(folder), OpenOptions()))
    good, bad = wait(provider.observe([prompt_of("the cat"), prompt_of("", [0] * 33)], readout([0])))
    assert good.error is None
    assert bad.error == "the prompt has 33 tokens; the model takes at most 32"


def test_a_closed_provider_does_not_answer(folder: Path) -> None:
    provider = wait(open_provider(spec_of(folder), OpenOptions()))
    wait(provider.aclose())
    with pytest.raises(RuntimeError, match="closed"):
        wait(provider.observe([prompt_of("the cat")], readout([0])))


def test_a_folder_without_a_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"{tmp_path}: transformers cannot load it: .") as caught:
        wait(open_provider(spec_of(tmp_path), OpenOptions()))
    assert caught.value.hint is not None
    assert "config.json" in caught.value.hint


def test_an_unknown_option_is_refused_by_name(folder: Path) -> None:
    with pytest.raises(FileFormatError, match=r"targets\.mine\.options: unknown key 'devise'") as caught:
        wait(open_provider(spec_of(folder, options={"devise": "cpu"}), OpenOptions()))
    assert caught.value.hint is not None
    assert "device" in caught.value.hint


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_told(folder: Path) -> None:
    with pytest.raises(UsageError, match="wants a GPU, and torch finds none"):
        wait(open_provider(spec_of(folder, options={"device": "cuda"}), OpenOptions()))


def test_a_missing_library_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "transformers" else object())
    with pytest.raises(MissingExtraError, match="'transformers'"):
        wait(open_provider(spec_of(folder), OpenOptions()))


@pytest.mark.embedded
def test_smollm2_gives_the_log_probabilities_of_a_plain_forward_pass_of_each_prompt() -> None:
    spec = find_target("smollm2-135m")
    provider = wait(open_target(spec, OpenOptions(dtype="float32")))
    assert provider.vocabulary is not None
    injections = ["", "(" + " violet crimson amber" * 12 + ")", "(" + " lantern river protocol kettle" * 7 + ")"]
    sentences = ["The mixture bubbled and then turned bright", "She painted the old fence", "At dusk, he saw a"]
    texts = [injection + sentence for injection in injections for sentence in sentences]
    encoded = provider.vocabulary.encode(texts)
    groups = [str(i) for i in range(3) for _ in sentences]
    prompts = [prompt_of("", ids, group) for ids, group in zip(encoded, groups, strict=True)]
    wanted = readout([5, 500, 5000], n_logprobs=30)
    seen = wait(provider.observe(prompts, wanted))
    model = transformers.AutoModelForCausalLM.from_pretrained(paths.model_dir(spec.name), dtype=torch.float32).eval()
    for ids, observation in zip(encoded, seen, strict=True):
        with torch.inference_mode():
            expected = model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1).numpy()
        assert observation.token_ids is not None
        np.testing.assert_allclose(observation.logprobs, np.sort(expected)[::-1][:30], atol=1e-3)
        np.testing.assert_allclose(observation.logprobs, expected[observation.token_ids], atol=1e-3)
        assert observation.mass_low == pytest.approx(np.exp(expected[[5, 500, 5000]]).sum(), rel=1e-3)
    again = wait(provider.observe(prompts, wanted))
    assert [replace(one, latency_s=0).mass_low for one in again] == [one.mass_low for one in seen]
