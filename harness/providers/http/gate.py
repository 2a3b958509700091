"""Keeps two kinds of requests apart: while one kind is under way, requests of the other wait.

vLLM 0.32 answers a request for its likeliest tokens with two tokens, one of them at minus infinity, when it computes it in one
batch with a request for chosen ids. Such an answer is refused, but asked again beside the same neighbours it comes again.
"""

from __future__ import annotations

import asyncio
from collections import deque


class Gate:
    """Any number of requests of one kind may be inside. Who comes after someone of another kind waits behind them."""

    def __init__(self) -> None:
        self._kind = ""
        self._inside = 0
        self._waiting: deque[tuple[str, asyncio.Future[None]]] = deque()

    async def enter(self, kind: str) -> None:
        """Return once nobody of another kind is inside; `leave` must follow."""
        if self._inside and (self._waiting or kind != self._kind):
            await self._turn(kind)
        else:
            self._kind = kind
            self._inside += 1

    async def _turn(self, kind: str) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((kind, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # let in already
                self.leave()
            raise

    def leave(self) -> None:
        """One request fewer is inside; the last one lets in the next kind."""
        self._inside -= 1
        if self._inside or not self._waiting:
            return
        self._kind = self._waiting[0][0]
        behind: deque[tuple[str, asyncio.Future[None]]] = deque()
        for kind, turn in self._waiting:
            if kind != self._kind:
                behind.append((kind, turn))
            elif not turn.done():
                self._inside += 1
                turn.set_result(None)
        self._waiting = behind
        if not self._inside and behind:  # all of that kind had given up
            self._inside = 1
            self.leave()
