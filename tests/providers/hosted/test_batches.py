"""`harness run --batch` through the vendors' own clients: what is submitted, what comes back, and what a kill leaves behind."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest

from harness.cli import batches
from harness.cli.main import execute
from harness.evals.plan import Choice, make_plan
from harness.evals.spec import find_eval
from harness.packs.pack import find_pack
from harness.providers.http.ledger import read_id
from harness.records import Mode
from harness.reports.run import journal_path

from .conftest import KEY
from .hosted_answers import Body, said
from .hosted_server import HostedServer

SIZES = ("--pack", "few", "--limit", "1")
PLANNED = 1 + 4
N_DRAWS = 64
N_LINES = {"chat": PLANNED, "completions": PLANNED, "responses": PLANNED, "claude": PLANNED * N_DRAWS}
URLS = {"chat": "/v1/chat/completions", "completions": "/v1/completions", "responses": "/v1/responses"}
MEASURED = ("prompt", "mode", "tokens", "logprobs", "mass_low", "mass_high", "hits", "n_draws", "bias", "error")
TARGETS = ("chat", "completions", "responses", "claude")


def run(target: str, *beside: str, out: str = "out") -> int:
    return execute(["run", "--target", target, *SIZES, "--out", out, *beside])


def batch(target: str, out: str = "out") -> int:
    return run(target, "--batch", out=out)


def measured(home: Path, out: str = "out") -> list[tuple[Any, ...]]:
    rows: list[dict[str, Any]] = pq.read_table(home / out / "observations.parquet").to_pylist()
    return [tuple(str(row[name]) for name in MEASURED) for row in rows]


def cost(home: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((home / "out/summary.json").read_text())["cost"]
    return found


def asked(server: HostedServer) -> int:
    """How many requests were answered, the lines of batches among them."""
    return sum(map(len, server.bodies.values()))


def lines_of(server: HostedServer) -> list[Body]:
    return [line for lines in server.lines.values() for line in lines]


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_submitted_is_collected_by_the_same_command_and_equals_direct_answers(
    at_home: Path,
    hosted: HostedServer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    target: str,
) -> None:
    assert batch(target) == 3
    assert "submitted with" in capsys.readouterr().err
    assert batch(target) == 3  # nothing is ready, and nothing is submitted again
    assert "the same command later collects" in capsys.readouterr().err
    assert len(hosted.jobs) == 1
    assert len(lines_of(hosted)) == N_LINES[target]
    assert not (at_home / "out").exists()
    hosted.finish()
    before = asked(hosted)
    assert batch(target) == 0
    assert asked(hosted) - before < 20  # the questions of the check, and no prompt
    assert len(hosted.jobs) == 1
    collected = measured(at_home)
    assert len(collected) == PLANNED

    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "another cache"))
    hosted._drawn.clear()
    assert run(target, out="direct") == 0
    assert collected == measured(at_home, "direct")


def test_lines_are_what_the_batch_api_specifies_and_carry_the_key_only_in_its_header(
    at_home: Path, hosted: HostedServer
) -> None:
    for target in URLS:
        hosted.lines.clear()
        assert batch(target) == 3
        direct = Counter(json.dumps(body, sort_keys=True) for body in hosted.bodies.get(URLS[target], []))
        for line in lines_of(hosted):
            assert set(line) == {"custom_id", "method", "url", "body"}
            assert (line["method"], line["url"]) == ("POST", URLS[target])
            name = read_id(line["custom_id"])
            assert name is not None
            assert name[1] == 0
            assert json.dumps(line["body"], sort_keys=True) not in direct
        assert len({line["custom_id"] for line in lines_of(hosted)}) == PLANNED
    del at_home
    assert all(headers["Authorization"] == f"Bearer {KEY}" for headers in hosted.headers)
    sent = {name.lower() for headers in hosted.headers for name in headers}
    assert not {"openai-organization", "openai-project"} & sent
    assert not any(KEY.encode() in content for content in hosted.files.values())


def test_a_batch_is_paid_at_its_share_of_the_price_and_the_check_in_full(at_home: Path, hosted: HostedServer) -> None:
    batch("chat")
    hosted.bodies.clear()
    hosted.finish()
    assert batch("chat") == 0
    bodies = [body for body in hosted.bodies[URLS["chat"]] if body.get("top_logprobs", 0) <= 20]
    lines, check = tokens(bodies[:PLANNED]), tokens(bodies[PLANNED:])
    found = cost(at_home)
    assert (found["input_tokens"], found["output_tokens"]) == (lines[0] + check[0], lines[1] + check[1])
    usd = 0.5 * (2 * lines[0] + 8 * lines[1]) + 2 * check[0] + 8 * check[1]
    assert found["usd"] == pytest.approx(usd / 1e6, abs=1e-6)


def tokens(bodies: list[Body]) -> tuple[int, int]:
    """What the service counts for them."""
    return sum(len(said(body["messages"]).split()) for body in bodies), sum(body.get("n", 1) for body in bodies)


def shuffled(lines: list[Body]) -> list[Body]:
    return random.Random(1).sample(lines, len(lines))


def doubled(lines: list[Body]) -> list[Body]:
    """Every line twice; the later copies say something else."""
    later = json.loads(json.dumps(lines).replace(" dog", " cow"))
    return lines + later


def strangers(lines: list[Body]) -> list[Body]:
    """Lines of somebody else's, and one that is no line."""
    return [{**lines[0], "custom_id": "request-1"}, {"neither": "this"}, *lines]


