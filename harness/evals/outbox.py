"""Answers on their way into the journal: those that arrive within a moment are read and written together.

Only what waits for the disk is done in a thread: two threads that both run Python take turns at every request, and both lose.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.providers.base import Deferring, Fetched, Provider
from harness.records import Lists, Observation, Prompt, Readout
from harness.store import Journal, pack

GATHER_S = 0.02
"""How long an answer waits for others, and so how much of a killed process' time is asked for again."""

_WRITTEN_AT_ONCE = 512
_MOST_ENTRIES = 1 << 17
"""List entries at which a block is written whatever its number of answers: 1 MB."""

_MOST_WAITING = 8 * _WRITTEN_AT_ONCE
"""Answers at which the asking waits for the disk."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Work:
    """The prompts of one batch that lack an answer, with their keys. `attempts`: requests for them that came to nothing."""

    prompts: Sequence[Prompt]
    keys: Sequence[bytes]
    readout: Readout
    attempts: int = 0


_Kept = tuple[Sequence[bytes], Lists | Sequence[Observation]]


class Outbox:
    """Where the workers put what came back. `written` is told what is in the journal now.

    What came back unread and cannot be used is not written: `take_spoiled` gives it back, to be asked for again.
    """

    def __init__(
        self, journal: Journal, provider: Provider, written: Callable[[Sequence[Lists | Sequence[Observation]]], None]
    ) -> None:
        self._journal = journal
        self._provider = provider
        self._written = written
        self._waiting: list[tuple[Work, Fetched | Sequence[Observation]]] = []
        self._spoiled: list[Work] = []
        self._answers = self._entries = 0
        self._timer: asyncio.TimerHandle | None = None
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._empty = asyncio.Event()
        self._room.set()
        self._empty.set()
        self._closed = False

    async def add(self, work: Work, came: Fetched | Sequence[Observation]) -> None:
        """Keep what came for `work`, soon. Waits only where the disk is slower than the endpoint."""
        if not self._waiting:
            self._empty.clear()
            self._timer = asyncio.get_running_loop().call_later(GATHER_S, self._wake.set)
        self._waiting.append((work, came))
        self._answers += len(work.keys)
        self._entries += came.entries if isinstance(came, Fetched) else sum(len(one.logprobs) for one in came)
        if self._answers >= _WRITTEN_AT_ONCE or self._entries >= _MOST_ENTRIES:
            self._wake.set()
        if self._answers >= _MOST_WAITING:
            self._room.clear()
            await self._room.wait()

    async def flush(self) -> None:
        """Return once everything that was added is in the journal, or spoiled."""
        self._wake.set()
        await self._empty.wait()

    def take_spoiled(self) -> list[Work]:
        """The prompts whose answers could not be used, since the last call."""
        spoiled, self._spoiled = self._spoiled, []
        return spoiled

    def close(self) -> None:
        """`run` writes what is left and ends."""
        self._closed = True
        self._wake.set()

    async def run(self) -> None:
        """Write until closed; raises StorageError, and then nothing more is written."""
        while self._waiting or not self._closed:
            await self._wake.wait()
            self._wake.clear()
            part, self._waiting, self._answers, self._entries = self._waiting, [], 0, 0
            if self._timer is not None:
                self._timer.cancel()
            if part:
                kept = self._read(part)
                if kept:
                    await asyncio.to_thread(self._journal.write, pack(kept))
                self._written([answers for _, answers in kept])
            self._room.set()
            if not self._waiting:
                self._empty.set()

    def _read(self, part: list[tuple[Work, Fetched | Sequence[Observation]]]) -> list[_Kept]:
        """What of it can be used, under its keys; the rest is spoiled."""
        kept: list[_Kept] = [(work.keys, came) for work, came in part if not isinstance(came, Fetched)]
        unread = [(work, came) for work, came in part if isinstance(came, Fetched)]
        if unread and isinstance(self._provider, Deferring):
            places = [(work, came, i) for work, came in unread for i in range(len(work.keys))]
            start = 0
            for read in self._provider.read([came for _, came in unread]):
                own = places[start : start + len(read)]
                start += len(read)
                keys = [work.keys[i] for work, _, i in own]
                if not isinstance(read, Lists):
                    good = [i for i, one in enumerate(read) if one.error is None]
                    bad = [own[i] for i, one in enumerate(read) if one.error is not None]
                    self._spoiled += [_only(work, i, came.attempts) for work, came, i in bad]
                    keys, read = [keys[i] for i in good], [read[i] for i in good]
                if keys:
                    kept.append((keys, read))
        return kept


def _only(work: Work, place: int, attempts: int) -> Work:
    return Work(prompts=[work.prompts[place]], keys=[work.keys[place]], readout=work.readout, attempts=attempts)
