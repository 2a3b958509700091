"""What a run is estimated to cost, and that it stops in time: whatever came back is kept, and the rest was never sent."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import paths
from harness.errors import BudgetSpentError
from harness.evals.budget import GRACE_S, Budget, Budgeted, Limits
from harness.evals.expense import Expense, Manner, claimed_manner, found_manner
from harness.providers.scripted import ScriptedProvider
from harness.providers.targets import Endpoint, Prices, TargetSpec
from harness.records import Lexicon, Mode, Observation, Prompt, Readout, Usage

PRICES = Prices(input_per_million=10.0, output_per_million=100.0)
LEXICON = Lexicon(concept="c", words=frozenset({"x"}), token_ids=np.arange(300, dtype=np.int32), resolved_share=1.0, digest="d")
READOUT = Readout(lexicon=LEXICON, n_logprobs=5)


def spec(api: str = "scripted", **endpoint: Any) -> TargetSpec:
    """A target whose endpoint holds `endpoint`."""
    record = Endpoint.model_validate({"api": api, "prices": PRICES.model_dump(), "targets": {"t": {"model": "m"}}} | endpoint)
    found = paths.Found(name="e", path=Path("e.toml"), origin="project")
    return TargetSpec(name="t", target=record.targets["t"], endpoint_name="e", endpoint=record, found=found)


def prompts(n: int, *, text: str = "eight ch") -> list[Prompt]:
    """Prompts of two tokens each."""
    return [
        Prompt(
            prompt_id=str(i),
            concept="c",
            arm="clean",
            sentence_id=str(i),
            injection_id="",
            template="",
            group=str(i),
            text=text,
        )
        for i in range(n)
    ]


class Endpointlike(ScriptedProvider):
    """Sends a request for each prompt, as an endpoint's provider does, and is told what its tokens cost.

    `real`: tokens in and out that each prompt really takes, None where the answers do not say. `retries`: more requests
    for each prompt.
    """

    def __init__(self, budget: Budget, *, real: tuple[int, int] | None = (2, 1), retries: int = 0, **more: Any) -> None:
        super().__init__(lambda _: {" the": 1.0}, batch_size=1, **more)
        self.usage: Usage | None = Usage()
        self.sent = 0
        self.answered = 0
        self._budget, self._real, self._retries = budget, real, retries

    async def observe(self, asked: Sequence[Prompt], readout: Readout) -> list[Observation]:
        assert self.usage is not None
        for _ in range(1 + self._retries):
            self._budget.sending()
            self.usage.requests += 1
            self.sent += 1
        seen = await super().observe(asked, readout)
        if self._real is not None:
            self.usage.told = True
            self.usage.counted += 1
            self.usage.refused += self._retries
            self.usage.input_tokens += self._real[0]
            self.usage.output_tokens += self._real[1]
        self.answered += len(seen)
        return seen


@dataclass
class Outcome:
    """What came of asking until the limit: observations that reached the caller, and the limit that stopped it."""

    received: int
    limit: str | None


def ask(provider: ScriptedProvider, budget: Budget, n: int, workers: int = 4) -> Outcome:
    """Workers that ask prompt after prompt, and are all cancelled when one of them fails, as a run's are."""
    received = 0
    waiting = prompts(n)

    async def worker(budgeted: Budgeted) -> None:
        nonlocal received
        while waiting:
            seen = await budgeted.observe([waiting.pop()], READOUT)
            received += len(seen)

    async def run() -> str | None:
        budgeted = Budgeted(provider, spec(), budget)
        tasks = [asyncio.create_task(worker(budgeted)) for _ in range(workers)]
        try:
            await asyncio.gather(*tasks)
        except BudgetSpentError as exc:
            return exc.limit
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await budgeted.aclose()
        return None

    limit = asyncio.run(run())
    return Outcome(received=received, limit=limit)


EACH_USD = (2 * 10 + 1 * 100) / 1e6


def test_nothing_is_stopped_below_the_limits() -> None:
    budget = Budget(limits=Limits(usd=20 * EACH_USD + 1e-9, requests=20, seconds=600))
    provider = Endpointlike(budget)
    assert ask(provider, budget, 20) == Outcome(received=20, limit=None)
    assert budget.usd == pytest.approx(20 * EACH_USD)


