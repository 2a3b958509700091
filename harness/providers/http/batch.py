"""Batch jobs at OpenAI and Anthropic, through their own clients: submit, look, bring back.

Knows the services, not what the requests mean nor which of them a run still needs. The clients are given the address and the
key of the target's file and nothing from their own environment variables, follow no redirect, and repeat nothing that could
make a second job.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from harness.errors import EndpointError, MissingExtraError, UnreachableError, UsageError
from harness.masking import Mask
from harness.providers.http.address import address, key
from harness.providers.targets import TargetSpec

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic
    from openai import AsyncOpenAI

TAG = "transfer_harness"
"""The key of a job's metadata that holds our own name for it, where the service keeps metadata."""

_WINDOW_S = 30 * 24 * 3600.0
_TIMEOUT_S = 600.0
_RETRIES = 4
_CLOCK_SLACK_S = 900.0
_LISTED = 1000
"""How many of the newest jobs are searched for one of ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One line of a job: the body that a direct request would have sent."""

    custom_id: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a job brought for one line: the `answer` as a direct request would have got it, or the `reason` there is none.

    `status`: the HTTP status, None where the line was never tried.
    """

    custom_id: str
    answer: Any = None
    reason: str | None = None
    status: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How far a job is, in requests. `reason`: why it ended without answers, where the service says so; `lost`: the service
    does not know the job (any more)."""

    ended: bool
    done: int = 0
    status: str
    reason: str | None = None
    lost: bool = False


_LOST = Standing(ended=True, status="unknown to the service", reason="the service does not know the batch", lost=True)


class Service(Protocol):
    """A place that takes jobs. `max_lines`, `max_bytes`: of one job."""

    max_lines: int
    max_bytes: int

    async def submit(self, requests: Sequence[Request], tag: str) -> str:
        """Start a job; its id. Raises NotSubmittedError where the service refused, EndpointError where nobody can tell."""
        ...

    async def find(self, tag: str, n_lines: int, since: float, known: Collection[str]) -> str | None:
        """The id of a job that was started as `tag` at `since` or later, whose id was lost; None where there is none."""
        ...

    async def look(self, job: str) -> Standing:
        """How far the job is."""
        ...

    def results(self, job: str) -> AsyncIterator[Result]:
        """What an ended job brought, in no particular order."""
        ...

    async def aclose(self) -> None:
        """Close the connections."""
        ...


class NotSubmittedError(EndpointError):
    """The service refused the job: there is none."""


_CLIENTS = {"anthropic": "anthropic", "chat": "openai", "completions": "openai", "responses": "openai"}
"""The package that submits for each api."""


def require_batches(spec: TargetSpec) -> None:
    """Raises UsageError where the target's api has no jobs, MissingExtraError where the client is not installed."""
    if spec.api not in _CLIENTS:
        raise UsageError(
            f"target {spec.name!r} has no batch API: its api is {spec.api!r}",
            hint=f"batch jobs go to targets whose api is one of: {', '.join(_CLIENTS)}",
        )
    if find_spec(_CLIENTS[spec.api]) is None:
        raise MissingExtraError(_CLIENTS[spec.api], "hosted")
    if not address(spec).endswith("/v1"):
        raise UsageError(
            f"the address of endpoint {spec.endpoint_name!r} does not end in /v1, where batch APIs have their place",
            hint=f"set `base_url` in {spec.found.path}, or run the same command without --batch",
        )


def open_service(spec: TargetSpec, clean: Callable[[str], str]) -> Service:
    """The service behind the target's endpoint, which `require_batches` has seen; `clean` takes secrets out of texts."""
    kind = AnthropicBatches if spec.api == "anthropic" else OpenAIBatches
    return kind(spec, address(spec), clean)


