"""The pace against a clock that the test moves: what is under way, and when the next request goes out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from harness.providers.http.pace import FIRST_LEVEL, JITTER_S, LONGEST_WAIT_S, Pace
from harness.providers.targets import Limits


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


def pace(clock: Clock, *, fixed: bool = False, **limits: float) -> Pace:
    return Pace(Limits.model_validate({"concurrency": 64, **limits}), fixed=fixed, sleep=clock.sleep, clock=clock)


async def one(pace: Pace, latency_s: float = 0.01) -> None:
    await pace.enter()
    pace.succeeded(latency_s)
    pace.leave()


def run(body: Callable[[Pace, Clock], Awaitable[None]], *, fixed: bool = False, **limits: float) -> tuple[Pace, Clock]:
    clock = Clock()
    made = pace(clock, fixed=fixed, **limits)

    async def whole() -> None:
        await body(made, clock)

    asyncio.run(whole())
    assert made.under_way == 0
    return made, clock


async def round_of(pace: Pace, latency_s: float) -> None:
    """As many requests as may be under way, all at once."""
    level = int(pace.level)
    for _ in range(level):
        await pace.enter()
    for _ in range(level):
        pace.succeeded(latency_s)
        pace.leave()


def test_the_level_doubles_each_round_until_the_cap() -> None:
    async def body(pace: Pace, _: Clock) -> None:
        levels = []
        for _ in range(6):
            levels.append(pace.level)
            await round_of(pace, 0.01)
        assert levels == [FIRST_LEVEL, 8, 16, 32, 64, 64]

    run(body)


def test_after_the_first_push_back_it_grows_by_one_each_round() -> None:
    async def body(pace: Pace, _: Clock) -> None:
        for _ in range(3):
            await round_of(pace, 0.01)
        number = await pace.enter()
        pace.pushed_back(number, None)
        pace.leave()
        assert pace.level == 16
        await round_of(pace, 0.01)
        assert pace.level == pytest.approx(17, abs=0.1)

    run(body)


def test_requests_that_were_under_way_together_lower_the_level_once() -> None:
    async def body(pace: Pace, _: Clock) -> None:
        await round_of(pace, 0.01)
        await round_of(pace, 0.01)
        numbers = [await pace.enter() for _ in range(16)]
        for number in numbers:
            pace.pushed_back(number, None)
            pace.leave()
        assert pace.level == 8
        number = await pace.enter()  # sent after the fall: this one counts
        pace.pushed_back(number, None)
        pace.leave()
        assert pace.level == 4

    run(body)


def test_the_level_never_falls_below_one_request() -> None:
    async def body(pace: Pace, _: Clock) -> None:
        for _ in range(20):
            pace.pushed_back(await pace.enter(), None)
            pace.leave()
        assert pace.level == 1.0
        await one(pace)

    run(body)


def test_answers_that_take_clearly_longer_than_before_lower_the_level() -> None:
    async def body(pace: Pace, _: Clock) -> None:
        for _ in range(14):  # what is usual at this level is known after some rounds at it
            await round_of(pace, 0.1)
        assert pace.level == 64
        await round_of(pace, 0.1 * 1.9)
        assert pace.level == 64
        for _ in range(2):  # rounds need not begin where ours do
            await round_of(pace, 0.3)
        assert 30 <= pace.level < 60

    run(body)


def test_our_own_noise_is_no_lateness() -> None:
    async def body(pace: Pace, _: Clock) -> None:
        for _ in range(14):
            await round_of(pace, 0.002)
        await round_of(pace, 0.04)
        assert pace.level == 64

    run(body)


def test_a_server_that_is_busy_is_not_late() -> None:
    """Latency that grows with the level is a queue of ours; throughput is the same."""

    async def body(pace: Pace, _: Clock) -> None:
        for _ in range(12):
            await round_of(pace, 0.05 * pace.level)
        assert pace.level == 64

    run(body)


def test_a_fixed_level_stays() -> None:
    async def body(pace: Pace, _: Clock) -> None:
        assert pace.level == 64
        pace.pushed_back(await pace.enter(), None)
        pace.leave()
        for latency_s in (0.1, 0.1, 9.0):
            await round_of(pace, latency_s)
        assert pace.level == 64

    run(body, fixed=True)


def test_no_more_are_under_way_than_the_level_and_those_who_wait_come_in_turn() -> None:
    async def body(pace: Pace, _: Clock) -> None:
        order, most = [], 0

        async def request(number: int) -> None:
            nonlocal most
            await pace.enter()
            order.append(number)
            most = max(most, pace.under_way)
            await asyncio.sleep(0)
            pace.leave()

        await asyncio.gather(*(request(i) for i in range(50)))
        assert order == list(range(50))
        assert most == FIRST_LEVEL

    run(body)


def test_whoever_gives_up_waiting_takes_no_place() -> None:
    async def body(pace: Pace, _: Clock) -> None:
        held = [await pace.enter() for _ in range(int(FIRST_LEVEL))]
        waiting = [asyncio.create_task(pace.enter()) for _ in range(6)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        pace.leave()  # lets in waiting[1]
        await asyncio.sleep(0)
        waiting[2].cancel()
        pace.leave()  # lets in waiting[3], or would have let in waiting[2]
        for _ in held[2:]:
            pace.leave()
        done = await asyncio.gather(*waiting, return_exceptions=True)
        assert sum(isinstance(one, int) for one in done) == 4
        for _ in range(4):
            pace.leave()

    run(body)


@pytest.mark.parametrize(("asked_s", "low_s"), [(7.0, 7.0), (3600.0, LONGEST_WAIT_S), (0.0, 0.0)])
def test_a_hold_stops_everyone_for_as_long_as_was_asked_and_a_minute_at_the_most(asked_s: float, low_s: float) -> None:
    async def body(pace: Pace, clock: Clock) -> None:
        pace.pushed_back(await pace.enter(), asked_s)
        pace.leave()
        began = clock.now
        await asyncio.gather(*(one(pace) for _ in range(5)))
        assert low_s <= clock.now - began <= low_s + 3 * JITTER_S + 1e-6  # sleepers each move this clock

    _, clock = run(body, concurrency=1)
    assert max(clock.slept) <= LONGEST_WAIT_S + JITTER_S


def test_a_second_hold_lengthens_the_first_and_never_shortens_it() -> None:
    async def body(pace: Pace, clock: Clock) -> None:
        began = clock.now
        pace.hold(20)
        pace.hold(5)
        await one(pace)
        assert 20 <= clock.now - began <= 20 + JITTER_S

    run(body, concurrency=1)


@pytest.mark.parametrize(("limits", "tokens"), [({"requests_per_minute": 120}, 0), ({"tokens_per_minute": 1200}, 10)])
def test_no_minute_sees_more_than_the_limit(limits: dict[str, float], tokens: int) -> None:
    sent: list[float] = []

    async def body(pace: Pace, clock: Clock) -> None:
        for _ in range(400):
            await pace.enter(tokens)
            sent.append(clock.now)
            pace.leave()

    run(body, **limits)
    assert sent[-1] - sent[0] == pytest.approx(399 * 0.5, rel=0.01)
    for i, start in enumerate(sent):
        assert sum(start <= at < start + 60 - 1e-6 for at in sent[i:]) <= 120


def test_a_large_request_is_paid_for_afterwards() -> None:
    async def body(pace: Pace, clock: Clock) -> None:
        for tokens in (600, 1, 1):
            await pace.enter(tokens)
            pace.leave()
        assert clock.slept == pytest.approx([60.0, 0.1])

    run(body, tokens_per_minute=600)
