"""Whether the sources' predictions rank the injections as the target does: the entry `prediction` of the summary.

Over all arms, where to know the arm is to know much; within the `high` arm alone; and between pairs of a `high` injection and
its matched control. Each time beyond what the concept, and an injection's length, frequency and form say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.evals.contrasts import ArmTrials
from harness.packs.lexical import common_words, overlaps
from harness.packs.pack import Pack
from harness.records import Probe
from harness.stats import predicting
from harness.stats.bootstrap import crossed_bootstrap
from harness.stats.predicting import Points
from harness.stats.rank import spearman

Floats = NDArray[np.float64]

ARM, CONTROL = "high", "matched"
N_BINS, POINTS_OF_A_BIN = 5, 5
N_RESAMPLES = 200
"""Enough for a standard deviation; percentiles would take more."""
COVARIATES = ("length", "frequency", "overlap")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Injection:
    """A point: one injection, with the answered trials of its sentences."""

    concept: str
    arm: str
    name: str
    partner: str | None
    predicted: float
    covariates: tuple[float, ...]
    values: Floats
    sentences: NDArray[np.intp]


@dataclass
class Predictions:
    """Takes concept after concept (`add`); `summary` ends it. `metric`: what is predicted, in nats or as a share."""

    metric: str
    pack: Pack
    seed: int
    _injections: list[_Injection] = field(default_factory=list)

    def add(self, concept: str, arms: Mapping[str, ArmTrials]) -> None:
        """Keep the injections of which something is predicted and something was seen."""
        lexicon = self.pack.concept(concept).words
        for arm, trials in arms.items():
            observed = trials.columns[self.metric].astype(np.float64)
            known = np.isfinite(trials.columns["predicted_shift"].astype(np.float64)) & np.isfinite(observed)
            probes = {probe.injection_id: probe for probe in self.pack.probes.get((concept, arm), ()) if known.any()}
            order = np.argsort(trials.injections, kind="stable")
            order = order[known[order]]
            places, starts = np.unique(trials.injections[order], return_index=True)
            for place, rows in zip(places, np.split(order, starts)[1:], strict=True):
                name = trials.names[place]
                self._injections.append(
                    _Injection(
                        concept=concept,
                        arm=arm,
                        name=name,
                        partner=trials.matched_to[place],
                        predicted=float(trials.columns["predicted_shift"][rows[0]]),
                        covariates=self._covariates(probes.get(name), lexicon),
                        values=observed[rows],
                        sentences=trials.sentences[rows],
                    )
                )

    @cached_property
    def _rank(self) -> dict[str, int]:
        return {word: rank for rank, word in enumerate(common_words())}

    def _covariates(self, probe: Probe | None, lexicon: frozenset[str]) -> tuple[float, ...]:
        """Characters; mean log rank of its strings among the common words, which stand most frequent first (one that is not
        listed comes after all); the share of its strings that share a form with a word of the concept's lexicon."""
        if probe is None:
            return (0.0,) * len(COVARIATES)
        words = [text.strip().lower() for text in probe.injection]
        ranks = np.log1p([self._rank.get(word, len(self._rank)) for word in words])
        shared = [overlaps(word, lexicon) for word in words]
        return float(len("".join(probe.injection))), float(ranks.mean()), float(np.mean(shared))

    def summary(self) -> dict[str, Any]:
        """Over all arms, with the same of `high` alone under `within`, and of the pairs under `pairs`."""
        of_arm = [one for one in self._injections if one.arm == ARM]
        return {
            "metric": self.metric,
            "arms": list(dict.fromkeys(one.arm for one in self._injections)),
            "covariates": list(COVARIATES),
            **_described(self._injections, self.seed),
            "within": {ARM: _described(of_arm, self.seed)} if of_arm else {},
            "pairs": self._of_pairs(),
        }

    def _of_pairs(self) -> dict[str, Any] | None:
        """Whether the difference that is predicted between an injection and its control is the one observed."""
        by_name = {(one.concept, one.name): one for one in self._injections if one.arm == ARM}
        controls = [one for one in self._injections if one.arm == CONTROL]
        pairs = [(by_name[key], one) for one in controls if (key := (one.concept, one.partner or "")) in by_name]
        if not pairs:
            return None
        points = _points([arm for arm, _ in pairs]), _points([control for _, control in pairs])
        difference = Points(
            predicted=points[0].predicted - points[1].predicted,
            observed=points[0].observed - points[1].observed,
            covariates=points[0].covariates - points[1].covariates,
            groups=points[0].groups,
        )
        return {"arm": ARM, "control": CONTROL, **_correlations(difference, self.seed)}


