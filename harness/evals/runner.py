"""Asking: the plan's prompts go to the provider, so many batches at once, and every answer is journalled as it arrives.

Work is done in bulk wherever it can be, or the harness itself would be what is slow: the plan is cut, encoded and compared with
the journal some thousand prompts at a time, and answers that arrive within a moment are written together.
"""

from __future__ import annotations

import asyncio
import gc
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain, groupby
from typing import Any, TypeVar

from harness.evals.modes import hidden, may_be_amplified, require_amplifiable, run_mode
from harness.evals.outbox import Outbox, Work
from harness.evals.plan import Plan, batches, clean_prompts, injected_prompts, sentences_of
from harness.lexicon import require_resolved, resolve
from harness.packs.concepts import Concept
from harness.providers.base import Deferring, Provider
from harness.providers.vocabulary import about_tokens
from harness.records import Lexicon, Lists, Mode, Observation, Prompt, Readout
from harness.store import Journal, KeyMaker

LISTED_IF_EXACT = 100
"""Tokens listed for each prompt by a target that sees its whole vocabulary; only total variation and readers use them."""

T = TypeVar("T")

_PLANNED_AT_ONCE = 4000
"""Prompts that are made ready together, while as many wait to be sent."""

_SELDOM = 100_000
"""New objects between two looks of the garbage collector; Python's own number is 700."""


@dataclass(slots=True, kw_only=True)
class Tally:
    """How far a run is, in prompts. `done` counts answers, those from the journal (`from_cache`) among them.

    `sent_tokens`: tokens of the prompts asked in this process; four characters count as one where ids are unknown.
    `not_asked`: those of `failed` that a limit on cost, requests or time left out.
    """

    planned: int
    done: int = 0
    failed: int = 0
    from_cache: int = 0
    sent_tokens: int = 0
    not_asked: int = 0
    reasons: dict[str, int] = field(default_factory=dict)

    def stop(self, reason: str) -> None:
        """Nothing more is asked, for `reason`: what is left over failed."""
        self.not_asked = self.planned - self.done - self.failed
        self.failed += self.not_asked
        if self.not_asked:
            self.reasons[f"not asked: {reason}"] = self.not_asked

    def count(self, answers: Lists | Iterable[Observation]) -> None:
        """Take in what came back and is kept."""
        if isinstance(answers, Lists):
            self.done += len(answers)
            return
        for observation in answers:
            if observation.error is None:
                self.done += 1
            else:
                self.failed += 1
                self.reasons[observation.error] = self.reasons.get(observation.error, 0) + 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Job:
    """A plan on one opened target. `lexicons` by concept; `keys` makes the journal's keys; `modes` holds how a concept is
    observed where that is not the run's mode."""

    plan: Plan
    provider: Provider
    journal: Journal
    lexicons: dict[str, Lexicon]
    keys: KeyMaker
    modes: dict[str, Mode] = field(default_factory=dict)

    def mode(self, concept: str) -> Mode:
        """How the concept is observed."""
        return self.modes.get(concept, self.plan.mode)

    @property
    def n_logprobs(self) -> int:
        """How many tokens are asked for: the eval's wish, or the endpoint's limit.

        A target that gives the lexicon's mass itself need not show a long list to bound it: `LISTED_IF_EXACT` tokens do.
        """
        able = self.provider.info.capabilities
        wanted = self.plan.eval.spec.logprobs
        if self.plan.mode is Mode.EXACT:
            wanted = min(wanted, max(LISTED_IF_EXACT, self.plan.eval.spec.scoring.k))
        return min(wanted, able.max_logprobs) if able.max_logprobs else wanted

    @property
    def k(self) -> int:
        """How many likeliest tokens are counted: the eval's k, or the endpoint's limit."""
        return min(self.plan.eval.spec.scoring.k, self.n_logprobs)

    def readout(self, concept: str) -> Readout:
        """What is read off the answers to a concept's prompts."""
        mode = self.mode(concept)
        n_draws = self.plan.draws if mode.drawn else 0
        return Readout(lexicon=self.lexicons[concept], n_logprobs=self.n_logprobs, mode=mode, n_draws=n_draws)

    def needs_mode(self, concept: str) -> bool:
        """Whether the answers to the concept's clean sentences decide how it is observed."""
        return may_be_amplified(self.plan, self.provider.info, self.lexicons[concept])

    def settle_mode(self, concept: str, clean: Sequence[Observation]) -> bool:
        """Whether the concept is to be amplified, by what its clean sentences' lists show; from then on it is."""
        if hidden(clean, self.lexicons[concept]):
            self.modes[concept] = Mode.AMPLIFIED
        return concept in self.modes


