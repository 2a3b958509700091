"""The provider seam: one verb, next-token distributions for a batch of prompts.

Owns the protocol. Wire formats, engines and transports stand in their own files; who is called what, in `registry`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from harness.providers.vocabulary import Vocabulary
from harness.records import Observation, Prompt, Readout, TargetInfo, Usage


class Provider(Protocol):
    """A target that answers.

    `info` says who answers and what it can do; it was found out by asking when the provider was opened.
    `vocabulary` is None where the target's tokenizer is not known. The runner keeps at most `concurrency` calls of
    `observe` under way and hands each at most `batch_size` prompts; prompts of one `group` come together. `usage` counts what
    was asked of an endpoint that bills; None where nothing is billed.
    """

    info: TargetInfo
    usage: Usage | None
    vocabulary: Vocabulary | None
    batch_size: int
    concurrency: int

    async def observe(self, prompts: Sequence[Prompt], readout: Readout) -> list[Observation]:
        """One observation for each prompt, in order. A prompt that failed is an observation with `error` set.

        Raises UnreachableError only when the endpoint is gone for good, so that asking on makes no sense.
        """
        ...

    async def aclose(self) -> None:
        """Give back what the provider holds (connections, weights)."""
        ...
