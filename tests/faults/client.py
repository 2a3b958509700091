"""A client without any cleverness, which says what came over the wire."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from harness.faults.call import Settings
from harness.faults.server import FaultServer

from .fault_server import FAULTLESS, WORDS

FACTS = {"model": "fault-model", "max_tokens": 1, "temperature": 0}


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an asynchronous test in a loop of its own."""

    @functools.wraps(test)
    def run(**fixtures: Any) -> None:
        asyncio.run(test(**fixtures))

    return run


class Client:
    """Asks the way anybody would; `session` is aiohttp's own."""

    def __init__(self, server: FaultServer, session: aiohttp.ClientSession) -> None:
        self.root = server.base_url.removesuffix("/v1")
        self.session = session

    async def get(self, path: str) -> tuple[int, Any]:
        async with self.session.get(self.root + path) as response:
            return response.status, await response.json()

    async def post(self, path: str, **body: Any) -> Any:
        status, answer = await self.posted(path, body)
        assert status == 200, answer
        return answer

    async def posted(self, path: str, body: Mapping[str, Any]) -> tuple[int, Any]:
        async with self.session.post(self.root + path, json=body) as response:
            return response.status, await response.json()

    async def complete(self, prompt: object, **fields: Any) -> Any:
        return await self.post("/v1/completions", **FACTS | {"prompt": prompt} | fields)

    async def chat(self, *messages: tuple[str, str], **fields: Any) -> Any:
        said = [{"role": role, "content": content} for role, content in messages]
        return await self.post("/v1/chat/completions", **FACTS | {"messages": said} | fields)


@asynccontextmanager
async def endpoint(settings: Settings = FAULTLESS) -> AsyncIterator[tuple[FaultServer, Client]]:
    """A server in this loop, and a client of it."""
    async with FaultServer(WORDS, settings).running() as server, aiohttp.ClientSession() as session:
        yield server, Client(server, session)
