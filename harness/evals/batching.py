"""A run by batch jobs: submit what the journal lacks, leave, collect later. The journal ends as direct asking leaves it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.errors import UsageError
from harness.evals.runner import Job, job_batches
from harness.providers.http.batch import NotSubmittedError, Request, Service
from harness.providers.http.ledger import NO_ANSWER, Ledger, Line, custom_id
from harness.providers.http.provider import HttpProvider
from harness.providers.http.replay import observe, requests_of
from harness.records import Mode, Observation, Prompt, Readout, Usage

BATCHED = (Mode.TOPK, Mode.SAMPLED)
"""Modes in which a prompt takes one request, or several that do not depend on each other."""

MAX_ROUNDS = 3
"""How often a line is put into a job before the user is asked to go on without jobs."""

_JOURNALLED_AT_ONCE = 500
_OVERHEAD_BYTES = 160
"""What a line holds beside its body: its name, method, address and the JSON around them."""


@dataclass(slots=True, kw_only=True)
class Progress:
    """How far a run by batches is, in prompts; `submitted` in requests.

    `waiting`: prompts with lines in jobs that are out; `exhausted`: prompts that failed too often or for good, by `reasons`.
    """

    planned: int = 0
    done: int = 0
    waiting: int = 0
    exhausted: int = 0
    submitted: int = 0
    reasons: dict[str, int] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether every prompt is answered, so that the run can be written."""
        return self.done == self.planned


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """One request on its way into a job."""

    key: bytes
    number: int
    round: int
    body: Mapping[str, Any]


