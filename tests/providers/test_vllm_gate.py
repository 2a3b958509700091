"""The gate on a real vLLM server asked by chat: the same server passes, one that was given another chat template fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.cli.main import execute

from .vllm_server import running_vllm

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

OTHER_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""The model's own, less the system turn that it writes where none is given."""

SERVED = """
api = "chat"
base_url_env = "HARNESS_VLLM_URL"
[targets.templated]
model = "smollm2-135m"
weights = "smollm2-135m"
[targets.templated.serve]
max_model_len = 1024
flags = ["--enforce-eager", "--generation-config", "vllm", "--chat-template", "{template}"]
"""


def gate(out: str, *more: str) -> int:
    return execute(["gate", "--eval", "regression", "--target", "smollm2-135m-vllm-chat", "--out", out, *more])


def told(folder: Path) -> str:
    found = json.loads((folder / "gate.json").read_text())
    return f"{found['decision']}: {found['score']}, {found['n_requests']} requests"


def test_another_chat_template_is_caught_and_the_same_one_passes(
    vllm_url: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "providers").mkdir()
    (project / "other.jinja").write_text(OTHER_TEMPLATE, encoding="utf-8")
    served = SERVED.replace("{template}", str(project / "other.jinja"))
    (project / "providers/templated.toml").write_text(served, encoding="utf-8")
    monkeypatch.setenv("HARNESS_VLLM_URL", vllm_url)
    assert gate("accepted", "--accept") == 0
    assert gate("same") == 0
    with running_vllm("templated", project / "server.log") as url:
        monkeypatch.setenv("HARNESS_VLLM_URL", url)
        assert gate("other") == 1
    for name in ("same", "other"):
        print(f"{name}: {told(project / name)}")
