"""The transport's errors, retries and secrecy, against a real server on the loopback."""

from __future__ import annotations

import asyncio
import socket
import time
from dataclasses import replace
from email.utils import formatdate
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from harness.providers.http.transport import ANYTHING, Answer, Expected, Failure, RequestFailedError, Transport
from harness.providers.targets import Endpoint, Limits, Target

from ..stub_server import StubServer, drop, first, hang, raw, refusal, status

KEY = "sk-canary-0123456789"


def endpoint(limits: Limits) -> Endpoint:
    return Endpoint(api="completions", limits=limits, targets={"t": Target(model="m")})


def send(
    stub: StubServer, *, attempts: int = 4, timeout_s: float = 5.0, key: str | None = KEY, expect: Expected = ANYTHING
) -> tuple[Answer | RequestFailedError, list[float]]:
    """Post one request; (the answer or the failure, the waits between attempts)."""
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    async def post() -> Answer | RequestFailedError:
        async with stub.running():
            transport = Transport(endpoint(Limits(attempts=attempts, timeout_s=timeout_s)), key, sleep=sleep)
            try:
                body = {"prompt": "w1", "logprobs": 3, "model": "stub-model"}
                return await transport.post(f"{stub.base_url}/completions", body, expect=expect)
            except RequestFailedError as exc:
                return exc
            finally:
                await transport.aclose()

    return asyncio.run(post()), waits


def failure(stub: StubServer, **kwargs: Any) -> RequestFailedError:
    failed, _ = send(stub, **kwargs)
    assert isinstance(failed, RequestFailedError)
    return failed


@pytest.mark.parametrize("code", [408, 409, 425, 429, 500, 502, 503, 504])
def test_a_status_that_may_pass_is_tried_again_until_it_does(code: int) -> None:
    stub = StubServer(fault=first(2, status(code)))
    answer, waits = send(stub)
    assert isinstance(answer, Answer)
    assert answer.attempts == len(stub.requests) == 3
    assert answer.value["choices"][0]["index"] == 0
    assert len(waits) == 2
    assert 0.5 <= waits[0] <= 1.0 <= waits[1] <= 1.5


@pytest.mark.parametrize("code", [400, 401, 403, 404, 413, 422])
def test_another_refusal_is_final_and_says_what_the_endpoint_said(code: int) -> None:
    stub = StubServer(fault=status(code, "the prompt is odd"))
    failed = failure(stub)
    assert (failed.failure, failed.status, failed.attempts) == (Failure.STATUS, code, 1)
    assert failed.reason == f"HTTP {code}: the prompt is odd"
    assert len(stub.requests) == 1


def test_attempts_are_bounded_and_counted() -> None:
    stub = StubServer(fault=status(500))
    failed = failure(stub, attempts=3)
    assert failed.attempts == len(stub.requests) == 3
    assert failed.status == 500


@pytest.mark.parametrize(
    ("fault", "expected", "words"),
    [
        (raw("<html>no api here"), Failure.UNREADABLE, "not JSON: '<html>no api here'"),
        (raw(""), Failure.UNREADABLE, "not JSON"),
        (raw("[" * 100_000), Failure.UNREADABLE, "not JSON"),
        (drop, Failure.BROKEN, "the connection broke"),
    ],
)
def test_what_cannot_be_read_is_tried_again(fault: Any, expected: Failure, words: str) -> None:
    stub = StubServer(fault=fault)
    failed = failure(stub, attempts=2)
    assert failed.failure is expected
    assert words in failed.reason
    assert len(stub.requests) == 2

    stub = StubServer(fault=first(1, fault))
    answer, _ = send(stub)
    assert isinstance(answer, Answer)


def test_silence_ends_in_a_failure_that_names_the_time() -> None:
    failed = failure(StubServer(fault=hang), timeout_s=0.1, attempts=2)
    assert (failed.failure, failed.attempts) == (Failure.SILENT, 2)
    assert failed.reason == "no answer within 0.1 s"


def test_a_body_above_the_limit_is_cut_off_and_asked_for_again_within_bounds() -> None:
    stub = StubServer(fault=raw('"' + "x" * (1 << 20) + '"'))
    failed = failure(stub, attempts=3, expect=replace(ANYTHING, largest=1 << 20))
    assert failed.failure is Failure.UNUSABLE
    assert failed.reason == "the answer is larger than 1 MB"
    assert failed.attempts == len(stub.requests) == 3


def test_a_redirect_is_not_followed() -> None:
    async def elsewhere(stub: StubServer, _: Any) -> web.Response:
        return web.Response(status=307, headers={"Location": stub.base_url + "/models"})

    stub = StubServer(fault=elsewhere)
    failed = failure(stub)
    assert failed.status == 307
    assert failed.reason == f"HTTP 307 redirects to {stub.base_url}/models, which is not followed"
    assert len(stub.requests) == 4, "asked again at the declared host, and nowhere else"


