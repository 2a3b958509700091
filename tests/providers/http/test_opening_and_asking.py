"""The completions provider against a stub endpoint: what it finds out, what it asks, how it fails."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from harness import paths
from harness.errors import CapabilityError, EndpointError, HarnessError, UnreachableError, UsageError
from harness.providers.http import opening
from harness.providers.http.opening import open_completions as open_provider
from harness.providers.http.provider import HttpProvider
from harness.providers.http.transport import Transport
from harness.providers.targets import Endpoint, OpenOptions, TargetSpec
from harness.records import Lexicon, Mode, Observation, Prompt, Readout

from ..stub_server import (
    N_VOCAB,
    WORDS,
    Fault,
    StubServer,
    drop,
    first,
    hang,
    poisoned,
    raw,
    refusal,
    reworked,
    status,
    stub_logprobs,
    stub_tokenizer,
)

KEY = "sk-canary-0123456789"
READOUT = Readout(
    lexicon=Lexicon(concept="c", words=frozenset(), token_ids=None, resolved_share=None, digest=""), n_logprobs=30
)


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between attempts, which take no time here."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(opening, "Transport", partial(Transport, sleep=sleep))
    return slept


@pytest.fixture
def tokenizer_file(tmp_path: Path) -> str:
    path = tmp_path / "tokenizer.json"
    stub_tokenizer().save(str(path))
    return str(path)


def spec(base_url: str | None, target: dict[str, Any] | None = None, **endpoint: Any) -> TargetSpec:
    declared = Endpoint.model_validate(
        {
            "api": "completions",
            "base_url": base_url,
            "limits": {"prompts_per_request": 8, "concurrency": 3},
            "targets": {"mine": {"model": "stub-model", **(target or {})}},
        }
        | endpoint
    )
    found = paths.Found(name="stub", path=Path("providers/stub.toml"), origin="project")
    return TargetSpec(name="mine", target=declared.targets["mine"], endpoint_name="stub", endpoint=declared, found=found)


def prompts(n: int, *, ids: bool = True) -> list[Prompt]:
    """Distinct prompts of different lengths."""
    made = []
    for i in range(n):
        sent = (5 + i, *range(10, 10 + i % 4), 6)
        made.append(
            Prompt(
                prompt_id=str(i),
                concept="c",
                arm="clean",
                sentence_id=str(i),
                injection_id="",
                template="plain",
                group="",
                text=" ".join(WORDS[j] for j in sent),
                token_ids=sent if ids else None,
            )
        )
    return made


def ask(
    stub: StubServer,
    asked: list[Prompt],
    *,
    fault: Fault | None = None,
    readout: Readout = READOUT,
    **kwargs: Any,
) -> tuple[list[Observation], HttpProvider]:
    """Open against the healthy stub, then observe with `fault` in place; `requests` holds those of observe only."""

    async def body() -> tuple[list[Observation], HttpProvider]:
        async with stub.running():
            provider = await open_provider(spec(stub.base_url, **kwargs), OpenOptions())
            stub.requests.clear()
            stub.fault = fault
            try:
                return await provider.observe(asked, readout), provider
            finally:
                await provider.aclose()

    return asyncio.run(body())


def open_only(stub: StubServer, *, options: OpenOptions | None = None, **kwargs: Any) -> HttpProvider:
    async def body() -> HttpProvider:
        async with stub.running():
            provider = await open_provider(spec(stub.base_url, **kwargs), options or OpenOptions())
            await provider.aclose()
            return provider

    return asyncio.run(body())


def opening_error(stub: StubServer, **kwargs: Any) -> HarnessError:
    with pytest.raises(HarnessError) as caught:
        open_only(stub, **kwargs)
    return caught.value


def assert_right(observation: Observation, prompt: Prompt, k: int = 30) -> None:
    """The observation is the top k of the stub's distribution after the prompt, computed here."""
    logprobs = stub_logprobs([WORDS.index(word) for word in prompt.text.split()])
    order = np.argsort(-logprobs)[:k]
    assert observation.error is None
    if observation.token_ids is None:
        assert observation.tokens == tuple(WORDS[i] for i in order)
    np.testing.assert_allclose(observation.logprobs, logprobs[order], rtol=1e-6)
    assert observation.covered_mass == pytest.approx(np.exp(logprobs[order]).sum(), rel=1e-6)
    assert observation.mode is Mode.TOPK
    assert (observation.mass_low, observation.mass_high) == (None, None)
    if observation.token_ids is not None:
        assert observation.token_ids.tolist() == order.tolist()


