"""Asking: the plan's prompts go to the provider in a bounded window, and every answer is journalled as it arrives."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from harness.evals.plan import Plan, batches, clean_prompts, injected_prompts, sentences_of
from harness.lexicon import require_resolved, resolve
from harness.packs.concepts import Concept
from harness.providers.base import Provider
from harness.records import Lexicon, Mode, Observation, Prompt, Readout
from harness.store import Journal, KeyMaker

LISTED_IF_EXACT = 100
"""Tokens listed for each prompt by a target that sees its whole vocabulary; only total variation and readers use them."""


@dataclass(slots=True, kw_only=True)
class Tally:
    """How far a run is, in prompts. `done` counts answers, those from the journal (`from_cache`) among them.

    `sent_tokens`: tokens of the prompts asked in this process; four characters count as one where ids are unknown.
    """

    planned: int
    done: int = 0
    failed: int = 0
    from_cache: int = 0
    sent_tokens: int = 0
    reasons: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Job:
    """A plan on one opened target. `lexicons` by concept; `keys` makes the journal's keys."""

    plan: Plan
    provider: Provider
    journal: Journal
    lexicons: dict[str, Lexicon]
    keys: KeyMaker

    @property
    def n_logprobs(self) -> int:
        """How many tokens are asked for: the eval's wish, or the endpoint's limit.

        A target that gives the lexicon's mass itself need not show a long list to bound it: `LISTED_IF_EXACT` tokens do.
        """
        able = self.provider.info.capabilities
        wanted = self.plan.eval.spec.logprobs
        if able.mode is Mode.EXACT:
            wanted = min(wanted, max(LISTED_IF_EXACT, self.plan.eval.spec.scoring.k))
        return min(wanted, able.max_logprobs) if able.max_logprobs else wanted

    @property
    def k(self) -> int:
        """How many likeliest tokens are counted: the eval's k, or the endpoint's limit."""
        return min(self.plan.eval.spec.scoring.k, self.n_logprobs)

    def readout(self, concept: str) -> Readout:
        """What is read off the answers to a concept's prompts."""
        return Readout(lexicon=self.lexicons[concept], n_logprobs=self.n_logprobs)


def make_job(plan: Plan, provider: Provider, journal: Journal) -> Job:
    """Resolve every concept on the target before anything is asked; raises CapabilityError for one that it cannot spell."""
    scoring = plan.eval.spec.scoring
    lexicons = {}
    for name in plan.concepts:
        lexicons[name] = resolve(plan.pack.concept(name), provider.vocabulary, first_token=scoring.first_token)
        require_resolved(lexicons[name], target=provider.info.target, min_resolved=scoring.min_resolved)
    return Job(plan=plan, provider=provider, journal=journal, lexicons=lexicons, keys=KeyMaker(provider.info))


def job_batches(job: Job, concept: Concept) -> Iterator[list[Prompt]]:
    """The concept's prompts in the batches they are asked, journalled and scored in; the clean ones fill batches of their own.

    Batches are cut by the plan alone, never by what is already journalled: a resumed run then asks exactly the batches that an
    uninterrupted one would have asked, and arithmetic that depends on the batch gives the same numbers.
    """
    sentences = sentences_of(job.plan, concept)
    for prompts in (clean_prompts(job.plan, sentences), injected_prompts(job.plan, concept, sentences)):
        for batch in batches(prompts, job.provider.batch_size):
            yield with_ids(batch, job.provider)


def with_ids(prompts: Sequence[Prompt], provider: Provider) -> list[Prompt]:
    """The prompts with the exact ids to send, where the target's vocabulary is known and ids are accepted."""
    if provider.vocabulary is None or not provider.info.capabilities.token_ids:
        return list(prompts)
    encoded = provider.vocabulary.encode([prompt.text for prompt in prompts])
    return [replace(prompt, token_ids=ids) for prompt, ids in zip(prompts, encoded, strict=True)]


async def ask_all(job: Job, tally: Tally, on_progress: Callable[[Tally], None]) -> None:
    """Ask what the journal does not hold; at most `concurrency` batches are under way, and none is held afterwards.

    When cancelled, waits for nothing: what came back is in the journal.
    """
    pending: set[asyncio.Task[None]] = set()
    try:
        for name in job.plan.concepts:
            readout = job.readout(name)
            for batch in job_batches(job, job.plan.pack.concept(name)):
                missing = _not_journalled(job, batch, readout, tally)
                on_progress(tally)
                if not missing:
                    continue
                while len(pending) >= job.provider.concurrency:
                    pending = await _some(pending)
                pending.add(asyncio.create_task(_ask(job, missing, readout, tally, on_progress)))
        while pending:
            pending = await _some(pending)
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)


async def _some(pending: set[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
    """Wait for at least one task; raises what it raised; returns the rest."""
    done, rest = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
    return rest


def _not_journalled(job: Job, batch: list[Prompt], readout: Readout, tally: Tally) -> list[Prompt]:
    """The prompts of `batch` without an answer; the answered ones are counted."""
    keys = job.keys.keys(batch, readout)
    known = job.journal.get(keys)
    missing = [p for p, key in zip(batch, keys, strict=True) if key not in known or known[key].error is not None]
    tally.done += len(batch) - len(missing)
    tally.from_cache += len(batch) - len(missing)
    return missing


async def _ask(job: Job, prompts: list[Prompt], readout: Readout, tally: Tally, on_progress: Callable[[Tally], None]) -> None:
    observations = await job.provider.observe(prompts, readout)
    job.journal.put(zip(job.keys.keys(prompts, readout), observations, strict=True))
    for observation in observations:
        if observation.error is None:
            tally.done += 1
        else:
            tally.failed += 1
            tally.reasons[observation.error] = tally.reasons.get(observation.error, 0) + 1
    tally.sent_tokens += sum(n_tokens(prompt) for prompt in prompts)
    on_progress(tally)


def n_tokens(prompt: Prompt) -> int:
    """The prompt's tokens; four characters count as one where ids are unknown."""
    return len(prompt.token_ids) if prompt.token_ids is not None else -(-len(prompt.text) // 4)


NOT_ASKED = Observation(error="not asked")


def journalled(job: Job, batch: list[Prompt], readout: Readout) -> list[Observation]:
    """What the journal holds for each prompt, in order; `NOT_ASKED` where it holds nothing."""
    keys = job.keys.keys(batch, readout)
    known = job.journal.get(keys)
    return [known.get(key, NOT_ASKED) for key in keys]
