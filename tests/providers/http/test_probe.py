"""What the capability probe finds at hosts of different ways, and how it opens the target there."""

from __future__ import annotations

import asyncio
import itertools
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from harness import paths
from harness.errors import CapabilityError, EndpointError
from harness.providers.checks import checks
from harness.providers.http import opening
from harness.providers.http.opening import open_chat, open_completions
from harness.providers.http.provider import HttpProvider
from harness.providers.http.transport import Transport
from harness.providers.targets import Endpoint, OpenOptions, TargetSpec
from harness.records import Lexicon, Mode, Observation, Prompt, Readout

from .host import BOS, WORDS, Host, first_of, host_tokenizer, model, saying, scaled

TEXT = "The capital of France is"
IDS = [WORDS.index(word) for word in (BOS, "The", " capital", " of", " France", " is")]
PREFILLED = {"prefill": "assistant"}


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    async def sleep(_: float) -> None:
        pass

    monkeypatch.setattr(opening, "Transport", partial(Transport, sleep=sleep))


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    host_tokenizer().save(str(tmp_path / "tokenizer.json"))
    return str(tmp_path)


def spec(host: Host, api: str, target: dict[str, Any], endpoint: dict[str, Any]) -> TargetSpec:
    declared = Endpoint.model_validate(
        {"api": api, "base_url": host.base_url, "limits": {"prompts_per_request": 8}, **endpoint}
        | {"targets": {"mine": {"model": "hosted", **target}}}
    )
    found = paths.Found(name="host", path=Path("providers/host.toml"), origin="project")
    return TargetSpec(name="mine", target=declared.targets["mine"], endpoint_name="host", endpoint=declared, found=found)


def opened(host: Host, api: str = "chat", target: dict[str, Any] | None = None, **endpoint: Any) -> HttpProvider:
    async def body() -> HttpProvider:
        async with host.running():
            opener = open_chat if api == "chat" else open_completions
            provider = await opener(spec(host, api, target or {}, endpoint), OpenOptions())
            await provider.aclose()
            return provider

    return asyncio.run(body())


def found(provider: HttpProvider, question: str) -> str:
    return provider.info.capabilities.findings[question]


def notes(provider: HttpProvider) -> str:
    return "\n".join(provider.info.capabilities.notes)


# Prefill


def test_a_host_that_continues_a_last_assistant_message_is_asked_so() -> None:
    provider = opened(Host(), chat=PREFILLED)
    assert found(provider, "prefill") == "yes: the text is continued"
    assert provider.info.settings["request"]["chat"]["prefill"] == "assistant"


@pytest.mark.parametrize(
    ("way", "text"),
    [("dropped", "no: ignored, the answer is the same without it"), ("closed", "no: the answer begins a new turn")],
)
def test_where_it_is_ignored_an_instruction_takes_its_place(way: str, text: str) -> None:
    host = Host(prefill=way)
    provider = opened(host, chat=PREFILLED)
    assert found(provider, "prefill") == text
    assert "an instruction asks for the continuation instead" in notes(provider)
    assert provider.info.settings["request"]["chat"]["prefill"] == "none"
    asked = [body["messages"][-1]["role"] for body in host.requests]
    assert asked.index("user") > 0
    assert set(asked[-8:]) == {"user"}


def test_where_it_is_refused_an_instruction_takes_its_place() -> None:
    refuse = saying(
        400,
        "This model does not support assistant message prefill. The conversation must end with a user message.",
        lambda body: body["messages"][-1]["role"] == "assistant",
    )
    provider = opened(Host(refuse=refuse), chat=PREFILLED)
    assert found(provider, "prefill") == "no: an instruction asks for the continuation"
    assert "a last assistant message is refused" in notes(provider)
    assert provider.info.capabilities.mode is Mode.TOPK


def test_a_cut_word_decides_where_no_token_begins_with_a_blank(monkeypatch: pytest.MonkeyPatch) -> None:
    from . import host as ways

    def bare(text: str) -> np.ndarray:
        logprobs = model(text)
        return np.where([word.startswith(" ") for word in WORDS], -30.0, logprobs)

    monkeypatch.setattr(ways, "model", bare)
    assert found(opened(Host(), chat=PREFILLED), "prefill") == "yes: a word that was cut is continued"


def test_a_draw_that_repeats_the_prefilled_text_is_told() -> None:
    provider = opened(Host(echoes=True), chat=PREFILLED)
    assert found(provider, "draws a request") == "16; a draw repeats the prefilled text, which is cut off"


# What models refuse


