"""Sends requests and brings back JSON: one session, bounded retries, and every way to fail told in one class.

Knows HTTP, not what the requests mean. How fast it sends is `pace`'s.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import aiohttp
import orjson

from harness.masking import Mask
from harness.providers.http.gate import Gate
from harness.providers.http.pace import JITTER_S, LONGEST_WAIT_S, Pace
from harness.providers.http.waits import asked_wait_s, used_up_s
from harness.providers.targets import Endpoint
from harness.providers.wire.base import BadAnswerError
from harness.records import Usage

_RETRIED_STATUSES = frozenset({408, 409, 425, 429})
_PUSHED_BACK = frozenset({429, 503, 529})
_CONNECT_TIMEOUT_S = 10.0
_LARGEST_BODY = 64 * 1024 * 1024
"""64 prompts with 5,000 log-probabilities each come to 10 MB; more than this is no answer to what we ask."""

_PATIENCE = 4
"""How many times as often as for other failures a request is sent again that was turned away for the sake of others."""

_GONE = 8
_LOOK_AGAIN_S = 10.0

_LONGEST_REASON = 300
_MOST_DOUBLINGS = 10
_BACKOFF_S = 0.25
_ASK_AGAIN_S = 0.01
"""An answer that cannot be used does not mean that the endpoint is busy: it is asked again soon."""


class Failure(StrEnum):
    """What went wrong with a request."""

    UNREACHABLE = "unreachable"  # nobody listens
    SILENT = "silent"  # no answer in time
    BROKEN = "broken"  # the connection ended before the answer did
    STATUS = "status"  # an HTTP status other than success
    UNREADABLE = "unreadable"  # no JSON
    UNUSABLE = "unusable"  # too large, or JSON that does not say what was asked


_NOBODY = frozenset({Failure.UNREACHABLE, Failure.SILENT, Failure.BROKEN})


class RequestFailedError(Exception):
    """A request without a usable answer: `reason` is one line without secrets, `attempts` how often it was sent."""

    def __init__(self, failure: Failure, reason: str, *, status: int | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.failure = failure
        self.reason = reason
        self.status = status
        self.retry_after_s = retry_after_s
        self.attempts = 1

    @property
    def retryable(self) -> bool:
        """Whether sending the same again may help."""
        if self.failure is Failure.STATUS and self.status is not None:
            # A redirect is never followed; the declared host may well answer when it is asked again.
            return self.status in _RETRIED_STATUSES or self.status >= 500 or self.status < 400
        return True

    @property
    def turned_away(self) -> bool:
        """Whether the endpoint would answer, but not now: it says so, or says when."""
        return self.status in (429, 529) or (self.status == 503 and self.retry_after_s is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The JSON of an answer, the headers it came with, and how often the request was sent for it."""

    value: Any
    attempts: int
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What the answer to a request must be: `read` takes it, and raises BadAnswerError for one that is none; then it is asked
    for again. `largest`: bytes at which no more of it is read. `tokens`: how many the request holds, about. `kind`: requests of
    different kinds are never under way together; those of no kind mind nobody."""

    read: Callable[[Any], None]
    largest: int = _LARGEST_BODY
    tokens: int = 0
    kind: str = ""


def _take(_: Any) -> None:
    """Whatever comes is welcome."""


ANYTHING = Expected(read=_take)


class Transport:
    """One session to one endpoint. `key` goes out in the header that the endpoint declares, and nowhere else.

    `sending` is called before each request goes out, and may raise. `max_connections`: how many are under way at once, whatever
    the endpoint's limits say; None: its pace is found. `usage` counts requests; their tokens are the line's to count.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        key: str | None = None,
        *,
        max_connections: int | None = None,
        sending: Callable[[], None] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        limits = endpoint.limits
        if max_connections is not None:
            limits = limits.model_copy(update={"concurrency": max_connections})
        self.pace = Pace(limits, fixed=max_connections is not None, sleep=sleep)
        self._gate = Gate()
        self._life = _Life()
        self._limits = limits
        self.usage = Usage()
        self._mask = Mask(key)
        self._sending = sending
        self._sleep = sleep
        self._query = endpoint.query or None
        self._session = aiohttp.ClientSession(
            headers={"Content-Type": "application/json", **endpoint.headers, **_credentials(endpoint, key)},
            connector=aiohttp.TCPConnector(limit=limits.concurrency),
            timeout=aiohttp.ClientTimeout(total=limits.timeout_s, sock_connect=_CONNECT_TIMEOUT_S),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def get(self, url: str, *, attempts: int | None = None) -> Answer:
        """The JSON at `url`. Nobody listening, or nobody answering in time, is final: this is how one looks who is there."""
        return await self._send(url, None, ANYTHING, _Tries(attempts or self._limits.attempts, patient=False))

    async def post(self, url: str, body: Any, *, attempts: int | None = None, expect: Expected = ANYTHING) -> Answer:
        """Send `body` as JSON; `attempts` None: as the limits say. Raises RequestFailedError when they are used up."""
        return await self._send(url, _dumps(body), expect, _Tries(attempts or self._limits.attempts, patient=True))

    def clean(self, text: str, longest: int = _LONGEST_REASON) -> str:
        """A foreign text fit for a message: without the key, on one line, printable, at most `longest` characters."""
        text = self._mask.text(text)  # before anything is cut off: half a key would not be found
        printable = "".join(char if char.isprintable() else " " for char in text[: 4 * longest])
        line = " ".join(printable.split())
        return line if len(line) <= longest else line[:longest] + "..."

    async def _send(self, url: str, data: bytes | None, expect: Expected, tries: _Tries) -> Answer:
        self._life.check()
        while True:
            number = await self.pace.enter(expect.tokens)
            apart = False
            try:
                if expect.kind:
                    await self._gate.enter(expect.kind)
                    apart = True
                if self._sending is not None:
                    self._sending()
                self.usage.requests += 1
                start = time.perf_counter()
                value, headers = await self._attempt(url, data, expect.largest)
                self._life.answered()
                expect.read(value)
                self.pace.succeeded(time.perf_counter() - start)
                return Answer(value=value, attempts=tries.made + 1, headers=headers)
            except RequestFailedError as exc:
                failed = exc
            except BadAnswerError as exc:
                failed = RequestFailedError(Failure.UNUSABLE, self.clean(f"bad answer: {exc}"))
                failed.__cause__ = exc
            finally:
                if apart:
                    self._gate.leave()
                self.pace.leave()
            if failed.failure not in _NOBODY:
                self._life.answered()
            if failed.status in _PUSHED_BACK:
                self.pace.pushed_back(number, failed.retry_after_s)
            try:
                wait_s = tries.failed(failed)
            except RequestFailedError:
                if failed.failure in _NOBODY:
                    self._life.lost()
                raise
            if wait_s is not None:
                await self._sleep(wait_s)

    async def _attempt(self, url: str, data: bytes | None, largest: int) -> tuple[Any, Mapping[str, str]]:
        try:
            async with self._session.request(
                "GET" if data is None else "POST", url, data=data, params=self._query, allow_redirects=False
            ) as response:
                body = await _read_body(response, largest)
        except (TimeoutError, aiohttp.ClientError, OSError) as exc:
            raise self._mapped(exc) from exc
        if response.status >= 300:
            self.usage.refused += 1
            raise self._refusal(response, body)
        for name, _ in response.raw_headers:
            if b"imit-" in name:  # x-ratelimit-..., in whatever case
                left_s = used_up_s(response.headers)
                if left_s is not None:
                    self.pace.hold(left_s)
                break
        body = self._mask.body(body)
        try:
            return _loads(body), response.headers
        except (ValueError, RecursionError) as exc:  # RecursionError: thousands of nested brackets
            excerpt = self.clean(body.decode(errors="replace"), longest=80)
            raise RequestFailedError(Failure.UNREADABLE, f"the answer is not JSON: {excerpt!r}") from exc

    def _refusal(self, response: aiohttp.ClientResponse, body: bytes) -> RequestFailedError:
        reason = f"HTTP {response.status}"
        if response.status < 400:
            reason += f" redirects to {response.headers.get('Location', 'nowhere')}, which is not followed"
        elif said := _said(body):
            reason += f": {said}"
        return RequestFailedError(
            Failure.STATUS,
            self.clean(reason),
            status=response.status,
            retry_after_s=asked_wait_s(response.headers),
        )

    def _mapped(self, exc: Exception) -> RequestFailedError:
        """aiohttp's errors as ours, in the order from special to general."""
        if isinstance(exc, aiohttp.ConnectionTimeoutError):
            return RequestFailedError(Failure.UNREACHABLE, f"no connection within {_CONNECT_TIMEOUT_S:g} s")
        if isinstance(exc, TimeoutError):
            return RequestFailedError(Failure.SILENT, f"no answer within {self._limits.timeout_s:g} s")
        if isinstance(exc, aiohttp.ClientConnectorError):
            return RequestFailedError(Failure.UNREACHABLE, self.clean(_why_unreachable(exc)))
        return RequestFailedError(Failure.BROKEN, self.clean(f"the connection broke: {exc or type(exc).__name__}"))


def _credentials(endpoint: Endpoint, key: str | None) -> dict[str, str]:
    """The header that carries the key."""
    if not key:
        return {}
    return {"Authorization": f"Bearer {key}"} if endpoint.auth == "bearer" else {endpoint.auth: key}


class _Life:
    """Whether anybody is there.

    After `_GONE` requests in a row that nobody answered, whatever was tried, requests fail unsent, but for one now and then
    that looks again: thousands that each try for minutes would cost hours.
    """

    def __init__(self) -> None:
        self._lost = 0
        self._look_at = 0.0

    def check(self) -> None:
        """Raises RequestFailedError where it makes no sense to send."""
        if self._lost < _GONE:
            return
        if time.monotonic() < self._look_at:
            failed = RequestFailedError(Failure.UNREACHABLE, f"not sent: {_GONE} requests in a row and more got no answer")
            failed.attempts = 0
            raise failed
        self._look_at = time.monotonic() + _LOOK_AGAIN_S

    def answered(self) -> None:
        """Somebody answered, whatever it was."""
        self._lost = 0

    def lost(self) -> None:
        """Nobody answered a request until its attempts were used up."""
        self._lost += 1
        self._look_at = time.monotonic() + _LOOK_AGAIN_S


class _Tries:
    """How often one request may still be sent, by what went wrong with it.

    Being turned away for the sake of others says nothing about the request: `_PATIENCE` times as often before it counts.
    """

    def __init__(self, attempts: int, *, patient: bool) -> None:
        self._attempts = attempts
        self._patient = patient
        self._away = 0
        self._bad = 0

    @property
    def made(self) -> int:
        """Attempts that failed."""
        return self._away + self._bad

    def failed(self, failed: RequestFailedError) -> float | None:
        """Count a failure. Seconds until the next attempt, None: when the pace allows. Raises `failed` where there is none."""
        away = failed.turned_away
        self._away += away
        self._bad += not away
        failed.attempts = self.made
        used_up = self._away >= self._attempts * _PATIENCE or self._bad >= self._attempts
        final = not self._patient and failed.failure in (Failure.UNREACHABLE, Failure.SILENT)
        if used_up or final or not failed.retryable:
            raise failed
        if away and failed.retry_after_s is not None:
            return None
        soon = failed.failure in (Failure.UNREADABLE, Failure.UNUSABLE)
        first_s = _ASK_AGAIN_S if soon else _BACKOFF_S
        wait_s = min(first_s * 2.0 ** min(self._away if away else self._bad, _MOST_DOUBLINGS), LONGEST_WAIT_S)
        return wait_s + random.uniform(0, first_s if soon else JITTER_S)


def _dumps(body: Any) -> bytes:
    try:
        return orjson.dumps(body)
    except TypeError:  # text that is no Unicode, such as half of a pair of surrogates
        return json.dumps(body, separators=(",", ":")).encode()


def _loads(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return json.loads(body)  # NaN and its like, which some servers write


async def _read_body(response: aiohttp.ClientResponse, largest: int) -> bytes:
    """The body; one that is too large is not read to its end, and its connection is closed."""
    stream = response.content
    body = await stream.readany()
    if stream.at_eof() and len(body) <= largest:
        return body
    chunks, size = [body], len(body)
    if (response.content_length or 0) > largest:
        size = largest + 1
    while size <= largest and (chunk := await stream.readany()):
        chunks.append(chunk)
        size += len(chunk)
    if size > largest:
        chunks.clear()  # whoever keeps the error keeps its frames, and what they hold
        raise RequestFailedError(Failure.UNUSABLE, f"the answer is larger than {largest / (1 << 20):.3g} MB")
    return b"".join(chunks)


def _said(body: bytes) -> str:
    """What an error's body says: its `error.message`, `message` or `detail`, else its text."""
    text = body.decode(errors="replace")
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return text
    for key in ("error", "message", "detail"):
        if isinstance(said, dict) and key in said:
            said = said[key]
    return said if isinstance(said, str) else json.dumps(said)


def _why_unreachable(exc: aiohttp.ClientConnectorError) -> str:
    """The operating system's words; asyncio's own repeat the address. TLS errors have only their own."""
    if isinstance(exc, aiohttp.ClientSSLError):
        return str(exc)
    code = exc.os_error.errno
    return os.strerror(code) if code is not None and code > 0 else str(exc.os_error)
