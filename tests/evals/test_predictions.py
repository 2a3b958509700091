"""Predictions against what was seen: which injections enter, what is known of them, and what is found."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from harness.evals.analysis import Analysis
from harness.evals.plan import Choice, Plan, make_plan
from harness.evals.predictions import Predictions
from harness.evals.spec import find_eval
from harness.packs.concepts import find_concept
from harness.packs.lexical import common_words
from harness.packs.pack import Draft, Pack, write_pack
from harness.records import Probe

CONCEPTS = ("animal", "body", "music")
ARMS = {"self": 2.0, "high": 0.0, "matched": -1.0}
"""By arm, what all its injections are predicted to do beyond their own."""

S, K = 5, 12


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    rng, words = np.random.default_rng(0), common_words()
    probes = [
        Probe(
            concept=concept,
            arm=arm,
            injection_id=f"{arm}-{i}",
            injection=tuple(f" {words[j]}" for j in rng.integers(0, len(words), 4)),
            predicted_shift=float(shift + rng.normal()),
            provenance={"matched_to": f"high-{i}"} if arm == "matched" else {},
        )
        for concept in CONCEPTS
        for arm, shift in ARMS.items()
        for i in range(K)
    ]
    draft = Draft(name="p", description="d", claims="none", maker="t", seed=0, probes=probes)
    return write_pack(draft, tmp_path_factory.mktemp("packs") / "pack")


@pytest.fixture(scope="module")
def plan(pack: Pack) -> Plan:
    return make_plan(find_eval("transfer"), pack, Choice())


def run(plan: Plan, *, by_arm: float, own: float, missing: str = "") -> dict[str, Any]:
    """What is said of a run in which an injection shifts by `by_arm` times its arm's prediction and `own` times what is
    predicted of it beyond that. The injection `missing` got no answer."""
    rng = np.random.default_rng(1)
    analysis = Analysis(plan, "t")
    for concept in CONCEPTS:
        for arm, shift in ARMS.items():
            for probe in plan.pack.probes[concept, arm]:
                assert probe.predicted_shift is not None
                values = by_arm * shift + own * (probe.predicted_shift - shift) + rng.normal(0, 0.5, S)
                if probe.injection_id == missing:
                    values[:] = np.nan
                analysis.add(trials(probe, values))
        analysis.close_concept(concept)
    found: dict[str, Any] = analysis.summary()["prediction"]
    return found


def trials(probe: Probe, values: np.ndarray) -> dict[str, Any]:
    return {
        "arm": [probe.arm] * S,
        "sentence_id": [f"s{i}" for i in range(S)],
        "injection_id": [probe.injection_id] * S,
        "off_type": [False] * S,
        "predicted_shift": np.full(S, probe.predicted_shift),
        "identified": [None if np.isnan(value) else "up" for value in values],
        "count_success": values,
        "mass_success": values,
        **{f"delta_{m}{end}": values for m in ("mass", "log_odds") for end in ("", "_low", "_high")},
    }


@pytest.fixture(scope="module")
def true(plan: Plan) -> dict[str, Any]:
    return run(plan, by_arm=1.0, own=1.0)


def test_a_true_prediction_is_found_everywhere_with_slope_one(true: dict[str, Any]) -> None:
    assert true["arms"] == list(ARMS)
    for part, n in ((true, 3 * 3 * K), (true["within"]["high"], 3 * K)):
        assert part["n"] == n
        assert part["spearman"] > 0.9
        assert part["ci_low"] < part["spearman"] < part["ci_high"] < 1
        assert part["partial_ci_low"] < part["partial"] < part["partial_ci_high"] < 1
        assert part["partial_p"] == pytest.approx(1 / 2000)
        assert part["slope_ci_low"] < part["slope"] < part["slope_ci_high"]
        assert part["slope"] == pytest.approx(1, abs=0.1)
        assert part["partial_slope"] == pytest.approx(1, abs=0.1)
    assert (true["pairs"]["n"], true["pairs"]["arm"], true["pairs"]["control"]) == (3 * K, "high", "matched")
    assert true["pairs"]["partial"] > 0.8


def test_the_bins_of_a_true_prediction_lie_on_the_line(true: dict[str, Any]) -> None:
    assert [row["n"] for row in true["calibration"]] == [22, 22, 22, 21, 21]
    for row in true["calibration"]:
        assert row["observed"] == pytest.approx(row["predicted"], abs=0.25)


def test_a_prediction_that_only_knows_the_arms_is_nothing_within_one(plan: Plan) -> None:
    found = run(plan, by_arm=1.0, own=0.0)
    assert found["p"] < 0.01
    assert abs(found["within"]["high"]["spearman"]) < 0.5
    assert found["within"]["high"]["partial_p"] > 0.01
    assert found["pairs"]["partial_p"] > 0.01


def test_an_injection_without_an_answer_is_left_out_with_its_pair(plan: Plan) -> None:
    found = run(plan, by_arm=1.0, own=1.0, missing="high-3")
    assert found["n"] == 3 * (3 * K - 1)
    assert found["within"]["high"]["n"] == found["pairs"]["n"] == 3 * (K - 1)


def test_the_correlation_over_pairs_is_that_of_differences(plan: Plan) -> None:
    found = run(plan, by_arm=1.0, own=0.3)["pairs"]
    rng = np.random.default_rng(1)
    means: dict[tuple[str, str, int], float] = {}
    for concept in CONCEPTS:
        for arm, shift in ARMS.items():
            for i, probe in enumerate(plan.pack.probes[concept, arm]):
                means[concept, arm, i] = (shift + 0.3 * ((probe.predicted_shift or 0) - shift) + rng.normal(0, 0.5, S)).mean()
    keys = [(c, i) for c in CONCEPTS for i in range(K)]
    observed = [means[c, "high", i] - means[c, "matched", i] for c, i in keys]
    predicted = [
        (plan.pack.probes[c, "high"][i].predicted_shift or 0) - (plan.pack.probes[c, "matched"][i].predicted_shift or 0)
        for c, i in keys
    ]
    assert found["spearman"] == pytest.approx(stats.spearmanr(predicted, observed).statistic)


def test_a_pack_that_predicts_nothing_says_so(plan: Plan) -> None:
    found = Predictions(metric="delta_log_odds", pack=plan.pack, seed=0).summary()
    assert (found["n"], found["spearman"], found["partial"], found["slope"], found["calibration"]) == (0, None, None, None, [])
    assert (found["reason"], found["within"], found["pairs"]) == ("fewer than 5 points", {}, None)


def test_what_is_known_of_an_injection_is_its_length_frequency_and_overlap(plan: Plan) -> None:
    words = common_words()
    own = sorted(find_concept("animal").words)[0]
    probe = Probe(
        concept="animal", arm="high", injection_id="x", injection=(f" {words[0]}", f" {words[9]}", f" {own}", " Zzyx")
    )
    known = Predictions(metric="delta_log_odds", pack=plan.pack, seed=0)._covariates(probe, find_concept("animal").words)
    ranks = [0, 9, words.index(own) if own in words else len(words), len(words)]
    assert known == pytest.approx((len("".join(probe.injection)), np.mean(np.log1p(ranks)), 1 / 4))
