"""`harness serve-faults` as a user types it."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest

from harness.cli.main import execute
from harness.faults.registry import FAULTS
from harness.packs.concepts import find_concept
from harness.providers.vocabulary import Vocabulary

from .fault_server import fault_command


def fetch(url: str) -> tuple[int, str]:
    async def get() -> tuple[int, str]:
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            return response.status, await response.text()

    return asyncio.run(get())


def test_the_list_names_every_fault_and_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["serve-faults", "--list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in FAULTS)
    assert "two choices with one number" in printed


def test_the_base_url_is_the_first_line_and_ctrl_c_ends_well(tmp_path: Path) -> None:
    argv = ["--rate", "0", "--vllm-version", "0.32.0", "--tokenizer", str(tmp_path / "tokenizer")]
    process = subprocess.Popen(
        [sys.executable, "-m", "harness", "serve-faults", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a background job would ignore it
    )
    try:
        assert process.stdout is not None
        base_url = process.stdout.readline().strip()
        assert json.loads(fetch(f"{base_url}/models")[1])["data"][0]["id"] == "fault-model"
        assert fetch(f"{base_url.removesuffix('/v1')}/version") == (200, '{"version": "0.32.0"}')
    finally:
        process.send_signal(signal.SIGINT)
        rest, told = process.communicate(timeout=30)
    assert process.returncode == 0
    assert rest == ""
    assert "Traceback" not in told
    assert f"{base_url.removesuffix('/v1')}/faults" in told
    vocabulary = Vocabulary.load(tmp_path / "tokenizer")
    for name in ("animal", "weather"):
        assert find_concept(name).words <= vocabulary.spellings.keys(), "each word of a lexicon is one token"


def test_it_serves_faults_by_name_from_a_process_of_its_own() -> None:
    with fault_command("--rate", "1", "--faults", "503", "--after", "1", "--model", "mine") as base_url:

        async def ask() -> list[int]:
            body = {"model": "mine", "prompt": "the", "max_tokens": 1}
            async with aiohttp.ClientSession() as session:
                statuses = []
                for _ in range(3):
                    async with session.post(f"{base_url}/completions", json=body) as response:
                        statuses.append(response.status)
                return statuses

        assert asyncio.run(ask()) == [200, 503, 503]
        told = json.loads(fetch(f"{base_url.removesuffix('/v1')}/faults")[1])
        assert told["sequence"] == [None, "503", "503"]


@pytest.mark.parametrize(
    ("argv", "message", "hint"),
    [
        (("--faults", "500,nann"), "unknown fault 'nann'", "did you mean 'nan'?"),
        (("--faults", ","), "no fault is named", "harness serve-faults --list"),
        (("--rate", "30"), "--rate 30: must be from 0 to 1", ""),
        (("--after", "-1"), "--after -1: must be at least 0", ""),
    ],
)
def test_a_wrong_option_is_named_with_what_helps(
    capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], message: str, hint: str
) -> None:
    assert execute(["serve-faults", *argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert hint in captured.err


def test_a_port_that_is_taken_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with fault_command("--rate", "0") as base_url:
        port = base_url.removesuffix("/v1").rpartition(":")[2]
        assert execute(["serve-faults", "--port", port]) == 2
    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err
