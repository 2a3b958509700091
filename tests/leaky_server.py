"""An endpoint that says back the key it was sent, for tests: in every place of an answer, in every spelling."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from aiohttp import web

PROBE = "The capital of France is"
WORDS = (" dog", " cat", " the", " bread", " Paris")


def spellings(key: str) -> str:
    """The key in every way that a careless server might write it, with the mark of the one that JSON needs to be told."""
    ways = [
        key,
        f"Bearer {key}",
        quote(key, safe=""),
        quote(key, safe="").lower() if key == key.lower() else quote(key),
        base64.b64encode(key.encode()).decode(),
        base64.b64encode(f"Bearer {key}".encode()).decode(),
        base64.b64encode(f"x{key}".encode()).decode(),
        base64.urlsafe_b64encode(f"key={key};".encode()).decode(),
        json.dumps(key),
        ESCAPED,
    ]
    return " ".join(ways)


ESCAPED = "ESCAPED-KEY"
"""Stands for the key with each of its characters as a JSON escape."""


@dataclass
class LeakyServer:
    """Says the key in `place`: error, page, redirect, header, text, model, version or models; nowhere for None.

    `spares_probe`: the probe is answered well, so that it is the run's own prompts that meet the leak. `status` is that of
    errors. `keys`: what came in the header that carries the key. `received` counts all requests, `answered` those that were
    given an answer to count.
    """

    auth: str = "Authorization"
    place: str | None = None
    spares_probe: bool = False
    status: int = 500
    hang_s: float = 0.0
    keys: set[str] = field(default_factory=set)
    tells_usage: bool = True
    received: int = 0
    answered: int = 0
    most_at_once: int = 0
    _under_way: int = 0
    base_url: str = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.received += 1
        self._under_way += 1
        self.most_at_once = max(self.most_at_once, self._under_way)
        try:
            return await self._answer(request)
        finally:
            self._under_way -= 1

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        key = request.headers.get(self.auth, "").removeprefix("Bearer ")
        self.keys.add(key)
        body = await request.text()
        place = None if self.spares_probe and (PROBE in body or request.method == "GET") else self.place
        leak = spellings(key)
        if place == "page":
            return web.Response(text=f"<html>{leak}</html>", content_type="text/html")
        if place == "error":
            return self.written({"error": {"message": f"no: {leak}", "headers": dict(request.headers)}}, key, self.status)
        if place == "redirect":
            return web.Response(status=307, headers={"Location": f"http://127.0.0.1:9/?k={quote(key, safe='')}&r={leak}"})
        if request.method == "GET":
            return self.written(self.about(request.path, leak, place), key)
        if self.hang_s and PROBE not in body:
            await asyncio.sleep(self.hang_s)
        form = FORMS.get(request.path.removeprefix("/v1"))
        if form is None:
            return web.Response(status=404, text="Not Found")
        self.answered += 1
        data = form(json.loads(body), leak if place == "text" else None)
        if not self.tells_usage:
            del data["usage"]
        data |= {"model": f"m {leak}" if place == "model" else "m"}
        data |= {"system_fingerprint": leak if place == "text" else "fp"}
        headers = dict.fromkeys(("X-Debug", "X-RateLimit-Remaining-Requests", "X-Request-Id", "Set-Cookie"), leak)
        return self.written(data, key, headers=headers if place == "header" else None)

    def about(self, path: str, leak: str, place: str | None) -> dict[str, Any]:
        """What is told of the models and the version."""
        if path.endswith("/version"):
            return {"version": leak if place == "version" else "0.32.0"}
        other = [{"id": leak, "root": leak}] if place == "models" else []
        return {"data": [*other, {"id": "m", "root": leak if place == "version" else "m"}]}

    def written(self, data: dict[str, Any], key: str, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
        escaped = "".join(f"\\u{ord(char):04x}" for char in key)
        text = json.dumps(data).replace(ESCAPED, escaped)
        return web.Response(text=text, status=status, headers=headers, content_type="application/json")

    @contextmanager
    def running(self) -> Iterator[LeakyServer]:
        """Listen on loopback from a thread of its own."""
        loop = asyncio.new_event_loop()
        ready, stop = threading.Event(), asyncio.Event()

        async def serve() -> None:
            app = web.Application(client_max_size=2**26)
            app.router.add_route("*", "/{path:.*}", self.answer)
            runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.base_url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
            ready.set()
            await stop.wait()
            await runner.cleanup()

        thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
        thread.start()
        ready.wait(10)
        try:
            yield self
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join()
            loop.close()


def _words(leak: str | None) -> list[str]:
    return [*([leak, f" {leak}"] if leak else []), *WORDS]


def _completion(body: dict[str, Any], leak: str | None) -> dict[str, Any]:
    prompts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
    words = _words(leak)[: body.get("logprobs") or 1]
    top = {word: -0.5 - i for i, word in enumerate(words)}
    logprobs = {"tokens": [words[0]], "token_logprobs": [-0.5], "top_logprobs": [top]}
    each = body.get("n", 1)
    choices = [{"index": i, "text": words[0], "logprobs": logprobs} for i in range(len(prompts) * each)]
    return {"choices": choices, "usage": {"prompt_tokens": 7 * len(prompts), "completion_tokens": len(choices)}}


def _chat(body: dict[str, Any], leak: str | None) -> dict[str, Any]:
    words = _words(leak)
    top = [{"token": word, "logprob": -0.5 - i} for i, word in enumerate(words[: body.get("top_logprobs") or 1])]
    step = {**top[0], "top_logprobs": top}
    choice = {"message": {"role": "assistant", "content": words[0]}, "logprobs": {"content": [step]}, "finish_reason": "length"}
    choices = [{"index": i, **choice} for i in range(body.get("n", 1))]
    return {"choices": choices, "usage": {"prompt_tokens": 9, "completion_tokens": len(choices)}}


def _message(_: dict[str, Any], leak: str | None) -> dict[str, Any]:
    return {
        "id": "msg",
        "type": "message",
        "role": "assistant",
        "content": [{"type": "text", "text": _words(leak)[0]}],
        "stop_reason": "max_tokens",
        "usage": {"input_tokens": 9, "output_tokens": 1},
    }


FORMS: dict[str, Callable[[dict[str, Any], str | None], dict[str, Any]]] = {
    "/completions": _completion,
    "/chat/completions": _chat,
    "/messages": _message,
}
