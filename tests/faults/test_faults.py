"""Each fault does on the wire what its name says; equal seeds and orders of requests give equal faults."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
import numpy as np
import pytest
from scipy.stats import binomtest, chisquare

from harness.faults.call import Settings
from harness.faults.registry import FAULTS, HARMLESS, told

from .client import FACTS, Client, endpoint, in_loop

PROMPTS = ["abbace", "cormomo delnupa", "kradidi"]
COMPLETION = ("/v1/completions", FACTS | {"prompt": PROMPTS, "logprobs": 5})
CHAT = ("/v1/chat/completions", FACTS | {"messages": [{"role": "user", "content": "abbace"}], "n": 3})
CHAT[1].update(logprobs=True, top_logprobs=5)
ROUTES = pytest.mark.parametrize("route", [COMPLETION, CHAT], ids=["completions", "chat"])
KEY = "Bearer sk-canary-0123456789"


@dataclass(frozen=True, slots=True, kw_only=True)
class Raw:
    """An answer as bytes."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def choices(self) -> list[dict[str, Any]]:
        choices: list[dict[str, Any]] = json.loads(self.body)["choices"]
        return choices


async def ask(client: Client, route: tuple[str, dict[str, Any]] = COMPLETION, *, timeout_s: float = 30) -> Raw:
    path, body = route
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    headers = {"Authorization": KEY}
    async with client.session.post(
        client.root + path, json=body, headers=headers, timeout=timeout, allow_redirects=False
    ) as response:
        return Raw(status=response.status, headers=dict(response.headers), body=await response.read())


def meeting(name: str, **settings: Any) -> Settings:
    """Every request meets the fault `name`."""
    return Settings(rate=1, faults=(name,), **settings)


async def met(name: str, route: tuple[str, dict[str, Any]] = COMPLETION, **settings: Any) -> tuple[Raw, Raw]:
    """(the answer with the fault, the answer without)."""
    async with endpoint(meeting(name, **settings)) as (server, client):
        faulty = await ask(client, route)
        assert server.ledger.sequence == [name]
        server.settings = Settings()
        return faulty, await ask(client, route)


async def left_unanswered(name: str, route: tuple[str, dict[str, Any]] = COMPLETION, **settings: Any) -> int:
    """How many prompts the server does not count as answered after the fault."""
    async with endpoint(meeting(name, **settings)) as (server, client):
        await ask(client, route)
        return len(route[1].get("prompt", [""])) - server.ledger.answered.total()


def top(choice: dict[str, Any]) -> dict[str, float]:
    """What a choice lists at its first place."""
    logprobs = choice["logprobs"]
    if "content" in logprobs:
        return {entry["token"]: entry["logprob"] for entry in logprobs["content"][0]["top_logprobs"]}
    return dict(logprobs["top_logprobs"][0])


STATUSES = {"429-seconds": 429, "429-date": 429, "429-bare": 429, "429-reset": 429}
STATUSES |= {"500": 500, "502": 502, "503": 503, "529": 529, "html-502": 502, "echoed-key": 500}


@pytest.mark.parametrize(("name", "status"), STATUSES.items())
@in_loop
async def test_an_error_status(name: str, status: int) -> None:
    faulty, _ = await met(name)
    assert faulty.status == status
    assert await left_unanswered(name) == 3


@in_loop
async def test_rate_limits_say_when_to_come_back_in_four_ways() -> None:
    seconds = (await met("429-seconds", reset_s=(2.0, 3.0)))[0].headers
    assert 2 <= float(seconds["Retry-After"]) <= 3
    date = (await met("429-date", reset_s=(2.0, 3.0)))[0].headers
    assert 0 < parsedate_to_datetime(date["Retry-After"]).timestamp() - time.time() <= 4
    reset = (await met("429-reset", reset_s=(2.0, 3.0)))[0].headers
    assert 2000 <= float(reset["x-ratelimit-reset-requests"].removesuffix("ms")) <= 3000
    assert 2 <= float(reset["x-ratelimit-reset-tokens"].removesuffix("s")) <= 3
    assert "Retry-After" not in reset
    bare = (await met("429-bare"))[0].headers
    assert not any(name.lower().startswith(("retry", "x-ratelimit")) for name in bare)


