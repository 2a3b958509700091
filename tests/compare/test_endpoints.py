"""Comparisons over HTTP: what two real servers were found to do is checked, counted and told."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness import paths
from harness.compare.asking import Side, first_tokens, first_words
from harness.compare.compare import Settings, compare
from harness.compare.diagnosis import OTHER_WEIGHTS, TEMPLATE
from harness.compare.result import CompareResult
from harness.compare.sentinels import Sentinel
from harness.faults.call import Settings as Server
from harness.faults.server import FaultServer
from harness.providers.targets import Endpoint, OpenOptions, TargetSpec, open_target
from harness.records import Observation, Readout

from ..faults.fault_server import fault_server

SETTINGS = Settings(n_prompts=12, n_near_ties=0, repeats=3, n_draws=60, eval_name=None)
OPENED_AFTER = 35
"""Generation requests that are answered well before faults begin: opening takes fewer."""


def spec(server: FaultServer, folder: Path, **endpoint: Any) -> TargetSpec:
    server.tokens.write(folder)
    declared = Endpoint.model_validate(
        {
            "api": "completions",
            "base_url": server.base_url,
            "limits": {"attempts": 1, "prompts_per_request": 4},
            "targets": {"t": {"model": server.settings.model, "tokenizer": str(folder)}},
        }
        | endpoint
    )
    found = paths.Found(name="faults", path=Path("providers/faults.toml"), origin="project")
    return TargetSpec(name="t", target=declared.targets["t"], endpoint_name="faults", endpoint=declared, found=found)


async def ask(specs: tuple[TargetSpec, TargetSpec]) -> CompareResult:
    async with AsyncExitStack() as stack:
        sides = []
        for name, one in zip("AB", specs, strict=True):
            provider = await open_target(one, OpenOptions())
            stack.push_async_callback(provider.aclose)
            sides.append(Side(name=name, spec=one, provider=provider))
        return await compare(sides[0], sides[1], SETTINGS)


def compared(
    folder: Path, a: Server, b: Server, *, endpoint_a: dict[str, Any] | None = None, endpoint_b: dict[str, Any] | None = None
) -> tuple[CompareResult, int]:
    """The result, and how many generation requests both servers got."""
    with ExitStack() as stack:
        servers = [stack.enter_context(fault_server(settings)) for settings in (a, b)]
        specs = [spec(one, folder, **(extra or {})) for one, extra in zip(servers, (endpoint_a, endpoint_b), strict=True)]
        result = asyncio.run(ask((specs[0], specs[1])))
        return result, sum(len(one.ledger.sequence) for one in servers)


def checks(result: CompareResult) -> dict[str, str]:
    return {one.name: one.agreement for one in result.checks}


def test_two_servers_of_one_model_are_equivalent_and_every_request_is_counted(tmp_path: Path) -> None:
    result, n_generations = compared(tmp_path, Server(), Server())
    assert result.decision == "equivalent"
    told = checks(result)
    assert {told[name] for name in ("BOS", "template", "list", "prompt tokens", "model", "tokenizer", "repeats")} == {"same"}
    assert n_generations < result.n_requests < n_generations + 20  # those that ask for models, versions and tokens


def test_another_model_behind_the_address_is_different(tmp_path: Path) -> None:
    result, _ = compared(tmp_path, Server(model="newer-model"), Server())
    assert result.decision == "different"
    assert checks(result)["model"] == "differs"
    assert result.diagnoses[0].cause == OTHER_WEIGHTS


def test_a_conversation_against_a_completion_is_told_by_its_template(tmp_path: Path) -> None:
    result, _ = compared(tmp_path, Server(version="0.30"), Server(version="0.30"), endpoint_a={"api": "chat"})
    assert result.decision == "different"
    assert checks(result)["template"] == "differs"
    assert result.diagnoses[0].cause == TEMPLATE


def test_an_endpoint_that_fails_half_of_the_time_leaves_it_open(tmp_path: Path) -> None:
    broken = Server(rate=0.5, faults=("500",), after=OPENED_AFTER)
    alone = {"limits": {"attempts": 1, "prompts_per_request": 1}}
    result, _ = compared(tmp_path, broken, Server(), endpoint_a=alone)
    assert result.decision == "inconclusive"
    assert any("answers of A: they failed" in line for line in result.unseen)
    assert checks(result)["answers that failed"] == "differs"


@pytest.mark.parametrize(
    ("model", "decisions"), [("fault-model", {"equivalent", "inconclusive"}), ("newer-model", {"different"})]
)
def test_an_endpoint_without_log_probabilities_is_held_against_the_others(
    model: str, decisions: set[str], tmp_path: Path
) -> None:
    result, _ = compared(tmp_path, Server(model=model), Server(), endpoint_a={"claims": {"logprobs": 0}})
    assert result.identity is not None
    assert result.identity.statistic == "share against probability"
    assert result.decision in decisions


async def drawn(one: TargetSpec, readout: Readout) -> Observation:
    provider = await open_target(one, OpenOptions())
    try:
        side = Side(name="A", spec=one, provider=provider)
        (seen,) = await side.observe(side.prompts([Sentinel(prompt_id="p", text="the colour is", kind="plain")]), readout)
        return seen
    finally:
        await provider.aclose()


def test_single_tokens_come_as_they_are_spelled_and_words_as_a_whole(tmp_path: Path) -> None:
    with fault_server() as server:
        declared = spec(server, tmp_path)
        tokens = asyncio.run(drawn(declared, first_tokens(200)))
        words = asyncio.run(drawn(declared, first_words(200)))
        truth = server.model.after(server.tokens.encode("the colour is")).logprobs()
    assert tokens.n_draws == words.n_draws == 200
    assert set(tokens.tokens) <= set(server.tokens.texts)
    likely = {server.tokens.texts[i] for i in np.argsort(-truth)[:3]}
    assert likely <= set(tokens.tokens)
    assert all(word == word.strip().casefold() for word in words.tokens)