@given(limit=st.integers(1, 30), retries=st.integers(0, 3), workers=st.integers(1, 8), delay_s=st.sampled_from([0.0, 0.001]))
def test_requests_never_exceed_their_limit_whatever_the_retries(limit: int, retries: int, workers: int, delay_s: float) -> None:
    budget = Budget(limits=Limits(requests=limit))
    provider = Endpointlike(budget, retries=retries, delay_s=delay_s)
    outcome = ask(provider, budget, 50, workers)
    assert provider.sent <= limit
    assert outcome.limit == f"--max-requests {limit}"
    assert outcome.received == provider.answered, "what was paid for reaches the caller"
    if not retries:
        assert provider.sent == limit, "and the limit is used up"


@given(limit=st.floats(0.5, 30), workers=st.integers(1, 8), told=st.booleans())
def test_money_is_never_overspent_where_the_estimate_is_right(limit: float, workers: int, told: bool) -> None:
    budget = Budget(limits=Limits(usd=(limit + 1e-6) * EACH_USD))
    provider = Endpointlike(budget, real=(2, 1) if told else None)
    outcome = ask(provider, budget, 50, workers)
    assert provider.answered == outcome.received == int(limit + 1e-6)
    assert outcome.limit is not None
    assert outcome.limit.startswith("--max-cost")


@pytest.mark.parametrize("workers", [1, 5])
@pytest.mark.parametrize("dearer", [2, 7])
def test_a_wrong_estimate_is_set_right_by_the_first_answer(workers: int, dearer: int) -> None:
    """Each prompt costs several times what it was taken for; by the second one that is known."""
    budget = Budget(limits=Limits(usd=(20 + 1e-6) * EACH_USD))
    provider = Endpointlike(budget, real=(2 * dearer, dearer), delay_s=0.001)
    assert ask(provider, budget, 50, workers).received == 20 // dearer


def test_before_anything_is_known_a_single_batch_is_risked() -> None:
    budget = Budget(limits=Limits(usd=20 * EACH_USD))
    provider = Endpointlike(budget, real=(200, 100), delay_s=0.001)
    assert ask(provider, budget, 50, workers=8).received == 1


def test_a_cheaper_truth_leaves_room_for_more() -> None:
    budget = Budget(limits=Limits(usd=20 * EACH_USD))
    provider = Endpointlike(budget, real=(0, 0))
    assert ask(provider, budget, 200) == Outcome(received=200, limit=None)


def test_requests_without_an_account_count_as_estimated() -> None:
    """An endpoint that answers every second request with nothing may bill it all the same."""
    budget = Budget(limits=Limits(usd=20 * EACH_USD))
    provider = Endpointlike(budget, retries=1)
    observe = provider.observe

    async def dropped(asked: Sequence[Prompt], readout: Readout) -> list[Observation]:
        seen = await observe(asked, readout)
        assert provider.usage is not None
        provider.usage.refused = 0  # not refused: no answer came
        return seen

    provider.observe = dropped  # type: ignore[method-assign]
    assert ask(provider, budget, 50, 1).received == 10


def test_two_targets_share_one_budget() -> None:
    budget = Budget(limits=Limits(usd=30 * EACH_USD, requests=1000))
    assert ask(Endpointlike(budget), budget, 20).received == 20
    assert ask(Endpointlike(budget), budget, 20).received == 10


def test_a_provider_that_sends_nothing_counts_its_batches_as_requests() -> None:
    budget = Budget(limits=Limits(requests=3))
    assert ask(ScriptedProvider(lambda _: {" the": 1.0}, batch_size=1), budget, 10).received == 3


def test_when_the_time_is_over_nothing_more_is_sent() -> None:
    now = 0.0
    budget = Budget(limits=Limits(seconds=10), clock=lambda: now)
    provider = Endpointlike(budget)
    observe = provider.observe

    async def slow(asked: Sequence[Prompt], readout: Readout) -> list[Observation]:
        nonlocal now
        seen = await observe(asked, readout)
        now += 3
        return seen

    provider.observe = slow  # type: ignore[method-assign]
    assert ask(provider, budget, 10, workers=1) == Outcome(received=4, limit="--max-seconds 10")


