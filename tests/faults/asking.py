"""A plan put to the fault server by the harness's own provider and runner, and everything that came of it."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from harness.evals.analysis import Analysis
from harness.evals.plan import Choice, Plan, count_prompts, make_plan
from harness.evals.runner import Job, Tally, ask_all, make_job
from harness.evals.score import Columns
from harness.evals.spec import find_eval
from harness.evals.trials import scored_batches
from harness.faults.call import Settings
from harness.faults.server import FaultServer
from harness.packs.concepts import concept_names, find_concept
from harness.packs.pack import find_pack
from harness.providers.http import opening
from harness.providers.http.provider import HttpProvider
from harness.providers.http.transport import Transport
from harness.providers.targets import OpenOptions, find_target, open_target
from harness.records import Mode, Observation, Prompt
from harness.store import Journal

KEY = "sk-canary-1f0c9a7e5b"
KEY_ENV = "FAULTS_KEY"
TARGET = "faulty"
TIMEOUT_S = 2.0
LEXICON_WORDS = frozenset(word for name in concept_names() for word in find_concept(name).words)
"""What `harness serve-faults` makes its vocabulary of."""

OPENED_AFTER = 100
"""Generation requests that are answered well before the faults begin: opening takes fewer."""

_HURRY = 100
SCORED_TOGETHER = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How the plan is put: by which api, so many `prompts` a request, in which mode, over so many `connections`."""

    api: str = "completions"
    prompts: int = 1
    mode: Mode = Mode.TOPK
    connections: int = 128
    chosen_ids: int = 128
    draws_per_request: int = 128


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Asked:
    """What one command came to. `seen`: the prompts with what the journal holds for them, in the plan's order.

    `opened_after`: generation requests that the server had got when the target was open. `requests`, `refused`: what the
    provider counted from there on; `ledger`: what the server did.
    """

    plan: Plan
    job: Job
    tally: Tally
    seen: list[tuple[Prompt, Observation]]
    trials: dict[str, NDArray[Any]]
    summary: Mapping[str, Any]
    n_journalled: int
    opened_after: int
    requests: int
    refused: int
    ledger: Ledger

    @property
    def answered(self) -> list[tuple[Prompt, Observation]]:
        """Those with an answer."""
        return [(prompt, one) for prompt, one in self.seen if one.error is None]

    @property
    def failed(self) -> list[tuple[Prompt, Observation]]:
        """Those without."""
        return [(prompt, one) for prompt, one in self.seen if one.error is not None]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Ledger:
    """GET /faults. `sequence`: the fault of each generation request; `answered`: true answers by prompt ids."""

    sequence: list[str | None]
    answered: dict[tuple[int, ...], int]
    arrived_elsewhere: int
    arrived_elsewhere_with_key: int

    @classmethod
    def of(cls, base_url: str) -> Ledger:
        """The ledger of the server at `base_url`."""
        with urllib.request.urlopen(f"{base_url.removesuffix('/v1')}/faults") as response:
            told = json.load(response)
        return cls(
            sequence=told["sequence"],
            answered={tuple(map(int, ids.split())): n for ids, n in told["answered"].items()},
            arrived_elsewhere=told["arrived_elsewhere"],
            arrived_elsewhere_with_key=told["arrived_elsewhere_with_key"],
        )


@cache
def oracle() -> FaultServer:
    """A server that never runs: its vocabulary and its distributions are those of `harness serve-faults`."""
    return FaultServer(LEXICON_WORDS, Settings())


def ids_sent(prompt: Prompt, api: str) -> tuple[int, ...]:
    """What the server makes of the prompt: a text after a BOS, or the last message of a conversation."""
    tokens = oracle().tokens
    if api == "completions":
        return tokens.encode(prompt.text)
    said = [{"role": "user", "content": "Continue the text."}, {"role": "assistant", "content": prompt.text}]
    return tokens.encode_chat(said, generation_prompt=False, open_end=True)


def truth(ids: tuple[int, ...]) -> NDArray[np.float64]:
    """The log-probability of each token after the prompt `ids`."""
    return oracle().model.after(ids).logprobs()


