"""Amplified draws from an endpoint whose mass is known: the bias that is found, and what the draws say."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from scipy.special import expit, logit

from harness import paths
from harness.providers.http.drawing import MAX_BIAS, Drawer
from harness.providers.http.line import Line
from harness.providers.targets import Endpoint, TargetSpec
from harness.providers.wire.base import Question
from harness.records import Lexicon, Mode, Observation, Readout
from harness.stats.draws import log_odds_of_draws

N_DRAWS = 200
LEXICON = Lexicon(
    concept="c", words=frozenset({"cat", "dog"}), token_ids=np.array([3, 5], np.int32), resolved_share=1.0, digest=""
)


@dataclass
class KnownMass:
    """A line to a model that gives the lexicon the probability `mass`, and honours a bias on all of its ids."""

    mass: float
    rng: np.random.Generator
    biases: list[float] = field(default_factory=list)
    dialect: Any = field(default_factory=lambda: SimpleNamespace(takes_draws=True))

    async def draw(self, prompts: Sequence[object], question: Question) -> tuple[list[list[str]], None]:
        assert len(prompts) == 1
        assert question.max_tokens == 1
        assert question.temperature == 1.0
        assert question.bias.keys() == {3, 5}
        (bias,) = set(question.bias.values())
        self.biases.append(bias)
        chance = expit(logit(self.mass) + bias) if self.mass else 0.0
        return [[" Dog" if hit else " tree" for hit in self.rng.random(question.n_draws) < chance]], None


def amplified(line: KnownMass) -> Observation:
    endpoint = Endpoint.model_validate(
        {"api": "completions", "claims": {"draws_per_request": N_DRAWS}, "targets": {"t": {"model": "m"}}}
    )
    found = paths.Found(name="e", path=Path("providers/e.toml"), origin="project")
    spec = TargetSpec(name="t", target=endpoint.targets["t"], endpoint_name="e", endpoint=endpoint, found=found)
    readout = Readout(lexicon=LEXICON, n_logprobs=0, mode=Mode.AMPLIFIED, n_draws=N_DRAWS)
    drawer = Drawer(spec, cast(Line, line))
    (seen,) = asyncio.run(drawer.observe(["a prompt"], readout, Mode.AMPLIFIED))
    return seen


@pytest.mark.parametrize("mass", [0.99, 0.8, 0.3, 0.02, 1e-4, 1e-6])
def test_the_bias_that_is_found_makes_the_draws_as_precise_as_they_can_be(mass: float) -> None:
    scores, shares, pilots = [], [], []
    for seed in range(40):
        line = KnownMass(mass=mass, rng=np.random.default_rng(seed))
        seen = amplified(line)
        assert seen.error is None
        assert (seen.mode, seen.n_draws, seen.bias) == (Mode.AMPLIFIED, N_DRAWS, line.biases[-1])
        assert seen.hits is not None
        assert seen.bias is not None
        shares.append(expit(logit(mass) + seen.bias))
        scores.append((log_odds_of_draws(seen.hits, N_DRAWS, seen.bias) - logit(mass)) * np.sqrt(N_DRAWS) / 2)
        pilots.append(len(line.biases) - 1)
    assert 0.05 < np.min(shares) < np.max(shares) < 0.95
    assert np.mean(np.square(scores)) < 2  # 1 is the least: the square of 2 / sqrt(N), in its own units
    assert abs(np.mean(scores)) < 4 * np.sqrt(1.2 / 40)
    assert max(pilots) <= 6


def test_words_that_never_come_end_the_search_for_a_bias() -> None:
    line = KnownMass(mass=0.0, rng=np.random.default_rng(0))
    seen = amplified(line)
    assert (seen.hits, seen.n_draws) == (0, N_DRAWS)
    assert len(line.biases) <= 7
    assert max(line.biases) <= MAX_BIAS
    assert seen.bias is not None
    assert seen.bias > 20
