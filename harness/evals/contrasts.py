"""One arm against another: an estimate, its interval and its permutation p, of each concept and over all.

Owns which trials meet which: sentences are shared by all arms, an injection and the control that was matched to it are one
pair. The formulas stand in `harness.stats`, what the rows come to in `verdicts`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.evals.measures import ALL
from harness.evals.score import Columns
from harness.evals.spec import METRICS, Contrast, Primary
from harness.records import Mode, Probe
from harness.stats.crossed import (
    NO_TRIALS,
    Estimate,
    Trials,
    contrast_two_way,
    mean_of_concepts,
    on_common_sentences,
    paired_differences,
)
from harness.stats.permutation import N_PERMUTATIONS, block_permutation_p, label_permutation_p

BOUNDED = {"delta_mass", "delta_log_odds"}

N_SECONDARY = 1999
"""Rearrangements drawn for contrasts other than the primary one, of which a run has many."""

MIXED = "mixed"
"""The mode of a mean over concepts that were not all observed alike; `modes` of the summary says which was how."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ArmTrials:
    """The n trials of one concept and arm.

    `sentences` (n,): codes that the concept's arms share; `injections` (n,): codes of this arm's own, places in `names`.
    `matched_to`: by place, the injection of another arm that this one is the control of, None if there is none.
    """

    columns: Columns
    sentences: NDArray[np.intp]
    injections: NDArray[np.intp]
    names: tuple[str, ...]
    matched_to: tuple[str | None, ...]

    @classmethod
    def of(cls, columns: Columns, sentences: NDArray[np.intp], probes: Iterable[Probe]) -> ArmTrials:
        """`columns` as scored, with the `probes` that the injections were taken from."""
        names, injections = np.unique(columns["injection_id"], return_inverse=True)
        partner = {probe.injection_id: probe.provenance.get("matched_to") for probe in probes}
        return cls(
            columns=columns,
            sentences=sentences,
            injections=injections,
            names=tuple(map(str, names)),
            matched_to=tuple(partner.get(str(name)) for name in names),
        )

    def __len__(self) -> int:
        return len(self.sentences)

    def trials(self, metric: str) -> Trials:
        """The values of `metric`, within their bounds where it has any."""
        ends = [self.columns[f"{metric}_{end}" if metric in BOUNDED else metric] for end in ("low", "high")]
        return Trials(
            low=ends[0].astype(np.float64),
            high=ends[1].astype(np.float64),
            sentences=self.sentences,
            injections=self.injections,
        )


def partners(arm: ArmTrials, control: ArmTrials) -> tuple[NDArray[np.intp], bool]:
    """By place of `control`, the code of its partner in `arm`, else a code that no injection of `arm` has; and whether all
    injections of the smaller of the two have a partner."""
    codes = np.arange(len(control.names)) + len(arm.names)
    place = {name: i for i, name in enumerate(arm.names)}
    for i, name in enumerate(control.matched_to):
        codes[i] = place.get(name or "", codes[i])
    place = {name: i for i, name in enumerate(control.names)}
    for i, name in enumerate(arm.matched_to):
        if name in place:
            codes[place[name]] = i
    n_pairs = int((np.unique(codes) < len(arm.names)).sum())
    return codes, 0 < n_pairs == min(len(arm.names), len(control.names))


