"""How many prompts a second go over HTTP: a bare aiohttp loop, this harness with its journal, lm-eval and Inspect AI.

    python reports/benchmarks/http_speed.py

All ask one endpoint that answers at once, in a process of its own, so that what is measured is the client. Each figure comes
from a process of its own, and rounds take turns. The bare loop sends the bodies that the harness sends, made in advance, and
parses the answers with `json`; the harness plans, encodes, asks, decodes, checks and journals. Peers are installed by pip into
an environment of their own; one that cannot be is left out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CONNECTIONS = 64
SIZES = {1: 12, 32: 22}
"""Injections and sentences for each concept and arm, by the prompts a request: about 30,000 and 80,000 prompts."""

SHAPES = {"default": "injections of 16 words", "long": "injections of 64 words, as long as the published ones"}
TOKENIZERS = {"words": "an id for each word", "bpe": "encoded by a byte-level BPE"}
PEERS = {"lm-eval": "lm_eval[api]", "inspect": "inspect-ai openai"}
LM_EVAL_BATCHES = (1, 32, 128)
PEER_PROMPTS = 20_000


# What one process measures


def plan_for(batch: int, shape: str) -> Any:
    """The lexical pack's plan, cut to a size; with four of its injections in the place of one where the shape is `long`."""
    from harness.evals.plan import Choice, make_plan
    from harness.evals.spec import find_eval
    from harness.packs.pack import find_pack

    pack = find_pack("lexical")
    if shape == "long":
        longer = {
            key: tuple(
                replace(probe, injection=tuple(word for j in range(4) for word in probes[(i + j) % len(probes)].injection))
                for i, probe in enumerate(probes)
            )
            for key, probes in pack.probes.items()
        }
        pack = replace(pack, probes=longer)
    return make_plan(find_eval("transfer"), pack, Choice(full=True, limit=SIZES[batch]))


def texts_of(plan: Any) -> list[str]:
    """Every prompt's text."""
    from harness.evals.plan import clean_prompts, injected_prompts, sentences_of

    texts = []
    for name in plan.concepts:
        concept = plan.pack.concept(name)
        sentences = sentences_of(plan, concept)
        texts += [prompt.text for prompt in clean_prompts(plan, sentences)]
        texts += [prompt.text for prompt in injected_prompts(plan, concept, sentences)]
    return texts


def write_tokenizer(path: Path, kind: str) -> None:
    """`words`: an id for each word, which costs little, so that what is left is the way of a prompt over HTTP into the journal.
    `bpe`: of the kind that GPT-2 and Llama have, learnt from the prompts."""
    from stub_endpoint import N_IDS
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    plan = plan_for(1, "default")
    words = [f" {word}" for name in plan.concepts for word in sorted(plan.pack.concept(name).words)]
    trainer: Any
    if kind == "words":
        tokenizer = Tokenizer(models.WordLevel(unk_token="?"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        trainer = trainers.WordLevelTrainer(vocab_size=N_IDS, show_progress=False, special_tokens=["?"])
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=N_IDS, min_frequency=1, show_progress=False, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(words + texts_of(plan)[::10], trainer)
    tokenizer.save(str(path))


async def bare(url: str, batch: int, shape: str, tokenizer: Path) -> tuple[int, float]:
    """(prompts, seconds) of a loop that sends and parses."""
    import aiohttp
    from stub_endpoint import MODEL, N_LOGPROBS

    from harness.providers.vocabulary import Vocabulary
    from harness.providers.wire.base import Question
    from harness.providers.wire.completions import Completions

    vocabulary = Vocabulary.load(tokenizer)
    ids = vocabulary.encode(texts_of(plan_for(batch, shape)))
    question = Question(n_logprobs=N_LOGPROBS, vocabulary=vocabulary)
    requests = [Completions().request(MODEL, ids[i : i + batch], question) for i in range(0, len(ids), batch)]
    bodies = iter([json.dumps(request, separators=(",", ":")).encode() for request in requests])
    headers = {"Content-Type": "application/json"}

    async def worker(session: aiohttp.ClientSession) -> None:
        for body in bodies:
            async with session.post(f"{url}/completions", data=body, headers=headers) as response:
                json.loads(await response.read())

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CONNECTIONS)) as session:
        start = time.perf_counter()
        await asyncio.gather(*(worker(session) for _ in range(CONNECTIONS)))
        return len(ids), time.perf_counter() - start


async def ours(url: str, batch: int, shape: str, tokenizer: Path) -> tuple[int, float]:
    """(prompts, seconds) of the harness, from an opened target to the last answer in the journal."""
    from stub_endpoint import MODEL

    from harness import paths
    from harness.evals.plan import count_prompts
    from harness.evals.runner import Tally, ask_all, make_job
    from harness.providers.http.opening import open_completions
    from harness.providers.targets import Endpoint, OpenOptions, TargetSpec
    from harness.store import Journal

    endpoint = Endpoint.model_validate(
        {
            "api": "completions",
            "base_url": url,
            "limits": {"concurrency": CONNECTIONS, "prompts_per_request": batch},
            "targets": {"stub": {"model": MODEL, "tokenizer": str(tokenizer)}},
        }
    )
    found = paths.Found(name="stub", path=Path("stub.toml"), origin="project")
    spec = TargetSpec(name="stub", target=endpoint.targets["stub"], endpoint_name="stub", endpoint=endpoint, found=found)
    provider = await open_completions(spec, OpenOptions())
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder) / "journal.sqlite") as journal:
        job = make_job(plan_for(batch, shape), provider, journal)
        tally = Tally(planned=count_prompts(job.plan))
        start = time.perf_counter()
        await ask_all(job, tally, lambda _: None)
        seconds = time.perf_counter() - start
        assert tally.done == tally.planned == journal.count(), tally
    await provider.aclose()
    return tally.done, seconds


