"""What `harness targets check` finds at real servers: vLLM by completions and by chat, and llama.cpp's own server."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from harness.providers.checks import Check, checks
from harness.providers.targets import OpenOptions, open_target

from .llamacpp_server import quantised_gguf, running_llamacpp
from .vllm_server import at_address, present_target


def checked(name: str, base_url: str) -> dict[str, Check]:
    spec = at_address(present_target(name), base_url)

    async def body() -> dict[str, Check]:
        provider = await open_target(spec, OpenOptions())
        await provider.aclose()
        assert provider.usage is not None
        assert provider.usage.requests <= 20
        return {row.question: row for row in checks(spec, provider.info)}

    return asyncio.run(body())


def assert_common(rows: dict[str, Check]) -> None:
    """Every claim holds; lists are raw, do not move, and show the logits before a bias."""
    assert [row.question for row in rows.values() if row.holds is False] == []
    assert rows["list"].found == "raw: the same at temperatures 0, 0.5 and 1"
    assert float(rows["repeatability"].found.split()[0]) < 0.2
    assert rows["logit_bias"].found in ("300; the list stands before it", "1000; the list stands before it")
    assert rows["tokens named by"].found == "id"


@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_vllm_by_completions_does_what_its_file_claims(vllm_url: str) -> None:
    rows = checked("smollm2-135m-vllm", vllm_url)
    assert_common(rows)
    assert rows["modes"].found == "exact, topk, amplified, sampled"
    assert rows["BOS"].found == "0 by text, 0 by ids"  # SmolLM2's tokenizer puts none before a text
    assert {rows[name].found for name in ("top-k limit", "chosen ids", "prompts a request")} == {"1000", "128", "64"}


@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_vllm_by_chat_continues_a_prefilled_text(vllm_url: str) -> None:
    rows = checked("smollm2-135m-vllm-chat", vllm_url)
    assert_common(rows)
    assert rows["prefill"].found == "yes: the text is continued"
    assert rows["template"].found.startswith("39 tokens with the text; digest ")
    assert rows["modes"].found == "exact, topk, amplified, sampled"


@pytest.mark.servers
@pytest.mark.timeout(600)
def test_llamacpp_does_what_its_file_claims(tmp_path: Path) -> None:
    with running_llamacpp(quantised_gguf(), tmp_path / "server.log") as address:
        rows = checked("smollm2-135m-llamacpp", f"{address}/v1")
    assert_common(rows)
    assert rows["draws a request"].found == "4"
    assert rows["logit_bias"].found.startswith("1000;")
    assert rows["modes"].found == "topk, amplified, sampled"