@pytest.mark.parametrize("target", ["chat", "claude"])
@pytest.mark.parametrize("spoil", [shuffled, doubled, strangers])
def test_order_copies_and_strangers_do_not_matter(
    at_home: Path, hosted: HostedServer, target: str, spoil: Callable[[list[Body]], list[Body]]
) -> None:
    if target == "claude" and spoil is strangers:
        spoil = lambda lines: [{**lines[0], "custom_id": "request-1"}, *lines]  # noqa: E731 - the client reads each line
    for out, change in (("plain", None), ("spoilt", spoil)):
        hosted.spoil = change or (lambda lines: lines)
        hosted._drawn.clear()
        os.environ["HARNESS_CACHE"] += out
        assert batch(target, out) == 3
        hosted.finish()
        assert batch(target, out) == 0
    assert measured(at_home, "plain") == measured(at_home, "spoilt")


@pytest.mark.parametrize("target", ["chat", "claude"])
def test_missing_lines_are_submitted_again_and_only_those(at_home: Path, hosted: HostedServer, target: str) -> None:
    batch(target)
    hosted.spoil = lambda lines: lines[:-2]
    hosted.finish()
    hosted.spoil = lambda lines: lines
    assert batch(target) == 3
    first, second = hosted.lines.values()
    assert [line["custom_id"] for line in second] == [line["custom_id"] for line in first[-2:]]
    hosted.finish()
    assert batch(target) == 0
    assert len(measured(at_home)) == PLANNED


@pytest.mark.parametrize(("target", "status"), [("chat", "expired"), ("chat", "failed"), ("claude", "expired")])
def test_what_fails_three_times_is_left_to_direct_requests(
    at_home: Path, hosted: HostedServer, capsys: pytest.CaptureFixture[str], target: str, status: str
) -> None:
    for n_jobs in (1, 2, 3):
        assert batch(target) == 3
        assert len(hosted.jobs) == n_jobs
        hosted.finish(status)
    assert batch(target) == 3
    said = capsys.readouterr().err
    assert f"{PLANNED} prompts failed in 3 rounds" in said
    assert "without --batch" in said
    assert ("Enqueued token limit" if status == "failed" else "expire") in said
    assert len(hosted.jobs) == 3
    assert run(target) == 0
    assert len(measured(at_home)) == PLANNED


