"""From trials to the summary: cells, contrasts and the prediction, concept by concept, then over concepts.

Owns which means are taken of what; the formulas stand in `harness.stats`. Holds the trials of one concept at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.evals.plan import Plan
from harness.evals.score import Columns
from harness.evals.spec import METRICS
from harness.records import Mode
from harness.stats.crossed import Estimate, Trials, contrast_two_way, mean_of_concepts, mean_two_way
from harness.stats.multiplicity import holm
from harness.stats.rank import spearman

ALL = "all"
"""The name under which results over all concepts stand."""

BOUNDED = {"delta_mass", "delta_log_odds"}
SHARES = {"count_success", "mass_success"}
COUNTS = ("n_sentences", "n_injections", "n_trials", "n_failed", "n_up", "n_down", "n_unidentified")

NO_RANKS = "draws have no ranks"

MIXED = "mixed"
"""The mode of a mean over concepts that were not all observed alike; `modes` of the summary says which was how."""


@dataclass(slots=True)
class Analysis:
    """Takes scored batches in the plan's order (`add`, and `close_concept` after each concept); `summary` ends it.

    `modes`: how each concept was observed; one that is not named, as the run was.
    """

    plan: Plan
    target: str
    modes: Mapping[str, Mode] = field(default_factory=dict)
    _columns: list[Columns] = field(default_factory=list)
    _cells: list[dict[str, Any]] = field(default_factory=list)
    _contrasts: list[dict[str, Any]] = field(default_factory=list)
    _predicted: list[float] = field(default_factory=list)
    _observed: list[float] = field(default_factory=list)

    def add(self, trials: Columns) -> None:
        """The trials of one batch; only what the means need is kept."""
        names = ("arm", "sentence_id", "injection_id", "off_type", "predicted_shift", "identified", *METRICS)
        bounds = (f"{metric}_{end}" for metric in METRICS if metric in BOUNDED for end in ("low", "high"))
        self._columns.append({name: np.asarray(trials[name]) for name in (*names, *bounds)})

    def close_concept(self, concept: str) -> None:
        """Work out the concept's cells and contrasts and let its trials go."""
        if not self._columns:
            return
        merged = {name: np.concatenate([part[name] for part in self._columns]) for name in self._columns[0]}
        self._columns.clear()
        for off_type in sorted({bool(flag) for flag in merged["off_type"]}):
            kind = merged["off_type"] == off_type
            arms = {arm: _rows(merged, kind & (merged["arm"] == arm)) for arm in self.plan.arms}
            self._cells += [self._cell(concept, arm, rows, off_type) for arm, rows in arms.items() if len(rows["arm"])]
            if not off_type:
                self._contrast_concept(concept, arms)
                self._collect_predictions(arms)

    def _cell(self, concept: str, arm: str, rows: Columns, off_type: bool) -> dict[str, Any]:
        up, down, unidentified = (int((rows["identified"] == way).sum()) for way in ("up", "down", "unidentified"))
        n_trials = len(rows["arm"])
        cell: dict[str, Any] = {
            "target": self.target,
            "concept": concept,
            "arm": arm,
            "off_type": off_type,
            "mode": self._mode(concept),
            "n_sentences": len(np.unique(rows["sentence_id"])),
            "n_injections": len(np.unique(rows["injection_id"])),
            "n_trials": n_trials,
            "n_failed": n_trials - up - down - unidentified,
            "n_up": up,
            "n_down": down,
            "n_unidentified": unidentified,
        }
        cell["identified_share"] = _identified_share(cell)
        cell |= {metric: _mean(metric, mean_two_way(_trials(rows, metric))) for metric in METRICS}
        if self._mode(concept).drawn:
            cell["count_success"]["reason"] = NO_RANKS
        return cell

    def _mode(self, concept: str) -> Mode:
        return self.modes.get(concept, self.plan.mode)

    def _contrast_concept(self, concept: str, arms: dict[str, Columns]) -> None:
        for contrast in self.plan.contrasts:
            for metric in METRICS:
                estimate = contrast_two_way(_trials(arms[contrast.arm], metric), _trials(arms[contrast.control], metric))
                row = _contrast((concept, contrast.arm, contrast.control, metric), estimate, self._mode(concept))
                self._contrasts.append(row)

    def _collect_predictions(self, arms: dict[str, Columns]) -> None:
        """One point for each injection: its prediction, and its mean shift over sentences."""
        metric = self._predicted_metric
        for rows in arms.values():
            known = np.isfinite(rows["predicted_shift"]) & np.isfinite(rows[metric])
            for injection in np.unique(rows["injection_id"][known]):
                of_injection = known & (rows["injection_id"] == injection)
                self._predicted.append(float(rows["predicted_shift"][of_injection][0]))
                self._observed.append(float(rows[metric][of_injection].mean()))

    @property
    def _predicted_metric(self) -> str:
        """What predictions are ranked against: log-odds, and masses where plain draws say nothing of log-odds."""
        return "delta_mass" if self.plan.mode is Mode.SAMPLED else "delta_log_odds"

    def summary(self) -> dict[str, Any]:
        """`cells`, `contrasts` and `prediction` of `summary.json`."""
        cells = [*self._cells, *self._cells_over_concepts()]
        contrasts = [*self._contrasts, *self._contrasts_over_concepts()]
        _adjust(contrasts)
        rank = spearman(self._predicted, self._observed, seed=self.plan.choice.seed)
        primary = self.plan.primary
        return {
            "target": self.target,
            "mode": _one_or_mixed(self._mode(concept) for concept in self.plan.concepts),
            "modes": {concept: self._mode(concept) for concept in self.plan.concepts},
            "primary": primary.model_dump() if primary else None,
            "cells": cells,
            "contrasts": contrasts,
            "prediction": {
                "metric": self._predicted_metric,
                "n": rank.n,
                "spearman": rank.rho,
                "ci_low": rank.ci_low,
                "ci_high": rank.ci_high,
                "p": rank.p,
                "reason": rank.reason,
            },
        }

    def _cells_over_concepts(self) -> list[dict[str, Any]]:
        cells = []
        for off_type, arm in dict.fromkeys((c["off_type"], c["arm"]) for c in self._cells):
            parts = [c for c in self._cells if c["arm"] == arm and c["off_type"] == off_type]
            counts = {name: sum(c[name] for c in parts) for name in COUNTS}
            mode = _one_or_mixed(c["mode"] for c in parts)
            cell: dict[str, Any] = {
                "target": self.target,
                "concept": ALL,
                "arm": arm,
                "off_type": off_type,
                "mode": mode,
                **counts,
            }
            cell["identified_share"] = _identified_share(cell)
            means = {metric: _mean(metric, _over_concepts([c[metric] for c in parts])) for metric in METRICS}
            cells.append(cell | means)
        return cells

    def _contrasts_over_concepts(self) -> list[dict[str, Any]]:
        rows = []
        for arm, control, metric in dict.fromkeys((c["arm"], c["control"], c["metric"]) for c in self._contrasts):
            parts = [c for c in self._contrasts if (c["arm"], c["control"], c["metric"]) == (arm, control, metric)]
            mode = _one_or_mixed(part["mode"] for part in parts)
            rows.append(_contrast((ALL, arm, control, metric), _over_concepts(parts), mode))
        return rows


