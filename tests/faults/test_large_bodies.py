"""A body of 100 MB, whatever way it comes, is given up long before it is read."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
import urllib.request
from pathlib import Path

import pytest

from harness.evals.plan import Choice, clean_prompts, sentences_of
from harness.lexicon import resolve
from harness.providers.targets import OpenOptions, find_target, open_target
from harness.records import Mode, Observation, Readout

from .asking import OPENED_AFTER, TARGET, Ledger, Way, declare, plan_of, workplace
from .fault_server import fault_command

MOST_BYTES = 50_000_000
PROMPTS = 12
ATTEMPTS = 4


def use_up(base_url: str) -> None:
    """Ask until the faults begin."""
    body = json.dumps({"model": "fault-model", "prompt": "the"}).encode()
    for _ in range(OPENED_AFTER - len(Ledger.of(base_url).sequence)):
        request = urllib.request.Request(f"{base_url}/completions", body, {"Content-Type": "application/json"})
        urllib.request.urlopen(request).close()


async def observed(base_url: str) -> tuple[list[Observation], int]:
    """What comes of a few prompts to an endpoint whose every answer is huge, and the most memory that it took."""
    provider = await open_target(find_target(TARGET), OpenOptions(max_connections=1))
    plan = plan_of(Choice(concepts=("color",)))
    concept = plan.pack.concept("color")
    prompts = list(clean_prompts(plan, sentences_of(plan, concept)))[:PROMPTS]
    readout = Readout(lexicon=resolve(concept, provider.vocabulary, first_token=False), n_logprobs=30, mode=Mode.TOPK)
    use_up(base_url)
    tracemalloc.start()
    try:
        return await provider.observe(prompts, readout), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        await provider.aclose()


@pytest.mark.parametrize("prompts", [1, 32])
def test_it_costs_less_than_half_of_its_size_in_memory(tmp_path: Path, prompts: int) -> None:
    """In three ways: with its length told, without, and packed into a thousandth of it."""
    argv = ("--rate", "1", "--faults", "huge-body", "--after", str(OPENED_AFTER), "--max-logprobs", "50")
    with workplace(tmp_path), fault_command(*argv) as url:
        declare(tmp_path, url, Way(prompts=prompts, connections=1))
        observations, peak = asyncio.run(observed(url))
        n_huge = Ledger.of(url).sequence.count("huge-body")
    assert len(observations) == PROMPTS
    assert {(one.error or "").partition(" than ")[0] for one in observations} == {"the answer is larger"}
    assert n_huge >= ATTEMPTS
    assert peak < MOST_BYTES
