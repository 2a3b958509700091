"""An endpoint that redirects, turns into another model, or dies: the run ends, keeps what was right, and goes on later."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from harness.cli.main import execute
from harness.faults.call import Settings

from .asking import KEY, LEXICON_WORDS, TARGET, Way, answers, declare, truth, wait_for, workplace
from .fault_server import fault_command, fault_process, fault_server

SIZES = ("--concept", "color", "--concept", "number", "--limit", "4")
PLANNED = 2 * (4 + 7 * 4 * 4)
LISTED = 30
OTHER_MODEL = "bad answer: the answer is from another model: 'another-model', not 'fault-model'"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with workplace(tmp_path):
        yield tmp_path


def run(out: str, *more: str) -> int:
    """`harness run` in top-k mode; its exit code."""
    return execute(["run", "--target", TARGET, "--mode", "topk", *SIZES, "--out", out, *more])


def manifest(out: str) -> Any:
    return json.loads(Path(out, "manifest.json").read_text())


def rows(out: str) -> list[dict[str, Any]]:
    """observations.parquet"""
    listed: list[dict[str, Any]] = pq.read_table(Path(out, "observations.parquet")).to_pylist()
    return listed


def trials(out: str) -> bytes:
    return Path(out, "trials.parquet").read_bytes()


def clean_trials(base_url: str, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The trials of a run that starts from nothing, at an endpoint that is well."""
    with monkeypatch.context() as patch:
        patch.setenv("HARNESS_CACHE", "clean-cache")
        assert run("clean") == 0
    assert manifest("clean")["counts"] == {"planned": PLANNED, "done": PLANNED, "failed": 0, "from_cache": 0}
    assert base_url in json.dumps(manifest("clean"))
    return trials("clean")


@pytest.mark.parametrize("status", [302, 307, 308])
def test_an_endpoint_that_redirects_is_refused_when_it_is_opened_and_the_place_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str], status: int
) -> None:
    with fault_server(Settings(rate=1, faults=(f"redirect-{status}",)), LEXICON_WORDS) as server:
        declare(folder, server.base_url, Way())
        assert run("out") == 3
        place = f"{server.elsewhere}/v1/completions"
    told = capsys.readouterr().err
    assert f"error: {server.base_url} cannot be used: HTTP {status} redirects to {place}, which is not followed" in told
    assert KEY not in told
    assert (server.ledger.arrived, server.ledger.arrived_with_key) == (0, 0)
    assert server.ledger.sequence
    assert not Path("out").exists()


@pytest.mark.parametrize("prompts", [1, 16])
def test_no_answer_is_taken_from_a_model_that_takes_the_place_of_ours_half_way(
    folder: Path, monkeypatch: pytest.MonkeyPatch, prompts: int
) -> None:
    with fault_server(Settings(max_logprobs=50), LEXICON_WORDS) as server:
        declare(folder, server.base_url, Way(prompts=prompts, connections=2))
        clean = clean_trials(server.base_url, monkeypatch)
        a_run = len(server.ledger.sequence)
        server.ledger.answered.clear()
        server.settings = replace(server.settings, model_changes_after=a_run + 2 * a_run // 3)
        assert run("changed") == 3
        counts, seen = manifest("changed")["counts"], rows("changed")
        right = {tuple(row["prompt_token_ids"]): row for row in seen if row["error"] is None}
        assert 0 < counts["done"] == len(right) < PLANNED == counts["done"] + counts["failed"]
        assert manifest("changed")["failures"] == {OTHER_MODEL: counts["failed"]}
        assert Counter(row["error"] for row in seen) == {None: counts["done"], OTHER_MODEL: counts["failed"]}
        answered = {ids: n for ids, n in server.ledger.answered.items() if ids in {tuple(r["prompt_token_ids"]) for r in seen}}
        assert answered == dict.fromkeys(right, 1), "those, and only those, that ours answered"
        for ids, row in right.items():
            likeliest = np.sort(truth(ids))[::-1][:LISTED]
            np.testing.assert_array_equal(np.array(row["logprobs"], np.float32), likeliest.astype(np.float32))

        server.settings = replace(server.settings, model_changes_after=None)
        assert run("itself") == 0
        assert manifest("itself")["counts"] == {
            "planned": PLANNED,
            "done": PLANNED,
            "failed": 0,
            "from_cache": counts["done"],
        }
        assert trials("itself") == clean


def test_an_endpoint_that_dies_ends_the_run_which_goes_on_once_it_is_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = ("--max-logprobs", "50", "--rate", "1", "--faults", "slow-drip", "--drip-s", "0.2", "--after", "40")
    with fault_process(*slow) as (base_url, process):
        declare(folder, base_url, Way(connections=8))
        journal = folder / "cache/journal" / f"{TARGET}.sqlite"
        killer = threading.Thread(target=lambda: (wait_for(journal, 60), process.kill()))
        killer.start()
        assert run("dead") == 3
        killer.join()
        assert process.wait() != 0
    counts, failures = manifest("dead")["counts"], manifest("dead")["failures"]
    assert 60 <= counts["done"] < PLANNED == counts["done"] + counts["failed"]
    assert sum(failures.values()) == counts["failed"]
    said = ("refused", "the connection broke", "not sent: 8 requests in a row and more got no answer")
    assert all(any(words in reason for words in said) for reason in failures)
    assert any(reason.startswith("not sent") for reason in failures), "the dead are not asked by every prompt"
    assert answers(journal) == counts["done"]
    assert f"incomplete: {counts['failed']} of {PLANNED} prompts failed" in capsys.readouterr().err
    port = base_url.removesuffix("/v1").rpartition(":")[2]
    with fault_command("--rate", "0", "--max-logprobs", "50", "--port", port) as again:
        assert run("back") == 0
        assert manifest("back")["counts"]["from_cache"] == counts["done"]
        assert trials("back") == clean_trials(again, monkeypatch)