# What is found out when opening


def test_an_endpoint_like_vllm_is_asked_with_ids_in_batches(tokenizer_file: str) -> None:
    stub = StubServer()
    provider = open_only(stub, target={"tokenizer": tokenizer_file, "revision": "r1"})
    found = provider.info.capabilities
    assert (found.token_ids, found.mode, found.max_prompts_per_request, found.notes) == (True, Mode.TOPK, 8, ())
    assert found.max_logprobs == N_VOCAB  # asked for 1,000, the stub has no more
    assert (provider.batch_size, provider.concurrency) == (8, 3)
    assert provider.vocabulary is not None
    assert provider.info.tokenizer_digest == provider.vocabulary.digest
    assert (provider.info.model, provider.info.revision, provider.info.target) == ("stub-model", "r1", "mine")
    assert provider.info.endpoint == f"stub {stub.base_url}"
    assert provider.info.settings == {
        "server_version": "0.32.0",
        "served_from": "/weights/stub-model",
        "fingerprint": "fp-1",
    }
    assert len(stub.requests) <= 20


def test_a_fingerprint_is_recorded_only_where_it_stands_still() -> None:
    assert open_only(StubServer(vllm_version=None)).info.settings == {"served_from": "/weights/stub-model"}


def test_the_limit_that_a_refusal_states_is_tried_next() -> None:
    stub = StubServer(max_logprobs=77)
    assert open_only(stub).info.capabilities.max_logprobs == 77
    assert [body.get("logprobs") for body in stub.requests][:2] == [1000, 77]


def test_a_limit_that_is_not_stated_is_found_on_the_ladder() -> None:
    async def terse(_: StubServer, body: dict[str, Any]) -> Any:
        return refusal(422, "logprobs out of range") if body.get("logprobs", 0) > 5 else None

    stub = StubServer(fault=terse)
    assert open_only(stub).info.capabilities.max_logprobs == 5
    assert [body.get("logprobs") for body in stub.requests][:5] == [1000, 100, 50, 20, 5]


def test_the_declared_limit_is_where_the_ladder_starts() -> None:
    stub = StubServer()
    assert open_only(stub, limits={"max_logprobs": 40}).info.capabilities.max_logprobs == 40
    assert stub.requests[0]["logprobs"] == 40


def test_an_endpoint_that_lists_fewer_than_asked_has_that_limit() -> None:
    def five(data: dict[str, Any]) -> None:
        for choice in data["choices"]:
            top = choice["logprobs"]["top_logprobs"][0]
            choice["logprobs"]["top_logprobs"][0] = dict(list(top.items())[:5])

    provider = open_only(StubServer(fault=reworked(five)))
    assert provider.info.capabilities.max_logprobs == 5


def test_with_neither_log_probabilities_nor_draws_a_target_is_refused() -> None:
    async def empty(_: StubServer, __: dict[str, Any]) -> web.StreamResponse:
        return web.json_response({"choices": [{"index": 0, "logprobs": None}]})

    error = opening_error(StubServer(fault=empty))
    assert isinstance(error, CapabilityError)
    assert "gives no log-probabilities: bad answer: no log-probabilities; and no draws: bad answer:" in error.message


def test_where_ids_are_refused_prompts_go_as_text(tokenizer_file: str) -> None:
    told: list[str] = []
    stub = StubServer(takes_ids=False)
    provider = open_only(stub, target={"tokenizer": tokenizer_file}, options=OpenOptions(note=told.append))
    found = provider.info.capabilities
    assert not found.token_ids
    assert found.notes == ("token ids are refused, prompts go as text: HTTP 400: prompt must be text",)
    assert told == [f"mine: {found.notes[0]}"]
    assert provider.vocabulary is not None


