"""A real vLLM server asked by chat, the prompt prefilled: the distribution of plain transformers after the chat template."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness import paths
from harness.cli.main import execute
from harness.providers.http.opening import open_chat
from harness.providers.http.provider import HttpProvider
from harness.providers.targets import Chat, OpenOptions
from harness.records import Mode, Observation, Readout

from .test_vllm_real import READOUT, TEXTS, K, prompts, wide_lexicon
from .vllm_server import at_address, present_target

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

FORM = Chat(prefill="continue_final_message")


@pytest.fixture(scope="module")
def rendered() -> list[np.ndarray]:
    """All log-probabilities after each prompt as the template renders it, by transformers in float32."""
    import torch
    import transformers

    folder = paths.model_dir("smollm2-135m")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rows = []
    with torch.inference_mode():
        for text in TEXTS:
            turns = [{"role": "user", "content": FORM.opening}, {"role": "assistant", "content": text}]
            ids = tokenizer.apply_chat_template(turns, continue_final_message=True, return_dict=False)
            rows.append(torch.log_softmax(model(torch.tensor([ids])).logits[0, -1].float(), -1).numpy())
    return rows


def observed(url: str, readout: Readout) -> tuple[HttpProvider, list[Observation]]:
    spec = at_address(present_target("smollm2-135m-vllm"), url)
    spec = replace(spec, endpoint=spec.endpoint.model_copy(update={"chat": FORM}))

    async def body() -> tuple[HttpProvider, list[Observation]]:
        provider = await open_chat(spec, OpenOptions())
        try:
            assert provider.vocabulary is not None
            return provider, await provider.observe(prompts(provider.vocabulary, ids=False), readout)
        finally:
            await provider.aclose()

    return asyncio.run(body())


def test_a_prefilled_prompt_is_continued_after_the_template(vllm_url: str, rendered: list[np.ndarray]) -> None:
    provider, seen = observed(vllm_url, READOUT)
    assert provider.batch_size == 1
    assert provider.info.capabilities.max_logprobs == 1000
    gaps = np.abs([row[one.token_ids] - one.logprobs for row, one in zip(rendered, seen, strict=True)])
    print(f"chat, top {K}: mean {gaps.mean():.3f}, 99% {np.quantile(gaps, 0.99):.3f} nat off from transformers float32")
    assert gaps.mean() < 0.1


def test_chosen_ids_work_in_chat_too(vllm_url: str, rendered: list[np.ndarray]) -> None:
    lexicon = wide_lexicon()
    _, seen = observed(vllm_url, Readout(lexicon=lexicon, n_logprobs=K, mode=Mode.EXACT))
    truth = np.log([np.exp(row[lexicon.token_ids]).sum() for row in rendered])
    assert np.abs(np.log([one.mass_low for one in seen]) - truth).mean() < 0.15


@pytest.mark.parametrize(("mode", "metric"), [("exact", "delta_log_odds"), ("sampled", "delta_mass")])
def test_a_whole_run_by_chat_ends_well_and_names_its_mode(
    vllm_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, metric: str
) -> None:
    monkeypatch.setenv("HARNESS_VLLM_URL", vllm_url)
    sizes = ("--pack", "lexical", "--concept", "animal", "--concept", "color", "--limit", "2", "--draws", "16")
    command = ["run", "--target", "smollm2-135m-vllm-chat", "--mode", mode, *sizes, "--out", str(tmp_path / "run")]
    assert execute(command) == 0
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["mode"] == mode
    assert summary["primary"]["metric"] == metric
    assert summary["cost"]["counted_by"] == "endpoint"
    assert f"Mode {mode}" in (tmp_path / "run/report.html").read_text()