def test_what_hangs_when_the_time_is_over_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.evals.budget.GRACE_S", 0.02)
    budget = Budget(limits=Limits(seconds=0.02))
    provider = Endpointlike(budget, delay_s=3600)
    assert ask(provider, budget, 3, workers=2) == Outcome(received=0, limit="--max-seconds 0.02")
    assert GRACE_S < 60


def test_the_providers_own_timeout_is_not_taken_for_ours() -> None:
    budget = Budget(limits=Limits(seconds=600))
    provider = Endpointlike(budget)

    async def broken(*_: object) -> list[Observation]:
        raise TimeoutError("mine")

    provider.observe = broken  # type: ignore[method-assign]
    with pytest.raises(TimeoutError, match="mine"):
        ask(provider, budget, 1)


@pytest.mark.parametrize(
    ("manner", "expected"),
    [
        (Manner(mode=Mode.TOPK, prompts_per_request=32), (4, 1000, 100)),
        (Manner(mode=Mode.TOPK, prompts_per_request=1, frame_tokens=7), (100, 1700, 100)),
        (Manner(mode=Mode.EXACT, prompts_per_request=32), (4, 1000, 100)),
        (Manner(mode=Mode.EXACT, prompts_per_request=32, chosen_ids=128), (16, 4000, 400)),  # 300 ids: three more passes
        (Manner(mode=Mode.SAMPLED, n_draws=64, draws_per_request=128), (100, 1000, 100 * 64 * 6)),
        (Manner(mode=Mode.SAMPLED, n_draws=64, draws_per_request=10), (700, 7000, 100 * 64 * 6)),
        (Manner(mode=Mode.SAMPLED, n_draws=64), (6400, 64_000, 100 * 64 * 6)),
        (Manner(mode=Mode.AMPLIFIED, n_draws=64, draws_per_request=128), (300, 3000, 100 * (64 + 2 * 16))),
    ],
)
def test_a_hundred_prompts_of_ten_tokens_by_hand(manner: Manner, expected: tuple[int, int, int]) -> None:
    requests, tokens_in, tokens_out = expected
    found = manner.expense(100, 1000, 300)
    assert found == Expense(requests=requests, input_tokens=tokens_in, output_tokens=tokens_out)
    assert found.usd(PRICES) == pytest.approx((tokens_in * 10 + tokens_out * 100) / 1e6)


@pytest.mark.parametrize(
    ("api", "claims", "mode"),
    [
        ("completions", {}, Mode.TOPK),
        ("completions", {"chosen_ids": 128}, Mode.EXACT),
        ("chat", {"logprobs": 0}, Mode.SAMPLED),
        ("chat", {"logprobs": 0, "bias_ids": 300}, Mode.AMPLIFIED),
        ("anthropic", {}, Mode.SAMPLED),
        ("embedded", {}, Mode.EXACT),
        ("scripted", {}, Mode.TOPK),
    ],
)
def test_the_mode_follows_from_what_the_file_claims(api: str, claims: dict[str, Any], mode: Mode) -> None:
    assert claimed_manner(spec(api, claims=claims), None, has_ids=True).mode is mode
    assert claimed_manner(spec(api, claims=claims), Mode.TOPK, has_ids=True).mode is Mode.TOPK


def test_what_was_found_outweighs_what_was_claimed() -> None:
    able = replace(ScriptedProvider(lambda _: {}).info.capabilities, max_prompts_per_request=4, chosen_ids=9, mode=Mode.EXACT)
    manner = found_manner(spec("completions", claims={"prompts_per_request": 64}), able)
    assert (manner.mode, manner.prompts_per_request, manner.chosen_ids) == (Mode.EXACT, 4, 9)


def test_services_that_give_one_draw_a_request_need_one_request_a_draw() -> None:
    assert claimed_manner(spec("anthropic"), None, has_ids=False).draws_per_request == 1
    assert claimed_manner(spec("chat", claims={"draws_per_request": 8}), None, has_ids=False).draws_per_request == 8
