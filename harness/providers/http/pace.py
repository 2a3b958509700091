"""How fast an endpoint is asked: how many requests are under way at once, and when the next one may go out.

The level finds itself: it doubles until the endpoint first pushes back, then grows by one for each round of requests, and falls
when the endpoint says that it is asked too much or when answers take clearly longer than they did. All times are monotonic, so
a clock that is set changes nothing.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable

from harness.providers.targets import Limits

LONGEST_WAIT_S = 60.0
"""However long an endpoint asks to wait, it is asked again after this."""

JITTER_S = 0.5
FIRST_LEVEL = 4.0
_PUSHED_BACK = 0.5
_LATE = 0.75
_CLEARLY = 2.0
_NOTICEABLE_S = 0.05
"""Answers are late when they take twice as long as they did, and this much longer: below it, it may be our own doing."""

_ROUND = 16
"""Answers whose median is compared, at the least."""


class Pace:
    """The pace of one endpoint: `enter` before each request and `leave` after it.

    `level` is how many requests may be under way, at most `limits.concurrency`; there it stays where it is `fixed`.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        fixed: bool = False,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.cap = limits.concurrency
        self.level = float(self.cap) if fixed else min(FIRST_LEVEL, float(self.cap))
        self.under_way = 0
        self._fixed = fixed
        self._sleep = sleep
        self._clock = clock
        self._queue: deque[asyncio.Future[None]] = deque()
        self._held_until: float | None = None
        self._requests = _PerMinute(limits.requests_per_minute)
        self._tokens = _PerMinute(limits.tokens_per_minute)
        self._limited = self._requests.limited or self._tokens.limited
        self._lateness = _Lateness()
        self._entered = 0
        self._entered_before_cut = 0
        self._doubling = True

    @property
    def counts_tokens(self) -> bool:
        """Whether `enter` is to be told a request's tokens."""
        return self._tokens.limited

    async def enter(self, tokens: int = 0) -> int:
        """Wait until a request that holds so many tokens may go out. The number of the request, which `pushed_back` wants."""
        if self.under_way >= int(self.level) or self._queue:
            await self._turn()
        else:
            self.under_way += 1
        if self._held_until is not None or self._limited:
            try:
                await self._wait(tokens)
            except BaseException:
                self.leave()
                raise
        self._entered += 1
        return self._entered

    def leave(self) -> None:
        """The request has come back, or never will."""
        self.under_way -= 1
        self._let_in()

    def succeeded(self, latency_s: float) -> None:
        """An answer came `latency_s` after its request went out."""
        if self._fixed:
            return
        if self.level < self.cap:
            self.level = min(self.level + (1.0 if self._doubling else 1.0 / self.level), self.cap)
        if self._lateness.add(latency_s, self.level):
            self._cut(_LATE)

    def pushed_back(self, number: int, asked_s: float | None) -> None:
        """The endpoint answered a request with: too much, and wait `asked_s` seconds. The level falls once for all requests
        that were under way together."""
        if asked_s is not None:
            self.hold(asked_s)
        if number > self._entered_before_cut:
            self._cut(_PUSHED_BACK)

    def hold(self, seconds: float) -> None:
        """Nothing goes out for so long and a jitter, but for no longer than `LONGEST_WAIT_S` and the jitter."""
        until = self._clock() + min(seconds, LONGEST_WAIT_S) + random.uniform(0, JITTER_S)
        self._held_until = max(until, self._held_until or until)

    async def _turn(self) -> None:
        place = asyncio.get_running_loop().create_future()
        self._queue.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if not place.cancelled():  # it was our turn already
                self.leave()
            raise

    def _let_in(self) -> None:
        """As many of those who wait as there is room for; they are under way from here on."""
        while self._queue and self.under_way < int(self.level):
            place = self._queue.popleft()
            if not place.done():
                self.under_way += 1
                place.set_result(None)

    async def _wait(self, tokens: int) -> None:
        """Until nothing holds us and the limits of the minute leave room."""
        now = self._clock()
        delay = max(self._requests.take(1, now), self._tokens.take(tokens, now))
        if delay > 0:
            await self._sleep(delay)
        while (until := self._held_until) is not None:
            await self._sleep(max(until - self._clock(), 0.0))
            if self._held_until == until:
                self._held_until = None

    def _cut(self, factor: float) -> None:
        self._doubling = False
        self._entered_before_cut = self._entered
        if not self._fixed:
            self.level = max(self.level * factor, 1.0)


class _PerMinute:
    """Spaces requests so that no minute sees more than `limit`; None limits nothing."""

    def __init__(self, limit: float | None) -> None:
        self.limited = limit is not None
        self._seconds_each = 60.0 / limit if limit else 0.0
        self._next = 0.0

    def take(self, amount: int, now: float) -> float:
        """Seconds until `amount` may go out."""
        at = max(self._next, now)
        self._next = at + amount * self._seconds_each
        return at - now


class _Lateness:
    """Whether answers take clearly longer than they usually do.

    A server that is busy answers each request later the more of them there are, and as many a second as before. That is not
    late: what is usual grows with the level.
    """

    def __init__(self) -> None:
        self._round: list[float] = []
        self._usual_s: float | None = None
        self._level = 1.0

    def add(self, latency_s: float, level: float) -> bool:
        """Take in one answer; whether its round was late."""
        self._round.append(latency_s)
        if len(self._round) < max(level, _ROUND):
            return False
        took_s = sorted(self._round)[len(self._round) // 2]
        self._round.clear()
        usual_s = took_s if self._usual_s is None else self._usual_s * max(level / self._level, 1.0)
        # What is faster is believed at once; what is slower becomes usual in time.
        self._usual_s = usual_s + (took_s - usual_s) * (0.5 if took_s < usual_s else 0.1)
        self._level = level
        return took_s > max(_CLEARLY * usual_s, usual_s + _NOTICEABLE_S)
