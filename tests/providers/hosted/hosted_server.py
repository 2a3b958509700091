"""A server on this machine that answers as OpenAI's and Anthropic's do, batch jobs included, and misbehaves on demand."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from .hosted_answers import Body, chat, completion, message, response

ANSWERS: dict[str, Callable[[Body, int], Body]] = {
    "/v1/chat/completions": chat,
    "/v1/completions": completion,
    "/v1/responses": response,
    "/v1/messages": message,
}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Refuse = Callable[[str, Body], tuple[int, str] | None]
"""A path and a body to the status and the message of a refusal, None where it is answered."""


@dataclass
class HostedServer:
    """What the service is like; every field may be changed while it runs.

    `bodies`: what was sent to each path, lines of batches among them; `headers`: those of every request. `refuse` is asked
    before each answer. `hold`: the step ('files', 'batches', 'results') whose answer never comes, `held` the one that was held
    back last. `redirect`: where everything about files and batches is said to be. `spoil` works on the lines of a job's
    results before they are sent. A job is in progress until `finish`.
    """

    models: tuple[str, ...] = ("gpt-test", "davinci-test", "claude-test")
    refuse: Refuse = lambda _path, _body: None
    hold: str = ""
    spoil: Callable[[list[Body]], list[Body]] = lambda lines: lines
    results_host: str | None = None
    redirect: str | None = None
    bodies: dict[str, list[Body]] = field(default_factory=dict)
    headers: list[dict[str, str]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    jobs: dict[str, Body] = field(default_factory=dict)
    lines: dict[str, list[Body]] = field(default_factory=dict)
    held: str = ""
    base_url: str = ""
    _drawn: Counter[str] = field(default_factory=Counter)

    def finish(self, status: str = "completed") -> None:
        """End every job: 'completed', 'expired' (no line was tried) or 'failed' (the file was refused)."""
        for name, job in self.jobs.items():
            if job.get("object") == "batch" and job["status"] == "in_progress":
                self._finish_openai(name, job, status)
            elif job.get("type") == "message_batch" and job["processing_status"] == "in_progress":
                self._finish_anthropic(name, job, status)

    def answer(self, path: str, body: Body) -> tuple[int, Body]:
        """(status, JSON) to one request."""
        self.bodies.setdefault(path, []).append(body)
        if (refused := self.refuse(path, body) or _too_many(body)) is not None:
            return refused[0], self._error(path, *refused)
        text = json.dumps(body.get("messages") or body.get("input") or body.get("prompt"))
        number = self._drawn[text]
        self._drawn[text] += body.get("n", 1)
        return 200, ANSWERS[path](body, number)

    def _error(self, path: str, status: int, text: str) -> Body:
        kind = {400: "invalid_request_error", 429: "rate_limit_error"}.get(status, "api_error")
        if path == "/v1/messages":
            return {"type": "error", "error": {"type": kind, "message": text}, "request_id": "req_011CSHoEeqs5C35K2UUqR7Fy"}
        return {"error": {"message": text, "type": kind, "param": None, "code": None}}

    def _finish_openai(self, name: str, job: Body, status: str) -> None:
        job["status"] = status
        if status == "failed":
            problem = {"code": "token_limit_exceeded", "message": "Enqueued token limit reached", "param": None, "line": None}
            job["errors"] = {"object": "list", "data": [problem]}
            return
        good, bad = [], []
        for line in self.lines[name]:
            result: Body = {"id": f"batch_req_{line['custom_id']}", "custom_id": line["custom_id"], "error": None}
            if status == "expired":
                error = {
                    "code": "batch_expired",
                    "message": "This request could not be executed before the completion window expired.",
                }
                bad.append({**result, "response": None, "error": error})
                continue
            code, body = self.answer(line["url"], line["body"])
            result["response"] = {"status_code": code, "request_id": "req_1", "body": body}
            (good if code == 200 else bad).append(result)
        for key, part in (("output_file_id", good), ("error_file_id", bad)):
            if part:
                job[key] = f"file-{key}-{name}"
                text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in self.spoil(part))
                self.files[job[key]] = text.encode()
        counts = {"total": len(self.lines[name]), "completed": len(good), "failed": len(bad)}
        job["request_counts"] = counts

    def _finish_anthropic(self, name: str, job: Body, status: str) -> None:
        results = []
        for line in self.lines[name]:
            result: Body = {"type": "expired"}
            if status == "completed":
                code, body = self.answer("/v1/messages", line["params"])
                result = {"type": "succeeded", "message": body} if code == 200 else {"type": "errored", "error": body}
            results.append({"custom_id": line["custom_id"], "result": result})
        counts = Counter(line["result"]["type"] for line in results)
        job["processing_status"] = "ended"
        job["ended_at"] = _iso(time.time())
        job["results_url"] = f"{self.results_host or self.base_url}/messages/batches/{name}/results"
        job["request_counts"] = {kind: counts[kind] for kind in ("succeeded", "errored", "canceled", "expired")} | {
            "processing": 0
        }
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in self.spoil(results))
        self.files[name] = text.encode()

    async def _asked(self, request: web.Request) -> web.StreamResponse:
        self.headers.append(dict(request.headers))
        status, body = self.answer(request.path, await request.json())
        return web.json_response(body, status=status)

    async def _models(self, request: web.Request) -> web.StreamResponse:
        self.headers.append(dict(request.headers))
        if "anthropic-version" in request.headers:
            data = [
                {"type": "model", "id": f"{name}-20260929", "display_name": name, "created_at": "2026-09-29T00:00:00Z"}
                for name in self.models
                if name.startswith("claude")
            ]
            return web.json_response({"data": data, "has_more": False, "first_id": None, "last_id": None})
        data = [{"id": name, "object": "model", "created": 1686935002, "owned_by": "openai"} for name in self.models]
        return web.json_response({"object": "list", "data": data})

    async def _upload(self, request: web.Request) -> web.StreamResponse:
        self.headers.append(dict(request.headers))
        form = await request.post()
        file: Any = form["file"]
        name = f"file-{len(self.files)}"
        with file.file as content:
            self.files[name] = content.read()
        await self._held("files")
        answer = {"id": name, "object": "file", "bytes": len(self.files[name]), "created_at": int(time.time())}
        return web.json_response({**answer, "filename": file.filename, "purpose": form["purpose"], "status": "processed"})

    async def _content(self, request: web.Request) -> web.StreamResponse:
        await self._held("results")
        return web.Response(body=self.files[request.match_info["file"]], content_type="application/octet-stream")

    async def _create(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        name = f"batch_{len(self.jobs)}"
        self.lines[name] = [json.loads(line) for line in self.files[body["input_file_id"]].splitlines()]
        self.jobs[name] = {
            "id": name,
            "object": "batch",
            "endpoint": body["endpoint"],
            "errors": None,
            "input_file_id": body["input_file_id"],
            "completion_window": body["completion_window"],
            "status": "in_progress",
            "output_file_id": None,
            "error_file_id": None,
            "created_at": int(time.time()),
            "expires_at": int(time.time()) + 86400,
            "request_counts": {"total": len(self.lines[name]), "completed": 0, "failed": 0},
            "metadata": body.get("metadata"),
        }
        await self._held("batches")
        return web.json_response(self.jobs[name])

    async def _create_messages(self, request: web.Request) -> web.StreamResponse:
        self.headers.append(dict(request.headers))
        name = f"msgbatch_{len(self.jobs)}"
        self.lines[name] = (await request.json())["requests"]
        none = {"succeeded": 0, "errored": 0, "canceled": 0, "expired": 0}
        self.jobs[name] = {
            "id": name,
            "type": "message_batch",
            "processing_status": "in_progress",
            "request_counts": {"processing": len(self.lines[name]), **none},
            "ended_at": None,
            "created_at": _iso(time.time()),
            "expires_at": _iso(time.time() + 86400),
            "archived_at": None,
            "cancel_initiated_at": None,
            "results_url": None,
        }
        await self._held("batches")
        return web.json_response(self.jobs[name])

    async def _job(self, request: web.Request) -> web.StreamResponse:
        job = self.jobs.get(request.match_info["job"])
        if job is None:
            return web.json_response({"error": {"message": "No such batch", "type": "not_found_error"}}, status=404)
        return web.json_response(job)

    async def _jobs(self, request: web.Request) -> web.StreamResponse:
        kind = "type" if "messages" in request.path else "object"
        newest = [job for job in reversed(self.jobs.values()) if kind in job]
        ends = {"first_id": newest[0]["id"], "last_id": newest[-1]["id"]} if newest else {"first_id": None, "last_id": None}
        return web.json_response({"object": "list", "data": newest, "has_more": False, **ends})

    async def _results(self, request: web.Request) -> web.StreamResponse:
        await self._held("results")
        return web.Response(body=self.files[request.match_info["job"]], content_type="application/x-jsonl")

    async def _held(self, step: str) -> None:
        while self.hold == step:
            self.held = step
            await asyncio.sleep(0.02)

    @web.middleware
    async def _redirecting(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if self.redirect is not None and ("files" in request.path or "batches" in request.path):
            return web.Response(status=307, headers={"Location": self.redirect + request.path})
        return await handler(request)

    def _app(self) -> web.Application:
        app = web.Application(client_max_size=2**28, middlewares=[self._redirecting])
        for path in ANSWERS:
            app.router.add_post(path, self._asked)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/files", self._upload)
        app.router.add_get("/v1/files/{file}/content", self._content)
        app.router.add_post("/v1/batches", self._create)
        app.router.add_get("/v1/batches", self._jobs)
        app.router.add_get("/v1/batches/{job}", self._job)
        app.router.add_post("/v1/messages/batches", self._create_messages)
        app.router.add_get("/v1/messages/batches", self._jobs)
        app.router.add_get("/v1/messages/batches/{job}", self._job)
        app.router.add_get("/v1/messages/batches/{job}/results", self._results)
        return app

    @contextmanager
    def running(self) -> Iterator[HostedServer]:
        """Listen on a free loopback port, in a thread of its own; `base_url` is set."""
        loop = asyncio.new_event_loop()
        ready, stop = threading.Event(), asyncio.Event()

        async def serve() -> None:
            runner = web.AppRunner(self._app(), handler_cancellation=True, shutdown_timeout=0.1)
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
            self.hold = ""
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(stop.set)
            thread.join()
            loop.close()


def _too_many(body: Body) -> tuple[int, str] | None:
    """OpenAI's refusal of a list that is too long, in its words."""
    for key, limit in (("top_logprobs", 20), ("logprobs", 5)):
        asked = body.get(key, 0)
        if asked is not True and asked > limit:
            return 400, f"Invalid '{key}': integer above maximum value. Expected a value <= {limit}, but got {asked} instead."
    return None


def _iso(at: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))
