"""The lists of `compare_ladder.py`: the sentinel prompts put to known variants of two small models.

    python reports/benchmarks/compare_ladder_lists.py DIR
    VLLM_CPU_KVCACHE_SPACE=2 .venv-vllm/bin/python reports/benchmarks/compare_ladder_lists.py DIR

An interpreter that has vLLM asks the variants that vLLM serves, any other those of transformers. The lists are kept in DIR;
what lies there is not asked again. `--only TEXT` asks those whose model and name hold the text.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Literal

import numpy as np

from harness.compare.sentinels import Sentinel, choose, near_ties, tie_candidates
from harness.compare.variants import COPY, INT4, INT8, Variant, make_variant
from harness.packs.sampling import generator
from harness.paths import model_dir
from harness.providers.base import Provider
from harness.providers.targets import Dtype, OpenOptions, TargetSpec, find_target, open_target
from harness.records import Lexicon, Mode, Observation, Readout

SEED = 0
N_PROMPTS = 72
N_TIES = 12
"""Near ties of each model, so that all variants are asked the same."""

REPEATS = 3
"""Of what answers otherwise from one batch to the next; float32 differs in the sixth digit, and is asked once."""

LISTED = 1000
"""Tokens kept of each list: enough that draws can be simulated from it."""

SMOLLM, GEMMA = "smollm2-135m", "gemma3-270m"

_SYSTEM = "<|im_start|>system\n{}<|im_end|>\n"
_TURNS = "<|im_start|>user\nContinue the text.<|im_end|>\n<|im_start|>assistant\n"
CHAT = _SYSTEM.format("You are a helpful AI assistant named SmolLM, trained by Hugging Face") + _TURNS
"""SmolLM2's own template, up to where the answer begins."""

OTHER_SYSTEM = _SYSTEM.format("You are a careful assistant. Answer briefly and stay with the facts.") + _TURNS
OTHER_TEMPLATE = "[INST] Continue the text. [/INST] "
SYSTEM_TEXT = "You are a careful assistant. Answer briefly and stay with the facts.\n\n"

_NO_WORDS = Lexicon(concept="", words=frozenset(), token_ids=np.empty(0, np.int32), resolved_share=None, digest="")


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A model as somebody serves it. `together`: prompts put to it at a time; `before`: the text before every prompt."""

    name: str
    model: str
    dtype: Dtype = "float32"
    weights: Variant = COPY
    stack: Literal["transformers", "vllm"] = "transformers"
    together: int = 16
    before: str = ""

    @property
    def repeats(self) -> int:
        """How often it is asked."""
        return 1 if self.dtype == "float32" else REPEATS

    def loaded(self) -> str:
        """The same for all that one loaded model answers for."""
        return f"{self.model} {self.stack} {self.weights} {self.dtype}"

    @property
    def file(self) -> str:
        """The name of its lists' file."""
        return f"{self.model} {self.name}.npz".replace(" ", "_")


def served() -> list[Served]:
    """Everything that is asked."""
    every = []
    for model in (SMOLLM, GEMMA):
        every += [
            Served(name="float32", model=model),
            Served(name="float32 alone", model=model, together=1),
            Served(name="float32 many", model=model, together=48),
            Served(name="bfloat16", model=model, dtype="bfloat16"),
            Served(name="bfloat16 alone", model=model, dtype="bfloat16", together=1),
            Served(name="bfloat16 many", model=model, dtype="bfloat16", together=48),
            Served(name="vllm float32", model=model, stack="vllm"),
            Served(name="vllm bfloat16", model=model, dtype="bfloat16", stack="vllm"),
            Served(name="vllm bfloat16 alone", model=model, dtype="bfloat16", stack="vllm", together=1),
            Served(name="int8", model=model, weights=INT8),
            Served(name="int8 bfloat16", model=model, weights=INT8, dtype="bfloat16"),
            Served(name="vllm int8 bfloat16", model=model, weights=INT8, dtype="bfloat16", stack="vllm"),
            Served(name="int8 in groups", model=model, weights=replace(INT8, group=64)),
            Served(name="int8 in groups bfloat16", model=model, weights=replace(INT8, group=64), dtype="bfloat16"),
            Served(name="int4", model=model, weights=INT4),
            Served(name="int4 bfloat16", model=model, weights=INT4, dtype="bfloat16"),
            Served(name="noise 1%", model=model, weights=Variant(kind="noise", noise=0.01)),
            Served(name="noise 2%", model=model, weights=Variant(kind="noise", noise=0.02)),
            Served(name="noise 10%", model=model, weights=Variant(kind="noise", noise=0.1)),
            Served(name="system text", model=model, before=SYSTEM_TEXT),
            Served(name="other template", model=model, before=OTHER_TEMPLATE),
        ]
    return [
        *every,
        Served(name="chat", model=SMOLLM, before=CHAT),
        Served(name="chat bfloat16", model=SMOLLM, before=CHAT, dtype="bfloat16"),
        Served(name="chat other system", model=SMOLLM, before=OTHER_SYSTEM),
    ]


