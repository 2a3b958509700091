"""A target behind an OpenAI-compatible completions endpoint: vLLM's server and others.

Opening asks the endpoint what it serves and what it can do; `observe` sends batches, and takes a batch apart where one
prompt sinks the rest. The wire format is `completions_wire`'s, the sending `transport`'s.
"""

from __future__ import annotations

import asyncio
import difflib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

import numpy as np

from harness.errors import CapabilityError, EndpointError, HarnessError, UnreachableError, UsageError
from harness.providers import completions_wire as wire
from harness.providers.targets import OpenOptions, TargetSpec
from harness.providers.transport import Answer, Failure, RequestFailedError, Transport
from harness.providers.vllm_command import missing_weights, model_source
from harness.providers.vocabulary import Vocabulary
from harness.records import Capabilities, Mode, Observation, Prompt, Readout, TargetInfo

_PROBE_TEXT = "The capital of France is"
_RUNGS = (1000, 100, 50, 20, 5)
"""Numbers of log-probabilities to try, high to low: our vLLM's limit, round numbers, vLLM's default, OpenAI's."""

_CONTENT_STATUSES = frozenset({400, 413, 422, 500})
"""Refusals that may be about what a request holds; others (404, 429, 503, ...) are about the endpoint."""

_SAME_NAT = 0.5
"""Log-probabilities of one prompt sent as text and as ids differ by less: noise is under 0.1, another prompt's many nats."""

_BOS_TEXTS = ("<|begin_of_text|>", "<bos>", "<s>")
"""How common tokenizers spell the token that starts a text, for when the tokenizer itself is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """A transport and what every request through it shares."""

    transport: Transport
    url: str
    model: str

    async def ask(
        self,
        prompts: Sequence[str | Sequence[int]],
        n_logprobs: int,
        *,
        names: Vocabulary | None = None,
        has_bos: bool = False,
        attempts: int | None = None,
    ) -> tuple[list[Observation], Answer]:
        """The observations of one request. `names`: have tokens named by id, ids of that vocabulary."""
        body = wire.completion_request(self.model, prompts, n_logprobs, token_id_keys=names is not None, has_bos=has_bos)
        answer = await self.transport.post(f"{self.url}/completions", body, attempts=attempts)
        try:
            return wire.read_completion(answer.value, len(prompts), n_logprobs, names), answer
        except wire.BadAnswerError as exc:
            failed = RequestFailedError(Failure.UNUSABLE, f"bad answer: {exc}")
            failed.attempts = answer.attempts
            raise failed from exc


@dataclass(frozen=True, slots=True, kw_only=True)
class _Findings:
    """What the endpoint was found to do. `names`: the vocabulary, if tokens come named by id."""

    max_logprobs: int
    token_ids: bool
    many_prompts: bool
    vocabulary: Vocabulary | None
    names: Vocabulary | None
    fingerprint: str | None
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    """Prompts that fit into one request, and their places among those that were asked for."""

    places: Sequence[int]
    prompts: Sequence[str | Sequence[int]]
    has_bos: bool

    def halves(self) -> tuple[_Batch, _Batch]:
        middle = len(self.places) // 2
        return (
            replace(self, places=self.places[:middle], prompts=self.prompts[:middle]),
            replace(self, places=self.places[middle:], prompts=self.prompts[middle:]),
        )


class CompletionsProvider:
    """Next-token distributions over HTTP: the likeliest tokens of each prompt, as far down as the endpoint lists them."""

    def __init__(self, spec: TargetSpec, line: _Line, info: TargetInfo, findings: _Findings) -> None:
        self.info = info
        self.vocabulary = findings.vocabulary
        self.batch_size = info.capabilities.max_prompts_per_request
        self.concurrency = spec.endpoint.limits.concurrency
        self._attempts = spec.endpoint.limits.attempts
        self._line = line
        self._findings = findings
        self._bos_texts = _bos_texts(findings.vocabulary)

    async def observe(self, prompts: Sequence[Prompt], readout: Readout) -> list[Observation]:
        """One observation for each prompt, in order; those that failed carry their error."""
        n_logprobs = min(readout.n_logprobs, self._findings.max_logprobs)
        found: dict[int, Observation] = {}
        for batch in self._batches(prompts):
            found.update(zip(batch.places, await self._ask(batch, n_logprobs), strict=True))
        return [found[place] for place in range(len(prompts))]

    async def aclose(self) -> None:
        """Close the connections."""
        await self._line.transport.aclose()

    def _batches(self, prompts: Sequence[Prompt]) -> Iterator[_Batch]:
        """The prompts in requests: ids and texts apart, and texts with a BOS of their own apart from those without."""
        kinds: dict[tuple[bool, bool], list[int]] = {}
        sent: list[str | Sequence[int]] = []
        for place, prompt in enumerate(prompts):
            ids = prompt.token_ids if self._findings.token_ids else None
            sent.append(prompt.text if ids is None else ids)
            has_bos = ids is None and prompt.text.startswith(self._bos_texts)
            kinds.setdefault((ids is None, has_bos), []).append(place)
        for (_, has_bos), places in kinds.items():
            for start in range(0, len(places), self.batch_size):
                chosen = places[start : start + self.batch_size]
                yield _Batch(places=chosen, prompts=[sent[place] for place in chosen], has_bos=has_bos)

    async def _ask(self, batch: _Batch, n_logprobs: int, *, before: int = 0, attempts: int | None = None) -> list[Observation]:
        """The batch's observations; `before` counts the attempts that were made with these prompts in larger batches."""
        start = time.perf_counter()
        try:
            observations, answer = await self._line.ask(
                batch.prompts, n_logprobs, names=self._findings.names, has_bos=batch.has_bos, attempts=attempts
            )
        except RequestFailedError as exc:
            before += exc.attempts
            if len(batch.places) > 1 and _may_be_one_prompts_fault(exc):
                # Retries were spent on the whole; each part is asked once more, or a dead endpoint would cost hours.
                attempts = 1 if exc.attempts >= self._attempts else attempts
                return [
                    observation
                    for half in batch.halves()
                    for observation in await self._ask(half, n_logprobs, before=before, attempts=attempts)
                ]
            failed = Observation(error=exc.reason, attempts=before, latency_s=time.perf_counter() - start)
            return [failed] * len(batch.places)
        latency_s = time.perf_counter() - start
        return [
            replace(
                observation,
                error=observation.error and self._line.transport.clean(observation.error),
                attempts=before + answer.attempts,
                latency_s=latency_s,
            )
            for observation in observations
        ]