@pytest.mark.parametrize(("name", "status"), [("html-200", 200), ("html-502", 502)])
@in_loop
async def test_a_page_instead_of_json(name: str, status: int) -> None:
    faulty, _ = await met(name)
    assert faulty.status == status
    assert faulty.headers["Content-Type"].startswith("text/html")
    assert faulty.body.startswith(b"<!DOCTYPE html>")


@in_loop
async def test_an_error_that_repeats_the_key() -> None:
    faulty, _ = await met("echoed-key")
    assert KEY in json.loads(faulty.body)["error"]["message"]
    assert faulty.headers["X-Debug"] == KEY


@ROUTES
@pytest.mark.parametrize("name", ["redirect-302", "redirect-307", "redirect-308"])
@in_loop
async def test_a_redirect_leads_to_another_host_where_a_plausible_stranger_notes_who_came(
    name: str, route: tuple[str, dict[str, Any]]
) -> None:
    async with endpoint(meeting(name)) as (server, client):
        faulty = await ask(client, route)
        assert faulty.status == int(name[-3:])
        target = faulty.headers["Location"]
        assert target == server.elsewhere + route[0]
        assert server.elsewhere not in server.base_url
        assert server.ledger.arrived == 0
        for headers in ({"Authorization": KEY}, {}):
            async with client.session.post(target, json=route[1], headers=headers) as response:
                stranger = await response.json()
        told = (await client.get("/faults"))[1]
        assert (told["arrived_elsewhere"], told["arrived_elsewhere_with_key"]) == (2, 1)
        server.settings = Settings()
        truth = await ask(client, route)
        assert stranger["model"] == "fault-model"
        assert all(top(one) != top(other) for one, other in zip(stranger["choices"], truth.choices, strict=True))


@in_loop
async def test_a_request_that_hangs_outlasts_the_client() -> None:
    async with endpoint(meeting("hang", hang_s=600)) as (server, client):
        with pytest.raises(TimeoutError):
            await ask(client, timeout_s=0.3)
        assert server.ledger.answered.total() == 0
        server.settings = meeting("hang", hang_s=0.01)
        assert (await ask(client)).status == 504


@in_loop
async def test_a_slow_answer_is_true_for_who_waits_and_none_for_who_does_not() -> None:
    async with endpoint(meeting("slow-drip", drip_s=0.1)) as (server, client):
        dripped = await ask(client)
        assert server.ledger.answered.total() == 3
        server.settings = meeting("slow-drip", drip_s=10)
        path, body = COMPLETION
        async with client.session.post(client.root + path, json=body, timeout=aiohttp.ClientTimeout(total=30)) as response:
            first = await response.content.readany()
            assert 0 < len(first) < len(dripped.body)
            assert dripped.body.startswith(first)
            assert response.headers["Content-Length"] == str(len(dripped.body))
        assert server.ledger.answered.total() == 3


@ROUTES
@in_loop
async def test_a_connection_that_drops_in_the_middle(route: tuple[str, dict[str, Any]]) -> None:
    async with endpoint(meeting("dropped")) as (server, client):
        truth = (await met("slow-drip", route, drip_s=0))[1].body
        for _ in range(5):
            async with client.session.post(client.root + route[0], json=route[1]) as response:
                assert response.status == 200
                with pytest.raises(aiohttp.ClientPayloadError):
                    await response.read()
                assert int(response.headers["Content-Length"]) == len(truth)
        assert server.ledger.answered.total() == 0


@in_loop
async def test_a_huge_answer_is_a_true_one_with_padding_and_comes_in_three_ways() -> None:
    assert Settings().huge_bytes == 100_000_000
    async with endpoint(meeting("huge-body", huge_bytes=3_000_000)) as (server, client):
        seen = [await ask(client) for _ in range(12)]
        server.settings = Settings()
        truth = await ask(client)
    for one in seen:
        assert len(one.body) == 3_000_000
        assert json.loads(one.body) == json.loads(truth.body)
    ways = {tuple(name in one.headers for name in ("Content-Length", "Content-Encoding")) for one in seen}
    assert ways == {(True, False), (False, False), (False, True)}


