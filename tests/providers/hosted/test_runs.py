"""Whole `harness run` commands against a service on this machine: what each API shows, and what models that refuse come to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from harness.cli.main import execute
from harness.packs.concepts import find_concept
from harness.providers.targets import Chat

from .conftest import KEY
from .hosted_answers import Body, drawn, top
from .hosted_server import HostedServer

SIZES = ("--pack", "few", "--limit", "1")
PLANNED = 1 + 4
N_DRAWS = 64


def run(target: str, *beside: str, out: str = "out") -> int:
    return execute(["run", "--target", target, *SIZES, "--out", out, *beside])


def rows(home: Path, out: str = "out") -> list[dict[str, Any]]:
    """The observations of a written run, each answered."""
    table: list[dict[str, Any]] = pq.read_table(home / out / "observations.parquet").to_pylist()
    assert len(table) == PLANNED
    assert [row["error"] for row in table] == [None] * PLANNED
    return table


def manifest(home: Path, out: str = "out") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((home / out / "manifest.json").read_text())
    return found


def told(text: str) -> str:
    """What a model reads that is told to continue."""
    return Chat().instruction.replace("{text}", text)


def hits(asked: str) -> int:
    """How many of the draws after `asked` are animals."""
    words = find_concept("animal").words
    return sum(drawn(asked, number).strip() in words for number in range(N_DRAWS))


@pytest.mark.parametrize(
    ("target", "path", "n_listed"),
    [("chat", "/v1/chat/completions", 20), ("completions", "/v1/completions", 5), ("responses", "/v1/responses", 20)],
)
def test_a_run_on_openai_reads_the_longest_list_that_the_api_gives(
    at_home: Path, hosted: HostedServer, target: str, path: str, n_listed: int
) -> None:
    hosted.refuse = lambda where, _body: None if where == path else (404, "no such path")
    assert run(target) == 0
    for row in rows(at_home):
        expected = top(row["prompt"] if target == "completions" else told(row["prompt"]), n_listed)
        assert row["mode"] == "topk"
        assert row["tokens"] == [token for token, _ in expected]
        np.testing.assert_allclose(row["logprobs"], [value for _, value in expected], rtol=1e-5)
        assert 0 <= row["mass_low"] <= row["mass_high"] <= 1
    found = manifest(at_home)
    assert found["capabilities"]["mode"] == "topk"
    assert found["capabilities"]["max_logprobs"] == n_listed
    assert all(headers["Authorization"] == f"Bearer {KEY}" for headers in hosted.headers)


def plain_claude(path: str, body: Body) -> tuple[int, str] | None:
    """A model that takes prefill and temperature; the API's own rules."""
    del path
    if "logprobs" in body or "n" in body:
        return 400, "Extra inputs are not permitted"
    last = body["messages"][-1]
    if last["role"] == "assistant" and last["content"] != last["content"].rstrip():
        return 400, "messages: final assistant content cannot end with trailing whitespace"
    return None


def new_claude(path: str, body: Body) -> tuple[int, str] | None:
    """A model that takes neither."""
    if body["messages"][-1]["role"] == "assistant":
        return 400, "This model does not support assistant message prefill. The conversation must end with a user message."
    if "temperature" in body:
        return 400, "`temperature` is deprecated for this model."
    return plain_claude(path, body)


def test_claude_is_drawn_from_behind_a_prefilled_text(at_home: Path, hosted: HostedServer) -> None:
    hosted.refuse = plain_claude
    assert run("claude") == 0
    asked = hosted.bodies["/v1/messages"]
    assert all(body["temperature"] == 1.0 for body in asked)
    for row in rows(at_home):
        assert row["mode"] == "sampled"
        assert row["n_draws"] == N_DRAWS
        assert row["hits"] == hits(row["prompt"])
    assert sum(body["max_tokens"] == 6 for body in asked) >= PLANNED * N_DRAWS
    assert manifest(at_home)["capabilities"]["modes"] == ["sampled"]
    assert all(headers["x-api-key"] == KEY and headers["anthropic-version"] == "2023-06-01" for headers in hosted.headers)
    assert not any("Authorization" in headers for headers in hosted.headers)


def test_a_claude_that_refuses_prefill_and_temperature_is_told_and_the_run_says_so(
    at_home: Path, hosted: HostedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    hosted.refuse = new_claude
    assert run("claude") == 0
    for row in rows(at_home):
        assert row["hits"] == hits(told(row["prompt"]))
    said = capsys.readouterr().err
    assert "a last assistant message is refused" in said
    assert "a temperature is refused" in said
    assert "no log-probabilities are given, answers are drawn" in said


def reasoning(path: str, body: Body) -> tuple[int, str] | None:
    """A model of the o-series, in OpenAI's words."""
    del path
    if "max_tokens" in body:
        return 400, "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    if body.get("logprobs") or "include" in body:
        return 403, "You are not allowed to request logprobs from this model."
    if "temperature" in body:
        return (
            400,
            "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value is supported.",
        )
    if "top_p" in body:
        return 400, "Unsupported parameter: 'top_p' is not supported with this model."
    return None


@pytest.mark.parametrize("target", ["chat", "responses"])
def test_a_reasoning_model_that_gives_no_lists_is_drawn_from(
    at_home: Path, hosted: HostedServer, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    hosted.refuse = reasoning
    assert run(target) == 0
    for row in rows(at_home):
        assert row["mode"] == "sampled"
        assert row["hits"] == hits(told(row["prompt"]))
    assert "not allowed to request logprobs" in capsys.readouterr().err


def test_a_model_that_refuses_everything_is_an_error_with_its_words(
    at_home: Path, hosted: HostedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    hosted.refuse = lambda _path, _body: (400, "Your organization must be verified to use this model.")
    assert run("chat") == 2
    assert "must be verified" in capsys.readouterr().err
    assert not (at_home / "out").exists()
