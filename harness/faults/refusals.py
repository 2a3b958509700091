"""Faults of the host and the line: statuses, silence, broken connections, pages and redirects. The registry is `registry`'s."""

from __future__ import annotations

import asyncio
import math
import time
import zlib
from email.utils import formatdate

from aiohttp import web

from harness.faults.call import JSON, Call, refusal

_PIECES = 20
_CHUNK = b" " * (1 << 20)
_GZIP = 16 + zlib.MAX_WBITS
"""What zlib calls gzip's format."""

_PAGE = "<!DOCTYPE html><html><head><title>{0}</title></head><body><h1>{0}</h1><p>Please come back later.</p></body></html>"


async def limited_seconds(call: Call) -> web.StreamResponse:
    """429 with Retry-After in seconds"""
    return refusal(429, "Rate limit reached", {"Retry-After": f"{_reset_s(call):.3f}"})


async def limited_date(call: Call) -> web.StreamResponse:
    """429 with Retry-After as an HTTP date, which knows whole seconds only"""
    return refusal(429, "Rate limit reached", {"Retry-After": formatdate(math.ceil(time.time() + _reset_s(call)), usegmt=True)})


async def limited_bare(call: Call) -> web.StreamResponse:  # noqa: ARG001
    """429 that does not say when to come back"""
    return refusal(429, "Rate limit reached")


async def limited_reset(call: Call) -> web.StreamResponse:
    """429 with x-ratelimit-reset-requests and -tokens, without Retry-After"""
    headers = {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": f"{1000 * _reset_s(call):.0f}ms",
        "x-ratelimit-limit-tokens": "60000",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": f"{_reset_s(call):.3f}s",
    }
    return refusal(429, "Rate limit reached", headers)


async def failed_500(call: Call) -> web.StreamResponse:  # noqa: ARG001
    """500 with an error in the protocol's form"""
    return refusal(500, "Internal server error")


async def failed_502(call: Call) -> web.StreamResponse:  # noqa: ARG001
    """502 with an empty body"""
    return web.Response(status=502)


async def failed_503(call: Call) -> web.StreamResponse:  # noqa: ARG001
    """503 with a body of plain text"""
    return web.Response(status=503, text="no healthy upstream")


async def failed_529(call: Call) -> web.StreamResponse:  # noqa: ARG001
    """529, overloaded"""
    return refusal(529, "Overloaded")


async def echoed_key(call: Call) -> web.StreamResponse:
    """500 whose body and a header repeat the request's Authorization header"""
    key = call.request.headers.get("Authorization", "none")
    return refusal(500, f"Unhandled error in a request with Authorization: {key}", {"X-Debug": key})


async def page_200(call: Call) -> web.StreamResponse:  # noqa: ARG001
    """200 with an HTML page"""
    return web.Response(text=_PAGE.format("Maintenance"), content_type="text/html")


async def page_502(call: Call) -> web.StreamResponse:  # noqa: ARG001
    """502 with an HTML page"""
    return web.Response(status=502, text=_PAGE.format("502 Bad Gateway"), content_type="text/html")


async def redirect_302(call: Call) -> web.StreamResponse:
    """302 to another host"""
    return _redirect(call, 302)


async def redirect_307(call: Call) -> web.StreamResponse:
    """307 to another host, which asks to send the same again there"""
    return _redirect(call, 307)


async def redirect_308(call: Call) -> web.StreamResponse:
    """308 to another host, for good"""
    return _redirect(call, 308)


async def hang(call: Call) -> web.StreamResponse:
    """no answer for longer than anybody waits"""
    await asyncio.sleep(call.settings.hang_s)
    return refusal(504, "Gateway timeout")


async def slow_drip(call: Call) -> web.StreamResponse:
    """a true answer that comes in drips"""
    body = call.text_to_send().encode()
    response = await _started(call, len(body))
    size = -(-len(body) // _PIECES)
    for start in range(0, len(body), size):
        await asyncio.sleep(call.settings.drip_s / _PIECES)
        await response.write(body[start : start + size])
    call.delivered()
    return response


async def dropped(call: Call) -> web.StreamResponse:
    """a connection that closes in the middle of a true answer"""
    body = call.text().encode()
    response = await _started(call, len(body))
    await response.write(body[: int(call.rng.integers(1, len(body)))])
    if call.request.transport is not None:
        call.request.transport.close()
    return response


async def huge_body(call: Call) -> web.StreamResponse:
    """a true answer, padded with spaces to a huge size, which is told before, not told, or packed by gzip"""
    body = call.text_to_send().encode()
    left = max(call.settings.huge_bytes - len(body), 0)
    way = int(call.rng.integers(3))
    packer = zlib.compressobj(level=1, wbits=_GZIP) if way == 2 else None
    response = await _started(call, len(body) + left if way == 0 else None, gzip=packer is not None)
    piece = body
    while piece:
        await response.write(packer.compress(piece) if packer else piece)
        piece = _CHUNK[:left]
        left -= len(piece)
    if packer:
        await response.write(packer.flush())
    return response  # not noted as delivered: whoever reads so much is on their own


def _reset_s(call: Call) -> float:
    return float(call.rng.uniform(*call.settings.reset_s))


def _redirect(call: Call, status: int) -> web.Response:
    return web.Response(status=status, headers={"Location": f"{call.elsewhere}{call.request.path}"})


async def _started(call: Call, length: int | None, *, gzip: bool = False) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": JSON} | ({"Content-Encoding": "gzip"} if gzip else {}))
    response.content_length = length
    await response.prepare(call.request)
    return response