@contextmanager
def workplace(folder: Path) -> Iterator[None]:
    """Work in `folder`, with a cache of its own and a key; every wait that an endpoint asks for takes a hundredth of it."""

    async def hurried(seconds: float) -> None:
        await asyncio.sleep(seconds / _HURRY)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HARNESS_CACHE", str(folder / "cache"))
        patch.setenv(KEY_ENV, KEY)
        patch.setattr(opening, "Transport", partial(Transport, sleep=hurried))
        yield


def declare(folder: Path, base_url: str, way: Way) -> None:
    """Write the target into the project `folder`; the server's tokenizer goes beside it."""
    tokenizer = folder / "tokenizer"
    oracle().tokens.write(tokenizer)
    (folder / "providers").mkdir(exist_ok=True)
    (folder / "providers/faults.toml").write_text(
        f"""
api = "{way.api}"
description = "an endpoint that fails on purpose"
base_url = "{base_url}"
key_env = "{KEY_ENV}"
limits = {{ timeout_s = {TIMEOUT_S}, concurrency = {way.connections}, prompts_per_request = {way.prompts}, max_logprobs = 30 }}
claims = {{ chosen_ids = {way.chosen_ids}, draws_per_request = {way.draws_per_request} }}
chat = {{ prefill = "continue_final_message" }}
[targets.{TARGET}]
model = "fault-model"
tokenizer = "{tokenizer}"
"""
    )


def plan_of(choice: Choice) -> Plan:
    """The default eval on the default pack."""
    return make_plan(find_eval("transfer"), find_pack("embedded"), choice)


async def ask(plan: Plan, base_url: str, way: Way, journal: Path) -> Asked:
    """Open the target at full concurrency, ask what the journal lacks, and score all of it."""
    provider = await open_target(find_target(TARGET), OpenOptions(max_connections=way.connections))
    assert isinstance(provider, HttpProvider)
    assert provider.usage is not None
    try:
        before, usage = Ledger.of(base_url), (provider.usage.requests, provider.usage.refused)
        with Journal(journal) as kept:
            job = make_job(plan, provider, kept)
            tally = Tally(planned=count_prompts(plan))
            await ask_all(job, tally, lambda _: None)
            provider.batch_size = SCORED_TOGETHER  # scoring so many together takes a fraction of the time
            seen, trials, summary = _scored(job)
            after = Ledger.of(base_url)
            return Asked(
                plan=plan,
                job=job,
                tally=tally,
                seen=seen,
                trials=trials,
                summary=summary,
                n_journalled=kept.count(),
                opened_after=len(before.sequence),
                requests=provider.usage.requests - usage[0],
                refused=provider.usage.refused - usage[1],
                ledger=_since(before, after),
            )
    finally:
        await provider.aclose()


def _scored(job: Job) -> tuple[list[tuple[Prompt, Observation]], dict[str, NDArray[Any]], Mapping[str, Any]]:
    """What the journal holds, its trials, and the summary."""
    seen: list[tuple[Prompt, Observation]] = []
    parts: list[Columns] = []
    analysis = Analysis(job.plan, TARGET, job.modes)
    for concept in job.plan.concepts:
        for batch in scored_batches(job, concept, None):
            seen += zip(batch.prompts, batch.observations, strict=True)
            if batch.trials is not None:
                parts.append(batch.trials)
                analysis.add(batch.trials)
        analysis.close_concept(concept)
    trials = {name: np.concatenate([np.asarray(part[name]) for part in parts]) for name in parts[0]}
    return seen, trials, analysis.summary()


def _since(before: Ledger, after: Ledger) -> Ledger:
    """What happened between two looks at one server."""
    answered = {ids: n - before.answered.get(ids, 0) for ids, n in after.answered.items()}
    return Ledger(
        sequence=after.sequence[len(before.sequence) :],
        answered={ids: n for ids, n in answered.items() if n},
        arrived_elsewhere=after.arrived_elsewhere - before.arrived_elsewhere,
        arrived_elsewhere_with_key=after.arrived_elsewhere_with_key - before.arrived_elsewhere_with_key,
    )


def answers(journal: Path) -> int:
    """How many the journal holds."""
    with Journal(journal) as kept:
        return kept.count()


def wait_for(journal: Path, n: int) -> None:
    """Return once so many answers are journalled."""
    deadline = time.monotonic() + 60
    while (not journal.exists() or answers(journal) < n) and time.monotonic() < deadline:
        time.sleep(0.05)
