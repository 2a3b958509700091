"""From trials to the summary: cells, contrasts, verdicts and the prediction, concept by concept, then over concepts.

Owns the cells and the order of things; contrasts, verdicts and predictions have their own files, formulas `harness.stats`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.evals.contrasts import BOUNDED, ArmTrials, Contrasts, estimate_row, one_or_mixed, over_concepts
from harness.evals.measures import ALL
from harness.evals.plan import Plan
from harness.evals.predictions import Predictions
from harness.evals.score import Columns
from harness.evals.spec import METRICS
from harness.evals.verdicts import correct, settle
from harness.records import Mode, Probe
from harness.stats.crossed import Estimate, mean_two_way

SHARES = {"count_success", "mass_success"}
COUNTS = ("n_sentences", "n_injections", "n_trials", "n_failed", "n_up", "n_down", "n_unidentified")

NO_RANKS = "draws have no ranks"


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
    _contrasts: Contrasts = field(init=False)
    _predictions: Predictions = field(init=False)

    def __post_init__(self) -> None:
        spec = self.plan.eval.spec
        self._contrasts = Contrasts(
            declared=self.plan.contrasts,
            primary=self.plan.primary,
            alpha=spec.alpha,
            power=spec.power,
            seed=self.plan.choice.seed,
            permuted=spec.design == "crossed",
        )
        # Plain draws say nothing of log-odds.
        metric = "delta_mass" if self.plan.mode is Mode.SAMPLED else "delta_log_odds"
        self._predictions = Predictions(metric=metric, pack=self.plan.pack, seed=self.plan.choice.seed)

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
        _, sentences = np.unique(merged["sentence_id"], return_inverse=True)
        for off_type in sorted({bool(flag) for flag in merged["off_type"]}):
            kind = merged["off_type"] == off_type
            arms = {}
            for arm in self.plan.arms:
                rows = kind & (merged["arm"] == arm)
                arms[arm] = ArmTrials.of(_rows(merged, rows), sentences[rows], self._probes(concept, arm))
            self._cells += [self._cell((concept, arm, off_type), trials) for arm, trials in arms.items() if len(trials)]
            if not off_type:
                self._contrasts.add(concept, arms, self._mode(concept))
                self._predictions.add(concept, arms)

    def _probes(self, concept: str, arm: str) -> tuple[Probe, ...]:
        return self.plan.pack.probes.get((concept, arm), ())

    def _cell(self, name: tuple[str, str, bool], trials: ArmTrials) -> dict[str, Any]:
        concept, arm, off_type = name
        up, down, unidentified = (int((trials.columns["identified"] == way).sum()) for way in ("up", "down", "unidentified"))
        cell: dict[str, Any] = {
            "target": self.target,
            "concept": concept,
            "arm": arm,
            "off_type": off_type,
            "mode": self._mode(concept),
            "n_sentences": len(np.unique(trials.sentences)),
            "n_injections": len(trials.names),
            "n_trials": len(trials),
            "n_failed": len(trials) - up - down - unidentified,
            "n_up": up,
            "n_down": down,
            "n_unidentified": unidentified,
        }
        cell["identified_share"] = _identified_share(cell)
        cell |= {metric: _mean(metric, mean_two_way(trials.trials(metric))) for metric in METRICS}
        if self._mode(concept).drawn:
            cell["count_success"]["reason"] = NO_RANKS
        return cell

    def _mode(self, concept: str) -> Mode:
        return self.modes.get(concept, self.plan.mode)

    def summary(self) -> dict[str, Any]:
        """`cells`, `contrasts`, `prediction` and `verdict` of `summary.json`."""
        primary = self.plan.primary
        summary: dict[str, Any] = {
            "target": self.target,
            "mode": one_or_mixed(self._mode(concept) for concept in self.plan.concepts),
            "modes": {concept: self._mode(concept) for concept in self.plan.concepts},
            "primary": primary.model_dump() if primary else None,
            "cells": [*self._cells, *self._cells_over_concepts()],
            "contrasts": self._contrasts.rows(),
            "prediction": self._predictions.summary(),
        }
        correct(summary["contrasts"])
        settle(summary, self.plan.eval.spec, self.plan.calibration)
        summary["verdict"]["target_is_source"] = self.target in self.plan.pack.manifest.sources
        return summary

    def _cells_over_concepts(self) -> list[dict[str, Any]]:
        cells = []
        for off_type, arm in dict.fromkeys((c["off_type"], c["arm"]) for c in self._cells):
            parts = [c for c in self._cells if c["arm"] == arm and c["off_type"] == off_type]
            counts = {name: sum(c[name] for c in parts) for name in COUNTS}
            mode = one_or_mixed(c["mode"] for c in parts)
            cell: dict[str, Any] = {
                "target": self.target,
                "concept": ALL,
                "arm": arm,
                "off_type": off_type,
                "mode": mode,
                **counts,
            }
            cell["identified_share"] = _identified_share(cell)
            means = {metric: _mean(metric, over_concepts([c[metric] for c in parts])) for metric in METRICS}
            cells.append(cell | means)
        return cells


def _identified_share(cell: dict[str, Any]) -> float | None:
    """The share of answered trials whose shift is known to have gone up or down, in [0, 1]."""
    answered = cell["n_trials"] - cell["n_failed"]
    return (cell["n_up"] + cell["n_down"]) / answered if answered else None


def _rows(columns: Columns, rows: NDArray[np.bool_]) -> Columns:
    return {name: column[rows] for name, column in columns.items()}


def _mean(metric: str, estimate: Estimate) -> dict[str, Any]:
    """A cell's estimate; the interval of a share is cut at 0 and 1, between which the share lies for certain."""
    row = estimate_row(estimate)
    if metric in SHARES and row["ci_low"] is not None:
        row["ci_low"], row["ci_high"] = max(row["ci_low"], 0.0), min(row["ci_high"], 1.0)
    return row
