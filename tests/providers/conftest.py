"""Fixtures of the provider tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .vllm_server import running_vllm


@pytest.fixture(scope="session")
def vllm_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of a real vLLM server that serves `smollm2-135m-vllm`; started once, about a minute."""
    with running_vllm("smollm2-135m-vllm", tmp_path_factory.mktemp("vllm") / "server.log") as base_url:
        yield base_url