def make_job(plan: Plan, provider: Provider, journal: Journal) -> Job:
    """Resolve every concept on the target before anything is asked; raises CapabilityError for one that it cannot spell."""
    plan = replace(plan, mode=run_mode(plan, provider.info))
    scoring = plan.eval.spec.scoring
    lexicons = {}
    for name in plan.concepts:
        lexicons[name] = resolve(plan.pack.concept(name), provider.vocabulary, first_token=scoring.first_token)
        require_resolved(lexicons[name], target=provider.info.target, min_resolved=scoring.min_resolved)
    if plan.mode is Mode.AMPLIFIED:
        for lexicon in lexicons.values():
            require_amplifiable(plan, provider.info, lexicon)
    return Job(plan=plan, provider=provider, journal=journal, lexicons=lexicons, keys=KeyMaker(provider.info))


def job_batches(job: Job, concept: Concept) -> Iterator[list[Prompt]]:
    """The concept's prompts in the batches they are asked, journalled and scored in; the clean ones fill batches of their own.

    Batches are cut by the plan alone, never by what is already journalled: a resumed run then asks exactly the batches that an
    uninterrupted one would have asked, and arithmetic that depends on the batch gives the same numbers.
    """
    for part in _parts(chain(_clean_batches(job, concept), _injected_batches(job, concept)), len):
        yield from _with_ids(part, job.provider)


def _clean_batches(job: Job, concept: Concept) -> Iterator[list[Prompt]]:
    return batches(clean_prompts(job.plan, sentences_of(job.plan, concept)), job.provider.batch_size)


def _injected_batches(job: Job, concept: Concept) -> Iterator[list[Prompt]]:
    return batches(injected_prompts(job.plan, concept, sentences_of(job.plan, concept)), job.provider.batch_size)


def _parts(stream: Iterator[T], size: Callable[[T], int]) -> Iterator[list[T]]:
    """Consecutive batches that hold `_PLANNED_AT_ONCE` prompts together, or a few more."""
    part: list[T] = []
    total = 0
    for batch in stream:
        part.append(batch)
        total += size(batch)
        if total >= _PLANNED_AT_ONCE:
            yield part
            part, total = [], 0
    if part:
        yield part


def _with_ids(part: Sequence[list[Prompt]], provider: Provider) -> list[list[Prompt]]:
    """The batches with the exact ids to send, where the target's vocabulary is known and ids are accepted."""
    if provider.vocabulary is None or not provider.info.capabilities.token_ids:
        return list(part)
    prompts = [prompt for batch in part for prompt in batch]
    for prompt, ids in zip(prompts, provider.vocabulary.encode([prompt.text for prompt in prompts]), strict=True):
        # They are fresh from the plan and nobody else's; a changed copy of each would take as long as to plan it.
        object.__setattr__(prompt, "token_ids", ids)
    return list(part)


async def ask_all(job: Job, tally: Tally, on_progress: Callable[[Tally], None]) -> None:
    """Ask what the journal does not hold; at most `concurrency` batches are under way, and none is held afterwards.

    Returns, raises and is cancelled only after what came back is in the journal.
    """

    def written(answers: Sequence[Lists | Sequence[Observation]]) -> None:
        for some in answers:
            tally.count(some)
        on_progress(tally)

    outbox = Outbox(job.journal, job.provider, written)
    writing = asyncio.create_task(outbox.run())
    try:
        with _rare_collections():
            for stage in _stages(job, tally):
                planner = _Planner(job, stage, tally, on_progress)
                try:
                    await _pool([_ask(job, planner, outbox, tally) for _ in range(job.provider.concurrency)], writing)
                finally:
                    await planner.aclose()
                await _pool([outbox.flush()], writing)
                spoiled = iter(outbox.take_spoiled())
                await _pool([_ask_again(job, spoiled, outbox) for _ in range(job.provider.concurrency)], writing)
                await _pool([outbox.flush()], writing)
    finally:
        outbox.close()
        await writing


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Let the garbage collector leave what is there alone, and look seldom at what comes: prompts and answers hold no cycles,
    and looking for some would take a sixth of the client's time."""
    often = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(_SELDOM, *often[1:])
    try:
        yield
    finally:
        gc.set_threshold(*often)
        gc.unfreeze()


_Stage = Iterator[tuple[Readout, list[Prompt]]]


def _stages(job: Job, tally: Tally) -> Iterator[_Stage]:
    """The batches with what is read off them. Where one stage ends, everything before it is asked and journalled.

    A stage ends behind the clean sentences of each concept whose mode their answers decide.
    """
    stage: list[_Stage] = []
    for name in job.plan.concepts:
        concept = job.plan.pack.concept(name)
        stage.append(_read(job, name, _clean_batches(job, concept)))
        if job.needs_mode(name):
            yield chain(*stage)
            stage = []
            listed = [one for batch in _clean_batches(job, concept) for one in _seen(job, batch, job.readout(name))]
            if job.settle_mode(name, listed):
                tally.planned += len(listed)  # the clean sentences are asked once more, as the injected ones will be
                stage.append(_read(job, name, _clean_batches(job, concept)))
        stage.append(_read(job, name, _injected_batches(job, concept)))
    yield chain(*stage)