def test_a_tokenizer_that_is_not_the_served_models_is_found_out(tmp_path: Path) -> None:
    tokenizer = stub_tokenizer()
    shuffled = {word: (i * 7 + 3) % N_VOCAB for word, i in tokenizer.get_vocab().items()}
    other = type(tokenizer)(type(tokenizer.model)(shuffled, unk_token="The"))
    other.pre_tokenizer = tokenizer.pre_tokenizer
    other.save(str(tmp_path / "tokenizer.json"))
    provider = open_only(StubServer(), target={"tokenizer": str(tmp_path)})
    assert not provider.info.capabilities.token_ids
    assert provider.vocabulary is None
    assert provider.info.tokenizer_digest is None
    assert "not the served model's tokenizer" in provider.info.capabilities.notes[0]


def test_where_tokens_are_not_named_by_id_they_are_texts(tokenizer_file: str) -> None:
    asked = prompts(3)
    stub = StubServer(names_ids=False)
    seen, provider = ask(stub, asked, target={"tokenizer": tokenizer_file})
    assert provider.info.capabilities.token_ids
    assert "tokens are not named by id" in provider.info.capabilities.notes[0]
    assert "return_tokens_as_token_ids" not in stub.requests[0]
    for observation, prompt in zip(seen, asked, strict=True):
        assert observation.token_ids is None
        assert_right(observation, prompt)


def test_where_lists_of_prompts_are_refused_each_goes_alone(tokenizer_file: str) -> None:
    asked = prompts(3)
    stub = StubServer(takes_many=False)
    seen, provider = ask(stub, asked, target={"tokenizer": tokenizer_file})
    assert provider.batch_size == provider.info.capabilities.max_prompts_per_request == 1
    assert [body["prompt"] for body in stub.requests] == [list(prompt.token_ids or ()) for prompt in asked]
    for observation, prompt in zip(seen, asked, strict=True):
        assert_right(observation, prompt)


def test_renormalised_lists_are_noted() -> None:
    def renormalise(data: dict[str, Any]) -> None:
        for choice in data["choices"]:
            top = choice["logprobs"]["top_logprobs"][0]
            total = np.log(sum(np.exp(list(top.values()))))
            choice["logprobs"]["top_logprobs"][0] = {name: float(lp - total) for name, lp in top.items()}

    provider = open_only(StubServer(fault=reworked(renormalise)), limits={"max_logprobs": 20})
    assert "renormalise" in " ".join(provider.info.capabilities.notes)


def test_an_endpoint_that_lists_no_models_is_probed_all_the_same() -> None:
    assert open_only(StubServer(lists_models=False)).info.settings == {"server_version": "0.32.0", "fingerprint": "fp-1"}


def test_another_model_served_is_an_error_that_names_it() -> None:
    error = opening_error(StubServer(served=("stub-modle", "other")))
    assert isinstance(error, EndpointError)
    assert "does not serve 'stub-model'; it serves other, stub-modle" in error.message
    assert error.hint == "set `model` of target 'mine' in providers/stub.toml to 'stub-modle'"


def test_a_refused_key_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    error = opening_error(StubServer(key="right"), key_env="STUB_KEY")
    assert error.exit_code == 3
    assert error.hint == "the variable STUB_KEY is not set"
    monkeypatch.setenv("STUB_KEY", KEY)
    error = opening_error(StubServer(key="right"), key_env="STUB_KEY")
    assert error.hint == "the variable STUB_KEY holds a key that is refused"
    assert "wrong key: Bearer ***" in error.message


def test_an_endpoint_that_does_not_answer_the_probe_is_an_error() -> None:
    limits = {"timeout_s": 0.1, "attempts": 2}
    assert "no answer within 0.1 s" in opening_error(StubServer(fault=hang), limits=limits).message
    assert "HTTP 503" in opening_error(StubServer(fault=status(503)), limits=limits).message
    assert "not JSON" in opening_error(StubServer(fault=raw("hello")), limits=limits).message


