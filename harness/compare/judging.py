"""The one answer, from all that was found, and the sentence that says it to someone who has read nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.compare.diagnosis import Evidence, diagnose
from harness.compare.ladder import load_ladder
from harness.compare.result import Check, CompareResult, Decision, Diagnosis, Identity, Rung, ScoreDifference
from harness.compare.sentinels import Sentinel
from harness.compare.weighing import Weighed

MAX_FAILED = 0.05
"""Share of failed answers above which nothing is called equivalent: what fails may be what differs."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Material:
    """All that was found. `a`, `b`: who they are, as `CompareResult` tells it; `score` None where none was wanted;
    `failed_share`: of what was asked, on the side and in the part where it is largest."""

    a: dict[str, Any]
    b: dict[str, Any]
    checks: Sequence[Check]
    score: ScoreDifference | None
    sentinels: Sequence[Sentinel]
    weighed: Weighed
    n_requests: int
    failed_share: float = 0.0
    unseen: list[str] = field(default_factory=list)


def conclude(found: Material) -> CompareResult:
    """The verdict, its sentence, and the causes that fit."""
    identity, score = found.weighed.compared.identity, found.score
    checks = [*found.checks, *found.weighed.checks]
    rungs = load_ladder().rungs(identity.statistic)
    decision = overall(identity, score, checks, failed_share=found.failed_share)
    diagnoses = diagnose(Evidence(checks=checks, sentinels=found.sentinels, weighed=found.weighed, rungs=rungs))
    unseen = list(found.unseen)
    if score is None:
        unseen.insert(0, "the score: it was left out")
    elif score.estimate is None:
        unseen.insert(0, f"the score: {score.reason}")
    if identity.estimate is None:
        unseen.append(f"the distributions: {identity.reason}")
    unseen += [f"{one}: it lies within the margin" for one in _too_near(identity, rungs)]
    return CompareResult(
        decision=decision,
        reason=sentence(decision, (identity, score), checks, diagnoses, failed_share=found.failed_share),
        a=found.a,
        b=found.b,
        checks=checks,
        noise_a=found.weighed.noises[0],
        noise_b=found.weighed.noises[1],
        score=score,
        identity=identity,
        n_requests=found.n_requests,
        diagnoses=diagnoses,
        prompts=found.weighed.compared.prompts,
        rungs=rungs,
        unseen=[*unseen, *found.weighed.unseen],
    )


def _too_near(identity: Identity, rungs: Sequence[Rung]) -> list[str]:
    """The material variants of the ladder that "equivalent" does not rule out."""
    if identity.decision != "equivalent":
        return []
    return [f"{rung.variant} ({rung.model})" for rung in rungs if rung.kind == "material" and rung.distance < identity.margin]


def overall(identity: Identity, score: ScoreDifference | None, checks: Sequence[Check], *, failed_share: float) -> Decision:
    """Different if either is; equivalent if all that could be seen is, no check that weighs differs and few answers failed."""
    seen = [one.decision for one in (identity, score) if one is not None and one.estimate is not None]
    if "different" in seen:
        return "different"
    weighing = any(one.weighs and one.agreement == "differs" for one in checks)
    if not seen or weighing or failed_share > MAX_FAILED:
        return "inconclusive"
    return "equivalent" if set(seen) == {"equivalent"} else "inconclusive"


def sentence(
    decision: Decision,
    parts: tuple[Identity, ScoreDifference | None],
    checks: Sequence[Check],
    diagnoses: Sequence[Diagnosis],
    *,
    failed_share: float,
) -> str:
    """The answer with the numbers that decided it."""
    identity, score = parts
    told = " ".join(text for text in (_of_score(score), _of_identity(identity)) if text)
    differing = [one.name for one in checks if one.weighs and one.agreement == "differs"]
    if decision == "equivalent":
        return f"The same model, served alike, as far as this can tell. {told}".strip()
    if decision == "different":
        cause = f" Likeliest cause: {diagnoses[0].cause}." if diagnoses else " No cause was found that fits."
        return f"Not the same model, or not served alike. {told}{cause}".strip()
    why = []
    if failed_share > MAX_FAILED:
        why.append(f"{failed_share:.0%} of the answers failed")
    if differing:
        why.append(f"{' and '.join(differing)} differ")
    if not why and not told:
        why.append("nothing could be compared")
    because = f" ({'; '.join(why)})" if why else ""
    more = "" if why else " More --prompts, --limit or --draws narrow what is too wide."
    return f"It cannot be said whether this is the same model, served alike{because}. {told}{more}".strip()


def _of_score(score: ScoreDifference | None) -> str:
    if score is None or score.estimate is None:
        return ""
    between = "" if score.ci_low is None else f", {score.ci_low:+.3g} to {score.ci_high:+.3g}"
    return f"The score differs by {score.estimate:+.3g} {score.unit}{between} (margin {score.margin:g})."


def _of_identity(identity: Identity) -> str:
    if identity.estimate is None:
        return ""
    if identity.ci_high is None or identity.estimate > 0:
        between = "" if identity.ci_low is None else f", {identity.ci_low:.3g} to {identity.ci_high:.3g}"
        apart = f"{identity.estimate:.3g} {identity.unit} apart beyond their own noise{between}"
    else:
        apart = f"no farther apart than their own noise, at most {max(identity.ci_high, 0):.3g} {identity.unit} more"
    return f"The next-token distributions lie {apart} (margin {identity.margin:.3g})."
