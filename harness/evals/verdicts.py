"""What a run's contrasts come to: a verdict for each, whether the run can be believed, and the answer in one sentence.

Owns the rules alone. They read and fill in the summary's own rows and nothing else, so that a verdict can be given anew where a
p-value is corrected later (`across_targets`); words stand in `telling`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from scipy.stats import binom

from harness.evals import telling
from harness.evals.measures import ALL
from harness.evals.spec import CHECKS, Check, Contrast, EvalSpec
from harness.stats.multiplicity import benjamini_yekutieli, holm

Verdict = Literal["transfers", "no evidence", "reversed", "undetermined"]
Row = dict[str, Any]
"""A row of `contrasts`, or the entry `verdict`, of `summary.json`."""

NO_MARGIN = "not found, and no margin says which shift would matter"
NO_CHECK = "the eval declares none whose arms this run has"


def correct(contrasts: Sequence[Row]) -> None:
    """Fill in `p_holm` and `p_by` over the concepts of one contrast and metric; the row over all is a family of its own."""
    families: dict[tuple[Any, ...], list[Row]] = {}
    for row in contrasts:
        families.setdefault((row["arm"], row["control"], row["metric"], row["concept"] == ALL), []).append(row)
    for family in families.values():
        p = [row["p"] for row in family]
        for row, p_holm, p_by in zip(family, holm(p), benjamini_yekutieli(p), strict=True):
            row["p_holm"], row["p_by"] = p_holm, p_by


def judge(row: Row, *, alpha: float, power: float) -> None:
    """Fill in `within_margin`, `verdict` and `verdict_reason` from the row's corrected p, interval, `mde` and `margin`.

    A row that is found is judged by its sign. One that is not is `no evidence` where a shift as large as the margin would
    have been found with `power`, or where the interval excludes such a shift anyway; else `undetermined`.
    """
    margin, mde, p = row["margin"], row["mde"], row["p_holm"] if row["concept"] == ALL else row["p_by"]
    known = row["ci_low"] is not None
    row["within_margin"] = None if margin is None or not known else -margin < row["ci_low"] and row["ci_high"] < margin
    verdict: Verdict = "undetermined"
    reason = None
    if p is None or not known:
        reason = row["reason"]
    elif p <= alpha:
        verdict = "transfers" if row["estimate"] > 0 else "reversed"
    elif margin is None:
        reason = NO_MARGIN
    elif mde <= margin or row["within_margin"]:
        verdict = "no evidence"
    else:
        reason = telling.too_small(row["metric"], mde=mde, margin=margin, power=power)
    row["verdict"], row["verdict_reason"] = verdict, reason


def calibrate(contrasts: Sequence[Row], chosen: Mapping[Check, Contrast], *, metric: str, alpha: float) -> list[Row]:
    """The outcome of both checks, in `metric`.

    detected: passed if the contrast is found towards the concept. silent: failed if it is found towards the concept, or if
    so many of its concepts are found, either way and uncorrected, as chance gives in less than `alpha` of all runs (upper
    tail of the binomial distribution, concepts taken as independent).
    """
    return [_checked(check, contrasts, chosen.get(check), metric, alpha) for check in CHECKS]


def _checked(check: Check, contrasts: Sequence[Row], contrast: Contrast | None, metric: str, alpha: float) -> Row:
    result: Row = {
        "check": check,
        "arm": contrast.arm if contrast else None,
        "control": contrast.control if contrast else None,
        "status": "not possible",
        **dict.fromkeys(("estimate", "ci_low", "ci_high", "p", "share", "n_found", "n_concepts")),
        "reason": NO_CHECK,
    }
    if contrast is None:
        return result
    rows = [row for row in contrasts if _named(row, contrast.arm, contrast.control, metric)]
    claim = _claim(rows)
    if claim is None or claim["p"] is None:
        return result | {"reason": claim["reason"] if claim else "no trials"}
    p_of_concepts = [row["p"] for row in rows if row["concept"] != ALL and row["p"] is not None]
    n_found = sum(p <= alpha for p in p_of_concepts)
    result |= {name: claim[name] for name in ("estimate", "ci_low", "ci_high", "p")}
    result |= {"share": n_found / len(p_of_concepts), "n_found": n_found, "n_concepts": len(p_of_concepts)}
    found = claim["p"] <= alpha and claim["estimate"] > 0
    if check == "detected":
        reason = None if found else "not found"
    elif found:
        reason = "found"
    else:
        too_many = len(p_of_concepts) > 1 and binom.sf(n_found - 1, len(p_of_concepts), alpha) < alpha
        reason = f"found in {n_found} of {len(p_of_concepts)} concepts" if too_many else None
    return result | {"status": "failed" if reason else "passed", "reason": reason}


def settle(summary: Row, spec: EvalSpec, chosen: Mapping[Check, Contrast]) -> None:
    """Judge every contrast of `summary` and fill in its `verdict`."""
    for row in summary["contrasts"]:
        judge(row, alpha=spec.alpha, power=spec.power)
    primary = summary["primary"]
    metric = primary["metric"] if primary else None
    summary["verdict"] = {
        "alpha": spec.alpha,
        "power": spec.power,
        "margin": primary["margin"] if primary else None,
        "n_targets": 1,
        "calibration": calibrate(summary["contrasts"], chosen, metric=metric, alpha=spec.alpha) if metric else [],
    }
    _conclude(summary)


def across_targets(summaries: Sequence[Row]) -> None:
    """Correct the claims of several targets, run by one command, by Holm over the targets, and give their verdicts anew."""
    claims = [_claim(primary_rows(summary)) for summary in summaries]
    for summary, claim, p in zip(summaries, claims, holm([c["p"] if c else None for c in claims]), strict=True):
        summary["verdict"]["n_targets"] = len(summaries)
        if claim is None:
            continue
        claim["p_holm"] = p
        if claim["concept"] != ALL:
            claim["p_by"] = p
        judge(claim, alpha=summary["verdict"]["alpha"], power=summary["verdict"]["power"])
        _conclude(summary)


def _conclude(summary: Row) -> None:
    """Withhold the primary contrast's verdicts where a check failed, and fill in the run's own."""
    result = summary["verdict"]
    rows = primary_rows(summary)
    claim = _claim(rows)
    result |= {"verdict": "undetermined", "reason": None, "withheld": None, "mde": claim["mde"] if claim else None}
    if claim is None:
        result["reason"] = "no primary contrast" if summary["primary"] is None else "no trials"
    else:
        result |= {"verdict": claim["verdict"], "reason": claim["verdict_reason"]}
    failed = next((check for check in result["calibration"] if check["status"] == "failed"), None)
    if failed is not None and claim is not None:
        reason = telling.failure(failed, metric=claim["metric"])
        result |= {"verdict": "undetermined", "reason": reason, "withheld": claim["verdict"]}
        for row in rows:
            row["verdict"], row["verdict_reason"] = "undetermined", reason
    result["sentence"] = telling.sentence(result, claim, rows)


def primary_rows(summary: Mapping[str, Any]) -> list[Row]:
    """The primary contrast's row of each concept and over all."""
    primary = summary["primary"]
    if primary is None:
        return []
    return [r for r in summary["contrasts"] if _named(r, primary["arm"], primary["control"], primary["metric"])]


def _claim(rows: Sequence[Row]) -> Row | None:
    """The row that speaks for the run: over all concepts, or of its only one."""
    of_concepts = [row for row in rows if row["concept"] != ALL]
    return of_concepts[0] if len(of_concepts) == 1 else next((row for row in rows if row["concept"] == ALL), None)


def _named(row: Mapping[str, Any], arm: str, control: str, metric: str) -> bool:
    return (row["arm"], row["control"], row["metric"]) == (arm, control, metric)
