"""What a comparison found: the record behind `compare.json` and the report page."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Decision = Literal["equivalent", "different", "inconclusive"]
Agreement = Literal["same", "differs", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A hard check, without statistics: a property of both sides. `note`: what it means where it differs or is not known.

    `weighs`: where it differs, the two are not called equivalent, however alike what was measured is.
    """

    name: str
    a: str
    b: str
    agreement: Agreement
    note: str = ""
    weighs: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """How far one endpoint is from itself, over repeats of the same prompt. Distances as in `Identity`, unit in `unit`.

    None where it was not or could not be repeated; `reason` says why.
    """

    n_prompts: int = 0
    n_repeats: int = 0
    mean: float | None = None
    highest: float | None = None
    flip_share: float | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreDifference:
    """The paired difference, A minus B, of the harness's own score; `margin`: within which it counts as none."""

    metric: str
    arm: str
    control: str | None
    unit: str
    margin: float
    decision: Decision
    estimate: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    n_trials: int = 0
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Whether both give the same next-token distributions.

    `statistic`: `centred log-probabilities`, `share against probability`, `first tokens` or `continuations`, by what the two
    sides show. `estimate`: the mean distance over prompts above what the endpoints' own noise explains, in `unit`, with a
    bootstrap interval over prompts. `margin`: the distance up to which benign variation reaches, by the ladder named in
    `margin_from`. `p`: of no difference at all, within-prompt permutation; it decides nothing. `tv_low`, `tv_high`: the mean
    bounds of the total variation, in [0, 1]; `kl_low`: of the least divergence KL(A||B), in nat. `flip_share`: prompts whose
    likeliest token differs.
    """

    statistic: str
    unit: str
    margin: float
    margin_from: str
    decision: Decision
    estimate: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    p: float | None = None
    n_prompts: int = 0
    n_near_ties: int = 0
    tv_low: float | None = None
    tv_high: float | None = None
    kl_low: float | None = None
    flip_share: float | None = None
    near_tie_flip_share: float | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptDistance:
    """One sentinel prompt. `top_a`, `top_b`: the likeliest tokens."""

    prompt: str
    distance: float
    near_tie: bool
    top_a: str
    top_b: str
    tv_low: float | None = None
    tv_high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """A cause that fits, and what speaks for it. `strength`: 0 to 1, for the order only."""

    cause: str
    evidence: str
    strength: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """A known variant of the ladder: how far it lies from its reference, beside this comparison's distance."""

    variant: str
    model: str
    kind: Literal["benign", "material"]
    distance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareResult:
    """The whole answer. `reason`: one sentence for a reader who has not read the paper. `unseen`: what could not be compared,
    and why. `a`, `b`: name, endpoint, model, revision, mode, run id."""

    decision: Decision
    reason: str
    a: dict[str, Any]
    b: dict[str, Any]
    checks: list[Check]
    noise_a: Noise
    noise_b: Noise
    score: ScoreDifference | None
    identity: Identity | None
    n_requests: int
    diagnoses: list[Diagnosis] = field(default_factory=list)
    prompts: list[PromptDistance] = field(default_factory=list)
    rungs: list[Rung] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
