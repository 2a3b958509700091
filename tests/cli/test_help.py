"""`harness --help` names every verb, and does so without loading what only some of them need."""

from __future__ import annotations

import subprocess
import sys

import pytest

from harness.cli.main import execute


def test_every_verb_is_named_with_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for verb in ("run", "plan", "paper", "gate", "compare", "targets", "packs", "evals", "map", "distill", "intervene"):
        (line,) = [line for line in lines if line.startswith(f"│ {verb} ")]
        assert len(line.strip("│ ").split()) > 3, line


def test_the_command_line_loads_no_model_library() -> None:
    heavy = "{'torch', 'transformers', 'sae_lens', 'vllm', 'openai', 'anthropic', 'pandas'}"
    code = f"import sys, harness.cli.main; print(*({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == []
