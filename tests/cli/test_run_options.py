"""The options of `harness run` that say how a target is asked and when to stop, on whole commands."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from harness.cli.env_file import load_env_file
from harness.cli.main import execute
from harness.errors import UsageError

from ..leaky_server import LeakyServer

ENDPOINT = """
api = "{api}"
base_url_env = "SHOP_URL"
key_env = "SHOP_KEY"
{more}
[limits]
attempts = 1
prompts_per_request = 4
[targets.shop]
model = "m"
"""
PRICES = "prices = { input_per_million = 1000.0, output_per_million = 10000.0 }"
RUN = ("run", "--pack", "lexical", "--target", "shop", "--concept", "animal", "--limit", "3")
PLANNED = 3 * (1 + 4 * 3)


@pytest.fixture
def shop(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with an endpoint file; the address is set once a server runs."""
    (project / "providers").mkdir()
    monkeypatch.delenv("SHOP_KEY", raising=False)
    declare(project)
    return project


def declare(project: Path, *, api: str = "completions", more: str = PRICES) -> None:
    (project / "providers/shop.toml").write_text(ENDPOINT.format(api=api, more=more))


def run(monkeypatch: pytest.MonkeyPatch, server: LeakyServer, *argv: str) -> int:
    monkeypatch.setenv("SHOP_URL", server.base_url)
    return execute([*RUN, *argv])


def read(folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / name).read_text())
    return found


def probes(monkeypatch: pytest.MonkeyPatch, server: LeakyServer) -> int:
    """How many requests of any kind opening the target takes."""
    before = server.received
    monkeypatch.setenv("SHOP_URL", server.base_url)
    assert execute(["targets", "check", "shop"]) == 0
    return server.received - before


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--max-requests", "0"), "--max-requests 0: must be at least 1"),
        (("--max-connections", "0"), "--max-connections 0: must be at least 1"),
        (("--draws", "0"), "--draws 0: must be at least 1"),
        (("--max-cost", "0"), "--max-cost 0: must be above 0"),
        (("--max-cost", "nan"), "--max-cost nan: must be above 0"),
        (("--max-seconds", "-1"), "--max-seconds -1: must be above 0"),
        (("--mode", "guessed"), "guessed"),
        (("--batch", "--max-seconds", "5"), "--max-seconds does not go with --batch"),
        (("--env-file", "nowhere.env"), "nowhere.env: cannot be read"),
    ],
)
@pytest.mark.usefixtures("shop")
def test_an_option_that_makes_no_sense_is_refused(
    capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], message: str
) -> None:
    assert execute([*RUN, *argv]) == 2
    assert message in capsys.readouterr().err


