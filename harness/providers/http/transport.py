"""Sends requests and brings back JSON: one session, bounded retries, and every way to fail told in one class.

Knows HTTP, not what the requests mean.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Any

import aiohttp
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_exponential, wait_random

from harness.providers.targets import Endpoint

_RETRIED_STATUSES = frozenset({408, 409, 425, 429})
_LONGEST_WAIT_S = 60.0
_CONNECT_TIMEOUT_S = 10.0
_LARGEST_BODY = 64 * 1024 * 1024
"""64 prompts with 5,000 log-probabilities each come to 10 MB; more than this is no answer to what we ask."""

_LONGEST_REASON = 300
_jitter = wait_random(0, 0.5)
_backoff = wait_exponential(multiplier=0.5, max=_LONGEST_WAIT_S) + _jitter


class Failure(StrEnum):
    """What went wrong with a request."""

    UNREACHABLE = "unreachable"  # nobody listens
    SILENT = "silent"  # no answer in time
    BROKEN = "broken"  # the connection ended before the answer did
    STATUS = "status"  # an HTTP status other than success
    UNREADABLE = "unreadable"  # no JSON
    UNUSABLE = "unusable"  # too large, or JSON that does not say what was asked


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
            return self.status in _RETRIED_STATUSES or self.status >= 500
        return self.failure is not Failure.UNUSABLE


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The JSON of an answer, and how often the request was sent for it."""

    value: Any
    attempts: int


class Transport:
    """One session to one endpoint. `key` goes out in the header that the endpoint declares, and nowhere else."""

    def __init__(
        self, endpoint: Endpoint, key: str | None = None, *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        limits = endpoint.limits
        self._limits = limits
        self._key = key
        self._sleep = sleep
        self._query = endpoint.query
        self._session = aiohttp.ClientSession(
            headers={**endpoint.headers, **_credentials(endpoint, key)},
            connector=aiohttp.TCPConnector(limit=limits.concurrency),
            timeout=aiohttp.ClientTimeout(total=limits.timeout_s, sock_connect=_CONNECT_TIMEOUT_S),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def get(self, url: str, *, attempts: int | None = None) -> Answer:
        """The JSON at `url`. Nobody listening, or nobody answering in time, is final: this is how one looks who is there."""
        return await self._send("GET", url, None, attempts=attempts, patient=False)

    async def post(self, url: str, body: Any, *, attempts: int | None = None) -> Answer:
        """Send `body` as JSON; `attempts` None: as the limits say. Raises RequestFailedError when they are used up."""
        data = json.dumps(body, separators=(",", ":")).encode()
        return await self._send("POST", url, data, attempts=attempts, patient=True)

    def clean(self, text: str, longest: int = _LONGEST_REASON) -> str:
        """A foreign text fit for a message: without the key, on one line, printable, at most `longest` characters."""
        if self._key:
            text = text.replace(self._key, "***")  # before anything is cut off: half a key would not be found
        printable = "".join(char if char.isprintable() else " " for char in text[: 4 * longest])
        line = " ".join(printable.split())
        return line if len(line) <= longest else line[:longest] + "..."

    async def _send(self, method: str, url: str, data: bytes | None, *, attempts: int | None, patient: bool) -> Answer:
        def again(exc: BaseException) -> bool:
            if not isinstance(exc, RequestFailedError) or not exc.retryable:
                return False
            return patient or exc.failure not in (Failure.UNREACHABLE, Failure.SILENT)

        retrying = AsyncRetrying(
            stop=stop_after_attempt(attempts or self._limits.attempts),
            wait=_wait_s,
            retry=retry_if_exception(again),
            sleep=self._sleep,
            reraise=True,
        )
        number = 0
        try:
            async for attempt in retrying:
                with attempt:
                    number = attempt.retry_state.attempt_number
                    value = await self._attempt(method, url, data)
        except RequestFailedError as exc:
            exc.attempts = number
            raise
        return Answer(value=value, attempts=number)

    async def _attempt(self, method: str, url: str, data: bytes | None) -> Any:
        headers = {"Content-Type": "application/json"} if data is not None else None
        with self._mapped():
            async with self._session.request(
                method, url, data=data, headers=headers, params=self._query or None, allow_redirects=False
            ) as response:
                body = await _read_body(response)
        if response.status >= 300:
            raise self._refusal(response, body)
        try:
            return json.loads(body)
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
            retry_after_s=_retry_after_s(response.headers.get("Retry-After")),
        )

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        """aiohttp's errors as ours, in the order from special to general."""
        try:
            yield
        except aiohttp.ConnectionTimeoutError as exc:
            raise RequestFailedError(Failure.UNREACHABLE, f"no connection within {_CONNECT_TIMEOUT_S:g} s") from exc
        except TimeoutError as exc:
            raise RequestFailedError(Failure.SILENT, f"no answer within {self._limits.timeout_s:g} s") from exc
        except aiohttp.ClientConnectorError as exc:
            raise RequestFailedError(Failure.UNREACHABLE, self.clean(_why_unreachable(exc))) from exc
        except (aiohttp.ClientError, OSError) as exc:
            reason = self.clean(f"the connection broke: {exc or type(exc).__name__}")
            raise RequestFailedError(Failure.BROKEN, reason) from exc


def _credentials(endpoint: Endpoint, key: str | None) -> dict[str, str]:
    """The header that carries the key."""
    if not key:
        return {}
    return {"Authorization": f"Bearer {key}"} if endpoint.auth == "bearer" else {endpoint.auth: key}


async def _read_body(response: aiohttp.ClientResponse) -> bytes:
    chunks: list[bytes] = []
    size = 0
    async for chunk in response.content.iter_any():
        size += len(chunk)
        if size > _LARGEST_BODY:
            raise RequestFailedError(Failure.UNUSABLE, f"the answer is larger than {_LARGEST_BODY >> 20} MB")
        chunks.append(chunk)
    return b"".join(chunks)


def _wait_s(state: RetryCallState) -> float:
    """Seconds until the next attempt: what the endpoint asked for, else exponential."""
    failed = state.outcome.exception() if state.outcome else None
    asked = failed.retry_after_s if isinstance(failed, RequestFailedError) else None
    return _backoff(state) if asked is None else min(asked, _LONGEST_WAIT_S) + _jitter(state)


def _retry_after_s(header: str | None) -> float | None:
    """The header `Retry-After` in seconds from now; it holds a number of seconds or a date."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - time.time()
        except ValueError:
            return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None


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