async def open_provider(spec: TargetSpec, options: OpenOptions) -> CompletionsProvider:
    """Ask the endpoint who it is and what it can do.

    Raises UnreachableError where nothing answers, EndpointError where the model is not served or the key is refused,
    CapabilityError where no log-probabilities are given, UsageError where the address is missing.
    """
    url = _address(spec)
    transport = Transport(spec.endpoint.limits, _key(spec))
    try:
        provider = await _open(_Line(transport=transport, url=url, model=spec.target.model), spec, options)
    except BaseException as exc:  # whatever stops the opening, also Ctrl-C: the connections go
        await transport.aclose()
        if isinstance(exc, RequestFailedError):
            raise _opening_error(exc, spec, url) from exc
        raise
    for note in provider.info.capabilities.notes:
        options.note(f"{spec.name}: {note}")
    return provider


async def _open(line: _Line, spec: TargetSpec, options: OpenOptions) -> CompletionsProvider:
    root = await _served_root(line, spec)
    version = await _server_version(line)
    vocabulary, notes = await asyncio.to_thread(_load_vocabulary, spec)
    if options.dtype:
        notes.append(f"the server decides the dtype: {options.dtype} is not asked for")
    findings = await _probe(line, spec, vocabulary, notes)
    found = {"server_version": version, "served_from": root}
    if version is not None:  # vLLM's fingerprint names its version and settings; elsewhere it changes from call to call
        found["fingerprint"] = findings.fingerprint
    return CompletionsProvider(spec, line, _info(spec, line.url, found, findings), findings)


def _info(spec: TargetSpec, url: str, found: dict[str, str | None], findings: _Findings) -> TargetInfo:
    limit = spec.endpoint.limits.prompts_per_request
    vocabulary = findings.vocabulary
    return TargetInfo(
        target=spec.name,
        endpoint=f"{spec.endpoint_name} {url}",
        model=spec.target.model,
        revision=spec.target.revision,
        tokenizer_digest=vocabulary.digest if vocabulary else None,
        settings={name: value for name, value in found.items() if value is not None},
        capabilities=Capabilities(
            token_ids=findings.token_ids,
            max_logprobs=findings.max_logprobs,
            mode=Mode.TOPK,
            max_prompts_per_request=limit if findings.many_prompts else 1,
            notes=findings.notes,
        ),
    )


