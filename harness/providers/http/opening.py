"""Opening a target behind an endpoint: who answers there, which tokenizer is theirs, what they can do.

One coroutine for each api; they differ in the dialect alone.
"""

from __future__ import annotations

import asyncio
import difflib
import os
from collections.abc import Callable
from dataclasses import replace

from harness.errors import EndpointError, HarnessError, UnreachableError, UsageError
from harness.providers.http.address import address, key
from harness.providers.http.fitting import Form
from harness.providers.http.line import Line
from harness.providers.http.probe import Findings, probe
from harness.providers.http.provider import HttpProvider
from harness.providers.http.transport import Failure, RequestFailedError, Transport
from harness.providers.targets import Chat, OpenOptions, TargetSpec
from harness.providers.vllm_command import missing_weights, model_source
from harness.providers.vocabulary import Vocabulary
from harness.providers.wire.base import BadAnswerError, Dialect, read_text
from harness.providers.wire.chat import ChatCompletions
from harness.providers.wire.completions import Completions, read_models
from harness.providers.wire.messages import Messages
from harness.providers.wire.responses import Responses
from harness.records import Capabilities, TargetInfo


async def open_completions(spec: TargetSpec, options: OpenOptions) -> HttpProvider:
    """A target behind `/completions`."""
    return await open_line(lambda _: Completions(), spec, options)


async def open_chat(spec: TargetSpec, options: OpenOptions) -> HttpProvider:
    """A target behind `/chat/completions`."""
    return await open_line(ChatCompletions, spec, options)


async def open_responses(spec: TargetSpec, options: OpenOptions) -> HttpProvider:
    """A target behind OpenAI's `/responses`."""
    return await open_line(Responses, spec, options)


async def open_anthropic(spec: TargetSpec, options: OpenOptions) -> HttpProvider:
    """A target behind Anthropic's `/messages`."""
    return await open_line(Messages, spec, options)


async def open_line(make: Callable[[Chat], Dialect], spec: TargetSpec, options: OpenOptions) -> HttpProvider:
    """Ask the endpoint who it is and what it can do; `make` gives the dialect for a way to turn texts into conversations.

    Raises UnreachableError where nothing answers, EndpointError where the model is not served or the key is refused,
    CapabilityError where neither log-probabilities nor draws are given, UsageError where the address is missing.
    """
    url = address(spec)
    if options.max_connections is not None:
        spec = spec.with_concurrency(options.max_connections)
    transport = Transport(spec.endpoint, key(spec), max_connections=options.max_connections, sending=options.sending)
    line = Line(
        transport=transport,
        url=url,
        model=spec.target.model,
        dialect=make(spec.chat),
        answers_as=spec.target.answers_as,
        body={**spec.endpoint.body, **spec.target.body},
        usage=transport.usage,
    )
    try:
        provider = await _open(Form(line=line, spec=spec, make=make), options)
    except BaseException as exc:  # whatever stops the opening, also Ctrl-C: the connections go
        await transport.aclose()
        if isinstance(exc, RequestFailedError):
            raise _opening_error(exc, spec, url) from exc
        raise
    for note in provider.info.capabilities.notes:
        options.note(f"{spec.name}: {note}")
    return provider


async def _open(form: Form, options: OpenOptions) -> HttpProvider:
    line, spec = form.line, form.spec
    root = None if spec.claims.lists_models is False else await _served_root(line, spec)
    version = await _server_version(line)
    vocabulary, notes = await asyncio.to_thread(_load_vocabulary, spec)
    form.notes.extend(notes)
    if options.dtype:
        form.notes.append(f"the server decides the dtype: {options.dtype} is not asked for")
    findings = await probe(form, vocabulary, shows_tokens=version is not None)
    found = {"server_version": version, "served_from": root, "answers_as": findings.named}
    if version is not None:  # vLLM's fingerprint names its version and settings; elsewhere it changes from call to call
        found["fingerprint"] = findings.fingerprint and line.transport.clean(findings.fingerprint)
    info = _info(form, found, findings)
    line = replace(form.line, pinned=findings.named)
    return HttpProvider(form.spec, line, info, vocabulary=findings.way.vocabulary, names=findings.way.names)


def _info(form: Form, found: dict[str, str | None], findings: Findings) -> TargetInfo:
    line, spec, way = form.line, form.spec, findings.way
    settings: dict[str, object] = {name: value for name, value in found.items() if value is not None}
    if not line.dialect.takes_many or line.body:
        settings["request"] = {"path": line.dialect.path, "body": dict(line.body), "chat": spec.chat.model_dump()}
    served = [
        f"{name} {found[key]}" for name, key in (("served from", "served_from"), ("server", "server_version")) if found[key]
    ]
    texts = {
        "reachable": f"yes, {line.url}",
        **findings.texts,
        "revision": ", ".join([*([f"declared {spec.target.revision}"] if spec.target.revision else []), *served]) or "not told",
    }
    return TargetInfo(
        target=spec.name,
        endpoint=f"{spec.endpoint_name} {line.url}",
        model=spec.target.model,
        revision=spec.target.revision,
        tokenizer_digest=way.vocabulary.digest if way.vocabulary else None,
        settings=settings,
        capabilities=Capabilities(
            token_ids=way.token_ids,
            max_logprobs=way.limit,
            mode=findings.modes[0],
            modes=findings.modes,
            chosen_ids=way.chosen_ids,
            bias_ids=findings.bias_ids,
            max_prompts_per_request=way.prompts_per_request,
            findings=texts,
            notes=tuple(form.notes),
        ),
    )


async def _served_root(line: Line, spec: TargetSpec) -> str | None:
    """What the served model was loaded from; raises EndpointError where the endpoint serves others only."""
    try:
        answer = (await line.transport.get(f"{line.url}/models")).value
        models = read_models(answer)
    except RequestFailedError as exc:
        if exc.status in (404, 405, 501):  # not every endpoint lists its models; the probe will tell
            return None
        raise
    except BadAnswerError as exc:
        raise EndpointError(f"{line.url}/models answers what is no list of models: {exc}") from exc
    if line.model not in models and any(line.accepts(name) for name in models):
        return None  # listed by its dated names alone, as Anthropic lists them
    if line.model not in models and not answer.get("has_more"):
        near = difflib.get_close_matches(line.model, models, n=1, cutoff=0.3)
        named = ", ".join(sorted(models)[:10]) + (", ..." if len(models) > 10 else "")
        raise EndpointError(
            line.transport.clean(f"{line.url} does not serve {line.model!r}; it serves {named or 'nothing'}"),
            hint=line.transport.clean(f"set `model` of target {spec.name!r} in {spec.found.path} to {near[0]!r}")
            if near
            else None,
        )
    root = models.get(line.model)
    return None if root is None else line.transport.clean(root)


async def _server_version(line: Line) -> str | None:
    """vLLM tells its version beside the API; others do not, and that is fine."""
    try:
        answer = await line.transport.get(f"{line.url.removesuffix('/v1')}/version", attempts=1)
    except RequestFailedError:
        return None
    version = read_text(answer.value, "version")
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