# Asking


async def opened(one: Served, raw: Path) -> Provider:
    """The provider that answers for it, its weights made first where they are not the model's own."""
    spec = find_target(one.model)
    folder = model_dir(one.model)
    if one.weights != COPY:
        folder = raw / "weights" / f"{one.model}-{one.weights.kind}-{one.weights.noise}-{one.weights.group}"
        if not folder.is_dir():
            folder.parent.mkdir(exist_ok=True)
            make_variant(model_dir(one.model), folder, one.weights)
    if one.stack == "vllm":
        spec = find_target("smollm2-135m-offline")
    changed = {"model": str(folder), "tokenizer": str(folder), "package": None, "weights": None}
    here: TargetSpec = replace(spec, target=spec.target.model_copy(update=changed))
    return await open_target(here, OpenOptions(dtype=one.dtype))


async def answers(provider: Provider, one: Served, texts: Sequence[str]) -> list[list[Observation]]:
    """Rounds of one observation a text, each round in an order of its own."""
    assert provider.vocabulary is not None
    ids = provider.vocabulary.encode([one.before + text for text in texts])
    prompts = [Sentinel(prompt_id=str(i), text=text, kind="plain").prompt(ids[i]) for i, text in enumerate(texts)]
    readout = Readout(lexicon=_NO_WORDS, n_logprobs=LISTED, mode=Mode.TOPK if one.stack == "vllm" else None)
    rng = generator(SEED, "order", one.model, one.name)
    rounds = []
    for _ in range(one.repeats):
        order = rng.permutation(len(prompts)).tolist()
        seen: dict[int, Observation] = {}
        for start in range(0, len(order), one.together):
            chosen = order[start : start + one.together]
            seen.update(zip(chosen, await provider.observe([prompts[i] for i in chosen], readout), strict=True))
        rounds.append([seen[i] for i in range(len(prompts))])
    return rounds


async def sentinels(raw: Path) -> list[Sentinel]:
    """The prompts, chosen once: near ties are those of either model in float32."""
    file = raw / "prompts.json"
    if not file.is_file():
        chosen = list(choose(N_PROMPTS, SEED))
        for model in (SMOLLM, GEMMA):
            candidates = tie_candidates(N_TIES, SEED, chosen)
            one = Served(name="ties", model=model)
            provider = await opened(one, raw)
            seen = await answers(provider, one, [candidate.text for candidate in candidates])
            chosen += near_ties(candidates, seen[0], N_TIES)
        file.write_text(json.dumps([[one.prompt_id, one.text, one.kind] for one in chosen]))
    return [Sentinel(prompt_id=name, text=text, kind=kind) for name, text, kind in json.loads(file.read_text())]


async def ask(provider: Provider, one: Served, prompts: Sequence[Sentinel], raw: Path) -> None:
    """Keep its lists: ids and log-probabilities (r, n, k), and what it was run with."""
    rounds = await answers(provider, one, [prompt.text for prompt in prompts])
    failed = {seen.error for observations in rounds for seen in observations if seen.error}
    if failed:
        raise SystemExit(f"{one.model} {one.name}: {failed}")
    ids = np.array([[seen.token_ids for seen in observations] for observations in rounds])
    logprobs = np.array([[seen.logprobs for seen in observations] for observations in rounds])
    settings = json.dumps(dict(provider.info.settings) | {"revision": provider.info.revision})
    np.savez_compressed(raw / one.file, ids=ids, logprobs=logprobs, settings=settings)
    print(one.model, one.name, flush=True)


async def ask_all(raw: Path, only: str) -> None:
    """Ask what this interpreter can run and what is not there yet."""
    raw.mkdir(parents=True, exist_ok=True)
    found = find_spec("vllm")
    stack = "vllm" if found is not None and found.origin is not None else "transformers"  # a folder of that name is no vLLM
    prompts = await sentinels(raw)
    wanted = [one for one in served() if one.stack == stack and only in f"{one.model} {one.name}"]
    missing = sorted((one for one in wanted if not (raw / one.file).is_file()), key=Served.loaded)
    for _, alike in groupby(missing, key=Served.loaded):
        group = list(alike)
        provider = await opened(group[0], raw)
        for one in group:
            await ask(provider, one, prompts, raw)
        await provider.aclose()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw", type=Path, help="where the lists are kept")
    parser.add_argument("--only", default="", help="ask those whose model and name hold this text")
    args = parser.parse_args()
    asyncio.run(ask_all(args.raw, args.only))


if __name__ == "__main__":  # vLLM starts its workers by importing this file again
    main()