def _address(spec: TargetSpec) -> str:
    """The endpoint's address, checked; raises UsageError without repeating what may hold a secret."""
    endpoint = spec.endpoint
    named = f"set {endpoint.base_url_env}, or" if endpoint.base_url_env else "set"
    hint = f"{named} `base_url` in {spec.found.path}"
    url = spec.base_url()
    if url is None:
        raise UsageError(f"endpoint {spec.endpoint_name!r} has no address", hint=hint)
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment or "@" in parts.netloc:
        raise UsageError(
            f"the address of endpoint {spec.endpoint_name!r} is not of the form http(s)://host[:port]/path", hint=hint
        )
    return url


def _key(spec: TargetSpec) -> str | None:
    name = spec.endpoint.key_env
    key = os.environ.get(name, "").strip() if name else ""
    if not key.isprintable():
        raise UsageError(f"the key in the variable {name} holds control characters")
    return key or None


async def _served_root(line: _Line, spec: TargetSpec) -> str | None:
    """What the served model was loaded from; raises EndpointError where the endpoint serves others only."""
    try:
        models = wire.read_models((await line.transport.get(f"{line.url}/models")).value)
    except RequestFailedError as exc:
        if exc.status in (404, 405, 501):  # not every endpoint lists its models; the probe will tell
            return None
        raise
    except wire.BadAnswerError as exc:
        raise EndpointError(f"{line.url}/models answers what is no list of models: {exc}") from exc
    if line.model not in models:
        near = difflib.get_close_matches(line.model, models, n=1, cutoff=0.3)
        named = ", ".join(sorted(models)[:10]) + (", ..." if len(models) > 10 else "")
        raise EndpointError(
            line.transport.clean(f"{line.url} does not serve {line.model!r}; it serves {named or 'nothing'}"),
            hint=line.transport.clean(f"set `model` of target {spec.name!r} in {spec.found.path} to {near[0]!r}")
            if near
            else None,
        )
    root = models[line.model]
    return None if root is None else line.transport.clean(root)


async def _server_version(line: _Line) -> str | None:
    """vLLM tells its version beside the API; others do not, and that is fine."""
    try:
        answer = await line.transport.get(f"{line.url.removesuffix('/v1')}/version", attempts=1)
    except RequestFailedError:
        return None
    version = wire.read_text(answer.value, "version")
    return None if version is None else line.transport.clean(version)


def _load_vocabulary(spec: TargetSpec) -> tuple[Vocabulary | None, list[str]]:
    """The target's tokenizer, or a note why there is none: the endpoint can still be asked with text."""
    source = model_source(spec) if spec.target.weights else spec.target.tokenizer
    if source is None:
        return None, [f"target {spec.name!r} names no tokenizer: prompts go as text, tokens are matched by text"]
    problem: UsageError | None = missing_weights(spec)
    if problem is None:
        try:
            return Vocabulary.load(source), []
        except UsageError as exc:
            problem = exc
    first_line = problem.message.splitlines()[0]
    remedy = f" ({problem.hint})" if problem.hint else ""
    return None, [f"{first_line}: prompts go as text, tokens are matched by text{remedy}"]


async def _probe(line: _Line, spec: TargetSpec, vocabulary: Vocabulary | None, notes: list[str]) -> _Findings:
    """Find out with tiny requests, each adding one thing to what is known to work."""
    asked, clear, fingerprint = await _find_limit(line, spec)
    limit = len(clear.tokens)
    if clear.covered_mass is not None and len(clear.tokens) <= 100 and abs(clear.covered_mass - 1) < 1e-6:
        notes.append("the listed log-probabilities sum to one: this endpoint seems to renormalise them over its list")
    prompt: str | tuple[int, ...] = _PROBE_TEXT
    token_ids = False
    names = None
    if vocabulary is not None:
        ids = vocabulary.encode([_PROBE_TEXT])[0]
        seen = await _try(line, [ids], asked)
        if isinstance(seen, str):
            notes.append(f"token ids are refused, prompts go as text: {seen}")
        elif not _alike(seen[0], clear):
            notes.append("token ids are read as another prompt: not the served model's tokenizer, so prompts go as text")
            vocabulary = None
        else:
            prompt, token_ids = ids, True
    if vocabulary is not None:
        seen = await _try(line, [prompt], asked, names=vocabulary)
        if isinstance(seen, str):
            notes.append(f"tokens are not named by id, they are matched by text: {seen}")
        else:
            names = vocabulary
            limit = len(seen[0].logprobs)  # among texts, tokens that read alike were counted once
    many = await _try(line, [prompt, prompt], asked, names=names)
    if isinstance(many, str):
        notes.append(f"one prompt a request, more are refused: {many}")
    return _Findings(
        max_logprobs=limit,
        token_ids=token_ids,
        many_prompts=not isinstance(many, str),
        vocabulary=vocabulary,
        names=names,
        fingerprint=fingerprint,
        notes=tuple(notes),
    )