class OpenAIBatches:
    """`/v1/files` and `/v1/batches`: one JSONL file a job."""

    max_lines = 50_000
    max_bytes = 200_000_000

    def __init__(self, spec: TargetSpec, url: str, clean: Callable[[str], str]) -> None:
        import httpx2
        import openai

        secret = key(spec)
        headers: dict[str, Any] = {"OpenAI-Organization": openai.Omit(), "OpenAI-Project": openai.Omit()}
        if spec.endpoint.auth != "bearer" or not secret:
            headers["Authorization"] = openai.Omit()
        if spec.endpoint.auth != "bearer" and secret:
            headers[spec.endpoint.auth] = secret
        self._path = {"chat": "/v1/chat/completions", "responses": "/v1/responses"}.get(spec.api, "/v1/completions")
        self._lost = openai.NotFoundError
        self._mask = Mask(secret)
        self._mapped = _Mapping(openai, httpx2.HTTPError, url, clean)
        self._client: AsyncOpenAI = openai.AsyncOpenAI(
            api_key=secret or "none",
            base_url=url,
            timeout=_TIMEOUT_S,
            max_retries=_RETRIES,
            default_headers={**spec.endpoint.headers, **headers},
            default_query=spec.endpoint.query,
            http_client=openai.DefaultAsyncHttpxClient(
                follow_redirects=False, trust_env=False, verify=ssl.create_default_context()
            ),
        )

    async def submit(self, requests: Sequence[Request], tag: str) -> str:
        """Upload the lines and start a job over them. An upload without a job costs nothing and expires."""
        lines = [
            json.dumps({"custom_id": one.custom_id, "method": "POST", "url": self._path, "body": one.body}) for one in requests
        ]
        with self._mapped.refused():
            upload = await self._client.files.create(
                file=(f"{tag}.jsonl", "\n".join(lines).encode()),
                purpose="batch",
                expires_after={"anchor": "created_at", "seconds": int(_WINDOW_S)},
            )
            job = await self._client.with_options(max_retries=0).batches.create(
                completion_window="24h",
                endpoint=self._path,  # type: ignore[arg-type]
                input_file_id=upload.id,
                metadata={TAG: tag},
            )
        return job.id

    async def find(self, tag: str, n_lines: int, since: float, known: Collection[str]) -> str | None:
        """Our name for the job stands in its metadata."""
        del n_lines, known
        seen = 0
        with self._mapped():
            async for job in self._client.batches.list(limit=100):
                seen += 1
                if (job.metadata or {}).get(TAG) == tag:
                    return job.id
                if job.created_at < since - _CLOCK_SLACK_S or seen >= _LISTED:
                    break
        return None

    async def look(self, job: str) -> Standing:
        """How far the job is."""
        with self._mapped():
            try:
                found = await self._client.batches.retrieve(job)
            except self._lost:
                return _LOST
        counts = found.request_counts
        errors = found.errors.data if found.errors and found.errors.data else []
        return Standing(
            ended=found.status in ("completed", "expired", "cancelled", "failed"),
            done=counts.completed + counts.failed if counts else 0,
            status=found.status,
            reason=self._mask.text(errors[0].message or "no reason given") if errors else None,
        )

    async def results(self, job: str) -> AsyncIterator[Result]:
        """The lines of the output file, then those of the error file."""
        with self._mapped():
            found = await self._client.batches.retrieve(job)
            for file in (found.output_file_id, found.error_file_id):
                if file is None:
                    continue
                async with self._client.files.with_streaming_response.content(file) as response:
                    async for line in _lines(response.iter_bytes()):
                        if (result := _read_openai(self._mask.body(line))) is not None:
                            yield result

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.close()


class AnthropicBatches:
    """`/v1/messages/batches`: one request holds the whole job."""

    max_lines = 100_000
    max_bytes = 256_000_000

    def __init__(self, spec: TargetSpec, url: str, clean: Callable[[str], str]) -> None:
        import anthropic
        import httpx2

        secret = key(spec)
        bearer = spec.endpoint.auth == "bearer"
        self._lost = anthropic.NotFoundError
        self._mask = Mask(secret)
        self._mapped = _Mapping(anthropic, httpx2.HTTPError, url, clean)
        self._origin = _origin(url)
        self._client: AsyncAnthropic = anthropic.AsyncAnthropic(
            api_key=None if bearer else secret or "none",
            auth_token=secret or "none" if bearer else None,
            base_url=url.removesuffix("/v1"),
            timeout=_TIMEOUT_S,
            max_retries=_RETRIES,
            default_headers=spec.endpoint.headers,
            default_query=spec.endpoint.query,
            http_client=anthropic.DefaultAsyncHttpxClient(
                follow_redirects=False, trust_env=False, verify=ssl.create_default_context()
            ),
        )

    async def submit(self, requests: Sequence[Request], tag: str) -> str:
        """Start a job. The service keeps no metadata: `tag` goes nowhere."""
        del tag
        lines: Any = [{"custom_id": one.custom_id, "params": one.body} for one in requests]
        with self._mapped.refused():
            return (await self._client.with_options(max_retries=0).messages.batches.create(requests=lines)).id

    async def find(self, tag: str, n_lines: int, since: float, known: Collection[str]) -> str | None:
        """A job as long as ours, started since, that we have no other name for. Were it another's, none of its answers would
        carry our ids, and the lines would be sent again."""
        del tag
        seen = 0
        with self._mapped():
            async for job in self._client.messages.batches.list(limit=100):
                seen += 1
                if job.created_at.timestamp() < since - _CLOCK_SLACK_S or seen >= _LISTED:
                    break
                if job.id not in known and _total(job.request_counts) == n_lines:
                    return job.id
        return None

    async def look(self, job: str) -> Standing:
        """How far the job is."""
        with self._mapped():
            try:
                found = await self._client.messages.batches.retrieve(job)
            except self._lost:
                return _LOST
        return Standing(
            ended=found.processing_status == "ended",
            done=_total(found.request_counts) - found.request_counts.processing,
            status=found.processing_status,
        )

    async def results(self, job: str) -> AsyncIterator[Result]:
        """The lines of the results file, if it lies where the key may go."""
        with self._mapped():
            found = await self._client.messages.batches.retrieve(job)
            if found.results_url is None:
                return
            if _origin(found.results_url) != self._origin:
                raise EndpointError(
                    f"the results of batch {job} lie on another host, and keys are sent to the declared one only",
                    hint=f"declared: {self._origin}",
                )
            async for line in await self._client.messages.batches.results(job):
                yield _read_anthropic(json.loads(self._mask.body(json.dumps(line.to_dict(mode="json")).encode())))

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.close()


