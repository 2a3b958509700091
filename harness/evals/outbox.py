"""Answers on their way into the journal: those that arrive within a moment are written together, in a thread of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from harness.records import Observation
from harness.store import Journal

GATHER_S = 0.02
"""How long an answer waits for others, and so how much of a killed process' time is asked for again."""

_WRITTEN_AT_ONCE = 512
_MOST_ENTRIES = 1 << 17
"""List entries at which a block is written whatever its number of answers: 1 MB."""

_MOST_WAITING = 8 * _WRITTEN_AT_ONCE
"""Answers at which the asking waits for the disk."""


class Outbox:
    """Where the workers put what came back. `written` is told what is in the journal now, in the order in which it came."""

    def __init__(self, journal: Journal, written: Callable[[Sequence[Observation]], None]) -> None:
        self._journal = journal
        self._written = written
        self._waiting: list[tuple[bytes, Observation]] = []
        self._entries = 0
        self._timer: asyncio.TimerHandle | None = None
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._empty = asyncio.Event()
        self._room.set()
        self._empty.set()
        self._closed = False

    async def add(self, keys: Sequence[bytes], observations: Sequence[Observation]) -> None:
        """Keep each observation under its key, soon. Waits only where the disk is slower than the endpoint."""
        if not self._waiting:
            self._empty.clear()
            self._timer = asyncio.get_running_loop().call_later(GATHER_S, self._wake.set)
        self._waiting += zip(keys, observations, strict=True)
        self._entries += sum(len(observation.logprobs) for observation in observations)
        if len(self._waiting) >= _WRITTEN_AT_ONCE or self._entries >= _MOST_ENTRIES:
            self._wake.set()
            if len(self._waiting) >= _MOST_WAITING:
                self._room.clear()
                await self._room.wait()

    async def flush(self) -> None:
        """Return once everything that was added is in the journal."""
        self._wake.set()
        await self._empty.wait()

    def close(self) -> None:
        """`run` writes what is left and ends."""
        self._closed = True
        self._wake.set()

    async def run(self) -> None:
        """Write until closed; raises StorageError, and then nothing more is written."""
        while self._waiting or not self._closed:
            await self._wake.wait()
            self._wake.clear()
            part, self._waiting, self._entries = self._waiting, [], 0
            if self._timer is not None:
                self._timer.cancel()
            if part:
                await asyncio.to_thread(self._journal.put, part)
                self._written([observation for _, observation in part])
            self._room.set()
            if not self._waiting:
                self._empty.set()
