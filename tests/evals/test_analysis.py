"""The summary's means, contrasts and families of tests, against sums written out here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import optimize, stats

from harness.evals.analysis import Analysis
from harness.evals.measures import ALL
from harness.evals.plan import Choice, Plan, make_plan
from harness.evals.spec import find_eval
from harness.packs.pack import Draft, write_pack
from harness.records import Mode, Probe

CONCEPTS = ("animal", "food", "weather")
SENTENCES, INJECTIONS = 5, 4
Table = dict[tuple[str, str], np.ndarray]
"""(concept, arm) to log-odds shifts (sentences, injections)."""


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    probes = [
        Probe(concept=concept, arm=arm, injection_id=f"{arm}-{i}", injection=(f" {arm}{i}",), predicted_shift=float(i))
        for concept in CONCEPTS
        for arm in ("related", "matched")
        for i in range(INJECTIONS)
    ]
    pack = write_pack(Draft(name="p", description="d", claims="none", maker="t", seed=0, probes=probes), tmp_path / "pack")
    return make_plan(find_eval("transfer"), pack, Choice())


@pytest.fixture
def shifts() -> Table:
    rng = np.random.default_rng(3)
    return {
        (concept, arm): rng.normal(0, 1, (SENTENCES, 1)) + rng.normal(0.5, 1, (1, INJECTIONS)) + rng.normal(0, 0.3, (5, 4))
        for concept in CONCEPTS
        for arm in ("related", "matched")
    }


def columns(concept: str, arm: str, values: np.ndarray, *, off_type: bool = False, half_width: float = 0.0) -> dict[str, Any]:
    """Trials as scoring gives them; counts succeed where the shift is positive."""
    n = values.size
    names = [(f"{concept}-s{s}", f"{arm}-{i}") for s in range(values.shape[0]) for i in range(values.shape[1])]
    flat = values.ravel()
    success = np.where(np.isnan(flat), np.nan, (flat > 0).astype(float))
    return {
        "arm": [arm] * n,
        "sentence_id": [name[0] for name in names],
        "injection_id": [name[1] for name in names],
        "off_type": [off_type] * n,
        "predicted_shift": [float(name[1].split("-")[1]) for name in names],
        "identified": identified(flat - half_width, flat + half_width),
        "count_success": success,
        "mass_success": success,
        **{f"delta_{m}{end}": flat for m in ("mass", "log_odds") for end in ("", "_low", "_high")},
        "delta_log_odds_low": flat - half_width,
        "delta_log_odds_high": flat + half_width,
    }


def identified(low: np.ndarray, high: np.ndarray) -> list[str | None]:
    """Which way each shift certainly went."""
    ways = np.where(low > 0, "up", np.where(high < 0, "down", "unidentified"))
    return [None if np.isnan(one) else str(way) for one, way in zip(low, ways, strict=True)]


def summary(plan: Plan, shifts: Table, **options: Any) -> dict[str, Any]:
    analysis = Analysis(plan, "t")
    for concept in CONCEPTS:
        for arm in ("related", "matched"):
            analysis.add(columns(concept, arm, shifts[concept, arm], **options))
        analysis.close_concept(concept)
    return analysis.summary()


def row(rows: list[dict[str, Any]], **wanted: str) -> dict[str, Any]:
    (found,) = [r for r in rows if all(r[key] == value for key, value in wanted.items())]
    return found


def primary(found: dict[str, Any], concept: str) -> dict[str, Any]:
    return row(found["contrasts"], concept=concept, arm="related", control="matched", metric="delta_log_odds")


def test_a_cell_is_the_mean_of_its_trials(plan: Plan, shifts: Table) -> None:
    found = summary(plan, shifts)
    for (concept, arm), values in shifts.items():
        cell = row(found["cells"], concept=concept, arm=arm)
        assert cell["delta_log_odds"]["estimate"] == pytest.approx(values.mean())
        assert cell["count_success"]["estimate"] == pytest.approx((values > 0).mean())
        assert (cell["n_trials"], cell["n_sentences"], cell["n_injections"]) == (20, SENTENCES, INJECTIONS)


def test_over_concepts_the_concept_is_the_unit(plan: Plan, shifts: Table) -> None:
    found = primary(summary(plan, shifts), ALL)
    differences = [shifts[c, "related"].mean() - shifts[c, "matched"].mean() for c in CONCEPTS]
    expected = stats.ttest_1samp(differences, 0)
    interval = expected.confidence_interval()
    assert found["estimate"] == pytest.approx(np.mean(differences))
    assert (found["ci_low"], found["ci_high"]) == pytest.approx((interval.low, interval.high))
    assert found["p"] == pytest.approx(expected.pvalue)


def test_holm_runs_over_the_concepts_of_one_contrast_and_leaves_the_whole_apart(plan: Plan, shifts: Table) -> None:
    found = summary(plan, shifts)
    rows = [primary(found, concept) for concept in CONCEPTS]
    p = sorted(r["p"] for r in rows)
    adjusted = np.minimum(np.maximum.accumulate([p[0] * 3, p[1] * 2, p[2]]), 1)
    assert sorted(r["p_holm"] for r in rows) == pytest.approx(adjusted)
    assert primary(found, ALL)["p_holm"] == primary(found, ALL)["p"]


def test_bounds_of_the_trials_are_bounds_of_the_means_and_widen_the_interval(plan: Plan, shifts: Table) -> None:
    exact, bounded = primary(summary(plan, shifts), "food"), primary(summary(plan, shifts, half_width=0.25), "food")
    assert bounded["estimate"] == pytest.approx(exact["estimate"])
    assert (bounded["estimate_low"], bounded["estimate_high"]) == pytest.approx(
        (exact["estimate"] - 0.5, exact["estimate"] + 0.5)
    )
    t = stats.t(exact["df"])
    c = optimize.brentq(lambda c: t.cdf(c + 1 / exact["se"]) - t.cdf(-c) - 0.95, 0, 10)  # Imbens and Manski 2004
    half = 0.5 + c * exact["se"]
    assert (bounded["ci_low"], bounded["ci_high"]) == pytest.approx((exact["estimate"] - half, exact["estimate"] + half))


def test_the_smallest_effect_is_that_of_the_error_and_grows_by_the_width_of_the_bounds(plan: Plan, shifts: Table) -> None:
    exact, bounded = primary(summary(plan, shifts), "food"), primary(summary(plan, shifts, half_width=0.25), "food")
    t = stats.t(min(SENTENCES, INJECTIONS) - 1)
    expected = (t.ppf(0.975) + t.ppf(0.8)) * exact["se"]
    assert exact["mde"] == pytest.approx(expected)
    assert bounded["mde"] == pytest.approx(expected + 1.0)


def test_the_margin_stands_on_the_primary_contrast_alone(plan: Plan, shifts: Table) -> None:
    rows = summary(plan, shifts)["contrasts"]
    assert {(r["arm"], r["control"], r["metric"]) for r in rows if r["margin"]} == {("related", "matched", "delta_log_odds")}
    assert {r["margin"] for r in rows if r["margin"]} == {0.1}


def test_the_median_shift_stands_beside_the_primary_contrasts_mean(plan: Plan, shifts: Table) -> None:
    found = summary(plan, shifts, half_width=0.25)
    medians = [np.median(shifts[c, "related"]) - np.median(shifts[c, "matched"]) for c in CONCEPTS]
    assert [primary(found, c)["median"]["estimate"] for c in CONCEPTS] == pytest.approx(medians)
    assert primary(found, "food")["median"]["estimate_low"] == pytest.approx(medians[1] - 0.5)
    interval = stats.ttest_1samp(medians, 0).confidence_interval()
    exact = primary(summary(plan, shifts), ALL)["median"]
    assert (exact["ci_low"], exact["ci_high"]) == pytest.approx((interval.low, interval.high))
    assert {r["metric"] for r in found["contrasts"] if r["median"] is not None} == {"delta_log_odds"}


def test_only_the_primary_metric_is_permuted(plan: Plan, shifts: Table) -> None:
    rows = summary(plan, shifts)["contrasts"]
    assert {r["metric"] for r in rows if r["p_permutation"] is not None} == {"delta_log_odds"}
    exact = [r for r in rows if r["metric"] == "delta_log_odds"]
    assert all(0 < r["p_permutation"] <= 1 for r in exact)


def test_failed_trials_are_counted_and_left_out(plan: Plan, shifts: Table) -> None:
    holed = {key: values.copy() for key, values in shifts.items()}
    holed["food", "related"][2, 1] = np.nan
    cell = row(summary(plan, holed)["cells"], concept="food", arm="related")
    assert (cell["n_failed"], cell["n_trials"]) == (1, 20)
    assert cell["delta_log_odds"]["estimate"] == pytest.approx(np.nanmean(holed["food", "related"]))


def test_the_interval_of_a_share_stays_between_nothing_and_all(plan: Plan, shifts: Table) -> None:
    nearly_all = {key: np.where(np.arange(values.size).reshape(values.shape) < 2, -1.0, 1.0) for key, values in shifts.items()}
    cell = row(summary(plan, nearly_all)["cells"], concept="food", arm="related")["count_success"]
    assert cell["estimate"] == pytest.approx(0.9)
    assert cell["ci_low"] < 0.9
    assert cell["ci_high"] == 1.0


def test_off_type_sentences_stand_apart_and_never_enter_a_contrast(plan: Plan, shifts: Table) -> None:
    analysis = Analysis(plan, "t")
    for arm in ("related", "matched"):
        analysis.add(columns("food", arm, shifts["food", arm]))
        analysis.add(columns("food", arm, shifts["food", arm] + 100, off_type=True))
    analysis.close_concept("food")
    found = analysis.summary()
    means = {cell["off_type"]: cell["delta_log_odds"]["estimate"] for cell in found["cells"] if cell["arm"] == "related"}
    assert means[True] == pytest.approx(means[False] + 100)
    expected = shifts["food", "related"].mean() - shifts["food", "matched"].mean()
    assert primary(found, "food")["estimate"] == pytest.approx(expected)


def test_the_prediction_is_ranked_injection_by_injection(plan: Plan, shifts: Table) -> None:
    found = summary(plan, shifts)["prediction"]
    observed = np.concatenate([shifts[c, a].mean(axis=0) for c in CONCEPTS for a in plan.arms])
    predicted = np.tile(np.arange(INJECTIONS), len(CONCEPTS) * 2)
    assert found["n"] == len(predicted)
    assert found["spearman"] == pytest.approx(stats.spearmanr(predicted, observed).statistic)


def test_the_identified_share_counts_the_shifts_that_are_known_to_have_gone_either_way(plan: Plan, shifts: Table) -> None:
    found = summary(plan, shifts, half_width=0.8)
    for cell in found["cells"]:
        if cell["concept"] == ALL:
            continue
        values = shifts[cell["concept"], cell["arm"]].ravel()
        assert cell["n_up"] == (values > 0.8).sum()
        assert cell["n_down"] == (values < -0.8).sum()
        assert cell["n_unidentified"] == (np.abs(values) <= 0.8).sum()
        assert cell["identified_share"] == pytest.approx((np.abs(values) > 0.8).mean())
    overall = next(c for c in found["cells"] if c["concept"] == ALL)
    parts = [c for c in found["cells"] if c["arm"] == overall["arm"] and c["concept"] != ALL]
    assert overall["n_up"] == sum(c["n_up"] for c in parts)


def test_concepts_observed_in_different_ways_are_told_apart(plan: Plan, shifts: Table) -> None:
    analysis = Analysis(plan, "t", {CONCEPTS[0]: Mode.AMPLIFIED, CONCEPTS[1]: Mode.TOPK})
    for concept in CONCEPTS:
        for arm in ("related", "matched"):
            analysis.add(columns(concept, arm, shifts[concept, arm]))
        analysis.close_concept(concept)
    found = analysis.summary()
    assert {c["concept"]: c["mode"] for c in found["cells"]} | {ALL: "mixed"} == {
        **{name: str(plan.mode) for name in CONCEPTS},
        CONCEPTS[0]: "amplified",
        CONCEPTS[1]: "topk",
        ALL: "mixed",
    }
    assert found["mode"] == "mixed"
    assert found["modes"][CONCEPTS[0]] == "amplified"