def test_a_limit_on_cost_needs_prices(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    declare(shop, more="")
    assert execute([*RUN, "--max-cost", "1"]) == 2
    told = capsys.readouterr().err
    assert "target 'shop' declares no prices" in told
    assert "hint: set prices.input_per_million" in told


def test_a_run_stops_at_its_number_of_requests_and_goes_on_with_a_higher_one(
    shop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with LeakyServer().running() as server:
        opening = probes(monkeypatch, server)
        server.received = 0
        capsys.readouterr()
        assert run(monkeypatch, server, "--max-requests", str(opening + 5), "--out", "one") == 3
        assert server.received == opening + 5
        told = capsys.readouterr().err
        counts = read(shop / "one", "manifest.json")["counts"]
        assert 0 < counts["done"] < PLANNED == counts["done"] + counts["failed"]
        reason = f"not asked: --max-requests {opening + 5} is reached"
        assert read(shop / "one", "manifest.json")["failures"] == {reason: counts["failed"]}
        assert reason in told
        assert "hint: the same command with a higher limit asks only for those" in told
        assert "Traceback" not in told
        rows = pq.read_table(shop / "one/observations.parquet").to_pylist()
        assert sum(row["error"] is None for row in rows) == counts["done"]

        server.received = 0
        assert run(monkeypatch, server, "--max-requests", "1000", "--out", "two") == 0
        again = read(shop / "two", "manifest.json")["counts"]
        assert again == {"planned": PLANNED, "done": PLANNED, "failed": 0, "from_cache": counts["done"]}
        assert server.received < opening + -(-PLANNED // 3), "only the rest was asked"


def test_a_limit_that_the_probe_alone_reaches_is_told_and_nothing_is_written(
    shop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with LeakyServer().running() as server:
        assert run(monkeypatch, server, "--max-requests", "2", "--out", "one") == 3
        assert server.received == 2
    assert "error: stopped: --max-requests 2 is reached\nhint: the same command with a higher limit" in capsys.readouterr().err
    assert not (shop / "one").exists()


def test_a_run_stops_at_its_cost(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven tokens in and one out for each prompt, as the server counts: 0.017 dollars; the probe counts too."""
    with LeakyServer().running() as server:
        assert run(monkeypatch, server, "--max-cost", "0.6", "--out", "one") == 3
        cost = read(shop / "one", "summary.json")["cost"]
        assert cost["counted_by"] == "endpoint"
        assert cost["usd"] == pytest.approx((cost["input_tokens"] * 1000 + cost["output_tokens"] * 10_000) / 1e6)
        assert 0.3 < cost["usd"] <= 0.6
        assert cost["price"]["input_per_million"] == 1000
        assert run(monkeypatch, server, "--max-cost", "60", "--out", "two") == 0


def test_a_run_stops_when_its_time_is_over(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.evals.budget.GRACE_S", 0.05)
    with LeakyServer(hang_s=60).running() as server:
        assert run(monkeypatch, server, "--max-seconds", "3", "--out", "one") == 3
    failures = read(shop / "one", "manifest.json")["failures"]
    assert failures == {"not asked: --max-seconds 3 is reached": PLANNED}


def test_the_summary_says_what_was_asked_and_that_no_price_is_known(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    declare(shop, more="")
    with LeakyServer().running() as server:
        assert run(monkeypatch, server, "--out", "one") == 0
        sent = server.received
        cost = read(shop / "one", "summary.json")["cost"]
        assert run(monkeypatch, server, "--out", "two") == 0
        again = read(shop / "two", "summary.json")["cost"]
    assert cost["requests"] == sent
    assert (cost["usd"], cost["price"]) == (None, None)
    assert cost["input_tokens"] >= 7 * PLANNED
    assert again["input_tokens"] < 7 * PLANNED, "answers from the journal cost nothing"
    assert "no prices are known" in (shop / "one/report.html").read_text()


def test_tokens_are_counted_here_where_the_endpoint_does_not(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with LeakyServer(tells_usage=False).running() as server:
        assert run(monkeypatch, server, "--out", "one") == 0
    cost = read(shop / "one", "summary.json")["cost"]
    texts = [row["prompt"] for row in pq.read_table(shop / "one/observations.parquet").to_pylist()]
    assert cost["counted_by"] == "harness"
    assert cost["input_tokens"] == sum(-(-len(text) // 4) for text in texts)
    assert cost["output_tokens"] == PLANNED
    assert cost["usd"] == pytest.approx((cost["input_tokens"] * 1000 + PLANNED * 10_000) / 1e6)


def test_mode_and_draws_reach_the_endpoint(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    declare(shop, api="chat")
    with LeakyServer().running() as server:
        assert run(monkeypatch, server, "--mode", "sampled", "--draws", "7", "--out", "one") == 0
    rows = pq.read_table(shop / "one/observations.parquet").to_pylist()
    assert {row["mode"] for row in rows} == {"sampled"}
    assert {row["n_draws"] for row in rows} == {7}


@pytest.mark.parametrize("most", [1, 3])
def test_no_more_connections_than_wanted_are_open(shop: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    declare(shop, api="chat")
    with LeakyServer(hang_s=0.01).running() as server:
        assert run(monkeypatch, server, "--max-connections", str(most), "--out", "one") == 0
        assert server.most_at_once == most


def test_a_batch_that_is_above_a_limit_is_not_sent(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    declare(shop, api="chat")
    os.environ["SHOP_URL"] = "http://127.0.0.1:9/v1"
    try:
        for limit, message in (("--max-cost", "would cost about"), ("--max-requests", f"hold {PLANNED} requests")):
            assert execute([*RUN, "--batch", limit, "0.001" if "cost" in limit else "5"]) == 2
            told = capsys.readouterr().err
            assert message in told
            assert "none was sent" in told
    finally:
        del os.environ["SHOP_URL"]


def test_an_env_file_sets_what_is_not_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_SET", "mine")
    monkeypatch.setenv("TEST_NEW", "x")
    monkeypatch.delenv("TEST_NEW")
    file = tmp_path / "keys.env"
    file.write_text('# comment\nTEST_SET=other\nexport TEST_NEW="a b#c"\n\nTEST_EMPTY=\n')
    load_env_file(file)
    assert os.environ["TEST_SET"] == "mine"
    assert os.environ["TEST_NEW"] == "a b#c"
    monkeypatch.delenv("TEST_EMPTY")


def test_nothing_in_an_env_file_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dollar sign in a key is a dollar sign."""
    monkeypatch.setenv("TEST_NEW", "x")
    monkeypatch.delenv("TEST_NEW")
    (tmp_path / ".env").write_text("TEST_NEW=sk$HOME${PATH}\n")
    load_env_file(tmp_path / ".env")
    assert os.environ["TEST_NEW"] == "sk$HOME${PATH}"


@pytest.mark.parametrize("line", ["just words secret-words", "LONELY_SECRET_NAME", "= secret-value", "A='secret-unclosed"])
def test_a_line_that_is_none_is_named_by_its_number_alone(tmp_path: Path, line: str) -> None:
    (tmp_path / ".env").write_text(f"# first\n{line}\n")
    with pytest.raises(UsageError, match=r"\.env:2: not of the form NAME=value") as caught:
        load_env_file(tmp_path / ".env")
    assert "secret" not in str(caught.value).lower()


def test_an_env_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not UTF-8 text"):
        load_env_file(tmp_path / ".env")
    with pytest.raises(UsageError, match="cannot be read"):
        load_env_file(tmp_path)
