"""Limits on what a command may spend: kept to by a provider around the provider, which stops asking in time.

A batch is paid for in advance, with what it should cost, and settled with what it took; it is sent only where both what was
taken and what is under way leave room for it. So money is overspent by the error of the estimates alone. Requests are counted
as they go out, retries and probes too, and their limit is never exceeded.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from harness.errors import BudgetSpentError, UsageError
from harness.evals.expense import Expense, found_manner
from harness.evals.runner import n_tokens
from harness.providers.base import Provider
from harness.providers.targets import OpenOptions, TargetSpec, open_target
from harness.providers.vocabulary import Vocabulary
from harness.records import Observation, Prompt, Readout, TargetInfo, Usage

GRACE_S = 10.0
"""How long after --max-seconds what is under way may still come back before it is given up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the user allows; None: no limit."""

    usd: float | None = None
    requests: int | None = None
    seconds: float | None = None


@dataclass(slots=True, kw_only=True)
class Budget:
    """What is left of the limits of one command, over all of its targets; time runs from here on.

    `sent`: requests that went out. `usd`: what the targets that are done took.
    """

    limits: Limits
    clock: Callable[[], float] = time.monotonic
    sent: int = 0
    usd: float = 0.0
    started: float = field(init=False)

    def __post_init__(self) -> None:
        self.started = self.clock()

    @property
    def limited(self) -> bool:
        """Whether there is anything to keep to."""
        return self.limits != Limits()

    def sending(self) -> None:
        """A request is about to go out; raises BudgetSpentError where it must not."""
        self.check(requests=1, usd=0.0)
        self.sent += 1

    def check(self, *, requests: int, usd: float) -> None:
        """Raises BudgetSpentError where so much more than `sent` and `usd` is too much, and once the time is over."""
        limits = self.limits
        if limits.requests is not None and self.sent + requests > limits.requests:
            raise BudgetSpentError(f"--max-requests {limits.requests}")
        if limits.usd is not None and self.usd + usd > limits.usd:
            raise BudgetSpentError(f"--max-cost {limits.usd:g}")
        if (left := self.left_s()) is not None and left <= 0:
            raise BudgetSpentError(f"--max-seconds {limits.seconds:g}")

    def left_s(self) -> float | None:
        """Seconds until nothing more may be sent, None without such a limit."""
        return None if self.limits.seconds is None else self.started + self.limits.seconds - self.clock()


def require_prices(spec: TargetSpec) -> None:
    """Raises UsageError where a limit on cost could not be kept to."""
    if not spec.prices.declared:
        raise UsageError(
            f"--max-cost cannot be kept to: target {spec.name!r} declares no prices",
            hint=f"set prices.input_per_million and prices.output_per_million in {spec.found.path}",
        )


class Budgeted:
    """`provider`, as long as `budget` lasts.

    `observe` raises BudgetSpentError when a batch can no longer be paid for; by then everything that was under way has come
    back to its caller.
    """

    def __init__(self, provider: Provider, spec: TargetSpec, budget: Budget) -> None:
        self.info: TargetInfo = provider.info
        self.usage: Usage | None = provider.usage
        self.vocabulary: Vocabulary | None = provider.vocabulary
        self.batch_size = provider.batch_size
        self.concurrency = provider.concurrency
        self._provider = provider
        self._budget = budget
        self._prices = spec.prices
        self._manner = found_manner(spec, provider.info.capabilities)
        self._estimated = Expense()
        self._reserved = Expense()
        self._under_way = 0
        self._changed = asyncio.Event()
        self._probes = _uncounted(self.usage)
        self._usd_before = self._told_usd()
        self._sent_elsewhere = budget.sent - (self.usage.requests if self.usage else 0)

    async def observe(self, prompts: Sequence[Prompt], readout: Readout) -> list[Observation]:
        """As the provider does, or not at all."""
        expense = self._expense(prompts, readout)
        await self._reserve(expense)
        spent: BudgetSpentError | None = None
        try:
            return await self._observed(prompts, readout)
        except BudgetSpentError as exc:
            spent = exc
        finally:
            self._settle(expense)
        while self._under_way:
            await self._changed.wait()
        raise spent

    async def aclose(self) -> None:
        """Close the provider; what it took stays spent."""
        self._budget.usd += self.spent_usd()
        self._estimated = Expense()
        await self._provider.aclose()

    def spent_usd(self) -> float:
        """What was taken so far: as the answers count it, and as estimated where no answer came or none counts."""
        if self.usage is None or not self.usage.told:
            return self._estimated.usd(self._prices)
        uncounted = max(_uncounted(self.usage) - self._probes, 0)
        return self._told_usd() + uncounted * self._estimated.usd(self._prices) / max(self._estimated.requests, 1)

    def _told_usd(self) -> float:
        usage = self.usage or Usage()
        return Expense(input_tokens=usage.input_tokens, output_tokens=usage.output_tokens).usd(self._prices)

    def _expense(self, prompts: Sequence[Prompt], readout: Readout) -> Expense:
        manner = self._manner.asked(readout.mode or self._manner.mode, readout.n_draws)
        n_ids = 0 if readout.lexicon.token_ids is None else len(readout.lexicon.token_ids)
        return manner.expense(len(prompts), sum(map(n_tokens, prompts)), n_ids)

    async def _reserve(self, expense: Expense) -> None:
        """Set `expense` aside. Where that is too much, what is under way may turn out cheaper: wait for it first."""
        while True:
            try:
                self._check(self._reserved + expense)
            except BudgetSpentError:
                if not self._under_way:
                    raise
            else:
                if not (self._under_way and self._is_first):
                    break
            await self._changed.wait()
        self._reserved += expense
        self._under_way += 1

    @property
    def _is_first(self) -> bool:
        """Whether no batch has told yet what a batch costs: until then they go one at a time where money is limited."""
        return self._budget.limits.usd is not None and not self._estimated.requests

    def _check(self, wanted: Expense) -> None:
        usd = wanted.usd(self._prices) * self._dearer()
        self._budget.check(requests=wanted.requests, usd=self.spent_usd() + usd)

    def _dearer(self) -> float:
        """By how much batches came dearer than they were estimated, 1 where they did not."""
        estimated = self._estimated.usd(self._prices)
        told = self._told_usd() - self._usd_before
        return max(told / estimated, 1.0) if estimated else 1.0

    def _settle(self, expense: Expense) -> None:
        """No await here: the observations must reach their caller before anyone who waits for the change can raise."""
        self._reserved -= expense
        self._estimated += expense
        self._under_way -= 1
        if self.usage is None:  # no requests of its own: each batch counts as what it was estimated to be
            self._budget.sent += expense.requests
        else:  # a provider that sends past `Budget.sending`
            self._budget.sent = max(self._budget.sent, self._sent_elsewhere + self.usage.requests)
        self._changed.set()
        self._changed = asyncio.Event()

    async def _observed(self, prompts: Sequence[Prompt], readout: Readout) -> list[Observation]:
        left = self._budget.left_s()
        try:
            async with asyncio.timeout(None if left is None else left + GRACE_S) as deadline:
                return await self._provider.observe(prompts, readout)
        except TimeoutError:
            if not deadline.expired():
                raise
            raise BudgetSpentError(f"--max-seconds {self._budget.limits.seconds:g}") from None


async def open_within(budget: Budget, spec: TargetSpec, options: OpenOptions) -> Provider:
    """The opened target, which asks no more than `budget` allows.

    Raises UsageError where a limit on cost cannot be kept to, and what opening raises.
    """
    if budget.limits.usd is not None:
        require_prices(spec)
    provider = await open_target(spec, replace(options, sending=budget.sending))
    return Budgeted(provider, spec, budget) if budget.limited else provider


def _uncounted(usage: Usage | None) -> int:
    """Requests that may have been billed without our being told: no answer came, or one that counts no tokens."""
    return 0 if usage is None else usage.requests - usage.refused - usage.counted