def test_an_endpoint_that_is_gone_is_not_asked_by_every_request() -> None:
    """Eight requests find nobody, whatever they try; the ninth is not sent, and once somebody answers all are again."""
    reasons: list[str] = []

    async def no_wait(_: float) -> None: ...

    async def body() -> None:
        stub = StubServer(fault=drop)
        async with stub.running():
            transport = Transport(endpoint(Limits(attempts=2, timeout_s=5)), sleep=no_wait)
            url, asked = f"{stub.base_url}/completions", {"prompt": "w1", "logprobs": 3, "model": "stub-model"}
            for _ in range(10):
                with pytest.raises(RequestFailedError) as caught:
                    await transport.post(url, asked)
                reasons.append(caught.value.reason)
            assert len(stub.requests) == 8 * 2
            stub.fault = None
            transport._life._look_at = 0.0  # ten seconds later
            assert (await transport.post(url, asked)).attempts == 1
            assert (await transport.post(url, asked)).attempts == 1
            await transport.aclose()

    asyncio.run(body())
    assert all("the connection broke" in reason for reason in reasons[:8])
    assert reasons[8:] == ["not sent: 8 requests in a row and more got no answer"] * 2


@pytest.mark.parametrize(
    ("header", "low", "high"),
    [
        ("7", 7, 7.5),
        ("0", 0, 0.5),
        ("3600", 60, 60.5),
        ("soon", 0.5, 1.0),
        ("nan", 0.5, 1.0),
    ],
)
def test_retry_after_is_followed_up_to_a_minute(header: str, low: float, high: float) -> None:
    _, waits = send(StubServer(fault=first(1, status(429, headers={"Retry-After": header}))))
    assert len(waits) == 1
    assert low <= waits[0] <= high


@pytest.mark.parametrize(("from_now_s", "low", "high"), [(50, 40, 50.5), (-50, 0, 0.5), (5000, 60, 60.5)])
def test_retry_after_may_be_a_date(from_now_s: float, low: float, high: float) -> None:
    header = formatdate(time.time() + from_now_s, usegmt=True)
    _, waits = send(StubServer(fault=first(1, status(429, headers={"Retry-After": header}))))
    assert low <= waits[0] <= high


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_nobody_listening_is_retried_when_sending_and_final_when_looking() -> None:
    async def ask() -> tuple[RequestFailedError, RequestFailedError, list[float]]:
        waits: list[float] = []

        async def sleep(seconds: float) -> None:
            waits.append(seconds)

        transport = Transport(endpoint(Limits(attempts=3)), sleep=sleep)
        url = f"http://127.0.0.1:{closed_port()}/v1"
        with pytest.raises(RequestFailedError) as looked:
            await transport.get(url)
        assert not waits
        with pytest.raises(RequestFailedError) as sent:
            await transport.post(url, {})
        await transport.aclose()
        return looked.value, sent.value, waits

    looked, sent, waits = asyncio.run(ask())
    assert looked.failure is sent.failure is Failure.UNREACHABLE
    assert looked.reason == sent.reason == "Connection refused"
    assert (looked.attempts, sent.attempts, len(waits)) == (1, 3, 2)


def test_the_key_is_sent_and_never_told() -> None:
    stub = StubServer(key=KEY)
    answer, _ = send(stub)
    assert isinstance(answer, Answer)
    assert stub.headers[0]["Authorization"] == f"Bearer {KEY}"

    async def echo(_: StubServer, __: Any) -> web.Response:
        return refusal(401, f"bad key {KEY}: " + "x" * 280 + KEY)

    async def redirect(_: StubServer, __: Any) -> web.Response:
        return web.Response(status=302, headers={"Location": f"http://elsewhere/?key={KEY}"})

    half_cut = raw("x" * 70 + KEY)  # an excerpt of 80 characters would hold the first half of the key
    for fault in (echo, redirect, raw(f"oops {KEY}"), half_cut):
        failed = failure(StubServer(fault=fault), attempts=1)
        assert "sk-ca" not in f"{failed.reason} {failed!s} {failed!r}"
        assert "***" in failed.reason


def test_without_a_key_no_authorization_is_sent() -> None:
    stub = StubServer()
    send(stub, key=None)
    assert "Authorization" not in stub.headers[0]


def test_a_foreign_message_is_told_in_one_printable_line() -> None:
    failed = failure(StubServer(fault=status(400, "line one\nline\x1b[31m two " + "x" * 1000)))
    assert failed.reason.startswith("HTTP 400: line one line [31m two xxx")
    assert failed.reason.endswith("...")
    assert len(failed.reason) <= 303


def test_cookies_are_not_kept() -> None:
    async def with_cookie(_: StubServer, __: Any) -> web.Response:
        response = refusal(503, "later")
        response.set_cookie("who", "you")
        return response

    stub = StubServer(fault=first(1, with_cookie))
    send(stub)
    assert "Cookie" not in stub.headers[1]
    assert aiohttp.hdrs.COOKIE not in stub.headers[1]