class _Mapping:
    """A client's errors as ours. `module` is openai or anthropic: their errors have the same names. `broken` is what their
    HTTP library raises while an answer streams, which they pass on."""

    def __init__(self, module: ModuleType, broken: type[Exception], url: str, clean: Callable[[str], str]) -> None:
        self._module: Any = module
        self._broken = broken
        self._url = url
        self._clean = clean

    @contextmanager
    def __call__(self, refused: type[EndpointError] = EndpointError) -> Iterator[None]:
        try:
            yield
        except self._module.APIStatusError as exc:
            status = exc.status_code
            kind = refused if 300 <= status < 500 and status not in (408, 409) else EndpointError
            where = " redirects elsewhere, which is not followed" if status < 400 else f": {_said(exc)}"
            raise kind(self._clean(f"{self._url}: the batch API answers HTTP {status}{where}")) from exc
        except (self._module.APIConnectionError, self._broken) as exc:
            raise UnreachableError(self._clean(f"{self._url}: the batch API does not answer: {exc}")) from exc
        except (self._module.APIError, ValueError) as exc:
            raise EndpointError(self._clean(f"{self._url}: the batch API answers what cannot be read: {exc}")) from exc

    def refused(self) -> Any:
        """For requests that start something: a clear no is NotSubmittedError."""
        return self(NotSubmittedError)


def _said(exc: Any) -> str:
    """The message of an error's body, which both services put under error.message."""
    error = exc.body.get("error", exc.body) if isinstance(exc.body, dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    return message if isinstance(message, str) else str(exc.message)


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _total(counts: Any) -> int:
    return int(counts.processing + counts.succeeded + counts.errored + counts.canceled + counts.expired)


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The lines of a JSONL stream, ended by line feeds alone: other separators may stand inside a text."""
    rest = b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line
    if rest.strip():
        yield rest


def _read_openai(line: bytes) -> Result | None:
    """A line of an output or an error file; None for what is no such line, whose request then has no answer."""
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        return None
    custom_id = said.get("custom_id") if isinstance(said, dict) else None
    if not isinstance(custom_id, str):
        return None
    response, error = said.get("response"), said.get("error")
    body = response.get("body") if isinstance(response, dict) else None
    status = response.get("status_code") if isinstance(response, dict) else None
    if isinstance(body, dict) and status == 200 and not error:
        return Result(custom_id=custom_id, answer=body, status=200)
    told = error or (body.get("error") if isinstance(body, dict) else None)
    message = str(told.get("message") or told.get("code")) if isinstance(told, dict) else "no answer"
    code = f"HTTP {status}: " if isinstance(status, int) and status else ""
    return Result(custom_id=custom_id, reason=code + message, status=status if isinstance(status, int) and status else None)


_ANTHROPIC_STATUSES = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
}
"""The HTTP statuses that Anthropic's error types stand for, as its documentation of errors lists them."""


def _read_anthropic(line: dict[str, Any]) -> Result:
    custom_id = str(line.get("custom_id"))
    result = line.get("result") or {}
    if result.get("type") == "succeeded":
        return Result(custom_id=custom_id, answer=result.get("message"), status=200)
    if result.get("type") != "errored":
        return Result(custom_id=custom_id, reason=f"the batch's line is {result.get('type')}")
    error = (result.get("error") or {}).get("error") or {}
    return Result(
        custom_id=custom_id,
        reason=f"{error.get('type')}: {error.get('message')}",
        status=_ANTHROPIC_STATUSES.get(str(error.get("type"))),
    )