def test_a_model_that_wants_max_completion_tokens_gets_them() -> None:
    words = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    host = Host(refuse=saying(400, words, lambda body: "max_tokens" in body))
    provider = opened(host)
    assert provider.info.capabilities.mode is Mode.TOPK
    assert host.kinds()["max_tokens"] == 1
    assert "`max_completion_tokens` takes its place" in notes(provider)


def test_a_model_that_takes_no_temperature_is_sent_none() -> None:
    words = "Unsupported value: 'temperature' does not support 0.0 with this model. Only the default (1) value is supported."
    host = Host(refuse=saying(400, words, lambda body: "temperature" in body))
    provider = opened(host)
    assert host.kinds()["temperature"] == 1
    assert found(provider, "temperature") == "no: refused"
    assert Mode.AMPLIFIED not in provider.info.capabilities.modes


def reasoning(body: dict[str, Any]) -> tuple[int, str] | None:
    """The words of a reasoning model that refuses log-probabilities, a temperature and `max_tokens`."""
    return first_of(
        saying(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.", lambda b: "max_tokens" in b),
        saying(403, "You are not allowed to request logprobs from this model", lambda b: "logprobs" in b),
        saying(400, "Unsupported parameter: 'temperature' is not supported with this model.", lambda b: "temperature" in b),
    )(body)


def test_a_reasoning_model_opens_in_sampled_mode_with_its_reasons() -> None:
    provider = opened(Host(refuse=reasoning))
    able = provider.info.capabilities
    assert (able.mode, able.modes, able.max_logprobs) == (Mode.SAMPLED, (Mode.SAMPLED,), 0)
    assert "no log-probabilities are given, answers are drawn: HTTP 403: You are not allowed" in notes(provider)
    assert "a temperature is refused" in notes(provider)
    assert found(provider, "list") == "not asked: there is no list"


def test_what_was_found_at_the_opening_is_how_a_run_asks() -> None:
    lexicon = Lexicon(concept="c", words=frozenset({"paris"}), token_ids=None, resolved_share=None, digest="")
    prompt = Prompt(
        prompt_id="1", concept="c", arm="clean", sentence_id="1", injection_id="", template="", group="", text="Hello there"
    )
    host = Host(refuse=reasoning)

    async def body() -> list[Observation]:
        async with host.running():
            provider = await open_chat(spec(host, "chat", {}, {}), OpenOptions())
            host.requests.clear()
            try:
                return await provider.observe([prompt], Readout(lexicon=lexicon, n_logprobs=20, n_draws=32))
            finally:
                await provider.aclose()

    (seen,) = asyncio.run(body())
    assert (seen.error, seen.mode, seen.n_draws, seen.hits) == (None, Mode.SAMPLED, 32, 32)
    assert [body["n"] for body in host.requests] == [16, 16]
    assert not host.kinds()["temperature"]


def test_a_host_that_lists_nothing_without_a_word_opens_in_sampled_mode() -> None:
    host = Host(lists=False)
    provider = opened(host)
    assert provider.info.capabilities.mode is Mode.SAMPLED
    assert len(host.requests) <= 12


def test_a_target_that_claims_no_log_probabilities_is_not_asked_for_them() -> None:
    host = Host()
    provider = opened(host, claims={"logprobs": 0})
    assert not host.kinds()["logprobs"]
    assert provider.info.capabilities.modes == (Mode.SAMPLED,)


def test_nothing_listed_and_nothing_drawn_is_an_error_with_both_reasons() -> None:
    refuse = saying(400, "this model answers nobody", lambda _: True)
    with pytest.raises(CapabilityError, match="gives no log-probabilities: HTTP 400: this model answers nobody; and no draws"):
        opened(Host(refuse=refuse))


def test_another_model_that_answers_is_refused_after_a_few_requests() -> None:
    host = Host()
    with pytest.raises(EndpointError, match="the answer is from another model: 'hosted', not 'wanted'"):
        opened(host, target={"model": "wanted"})
    assert len(host.requests) == 4


# The list


def test_a_raw_list_is_told_from_one_that_follows_the_temperature() -> None:
    assert found(opened(Host()), "list").startswith("raw")
    host = Host(list_of=scaled)
    provider = opened(host)
    assert found(provider, "list").startswith("processed")
    assert found(provider, "list").endswith("so it is asked at 1")
    assert provider.info.settings["request"]["body"] == {"temperature": 1.0}


def test_a_list_that_is_right_at_temperature_0_is_asked_there() -> None:
    provider = opened(Host(list_of=lambda logprobs, t: scaled(logprobs, 1.0 if t == 0 else t)))
    assert found(provider, "list").endswith("but at 0 it is as at 1")
    assert "body" not in provider.info.settings.get("request", {}) or not provider.info.settings["request"]["body"]


def test_repeatability_is_the_largest_change_of_five_answers() -> None:
    assert found(opened(Host()), "repeatability") == "0.0000 nat at the most over 5 answers"
    counter = itertools.count()

    def noisy(logprobs: np.ndarray, temperature: float) -> np.ndarray:
        return logprobs - (0.05 if temperature == 0 and next(counter) % 2 else 0)

    assert found(opened(Host(list_of=noisy)), "repeatability").startswith("0.0500 nat")


def test_lists_of_other_tokens_from_one_answer_to_the_next_are_told() -> None:
    counter = itertools.count()

    def shuffled(logprobs: np.ndarray, _: float) -> np.ndarray:
        return logprobs - (np.arange(len(logprobs)) > 40) * (next(counter) % 2) * 20.0

    assert found(opened(Host(list_of=shuffled)), "repeatability").endswith("; the tokens listed differ")


def test_a_list_that_was_made_to_sum_to_one_is_told() -> None:
    provider = opened(Host(renormalised=True), limits={"max_logprobs": 10})
    assert found(provider, "sum of the list") == "renormalised: 10 tokens sum to one"
    listed = np.exp(np.sort(model(f"[user]{provider.info.settings['request']['chat']['instruction']}"))).sum()
    assert listed == pytest.approx(1)


# Bias and draws


@pytest.mark.parametrize(
    ("way", "text", "ids"),
    [
        ("honoured", "75; the list stands before it", len(WORDS)),
        ("listed", "75; the list stands after it", len(WORDS)),
        ("ignored", "0: accepted and ignored", 0),
    ],
)
def test_logit_bias_is_believed_when_it_brings_a_word_that_nobody_says(tokenizer: str, way: str, text: str, ids: int) -> None:
    provider = opened(Host(bias=way), target={"tokenizer": tokenizer})
    number = str(provider.info.capabilities.bias_ids)
    assert found(provider, "logit_bias") == text.replace("75", number)
    assert (provider.info.capabilities.bias_ids > 0) is (ids > 0)
    assert (Mode.AMPLIFIED in provider.info.capabilities.modes) is (ids > 0)


def test_a_bias_of_fewer_ids_than_wanted_is_found(tokenizer: str) -> None:
    refuse = saying(400, "logit_bias: too many keys", lambda body: len(body.get("logit_bias", ())) > 5)
    provider = opened(Host(refuse=refuse), target={"tokenizer": tokenizer})
    assert provider.info.capabilities.bias_ids == 1
    assert "more are refused: HTTP 400: logit_bias: too many keys" in found(provider, "logit_bias")


def test_without_a_vocabulary_nothing_is_biased() -> None:
    host = Host()
    provider = opened(host)
    assert found(provider, "logit_bias") == "not asked: the target's vocabulary is not known"
    assert provider.info.capabilities.modes == (Mode.TOPK, Mode.SAMPLED)
    assert not host.kinds()["logit_bias"]


def test_one_draw_a_request_where_more_are_refused() -> None:
    refuse = saying(400, "n > 1 is not supported", lambda body: body.get("n", 1) > 1)
    provider = opened(Host(refuse=refuse))
    assert found(provider, "draws a request") == "1, 16 are refused: HTTP 400: n > 1 is not supported"
    assert Mode.SAMPLED in provider.info.capabilities.modes


# Tokens


def test_prompt_tokens_tell_the_bos_where_no_server_shows_its_tokens(tokenizer: str) -> None:
    one = opened(Host(usage=lambda _: len(IDS)), "completions", target={"tokenizer": tokenizer})
    assert found(one, "BOS") == "1 by prompt_tokens"
    two = opened(Host(usage=lambda _: len(IDS) + 1), "completions", target={"tokenizer": tokenizer})
    assert found(two, "BOS") == "2 by prompt_tokens"
    assert "the server counts 7 tokens for the probe text sent as text, we 6" in notes(two)
    unknown = opened(Host(usage=lambda _: 6), "completions")
    assert found(unknown, "BOS") == "not known without a tokenizer; 6 prompt tokens"


def split(body: dict[str, Any]) -> list[int]:
    """As vLLM's `/tokenize`: a BOS before a text, unless that is switched off."""
    text = body.get("prompt") or "".join(one["content"] for one in body["messages"])
    ids = host_tokenizer(bos=False).encode(text.removeprefix(BOS), add_special_tokens=False).ids
    brought = [0] * text.startswith(BOS)
    return [0] * body.get("add_special_tokens", True) + brought + ids


def test_one_bos_by_every_route_is_proved_by_the_servers_own_tokens(tokenizer: str) -> None:
    provider = opened(Host(tokenised=split), "completions", target={"tokenizer": tokenizer})
    assert found(provider, "BOS") == "1 by text, 1 by text that brings it, 1 by ids"
    assert notes(provider) == "" or "BOS" not in notes(provider)


def test_a_second_bos_is_noted(tokenizer: str) -> None:
    provider = opened(
        Host(tokenised=lambda body: split({**body, "add_special_tokens": True})),
        "completions",
        target={"tokenizer": tokenizer},
    )
    assert found(provider, "BOS") == "1 by text, 2 by text that brings it, 1 by ids"
    assert "the number of BOS tokens is not one by every route" in notes(provider)


def test_a_server_that_splits_the_text_otherwise_is_noted(tokenizer: str) -> None:
    provider = opened(Host(tokenised=lambda body: split(body)[:-1]), "completions", target={"tokenizer": tokenizer})
    assert f"into other tokens than ours: {IDS[:-1]}, not {IDS}" in notes(provider)


def test_the_template_has_a_digest_that_changes_with_it() -> None:
    def templated(*around: str) -> Host:
        before, after = ([WORDS.index(word) for word in part.split("|") if part] for part in around)
        return Host(tokenised=lambda body: [*before, *split(body | {"prompt": TEXT, "add_special_tokens": False}), *after])

    one, same, other = (opened(templated(before, " w1"), chat={}) for before in (f"{BOS}|W1", f"{BOS}|W1", f"{BOS}|W2"))
    assert found(one, "BOS") == "1 by conversation"
    assert found(one, "template").startswith("8 tokens with the text; digest ")
    assert found(one, "template") == found(same, "template") != found(other, "template")
    assert "starts with 2 BOS" in notes(opened(templated(f"{BOS}|{BOS}", "")))
    assert "is followed by ' w1'" in notes(opened(templated(BOS, " w1"), chat=PREFILLED))


# Accidents, cost, claims


def test_an_accident_during_the_probe_changes_nothing(tokenizer: str) -> None:
    calm = opened(Host(), "completions", target={"tokenizer": tokenizer})
    for broken in range(4):
        counter = itertools.count()

        def once(_: dict[str, Any], n: int = broken, counter: itertools.count[int] = counter) -> web.Response | None:
            return web.json_response({"choices": []}) if next(counter) == n else None

        provider = opened(Host(accident=once), "completions", target={"tokenizer": tokenizer})
        assert provider.info.capabilities.token_ids
        assert provider.info.capabilities.max_logprobs == calm.info.capabilities.max_logprobs
        assert provider.info.capabilities.modes == calm.info.capabilities.modes


def test_a_question_that_meets_a_limit_is_noted_and_the_rest_goes_on(tokenizer: str) -> None:
    refuse = saying(429, "slow down", lambda body: body.get("temperature") == 0.5 or "logit_bias" in body)
    provider = opened(Host(refuse=refuse), target={"tokenizer": tokenizer}, limits={"attempts": 2})
    assert found(provider, "list") == "could not be asked: HTTP 429: slow down"
    assert found(provider, "logit_bias") == "could not be asked: HTTP 429: slow down"
    assert provider.info.capabilities.mode is Mode.TOPK


def test_a_probe_takes_about_twenty_requests_of_one_token(tokenizer: str) -> None:
    for api, target in (("chat", {}), ("chat", {"tokenizer": tokenizer}), ("completions", {"tokenizer": tokenizer})):
        host = Host()
        opened(host, api, target=target, chat=PREFILLED if api == "chat" else {})
        assert len(host.requests) <= 20
        assert {body["max_tokens"] for body in host.requests} == {1}


def test_rate_limit_headers_and_the_fingerprint_are_shown() -> None:
    told = {"x-ratelimit-remaining-requests": "499", "X-RateLimit-Limit-Requests": "500", "x-request-id": "a"}
    provider = opened(Host(headers=told))
    assert found(provider, "rate-limit headers") == "x-ratelimit-limit-requests 500; x-ratelimit-remaining-requests 499"
    assert found(provider, "fingerprint") == "fp-7"
    assert found(opened(Host()), "rate-limit headers") == "none"


def test_claims_stand_beside_what_was_found() -> None:
    host = Host(refuse=saying(400, "n > 1 is not supported", lambda body: body.get("n", 1) > 1))
    claims = {"logprobs": 20, "draws_per_request": 128, "chosen_ids": 128, "temperature": True, "bias_ids": 300}
    declared = opened(host, claims=claims)
    rows = {row.question: row for row in checks(spec(host, "chat", {}, {"claims": claims}), declared.info)}
    assert [name for name, row in rows.items() if row.holds is False] == ["chosen ids", "draws a request"]
    assert {name for name, row in rows.items() if row.holds} == {"top-k limit", "temperature", "prefill"}
    assert rows["logit_bias"].holds is None
    assert rows["modes"].found == "topk, sampled"
