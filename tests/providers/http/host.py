"""A chat and completions host in this process whose ways can be chosen: what it takes, what it lists, what it ignores.

Its model is a function of the text after the chat template, so that a test can say what must come.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from aiohttp import web
from tokenizers import Tokenizer, models, pre_tokenizers, processors

BOS = "<s>"
WORDS = [
    BOS,
    "The",
    *(f" {word}" for word in ("capital", "of", "France", "is", "Par", "Paris", "Lyon", "zebra", "piano")),
    "Paris",
    "Lyon",
    "is",
    "It",
    *(f" w{i}" for i in range(30)),
    *(f"W{i}" for i in range(30)),
]
TEMPLATE = "[{role}]{content}[end]"
ANSWER = "[assistant]"


def host_tokenizer(*, bos: bool = True) -> Tokenizer:
    """One id for each of `WORDS`, blanks at the front of words; with a BOS before a prompt."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="The"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_next")
    tokenizer.add_special_tokens([BOS])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return tokenizer


def model(text: str) -> np.ndarray:
    """Log-probabilities of `WORDS` after a text."""
    logits = np.random.default_rng(zlib.crc32(text.encode())).standard_normal(len(WORDS)) - 3
    likely = {"The capital of France is": " Paris", " Par": "is", ANSWER: "Paris"}
    for end, word in likely.items():
        if text.endswith(end):
            logits[WORDS.index(word)] = 5
    return logits - np.log(np.exp(logits).sum())


Refuse = Callable[[dict[str, Any]], tuple[int, str] | None]


@dataclass
class Host:
    """`prefill`: `continued`, `dropped` (the assistant message is ignored) or `closed` (it becomes a turn that is over).

    `refuse`: a status and words, or None. `list_of`: the listed log-probabilities, from the model's and the temperature.
    `bias`: `honoured`, `ignored`, or `listed` (the list shows it too). `tokenised`: what `/tokenize` answers, None: 404.
    """

    prefill: str = "continued"
    lists: bool = True
    refuse: Refuse = lambda _body: None
    list_of: Callable[[np.ndarray, float], np.ndarray] = lambda logprobs, _temperature: logprobs
    bias: str = "honoured"
    renormalised: bool = False
    echoes: bool = False
    usage: Callable[[str], int] | None = None
    tokenised: Callable[[dict[str, Any]], list[int]] | None = None
    headers: dict[str, str] = field(default_factory=dict)
    accident: Callable[[dict[str, Any]], web.Response | None] = lambda _body: None
    requests: list[dict[str, Any]] = field(default_factory=list)
    base_url: str = ""

    def rendered(self, body: dict[str, Any]) -> str:
        """The text that the model goes on with."""
        said = list(body["messages"])
        last = said.pop() if said[-1]["role"] == "assistant" else None
        text = "".join(TEMPLATE.format(**one) for one in said)
        if last is None or self.prefill == "dropped":
            return text + ANSWER
        if self.prefill == "closed":
            return text + TEMPLATE.format(**last) + ANSWER
        return text + ANSWER + last["content"]

    async def chat(self, request: web.Request) -> web.Response:
        body = await request.json()
        text = self.rendered(body)
        k = body.get("top_logprobs", 0)

        def choice(index: int, drawn: str, top: list[tuple[str, float]]) -> dict[str, Any]:
            content = [{"token": name, "logprob": value} for name, value in top]
            listed = {"content": [{"token": drawn, "logprob": -1.0, "top_logprobs": content}]} if top else None
            echo = body["messages"][-1]["content"] if self.echoes else ""
            return {"index": index, "message": {"role": "assistant", "content": echo + drawn}, "logprobs": listed}

        return self.answer(body, [text], k, choice)

    async def complete(self, request: web.Request) -> web.Response:
        body = await request.json()
        prompt = body["prompt"]
        prompts = prompt if isinstance(prompt, list) and not isinstance(prompt[0], int) else [prompt]
        texts = [one if isinstance(one, str) else "".join(WORDS[i] for i in one).removeprefix(BOS) for one in prompts]

        def choice(index: int, drawn: str, top: list[tuple[str, float]]) -> dict[str, Any]:
            listed = {"tokens": [drawn], "top_logprobs": [dict(top)]} if top else None
            return {"index": index, "text": drawn, "logprobs": listed}

        return self.answer(body, texts, body.get("logprobs", 0), choice)

    def answer(
        self,
        body: dict[str, Any],
        texts: list[str],
        k: int,
        choice: Callable[[int, str, list[tuple[str, float]]], dict[str, Any]],
    ) -> web.Response:
        self.requests.append(body)
        if (refused := self.refuse(body)) is not None:
            return web.json_response({"error": {"message": refused[1]}}, status=refused[0])
        if (instead := self.accident(body)) is not None:
            return instead
        bias = {int(i): value for i, value in body.get("logit_bias", {}).items()}
        choices: list[dict[str, Any]] = []
        for text in texts:
            logprobs = model(text)
            shifted = logprobs.copy()
            if self.bias != "ignored":
                shifted[list(bias)] += list(bias.values())
            drawn = WORDS[int(np.argmax(shifted))]
            listed = self.list_of(_normal(shifted) if self.bias == "listed" else logprobs, body.get("temperature", 1.0))
            order = np.argsort(-listed)[: k * self.lists]
            if self.renormalised and len(order):
                listed = listed - np.log(np.exp(listed[order]).sum())
            top = [(WORDS[i], float(listed[i])) for i in order]
            choices += [choice(len(choices) + i, drawn, top) for i in range(body.get("n", 1))]
        said: dict[str, Any] = {"model": "hosted", "choices": choices, "system_fingerprint": "fp-7"}
        if self.usage is not None:
            said["usage"] = {"prompt_tokens": sum(map(self.usage, texts)), "completion_tokens": len(choices)}
        return web.json_response(said, headers=self.headers)

    async def tokenise(self, request: web.Request) -> web.Response:
        if self.tokenised is None:
            raise web.HTTPNotFound
        ids = self.tokenised(await request.json())
        return web.json_response({"count": len(ids), "tokens": ids, "token_strs": [WORDS[i] for i in ids]})

    async def version(self, _: web.Request) -> web.Response:
        if self.tokenised is None:
            raise web.HTTPNotFound
        return web.json_response({"version": "0.33.0"})

    def kinds(self) -> Counter[str]:
        """How often each key of a request was sent."""
        return Counter(key for body in self.requests for key in body)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Host]:
        """Listen on a free loopback port; `base_url` is set."""
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_post("/v1/completions", self.complete)
        app.router.add_post("/tokenize", self.tokenise)
        app.router.add_get("/version", self.version)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.base_url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        try:
            yield self
        finally:
            await runner.cleanup()


def _normal(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()


def scaled(logprobs: np.ndarray, temperature: float) -> np.ndarray:
    """What a host lists that shows the distribution it draws from; at temperature 0 almost everything on one token."""
    return _normal(logprobs / max(temperature, 0.05))


def saying(status: int, words: str, when: Callable[[dict[str, Any]], bool]) -> Refuse:
    """Refuses with `words` every request that `when` is true of."""
    return lambda body: (status, words) if when(body) else None


def first_of(*refusals: Refuse) -> Refuse:
    """The first that refuses."""
    return lambda body: next((said for refuse in refusals if (said := refuse(body)) is not None), None)
