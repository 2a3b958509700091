"""Requests of two kinds never meet, none waits for ever, and one that is cancelled takes nobody along."""

from __future__ import annotations

import asyncio
import random

import pytest

from harness.providers.http.gate import Gate


class Room:
    """Sees who is inside together."""

    def __init__(self) -> None:
        self.gate = Gate()
        self.inside: list[str] = []
        self.most = 0
        self.entered: list[str] = []

    async def visit(self, kind: str, stay_s: float = 0.0) -> None:
        await self.gate.enter(kind)
        self.inside.append(kind)
        self.entered.append(kind)
        try:
            assert set(self.inside) == {kind}
            self.most = max(self.most, len(self.inside))
            await asyncio.sleep(stay_s)
        finally:
            self.inside.remove(kind)
            self.gate.leave()


@pytest.mark.parametrize("seed", range(5))
def test_kinds_never_meet_and_everybody_gets_in(seed: int) -> None:
    rng = random.Random(seed)
    room = Room()

    async def worker() -> None:
        for _ in range(20):
            await room.visit(rng.choice("ab"), rng.random() * 0.001)

    async def body() -> None:
        await asyncio.wait_for(asyncio.gather(*(worker() for _ in range(8))), 20)

    asyncio.run(body())
    assert len(room.entered) == 160
    assert room.most > 1


def test_one_kind_alone_is_never_held_up() -> None:
    room = Room()

    async def body() -> None:
        await asyncio.gather(*(room.visit("a", 0.01) for _ in range(16)))

    asyncio.run(body())
    assert room.most == 16


def test_late_comers_do_not_overtake_the_other_kind() -> None:
    room = Room()

    async def body() -> None:
        first = asyncio.create_task(room.visit("a", 0.01))
        await asyncio.sleep(0)
        other = asyncio.create_task(room.visit("b", 0.01))
        await asyncio.sleep(0)
        late = asyncio.create_task(room.visit("a"))
        await asyncio.gather(first, other, late)

    asyncio.run(body())
    assert room.entered == ["a", "b", "a"]


@pytest.mark.parametrize("when_s", [0.0, 0.01, 0.02, 0.03])
def test_one_that_is_cancelled_leaves_the_way_free(when_s: float) -> None:
    room = Room()

    async def body() -> None:
        first = asyncio.create_task(room.visit("a", 0.02))
        await asyncio.sleep(0)
        given_up = asyncio.create_task(room.visit("b", 0.02))
        await asyncio.sleep(0)
        third = asyncio.create_task(room.visit("a"))
        await asyncio.sleep(when_s)
        given_up.cancel()
        await asyncio.wait_for(asyncio.gather(first, third), 5)
        await asyncio.wait_for(room.visit("b"), 5)

    asyncio.run(body())
