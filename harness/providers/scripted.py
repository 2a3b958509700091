"""A provider that answers from a script: for tests, examples and trying things out without a model.

`ScriptedProvider` takes any function from a prompt to a distribution over words. The target `scripted` uses `seeded_words`,
whose answers depend on nothing but the prompt's text.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from harness.errors import UsageError
from harness.packs.concepts import concept_names, find_concept
from harness.providers.targets import OpenOptions, TargetSpec
from harness.providers.vocabulary import Vocabulary
from harness.records import Capabilities, Mode, Observation, Prompt, Readout, TargetInfo, Usage

Script = Callable[[Prompt], Mapping[str, float]]
"""A prompt to the probabilities of tokens (text to probability; what is missing to 1 lies on tokens not shown)."""


class ScriptedProvider:
    """Answers each prompt with `script(prompt)`. A script that raises makes that prompt fail, with the exception's text.

    `max_logprobs` cuts the lists as an endpoint would; `delay_s` is waited before each batch.
    """

    usage: Usage | None = None

    def __init__(
        self,
        script: Script,
        *,
        name: str = "scripted",
        max_logprobs: int | None = None,
        batch_size: int = 64,
        concurrency: int = 4,
        delay_s: float = 0.0,
    ) -> None:
        self._script = script
        self._delay_s = delay_s
        self.vocabulary: Vocabulary | None = None
        self.batch_size = batch_size
        self.concurrency = concurrency
        self.info = TargetInfo(
            target=name,
            endpoint="scripted",
            model=name,
            revision=None,
            tokenizer_digest=None,
            settings={},
            capabilities=Capabilities(
                token_ids=False, max_logprobs=max_logprobs, mode=Mode.TOPK, max_prompts_per_request=batch_size
            ),
        )

    async def observe(self, prompts: Sequence[Prompt], readout: Readout) -> list[Observation]:
        """One observation for each prompt, in order."""
        await asyncio.sleep(self._delay_s)
        return [self._observe(prompt, readout.n_logprobs) for prompt in prompts]

    def _observe(self, prompt: Prompt, n: int) -> Observation:
        try:
            distribution = self._script(prompt)
        except Exception as exc:  # noqa: BLE001  a script is the user's code: what it raises is that prompt's failure
            return Observation(error=f"script: {exc}")
        likeliest = sorted(distribution.items(), key=lambda item: (-item[1], item[0]))[:n]
        probabilities = np.array([p for _, p in likeliest])
        return Observation(
            tokens=tuple(token for token, _ in likeliest),
            logprobs=np.log(probabilities).astype(np.float32),
            covered_mass=float(probabilities.sum()),
            mode=Mode.TOPK,
        )

    async def aclose(self) -> None:
        """Nothing is held."""


def seeded_words(seed: int, words: Sequence[str]) -> Script:
    """A script that draws each prompt's distribution over `words` from a generator seeded with the prompt's text."""
    tokens = [f" {word}" for word in words]

    def script(prompt: Prompt) -> Mapping[str, float]:
        rng = np.random.default_rng([seed, zlib.crc32(prompt.text.encode())])
        picked = rng.choice(len(tokens), size=min(128, len(tokens)), replace=False)
        probabilities = rng.dirichlet(np.full(len(picked), 0.3)) * 0.95 + 1e-9
        return {tokens[i]: float(p) for i, p in zip(picked, probabilities, strict=True)}

    return script


async def open_provider(spec: TargetSpec, options: OpenOptions) -> ScriptedProvider:  # noqa: ARG001
    """The scripted target of a TOML file; its options are `seed`, `delay_s`, `max_logprobs`, `batch_size`, `concurrency`."""
    known = {"seed": 0, "delay_s": 0.0, "max_logprobs": None, "batch_size": 64, "concurrency": 4}
    unknown = sorted(set(spec.target.options) - set(known))
    if unknown:
        raise UsageError(f"{spec.found.path}: target {spec.name!r} has the unknown option {unknown[0]!r}")
    settings = known | spec.target.options
    words = sorted({word for name in concept_names() for word in find_concept(name).words})
    return ScriptedProvider(
        seeded_words(settings.pop("seed"), words),
        name=spec.name,
        **settings,
    )
