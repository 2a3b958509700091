"""The provider seam: one verb, next-token distributions for a batch of prompts.

Owns the protocol. Wire formats, engines and transports stand in their own files; who is called what, in `registry`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from harness.providers.vocabulary import Vocabulary
from harness.records import Lists, Observation, Prompt, Readout, TargetInfo, Usage


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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fetched:
    """What came back for some prompts and is not read yet, but for whether it is an answer at all.

    `raw` is its provider's own; `entries`: list entries in it.
    """

    raw: Any
    entries: int
    attempts: int
    latency_s: float


@runtime_checkable
class Deferring(Protocol):
    """A provider whose answers can be read later, many at once: what it costs to check a list is mostly the same for one list
    and for hundreds."""

    async def fetch(self, prompts: Sequence[Prompt], readout: Readout) -> Fetched | list[Observation]:
        """As `observe`, with the answers unread where they can be."""
        ...

    def read(self, fetched: Sequence[Fetched]) -> list[Lists | list[Observation]]:
        """What all of them say, in order, cut anyhow. A list that cannot be used is an observation with `error`, and may be
        asked for again."""
        ...
