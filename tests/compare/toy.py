"""Endpoints in this process whose next-token distributions are known, and ways to serve them wrongly."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from harness import paths
from harness.compare.asking import Side
from harness.compare.compare import Settings, compare
from harness.compare.result import CompareResult
from harness.packs.concepts import concept_names, find_concept
from harness.providers.targets import Endpoint, TargetSpec
from harness.providers.vocabulary import Vocabulary
from harness.records import Capabilities, Mode, Observation, Prompt, Readout, TargetInfo, Usage

Logits = NDArray[np.float64]
Change = Callable[[Prompt, Logits, np.random.Generator], Logits]
"""What an endpoint makes of the model's logits, which it may do otherwise each time."""

N_WORDS = 400
WORDS = sorted({word for name in concept_names()[:4] for word in find_concept(name).words})[:N_WORDS]

QUICK = Settings(n_prompts=24, n_near_ties=0, repeats=5, eval_name=None)


def model(prompt: Prompt, seed: int = 0) -> Logits:
    """The logits of the toy model `seed` over `WORDS`: another prompt or seed, other logits."""
    return 3 * np.random.default_rng([seed, zlib.crc32(prompt.text.encode())]).standard_normal(len(WORDS))


def noisy(scale: float) -> Change:
    """What other arithmetic does: other rounding errors each time."""
    return lambda _prompt, logits, rng: logits + scale * rng.standard_normal(len(logits))


def weights(scale: float, seed: int = 9) -> Change:
    """What rounded weights do: the same error at each prompt every time."""

    def change(prompt: Prompt, logits: Logits, _rng: np.random.Generator) -> Logits:
        error = np.random.default_rng([seed, zlib.crc32(prompt.text.encode())]).standard_normal(len(logits))
        return logits + scale * error

    return change


def another_model(prompt: Prompt, _logits: Logits, _rng: np.random.Generator) -> Logits:
    return model(prompt, seed=77)


def cooled(temperature: float) -> Change:
    return lambda _prompt, logits, _rng: logits / temperature


def cut_context(prompt: Prompt, logits: Logits, rng: np.random.Generator) -> Logits:
    """Reads another prompt where it is long."""
    return another_model(prompt, logits, rng) if len(prompt.text) > 400 else logits


def sometimes(change: Change, share: float = 0.5) -> Change:
    """Two backends behind one address."""
    return lambda prompt, logits, rng: change(prompt, logits, rng) if rng.random() < share else logits


@dataclass(eq=False)
class ToyProvider:
    """Answers with the toy model's lists, or with draws where `shows_lists` is False; `fails`: the share of lost answers."""

    change: Change = lambda _prompt, logits, _rng: logits
    seed: int = 0
    shows_lists: bool = True
    renormalised: bool = False
    fails: float = 0.0
    findings: dict[str, str] = field(default_factory=dict)
    modes: tuple[Mode, ...] = ()
    path: str = "/completions"
    usage: Usage | None = None
    vocabulary: Vocabulary | None = None
    batch_size: int = 8
    concurrency: int = 2
    asked: int = 0

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng([self.seed, 1])
        self.info = TargetInfo(
            target="toy",
            endpoint="toy",
            model="toy",
            revision=None,
            tokenizer_digest=None,
            settings={"request": {"path": self.path}},
            capabilities=Capabilities(
                token_ids=False,
                max_logprobs=20 if self.shows_lists else 0,
                mode=Mode.TOPK if self.shows_lists else Mode.SAMPLED,
                modes=self.modes,
                max_prompts_per_request=self.batch_size,
                findings=self.findings,
            ),
        )

    async def observe(self, prompts: Sequence[Prompt], readout: Readout) -> list[Observation]:
        await asyncio.sleep(0)
        self.asked += len(prompts)
        return [self._one(prompt, readout) for prompt in prompts]

    def _one(self, prompt: Prompt, readout: Readout) -> Observation:
        if self._rng.random() < self.fails:
            return Observation(error="toy: out of order")
        logprobs = log_softmax(self.change(prompt, model(prompt), self._rng))
        if readout.mode is Mode.SAMPLED:
            counts = self._rng.multinomial(readout.n_draws, np.exp(logprobs))
            drawn = np.flatnonzero(counts)
            tokens, shares = tuple(WORDS[i] for i in drawn), np.log(counts[drawn] / readout.n_draws)
            hits = sum(int(counts[i]) for i in drawn if WORDS[i] in readout.lexicon.words)
            return Observation(
                tokens=tokens,
                logprobs=shares.astype(np.float32),
                mode=Mode.SAMPLED,
                hits=hits,
                n_draws=readout.n_draws,
                bias=0.0,
            )
        likeliest = np.argsort(-logprobs)[: readout.n_logprobs]
        listed = logprobs[likeliest]
        if self.renormalised:
            listed = listed - np.log(np.exp(listed).sum())
        return Observation(
            tokens=tuple(f" {WORDS[i]}" for i in likeliest),
            logprobs=listed.astype(np.float32),
            covered_mass=float(np.exp(listed).sum()),
            mode=Mode.TOPK,
        )

    async def aclose(self) -> None:
        """Nothing is held."""


def spec(name: str = "toy") -> TargetSpec:
    declared = Endpoint.model_validate({"api": "scripted", "targets": {name: {"model": "toy"}}})
    found = paths.Found(name="toy", path=Path("providers/toy.toml"), origin="project")
    return TargetSpec(name=name, target=declared.targets[name], endpoint_name="toy", endpoint=declared, found=found)


def compared(a: ToyProvider, b: ToyProvider, settings: Settings = QUICK) -> CompareResult:
    """What a comparison of both says."""
    return asyncio.run(compare(Side(name="A", spec=spec(), provider=a), Side(name="B", spec=spec(), provider=b), settings))