class Batching:
    """One plan on one target by way of its batch API. Raises UsageError for a mode that cannot be asked in jobs."""

    def __init__(self, job: Job, service: Service, ledger: Ledger, note: Callable[[str], None]) -> None:
        if not isinstance(job.provider, HttpProvider):
            raise UsageError(f"target {job.provider.info.target!r} is not asked over HTTP, so it has no batch API")
        self._job = job
        self._provider = job.provider
        self._service = service
        self._ledger = ledger
        self._note = note
        self._queue: list[_Entry] = []
        self._queued_bytes = 0
        self._seen: list[tuple[bytes, Observation]] = []
        self._may_submit = True

    async def advance(self) -> Progress:
        """Look once at the jobs that are out, journal what came back, submit what is missing. Waits for no job.

        What the answers to the plan's prompts took is added to the provider's usage, whichever process collected them.
        """
        for concept in self._job.plan.concepts:
            self._readout(concept)
        await self._collect()
        progress = Progress()
        for concept in self._job.plan.concepts:
            await self._advance_concept(concept, progress)
        if self._queue:
            await self._submit(progress)
        self._flush()
        return progress

    def settle(self) -> None:
        """The run is written: the lines of its prompts need no keeping."""
        self._ledger.forget(
            key
            for concept in self._job.plan.concepts
            for batch in job_batches(self._job, self._job.plan.pack.concept(concept))
            for key in self._job.keys.keys(batch, self._job.readout(concept))
        )

    def _readout(self, concept: str) -> Readout:
        readout = self._job.readout(concept)
        mode = readout.mode or self._provider.info.capabilities.mode
        if mode not in BATCHED:
            raise UsageError(
                f"mode {mode} cannot be asked in batch jobs: its requests depend on each other's answers",
                hint=f"run the same command without --batch, or with --mode {' or '.join(BATCHED)}",
            )
        return readout

    async def _advance_concept(self, concept: str, progress: Progress) -> None:
        readout = self._readout(concept)
        for batch in job_batches(self._job, self._job.plan.pack.concept(concept)):
            keys = self._job.keys.keys(batch, readout)
            known, lines = self._job.journal.get(keys), self._ledger.lines(keys)
            for prompt, key in zip(batch, keys, strict=True):
                progress.planned += 1
                _count(self._provider.usage, lines.get(key, {}).values())
                if key in known and known[key].error is None:
                    progress.done += 1
                else:
                    await self._advance_prompt((prompt, key, readout), lines.get(key, {}), progress)

    def _flush(self) -> None:
        """Journal what was decoded."""
        self._job.journal.put(self._seen)
        self._seen.clear()

    async def _collect(self) -> None:
        """Close the jobs that ended; find out what became of those whose submission was cut off."""
        for out in self._ledger.out():
            job = out.job
            if job is None:
                job = await self._service.find(out.tag, out.n_lines, out.at, self._ledger.known())
                if job is None:
                    self._ledger.drop(out.tag)
                    self._note(f"a job of {out.n_lines} requests was cut off before it was submitted; they are sent again")
                    continue
                self._ledger.submitted(out.tag, job)
            standing = await self._service.look(job)
            if not standing.ended and out.found != self._ledger.found:
                self._may_submit = False
                self._note(
                    f"batch {job} was submitted when the endpoint was found to be another than now (model or settings):"
                    " nothing more is submitted while it is out"
                )
            if not standing.ended:
                self._note(f"batch {job}: {standing.status}, {standing.done} of {out.n_lines} requests done")
                continue
            results = [] if standing.lost else [result async for result in self._service.results(job)]
            brought = self._ledger.collect(out.tag, results, standing.reason)
            self._note(f"batch {job}: {standing.status}, {brought.answered} answers, {brought.failed} failed")
            if brought.contradicted or brought.unknown:
                self._note(
                    f"batch {job}: {brought.contradicted} requests were answered twice and differently (the first answer"
                    f" counts), {brought.unknown} answers to requests that are none of ours were left out"
                )

    async def _advance_prompt(
        self, asked: tuple[Prompt, bytes, Readout], lines: Mapping[int, Line], progress: Progress
    ) -> None:
        """Journal the prompt's observation if everything it needs is back; else queue what is neither out nor back."""
        prompt, key, readout = asked
        if any(line.open for line in lines.values()):
            progress.waiting += 1
            return
        bodies = await requests_of(self._provider, prompt, readout)
        reason = None
        if lines and lines.keys() == set(range(len(bodies))):
            ordered = [lines[number] for number in range(len(bodies))]
            seen = await observe(self._provider, prompt, readout, ordered)
            self._seen.append((key, seen))
            if len(self._seen) >= _JOURNALLED_AT_ONCE:
                self._flush()
            if seen.error is None:
                progress.done += 1
                return
            reason = seen.error
            if all(line.answer is not None for line in ordered):
                self._ledger.unusable(key, seen.error)
                lines = {line.number: Line(number=line.number, round=line.round, open=False) for line in ordered}
        needed = [number for number in range(len(bodies)) if number not in lines or lines[number].answer is None]
        if any(number in lines and _exhausted(lines[number]) for number in needed):
            progress.exhausted += 1
            reason = reason or NO_ANSWER
            progress.reasons[reason] = progress.reasons.get(reason, 0) + 1
            return
        progress.waiting += 1
        for number in needed if self._may_submit else ():
            before = lines[number].round if number in lines else 0
            await self._add(_Entry(key=key, number=number, round=before + 1, body=bodies[number]), progress)

    async def _add(self, entry: _Entry, progress: Progress) -> None:
        """Queue a request; a job that is full is submitted first."""
        size = len(json.dumps(entry.body)) + _OVERHEAD_BYTES
        full = len(self._queue) >= self._service.max_lines or self._queued_bytes + size > self._service.max_bytes
        if self._queue and full:
            await self._submit(progress)
        self._queue.append(entry)
        self._queued_bytes += size

    async def _submit(self, progress: Progress) -> None:
        """Submit the queue as one job. It is written down first: what is cut off in between is looked for next time."""
        entries, self._queue, self._queued_bytes = self._queue, [], 0
        tag = uuid.uuid4().hex
        self._ledger.prepare(tag, [(entry.key, entry.number, entry.round) for entry in entries])
        requests = [Request(custom_id=custom_id(entry.key, entry.number), body=entry.body) for entry in entries]
        try:
            job = await self._service.submit(requests, tag)
        except NotSubmittedError:
            self._ledger.drop(tag)
            raise
        self._ledger.submitted(tag, job)
        progress.submitted += len(entries)
        self._note(f"batch {job}: submitted with {len(entries)} requests")


def _exhausted(line: Line) -> bool:
    return line.final or line.round >= MAX_ROUNDS


def _count(usage: Usage | None, lines: Iterable[Line]) -> None:
    for line in lines:
        if usage is not None:
            usage.batch_input_tokens += line.input_tokens or 0
            usage.batch_output_tokens += line.output_tokens or 0
