"""The dry run: what would be asked and what it would cost, against sums done by hand, and against what a run then asks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.cli.main import execute
from harness.evals.plan import Choice, clean_prompts, injected_prompts, make_plan, sentences_of
from harness.evals.spec import find_eval
from harness.packs.pack import find_pack

CHOSEN = ("--pack", "lexical", "--concept", "animal", "--limit", "3")
PROMPTS = 3 * (1 + 4 * 3)

ENDPOINT = """
api = "{api}"
base_url = "http://127.0.0.1:9/v1"
key_env = "SHOP_KEY"
{more}
[targets.shop]
model = "m"
"""
PRICES = "prices = { input_per_million = 10.0, output_per_million = 100.0 }\n"
Dry = Callable[..., dict[str, Any]]


@pytest.fixture
def dry(project: Path, capsys: pytest.CaptureFixture[str]) -> Dry:
    """What `--dry-run --json` says of a target whose file holds `more`."""
    (project / "providers").mkdir()

    def run(*argv: str, api: str = "completions", more: str = PRICES) -> dict[str, Any]:
        (project / "providers/shop.toml").write_text(ENDPOINT.format(api=api, more=more))
        assert execute(["run", "--target", "shop", *CHOSEN, *argv, "--dry-run", "--json"]) == 0
        (line,) = capsys.readouterr().out.splitlines()
        said: dict[str, Any] = json.loads(line)
        return said

    return run


def texts() -> list[str]:
    """The prompts that `CHOSEN` asks."""
    plan = make_plan(find_eval("transfer"), find_pack("lexical"), Choice(concepts=("animal",), limit=3))
    concept = plan.pack.concept("animal")
    sentences = sentences_of(plan, concept)
    return [p.text for p in (*clean_prompts(plan, sentences), *injected_prompts(plan, concept, sentences))]


def test_tokens_are_counted_from_characters_where_the_tokenizer_is_not_at_hand(dry: Dry) -> None:
    said = dry()
    assert said["prompts"] == PROMPTS
    assert said["tokens"] == said["input_tokens"] == sum(-(-len(text) // 4) for text in texts())
    assert said["output_tokens"] == PROMPTS
    assert not said["exact"]
    assert said["usd"] == pytest.approx((said["input_tokens"] * 10 + PROMPTS * 100) / 1e6)


def test_prompts_are_packed_into_requests_as_the_file_claims(dry: Dry) -> None:
    """Three clean sentences make one request; the injected ones come in whole injections of three."""
    assert dry(more=PRICES + "claims = { prompts_per_request = 1 }")["requests"] == PROMPTS
    assert dry(more=PRICES + "claims = { prompts_per_request = 6 }")["requests"] == 1 + 36 // 6
    assert dry(more=PRICES + "limits = { prompts_per_request = 64 }")["requests"] == 2


def test_a_conversation_takes_a_request_each_and_carries_its_frame(dry: Dry) -> None:
    plain, said = dry(), dry(api="chat")
    assert said["requests"] == PROMPTS
    assert said["tokens"] == plain["tokens"]
    assert said["input_tokens"] > plain["input_tokens"]


def test_draws_multiply_what_is_written_and_where_need_be_what_is_read(dry: Dry) -> None:
    said = dry("--mode", "sampled", "--draws", "10")
    assert (said["mode"], said["n_draws"], said["requests"]) == ("sampled", 10, PROMPTS)
    assert said["input_tokens"] == said["tokens"]
    assert said["output_tokens"] == PROMPTS * 10 * 6
    one_each = dry("--mode", "sampled", "--draws", "10", api="anthropic")
    assert one_each["requests"] == PROMPTS * 10
    assert one_each["input_tokens"] > 10 * one_each["tokens"]


def test_the_evals_own_number_of_draws_holds_without_an_option(dry: Dry) -> None:
    assert dry(api="anthropic")["n_draws"] == find_eval("transfer").spec.draws


def test_a_batch_costs_its_share(dry: Dry) -> None:
    prices = "prices = { input_per_million = 10.0, output_per_million = 100.0, batch_share = 0.25 }"
    direct, batch = dry(more=prices), dry("--batch", more=prices)
    assert batch["usd"] == pytest.approx(direct["usd"] / 4)
    assert batch["requests"] == PROMPTS, "a line of a job holds one prompt"


def test_prices_that_are_not_declared_are_not_zero(dry: Dry, capsys: pytest.CaptureFixture[str]) -> None:
    assert dry(more="")["usd"] is None
    assert execute(["run", "--target", "shop", *CHOSEN, "--dry-run"]) == 0
    told = capsys.readouterr()
    assert "price not declared" in told.out
    assert "0.00" not in told.out
    assert execute(["run", "--target", "scripted", *CHOSEN, "--dry-run"]) == 0
    assert "0.00 USD" in capsys.readouterr().out


def test_the_minutes_limits_say_how_fast_it_can_be_at_best(dry: Dry) -> None:
    assert dry()["seconds"] is None
    limits = "limits = { requests_per_minute = 6, prompts_per_request = 64 }"
    assert dry(more=limits)["seconds"] == pytest.approx(2 / 6 * 60)
    tokens = dry(more="limits = { tokens_per_minute = 100 }")
    assert tokens["seconds"] == pytest.approx((tokens["input_tokens"] + tokens["output_tokens"]) * 60 / 100)


def test_a_mode_that_only_opening_tells_is_said_to_be_assumed(dry: Dry) -> None:
    assert dry()["mode_assumed"]
    assert not dry("--mode", "topk")["mode_assumed"]
    assert not dry(more="claims = { logprobs = 5 }")["mode_assumed"]


def test_the_rate_of_an_earlier_run_says_how_long(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    argv = ["run", "--target", "scripted", *CHOSEN]
    assert execute([*argv, "--out", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    assert execute([*argv, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["seconds"] > 0
