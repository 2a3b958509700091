"""Fixtures: a service on this machine, and a project whose targets are there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.packs.pack import Draft, write_pack
from harness.records import Probe

from .hosted_server import HostedServer

KEY = "sk-test-0123456789"
TARGETS = """
api = "chat"
base_url_env = "HOSTED_URL"
key_env = "HOSTED_KEY"
[limits]
attempts = 2
[prices]
input_per_million = 2.0
output_per_million = 8.0
batch_share = 0.5
[targets.chat]
model = "gpt-test"
[targets.completions]
api = "completions"
model = "davinci-test"
[targets.responses]
api = "responses"
model = "gpt-test"
"""
ANTHROPIC = """
api = "anthropic"
base_url_env = "HOSTED_URL"
key_env = "HOSTED_KEY"
auth = "x-api-key"
headers = { anthropic-version = "2023-06-01" }
[limits]
attempts = 2
[prices]
input_per_million = 3.0
output_per_million = 15.0
[chat]
prefill = "assistant"
[targets.claude]
model = "claude-test"
[targets.claude-told]
model = "claude-test"
chat = { prefill = "none" }
"""

INJECTIONS = {"self": " dog cat", "random": " red Tuesday", "matched": " Paris angry", "related": " farm zoo"}


@pytest.fixture
def hosted() -> Iterator[HostedServer]:
    """The service, running."""
    with HostedServer().running() as server:
        yield server


@pytest.fixture
def at_home(project: Path, hosted: HostedServer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with targets behind `hosted`, and variables of the clients' own that must not count."""
    (project / "providers").mkdir()
    (project / "providers/openai.toml").write_text(TARGETS)
    (project / "providers/anthropic.toml").write_text(ANTHROPIC)
    probes = tuple(
        Probe(concept="animal", arm=arm, injection_id=f"{arm}-0", injection=(text,)) for arm, text in INJECTIONS.items()
    )
    draft = Draft(name="few", description="one injection an arm", claims="nothing", maker="by hand", seed=0, probes=probes)
    write_pack(draft, project / "prompts/packs/few")
    monkeypatch.setenv("HOSTED_URL", hosted.base_url)
    monkeypatch.setenv("HOSTED_KEY", KEY)
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "OPENAI_ORG_ID", "ANTHROPIC_AUTH_TOKEN"):
        monkeypatch.setenv(name, "sk-from-the-environment")
    for name in ("OPENAI_BASE_URL", "ANTHROPIC_BASE_URL", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/elsewhere")
    return project
