"""Regressions against least squares in numpy, planted coefficients, and sandwiches multiplied out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

pytest.importorskip("statsmodels")
pytest.importorskip("transformers")

from harness.whitebox.experiments.effect_tables import EFFECTS
from harness.whitebox.experiments.regressions import fit, regressions

PLANTED = {"interference": 2.0, "similarity": -1.0, "log_density": 0.3, "coactivation": 0.7}
TARGETS, SENTENCES = 12, 9


def planted(seed: int = 0, noise: float = 0.1, **changes: Any) -> list[dict[str, Any]]:
    """Cases whose change depends on the covariates as planted, with a share for each target and each sentence."""
    rng = np.random.default_rng(seed)
    of_target, of_sentence = rng.standard_normal(TARGETS) * noise, rng.standard_normal(SENTENCES) * noise
    rows: list[dict[str, Any]] = []
    for target in range(TARGETS):
        for candidate in range(8):
            covariates = {
                "interference": rng.uniform(0, 0.6),
                "similarity": rng.uniform(0, 0.3),
                "density": float(np.exp(rng.uniform(-8, -2))),
                "coactivation": rng.uniform(-0.1, 0.4),
            }
            logged = {**covariates, "log_density": np.log(covariates["density"])}
            for sentence in range(SENTENCES):
                change = sum(slope * logged[name] for name, slope in PLANTED.items()) + 0.5 * (target % 2)
                change += of_target[target] + of_sentence[sentence] + noise * rng.standard_normal()
                clean = float(rng.uniform(-1, 1))
                rows.append(
                    {
                        "site": f"resid_post.{target % 2}",
                        "target": target,
                        "arm": "0.1-0.2",
                        "candidate": candidate,
                        "sentence_id": f"s{sentence}",
                        "dose": 2.0,
                        "degree": None,
                        "activation": 1.0,
                        **covariates,
                        **dict.fromkeys(EFFECTS, change),
                        **dict.fromkeys(("clean_weighted_cosine", "clean_weighted_overlap", "clean_log_odds"), clean),
                        **changes,
                    }
                )
    return rows


SCHEMA = pa.schema([("degree", pa.int32()), ("candidate", pa.int32())])


def table(rows: list[dict[str, Any]]) -> pa.Table:
    columns = {name: [row[name] for row in rows] for name in (rows or planted())[0]}
    typed = {
        name: pa.array(values, SCHEMA.field(name).type if name in SCHEMA.names else None) for name, values in columns.items()
    }
    return pa.table(typed)


def design(rows: list[dict[str, Any]]) -> np.ndarray:
    found = [
        [1, r["interference"], r["similarity"], np.log(r["density"]), r["coactivation"], r["site"] == "resid_post.1"]
        for r in rows
    ]
    return np.array(found, float)


def test_coefficients_are_those_of_least_squares_and_errors_the_largest_of_three_sandwiches() -> None:
    rows = planted()
    X, y = design(rows), np.array([row["weighted_cosine"] for row in rows])
    found = fit(table(rows), "weighted_cosine", "B")
    beta, *_ = np.linalg.lstsq(X, y, rcond=None)
    names = ["constant", *PLANTED, "site resid_post.1"]
    assert list(found["coefficients"]) == names
    np.testing.assert_allclose([found["coefficients"][name]["value"] for name in names], beta, rtol=1e-6)

    bread, residual = np.linalg.inv(X.T @ X), y - X @ beta

    def meat(groups: list[Any]) -> np.ndarray:
        codes = np.unique([str(group) for group in groups], return_inverse=True)[1]
        n, k, g = *X.shape, codes.max() + 1
        sums = np.zeros((g, k))
        np.add.at(sums, codes, X * residual[:, None])
        return np.diag(bread @ (sums.T @ sums) @ bread) * g / (g - 1) * (n - 1) / (n - k)

    by_target, by_sentence = (meat([row[name] for row in rows]) for name in ("target", "sentence_id"))
    both = by_target + by_sentence - meat([(row["target"], row["sentence_id"]) for row in rows])
    expected = np.sqrt(np.max([by_target, by_sentence, both], axis=0))
    np.testing.assert_allclose([found["coefficients"][name]["se"] for name in names], expected, rtol=1e-4)
    one = found["coefficients"]["interference"]
    half = stats.t.ppf(0.975, SENTENCES - 1) * one["se"]
    assert (one["ci_low"], one["ci_high"]) == pytest.approx((one["value"] - half, one["value"] + half))
    assert (found["n_targets"], found["n_sentences"], found["n_dropped"]) == (TARGETS, SENTENCES, 0)


def test_planted_coefficients_come_back_in_both_models() -> None:
    for found in regressions(table(planted())):
        for name, slope in PLANTED.items():
            one = found["coefficients"][name]
            assert one["ci_low"] < slope < one["ci_high"] or abs(one["value"] - slope) < 0.02
            assert abs(one["value"] - slope) < 0.15
        if found["model"] == "A":
            assert found["coefficients"]["clean"]["value"] == pytest.approx(1, abs=0.05)
        else:
            assert "clean" not in found["coefficients"]


def test_the_interval_covers_the_planted_slope_about_as_often_as_it_says() -> None:
    covered = []
    for seed in range(40):
        one = fit(table(planted(seed, noise=1.0)), "log_odds_shift", "B")["coefficients"]["interference"]
        covered.append(one["ci_low"] < PLANTED["interference"] < one["ci_high"])
    assert np.mean(covered) > 0.8


def test_self_and_random_directions_stay_out() -> None:
    rows = planted()
    outside = planted(arm="self", weighted_cosine=1e6) + planted(candidate=None, weighted_cosine=1e6)
    assert fit(table(rows + outside), "weighted_cosine", "B") == fit(table(rows), "weighted_cosine", "B")


def test_what_is_not_known_is_dropped_and_counted_and_what_does_not_vary_left_out() -> None:
    rows = planted()
    for row in rows[:10]:
        row["coactivation"] = None
    for row in rows[10:15]:
        row["density"] = 0.0
    found = fit(table(rows), "weighted_cosine", "B")
    assert (found["n_cases"], found["n_dropped"]) == (len(rows) - 15, 15)
    assert found["left_out"] == ["dose"]
    without = fit(table([row | {"coactivation": None, "similarity": 0.2} for row in planted()]), "weighted_cosine", "B")
    assert "coactivation" not in without["coefficients"]
    assert without["left_out"] == ["similarity", "dose"]
    assert without["n_dropped"] == 0


def test_several_doses_and_the_degrees_of_neurons_are_covariates() -> None:
    rng = np.random.default_rng(0)
    rows = [
        row
        | {"dose": float(rng.integers(0, 3)), "degree": int(rng.integers(0, 9)), "activation": rng.uniform(1, 2)}
        | {"similarity": None, "density": None, "coactivation": None}
        for row in planted()
    ]
    found = fit(table(rows), "weighted_cosine", "B")
    names = ["constant", "interference", "log_degree", "dose", "log_activation", "site resid_post.1"]
    assert list(found["coefficients"]) == names


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([], "interference does not vary"),
        (planted(interference=0.3), "interference does not vary"),
        (planted(target=1, site="a"), "fewer than 2 targets"),
        (planted(sentence_id="s"), "fewer than 2 sentences"),
        ([planted()[0], planted()[-1]], "2 cases for 6 coefficients"),
    ],
)
def test_too_little_data_gives_no_coefficients_and_a_reason(rows: list[dict[str, Any]], reason: str) -> None:
    empty = {name: pa.array([], pa.float64()) for name in planted()[0]}
    found = fit(table(rows) if rows else pa.table(empty), "weighted_cosine", "B")
    assert found["coefficients"] is None
    assert found["reason"] == reason


def test_covariates_that_say_the_same_are_refused() -> None:
    rows = [row | {"similarity": row["interference"] / 2} for row in planted()]
    assert fit(table(rows), "weighted_cosine", "B")["reason"] == "covariates that depend on each other"
