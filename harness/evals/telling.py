"""A run's verdict in words, for a reader who has not read the paper. Owns the sentences; the rules are `verdicts`'."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from harness.evals.measures import ALL, MEASURES, interval, number

Row = Mapping[str, Any]

ARMS = {
    "self": "the concept's own words",
    "high": "words that interfere with the concept",
    "low": "words that interfere little with it",
    "random": "random words",
    "matched": "control words alike in length and frequency",
    "shuffled": "words that interfere with another concept",
    "related": "words near the concept in meaning",
}
"""An arm as a noun phrase in the plural."""


def amount(value: float, metric: str, *, signed: bool = False) -> str:
    """A difference in its metric's unit: `+0.27 nat`, `1.2 points`."""
    measure = MEASURES[metric]
    return f"{number(value * measure.scale, measure.decimals, signed=signed)} {measure.difference}"


def with_interval(row: Row, metric: str) -> str:
    """`+0.27 nat [0.17, 0.37]`."""
    return f"{amount(row['estimate'], metric, signed=True)} {interval(row, MEASURES[metric])}"


def too_small(metric: str, *, mde: float, margin: float, power: float) -> str:
    """Why a run that found nothing says nothing."""
    seen, wanted = amount(mde, metric), amount(margin, metric)
    return f"the run is too small: with {power:.0%} power it sees shifts from {seen} on, and {wanted} would matter"


def failure(check: Row, *, metric: str) -> str:
    """What a failed check says of the run."""
    arm, control = ARMS[check["arm"]], ARMS[check["control"]]
    if check["check"] == "detected":
        missed = "the run does not see what it must see"
        return f"{missed}: {arm} against {control} are not found ({with_interval(check, metric)})"
    where = with_interval(check, metric)
    if check["reason"] != "found":
        where = f"in {check['n_found']} of {check['n_concepts']} concepts, far more often than by chance"
    return f"{arm}, which should not, move it too: {where}"


def sentence(result: Row, claim: Row | None, rows: Sequence[Row]) -> str:
    """The answer. `result`: the run's verdict; `claim`: the row it is read from; `rows`: all those of its contrast."""
    if claim is None:
        return f"undetermined: {result['reason']}"
    if result["withheld"] is not None and claim["ci_low"] is not None:
        found = _finding(result["withheld"], claim, rows, brief=True)
        return f"undetermined, the verdict is withheld: {found}; but {result['reason']}"
    if result["verdict"] == "undetermined" and claim["ci_low"] is None:
        return f"undetermined: {ARMS[claim['arm']]} against {ARMS[claim['control']]}: {result['reason']}"
    finding = f"{result['verdict']}: {_finding(result['verdict'], claim, rows)}"
    if result["verdict"] == "undetermined":
        return f"{finding}; {result['reason']}"
    if result["verdict"] == "no evidence":
        return f"{finding}; {_ruled_out(claim, result['power'])}"
    return f"{finding}{', less than would matter' if claim['within_margin'] else ''}"


def _finding(verdict: str, claim: Row, rows: Sequence[Row], *, brief: bool = False) -> str:
    """What was measured, in a clause; `brief` leaves out the control and the odds."""
    arm, control, metric = ARMS[claim["arm"]], ARMS[claim["control"]], claim["metric"]
    where = f"on {claim['concept']} alone"
    if claim["concept"] == ALL:
        where = f"over {sum(row['estimate'] is not None for row in rows if row['concept'] != ALL)} concepts"
    size = f"{with_interval(claim, metric)} {where}{_identified(claim)}"
    if brief and verdict in ("transfers", "reversed"):
        return f"{arm} move the next word {'towards' if verdict == 'transfers' else 'away from'} it: {size}"
    if metric == "delta_log_odds" and verdict in ("transfers", "reversed"):
        size = f"{size} (odds times {math.exp(claim['estimate']):.2f})"
    if verdict == "transfers":
        return f"{arm} move the next word towards it more than {control} do: {size}"
    if verdict == "reversed":
        return f"{arm} move the next word away from it, against {control}: {size}"
    return f"{arm} are not seen to move the next word otherwise than {control} do: {size}"


def _identified(claim: Row) -> str:
    """How far the estimate is known where the target listed too little to decide it; empty where that is not seen."""
    low, high = (amount(claim[end], claim["metric"], signed=True) for end in ("estimate_low", "estimate_high"))
    return "" if low == high else f" (the listed tokens leave it between {low} and {high})"


def _ruled_out(claim: Row, power: float) -> str:
    margin = amount(claim["margin"], claim["metric"])
    if claim["within_margin"]:
        return f"no shift as large as {margin}, in either direction"
    return f"a shift of {amount(claim['mde'], claim['metric'])} would have been seen with {power:.0%} power"