def _read(job: Job, concept: str, stream: Iterator[list[Prompt]]) -> _Stage:
    """The batches with the concept's readout as it is once the first of them is wanted."""
    first = next(stream, None)
    if first is not None:
        readout = job.readout(concept)
        yield readout, first
        for batch in stream:
            yield readout, batch


async def _pool(workers: Sequence[Coroutine[Any, Any, None]], writing: asyncio.Task[None]) -> None:
    """Let all workers end; if one of them, or the writing, fails before, end the others and raise what it raised."""
    tasks = {asyncio.create_task(worker) for worker in workers}
    try:
        while working := {task for task in tasks if not task.done()}:
            done, _ = await asyncio.wait({*working, writing}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _ask(job: Job, planner: _Planner, outbox: Outbox, tally: Tally) -> None:
    """One worker: batch after batch until none is left."""
    provider = job.provider
    ask = provider.fetch if isinstance(provider, Deferring) else provider.observe
    while (work := await planner.next()) is not None:
        came = await ask(work.prompts, work.readout)
        tally.sent_tokens += sum(map(n_tokens, work.prompts))
        await outbox.add(work, came)


async def _ask_again(job: Job, works: Iterator[Work], outbox: Outbox) -> None:
    """One worker for what came back spoiled."""
    for work in works:
        observations = await job.provider.observe(work.prompts, work.readout)
        await outbox.add(work, [replace(one, attempts=one.attempts + work.attempts) for one in observations])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """Consecutive batches of the plan, as far as they are `missing`; `answered` prompts of them are not."""

    missing: list[Work]
    answered: int


def _seen(job: Job, batch: list[Prompt], readout: Readout) -> list[Observation]:
    """What the journal holds for a batch that was cut and not yet encoded."""
    (encoded,) = _with_ids([batch], job.provider)
    return journalled(job, encoded, readout)


class _Planner:
    """Hands out a stage's batches. The next part is made ready while the workers are busy with the one before."""

    def __init__(self, job: Job, stage: _Stage, tally: Tally, on_progress: Callable[[Tally], None]) -> None:
        self._job = job
        self._parts = _parts(stage, lambda planned: len(planned[1]))
        self._tally = tally
        self._on_progress = on_progress
        self._ready: deque[Work] = deque()
        self._coming = asyncio.create_task(self._next_part())

    async def next(self) -> Work | None:
        """The next batch to ask, None when all are handed out."""
        while not self._ready:
            coming = self._coming
            await asyncio.wait([coming])  # a worker that is cancelled while it waits must not take the part along
            if coming is self._coming:  # the first of those who waited takes it
                part = coming.result()
                if part is None:
                    return None
                self._coming = asyncio.create_task(self._next_part())
                self._ready.extend(part.missing)
                self._tally.done += part.answered
                self._tally.from_cache += part.answered
                self._on_progress(self._tally)
        return self._ready.popleft()

    async def aclose(self) -> None:
        """Return once nothing is being made ready any more."""
        await asyncio.wait([self._coming])
        self._coming.exception()

    async def _next_part(self) -> _Part | None:
        """The next part of the plan; None at its end."""
        planned = next(self._parts, None)
        if planned is None:
            return None
        answered = 0
        missing = []
        encoded = iter(await asyncio.to_thread(_with_ids, [batch for _, batch in planned], self._job.provider))
        for readout, group in groupby(planned, key=lambda one: one[0]):
            cut = [next(encoded) for _ in group]
            keys = self._job.keys.keys([prompt for batch in cut for prompt in batch], readout)
            have = self._job.journal.answered(keys)
            start = 0
            for batch in cut:
                own = range(start, start + len(batch))
                start = own.stop
                lacking = [i for i in own if not have[i]]
                answered += len(own) - len(lacking)
                if lacking:
                    prompts = batch if len(lacking) == len(own) else [batch[i - own.start] for i in lacking]
                    missing.append(Work(prompts=prompts, keys=[keys[i] for i in lacking], readout=readout))
        return _Part(missing=missing, answered=answered)


def n_tokens(prompt: Prompt) -> int:
    """The prompt's tokens; four characters count as one where ids are unknown."""
    return len(prompt.token_ids) if prompt.token_ids is not None else about_tokens(prompt.text)


NOT_ASKED = Observation(error="not asked")


def journalled(job: Job, batch: list[Prompt], readout: Readout) -> list[Observation]:
    """What the journal holds for each prompt, in order; `NOT_ASKED` where it holds nothing."""
    keys = job.keys.keys(batch, readout)
    known = job.journal.get(keys)
    return [known.get(key, NOT_ASKED) for key in keys]