def _identified_share(cell: dict[str, Any]) -> float | None:
    """The share of answered trials whose shift is known to have gone up or down, in [0, 1]."""
    answered = cell["n_trials"] - cell["n_failed"]
    return (cell["n_up"] + cell["n_down"]) / answered if answered else None


def _one_or_mixed(modes: Iterable[str]) -> str:
    """The mode that all have in common, else `MIXED`."""
    different = set(modes)
    return different.pop() if len(different) == 1 else MIXED


def _rows(columns: Columns, rows: NDArray[np.bool_]) -> Columns:
    return {name: column[rows] for name, column in columns.items()}


def _trials(rows: Columns, metric: str) -> Trials:
    if metric in BOUNDED:
        low, high = rows[f"{metric}_low"], rows[f"{metric}_high"]
        return Trials.of(low, rows["sentence_id"], rows["injection_id"], high=high)
    return Trials.of(rows[metric], rows["sentence_id"], rows["injection_id"])


def _over_concepts(parts: list[dict[str, Any]]) -> Estimate:
    """The mean over concepts of the same estimate, from the ends of its bounds."""
    return mean_of_concepts([part["estimate_low"] for part in parts], high=[part["estimate_high"] for part in parts])


def _mean(metric: str, estimate: Estimate) -> dict[str, Any]:
    """A cell's estimate; the interval of a share is cut at 0 and 1, between which the share lies for certain."""
    row = _estimate(estimate)
    if metric in SHARES and row["ci_low"] is not None:
        row["ci_low"], row["ci_high"] = max(row["ci_low"], 0.0), min(row["ci_high"], 1.0)
    return row


def _estimate(estimate: Estimate) -> dict[str, Any]:
    return {
        "estimate": estimate.value,
        "estimate_low": estimate.value_low,
        "estimate_high": estimate.value_high,
        "ci_low": estimate.ci_low,
        "ci_high": estimate.ci_high,
        "reason": estimate.reason,
    }


def _contrast(name: tuple[str, str, str, str], estimate: Estimate, mode: str) -> dict[str, Any]:
    """A row of `contrasts`, named by concept, arm, control and metric.

    Verdict and smallest detectable effect are not worked out by this version: None.
    """
    return {
        **dict(zip(("concept", "arm", "control", "metric"), name, strict=True)),
        "mode": mode,
        **_estimate(estimate),
        "p": estimate.p,
        "p_holm": None,
        "verdict": None,
        "mde": None,
    }


def _adjust(contrasts: list[dict[str, Any]]) -> None:
    """Holm over the concepts of one contrast and metric; the result over all concepts is a family of its own."""
    families: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in contrasts:
        families.setdefault((row["arm"], row["control"], row["metric"], row["concept"] == ALL), []).append(row)
    for family in families.values():
        for row, adjusted in zip(family, holm([row["p"] for row in family]), strict=True):
            row["p_holm"] = adjusted
