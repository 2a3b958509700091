"""A real vLLM, as a server and in a process of its own, against plain transformers on the same weights."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import logit

from harness import paths
from harness.providers.http.opening import open_completions as open_provider
from harness.providers.http.provider import HttpProvider
from harness.providers.targets import OpenOptions
from harness.providers.vocabulary import Vocabulary
from harness.records import Lexicon, Mode, Observation, Prompt, Readout
from harness.stats.draws import log_odds_of_draws

from .vllm_server import ROOT, at_address, present_target, vllm_environment, vllm_python

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

K = 30
READOUT = Readout(lexicon=Lexicon(concept="c", words=frozenset(), token_ids=None, resolved_share=None, digest=""), n_logprobs=K)
TEXTS = (
    "The capital of France is",
    "My dog likes to",
    "He drove all night until he reached",
    "She looked at the clock and saw that it was",
    "At the bottom of the sea lives a",
    "The doctor told him to take two",
    "When the rain stopped, the children ran to the",
    "In the garden they planted roses and",
    "(river lake pond stream) The boat went down the",
    "(seven nine twelve forty) There were exactly",
    "For breakfast we had bread with",
    "The old violin belonged to his",
    "Water boils at one hundred",
    "The painter mixed blue and yellow to get",
    "On the table stood a",
    "The train to Berlin leaves at",
    "He was so angry that he",
    "The king and the",
    "To open the door you need a",
    "It was a cold day in",
)


def prompts(vocabulary: Vocabulary, *, ids: bool = True) -> list[Prompt]:
    return [
        Prompt(
            prompt_id=str(place),
            concept="c",
            arm="clean",
            sentence_id=str(place),
            injection_id="",
            template="plain",
            group="",
            text=text,
            token_ids=encoded if ids else None,
        )
        for place, (text, encoded) in enumerate(zip(TEXTS, vocabulary.encode(TEXTS), strict=True))
    ]


@pytest.fixture(scope="module")
def weights() -> Path:
    present_target("smollm2-135m-vllm")
    return paths.cache_dir() / "models" / "smollm2-135m"


@pytest.fixture(scope="module")
def plain(weights: Path) -> dict[str, list[np.ndarray]]:
    """All log-probabilities after each prompt, by dtype: one plain forward pass of transformers for each prompt."""
    import torch
    import transformers

    vocabulary = Vocabulary.load(weights)
    found: dict[str, list[np.ndarray]] = {}
    for dtype in ("float32", "bfloat16"):
        model = transformers.AutoModelForCausalLM.from_pretrained(weights, dtype=getattr(torch, dtype))
        with torch.inference_mode():
            rows = [model(torch.tensor([ids])).logits[0, -1].float() for ids in vocabulary.encode(TEXTS)]
        found[dtype] = [torch.log_softmax(row, -1).numpy() for row in rows]
    return found


def gaps(rows: list[np.ndarray], seen: list[Observation]) -> np.ndarray:
    """|difference| in nats of each listed log-probability, (n_prompts, K)."""
    return np.abs([row[one.token_ids] - one.logprobs for row, one in zip(rows, seen, strict=True)])


def assert_whole(seen: list[Observation], rows: list[np.ndarray], tolerance: float) -> None:
    """Every prompt has its K likeliest tokens, ranked: nothing likelier by more than `tolerance` was left out."""
    for one, row in zip(seen, rows, strict=True):
        assert one.error is None
        assert one.token_ids is not None
        assert len(one.token_ids) == K
        assert np.all(np.diff(one.logprobs) <= 0)
        assert one.covered_mass == pytest.approx(np.exp(one.logprobs.astype(float)).sum(), abs=1e-6)
        assert np.delete(row, one.token_ids).max() <= one.logprobs[-1] + tolerance


def assert_within_bfloat16_noise(seen: list[Observation], plain: dict[str, list[np.ndarray]]) -> None:
    """vLLM's bfloat16 strays from float32 about as far as transformers' bfloat16 does: 0.05 nat in the mean.

    The largest of 600 differences depends on the processor's kernels (0.3 to 0.9 nat seen), so the 99th percentile is compared.
    """
    exact = plain["float32"]
    likeliest = [np.argsort(-row)[:K] for row in exact]
    noise = np.abs([a[top] - b[top] for a, b, top in zip(exact, plain["bfloat16"], likeliest, strict=True)])
    found = gaps(exact, seen)
    far, far_noise = np.quantile(found, 0.99), np.quantile(noise, 0.99)
    print(f"from float32: vLLM mean {found.mean():.3f}, 99% {far:.3f}, largest {found.max():.3f} nat;", end=" ")
    print(f"transformers bfloat16 mean {noise.mean():.3f}, 99% {far_noise:.3f}, largest {noise.max():.3f} nat")
    assert 0.01 < noise.mean() < 0.1
    assert found.mean() < 1.5 * noise.mean()
    assert far < 2 * far_noise
    assert_whole(seen, exact, tolerance=found.max() + noise.max())


def test_the_server_is_found_to_take_ids_in_batches_and_to_list_a_thousand(vllm_url: str) -> None:
    provider, _ = observed(vllm_url, ids=True)
    found = provider.info.capabilities
    assert found.token_ids
    assert found.max_logprobs is not None
    assert found.max_logprobs >= 1000
    assert found.max_prompts_per_request == provider.batch_size == 64
    assert found.modes[:2] == (Mode.EXACT, Mode.TOPK)
    assert found.chosen_ids == 128
    assert found.notes == ()
    assert provider.info.settings["server_version"]
    assert provider.info.settings["fingerprint"].startswith("vllm-")


def observed(url: str, *, ids: bool = True, readout: Readout = READOUT) -> tuple[HttpProvider, list[Observation]]:
    async def body() -> tuple[HttpProvider, list[Observation]]:
        provider = await open_provider(at_address(present_target("smollm2-135m-vllm"), url), OpenOptions())
        try:
            assert provider.vocabulary is not None
            return provider, await provider.observe(prompts(provider.vocabulary, ids=ids), readout)
        finally:
            await provider.aclose()

    return asyncio.run(body())


def test_the_server_gives_the_distributions_of_plain_transformers(vllm_url: str, plain: Any) -> None:
    _, by_ids = observed(vllm_url, ids=True)
    assert_within_bfloat16_noise(by_ids, plain)
    _, by_text = observed(vllm_url, ids=False)
    assert_within_bfloat16_noise(by_text, plain)


def wide_lexicon(n: int = 300) -> Lexicon:
    """More ids than one request takes, drawn from the whole vocabulary."""
    ids = np.sort(np.random.default_rng(0).choice(49152, n, replace=False)).astype(np.int32)
    return Lexicon(concept="c", words=frozenset({"x"}), token_ids=ids, resolved_share=1.0, digest="wide")


def test_chosen_ids_give_the_lexicons_mass_itself_beside_the_list(vllm_url: str, plain: Any) -> None:
    lexicon = wide_lexicon()
    provider, seen = observed(vllm_url, readout=Readout(lexicon=lexicon, n_logprobs=K, mode=Mode.EXACT))
    assert provider.usage is not None
    assert provider.usage.told
    assert_within_bfloat16_noise(seen, plain)
    masses = np.array([[one.mass_low, one.mass_high] for one in seen])
    assert (masses[:, 0] == masses[:, 1]).all()
    assert all(one.mode is Mode.EXACT for one in seen)
    exact, rounded = (
        np.log([np.exp(row[lexicon.token_ids]).sum() for row in plain[dtype]]) for dtype in ("float32", "bfloat16")
    )
    off, noise = np.abs(np.log(masses[:, 0]) - exact), np.abs(rounded - exact)
    print(f"log of the mass of 300 ids, off from float32: vLLM {off.mean():.3f}, transformers bfloat16 {noise.mean():.3f} nat")
    assert off.mean() < 2 * noise.mean()


def test_draws_with_raised_logits_give_back_the_mass_beneath(vllm_url: str, plain: Any) -> None:
    vocabulary = Vocabulary.load(paths.model_dir("smollm2-135m"))
    words = frozenset({"red", "blue", "green", "white", "black", "yellow"})
    ids = np.array(sorted(i for word in words for i in vocabulary.spellings[word]), np.int32)
    lexicon = Lexicon(concept="c", words=words, token_ids=ids, resolved_share=1.0, digest="colors")
    provider, seen = observed(vllm_url, readout=Readout(lexicon=lexicon, n_logprobs=K, mode=Mode.AMPLIFIED, n_draws=200))
    assert Mode.AMPLIFIED in provider.info.capabilities.modes
    truth = [float(logit(np.exp(row[ids].astype(np.float64)).sum())) for row in plain["bfloat16"]]
    found = [log_odds_of_draws(one.hits, one.n_draws, one.bias) for one in seen]
    share = np.array([one.hits / one.n_draws for one in seen])
    off = (np.array(found) - truth) / np.maximum(1 / np.sqrt(200 * share * (1 - share)), 0.1)
    print(f"logit of the mass ({min(truth):.1f} to {max(truth):.1f}): off by {np.sqrt(np.mean(off**2)):.2f} standard errors")
    assert np.abs(off).max() < 4.5
    assert np.median(np.abs(share - 0.5)) < 0.25, "the bias puts hits near one half"


def test_one_prompt_that_is_too_long_fails_alone(vllm_url: str) -> None:
    async def body() -> list[Observation]:
        provider = await open_provider(at_address(present_target("smollm2-135m-vllm"), vllm_url), OpenOptions())
        try:
            assert provider.vocabulary is not None
            one, two, *_ = prompts(provider.vocabulary)
            long = Prompt(
                prompt_id="long",
                concept="c",
                arm="clean",
                sentence_id="long",
                injection_id="",
                template="plain",
                group="",
                text="",
                token_ids=(5,) * 2000,
            )
            return await provider.observe([one, long, two], READOUT)
        finally:
            await provider.aclose()

    before, failed, after = asyncio.run(body())
    assert before.error is after.error is None
    assert failed.error is not None
    assert "maximum context length" in failed.error


def test_vllm_in_a_process_of_its_own_gives_the_distributions_of_plain_transformers(weights: Path, plain: Any) -> None:
    encoded = Vocabulary.load(weights).encode(TEXTS)
    lexicon = wide_lexicon().token_ids
    assert lexicon is not None
    asked = {"target": "smollm2-135m-offline", "dtype": "float32", "n_logprobs": K, "lexicon": lexicon.tolist()}
    asked["prompts"] = [*encoded, (5,) * 2000]
    script = Path(__file__).with_name("vllm_offline_script.py")
    done = subprocess.run(
        [vllm_python(), str(script)],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        env=vllm_environment() | {"PYTHONPATH": str(ROOT)},
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout)  # and nothing else: vLLM's log goes to stderr
    *seen, too_long = answer["observations"]
    assert answer["settings"]["dtype"] == "float32"
    assert "maximum context length" in too_long["error"]
    observations = [
        Observation(
            token_ids=np.asarray(one["token_ids"], np.int32),
            logprobs=np.asarray(one["logprobs"], np.float32),
            covered_mass=one["covered_mass"],
            mode=Mode.TOPK,
            error=one["error"],
        )
        for one in seen
    ]
    found = gaps(plain["float32"], observations)
    print(f"from float32: vLLM float32 mean {found.mean():.1e}, largest {found.max():.1e} nat")
    assert found.max() < 5e-3
    assert_whole(observations, plain["float32"], tolerance=5e-3)
    masses = [np.exp(row[lexicon].astype(np.float64)).sum() for row in plain["float32"]]
    assert [one["mass"] for one in seen] == pytest.approx(masses, rel=5e-3)
