"""`harness targets` as a user types it: what is listed, what a check prints, how it ends."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from harness.cli.main import execute
from harness.providers.targets import all_targets

from ..providers.stub_server import StubServer
from ..providers.test_endpoint_run import serving

ENDPOINT = """
api = "completions"
base_url_env = "STUB_URL"
description = "a stub"
claims = { token_ids = true, logprobs = 40, draws_per_request = 128, prompts_per_request = 4 }
[limits]
attempts = 1
timeout_s = 2
prompts_per_request = 4
[targets.stub]
model = "stub-model"
"""


@pytest.fixture
def stub(project: Path, monkeypatch: pytest.MonkeyPatch) -> StubServer:
    (project / "providers").mkdir()
    (project / "providers/stub.toml").write_text(ENDPOINT)
    server = StubServer()
    monkeypatch.setenv("STUB_URL", "http://127.0.0.1:9/v1")
    return server


def test_the_table_marks_the_claims_that_do_not_hold(
    stub: StubServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.takes_many = False
    with serving(stub):
        monkeypatch.setenv("STUB_URL", stub.base_url)
        assert execute(["targets", "check", "stub"]) == 0
    told = capsys.readouterr()
    marked = [line.split("  ")[0] for line in told.out.splitlines() if "DOES NOT HOLD" in line]
    assert marked == ["token ids in", "prompts a request"]
    assert re.search(r"^top-k limit +40 +40 +holds *$", told.out, re.MULTILINE)
    assert re.search(r"^draws a request +128 +128 +holds *$", told.out, re.MULTILINE)
    assert re.search(r"^modes +topk, sampled *$", told.out, re.MULTILINE)
    assert "note: one prompt a request, more are refused: HTTP 400: prompt must be a string" in told.err
    assert "note:" not in told.out


def test_json_holds_the_record_and_the_rows(
    stub: StubServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(stub):
        monkeypatch.setenv("STUB_URL", stub.base_url)
        assert execute(["targets", "check", "stub", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["capabilities"]["findings"]["list"].startswith("raw")
    rows = {row["question"]: row for row in record["checks"]}
    assert rows["token ids in"] == {"question": "token ids in", "declared": "yes", "found": "no", "holds": False}
    assert rows["modes"]["found"] == "topk, sampled"


def test_an_endpoint_that_is_not_there_ends_in_3_and_a_wrong_name_in_2(
    stub: StubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    del stub
    assert execute(["targets", "check", "stub"]) == 3
    assert "nothing answers at http://127.0.0.1:9/v1" in capsys.readouterr().err
    assert execute(["targets", "check", "stubb"]) == 2
    assert "did you mean 'stub'?" in capsys.readouterr().err


def test_a_target_without_an_endpoint_has_fewer_rows(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["targets", "check", "scripted"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[1:]] == [
        "reachable",
        "model",
        "revision",
        "token ids in",
        "top-k limit",
        "prompts a request",
        "modes",
    ]


def test_targets_are_listed_by_endpoint_and_one_endpoint_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["targets", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert len(lines) == len(all_targets()) >= 40
    endpoints = [line.split()[0] for line in lines]
    assert endpoints == sorted(endpoints)
    assert execute(["targets", "list", "--endpoint", "anthropic"]) == 0
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]} == {"anthropic"}
    assert execute(["targets", "list", "--endpoint", "antropic"]) == 2
    assert "did you mean 'anthropic'?" in capsys.readouterr().err


def test_show_tells_what_holds_for_a_target(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["targets", "show", "gpt-4.1-mini-responses"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["api"], shown["claims"]["logprobs"], shown["chat"]["prefill"]) == ("responses", 20, "none")
