"""Fixtures of the provider tests."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .llamacpp_server import write_float32_gguf
from .vllm_server import running_vllm


@pytest.fixture(scope="session")
def vllm_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of a real vLLM server that serves `smollm2-135m-vllm`; started once, about a minute."""
    with running_vllm("smollm2-135m-vllm", tmp_path_factory.mktemp("vllm") / "server.log") as base_url:
        yield base_url


@pytest.fixture(scope="session")
def float32_gguf() -> Iterator[Path]:
    """A GGUF file with the very weights that the embedded engine runs; it goes with the session, since it takes 540 MB."""
    with tempfile.TemporaryDirectory() as folder:
        yield write_float32_gguf(Path(folder))
