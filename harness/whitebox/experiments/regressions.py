"""Regressions of the effect on interference, over the cases whose candidate is a feature (or neuron) other than the target.

    A    after  ~ interference + similarity + clean + log density + coactivation + site
    B    change ~ interference + similarity + log density + coactivation + site

(Gong et al. 2026, models A and B, with frequency and co-activation added.) Several doses enter as a covariate. For neurons the
covariates are interference, log(1 + degree) and log activation. Standard errors are clustered by target feature and by
sentence (Cameron, Gelbach and Miller 2011); a coefficient's variance is the largest of the two-way one and both one-way ones,
as in `stats.crossed`; intervals are Student's t with min(clusters) - 1 degrees of freedom.

Covariates that do not vary are left out, cases in which one is not known are dropped, and both is said.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy import stats

from harness.errors import MissingExtraError
from harness.whitebox.experiments.candidates import SELF
from harness.whitebox.experiments.effect_tables import EFFECTS

CLEAN = {
    "weighted_cosine": "clean_weighted_cosine",
    "weighted_overlap": "clean_weighted_overlap",
    "log_odds_shift": "clean_log_odds",
}
MOST_CONDITIONED = 1e8

Floats = NDArray[np.float64]
Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Design:
    """Covariates (n, k) under their names, and the clusters of each case, (n, 2)."""

    names: list[str]
    X: Floats
    clusters: NDArray[np.intp]


def regressions(effects: pa.Table) -> list[Row]:
    """Models A and B of each effect: model, measure, n_cases, n_dropped, n_targets, n_sentences, left_out, coefficients
    {name: {value, se, ci_low, ci_high, p}} or None, and then `reason`. Raises MissingExtraError without statsmodels."""
    return [fit(effects, measure, model) for measure in EFFECTS for model in ("A", "B")]


def fit(effects: pa.Table, measure: str, model: str) -> Row:
    """One model of one measure."""
    feature = np.array([arm != SELF for arm in effects["arm"].to_pylist()], bool)
    feature &= np.array([number is not None for number in effects["candidate"].to_pylist()], bool)
    rows = effects.filter(pa.array(feature, pa.bool_()))
    change, clean = _floats(rows, measure), _floats(rows, CLEAN[measure])
    covariates = _covariates(rows) | ({"clean": clean} if model == "A" else {})
    covariates = {name: column for name, column in covariates.items() if not np.isnan(column).all()}
    outcome = clean + change if model == "A" else change
    known = np.isfinite(np.column_stack([outcome, *covariates.values()])).all(axis=1)
    varying = {name: column[known] for name, column in covariates.items() if known.any() and np.ptp(column[known]) > 0}
    base: Row = {
        "model": model,
        "measure": measure,
        "n_cases": int(known.sum()),
        "n_dropped": int((~known).sum()),
        "left_out": [name for name in covariates if name not in varying],
    }
    design = _design(varying, rows.filter(pa.array(known, pa.bool_())))
    base |= {"n_targets": _count(design.clusters[:, 0]), "n_sentences": _count(design.clusters[:, 1])}
    reason = _refused(design, varying)
    if reason is not None:
        return base | {"coefficients": None, "reason": reason}
    return base | {"coefficients": _coefficients(design, outcome[known]), "reason": None}


def _covariates(rows: pa.Table) -> dict[str, Floats]:
    with np.errstate(divide="ignore", invalid="ignore"):
        density, degree = np.log(_floats(rows, "density")), _floats(rows, "degree")
        found = {
            "interference": _floats(rows, "interference"),
            "similarity": _floats(rows, "similarity"),
            "log_density": density,
            "coactivation": _floats(rows, "coactivation"),
            "log_degree": np.log1p(degree),
            "dose": _floats(rows, "dose"),
        }
        if not np.isnan(degree).all():
            found["log_activation"] = np.log(_floats(rows, "activation"))
    return {name: np.where(np.isfinite(column), column, np.nan) for name, column in found.items()}


def _design(covariates: dict[str, Floats], rows: pa.Table) -> _Design:
    """Constant, covariates, and all sites but the first as indicators."""
    sites = np.asarray(rows["site"].to_pylist(), np.str_)
    names = sorted(set(sites.tolist()))[1:]
    columns = [np.ones(len(sites)), *covariates.values(), *[(sites == name).astype(np.float64) for name in names]]
    targets = [f"{site}:{target}" for site, target in zip(sites.tolist(), rows["target"].to_pylist(), strict=True)]
    clusters = [np.unique(np.asarray(c, np.str_), return_inverse=True)[1] for c in (targets, rows["sentence_id"].to_pylist())]
    return _Design(
        names=["constant", *covariates, *(f"site {name}" for name in names)],
        X=np.column_stack(columns),
        clusters=np.column_stack(clusters).astype(np.intp),
    )


def _refused(design: _Design, covariates: dict[str, Floats]) -> str | None:
    """Why nothing can be fitted, or None."""
    if "interference" not in covariates:
        return "interference does not vary"
    for number, what in enumerate(("targets", "sentences")):
        if _count(design.clusters[:, number]) < 2:
            return f"fewer than 2 {what}"
    if len(design.X) <= design.X.shape[1]:
        return f"{len(design.X)} cases for {design.X.shape[1]} coefficients"
    scale = np.linalg.norm(design.X, axis=0)
    if np.linalg.cond(design.X / scale) > MOST_CONDITIONED:
        return "covariates that depend on each other"
    return None


def import_statsmodels() -> Any:
    """statsmodels' OLS; raises MissingExtraError where it is not installed."""
    try:
        from statsmodels.regression.linear_model import OLS
    except ImportError as exc:
        raise MissingExtraError("statsmodels", "whitebox") from exc
    return OLS


def _coefficients(design: _Design, outcome: Floats) -> Row:
    fitted = import_statsmodels()(outcome, design.X)
    kinds = (design.clusters, design.clusters[:, 0], design.clusters[:, 1])
    results = [fitted.fit(cov_type="cluster", cov_kwds={"groups": groups}) for groups in kinds]
    variances = np.max([np.diag(result.cov_params()) for result in results], axis=0)
    df = min(_count(design.clusters[:, 0]), _count(design.clusters[:, 1])) - 1
    quantile = float(stats.t.ppf(0.975, df))
    found: Row = {}
    for name, value, variance in zip(design.names, results[0].params.tolist(), variances.tolist(), strict=True):
        se = float(np.sqrt(variance))
        found[name] = {
            "value": value,
            "se": se,
            "ci_low": value - quantile * se,
            "ci_high": value + quantile * se,
            "p": float(2 * stats.t.sf(abs(value) / se, df)) if se > 0 else None,
        }
    return found


def _floats(rows: pa.Table, name: str) -> Floats:
    """A column as float64, NaN where it is null."""
    return np.array([np.nan if value is None else value for value in rows[name].to_pylist()], np.float64)


def _count(codes: NDArray[np.intp]) -> int:
    return len(np.unique(codes))