def test_a_missing_tokenizer_is_noted_and_text_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    (note,) = open_only(StubServer(), target={"weights": "small"}).info.capabilities.notes
    assert note.endswith("prompts go as text, tokens are matched by text (harness targets get small)")
    (note,) = open_only(StubServer()).info.capabilities.notes
    assert note == "target 'mine' names no tokenizer: prompts go as text, tokens are matched by text"
    broken = tmp_path / "tokenizer.json"
    broken.write_text("{}")
    (note,) = open_only(StubServer(), target={"tokenizer": str(broken)}).info.capabilities.notes
    assert note.startswith(f"no tokenizer at {broken}")
    assert "prompts go as text" in note


def test_an_asked_dtype_is_noted_as_the_servers_to_decide() -> None:
    provider = open_only(StubServer(), options=OpenOptions(dtype="float32"))
    assert "the server decides the dtype: float32 is not asked for" in provider.info.capabilities.notes


# Addresses and keys


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def error_of(opening: Callable[[], Awaitable[Any]]) -> HarnessError:
    async def body() -> HarnessError:
        with pytest.raises(HarnessError) as caught:
            await opening()
        return caught.value

    return asyncio.run(body())


def test_nothing_listening_is_told_in_three_lines_that_end_with_the_command(waits: list[float]) -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    error = error_of(lambda: open_provider(spec(url, {"serve": {}}), OpenOptions()))
    assert isinstance(error, UnreachableError)
    assert [*error.message.splitlines(), error.hint] == [
        f"nothing answers at {url}: Connection refused",
        "the address comes from providers/stub.toml",
        "start it with: harness serve --target mine --exec",
    ]
    assert not waits


def test_nothing_listening_without_a_way_to_serve_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB_URL", f"http://127.0.0.1:{free_port()}/v1")
    error = error_of(lambda: open_provider(spec(None, base_url_env="STUB_URL"), OpenOptions()))
    assert error.message.splitlines()[1] == "the address comes from the variable STUB_URL"
    assert error.hint is None


def test_no_address_is_a_usage_error_that_says_where_to_put_it() -> None:
    error = error_of(lambda: open_provider(spec(None, base_url_env="STUB_URL"), OpenOptions()))
    assert isinstance(error, UsageError)
    assert error.message == "endpoint 'stub' has no address"
    assert error.hint == "set STUB_URL, or `base_url` in providers/stub.toml"


@pytest.mark.parametrize(
    "url",
    ["localhost:8000/v1", "ftp://host/v1", "http:///v1", "http://h:x/v1", f"http://me:{KEY}@host/v1", f"http://h/v1?k={KEY}"],
)
def test_an_address_that_is_none_or_holds_a_secret_is_refused_untold(url: str) -> None:
    error = error_of(lambda: open_provider(spec(url), OpenOptions()))
    assert isinstance(error, UsageError)
    assert "http(s)://host[:port]/path" in error.message
    assert "canary" not in f"{error.message} {error.hint}"


def test_a_key_with_a_line_break_inside_is_refused_untold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB_KEY", f"{KEY}\nX-Other: 1")
    error = error_of(lambda: open_provider(spec("http://127.0.0.1:1/v1", key_env="STUB_KEY"), OpenOptions()))
    assert error.message == "the key in the variable STUB_KEY holds control characters"


def test_the_key_reaches_the_endpoint_and_no_record(monkeypatch: pytest.MonkeyPatch, tokenizer_file: str) -> None:
    monkeypatch.setenv("STUB_KEY", KEY + "\n")

    def leak(data: dict[str, Any]) -> None:
        data["choices"][0]["logprobs"]["top_logprobs"][0] = {KEY: -1.0}
        data["choices"][0]["logprobs"]["tokens"] = [KEY]

    async def echo(_: StubServer, __: Any) -> Any:
        return refusal(400, f"you sent {KEY}")

    for fault in (echo, raw("x" * 70 + KEY), reworked(leak)):
        stub = StubServer(key=KEY, served=("stub-model", KEY), vllm_version=f"v{KEY}")
        seen, provider = ask(stub, prompts(1), fault=fault, key_env="STUB_KEY", target={"tokenizer": tokenizer_file})
        assert stub.headers[0]["Authorization"] == f"Bearer {KEY}"
        assert seen[0].error is not None
        assert "canary" not in f"{seen} {provider.info}"
    error = opening_error(StubServer(key=KEY, served=(KEY,)), key_env="STUB_KEY")
    assert "canary" not in f"{error.message} {error.hint} {error!r}"


