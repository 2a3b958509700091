"""Tables of signed effects: one row an arm, means and contrasts with intervals clustered by target feature and by sentence.

Every case counts, whichever way it went; nothing is chosen among doses. A contrast compares an arm with a control over the
targets that the arm has (a scarce band has few, and they may differ from the rest) and the sentences that both have.

Owns the arithmetic over cases. How they came about is `intervene`'s matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from harness.stats.crossed import Estimate, Trials, contrast_two_way, mean_two_way
from harness.whitebox.experiments.candidates import NORM_MATCHED, RANDOM, SELF, SIMILARITY_MATCHED

EFFECTS = ("weighted_cosine", "weighted_overlap", "log_odds_shift")
DAMAGE = ("total_variation", "top1_changed")
MEASURES = (*EFFECTS, *DAMAGE)

Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cases:
    """Columns (n,) of a table of effects; `targets` are told apart by site too."""

    arms: NDArray[np.str_]
    targets: NDArray[np.str_]
    sentences: NDArray[np.str_]
    values: Mapping[str, NDArray[np.float64]]

    @classmethod
    def of(cls, effects: pa.Table) -> Cases:
        columns = [np.asarray(effects[name].to_pylist(), np.str_) for name in ("arm", "site", "target", "sentence_id")]
        arms, sites, targets, sentences = columns
        return cls(
            arms=arms,
            targets=np.char.add(np.char.add(sites, ":"), targets),
            sentences=sentences,
            values={name: np.asarray(effects[name].to_pylist(), np.float64) for name in MEASURES},
        )

    def trials(self, rows: NDArray[np.bool_], measure: str) -> Trials:
        """One measure of `rows`; its second cluster is the target."""
        return Trials.of(self.values[measure][rows], self.sentences[rows], self.targets[rows])


def tables(effects: pa.Table) -> dict[str, Any]:
    """`arms`: the rows of all cases; `by_site` and, for several doses, `by_dose`: the same of each part."""
    found: dict[str, Any] = {"arms": arm_rows(effects)}
    for name, column in (("by_site", "site"), ("by_dose", "dose")):
        values = np.asarray(effects[column].to_pylist(), object)
        known = list(dict.fromkeys(values.tolist()))
        found[name] = {str(v): arm_rows(effects.filter(pa.array(values == v))) for v in known} if len(known) > 1 else {}
    return found


def arm_rows(effects: pa.Table) -> list[Row]:
    """One row an arm: arm, n_targets, n_cases, `means` {measure: estimate}, `contrasts` {control: {measure: estimate}}."""
    if not len(effects):
        return []
    cases = Cases.of(effects)
    order = sorted(set(cases.arms.tolist()), key=_order)
    return [_row(cases, arm, order) for arm in order]


def controls_of(arm: str, arms: Sequence[str]) -> tuple[str, ...]:
    """What an arm is compared with, of the `arms` there are; controls are compared with `random` alone."""
    if arm == RANDOM:
        return ()
    if arm.startswith((SIMILARITY_MATCHED, NORM_MATCHED)):
        wanted: tuple[str, ...] = (RANDOM,)
    else:
        wanted = (RANDOM, SIMILARITY_MATCHED, NORM_MATCHED, f"{NORM_MATCHED} {arm}")
    return tuple(control for control in wanted if control in arms)


def _row(cases: Cases, arm: str, arms: Sequence[str]) -> Row:
    rows = cases.arms == arm
    contrasts: dict[str, Any] = {}
    for control in controls_of(arm, arms):
        other = (cases.arms == control) & np.isin(cases.targets, cases.targets[rows])
        contrasts[control] = {
            name: _told(contrast_two_way(cases.trials(rows, name), cases.trials(other, name))) for name in MEASURES
        }
    return {
        "arm": arm,
        "n_targets": len(set(cases.targets[rows].tolist())),
        "n_cases": int(rows.sum()),
        "means": {name: _told(mean_two_way(cases.trials(rows, name))) for name in MEASURES},
        "contrasts": contrasts,
    }


def _told(estimate: Estimate) -> Row:
    return {name: getattr(estimate, name) for name in ("value", "ci_low", "ci_high", "p", "n_dropped", "reason")}


def _order(arm: str) -> tuple[int, float, str]:
    """Self first, bands by what they begin with, then the controls."""
    last = [SIMILARITY_MATCHED, NORM_MATCHED, RANDOM]
    if arm == SELF:
        return 0, 0.0, arm
    kind = arm.partition(" ")[0]
    first = arm.split(" ")[-1].partition("-")[0].lstrip(">")
    number = float(first) if first.replace(".", "").isdigit() else 0.0
    return (2 + last.index(kind) if kind in last else 1), number, arm
