"""Asking both sides the same prompts, some times each, at the same time and in an order of chance.

Owns who is asked what and when; what the answers say is others' business. Nothing is read from a journal.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from harness.compare.sentinels import Sentinel
from harness.errors import BudgetSpentError
from harness.evals.runner import Tally, n_tokens
from harness.packs.sampling import generator
from harness.providers.base import Provider
from harness.providers.targets import TargetSpec
from harness.records import Lexicon, Mode, Observation, Prompt, Readout

_CHUNK = 16
"""Prompts that both sides have before them at a time: few enough that what happens to one side's server in a minute meets the
other's too."""

_NO_WORDS = Lexicon(concept="", words=frozenset(), token_ids=np.empty(0, np.int32), resolved_share=None, digest="")


@dataclass(slots=True, kw_only=True)
class Answers:
    """What one side said: `rounds` (r lists of n observations) and the tokens it counted in each prompt round, None where it
    counts none or some were asked twice."""

    rounds: list[list[Observation]] = field(default_factory=list)
    tokens: list[int | None] = field(default_factory=list)

    @property
    def n_asked(self) -> int:
        """How many answers there would be if none had failed."""
        return sum(map(len, self.rounds))

    @property
    def reasons(self) -> Counter[str]:
        """Why answers failed, and how often."""
        return Counter(one.error for observations in self.rounds for one in observations if one.error is not None)

    @property
    def n_failed(self) -> int:
        """How many did."""
        return self.reasons.total()


@dataclass(slots=True, kw_only=True)
class Side:
    """One of the two. `asked`: prompts it was put, for providers that count no requests."""

    name: str
    spec: TargetSpec
    provider: Provider
    asked: int = 0

    @property
    def list_mode(self) -> Mode | None:
        """The mode in which it shows lists of likeliest tokens, None where it shows none."""
        able = self.provider.info.capabilities.able()
        return next((mode for mode in (Mode.TOPK, Mode.EXACT) if mode in able), None)

    @property
    def draws_tokens(self) -> bool:
        """Whether a single token can be drawn: OpenAI's `/responses` writes sixteen at the least."""
        request = self.provider.info.settings.get("request", {})
        return bool(request.get("path") != "/responses")

    @property
    def n_requests(self) -> int:
        """Requests it took so far, those of the opening too; of an endpoint that counts none, prompts."""
        usage = self.provider.usage
        return self.asked if usage is None else usage.requests

    def prompts(self, sentinels: Sequence[Sentinel]) -> list[Prompt]:
        """The sentinels as this side takes them: with its own ids where it takes ids."""
        vocabulary = self.provider.vocabulary
        if vocabulary is None or not self.provider.info.capabilities.token_ids:
            return [one.prompt(None) for one in sentinels]
        encoded = vocabulary.encode([one.text for one in sentinels])
        return [one.prompt(ids) for one, ids in zip(sentinels, encoded, strict=True)]

    async def observe(self, prompts: Sequence[Prompt], readout: Readout) -> list[Observation]:
        """One observation for each prompt, in order, over as many requests at once as the endpoint takes."""
        provider = self.provider
        gate = asyncio.Semaphore(provider.concurrency)

        async def ask(part: Sequence[Prompt]) -> list[Observation]:
            async with gate:
                try:
                    return await provider.observe(part, readout)
                except BudgetSpentError as exc:
                    return [Observation(error=f"not asked: {exc.limit} is reached")] * len(part)

        size = provider.batch_size
        parts = await asyncio.gather(*(ask(prompts[start : start + size]) for start in range(0, len(prompts), size)))
        self.asked += len(prompts)
        return [one for part in parts for one in part]

    def input_tokens(self) -> int | None:
        """Prompt tokens that the endpoint has counted so far."""
        usage = self.provider.usage
        return usage.input_tokens if usage is not None and usage.told else None


def lists(side: Side, n_listed: int) -> Readout:
    """The `n_listed` likeliest tokens, and no lexicon's mass."""
    return Readout(lexicon=_NO_WORDS, n_logprobs=n_listed, mode=side.list_mode)


def first_tokens(n_draws: int) -> Readout:
    """Single tokens, drawn at temperature 1."""
    return Readout(lexicon=_NO_WORDS, n_logprobs=0, mode=Mode.SAMPLED, n_draws=n_draws, whole_words=False)


def first_words(n_draws: int) -> Readout:
    """First words of continuations, drawn at temperature 1: what every endpoint can give."""
    return replace(first_tokens(n_draws), whole_words=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """How often every prompt is asked, and the seed of their order."""

    repeats: int
    seed: int


async def ask_both(
    a: tuple[Side, Readout],
    b: tuple[Side, Readout],
    sentinels: Sequence[Sentinel],
    rounds: Rounds,
    show: Callable[[Tally], None] = lambda _tally: None,
) -> tuple[Answers, Answers]:
    """Every sentinel as often on either side. So many at a time go to both sides at once, in each round in another order and on
    each side in one of its own: prompts that share a batch share its noise, which would else be common to both sides."""
    sides = [(side, readout, side.prompts(sentinels), Answers()) for side, readout in (a, b)]
    rng = generator(rounds.seed, "order of sentinels")
    tally = Tally(planned=2 * rounds.repeats * len(sentinels))
    for _ in range(rounds.repeats):
        orders = [rng.permutation(len(sentinels)).tolist() for _ in sides]
        seen: list[dict[int, Observation]] = [{}, {}]
        before = [side.input_tokens() for side, *_ in sides]
        for start in range(0, len(sentinels), _CHUNK):
            chosen = [order[start : start + _CHUNK] for order in orders]
            came = await asyncio.gather(
                *(
                    side.observe([prompts[i] for i in own], readout)
                    for (side, readout, prompts, _), own in zip(sides, chosen, strict=True)
                )
            )
            for found, own, observations in zip(seen, chosen, came, strict=True):
                found.update(zip(own, observations, strict=True))
                tally.count(observations)
            show(tally)
        for (side, _, prompts, answers), found, start_tokens in zip(sides, seen, before, strict=True):
            answers.rounds.append([found[i] for i in range(len(sentinels))])
            answers.tokens.append(_tokens(side, prompts, answers.rounds[-1], start_tokens))
    return sides[0][3], sides[1][3]


def _tokens(side: Side, prompts: Sequence[Prompt], seen: Sequence[Observation], before: int | None) -> int | None:
    """The prompt tokens of a round, as the endpoint counts them, or as they were sent to an engine that counts none."""
    if any(one.error is not None or one.attempts > 1 or one.n_draws for one in seen):
        return None
    if side.provider.usage is None:
        return sum(map(n_tokens, prompts)) if all(one.token_ids is not None for one in prompts) else None
    after = side.input_tokens()
    return None if after is None or before is None else after - before