@dataclass(slots=True, kw_only=True)
class Contrasts:
    """Takes concept after concept (`add`), then gives all rows (`rows`).

    A permutation p is given in `primary`'s metric alone, which the verdicts are in; there is none of fresh injections, which
    meet one sentence each. `alpha`, `power`: those of the smallest effect that a row could have shown.
    """

    declared: Sequence[Contrast]
    primary: Primary | None
    alpha: float
    power: float
    seed: int
    permuted: bool
    _rows: list[dict[str, Any]] = field(default_factory=list)
    _pairs: dict[Contrast, list[tuple[Trials, Trials, bool]]] = field(default_factory=dict)

    def add(self, concept: str, arms: Mapping[str, ArmTrials], mode: Mode) -> None:
        """Work out the rows of one concept."""
        trials = {(arm, metric): arms[arm].trials(metric) for arm in arms for metric in METRICS}
        for contrast in self.declared:
            codes, paired = partners(arms[contrast.arm], arms[contrast.control])
            for metric in METRICS:
                arm, control = trials[contrast.arm, metric], trials[contrast.control, metric]
                control = replace(control, injections=codes[control.injections])
                row = self._row((concept, contrast, metric), contrast_two_way(arm, control), mode)
                if row["margin"] is not None:
                    row["median"] = estimate_row(_median_difference(arm, control))
                if self._permuted(metric) and row["estimate"] is not None:
                    self._pairs.setdefault(contrast, []).append((arm, control, paired))
                    row["p_permutation"] = self._permutation_p(contrast, self._pairs[contrast][-1:])
                self._rows.append(row)

    def rows(self) -> list[dict[str, Any]]:
        """Every concept's rows, then those over all concepts."""
        groups: dict[tuple[Contrast, str], list[dict[str, Any]]] = {}
        for row in self._rows:
            groups.setdefault((Contrast(arm=row["arm"], control=row["control"]), row["metric"]), []).append(row)
        overall = []
        for (contrast, metric), parts in groups.items():
            estimate = over_concepts(parts)
            row = self._row((ALL, contrast, metric), estimate, one_or_mixed(part["mode"] for part in parts))
            if row["margin"] is not None:
                row["median"] = estimate_row(over_concepts([part["median"] for part in parts]))
            row |= {name: sum(part[name] or 0 for part in parts) for name in ("n_sentences", "n_injections")}
            if self._permuted(metric) and contrast in self._pairs:
                row["p_permutation"] = self._permutation_p(contrast, self._pairs[contrast])
            overall.append(row)
        return [*self._rows, *overall]

    def _permuted(self, metric: str) -> bool:
        return self.permuted and self.primary is not None and metric == self.primary.metric

    def _permutation_p(self, contrast: Contrast, concepts: Sequence[tuple[Trials, Trials, bool]]) -> float | None:
        """p over `concepts`, pair by pair where all of them are paired, else by the injections' labels."""
        n = N_PERMUTATIONS if self._is_primary(contrast) else N_SECONDARY
        if all(paired for _, _, paired in concepts):
            return block_permutation_p([paired_differences(arm, control) for arm, control, _ in concepts], seed=self.seed, n=n)
        return label_permutation_p([(arm, control) for arm, control, _ in concepts], seed=self.seed, n=n)

    def _is_primary(self, contrast: Contrast) -> bool:
        return self.primary is not None and (self.primary.arm, self.primary.control) == (contrast.arm, contrast.control)

    def _row(self, name: tuple[str, Contrast, str], estimate: Estimate, mode: str) -> dict[str, Any]:
        """A row without what `verdicts` fills in."""
        concept, contrast, metric = name
        claimed = self.primary if self.primary and self._is_primary(contrast) and metric == self.primary.metric else None
        return {
            **{"concept": concept, "arm": contrast.arm, "control": contrast.control, "metric": metric, "mode": mode},
            **estimate_row(estimate),
            **{"se": estimate.se, "df": estimate.df, "p": estimate.p},
            **dict.fromkeys(("p_holm", "p_by", "p_permutation")),
            **{"n_sentences": estimate.n_sentences, "n_injections": estimate.n_injections},
            "mde": estimate.smallest_effect(self.alpha, self.power),
            "margin": claimed.margin if claimed else None,
            **dict.fromkeys(("within_margin", "verdict", "verdict_reason", "median")),
        }


def _median_difference(arm: Trials, control: Trials) -> Estimate:
    """The arm's median less the control's, over the trials of the sentences that both have: what a few wild trials do not move.

    One concept's has no interval here; over concepts their mean has the usual one, with the concept as unit.
    """
    used = on_common_sentences((arm.complete(), control.complete()))
    n_trials = sum(map(len, used))
    if not all(map(len, used)):
        return Estimate(n_trials=n_trials, reason=NO_TRIALS)
    low = float(np.median(used[0].low) - np.median(used[1].high))
    high = float(np.median(used[0].high) - np.median(used[1].low))
    if not np.isfinite([low, high]).all():
        return Estimate(n_trials=n_trials, reason="the median is not bounded")
    return Estimate(n_trials=n_trials, value=(low + high) / 2, value_low=low, value_high=high)


def over_concepts(parts: Sequence[Mapping[str, Any]]) -> Estimate:
    """The mean over concepts of the same estimate, from the ends of its bounds."""
    return mean_of_concepts([part["estimate_low"] for part in parts], high=[part["estimate_high"] for part in parts])


def one_or_mixed(modes: Iterable[str]) -> str:
    """The mode that all have in common, else `MIXED`."""
    different = set(modes)
    return different.pop() if len(different) == 1 else MIXED


def estimate_row(estimate: Estimate) -> dict[str, Any]:
    """The part of an estimate that cells and contrasts share."""
    return {
        "estimate": estimate.value,
        "estimate_low": estimate.value_low,
        "estimate_high": estimate.value_high,
        "ci_low": estimate.ci_low,
        "ci_high": estimate.ci_high,
        "reason": estimate.reason,
    }