@ROUTES
@in_loop
async def test_truncated_json_is_a_whole_answer_over_http_and_half_a_document(route: tuple[str, dict[str, Any]]) -> None:
    faulty, truth = await met("truncated-json", route)
    assert faulty.headers["Content-Length"] == str(len(faulty.body))
    assert truth.body.startswith(faulty.body)
    assert 0 < len(faulty.body) < len(truth.body)


@in_loop
async def test_invalid_json_is_invalid_in_four_ways() -> None:
    async with endpoint(meeting("invalid-json")) as (_, client):
        bodies = {(await ask(client)).body for _ in range(40)}
    assert len(bodies) == 4
    for body in bodies:
        with pytest.raises(ValueError):  # noqa: PT011  a JSONDecodeError or a UnicodeDecodeError
            json.loads(body)
    assert sum(b'"choices"' not in body for body in bodies) == 1


@ROUTES
@in_loop
async def test_a_wrong_number_of_choices(route: tuple[str, dict[str, Any]]) -> None:
    faulty, truth = await met("fewer-choices", route)
    assert len(faulty.choices) == 2
    assert all(choice in truth.choices for choice in faulty.choices)
    faulty, truth = await met("more-choices", route)
    assert faulty.choices[:3] == truth.choices
    assert faulty.choices[3]["index"] == 3
    assert await left_unanswered("fewer-choices") == await left_unanswered("more-choices") == 3


@ROUTES
@in_loop
async def test_duplicated_and_reordered_choices(route: tuple[str, dict[str, Any]]) -> None:
    faulty, truth = await met("duplicated-choices", route)
    assert len(faulty.choices) == 3
    assert len({choice["index"] for choice in faulty.choices}) == 2
    assert await left_unanswered("duplicated-choices") == 3
    async with endpoint(meeting("reordered-choices")) as (server, client):
        orders = set()
        for _ in range(10):
            reordered = await ask(client, route)
            orders.add(tuple(choice["index"] for choice in reordered.choices))
            assert sorted(reordered.choices, key=lambda choice: choice["index"]) == truth.choices
        assert len(orders) > 2
        assert server.ledger.answered.total() == 10 * len(route[1].get("prompt", [""]))


@pytest.mark.parametrize("name", ["fewer-choices", "more-choices", "duplicated-choices", "empty-lists"])
@in_loop
async def test_faults_of_choices_show_on_a_single_prompt_too(name: str) -> None:
    alone = ("/v1/completions", FACTS | {"prompt": "abbace"})
    faulty, _ = await met(name, alone)
    assert len(faulty.choices) != 1
    assert await left_unanswered(name, alone) == len("abbace")


@ROUTES
@pytest.mark.parametrize("name", ["nan", "minus-9999", "positive"])
@in_loop
async def test_one_log_probability_that_is_none(name: str, route: tuple[str, dict[str, Any]]) -> None:
    faulty, truth = await met(name, route)
    spoiled = [i for i in range(3) if str(faulty.choices[i]) != str(truth.choices[i])]
    assert len(spoiled) == 1
    before, after = top(truth.choices[spoiled[0]]), top(faulty.choices[spoiled[0]])
    (changed,) = [token for token in before if before[token] != after[token]]
    if name == "positive":
        assert changed == max(before, key=before.__getitem__)
        assert after[changed] > 0
    else:
        assert changed == min(before, key=before.__getitem__)
        assert math.isnan(after[changed]) if name == "nan" else after[changed] == -9999
    assert await left_unanswered(name) == 1


@ROUTES
@in_loop
async def test_empty_lists(route: tuple[str, dict[str, Any]]) -> None:
    async with endpoint(meeting("empty-lists")) as (_, client):
        answers = [await ask(client, route) for _ in range(40)]
    shapes: Counter[str] = Counter()
    for answer in answers:
        if not answer.choices:
            shapes["no choices"] += 1
            continue
        empty = 0
        for choice in answer.choices:
            lists = choice["logprobs"].get("content", choice["logprobs"].get("top_logprobs"))
            entries = lists and lists[0].get("top_logprobs", lists[0])
            empty += not entries
            shapes["no places"] += not lists
            shapes["no tokens"] += bool(lists) and not entries
        assert empty == 1
    assert set(shapes) == {"no choices", "no places", "no tokens"}
    assert min(shapes.values()) > 0