def _points(injections: Sequence[_Injection]) -> Points:
    _, groups = np.unique([one.concept for one in injections], return_inverse=True)
    return Points(
        predicted=np.array([one.predicted for one in injections], np.float64),
        observed=np.array([one.values.mean() for one in injections], np.float64),
        covariates=np.array([one.covariates for one in injections], np.float64).reshape(-1, len(COVARIATES)),
        groups=groups.astype(np.intp),
    )


def _described(injections: Sequence[_Injection], seed: int) -> dict[str, Any]:
    """Correlations with their intervals, lines and calibration of a set of injections."""
    points = _points(injections)
    found = _correlations(points, seed)
    for name, ends, statistic in (
        ("spearman", ("ci_low", "ci_high"), predicting.rank_correlation),
        ("partial", ("partial_ci_low", "partial_ci_high"), predicting.partial_rank_correlation),
    ):
        interval = _interval(injections, points, statistic, seed) if found[name] is not None else None
        found |= dict(zip(ends, interval or (None, None), strict=True))
    for prefix, adjusted in (("slope", False), ("partial_slope", True)):
        line = predicting.fit_line(points, adjusted=adjusted)
        found |= {prefix: line.slope, f"{prefix}_ci_low": line.ci_low, f"{prefix}_ci_high": line.ci_high, f"{prefix}_p": line.p}
        if not adjusted:
            found["intercept"] = line.intercept
    n_bins = N_BINS if len(points) >= N_BINS * POINTS_OF_A_BIN else 0
    rows = predicting.calibration(points, n_bins) if n_bins else []
    found["calibration"] = [dict(zip(("n", "predicted", "observed"), row, strict=True)) for row in rows]
    return found


def _correlations(points: Points, seed: int) -> dict[str, Any]:
    """Spearman's rho, and the same given concept and covariates, each with its permutation p."""
    rank = spearman(points.predicted, points.observed, seed=seed)
    partial = predicting.partial_rank_correlation(points, np.ones(len(points))) if rank.rho is not None else float("nan")
    known = np.isfinite(partial)
    return {
        "n": rank.n,
        "spearman": rank.rho,
        "p": rank.p,
        "reason": rank.reason,
        "partial": partial if known else None,
        "partial_p": predicting.freedman_lane_p(points, seed=seed) if known else None,
    }


def _interval(
    injections: Sequence[_Injection], points: Points, correlation: Callable[[Points, Floats], float], seed: int
) -> tuple[float, float] | None:
    """Of a correlation, with sentences and injections resampled within each concept."""
    sizes = [len(one.values) for one in injections]
    starts = np.cumsum([0, *sizes[:-1]])
    values = np.concatenate([one.values for one in injections])
    repeated = np.repeat(np.arange(len(injections)), sizes)

    def statistic(weights: Floats) -> float:
        total = np.add.reduceat(weights, starts)
        kept = total > 0
        observed = np.add.reduceat(weights * values, starts)[kept] / total[kept]
        drawn = Points(
            predicted=points.predicted[kept],
            observed=observed,
            covariates=points.covariates[kept],
            groups=points.groups[kept],
        )
        return float(correlation(drawn, total[kept]))

    resampled = crossed_bootstrap(
        statistic,
        np.concatenate([one.sentences for one in injections]),
        repeated,
        seed=seed,
        n_resamples=N_RESAMPLES,
        strata=points.groups[repeated],
    )
    return predicting.correlation_interval(resampled.value, resampled.replicates)