# What is observed


@pytest.mark.parametrize("n", [1, 8, 21])
def test_every_prompt_gets_its_own_distribution(tokenizer_file: str, n: int) -> None:
    asked = prompts(n)
    stub = StubServer()
    seen, _ = ask(stub, asked, target={"tokenizer": tokenizer_file})
    assert len(stub.requests) == -(-n // 8)
    for observation, prompt in zip(seen, asked, strict=True):
        assert observation.token_ids is not None
        assert_right(observation, prompt)
        assert observation.attempts == 1
        assert observation.latency_s > 0


def test_the_request_is_the_one_that_gives_a_greedy_distribution(tokenizer_file: str) -> None:
    asked = prompts(2)
    stub = StubServer()
    ask(stub, asked, target={"tokenizer": tokenizer_file})
    assert stub.requests == [
        {
            "model": "stub-model",
            "prompt": [list(prompt.token_ids or ()) for prompt in asked],
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": 30,
            "return_tokens_as_token_ids": True,
        }
    ]


def test_no_more_log_probabilities_are_asked_for_than_the_endpoint_gives() -> None:
    stub = StubServer(max_logprobs=7)
    asked = prompts(2, ids=False)
    seen, _ = ask(stub, asked)
    assert stub.requests[0]["logprobs"] == 7
    assert_right(seen[0], asked[0], k=7)


def test_texts_with_a_bos_of_their_own_are_sent_apart_and_say_so() -> None:
    plain = prompts(3, ids=False)
    asked = [plain[0], dataclasses.replace(plain[1], text="<s> " + plain[1].text), plain[2]]
    stub = StubServer()
    seen, _ = ask(stub, asked)
    bodies = {body.get("add_special_tokens"): body["prompt"] for body in stub.requests}
    assert bodies == {None: [plain[0].text, plain[2].text], False: asked[1].text}
    assert_right(seen[0], plain[0])
    assert_right(seen[2], plain[2])


def test_a_prompt_without_ids_goes_as_text_beside_others_with_ids(tokenizer_file: str) -> None:
    asked = [*prompts(2), *prompts(4, ids=False)[2:]]
    seen, _ = ask(StubServer(), asked, target={"tokenizer": tokenizer_file})
    for observation, prompt in zip(seen, asked, strict=True):
        assert_right(observation, prompt)


def test_concurrent_batches_do_not_mix(tokenizer_file: str) -> None:
    asked = prompts(40)
    stub = StubServer()

    async def body() -> list[list[Observation]]:
        async with stub.running():
            provider = await open_provider(spec(stub.base_url, {"tokenizer": tokenizer_file}), OpenOptions())
            batches = [asked[i : i + 8] for i in range(0, 40, 8)]
            seen = await asyncio.gather(*(provider.observe(batch, READOUT) for batch in batches))
            await provider.aclose()
            return seen

    for observation, prompt in zip((o for batch in asyncio.run(body()) for o in batch), asked, strict=True):
        assert_right(observation, prompt)


# How it fails


def is_bad(prompt: Any) -> bool:
    return prompt == list(prompts(8)[5].token_ids or ())


@pytest.mark.parametrize(
    ("fault", "words", "attempts"),
    [
        (status(400, "too long"), "HTTP 400: too long", 4),
        (status(500, "crashed"), "HTTP 500: crashed", 7),
        (raw("garbage"), "not JSON", 7),
        (drop, "the connection broke", 7),
    ],
)
def test_one_bad_prompt_does_not_sink_its_batch(tokenizer_file: str, fault: Fault, words: str, attempts: int) -> None:
    asked = prompts(8)
    seen, _ = ask(StubServer(), asked, fault=poisoned(is_bad, fault), target={"tokenizer": tokenizer_file})
    for place, (observation, prompt) in enumerate(zip(seen, asked, strict=True)):
        if place == 5:
            assert observation.error is not None
            assert words in observation.error
            assert observation.attempts == attempts  # 8 prompts, then 4, 2, 1; where it may pass, 4 times the 8
        else:
            assert_right(observation, prompt)


def test_choices_that_cannot_be_told_apart_are_asked_for_one_by_one(tokenizer_file: str) -> None:
    def lose_one(data: dict[str, Any]) -> None:
        if len(data["choices"]) > 1:
            data["choices"].pop()

    asked = prompts(4)
    seen, _ = ask(StubServer(), asked, fault=reworked(lose_one), target={"tokenizer": tokenizer_file})
    for observation, prompt in zip(seen, asked, strict=True):
        assert_right(observation, prompt)


@pytest.mark.parametrize(
    ("fault", "words", "n_requests"),
    [
        (status(503), "HTTP 503", 2),
        (status(429), "HTTP 429", 8),  # turned away is not failed: four times as often
        (status(404, "no such model"), "HTTP 404: no such model", 1),
        (status(401), "HTTP 401", 1),
        (hang, "no answer within 0.2 s", 2),
    ],
)
def test_what_is_not_a_prompts_fault_fails_the_batch_without_asking_piece_by_piece(
    tokenizer_file: str, fault: Fault, words: str, n_requests: int
) -> None:
    stub = StubServer()
    limits = {"attempts": 2, "timeout_s": 0.2, "prompts_per_request": 8}
    seen, _ = ask(stub, prompts(8), fault=fault, target={"tokenizer": tokenizer_file}, limits=limits)
    assert len(stub.requests) == n_requests
    for observation in seen:
        assert observation.error is not None
        assert words in observation.error
        assert observation.attempts == n_requests
        assert (observation.tokens, observation.covered_mass, observation.mode) == ((), None, None)


def test_a_fault_that_passes_leaves_no_trace_but_the_attempts(tokenizer_file: str, waits: list[float]) -> None:
    asked = prompts(8)
    fault = first(2, status(429, headers={"Retry-After": "9"}))
    seen, _ = ask(StubServer(), asked, fault=fault, target={"tokenizer": tokenizer_file})
    for observation, prompt in zip(seen, asked, strict=True):
        assert_right(observation, prompt)
        assert observation.attempts == 3
    assert [int(wait) for wait in waits] == [9, 9]


def test_an_endpoint_that_goes_away_leaves_failed_prompts_not_an_exception(tokenizer_file: str) -> None:
    stub = StubServer()

    async def body() -> list[Observation]:
        async with stub.running():
            provider = await open_provider(spec(stub.base_url, {"tokenizer": tokenizer_file}), OpenOptions())
        seen = await provider.observe(prompts(3), READOUT)
        await provider.aclose()
        return seen

    assert [(o.error, o.attempts) for o in asyncio.run(body())] == [("Connection refused", 4)] * 3


# What cannot be an answer is asked for again


def spoil(change: Callable[[dict[str, Any]], object]) -> Fault:
    """Spoils the second choice of an answer, or the only one."""
    return reworked(lambda data: change(data["choices"][-1]))


def list_of(choice: dict[str, Any]) -> dict[str, float]:
    listed: dict[str, float] = choice["logprobs"]["top_logprobs"][0]
    return listed


BAD_LISTS: list[Callable[[dict[str, Any]], object]] = [
    lambda choice: list_of(choice).update({next(iter(list_of(choice))): float("nan")}),
    lambda choice: list_of(choice).update({next(reversed(list_of(choice))): -9999.0}),
    lambda choice: list_of(choice).update({next(iter(list_of(choice))): 0.7}),
    lambda choice: list_of(choice).clear(),
    lambda choice: choice.update(logprobs=None),
]


@pytest.mark.parametrize("change", BAD_LISTS)
@pytest.mark.parametrize("n", [1, 8])
def test_a_bad_list_is_asked_for_again_by_itself(tokenizer_file: str, change: Any, n: int) -> None:
    asked = prompts(n)
    stub = StubServer()
    seen, _ = ask(stub, asked, fault=first(1, spoil(change)), target={"tokenizer": tokenizer_file})
    for observation, prompt in zip(seen, asked, strict=True):
        assert_right(observation, prompt)
    assert [observation.attempts for observation in seen] == [1] * (n - 1) + [2]
    again = [list(prompt.token_ids or ()) for prompt in asked[-1:]]
    assert [body["prompt"] for body in stub.requests][1:] == again


@pytest.mark.parametrize("change", BAD_LISTS)
def test_a_list_that_stays_bad_fails_its_prompt_within_bounds(tokenizer_file: str, change: Any) -> None:
    asked = prompts(3)
    stub = StubServer()
    seen, _ = ask(stub, asked, fault=spoil(change), target={"tokenizer": tokenizer_file}, limits={"attempts": 3})
    for observation, prompt in zip(seen[:2], asked[:2], strict=True):
        assert_right(observation, prompt)
    assert (seen[2].error or "").startswith("bad answer: ")
    assert seen[2].attempts == len(stub.requests) == 3


@pytest.mark.parametrize(
    "fault",
    [
        reworked(lambda data: data["choices"].pop()),
        reworked(lambda data: data["choices"].append(data["choices"][0])),
        reworked(lambda data: data.update(choices=[])),
        reworked(lambda data: data.update(model="another")),
        raw('{"choices": ['),
        raw("<html><h1>It works</h1></html>"),
        status(502, "<html>bad gateway</html>"),
    ],
)
def test_an_answer_that_is_none_is_asked_for_again_as_a_whole(tokenizer_file: str, fault: Fault) -> None:
    asked = prompts(4)
    stub = StubServer()
    seen, _ = ask(stub, asked, fault=first(2, fault), target={"tokenizer": tokenizer_file})
    for observation, prompt in zip(seen, asked, strict=True):
        assert_right(observation, prompt)
        assert observation.attempts == 3
    assert len({str(body) for body in stub.requests}) == 1


def test_every_request_is_counted_whatever_came_of_it(tokenizer_file: str) -> None:
    stub = StubServer()
    before: list[int] = []

    async def body() -> int:
        async with stub.running():
            provider = await open_provider(spec(stub.base_url, {"tokenizer": tokenizer_file}), OpenOptions())
            assert provider.usage is not None
            before.append(provider.usage.requests)
            stub.requests.clear()
            stub.fault = first(4, status(500))
            await provider.observe(prompts(2), READOUT)
            stub.fault = first(2, raw("?"))
            await provider.observe(prompts(2), READOUT)
            await provider.aclose()
            return provider.usage.requests

    assert asyncio.run(body()) - before[0] == len(stub.requests)


def test_a_body_far_larger_than_an_answer_can_be_is_not_read(tokenizer_file: str) -> None:
    async def endless(_: StubServer, __: dict[str, Any]) -> web.StreamResponse:
        return Endless()

    sent: list[int] = []

    class Endless(web.StreamResponse):
        async def prepare(self, request: web.BaseRequest) -> Any:
            self.enable_chunked_encoding()
            writer = await super().prepare(request)
            sent.append(0)
            with contextlib.suppress(ConnectionError):
                while sent[-1] < 100:
                    await self.write(b" " * (1 << 20))
                    sent[-1] += 1
            return writer

    seen, _ = ask(StubServer(), prompts(1), fault=endless, target={"tokenizer": tokenizer_file}, limits={"attempts": 2})
    assert (seen[0].error or "").startswith("the answer is larger than 4.")
    assert len(sent) == 2
    assert max(sent) < 50, "it was cut off on the way"


def test_the_users_number_of_connections_holds_and_is_what_the_runner_keeps_busy(tokenizer_file: str) -> None:
    stub = StubServer()

    async def body() -> HttpProvider:
        async with stub.running():
            options = OpenOptions(max_connections=11)
            provider = await open_provider(spec(stub.base_url, {"tokenizer": tokenizer_file}), options)
            await provider.aclose()
            return provider

    provider = asyncio.run(body())
    assert provider.concurrency == 11
    assert (provider.transport.pace.cap, provider.transport.pace.level) == (11, 11)
