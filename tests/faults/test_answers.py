"""Without faults the server is a well-behaved endpoint: what it says is the distribution that its oracle gives."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jinja2 import Environment
from scipy.stats import chisquare
from tokenizers import Tokenizer

from harness.faults.call import Settings
from harness.faults.distribution import Model

from .client import FACTS, Client, endpoint, in_loop

PROMPT = "the abbace sat on cormomo and delnupa"


def likeliest(logprobs: np.ndarray, k: int) -> dict[int, float]:
    return {int(i): float(logprobs[i]) for i in np.argsort(-logprobs, kind="stable")[:k]}


def test_a_distribution_sums_to_one_and_its_ranks_agree_with_its_values() -> None:
    model = Model("m", 777)
    for seed in range(50):
        here = model.after(np.random.default_rng(seed).integers(0, 777, 9).tolist())
        logprobs = here.logprobs()
        assert np.exp(logprobs).sum() == pytest.approx(1, abs=1e-5)
        assert here.likeliest(777) == sorted(range(777), key=here.rank)
        assert np.all(np.diff(logprobs[here.likeliest(777)]) <= 0)
        assert [here.shape.logprobs[here.rank(i)] for i in range(777)] == logprobs.tolist()


def test_a_distribution_depends_on_the_models_name_and_on_every_id_of_the_prompt() -> None:
    one, other = Model("one", 500), Model("other", 500)
    assert np.array_equal(one.after((1, 2, 3)).logprobs(), Model("one", 500).after((1, 2, 3)).logprobs())
    changed = [one.after(ids).likeliest(20) for ids in ((1, 2, 3), (2, 1, 3), (1, 2), (1, 2, 4), (1, 1, 2, 3))]
    assert len({tuple(ids) for ids in (*changed, other.after((1, 2, 3)).likeliest(20))}) == 6


@in_loop
async def test_listed_logprobs_are_the_oracles() -> None:
    async with endpoint() as (server, client):
        ids = server.tokens.encode(PROMPT)
        truth = server.model.after(ids).logprobs()
        by_id = await client.complete(ids, logprobs=30, return_tokens_as_token_ids=True)
        (choice,) = by_id["choices"]
        top = {f"token_id:{i}": value for i, value in likeliest(truth, 30).items()}
        assert choice["logprobs"]["top_logprobs"] == [top]
        assert choice["logprobs"]["tokens"] == [next(iter(top))]
        assert choice["logprobs"]["token_logprobs"] == [next(iter(top.values()))]
        by_text = (await client.complete(PROMPT, logprobs=30))["choices"][0]
        assert by_text["logprobs"]["top_logprobs"] == [{server.tokens.texts[i]: p for i, p in likeliest(truth, 30).items()}]
        assert by_text["text"] == server.tokens.texts[int(truth.argmax())]
        assert by_id["usage"] == {"prompt_tokens": len(ids), "completion_tokens": 1, "total_tokens": len(ids) + 1}
        assert by_id["model"] == "fault-model"


@in_loop
async def test_chosen_ids_come_with_the_drawn_token_and_nothing_else() -> None:
    async with endpoint() as (server, client):
        truth = server.model.after(server.tokens.encode(PROMPT)).logprobs()
        chosen = [int(i) for i in np.argsort(truth)[:128]]
        fields = {"logprobs": 1, "logprob_token_ids": chosen, "return_tokens_as_token_ids": True}
        top = (await client.complete(PROMPT, **fields))["choices"][0]["logprobs"]["top_logprobs"][0]
        best = int(truth.argmax())
        assert top == {f"token_id:{i}": truth[i] for i in (*chosen, best)}
        status, answer = await client.posted(
            "/v1/completions", FACTS | fields | {"prompt": PROMPT, "logprob_token_ids": [*chosen, best]}
        )
        assert status == 400
        assert "128" in answer["error"]["message"]


@in_loop
async def test_many_prompts_and_several_texts_each_are_numbered_in_the_order_of_the_prompts() -> None:
    async with endpoint() as (server, client):
        prompts = [server.tokens.encode(text) for text in ("abbace", "cormomo", "abbace delnupa")]
        answer = await client.complete(prompts, n=2, logprobs=1, return_tokens_as_token_ids=True)
        assert [choice["index"] for choice in answer["choices"]] == list(range(6))
        best = [f"token_id:{server.model.after(ids).likeliest(1)[0]}" for ids in prompts for _ in range(2)]
        assert [choice["logprobs"]["tokens"][0] for choice in answer["choices"]] == best
        assert answer["usage"]["completion_tokens"] == 6


@in_loop
async def test_chat_tells_the_distribution_after_the_rendered_conversation() -> None:
    async with endpoint() as (server, client):
        asked = [("system", "be brief"), ("user", PROMPT)]
        rendered = f"<s><|system|>be brief</s><|user|>{PROMPT}</s><|assistant|>"
        truth = server.model.after(server.tokens.encode(rendered, add_special_tokens=False)).logprobs()
        choice = (await client.chat(*asked, logprobs=True, top_logprobs=20))["choices"][0]
        (content,) = choice["logprobs"]["content"]
        assert [(entry["token"], entry["logprob"]) for entry in content["top_logprobs"]] == [
            (server.tokens.texts[i], value) for i, value in likeliest(truth, 20).items()
        ]
        assert choice["message"] == {"role": "assistant", "content": content["token"]}
        assert bytes(content["bytes"]).decode() == content["token"]

        prefilled = [*asked, ("assistant", "well,")]
        fields = {"continue_final_message": True, "add_generation_prompt": False, "logprobs": True, "top_logprobs": 1}
        choice = (await client.chat(*prefilled, **fields))["choices"][0]
        rendered = f"<s><|system|>be brief</s><|user|>{PROMPT}</s><|assistant|>well,"
        best = server.model.after(server.tokens.encode(rendered, add_special_tokens=False)).likeliest(1)[0]
        assert choice["message"]["content"] == server.tokens.texts[best]


@in_loop
async def test_a_longer_text_follows_the_distributions_one_after_the_other() -> None:
    async with endpoint() as (server, client):
        choice = (await client.complete(PROMPT, max_tokens=6, logprobs=0, return_tokens_as_token_ids=True))["choices"][0]
        ids = list(server.tokens.encode(PROMPT))
        for token, logprob in zip(choice["logprobs"]["tokens"], choice["logprobs"]["token_logprobs"], strict=True):
            here = server.model.after(ids)
            assert token == f"token_id:{here.likeliest(1)[0]}"
            assert logprob == here.logprobs().max()
            ids.append(here.likeliest(1)[0])
        assert choice["finish_reason"] == "length"
        assert choice["text"] == server.tokens.decode(ids[-6:])


@pytest.mark.parametrize(
    ("temperature", "bias"),
    [(1.0, {}), (0.7, {}), (1.0, {40: 3.0, 120: 5.5, 77: -100.0}), (1.5, {40: 2.0})],
    ids=["plain", "cooler", "biased", "biased and hotter"],
)
@in_loop
async def test_samples_follow_the_tempered_and_biased_distribution(temperature: float, bias: dict[int, float]) -> None:
    async with endpoint() as (server, client):
        truth = server.model.after(server.tokens.encode(PROMPT)).logprobs()
        logits = truth.copy()
        for i, added in bias.items():
            logits[i] += added
        expected = np.exp(logits / temperature) / np.exp(logits / temperature).sum()
        seen = np.zeros(len(truth))
        n, requests = 500, 40
        for _ in range(requests):
            fields = {"temperature": temperature, "n": n, "logit_bias": bias, "logprobs": 0, "return_tokens_as_token_ids": True}
            for choice in (await client.complete(PROMPT, **fields))["choices"]:
                drawn = int(choice["logprobs"]["tokens"][0].removeprefix("token_id:"))
                assert choice["logprobs"]["token_logprobs"] == [truth[drawn]], "what is told is the model, not the sampler"
                seen[drawn] += 1
        common = expected * n * requests >= 10
        observed = np.append(seen[common], seen[~common].sum())
        told = np.append(expected[common], expected[~common].sum()) * n * requests
        assert len(told) > 30
        assert chisquare(observed, told).pvalue > 1e-3


@in_loop
async def test_draws_differ_from_request_to_request_and_repeat_with_the_server_or_with_a_seed() -> None:
    async def drawn(client: Client, **fields: Any) -> list[str]:
        answer = await client.complete(PROMPT, temperature=1, n=20, **fields)
        return [choice["text"] for choice in answer["choices"]]

    async with endpoint() as (_, client):
        first, second = await drawn(client), await drawn(client)
        seeded = await drawn(client, seed=5)
        assert first != second
        assert await drawn(client, seed=5) == seeded != first
        assert await drawn(client, seed=6) != seeded
        twice = await client.complete([PROMPT, PROMPT], temperature=1, n=20)
        texts = [choice["text"] for choice in twice["choices"]]
        assert texts[:20] != texts[20:]
    async with endpoint() as (_, client):
        assert [await drawn(client), await drawn(client)] == [first, second]


@in_loop
async def test_the_tokenizers_file_reads_texts_as_the_server_does(tmp_path: Path) -> None:
    async with endpoint() as (server, client):
        server.tokens.write(tmp_path / "tokenizer")
        tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer/tokenizer.json"))
        config = json.loads((tmp_path / "tokenizer/tokenizer_config.json").read_text())
        told = await client.post("/tokenize", prompt=PROMPT, return_token_strs=True)
        assert told["tokens"] == tokenizer.encode(PROMPT).ids
        assert told["tokens"][0] == tokenizer.token_to_id("<s>")
        assert " abbace" in told["token_strs"]
        assert tokenizer.decode(told["tokens"]) == PROMPT
        assert (await client.post("/detokenize", tokens=told["tokens"]))["prompt"] == f"<s>{PROMPT}"
        assert tokenizer.decode_batch([[i] for i in range(len(server.tokens))], skip_special_tokens=False) == list(
            server.tokens.texts
        )

        template = Environment().from_string(config["chat_template"])
        messages = [{"role": "user", "content": PROMPT}]
        text = template.render(messages=messages, add_generation_prompt=True, bos_token="<s>", eos_token="</s>")
        told = await client.post("/tokenize", messages=messages)
        assert told["tokens"] == tokenizer.encode(text, add_special_tokens=False).ids
        assert Counter(told["tokens"])[0] == 1, "one BOS"
        assert (await client.post("/tokenize", prompt=text, add_special_tokens=False))["tokens"] == told["tokens"]


@in_loop
async def test_the_models_and_the_version_are_told() -> None:
    async with endpoint(Settings(version="0.32.0")) as (_, client):
        assert (await client.get("/v1/models"))[1]["data"][0]["id"] == "fault-model"
        assert await client.get("/version") == (200, {"version": "0.32.0"})
    async with endpoint() as (_, client):
        assert (await client.get("/version"))[0] == 404


@pytest.mark.parametrize(
    ("path", "fields", "status", "message"),
    [
        ("completions", {"prompt": "a", "model": "gpt"}, 404, "The model `gpt` does not exist"),
        ("completions", {"prompt": "a", "logprobs": 1001}, 400, r"max allowed: 1000"),
        ("completions", {"prompt": [5, 99999]}, 400, "99999 is out of vocabulary"),
        ("completions", {"prompt": "a", "logprob_token_ids": [5]}, 400, "needs logprobs"),
        ("completions", {"prompt": []}, 400, "empty prompt"),
        ("completions", {"prompt": [[5]] * 1025}, 400, "at most 1024 prompts"),
        ("completions", {"prompt": "a", "stream": True}, 400, "stream"),
        ("chat/completions", {"messages": [{"role": "user", "content": "a"}], "top_logprobs": 3}, 400, "logprobs"),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": "a"}], "continue_final_message": True},
            400,
            "Cannot set both",
        ),
    ],
)
@in_loop
async def test_what_vllm_refuses_is_refused(path: str, fields: dict[str, Any], status: int, message: str) -> None:
    async with endpoint() as (_, client):
        got, answer = await client.posted(f"/v1/{path}", {"model": "fault-model", **fields})
        assert got == status
        assert re.search(message, answer["error"]["message"])
        assert (await client.get("/faults"))[1]["refused"] == 1
