"""What a gate found: the record behind `gate.json`, the report page, JUnit, Markdown and annotations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Decision = Literal["pass", "fail", "inconclusive", "incomplete"]
Method = Literal["two-way", "anytime"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A mean difference, run minus baseline, with its interval; None where the data cannot say, `reason` says why.

    `n_units`: pairs of the same prompt in both; `n_clusters`: independent groups of them.
    """

    estimate: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    n_units: int = 0
    n_clusters: int = 0
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """The score after so many clusters: a point of the sequential figure."""

    n_clusters: int
    estimate: float
    ci_low: float
    ci_high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """One of the prompts that moved most. `baseline`, `run`: the metric's values."""

    concept: str
    arm: str
    prompt: str
    baseline: float
    run: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A property in which run and baseline are not alike, such as the model's revision. It decides nothing."""

    key: str
    baseline: str
    run: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult:
    """The whole answer. `reason`: one sentence for a reader who has not read the paper.

    `margin`: the largest loss that passes, in the metric's unit; `alpha`: how often an unchanged target may fail. `n_cap`: the
    clusters there are at most. `baseline`, `run`: name, target, model, revision, run id, harness version, created. `folder`:
    where the answer is written.
    """

    decision: Decision
    exit_code: int
    reason: str
    metric: str
    unit: str
    arm: str | None
    control: str | None
    margin: float
    alpha: float
    method: Method
    score: Score
    n_cap: int
    n_planned: int
    n_failed: int
    max_failed_share: float
    n_requests: int
    failures: dict[str, int] = field(default_factory=dict)
    looks: list[Look] = field(default_factory=list)
    concepts: dict[str, Score] = field(default_factory=dict)
    units: list[Unit] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    baseline: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    folder: str | None = None
