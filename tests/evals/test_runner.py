"""Asking: what goes to the provider, what the journal then holds, and in which order things happen."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from harness.errors import StorageError, UnreachableError
from harness.evals import outbox as outbox_module
from harness.evals import runner
from harness.evals.outbox import Outbox, Work
from harness.evals.plan import Choice, Plan, count_prompts, make_plan
from harness.evals.runner import Job, Tally, ask_all, job_batches, journalled, make_job
from harness.evals.spec import find_eval
from harness.packs.pack import find_pack
from harness.providers.base import Fetched
from harness.providers.scripted import ScriptedProvider
from harness.records import CLEAN, Lexicon, Lists, Mode, Observation, Prompt, Readout
from harness.store import KEY_BYTES, Journal


class Watched(ScriptedProvider):
    """Notes what it is asked and how much at once; `fails` says whose prompts fail."""

    def __init__(self, *, fails: Any = lambda _prompt: False, **kwargs: Any) -> None:
        super().__init__(lambda _: {" dog": 0.5, " cat": 0.25}, **kwargs)
        self.asked: list[list[Prompt]] = []
        self.most = self.now = 0
        self.fails = fails

    async def observe(self, prompts: Sequence[Prompt], readout: Readout) -> list[Observation]:
        self.asked.append(list(prompts))
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(0.001)
            seen = await super().observe(prompts, readout)
        finally:
            self.now -= 1
        return [Observation(error="no") if self.fails(p) else o for p, o in zip(prompts, seen, strict=True)]


@pytest.fixture
def plan() -> Plan:
    return make_plan(find_eval("transfer"), find_pack("lexical"), Choice(concepts=("animal", "food"), limit=4))


def asked_all(plan: Plan, provider: Any, path: Path, *, job: Any = lambda job: job) -> tuple[Job, Tally]:
    """Ask everything; `job` may replace the job before that."""
    with Journal(path) as journal:
        made = job(make_job(plan, provider, journal))
        tally = Tally(planned=count_prompts(plan))
        asyncio.run(ask_all(made, tally, lambda _: None))
        return made, tally


def kept(job: Job, path: Path) -> list[tuple[Prompt, Observation]]:
    """Every prompt of the plan with what the journal holds."""
    with Journal(path) as journal:
        job = Job(plan=job.plan, provider=job.provider, journal=journal, lexicons=job.lexicons, keys=job.keys, modes=job.modes)
        return [
            pair
            for name in job.plan.concepts
            for batch in job_batches(job, job.plan.pack.concept(name))
            for pair in zip(batch, journalled(job, batch, job.readout(name)), strict=True)
        ]


@pytest.mark.parametrize(("batch_size", "concurrency"), [(1, 3), (7, 2), (64, 4)])
def test_every_prompt_is_asked_once_in_the_plans_batches_and_journalled(
    plan: Plan, tmp_path: Path, batch_size: int, concurrency: int
) -> None:
    provider = Watched(batch_size=batch_size, concurrency=concurrency)
    job, tally = asked_all(plan, provider, tmp_path / "j.sqlite")
    pairs = kept(job, tmp_path / "j.sqlite")
    assert len(pairs) == tally.planned == tally.done
    assert tally.failed == tally.from_cache == 0
    assert all(observation.error is None for _, observation in pairs)
    assert provider.most == concurrency or len(provider.asked) < concurrency
    asked = [[prompt.prompt_id for prompt in batch] for batch in provider.asked]
    planned = [prompt.prompt_id for prompt, _ in pairs]
    assert [one for batch in asked for one in batch] == planned, "handed out in the plan's order"
    assert max(map(len, asked)) <= batch_size


def test_what_is_answered_is_not_asked_again_and_what_failed_is(plan: Plan, tmp_path: Path) -> None:
    provider = Watched(batch_size=5, fails=lambda prompt: crc32(prompt.text.encode()) % 3 == 0)
    _, tally = asked_all(plan, provider, tmp_path / "j.sqlite")
    assert 0 < tally.failed == tally.reasons["no"] < tally.planned
    healthy = Watched(batch_size=5)
    _, again = asked_all(plan, healthy, tmp_path / "j.sqlite")
    assert (again.done, again.failed, again.from_cache) == (tally.planned, 0, tally.done)
    assert sum(map(len, healthy.asked)) == tally.failed
    batch_of = {prompt.prompt_id: i for i, batch in enumerate(provider.asked) for prompt in batch}
    for batch in healthy.asked:
        assert len({batch_of[prompt.prompt_id] for prompt in batch}) == 1, "a batch of the plan, without what is answered"


def test_a_plan_is_made_ready_in_parts_that_give_the_same_batches(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = Watched(batch_size=6), Watched(batch_size=6)
    asked_all(plan, whole, tmp_path / "whole.sqlite")
    monkeypatch.setattr(runner, "_PLANNED_AT_ONCE", 10)
    job, _ = asked_all(plan, parts, tmp_path / "parts.sqlite")
    assert parts.asked == whole.asked
    assert [prompt for prompt, _ in kept(job, tmp_path / "parts.sqlite")] == [p for batch in whole.asked for p in batch]


def test_where_clean_sentences_decide_the_mode_they_are_journalled_before_the_rest_is_planned(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = Watched(batch_size=3, concurrency=4)
    seen: list[tuple[str, int, int]] = []

    def settled(job: Job, concept: str, clean: Sequence[Observation]) -> bool:
        seen.append((concept, job.journal.count(), provider.now))
        assert clean
        assert all(observation.error is None for observation in clean)
        return False

    monkeypatch.setattr(Job, "needs_mode", lambda _job, concept: concept == "food")
    monkeypatch.setattr(Job, "settle_mode", settled)
    _, tally = asked_all(plan, provider, tmp_path / "j.sqlite")
    asked = [prompt for batch in provider.asked for prompt in batch]
    before = next(i for i, prompt in enumerate(asked) if prompt.concept == "food" and prompt.arm != CLEAN)
    assert seen == [("food", before, 0)]
    assert tally.done == tally.planned


def test_what_the_provider_raises_ends_the_asking_and_what_came_back_is_kept(plan: Plan, tmp_path: Path) -> None:
    class Dying(Watched):
        async def observe(self, prompts: Sequence[Prompt], readout: Readout) -> list[Observation]:
            seen = await super().observe(prompts, readout)
            if len(self.asked) > 6:
                raise UnreachableError("gone")
            return seen

    provider = Dying(batch_size=4, concurrency=2)
    with Journal(tmp_path / "j.sqlite") as journal:
        job = make_job(plan, provider, journal)
        tally = Tally(planned=count_prompts(plan))
        with pytest.raises(UnreachableError, match="gone"):
            asyncio.run(ask_all(job, tally, lambda _: None))
        assert provider.now == 0
        assert journal.count() == tally.done == 4 * (len(provider.asked) - 2) or journal.count() == tally.done > 0


def test_a_cancelled_asking_has_journalled_what_came_back(plan: Plan, tmp_path: Path) -> None:
    provider = Watched(batch_size=4, concurrency=2)
    came: list[int] = []
    observe = provider.observe

    async def counted(prompts: Sequence[Prompt], readout: Readout) -> list[Observation]:
        seen = await observe(prompts, readout)
        came.append(len(seen))
        return seen

    provider.observe = counted  # type: ignore[method-assign]

    async def body(job: Job, tally: Tally) -> None:
        task = asyncio.create_task(ask_all(job, tally, lambda _: None))
        while len(came) < 5:
            await asyncio.sleep(0.0005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with Journal(tmp_path / "j.sqlite") as journal:
        job, tally = make_job(plan, provider, journal), Tally(planned=count_prompts(plan))
        asyncio.run(body(job, tally))
        assert journal.count() == tally.done == sum(came) < tally.planned


def test_a_journal_that_cannot_be_written_ends_the_asking_with_its_error(plan: Plan, tmp_path: Path) -> None:
    provider = Watched(batch_size=4, concurrency=2)
    with Journal(tmp_path / "j.sqlite") as journal:
        puts = []

        def full(_: Any) -> None:
            puts.append(1)
            raise StorageError("full")

        journal.write = full  # type: ignore[method-assign]
        job = make_job(plan, provider, journal)
        with pytest.raises(StorageError, match="full"):
            asyncio.run(ask_all(job, Tally(planned=count_prompts(plan)), lambda _: None))
    assert len(puts) == 1
    assert provider.now == 0


class Deferred(Watched):
    """Fetches now and reads later; the first answer to a prompt is spoiled where `spoils` says so."""

    def __init__(self, *, spoils: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.spoils = spoils
        self.fetched: list[list[Prompt]] = []

    async def fetch(self, prompts: Sequence[Prompt], readout: Readout) -> Fetched | list[Observation]:
        self.fetched.append(list(prompts))
        number = len(self.fetched)
        seen = await ScriptedProvider.observe(self, prompts, readout)
        if number % 3 == 0:  # what cannot be read later comes as it is
            return [Observation(error="no") if self.fails(p) else o for p, o in zip(prompts, seen, strict=True)]
        return Fetched(raw=(list(prompts), seen), entries=2 * len(seen), attempts=2, latency_s=0.5)

    def read(self, fetched: Sequence[Fetched]) -> list[Lists | list[Observation]]:
        return [
            [
                Observation(error="spoiled") if self.spoils(p) else replace(o, attempts=one.attempts)
                for p, o in zip(*one.raw, strict=True)
            ]
            for one in fetched
        ]


def third(prompt: Prompt) -> bool:
    return crc32(prompt.text.encode()) % 3 == 0


@pytest.mark.parametrize("batch_size", [1, 6])
def test_answers_that_are_read_later_and_found_spoiled_are_asked_for_again(plan: Plan, tmp_path: Path, batch_size: int) -> None:
    provider = Deferred(spoils=third, batch_size=batch_size, concurrency=3)
    job, tally = asked_all(plan, provider, tmp_path / "j.sqlite")
    assert (tally.done, tally.failed) == (tally.planned, 0)
    pairs = kept(job, tmp_path / "j.sqlite")
    assert all(observation.error is None for _, observation in pairs)
    read_later = {p.prompt_id for i, batch in enumerate(provider.fetched, 1) if i % 3 for p in batch}
    again = {prompt.prompt_id for batch in provider.asked for prompt in batch}
    assert again == {p.prompt_id for p, _ in pairs if p.prompt_id in read_later and third(p)}
    for prompt, observation in pairs:
        later = prompt.prompt_id in read_later
        assert observation.attempts == (3 if later and third(prompt) else 2 if later else 1)


def test_what_stays_spoiled_fails_once(plan: Plan, tmp_path: Path) -> None:
    provider = Deferred(spoils=third, batch_size=4, fails=third)
    job, tally = asked_all(plan, provider, tmp_path / "j.sqlite")
    assert tally.done + tally.failed == tally.planned
    assert tally.reasons == {"no": tally.failed}
    assert {p.prompt_id for p, o in kept(job, tmp_path / "j.sqlite") if o.error} == {
        p.prompt_id for p, _ in kept(job, tmp_path / "j.sqlite") if third(p)
    }


# The outbox


def key(number: int) -> bytes:
    return number.to_bytes(KEY_BYTES)


def work(number: int) -> Work:
    readout = Readout(
        lexicon=Lexicon(concept="", words=frozenset(), token_ids=None, resolved_share=None, digest=""), n_logprobs=1
    )
    return Work(prompts=(), keys=(key(number),), readout=readout)


def test_answers_of_a_moment_are_written_together_and_told_once_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []

    async def body(journal: Journal) -> None:
        def told(answers: Sequence[Lists | Sequence[Observation]]) -> None:
            n = sum(map(len, answers))
            assert journal.count() == sum(written) + n
            written.append(n)

        outbox = Outbox(journal, Watched(), told)
        running = asyncio.create_task(outbox.run())
        for i in range(30):
            await outbox.add(work(i), [Observation(mode=Mode.TOPK)])
        assert not written
        await outbox.flush()
        assert written == [30]
        await outbox.flush()
        for i in range(30, 60):
            await outbox.add(work(i), [Observation(mode=Mode.TOPK)])
        outbox.close()
        await running

    monkeypatch.setattr(outbox_module, "GATHER_S", 60.0)
    with Journal(tmp_path / "j.sqlite") as journal:
        asyncio.run(body(journal))
        assert journal.count() == 60
    assert written == [30, 30]


def test_answers_that_nobody_flushes_are_written_soon(tmp_path: Path) -> None:
    async def body(journal: Journal) -> None:
        done = asyncio.Event()
        outbox = Outbox(journal, Watched(), lambda _: done.set())
        running = asyncio.create_task(outbox.run())
        await outbox.add(work(1), [Observation(mode=Mode.TOPK)])
        await asyncio.wait_for(done.wait(), 30)
        outbox.close()
        await running

    with Journal(tmp_path / "j.sqlite") as journal:
        asyncio.run(body(journal))
        assert journal.count() == 1


def test_asking_waits_for_a_slow_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "_MOST_WAITING", 10)
    monkeypatch.setattr(outbox_module, "GATHER_S", 60.0)

    async def body(journal: Journal) -> None:
        outbox = Outbox(journal, Watched(), lambda _: None)
        for i in range(9):
            await outbox.add(work(i), [Observation(mode=Mode.TOPK)])
        late = asyncio.create_task(outbox.add(work(9), [Observation(mode=Mode.TOPK)]))
        await asyncio.sleep(0.01)
        assert not late.done(), "nothing is written yet"
        running = asyncio.create_task(outbox.run())
        outbox.close()
        await asyncio.wait_for(late, 30)
        await running

    with Journal(tmp_path / "j.sqlite") as journal:
        asyncio.run(body(journal))
        assert journal.count() == 10
