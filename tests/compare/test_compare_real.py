"""A comparison of a real model with itself and, by a temperature that is put on top, with what is served otherwise."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.special import log_softmax

from harness.compare.asking import Side
from harness.compare.compare import Settings, compare
from harness.compare.diagnosis import TEMPERATURE
from harness.providers.base import Provider
from harness.providers.targets import OpenOptions, find_target, open_target
from harness.records import Observation, Prompt, Readout

SETTINGS = Settings(n_prompts=16, n_near_ties=0, repeats=2, concepts=("animal", "food"), limit=2)


class Cooled:
    """`provider` as it answers at a temperature below 1."""

    usage = None

    def __init__(self, provider: Provider, temperature: float) -> None:
        self.info, self.vocabulary = provider.info, provider.vocabulary
        self.batch_size, self.concurrency = provider.batch_size, provider.concurrency
        self._provider = provider
        self._temperature = temperature

    async def observe(self, prompts: Sequence[Prompt], readout: Readout) -> list[Observation]:
        whole = dataclasses.replace(readout, n_logprobs=2000)
        seen = await self._provider.observe(prompts, whole)
        n = readout.n_logprobs
        return [
            dataclasses.replace(
                one,
                token_ids=None if one.token_ids is None else one.token_ids[:n],
                logprobs=log_softmax(one.logprobs / self._temperature)[:n].astype(np.float32),
            )
            for one in seen
        ]

    async def aclose(self) -> None:
        """Nothing of its own is held."""


@pytest.mark.embedded
def test_a_model_is_equivalent_to_itself_and_not_to_itself_at_another_temperature() -> None:
    spec = find_target("smollm2-135m")

    async def both() -> None:
        provider = await open_target(spec, OpenOptions())
        a, b = (Side(name=name, spec=spec, provider=provider) for name in "AB")
        same = await compare(a, b, SETTINGS)
        assert same.decision == "equivalent"
        assert same.score is not None
        assert same.score.decision == "equivalent"
        cooled = Side(name="A", spec=spec, provider=Cooled(provider, 0.7))
        other = await compare(cooled, b, dataclasses.replace(SETTINGS, eval_name=None))
        assert other.decision == "different"
        assert other.diagnoses[0].cause == TEMPERATURE
        assert "temperature of 0.7 at A" in other.diagnoses[0].evidence

    asyncio.run(both())
