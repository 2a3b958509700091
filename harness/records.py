"""The values that packs, providers, evals and reports hand to each other. Nothing here computes or does I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

Int32s = NDArray[np.int32]
Float32s = NDArray[np.float32]

CLEAN = "clean"
"""The arm of an unmodified sentence."""


class Mode(StrEnum):
    """How much of the next-token distribution an endpoint showed, the most first."""

    EXACT = "exact"  # the lexicon's mass itself
    TOPK = "topk"  # the likeliest tokens: the mass lies within bounds
    AMPLIFIED = "amplified"  # draws with the lexicon's logits raised by a known bias
    SAMPLED = "sampled"  # draws alone

    @property
    def drawn(self) -> bool:
        """Whether the numbers come from random draws, so that they carry sampling error of their own."""
        return self in (Mode.AMPLIFIED, Mode.SAMPLED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sentence:
    """An unfinished sentence; unless `off_type`, a word of its concept must come next."""

    sentence_id: str
    concept: str
    text: str
    off_type: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One injection for one concept and arm.

    `injection` is a tuple of strings joined as they stand (a leading space is part of a string).
    `predicted_shift` is the log-odds shift in nats that the sources predict, None where nothing is predicted.
    """

    concept: str
    arm: str
    injection_id: str
    injection: tuple[str, ...]
    predicted_shift: float | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One prompt of a plan.

    `group` names the injection that the prompt starts with: prompts of one group share a prefix.
    `token_ids` are the exact ids to send, None where the endpoint takes text only.
    """

    prompt_id: str
    concept: str
    arm: str
    sentence_id: str
    injection_id: str
    template: str
    group: str
    text: str
    token_ids: tuple[int, ...] | None = None
    off_type: bool = False
    predicted_shift: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lexicon:
    """A concept's words as one target can say them.

    `token_ids`: ids of the target's vocabulary that belong to the concept, ascending; None where the vocabulary is not
    known, and then tokens are matched by text. `resolved_share` in [0, 1]: the share of words that at least one id spells.
    `digest` changes with the words and with the ids.
    """

    concept: str
    words: frozenset[str]
    token_ids: Int32s | None
    resolved_share: float | None
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Readout:
    """What is read off each distribution: the `n_logprobs` likeliest tokens, and the mass of `lexicon`.

    `mode`: how, one that the endpoint is capable of; None: its best. `n_draws`: how many draws, in the modes that draw.
    `whole_words`: whether mode `sampled` goes on until a first word is complete; else a draw is one token, as it is spelled.
    """

    lexicon: Lexicon
    n_logprobs: int
    mode: Mode | None = None
    n_draws: int = 0
    whole_words: bool = True


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Observation:
    """The next-token distribution that a target gave for one prompt, as far as the endpoint shows it.

    `logprobs` (n,) float32 in nats, highest first, of `token_ids` (n,) int32 or, where no vocabulary is known, of `tokens`
    (n) texts; the other of the two is empty: a text for each id would double the journal.
    `covered_mass`: probability of all tokens that were seen, in [0, 1]; `mass_low`, `mass_high`: bounds of the lexicon's
    mass. `error`: why there is no answer (then the lists are empty and the numbers None). `latency_s`: seconds it took.

    In the modes that draw, `hits` of `n_draws` continuations fell into the lexicon while its logits were raised by `bias`
    nats (0 in mode `sampled`), and `tokens` with `logprobs` are the distinct first words with the logs of their shares.
    """

    token_ids: Int32s | None = None
    tokens: tuple[str, ...] = ()
    logprobs: Float32s = field(default_factory=lambda: np.empty(0, np.float32))
    covered_mass: float | None = None
    mode: Mode | None = None
    mass_low: float | None = None
    mass_high: float | None = None
    hits: int | None = None
    n_draws: int | None = None
    bias: float | None = None
    error: str | None = None
    attempts: int = 1
    latency_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lists:
    """What `Observation`s would say of n prompts whose lists are all of one length, as arrays: an object for each prompt would
    take a tenth of the client's time.

    `token_ids` (n, k) int32 and `logprobs` (n, k) float32, highest first; the others have a value for each prompt.
    """

    token_ids: Int32s
    logprobs: Float32s
    covered_mass: Sequence[float]
    mode: Mode
    attempts: Sequence[int]
    latency_s: Sequence[float]

    def __len__(self) -> int:
        return len(self.covered_mass)

    def observations(self) -> list[Observation]:
        """The same, prompt by prompt."""
        rows = zip(self.token_ids, self.logprobs, self.covered_mass, self.attempts, self.latency_s, strict=True)
        return [
            Observation(token_ids=ids, logprobs=listed, covered_mass=mass, mode=self.mode, attempts=made, latency_s=took)
            for ids, listed, mass, made, took in rows
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What an endpoint was found to do. `max_logprobs` None: no limit found, 0: none are given.

    `modes`: what is possible, the best first, `mode` its first. `chosen_ids`: how many ids of one's own choice a
    request may ask the log-probabilities of. `bias_ids`: how many ids `logit_bias` takes. `findings`: what
    `harness targets check` prints, the answer to each question by its name.
    """

    token_ids: bool
    max_logprobs: int | None
    mode: Mode
    max_prompts_per_request: int
    modes: tuple[Mode, ...] = ()
    chosen_ids: int = 0
    bias_ids: int = 0
    findings: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def able(self) -> tuple[Mode, ...]:
        """The modes that a run may take, the best first."""
        return self.modes or (self.mode,)


@dataclass(slots=True, kw_only=True)
class Usage:
    """What an endpoint was asked for, as far as its answers count it: requests sent, tokens read and written.

    `told` is False as long as no answer has counted its tokens, `counted` is the number of those that have. `refused`: requests
    that an HTTP status turned away. `batch_*`: what batch jobs took beside that, at their price.
    """

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    told: bool = False
    counted: int = 0
    refused: int = 0
    batch_input_tokens: int = 0
    batch_output_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetInfo:
    """Who answers: recorded in the manifest and part of every journal key. No secret stands here.

    `endpoint`: the endpoint's name and address; `model`, `revision`: as the endpoint reports them; `settings`: what else
    changes an answer (dtype, weights digest, server version); `tokenizer_digest`: sha256 of the tokenizer, None if unknown.
    """

    target: str
    endpoint: str
    model: str
    revision: str | None
    tokenizer_digest: str | None
    settings: Mapping[str, Any]
    capabilities: Capabilities
