"""A completions endpoint in this process, for tests: deterministic distributions, and faults on demand.

Its distributions are a function of the prompt's ids alone, so a test computes what must come back without asking.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from aiohttp import web
from tokenizers import Tokenizer, models, pre_tokenizers

N_VOCAB = 500
WORDS = ["The", "capital", "of", "France", "is", *(f"w{i}" for i in range(N_VOCAB - 5))]

Fault = Callable[["StubServer", dict[str, Any]], Awaitable[web.StreamResponse | None]]
"""Answers in place of the server; None: the server answers as usual."""


def stub_tokenizer() -> Tokenizer:
    """One id for each of `WORDS`, split at spaces; no special tokens."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="The"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def stub_logprobs(ids: list[int]) -> np.ndarray:
    """The log-probability of every token after `ids`, (N_VOCAB,) float64."""
    logits = 3 * np.random.default_rng([7, *ids]).standard_normal(N_VOCAB)
    return logits - np.log(np.exp(logits).sum())


@dataclass
class StubServer:
    """What the endpoint is like; every field may be changed while it runs.

    `requests` collects the body of each completion request, `headers` its headers. `fault` is asked first, each time.
    """

    served: tuple[str, ...] = ("stub-model",)
    key: str | None = None
    max_logprobs: int = 1000
    takes_ids: bool = True
    takes_many: bool = True
    names_ids: bool = True
    lists_models: bool = True
    draws: bool = True
    vllm_version: str | None = "0.32.0"
    fault: Fault | None = None
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    base_url: str = ""
    _tokenizer: Tokenizer = field(default_factory=stub_tokenizer)

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append(body)
        self.headers.append(dict(request.headers))
        if self.fault is not None and (answer := await self.fault(self, body)) is not None:
            return answer
        if self.key is not None and request.headers.get("Authorization") != f"Bearer {self.key}":
            return refusal(401, f"wrong key: {request.headers.get('Authorization')}")
        prompt = body["prompt"]
        bare = isinstance(prompt, str) or isinstance(prompt[0], int)
        prompts = [prompt] if bare else prompt
        if not self.takes_many and not bare:
            return refusal(400, "prompt must be a string or a list of token ids")
        if not self.takes_ids and any(isinstance(one, list) for one in prompts):
            return refusal(400, "prompt must be text")
        bias = {int(i): value for i, value in body.get("logit_bias", {}).items()}
        if "logprobs" not in body:
            if not self.draws:
                return refusal(400, "logprobs must be set")
            texts = [self.drawn(self.ids(one), bias) for one in prompts for _ in range(body.get("n", 1))]
            return web.json_response({"choices": [{"index": i, "text": text} for i, text in enumerate(texts)]})
        k = body["logprobs"]
        if k > self.max_logprobs:
            text = f"Requested sample logprobs of {k}, which is greater than max allowed: {self.max_logprobs}"
            return refusal(400, text)
        by_id = bool(body.get("return_tokens_as_token_ids")) and self.names_ids
        choices = [self.choice(i, self.ids(one), k, by_id) for i, one in enumerate(prompts)]
        for choice, one in zip(choices, prompts, strict=True):
            choice["text"] = self.drawn(self.ids(one), bias)
        return web.json_response({"object": "text_completion", "choices": choices[::-1], "system_fingerprint": "fp-1"})

    def ids(self, prompt: str | list[int]) -> list[int]:
        return self._tokenizer.encode(prompt).ids if isinstance(prompt, str) else prompt

    def drawn(self, ids: list[int], bias: dict[int, float]) -> str:
        """The likeliest word under a bias."""
        logits = stub_logprobs(ids)
        for i, value in bias.items():
            logits[i] += value
        return WORDS[int(np.argmax(logits))]

    def choice(self, index: int, ids: list[int], k: int, by_id: bool) -> dict[str, Any]:
        logprobs = stub_logprobs(ids)
        name = (lambda i: f"token_id:{i}") if by_id else WORDS.__getitem__
        top = {name(int(i)): float(logprobs[i]) for i in np.argsort(-logprobs)[:k]}
        sampled = next(iter(top))
        return {
            "index": index,
            "text": sampled,
            "logprobs": {"tokens": [sampled], "token_logprobs": [top[sampled]], "top_logprobs": [top]},
        }

    async def models(self, _: web.Request) -> web.StreamResponse:
        if not self.lists_models:
            return refusal(404, "Not Found")
        data = [{"id": name, "object": "model", "root": f"/weights/{name}", "created": 1} for name in self.served]
        return web.json_response({"object": "list", "data": data})

    async def version(self, _: web.Request) -> web.StreamResponse:
        if self.vllm_version is None:
            return refusal(404, "Not Found")
        return web.json_response({"version": self.vllm_version})

    @asynccontextmanager
    async def running(self) -> AsyncIterator[StubServer]:
        """Listen on a free loopback port; `base_url` is set."""
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/v1/completions", self.complete)
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/version", self.version)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.base_url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        try:
            yield self
        finally:
            await runner.cleanup()


def refusal(status: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    """An error answer in vLLM's form."""
    return web.json_response({"error": {"message": message, "code": status}}, status=status, headers=headers)


def first(times: int, fault: Fault) -> Fault:
    """`fault` for the next `times` requests, then none."""
    left = times

    async def limited(server: StubServer, body: dict[str, Any]) -> web.StreamResponse | None:
        nonlocal left
        left -= 1
        return await fault(server, body) if left >= 0 else None

    return limited


def status(code: int, message: str = "no", headers: dict[str, str] | None = None) -> Fault:
    """Answers with an error status."""

    async def answer(_: StubServer, __: dict[str, Any]) -> web.StreamResponse:
        return refusal(code, message, headers)

    return answer


def raw(text: str) -> Fault:
    """Answers 200 with `text` as its body."""

    async def answer(_: StubServer, __: dict[str, Any]) -> web.StreamResponse:
        return web.Response(text=text, content_type="application/json")

    return answer


def reworked(change: Callable[[dict[str, Any]], object]) -> Fault:
    """Answers as usual, after `change` has worked on the parsed answer."""

    async def answer(server: StubServer, body: dict[str, Any]) -> web.StreamResponse:
        prompts = body["prompt"] if isinstance(body["prompt"][0], list) else [body["prompt"]]
        by_id = bool(body.get("return_tokens_as_token_ids"))
        choices = [server.choice(i, server.ids(one), body["logprobs"], by_id) for i, one in enumerate(prompts)]
        data: dict[str, Any] = {"choices": choices}
        change(data)
        return web.Response(text=json.dumps(data), content_type="application/json")

    return answer


def poisoned(is_bad: Callable[[Any], bool], fault: Fault) -> Fault:
    """`fault` for every request that holds a bad prompt."""

    async def answer(server: StubServer, body: dict[str, Any]) -> web.StreamResponse | None:
        prompt = body["prompt"]
        prompts = [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt
        return await fault(server, body) if any(is_bad(one) for one in prompts) else None

    return answer


async def hang(_: StubServer, __: dict[str, Any]) -> web.StreamResponse | None:
    """Takes the request and says nothing."""
    await asyncio.sleep(30)
    return None


async def drop(server: StubServer, body: dict[str, Any]) -> web.StreamResponse | None:
    """Starts an answer and closes the connection in the middle of it."""
    del server, body
    response = _Dropped()
    response.content_length = 1000
    return response


class _Dropped(web.StreamResponse):
    async def prepare(self, request: web.BaseRequest) -> Any:
        writer = await super().prepare(request)
        await self.write(b'{"choices": [')
        assert request.transport is not None
        request.transport.abort()
        return writer
