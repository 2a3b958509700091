"""The document on adding a target and a provider, followed word by word."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from harness.cli.main import execute

from .stub_server import StubServer
from .test_endpoint_run import serving

DOCUMENT = Path(__file__).parents[2] / "providers/EXAMPLE.md"
FILES = dict(re.findall(r"^`([^`\n]+)`\n\n```\w+\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL))
COMMANDS = [block.splitlines() for block in re.findall(r"^```sh\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)]


@pytest.fixture
def written(project: Path) -> Path:
    """A project with every file of the document."""
    for name, text in FILES.items():
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_text(text)
    return project


def out_of(command: str, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """What a command of the document prints on stdout."""
    program, *argv = shlex.split(command)
    assert program == "harness"
    assert execute([*argv, *more]) == 0
    return capsys.readouterr().out


def test_a_target_is_added_by_one_file(
    written: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (written / "providers/coin.toml").unlink()
    stub = StubServer(max_logprobs=50, key="secret")
    monkeypatch.setenv("MY_SERVER_KEY", "secret")
    listing, check, run = COMMANDS[0]
    with serving(stub):
        monkeypatch.setenv("MY_SERVER_URL", stub.base_url)
        assert "the model I look after" in out_of(listing, capsys)
        table = out_of(check, capsys)
        assert re.search(r"top-k limit +50 +50 +holds", table)
        assert "DOES NOT HOLD" not in table
        (summary,) = out_of(run, capsys, "--json", "--out", "out").splitlines()
    assert json.loads(summary)["cells"]
    manifest = json.loads((written / "out/manifest.json").read_text())
    assert (manifest["target"], manifest["model"], manifest["counts"]["failed"]) == ("my-model", "stub-model", 0)
    assert manifest["capabilities"]["findings"]["top-k limit"] == "50"
    assert "secret" not in "".join(path.read_text(errors="replace") for path in (written / "out").iterdir())


def test_a_provider_is_added_by_one_entry_point(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install, listing, check, run = COMMANDS[1]
    assert install == "pip install ./coin"
    site = tmp_path / "site"
    offline = ("--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--target", str(site))
    subprocess.run([sys.executable, "-m", *shlex.split(install), *offline], check=True, cwd=written)
    monkeypatch.syspath_prepend(str(site))
    assert "four words, equally likely" in out_of(listing, capsys)
    assert re.search(r"top-k limit +4\b", out_of(check, capsys))
    (summary,) = out_of(run, capsys, "--json", "--out", "out").splitlines()
    assert {cell["arm"] for cell in json.loads(summary)["cells"]}
    manifest = json.loads((written / "out/manifest.json").read_text())
    assert manifest["settings"] == {"words": [" cat", " dog", " red", " blue"]}
