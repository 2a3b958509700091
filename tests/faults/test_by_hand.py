"""The document on trying the harness on an endpoint that fails, followed word by word."""

from __future__ import annotations

import json
import re
import shlex
import socket
from itertools import pairwise
from pathlib import Path

import pytest

from harness.cli.main import execute

from .asking import Ledger, workplace
from .fault_server import fault_command

DOCUMENT = (Path(__file__).parents[2] / "providers/EXAMPLE.md").read_text().partition("\n## An endpoint that fails\n")[2]
PORT = "8377"


def free_port() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return str(taken.getsockname()[1])


def test_it_works_as_it_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """But for the port, and that it is waited for a hundredth of the time."""
    text = DOCUMENT.replace(PORT, free_port())
    ((name, toml),) = re.findall(r"^`([^`\n]+)`\n\n```toml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (block,) = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    serve, run = (shlex.split(line) for line in block.splitlines())
    assert serve[:2] == ["harness", "serve-faults"]
    with workplace(tmp_path), fault_command(*serve[2:]) as url:
        Path(name).parent.mkdir()
        Path(name).write_text(toml)
        counts = []
        for out in map(str, range(20)):
            code = execute([*run[1:], "--out", out])
            if not Path(out).exists():  # a fault met the opening, such as a redirect
                assert code == 3
                continue
            manifest = json.loads(Path(out, "manifest.json").read_text())
            counts.append(manifest["counts"])
            assert code == (3 if counts[-1]["failed"] else 0)
            assert sum(manifest["failures"].values()) == counts[-1]["failed"]
            if code == 0:
                break
        assert f"{url.removesuffix('v1')}faults" in text
        assert sum(fault is not None for fault in Ledger.of(url).sequence) > 0
    assert "Traceback" not in capsys.readouterr().err
    assert counts[-1]["done"] == counts[-1]["planned"] > 0
    assert counts[0]["from_cache"] == 0
    assert all(later["from_cache"] == before["done"] for before, later in pairwise(counts))
