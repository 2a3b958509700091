"""What a user asks of a gate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.config import validate
from harness.errors import UsageError
from harness.evals.budget import Limits
from harness.evals.spec import GateSpec, find_eval
from harness.gate.baseline import Cluster, default_path


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What a user sets in place of the eval's `[gate]`; None leaves what it says. `inconclusive`: fail or pass.
    `max_clusters`: ask, or look at, no more than so many."""

    margin: float | None = None
    alpha: float | None = None
    inconclusive: str | None = None
    max_clusters: int | None = None

    def applied(self, spec: GateSpec) -> GateSpec:
        """The eval's `[gate]` as changed; raises FileFormatError for a number that makes no sense."""
        changes = {key: getattr(self, key) for key in ("margin", "alpha", "inconclusive")}
        changed = {key: value for key, value in changes.items() if value is not None}
        return validate(spec.model_dump() | changed, GateSpec, where="the gate's options") if changed else spec

    def capped(self, clusters: Sequence[Cluster]) -> Sequence[Cluster]:
        """The first `max_clusters` of them."""
        if self.max_clusters is not None and self.max_clusters < 1:
            raise UsageError(f"--max-clusters {self.max_clusters}: must be at least 1")
        return clusters[: self.max_clusters]


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A gate that asks: which eval of which target, against which baseline.

    `baseline` None: reports/baselines/<eval>-<target>.json. `out` None: reports/<run-id>-gate. `resume`: go on with what was
    asked for the same `out` before an interruption; otherwise everything is asked anew, whatever any journal holds. `limits`:
    what it may spend.
    """

    target: str
    eval: str = "regression"
    pack: str | None = None
    baseline: Path | None = None
    rule: Rule = field(default_factory=Rule)
    out: Path | None = None
    resume: bool = False
    limits: Limits = field(default_factory=Limits)

    @property
    def baseline_path(self) -> Path:
        """Where the baseline lies, or is to lie."""
        return self.baseline or default_path(find_eval(self.eval).name, self.target)
