"""Prompts a second of the prefix-sharing engine against whole-prompt batches in transformers, on the same crossed prompts.

    python reports/benchmarks/embedded_engine.py [--target smollm2-135m] [--dtype bfloat16] [--rounds 3]

Both sides run in turn in one process, on the same model's weights, and read the same: the 30 likeliest tokens of the last
position. The whole-prompt side sorts by length, pads to the left, and reads the last position only. Two shapes: injections
of 90 tokens before 24 sentences, and what `harness run` asks by default (about 20 tokens before 12 sentences).
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from harness.evals.lexicon import resolve
from transformers import AutoModelForCausalLM

from harness.packs.concepts import find_concept
from harness.packs.pack import find_pack
from harness.packs.templates import find_template
from harness.paths import model_dir
from harness.providers.embedded import quiet
from harness.providers.engine import PrefixEngine
from harness.providers.targets import OpenOptions, find_target, open_target
from harness.providers.vocabulary import Vocabulary
from harness.records import Readout

BATCH = 32
TOP = 30
CONCEPTS = ("animal", "food", "weather", "money")
Ids = tuple[int, ...]


def crossed(vocabulary: Vocabulary, n_words: int, n_injections: int, n_sentences: int) -> tuple[list[Ids], list[str]]:
    """Prompts of the lexical pack's words, `n_words` a prefix, before real sentences; and the group of each."""
    template, pack = find_template("paren"), find_pack("lexical")
    texts, groups = [], []
    for name in CONCEPTS:
        words = [
            word
            for (concept, _), probes in pack.probes.items()
            if concept == name
            for probe in probes
            for word in probe.injection
        ]
        sentences = find_concept(name).sentences[:n_sentences]
        for i in range(n_injections):
            injection = words[i * n_words : (i + 1) * n_words]
            texts += [template.render(injection, sentence.text) for sentence in sentences]
            groups += [f"{name}-{i}"] * len(sentences)
    return list(vocabulary.encode(texts)), groups


def whole_prompts(model: torch.nn.Module, prompts: Sequence[Ids]) -> np.ndarray:
    """The top log-probabilities (n, TOP), by padded batches of whole prompts."""
    found = np.empty((len(prompts), TOP), np.float32)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        width = max(len(prompts[i]) for i in rows)
        ids = torch.tensor([[0] * (width - len(prompts[i])) + list(prompts[i]) for i in rows])
        mask = torch.tensor([[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in rows])
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        with torch.inference_mode():
            logits = model(ids, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=1).logits
            found[rows] = logits[:, -1].float().log_softmax(-1).topk(TOP).values.numpy()
    return found


def shared_prefixes(engine: PrefixEngine, prompts: Sequence[Ids], groups: Sequence[str], readout: Readout) -> np.ndarray:
    """The same by the engine, in calls of about a hundred prompts, as the runner makes them."""
    seen = []
    for at in range(0, len(prompts), 96):
        seen += engine.observe(prompts[at : at + 96], groups[at : at + 96], readout)
    return np.array([observation.logprobs for observation in seen])


def seconds(call: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    started = time.perf_counter()
    found = call()
    return time.perf_counter() - started, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="smollm2-135m")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()

    spec = find_target(args.target)
    provider = asyncio.run(open_target(spec, OpenOptions(dtype=args.dtype, note=print)))
    engine, vocabulary = provider._engine, provider.vocabulary  # type: ignore[attr-defined]
    assert vocabulary is not None
    print(
        f"{args.target}, {args.dtype}, {torch.get_num_threads()} threads, torch {torch.__version__}, Python {sys.version[:6]}"
    )
    readout = Readout(lexicon=resolve(find_concept("animal"), vocabulary, first_token=False), n_logprobs=TOP)
    shapes = {"injections of 90 tokens, 24 sentences": (68, 8, 24), "the default run: 12 sentences": (16, 8, 12)}
    asked = {name: crossed(vocabulary, *shape) for name, shape in shapes.items()}
    for prompts, groups in asked.values():
        shared_prefixes(engine, prompts, groups, readout)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory of the process with the engine alone: {peak:.2f} GiB")

    with quiet():
        model = AutoModelForCausalLM.from_pretrained(model_dir(args.target), dtype=getattr(torch, args.dtype)).eval()
    for name, (prompts, groups) in asked.items():
        lengths = [len(prompt) for prompt in prompts]
        print(f"{name}: {len(prompts)} prompts of {min(lengths)} to {max(lengths)} tokens, {len(set(groups))} prefixes")
        whole_prompts(model, prompts[: 2 * BATCH])  # warm up
        compare(partial(whole_prompts, model, prompts), partial(shared_prefixes, engine, prompts, groups, readout), args.rounds)


def compare(whole: Callable[[], np.ndarray], shared: Callable[[], np.ndarray], rounds: int) -> None:
    """Run both in turn and print the speeds, the ratio, and how far apart the answers are."""
    ratios = []
    for _ in range(rounds):
        whole_s, expected = seconds(whole)
        shared_s, found = seconds(shared)
        ratios.append(whole_s / shared_s)
        n = len(found)
        print(f"  whole prompts {n / whole_s:6.1f}/s   shared prefixes {n / shared_s:6.1f}/s   {ratios[-1]:.2f} times as many")
    off = np.abs(found - expected)
    print(f"  median ratio {statistics.median(ratios):.2f}", end="; ")
    print(f"top {TOP} log-probabilities differ by {off.mean():.2g} nat, at most {off.max():.2g}")


if __name__ == "__main__":
    main()
