"""The fault server: an OpenAI-compatible endpoint on loopback that answers truly, except where a fault was drawn."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from functools import cache

import numpy as np
from aiohttp import web

from harness.errors import UsageError
from harness.faults import protocol
from harness.faults.call import Call, Ledger, Settings, plain, refusal
from harness.faults.distribution import Model
from harness.faults.registry import FAULTS, fitting
from harness.faults.tokens import Tokens

HOST = "127.0.0.1"
_LARGEST_REQUEST = 1 << 28

_UNUSED = np.random.default_rng(0)
"""For requests that cannot meet a fault: seeding one costs as much as an answer."""


Reader = Callable[[bytes, Tokens, protocol.Served], protocol.Question]


class FaultServer:
    """Speaks for the model of its `settings` over a vocabulary of `words`; `ledger` says what it served.

    `model` is the oracle: `model.after(tokens.encode(prompt)).logprobs()` is what every true answer tells of.
    `settings` may be replaced while it runs. `base_url` and `elsewhere` are set once it does.
    """

    def __init__(self, words: Iterable[str], settings: Settings) -> None:
        self.settings = settings
        self.tokens = Tokens(words)
        self.ledger = Ledger()
        self.base_url = ""
        self.elsewhere = ""
        self.model_named = cache(lambda name: Model(name, len(self.tokens)))
        self.model_named(settings.model)

    @property
    def model(self) -> Model:
        """Whose distributions the true answers show."""
        return self.model_named(self.settings.model)

    @asynccontextmanager
    async def running(self, port: int = 0) -> AsyncIterator[FaultServer]:
        """Listen on loopback at `port`, 0 for a free one, and at a second port that redirects lead to; raises UsageError."""
        async with _listening(self._elsewhere_app(), 0) as elsewhere, _listening(self._app(), port) as base:
            self.elsewhere, self.base_url = elsewhere, f"{base}/v1"
            yield self

    def _app(self) -> web.Application:
        app = web.Application(client_max_size=_LARGEST_REQUEST)
        app.router.add_post("/v1/completions", self._complete)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/tokenize", self._tokenize)
        app.router.add_post("/detokenize", self._detokenize)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/version", self._version)
        app.router.add_get("/faults", self._faults)
        return app

    def _elsewhere_app(self) -> web.Application:
        app = web.Application(client_max_size=_LARGEST_REQUEST)
        app.router.add_route("*", "/{path:.*}", self._arrival)
        return app

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, protocol.read_completion)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, protocol.read_chat)

    async def _generate(self, request: web.Request, read: Reader) -> web.StreamResponse:
        settings = self.settings
        number = len(self.ledger.sequence)
        self.ledger.sequence.append(None)
        try:
            question = read(await request.read(), self.tokens, self._limits())
        except protocol.RefusedError as exc:
            self.ledger.refused += 1
            return refusal(exc.status, exc.message)
        changed = settings.model_changes_after is not None and number >= settings.model_changes_after
        name, rng = self._fault(number, question)
        self.ledger.sequence[number] = name
        call = Call(
            request=request,
            question=question,
            settings=settings,
            tokens=self.tokens,
            model=self.model_named(settings.other_model) if changed else self.model,
            is_true=not changed,
            other=lambda: self.model_named(settings.other_model),
            ledger=self.ledger,
            rng=rng,
            elsewhere=self.elsewhere,
        )
        return call.answer() if name is None else await FAULTS[name](call)

    def _fault(self, number: int, question: protocol.Question) -> tuple[str | None, np.random.Generator]:
        """The fault that request `number` meets, if any, and the generator to go on with."""
        settings = self.settings
        if settings.rate <= 0 or number < settings.after:
            return None, _UNUSED
        rng = np.random.default_rng([settings.seed, number])
        names = fitting(settings.faults, question)
        if rng.random() >= settings.rate or not names:
            return None, rng
        return names[int(rng.integers(len(names)))], rng

    def _limits(self) -> protocol.Served:
        return protocol.Served(model=self.settings.model, max_logprobs=self.settings.max_logprobs)

    async def _arrival(self, request: web.Request) -> web.StreamResponse:
        """What answers at the other host: by the right name, from other distributions, and it notes who came."""
        self.ledger.arrived += 1
        self.ledger.arrived_with_key += "Authorization" in request.headers
        read = protocol.read_chat if "chat" in request.path else protocol.read_completion
        try:
            question = read(await request.read(), self.tokens, self._limits())
        except protocol.RefusedError as exc:
            return refusal(exc.status, exc.message)
        text = protocol.write_answer(question, self.model_named("elsewhere"), self.tokens, times=lambda _: 0)
        return plain(text.replace('"model": "elsewhere"', f'"model": {json.dumps(self.settings.model)}', 1))

    async def _tokenize(self, request: web.Request) -> web.StreamResponse:
        return await self._looked_up(request, protocol.tokenize)

    async def _detokenize(self, request: web.Request) -> web.StreamResponse:
        return await self._looked_up(request, protocol.detokenize)

    async def _looked_up(self, request: web.Request, find: Callable[[bytes, Tokens], object]) -> web.StreamResponse:
        try:
            return web.json_response(find(await request.read(), self.tokens))
        except protocol.RefusedError as exc:
            return refusal(exc.status, exc.message)

    async def _models(self, _: web.Request) -> web.StreamResponse:
        name = self.settings.model
        card = {"id": name, "object": "model", "created": 1, "owned_by": "harness", "root": name}
        return web.json_response({"object": "list", "data": [card | {"max_model_len": protocol.MAX_MODEL_LEN}]})

    async def _version(self, _: web.Request) -> web.StreamResponse:
        version = self.settings.version
        return refusal(404, "Not Found") if version is None else web.json_response({"version": version})

    async def _faults(self, _: web.Request) -> web.StreamResponse:
        return web.json_response(self.ledger.as_dict())


@asynccontextmanager
async def _listening(app: web.Application, port: int) -> AsyncIterator[str]:
    """Serve `app`; its address."""
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, HOST, port).start()
        yield f"http://{HOST}:{runner.addresses[0][1]}"
    except OSError as exc:
        raise UsageError(f"cannot listen on {HOST}:{port}: {exc.strerror or exc}", hint="choose another --port") from exc
    finally:
        await runner.cleanup()
