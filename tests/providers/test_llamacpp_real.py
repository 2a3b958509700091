"""A real llama.cpp server: still what was recorded of it, and its log-probabilities against plain transformers.

`HARNESS_RECORD=1 make test-servers` records anew: it writes the answer to the request that each recorded file holds.
"""

from __future__ import annotations

import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.providers.weights import fetch

from .llamacpp_server import SERVED_NAME, package, quantised_gguf, running_llamacpp

pytestmark = [pytest.mark.servers, pytest.mark.timeout(600)]

RECORDED = sorted((Path(__file__).parent / "recorded" / "llamacpp").glob("*.json"))
PASSING = re.compile(r"/id|/timings|/system_fingerprint|.*/created|.*/cached_tokens")
"""Places whose values differ from one answer to the next."""

KEY = "right"
CLOSE = 0.03
"""How far the float32 log-probabilities may lie from transformers', nats; they were 0.01 apart at most."""

TEXTS = (
    "The capital of France is",
    "My dog likes to",
    "He drove all night until he reached",
    "At the bottom of the sea lives a",
    "(river lake pond stream) The boat went down the",
    "(seven nine twelve forty) There were exactly",
    "Water boils at one hundred",
    "Das Rätsel löst sich von",
    "To open the door you need a",
    "It was a cold day in",
)


@pytest.fixture(scope="module")
def server(float32_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with the embedded engine's very weights."""
    with running_llamacpp(float32_gguf, tmp_path_factory.mktemp("llamacpp") / "server.log") as address:
        yield address


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with the quantised weights as published, behind a key."""
    log = tmp_path_factory.mktemp("llamacpp") / "locked.log"
    with running_llamacpp(quantised_gguf(), log, api_key=KEY) as address:
        yield address


def ask(address: str, path: str, body: object, key: str = "") -> tuple[int, Any]:
    """The status and the answer; a `body` that is text goes as it is, None asks with GET."""
    data = None if body is None else (body if isinstance(body, str) else json.dumps(body)).encode()
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    try:
        with urllib.request.urlopen(urllib.request.Request(address + path, data, headers), timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as refusal:
        with refusal:
            return refusal.code, json.load(refusal)


def flat(answer: object, place: str = "") -> dict[str, object]:
    """Every value of an answer by its place in it, without what differs each time."""
    if PASSING.fullmatch(place):
        return {}
    inner = answer.items() if isinstance(answer, dict) else enumerate(answer) if isinstance(answer, list) else None
    if inner is None:
        return {place: answer}
    return {key: leaf for name, value in inner for key, leaf in flat(value, f"{place}/{name}").items()}


def write_recorded(path: Path, request: object, status: int, answer: object) -> None:
    """One line each, so that a difference shows which part changed."""
    parts = {"request": request, "status": status, "answer": answer}
    lines = [f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in parts.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_the_server_still_answers_as_recorded(path: Path, server: str, locked: str) -> None:
    recorded = json.loads(path.read_text(encoding="utf-8"))
    request = recorded["request"]
    address = locked if "key" in request else server
    status, answer = ask(address, request["path"], request["body"], request.get("key", ""))
    if os.environ.get("HARNESS_RECORD"):
        write_recorded(path, request, status, answer)
        return
    expected = {k: pytest.approx(v, abs=0.05) if isinstance(v, float) else v for k, v in flat(recorded["answer"]).items()}
    assert (status, flat(answer)) == (recorded["status"], expected)


def test_there_are_recorded_answers() -> None:
    assert len(RECORDED) >= 20


@pytest.fixture(scope="module")
def plain() -> Iterator[Callable[[list[int]], np.ndarray]]:
    """All log-probabilities after some token ids: a plain forward pass of transformers over the embedded engine's weights."""
    import torch
    import transformers

    folder = fetch(SERVED_NAME, package(), lambda _: None)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of several, each waits for the slowest where other processes want the cores

    def logprobs(ids: list[int]) -> np.ndarray:
        with torch.no_grad():
            return torch.log_softmax(model(torch.tensor([ids])).logits[0, -1], -1).numpy()

    yield logprobs
    torch.set_num_threads(threads)


def listed(answer: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The ids and the log-probabilities of the list after the prompt."""
    entries = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    return np.array([entry["id"] for entry in entries]), np.array([entry["logprob"] for entry in entries])


@pytest.mark.parametrize("text", TEXTS)
def test_the_float32_weights_give_the_log_probabilities_of_transformers(
    text: str, server: str, plain: Callable[[list[int]], np.ndarray]
) -> None:
    ids = ask(server, "/tokenize", {"content": text})[1]["tokens"]
    question = {"max_tokens": 1, "temperature": 0, "logprobs": 30}
    for prompt in (text, ids):
        found, logprobs = listed(ask(server, "/v1/completions", question | {"prompt": prompt})[1])
        expected = plain(ids)
        assert logprobs == pytest.approx(expected[found], abs=CLOSE)
        assert expected[found].min() >= np.sort(expected)[-30] - 2 * CLOSE


def test_a_prefilled_chat_gives_the_log_probabilities_of_the_templated_prompt(
    server: str, plain: Callable[[list[int]], np.ndarray]
) -> None:
    messages = [{"role": "user", "content": "Complete the text."}, {"role": "assistant", "content": TEXTS[4]}]
    prompt = ask(server, "/apply-template", {"messages": messages})[1]["prompt"]
    assert prompt.endswith(f"<|im_start|>assistant\n{TEXTS[4]}")
    ids = ask(server, "/tokenize", {"content": prompt, "parse_special": True})[1]["tokens"]
    question = {"max_tokens": 1, "temperature": 0, "logprobs": True, "top_logprobs": 30}
    found, logprobs = listed(ask(server, "/v1/chat/completions", question | {"messages": messages})[1])
    assert logprobs == pytest.approx(plain(ids)[found], abs=CLOSE)


def test_the_quantised_weights_stay_near(locked: str, plain: Callable[[list[int]], np.ndarray]) -> None:
    """Distances in total variation: 0.04 on average, against 0.9 between two prompts."""
    distances = []
    for text in TEXTS[:5]:
        ids = ask(locked, "/tokenize", {"content": text}, KEY)[1]["tokens"]
        question = {"prompt": text, "max_tokens": 1, "temperature": 0, "logprobs": 49152}
        found, logprobs = listed(ask(locked, "/v1/completions", question, KEY)[1])
        assert len(set(found)) == 49152
        distances.append(np.abs(np.exp(logprobs) - np.exp(plain(ids)[found])).sum() / 2)
    assert np.mean(distances) < 0.1