async def _find_limit(line: _Line, spec: TargetSpec) -> tuple[int, Observation, str | None]:
    """(the most log-probabilities that may be asked for, the probe's observation, the server's fingerprint)."""
    wanted = spec.endpoint.limits.max_logprobs or _RUNGS[0]
    rungs = [wanted, *(rung for rung in _RUNGS if rung < wanted)]
    reason = ""
    while rungs:
        rung = rungs.pop(0)
        try:
            (seen,), answer = await line.ask([_PROBE_TEXT], rung)
        except RequestFailedError as exc:
            if not _is_refusal(exc):
                raise
            reason = exc.reason
            stated = wire.stated_limit(reason)
            if stated is not None and 0 < stated < rung:
                rungs = [stated, *(lower for lower in rungs if lower < stated)]
            continue
        if seen.error is None:
            fingerprint = wire.read_text(answer.value, "system_fingerprint")
            return rung, seen, fingerprint and line.transport.clean(fingerprint)
        reason = line.transport.clean(seen.error)
    raise CapabilityError(f"target {spec.name!r}: {line.url} gives no log-probabilities: {reason}")


async def _try(
    line: _Line, prompts: Sequence[str | Sequence[int]], n_logprobs: int, *, names: Vocabulary | None = None
) -> list[Observation] | str:
    """The observations, or why the endpoint will not do this."""
    try:
        seen, _ = await line.ask(prompts, n_logprobs, names=names)
    except RequestFailedError as exc:
        if not _is_refusal(exc):
            raise
        return exc.reason
    errors = [observation.error for observation in seen if observation.error is not None]
    return line.transport.clean(errors[0]) if errors else seen


def _alike(one: Observation, other: Observation) -> bool:
    """Whether two answers can be about the same prompt."""
    n = min(len(one.logprobs), len(other.logprobs), 5)
    return bool(np.abs(one.logprobs[:n] - other.logprobs[:n]).max() < _SAME_NAT)


def _is_refusal(exc: RequestFailedError) -> bool:
    """The endpoint answered, and says no to this request (not: to us, or to everyone)."""
    return exc.failure is Failure.UNUSABLE or exc.status in _CONTENT_STATUSES


def _may_be_one_prompts_fault(exc: RequestFailedError) -> bool:
    return _is_refusal(exc) or exc.failure in (Failure.UNREADABLE, Failure.BROKEN)


def _bos_texts(vocabulary: Vocabulary | None) -> tuple[str, ...]:
    """What a text starts with when it holds its BOS already; nothing where the tokenizer adds none."""
    if vocabulary is None:
        return _BOS_TEXTS
    added = vocabulary.encode([""])[0]
    return ("".join(vocabulary.text(token_id) for token_id in added),) if added else ()


def _opening_error(exc: RequestFailedError, spec: TargetSpec, url: str) -> HarnessError:
    """What a user reads when opening failed."""
    endpoint = spec.endpoint
    if exc.failure is Failure.UNREACHABLE:
        variable = endpoint.base_url_env
        source = f"the variable {variable}" if variable and os.environ.get(variable) else str(spec.found.path)
        command = f"harness serve --target {spec.name} --exec"
        return UnreachableError(
            f"nothing answers at {url}: {exc.reason}\nthe address comes from {source}",
            hint=f"start it with: {command}" if spec.target.serve else None,
        )
    hint = None
    if exc.status in (401, 403) and endpoint.key_env:
        state = "holds a key that is refused" if os.environ.get(endpoint.key_env) else "is not set"
        hint = f"the variable {endpoint.key_env} {state}"
    return EndpointError(f"{url} cannot be used: {exc.reason}", hint=hint)
