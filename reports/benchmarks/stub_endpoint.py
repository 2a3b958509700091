"""An OpenAI-like endpoint that costs next to nothing: its answers are made in advance. `http_speed.py` starts it."""

from __future__ import annotations

import asyncio
import json
import struct
from functools import cache
from random import Random
from typing import Any

MODEL = "stub-model"
N_LOGPROBS = 30
N_IDS = 40_000


def distribution(rng: Random) -> dict[str, float]:
    """Tokens named by id, their log-probabilities written as single precision is, as vLLM lists them."""
    logprobs = sorted((-4.5 - rng.expovariate(0.3) for _ in range(N_LOGPROBS)), reverse=True)
    names = [f"token_id:{i}" for i in rng.sample(range(N_IDS), N_LOGPROBS)]
    return {name: struct.unpack("f", struct.pack("f", value))[0] for name, value in zip(names, logprobs, strict=True)}


class Bodies:
    """Whole HTTP responses, by path and number of prompts; each prompt of a request has a list of its own."""

    def __init__(self) -> None:
        rng = Random(0)
        self._lists = [distribution(rng) for _ in range(64)]
        self._made: dict[tuple[str, int], bytes] = {}

    def echo(self, lengths: list[int]) -> bytes:
        """The response to prompts of so many tokens that wants each token's log-probability and the likeliest one's."""
        choices = b",".join(b'{"index":%d,' % i + self._echoed(length) for i, length in enumerate(lengths))
        body = b'{"id":"cmpl-1","object":"text_completion","created":1,"model":"%s","choices":[%s]}' % (MODEL.encode(), choices)
        return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body

    @cache  # noqa: B019  there is one
    def _echoed(self, length: int) -> bytes:
        names, values = zip(*(list(self._lists[length % 64].items()) * (length // N_LOGPROBS + 1))[: length + 1], strict=True)
        best = list(self._lists[(length + 1) % 64].items())
        tops = [None, *(dict([best[i % N_LOGPROBS], (names[i], values[i])]) for i in range(1, length + 1))]
        logprobs = {
            "text_offset": [0] * (length + 1),
            "token_logprobs": [None, *values[1:]],
            "tokens": names,
            "top_logprobs": tops,
        }
        return json.dumps({"text": " ".join(names), "logprobs": logprobs, "finish_reason": "length"}).encode()[1:]

    def answer(self, path: str, n: int) -> bytes:
        """The response to a request for `n` prompts."""
        if (path, n) not in self._made:
            make = {"/v1/models": self._models, "/v1/chat/completions": self._chat}.get(path, self._completions)
            body = json.dumps(make(n)).encode()
            head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            self._made[path, n] = head.encode() + body
        return self._made[path, n]

    def _completions(self, n: int) -> dict[str, Any]:
        choices = []
        for i in range(n):
            top = self._lists[i % len(self._lists)]
            first = next(iter(top))
            logprobs = {"text_offset": [0], "token_logprobs": [top[first]], "tokens": [first], "top_logprobs": [top]}
            choices.append({"index": i, "text": first, "logprobs": logprobs, "finish_reason": "length", "stop_reason": None})
        return _whole("text_completion", choices)

    def _chat(self, _: int) -> dict[str, Any]:
        entries = [{"token": name, "logprob": value, "bytes": None} for name, value in self._lists[0].items()]
        logprobs = {"content": [{**entries[0], "top_logprobs": entries}]}
        message = {"role": "assistant", "content": entries[0]["token"]}
        return _whole("chat.completion", [{"index": 0, "message": message, "logprobs": logprobs, "finish_reason": "length"}])

    def _models(self, _: int) -> dict[str, Any]:
        return {"object": "list", "data": [{"id": MODEL, "object": "model", "root": MODEL}]}


def _whole(kind: str, choices: list[Any]) -> dict[str, Any]:
    n = len(choices)
    usage = {"prompt_tokens": 9 * n, "total_tokens": 10 * n, "completion_tokens": n}
    return {"id": "cmpl-1", "object": kind, "created": 1, "model": MODEL, "choices": choices, "usage": usage}


class Answering(asyncio.Protocol):
    """As little of HTTP as clients need: the endpoint must cost less than any of them."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client."""
        self._transport: Any = transport

    def data_received(self, data: bytes) -> None:
        """Answer every request that is whole."""
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            at = head.find(b"content-length:")
            stop = end + 4 + (int(head[at + 15 :].split(b"\r", 1)[0]) if at >= 0 else 0)
            if len(self._buffer) < stop:
                return
            request = json.loads(self._buffer[end + 4 : stop]) if at >= 0 else {}
            self._buffer = self._buffer[stop:]
            prompt = request.get("prompt")
            prompts = prompt if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else [prompt]
            if request.get("echo"):
                self._transport.write(self._bodies.echo([len(one) for one in prompts]))
            else:
                self._transport.write(self._bodies.answer(head.split(b" ", 2)[1].decode(), len(prompts)))


async def serve() -> None:
    """Until killed; the port is printed."""
    bodies = Bodies()
    server = await asyncio.get_running_loop().create_server(lambda: Answering(bodies), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve())