def test_a_line_that_is_refused_for_what_it_holds_is_not_submitted_again(
    at_home: Path, hosted: HostedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    batch("chat")
    bad = lines_of(hosted)[2]["body"]
    hosted.refuse = lambda _path, body: (400, "content_policy_violation") if body == bad else None
    hosted.finish()
    assert batch("chat") == 3
    assert len(hosted.jobs) == 1
    said = capsys.readouterr().err
    assert f"{PLANNED - 1} of {PLANNED} prompts answered" in said
    assert "HTTP 400: content_policy_violation" in said
    del at_home


def test_an_answer_of_another_model_is_none(at_home: Path, hosted: HostedServer, capsys: pytest.CaptureFixture[str]) -> None:
    batch("chat")
    hosted.spoil = lambda lines: json.loads(json.dumps(lines).replace("gpt-test-2026-08-06", "gpt-cheap"))
    hosted.finish()
    assert batch("chat") == 3
    assert len(hosted.jobs) == 2
    hosted.spoil = lambda lines: lines
    hosted.finish()
    assert batch("chat") == 0
    assert len(measured(at_home)) == PLANNED
    del capsys


def test_jobs_are_split_at_the_services_limit(at_home: Path, hosted: HostedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.providers.http.batch.OpenAIBatches.max_lines", 2)
    assert batch("chat") == 3
    assert [len(lines) for lines in hosted.lines.values()] == [2, 2, 1]
    hosted.finish()
    assert batch("chat") == 0
    monkeypatch.setenv("HARNESS_CACHE", str(at_home / "cache"))
    size = max(len(json.dumps(line)) for line in lines_of(hosted))
    monkeypatch.setattr("harness.providers.http.batch.OpenAIBatches.max_lines", 50_000)
    monkeypatch.setattr("harness.providers.http.batch.OpenAIBatches.max_bytes", 3 * size)
    hosted.lines.clear()
    assert batch("chat") == 3
    sizes = [len("\n".join(json.dumps(line) for line in lines)) for lines in hosted.lines.values()]
    assert len(sizes) > 1
    assert max(sizes) <= 3 * size


def test_results_on_another_host_are_not_fetched(
    at_home: Path, hosted: HostedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    batch("claude")
    hosted.results_host = "http://127.0.0.1:9/v1"
    hosted.finish()
    assert batch("claude") == 3
    assert "keys are sent to the declared one only" in capsys.readouterr().err
    del at_home


def test_what_has_no_batch_api_is_refused_before_anything_is_sent(
    at_home: Path, hosted: HostedServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert batch("scripted") == 2
    assert "has no batch API" in capsys.readouterr().err
    monkeypatch.setattr("harness.providers.http.batch.find_spec", lambda _name: None)
    assert batch("claude") == 2
    assert "pip install 'transfer-harness[hosted]'" in capsys.readouterr().err
    assert not asked(hosted)
    del at_home


@pytest.mark.parametrize("target", ["chat", "claude"])
def test_a_redirect_is_not_followed_and_nothing_counts_as_submitted(
    at_home: Path, hosted: HostedServer, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    with HostedServer().running() as other:
        hosted.redirect = other.base_url.removesuffix("/v1")
        assert batch(target) == 3
        assert "redirects elsewhere, which is not followed" in capsys.readouterr().err
        assert not other.headers
    hosted.redirect = None
    assert batch(target) == 3
    assert len(hosted.jobs) == 1
    assert KEY not in capsys.readouterr().err
    del at_home


def test_nothing_is_submitted_under_other_settings_while_a_job_is_out(
    at_home: Path, hosted: HostedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    batch("chat")
    file = at_home / "providers/openai.toml"
    file.write_text(file.read_text().replace('api = "chat"', 'api = "chat"\nbody = { seed = 1 }', 1))
    assert batch("chat") == 3
    assert "nothing more is submitted while it is out" in capsys.readouterr().err
    assert len(hosted.jobs) == 1
    hosted.finish()
    assert batch("chat") == 3  # what came back answers other requests; these are asked now
    assert len(hosted.jobs) == 2
    assert all(line["body"]["seed"] == 1 for line in hosted.lines["batch_1"])
    hosted.finish()
    assert batch("chat") == 0
    file.write_text(file.read_text().replace("body = { seed = 1 }", ""))
    assert batch("chat", "before") == 0  # the first job's answers were kept for the settings that they belong to
    assert len(hosted.jobs) == 2


def test_a_second_process_says_so_and_leaves(at_home: Path, hosted: HostedServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert batch("chat") == 3
    journal = journal_path("chat")
    lock = sqlite3.connect(journal.with_suffix(".batch-lock"), isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    try:
        assert batch("chat") == 2
        assert "another process is at work on the batches" in capsys.readouterr().err
    finally:
        lock.close()
    assert batch("chat") == 3
    assert len(hosted.jobs) == 1
    del at_home


@pytest.mark.parametrize(
    ("able", "chosen", "mode"),
    [
        ((Mode.TOPK, Mode.AMPLIFIED, Mode.SAMPLED), None, Mode.TOPK),
        ((Mode.SAMPLED,), None, Mode.SAMPLED),
        ((Mode.EXACT, Mode.TOPK), None, None),
        ((Mode.TOPK, Mode.AMPLIFIED), Mode.AMPLIFIED, Mode.AMPLIFIED),
    ],
)
def test_jobs_are_asked_in_the_best_mode_where_they_can_be_and_nothing_is_amplified(
    able: tuple[Mode, ...], chosen: Mode | None, mode: Mode | None, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = make_plan(find_eval("transfer"), find_pack("lexical"), Choice(concepts=("animal",), limit=1, mode=chosen))
    capabilities = SimpleNamespace(able=lambda: able)
    provider: Any = SimpleNamespace(info=SimpleNamespace(capabilities=capabilities))
    assert batches.pinned(plan, provider).choice.mode is mode
    assert ("not amplified" in capsys.readouterr().err) == (mode is Mode.TOPK)


def killed_at(server: HostedServer, target: str, step: str, reached: Callable[[], bool]) -> None:
    """Run the command and kill it once the server holds back the answer of `step`."""
    server.hold = step
    command = [sys.executable, "-m", "harness", "run", "--target", target, *SIZES, "--batch", "--out", "out"]
    process = subprocess.Popen(command, env=os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not reached():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    server.hold = ""


@pytest.mark.parametrize("target", ["chat", "claude"])
def test_a_process_killed_before_it_knows_its_job_finds_it_again(at_home: Path, hosted: HostedServer, target: str) -> None:
    killed_at(hosted, target, "batches", lambda: bool(hosted.jobs))
    assert batch(target) == 3
    assert len(hosted.jobs) == 1
    hosted.finish()
    assert batch(target) == 0
    assert len(hosted.jobs) == 1
    assert len(measured(at_home)) == PLANNED


def test_a_process_killed_after_its_upload_submits_once(at_home: Path, hosted: HostedServer) -> None:
    killed_at(hosted, "chat", "files", lambda: bool(hosted.files))
    assert not hosted.jobs
    assert batch("chat") == 3
    assert batch("chat") == 3
    assert len(hosted.jobs) == 1
    hosted.finish()
    assert batch("chat") == 0
    assert len(measured(at_home)) == PLANNED


@pytest.mark.parametrize("target", ["chat", "claude"])
def test_a_process_killed_while_it_collects_collects_again(at_home: Path, hosted: HostedServer, target: str) -> None:
    batch(target)
    hosted.finish()
    seen = asked(hosted)
    killed_at(hosted, target, "results", lambda: hosted.held == "results")
    assert batch(target) == 0
    assert len(hosted.jobs) == 1
    assert asked(hosted) - seen < 40
    assert len(measured(at_home)) == PLANNED