@ROUTES
@in_loop
async def test_another_model_answers_by_its_own_name_and_with_its_own_mind(route: tuple[str, dict[str, Any]]) -> None:
    faulty, truth = await met("other-model", route)
    assert json.loads(faulty.body)["model"] == "another-model"
    assert all(top(one) != top(other) for one, other in zip(faulty.choices, truth.choices, strict=True))
    async with endpoint(Settings(model_changes_after=2)) as (server, client):
        answers = [await ask(client, route) for _ in range(4)]
        assert [json.loads(answer.body)["model"] for answer in answers] == ["fault-model"] * 2 + ["another-model"] * 2
        assert answers[0].body == truth.body
        assert answers[2].choices == faulty.choices
        assert set(server.ledger.answered.values()) == {2}


@in_loop
async def test_faults_of_log_probabilities_are_drawn_only_where_some_are_asked_for() -> None:
    async with endpoint(meeting("nan")) as (server, client):
        assert (await client.complete("abbace"))["choices"][0]["logprobs"] is None
        assert server.ledger.sequence == [None]
        server.settings = replace(server.settings, faults=("nan", "500"))
        for _ in range(5):
            assert (await client.posted("/v1/completions", FACTS | {"prompt": "abbace"}))[0] == 500


QUICK = tuple(name for name in FAULTS if name not in ("hang", "slow-drip", "huge-body", "dropped"))


async def sequence(settings: Settings, n: int) -> list[str | None]:
    async with endpoint(settings) as (server, client):
        for _ in range(n):
            await ask(client)
        return server.ledger.sequence


@in_loop
async def test_equal_seeds_and_orders_give_equal_faults_and_other_seeds_others() -> None:
    settings = Settings(rate=0.5, faults=QUICK, seed=3)
    faults = await sequence(settings, 60)
    assert await sequence(settings, 60) == faults
    assert await sequence(replace(settings, seed=4), 60) != faults
    later = await sequence(replace(settings, after=20), 60)
    assert later == [None] * 20 + faults[20:]


@in_loop
async def test_faults_come_at_the_rate_and_each_as_often_as_another() -> None:
    faults = await sequence(Settings(rate=0.3, faults=QUICK), 2000)
    met = Counter(name for name in faults if name is not None)
    assert binomtest(met.total(), 2000, 0.3).pvalue > 1e-3
    assert chisquare([met[name] for name in QUICK]).pvalue > 1e-3


@in_loop
async def test_the_ledger_tells_what_the_client_saw() -> None:
    harmless = tuple(HARMLESS)
    async with endpoint(Settings(rate=0.5, faults=("500", "nan", *harmless), drip_s=0.01)) as (server, client):
        statuses: Counter[int] = Counter()
        right: Counter[str] = Counter()
        for _ in range(60):
            answer = await ask(client)
            statuses[answer.status] += 1
            for choice in answer.choices if answer.status == 200 else []:
                right[PROMPTS[choice["index"]]] += not any(math.isnan(value) for value in top(choice).values())
        told = (await client.get("/faults"))[1]
    assert told["requests"] == 60
    assert told["served"]["500"] == statuses[500] > 0
    assert sum(told["served"].values()) == sum(name is not None for name in told["sequence"])
    answered = {" ".join(map(str, server.tokens.encode(prompt))): times for prompt, times in right.items()}
    assert told["answered"] == answered
    assert sum(right.values()) == 3 * (60 - statuses[500]) - told["served"]["nan"]


@in_loop
async def test_faulty_requests_do_not_change_which_samples_a_prompt_gets() -> None:
    async def samples(settings: Settings) -> list[str]:
        texts: list[str] = []
        async with endpoint(settings) as (_, client):
            while len(texts) < 200:
                status, answer = await client.posted("/v1/completions", FACTS | {"prompt": "abbace", "n": 5, "temperature": 1})
                if status == 200 and [choice["index"] for choice in answer["choices"]] == list(range(5)):
                    texts += [choice["text"] for choice in answer["choices"]]
        return texts

    assert await samples(Settings(rate=0.5, faults=("500", "duplicated-choices", "fewer-choices"))) == await samples(Settings())


def test_every_fault_says_what_it_does_in_one_line() -> None:
    lines = [told(name) for name in FAULTS]
    assert all(lines)
    assert len(set(lines)) == len(lines)
    assert np.all([len(line) <= 110 for line in lines])
