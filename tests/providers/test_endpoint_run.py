"""`harness run` on an endpoint that misbehaves: what failed is recorded, the rest goes on, and only that is asked again."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from harness.cli.main import execute

from .stub_server import Fault, StubServer, hang, poisoned, raw, status

ENDPOINT = """
api = "completions"
base_url_env = "STUB_URL"
description = "a stub"
[limits]
attempts = 1
timeout_s = 0.5
prompts_per_request = 4
[targets.stub]
model = "stub-model"
"""
RUN = ("run", "--pack", "lexical", "--target", "stub", "--concept", "animal", "--limit", "2")
PLANNED = 2 * (1 + 4 * 2)


@contextmanager
def serving(stub: StubServer) -> Iterator[None]:
    """The stub in a thread of its own, so that a whole command can run against it."""
    loop = asyncio.new_event_loop()
    ready, stop = threading.Event(), asyncio.Event()

    async def serve() -> None:
        async with stub.running():
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    ready.wait(10)
    try:
        yield
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def asked(stub: StubServer) -> Counter[str]:
    """How often each prompt was sent."""
    sent = [request["prompt"] for request in stub.requests]
    return Counter(one for prompt in sent for one in (prompt if isinstance(prompt, list) else [prompt]))


def is_bad(prompt: Any) -> bool:
    return "(" in prompt and len(prompt) % 3 == 0


def broken(kind: str) -> Fault:
    return {"500": status(500, "out of cheese"), "garbage": raw("<html>"), "silence": hang}[kind]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("500", "HTTP 500: out of cheese"),
        ("garbage", "the answer is not JSON: '<html>'"),
        ("silence", "no answer within 0.5 s"),
    ],
)
def test_failed_prompts_are_recorded_and_only_they_are_asked_again(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str, reason: str
) -> None:
    (project / "providers").mkdir()
    (project / "providers/stub.toml").write_text(ENDPOINT)
    stub = StubServer(max_logprobs=50, fault=poisoned(is_bad, broken(kind)))
    with serving(stub):
        monkeypatch.setenv("STUB_URL", stub.base_url)
        assert execute([*RUN, "--out", "one"]) == 3
        told = capsys.readouterr().err
        manifest = json.loads((project / "one/manifest.json").read_text())
        counts = manifest["counts"]
        assert counts["planned"] == PLANNED == counts["done"] + counts["failed"]
        assert 0 < counts["failed"] < PLANNED
        assert manifest["failures"] == {reason: counts["failed"]}
        assert f"incomplete: {counts['failed']} of {PLANNED} prompts failed" in told
        rows = pq.read_table(project / "one/observations.parquet").to_pylist()
        failed = {row["prompt"] for row in rows if row["error"] == reason}
        assert sum(row["error"] is not None for row in rows) == counts["failed"]
        assert all(is_bad(prompt) for prompt in failed) or kind == "silence"

        stub.fault = None
        stub.requests.clear()
        assert execute([*RUN, "--out", "two"]) == 0
        again = {prompt: n for prompt, n in asked(stub).items() if prompt in {row["prompt"] for row in rows}}
        assert again == dict.fromkeys(failed, 1)
    manifest = json.loads((project / "two/manifest.json").read_text())
    assert manifest["counts"] == {
        "planned": PLANNED,
        "done": PLANNED,
        "failed": 0,
        "from_cache": PLANNED - counts["failed"],
    }