def measure(client: str, url: str, batch: int, shape: str, tokenizer: Path) -> None:
    """Print what one client did as JSON."""
    prompts, seconds = asyncio.run({"bare": bare, "ours": ours}[client](url, batch, shape, tokenizer))
    report(prompts, seconds)


def report(prompts: int, seconds: float) -> None:
    """One line that the process above reads."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"prompts": prompts, "per_s": prompts / seconds, "peak_mib": peak}))


# All of them


@contextmanager
def endpoint() -> Iterator[str]:
    """The stub endpoint's address."""
    process = subprocess.Popen([sys.executable, str(HERE / "stub_endpoint.py")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def run(python: Path | str, script: str, *arguments: object) -> dict[str, float] | None:
    """What a process of its own measured; None, and its last words, where it failed."""
    done = subprocess.run(
        [str(python), str(HERE / script), *map(str, arguments)], capture_output=True, text=True, cwd=HERE, check=False
    )
    if done.returncode:
        print("\n".join(done.stderr.strip().splitlines()[-3:]), file=sys.stderr)
        return None
    measured: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return measured


def installed(name: str, requirements: str, folder: Path) -> Path | None:
    """The interpreter of an environment that holds a peer; None where pip cannot install it."""
    python = folder / name / "bin" / "python"
    if not python.exists():
        venv.create(folder / name, with_pip=True)
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements.split()]
        if subprocess.run(command, check=False).returncode:
            print(f"{name}: pip cannot install {requirements}; left out")
            (folder / name / "bin" / "python").unlink()
            return None
    return python


def line(name: str, batch: int, results: Sequence[dict[str, float]]) -> str:
    """The median and the range of the rounds."""
    rates = [result["per_s"] for result in results]
    peak = max(result["peak_mib"] for result in results)
    spread = f"{min(rates):,.0f} to {max(rates):,.0f}"
    return f"  {name:10} {batch:4} a request {statistics.median(rates):9,.0f}/s  ({spread}), peak memory {peak:,.0f} MiB"


def compare(url: str, shape: str, tokenizer: Path, rounds: int) -> dict[int, float]:
    """Bare and ours in turns; our median rates."""
    mine = {}
    for batch in SIZES:
        pairs = []
        for _ in range(rounds):
            asked = (url, batch, shape, tokenizer)
            pair = [run(sys.executable, "http_speed.py", "--measure", who, *asked) for who in ("bare", "ours")]
            if None in pair:
                sys.exit(1)
            pairs.append([one for one in pair if one is not None])
        ratios = [own["per_s"] / theirs["per_s"] for theirs, own in pairs]
        for i, name in enumerate(("bare", "ours")):
            print(line(name, batch, [pair[i] for pair in pairs]))
        print(f"  ours / bare: median {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})", flush=True)
        mine[batch] = statistics.median(pair[1]["per_s"] for pair in pairs)
    return mine


def write_prompts(path: Path, shape: str, tokenizer: Path) -> None:
    """The ids of the first prompts, for the peers."""
    from harness.providers.vocabulary import Vocabulary

    texts = texts_of(plan_for(1, shape))[-PEER_PROMPTS:]
    path.write_text(json.dumps(Vocabulary.load(tokenizer).encode(texts)), encoding="utf-8")


def compare_peers(url: str, prompts: Path, folder: Path, mine: dict[int, float]) -> None:
    """Each peer at its best batch size against us at ours."""
    for name, requirements in PEERS.items():
        python = installed(name, requirements, folder)
        if python is None:
            continue
        rates = []
        for batch in LM_EVAL_BATCHES if name == "lm-eval" else (1,):
            result = run(python, "http_speed_peers.py", name, url, batch, prompts)
            if result is not None:
                rates.append(result["per_s"])
                print(line(name, batch, [result]), flush=True)
        if rates:
            ours_1, best = mine[1] / max(rates), max(mine.values()) / max(rates)
            print(f"  ours / {name}: {best:.1f}, with one prompt a request {ours_1:.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--peers-in", type=Path, help="keep the peers' environments in this folder")
    parser.add_argument("--measure", nargs=5, metavar=("CLIENT", "URL", "BATCH", "SHAPE", "TOKENIZER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        client, url, batch, shape, tokenizer = options.measure
        return measure(client, url, int(batch), shape, Path(tokenizer))
    with tempfile.TemporaryDirectory() as name, endpoint() as url:
        folder = Path(name)
        print(f"{CONNECTIONS} connections, 30 log-probabilities an answer, Python {sys.version.split()[0]}")
        for kind in TOKENIZERS:
            write_tokenizer(folder / f"{kind}.json", kind)
        for shape, kind in (("default", "words"), ("default", "bpe"), ("long", "words")):
            print(f"{SHAPES[shape]}, {TOKENIZERS[kind]}", flush=True)
            mine = compare(url, shape, folder / f"{kind}.json", options.rounds)
            if kind == "words" and not options.no_peers:
                write_prompts(folder / "prompts.json", shape, folder / "words.json")
                compare_peers(url, folder / "prompts.json", options.peers_in or folder, mine)
    return None


if __name__ == "__main__":
    main()
