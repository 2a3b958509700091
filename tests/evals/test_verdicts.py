"""The rules of the verdict on rows written by hand, and their error rates on simulated runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from harness.evals.analysis import Analysis
from harness.evals.measures import ALL
from harness.evals.plan import Choice, Plan, make_plan
from harness.evals.spec import Contrast, EvalSpec, find_eval
from harness.evals.verdicts import NO_CHECK, NO_MARGIN, across_targets, calibrate, correct, judge, settle
from harness.packs.pack import Draft, write_pack
from harness.records import Probe

METRIC = "delta_log_odds"
Row = dict[str, Any]


def row(concept: str, estimate: float | None, *, half: float = 0.1, p: float | None = 0.5, **more: Any) -> Row:
    """A row of `contrasts`; the smallest effect it could have shown is 1.45 half widths, as with many degrees of freedom."""
    ends = (None, None) if estimate is None else (estimate - half, estimate + half)
    names = {"concept": concept, "arm": "high", "control": "matched", "metric": METRIC, "reason": None}
    values = {"estimate": estimate, "estimate_low": estimate, "estimate_high": estimate, "ci_low": ends[0], "ci_high": ends[1]}
    judged = {"p": p, "p_holm": p, "p_by": p, "mde": None if estimate is None else 1.45 * half, "margin": 0.1}
    return {**names, **values, **judged, "within_margin": None, "verdict": None, "verdict_reason": None} | more


def judged(one: Row, alpha: float = 0.05) -> tuple[Any, Any, Any]:
    judge(one, alpha=alpha, power=0.8)
    return one["verdict"], one["verdict_reason"], one["within_margin"]


def test_what_is_found_is_judged_by_its_sign() -> None:
    assert judged(row(ALL, 0.3, p=0.001)) == ("transfers", None, False)
    assert judged(row(ALL, -0.3, p=0.001)) == ("reversed", None, False)


def test_the_row_over_all_goes_by_holm_and_a_concepts_by_benjamini_and_yekutieli() -> None:
    assert judged(row(ALL, 0.3, p=0.01, p_holm=0.04, p_by=0.9))[0] == "transfers"
    assert judged(row(ALL, 0.3, p=0.01, p_holm=0.06, p_by=0.01, half=0.01))[0] == "no evidence"
    assert judged(row("animal", 0.3, p=0.01, p_holm=0.9, p_by=0.04))[0] == "transfers"
    assert judged(row("animal", 0.3, p=0.01, p_holm=0.01, p_by=0.06))[0] == "undetermined"


def test_nothing_found_is_no_evidence_only_where_a_shift_of_the_margin_would_have_been_seen() -> None:
    assert judged(row(ALL, 0.05, half=0.068)) == ("no evidence", None, False)
    verdict, reason, _ = judged(row(ALL, 0.05, half=0.07))
    assert verdict == "undetermined"
    assert reason == "the run is too small: with 80% power it sees shifts from 0.10 nat on, and 0.10 nat would matter"


def test_an_interval_inside_the_margin_excludes_a_shift_that_matters() -> None:
    assert judged(row(ALL, 0.01, half=0.05)) == ("no evidence", None, True)
    assert judged(row(ALL, 0.0, half=0.09, mde=0.13)) == ("no evidence", None, True)
    assert judged(row(ALL, 0.05, half=0.04, p=0.02)) == ("transfers", None, True)


def test_without_an_estimate_or_an_interval_nothing_is_determined() -> None:
    assert judged(row(ALL, None, p=None, reason="no trials")) == ("undetermined", "no trials", None)
    assert judged(row(ALL, 0.3, p=None, ci_low=None, ci_high=None, mde=None, reason="no variation")) == (
        "undetermined",
        "no variation",
        None,
    )


def test_a_contrast_without_a_margin_is_found_or_undetermined() -> None:
    assert judged(row(ALL, 0.3, p=0.001, margin=None)) == ("transfers", None, None)
    assert judged(row(ALL, 0.0, half=0.01, margin=None)) == ("undetermined", NO_MARGIN, None)


def test_p_is_corrected_over_the_concepts_of_one_contrast_and_metric_alone() -> None:
    rows = [row(c, 0.1, p=p) for c, p in (("a", 0.01), ("b", 0.04), ("c", None), (ALL, 0.03))]
    other = [row("a", 0.1, p=0.02, metric="delta_mass"), row("a", 0.1, p=0.02, control="random")]
    correct([*rows, *other])
    harmonic = 1 + 1 / 2
    assert [r["p_by"] for r in rows] == [pytest.approx(0.01 * 2 * harmonic), pytest.approx(0.04 * harmonic), None, 0.03]
    assert [r["p_holm"] for r in rows] == [0.02, 0.04, None, 0.03]
    assert [r["p_by"] for r in other] == [0.02, 0.02]


DETECTED, SILENT = Contrast(arm="related", control="matched"), Contrast(arm="shuffled", control="matched")
BOTH: dict[Any, Contrast] = {"detected": DETECTED, "silent": SILENT}


def checks(arm: str, overall: Row, p_of_concepts: tuple[float, ...] = (0.5, 0.5, 0.5)) -> Row:
    """The outcome of the check whose arm is `arm`."""
    rows = [row(f"c{i}", 0.1, p=p, arm=arm) for i, p in enumerate(p_of_concepts)]
    outcome = calibrate([*rows, overall | {"arm": arm}], BOTH, metric=METRIC, alpha=0.05)
    return next(check for check in outcome if check["arm"] == arm)


def test_words_near_the_concept_must_be_found_and_towards_it() -> None:
    assert checks("related", row(ALL, 0.5, p=0.001))["status"] == "passed"
    assert checks("related", row(ALL, 0.5, p=0.06))["status"] == "failed"
    assert checks("related", row(ALL, -0.5, p=0.001))["status"] == "failed"


def test_words_of_another_concept_must_not_be_found_towards_it() -> None:
    assert checks("shuffled", row(ALL, 0.05, p=0.3))["status"] == "passed"
    assert checks("shuffled", row(ALL, -0.3, p=0.01))["status"] == "passed"
    failed = checks("shuffled", row(ALL, 0.3, p=0.01))
    assert (failed["status"], failed["reason"]) == ("failed", "found")


@pytest.mark.parametrize(("n", "n_found"), [(10, 1), (10, 2), (10, 3), (20, 3), (20, 4)])
def test_words_of_another_concept_may_be_found_in_no_more_concepts_than_chance_allows(n: int, n_found: int) -> None:
    check = checks("shuffled", row(ALL, 0.0, p=0.9), (0.01,) * n_found + (0.5,) * (n - n_found))
    chance = stats.binomtest(n_found, n, 0.05, alternative="greater").pvalue
    assert check["status"] == ("failed" if chance < 0.05 else "passed")
    assert (check["share"], check["n_found"], check["n_concepts"]) == (n_found / n, n_found, n)


def test_a_check_without_arms_or_trials_is_not_possible() -> None:
    missing = calibrate([], {}, metric=METRIC, alpha=0.05)
    assert [(c["check"], c["status"], c["reason"]) for c in missing] == [
        ("detected", "not possible", NO_CHECK),
        ("silent", "not possible", NO_CHECK),
    ]
    empty = checks("related", row(ALL, None, p=None, reason="no trials"), ())
    assert (empty["status"], empty["reason"]) == ("not possible", "no trials")


def settled(*overall: tuple[str, Row], **options: Any) -> Row:
    """A summary over two concepts whose rows over all are given by arm; concepts say as little as can be."""
    rows = [row(c, 0.3, p=0.6, arm=arm) for arm, _ in overall for c in ("a", "b")]
    rows += [one | {"arm": arm} for arm, one in overall]
    primary = {"arm": "high", "control": "matched", "metric": METRIC, "margin": 0.1}
    found: Row = {"primary": primary, "contrasts": rows} | options
    settle(found, SPEC, BOTH)
    return found


SPEC: EvalSpec = find_eval("transfer").spec
GOOD = (("related", row(ALL, 0.5, p=0.001)), ("shuffled", row(ALL, 0.0, p=0.9)))


def test_the_runs_verdict_is_that_of_its_primary_contrast_over_all() -> None:
    verdict = settled(("high", row(ALL, 0.27, p=0.001)), *GOOD)["verdict"]
    assert (verdict["verdict"], verdict["withheld"], verdict["reason"]) == ("transfers", None, None)
    assert (verdict["alpha"], verdict["power"], verdict["margin"]) == (0.05, 0.8, 0.1)
    assert verdict["mde"] == pytest.approx(0.145)
    assert [check["status"] for check in verdict["calibration"]] == ["passed", "passed"]


@pytest.mark.parametrize(
    ("related", "shuffled", "says"),
    [
        (
            row(ALL, 0.5, p=0.001),
            row(ALL, 0.23, p=0.01),
            "words that interfere with another concept, which should not, move it",
        ),
        (
            row(ALL, 0.5, p=0.2),
            row(ALL, 0.0, p=0.9),
            "the run does not see what it must see: words near the concept in meaning",
        ),
    ],
)
def test_a_failed_check_withholds_every_verdict_of_the_primary_contrast(related: Row, shuffled: Row, says: str) -> None:
    found = settled(("high", row(ALL, 0.27, p=0.001)), ("related", related), ("shuffled", shuffled))
    verdict = found["verdict"]
    assert (verdict["verdict"], verdict["withheld"]) == ("undetermined", "transfers")
    assert verdict["reason"].startswith(says)
    rows = [r for r in found["contrasts"] if r["arm"] == "high"]
    assert {(r["verdict"], r["verdict_reason"]) for r in rows} == {("undetermined", verdict["reason"])}
    assert {r["verdict"] for r in found["contrasts"] if r["arm"] == "related" and r["concept"] == ALL} <= {
        "transfers",
        "undetermined",
    }


def test_a_check_that_is_not_possible_withholds_nothing() -> None:
    verdict = settled(("high", row(ALL, 0.27, p=0.001)))["verdict"]
    assert verdict["verdict"] == "transfers"
    assert [check["status"] for check in verdict["calibration"]] == ["not possible", "not possible"]


def test_a_lone_concept_speaks_for_the_run() -> None:
    primary = {"arm": "high", "control": "matched", "metric": METRIC, "margin": 0.1}
    rows = [row("a", 0.4, p=0.01), row(ALL, 0.4, p=None, ci_low=None, ci_high=None, mde=None, reason="fewer than 2 concepts")]
    found: Row = {"primary": primary, "contrasts": rows}
    settle(found, SPEC, {})
    assert found["verdict"]["verdict"] == "transfers"


def test_a_run_without_a_primary_contrast_or_trials_is_undetermined() -> None:
    without = settled(primary=None, contrasts=[])["verdict"]
    assert (without["verdict"], without["sentence"]) == ("undetermined", "undetermined: no primary contrast")
    assert settled(contrasts=[])["verdict"]["sentence"] == "undetermined: no trials"


def test_several_targets_correct_each_others_claims() -> None:
    one, two, three = (settled(("high", row(ALL, 0.27, p=p)), *GOOD) for p in (0.02, 0.04, 0.001))
    assert {s["verdict"]["verdict"] for s in (one, two, three)} == {"transfers"}
    across_targets([one, two, three])
    claims = [next(r for r in s["contrasts"] if r["arm"] == "high" and r["concept"] == ALL) for s in (one, two, three)]
    assert [claim["p_holm"] for claim in claims] == pytest.approx([0.04, 0.04, 0.003])
    across_targets([one, two, three])
    assert [claim["p_holm"] for claim in claims] == pytest.approx([0.04, 0.04, 0.003])
    four = settled(("high", row(ALL, 0.27, p=0.03)), *GOOD)
    across_targets([two, four])
    assert (two["verdict"]["verdict"], four["verdict"]["verdict"]) == ("undetermined", "undetermined")
    assert four["verdict"]["n_targets"] == 2


def test_what_a_failed_check_withheld_stays_withheld_over_several_targets() -> None:
    bad = settled(("high", row(ALL, 0.27, p=0.001)), GOOD[0], ("shuffled", row(ALL, 0.23, p=0.01)))
    good = settled(("high", row(ALL, 0.27, p=0.001)), *GOOD)
    across_targets([bad, good])
    assert (bad["verdict"]["verdict"], bad["verdict"]["withheld"]) == ("undetermined", "transfers")
    assert good["verdict"]["verdict"] == "transfers"


CONCEPTS, ARMS = (
    ("animal", "body", "color", "food", "music", "plant", "sport", "time"),
    ("high", "matched", "shuffled", "related"),
)
N_SENTENCES, N_INJECTIONS = 6, 5


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    probes = [
        Probe(
            concept=concept,
            arm=arm,
            injection_id=f"{arm}-{i}",
            injection=(f" word{i}",),
            provenance={"matched_to": f"high-{i}"} if arm == "matched" else {},
        )
        for concept in CONCEPTS
        for arm in ARMS
        for i in range(N_INJECTIONS)
    ]
    folder = tmp_path_factory.mktemp("packs") / "pack"
    pack = write_pack(Draft(name="p", description="d", claims="none", maker="t", seed=0, probes=probes), folder)
    eval_ = find_eval("transfer")
    return make_plan(replace(eval_, spec=eval_.spec.model_copy(update={"contrasts": ()})), pack, Choice())


def simulated(plan: Plan, effects: dict[str, float], seed: int, *, sd: float = 0.3) -> Row:
    """The summary of a crossed run: normal effects of concept, sentence, injection and cell, and `effects` by arm."""
    rng = np.random.default_rng(seed)
    analysis = Analysis(plan, "t")
    sentences = np.repeat([f"s{i}" for i in range(N_SENTENCES)], N_INJECTIONS)
    for concept in CONCEPTS:
        by_sentence = rng.normal(0, sd, (N_SENTENCES, 1))
        for arm in ARMS:
            shape = (N_SENTENCES, N_INJECTIONS)
            shift = effects.get(arm, 0.0) + by_sentence + rng.normal(0, sd, shape[1]) + rng.normal(0, sd, shape)
            analysis.add(trials(arm, sentences, shift.ravel()))
        analysis.close_concept(concept)
    return analysis.summary()


def trials(arm: str, sentences: np.ndarray, values: np.ndarray) -> dict[str, Any]:
    success = (values > 0).astype(float)
    return {
        "arm": [arm] * values.size,
        "sentence_id": sentences,
        "injection_id": [f"{arm}-{i}" for i in range(N_INJECTIONS)] * N_SENTENCES,
        "off_type": [False] * values.size,
        "predicted_shift": np.full(values.size, np.nan),
        "identified": np.where(values > 0, "up", "down").tolist(),
        "count_success": success,
        "mass_success": success,
        **{f"delta_{m}{end}": values for m in ("mass", "log_odds") for end in ("", "_low", "_high")},
    }


N_RUNS = 20


@pytest.fixture
def _few_permutations(monkeypatch: pytest.MonkeyPatch) -> None:
    """The p of permutations decides no verdict."""
    monkeypatch.setattr("harness.evals.contrasts.N_PERMUTATIONS", 19)
    monkeypatch.setattr("harness.evals.contrasts.N_SECONDARY", 19)


@pytest.mark.usefixtures("_few_permutations")
def test_where_nothing_transfers_the_verdict_is_almost_never_that_it_does(plan: Plan) -> None:
    found = [simulated(plan, {"related": 0.8}, seed)["verdict"]["verdict"] for seed in range(N_RUNS)]
    assert found.count("transfers") + found.count("reversed") <= stats.binom.ppf(0.999, N_RUNS, 0.05)


@pytest.mark.usefixtures("_few_permutations")
def test_where_everything_transfers_the_verdict_says_so_unless_the_other_concepts_words_do_too(plan: Plan) -> None:
    effects = {"related": 0.8, "high": 0.8}
    found = [simulated(plan, effects, seed)["verdict"] for seed in range(N_RUNS)]
    withheld = [verdict for verdict in found if verdict["withheld"]]
    assert len(withheld) <= stats.binom.ppf(0.999, N_RUNS, 0.075)  # half of .05 over all, .05 by their number
    assert {verdict["verdict"] for verdict in found if not verdict["withheld"]} == {"transfers"}
    failing = simulated(plan, effects | {"shuffled": 0.8}, 0)["verdict"]
    assert (failing["verdict"], failing["withheld"]) == ("undetermined", "transfers")


@pytest.mark.usefixtures("_few_permutations")
def test_a_run_that_sees_nothing_is_not_believed(plan: Plan) -> None:
    verdict = simulated(plan, {}, 1)["verdict"]
    assert verdict["verdict"] == "undetermined"
    assert verdict["calibration"][0]["status"] == "failed"


def test_pairs_count_as_one_injection_in_contrasts_with_their_own_arm_alone(plan: Plan) -> None:
    rng = np.random.default_rng(5)
    analysis = Analysis(plan, "t")
    sentences = np.repeat([f"s{i}" for i in range(N_SENTENCES)], N_INJECTIONS)
    shared = rng.normal(0, 2, N_INJECTIONS)  # what a pair has in common, large
    values = {arm: rng.normal(0, 0.1, (N_SENTENCES, N_INJECTIONS)) for arm in ARMS}
    for arm in ("high", "matched"):
        values[arm] = values[arm] + shared
    for arm in ARMS:
        analysis.add(trials(arm, sentences, values[arm].ravel()))
    analysis.close_concept("animal")
    rows = {r["arm"]: r for r in analysis.summary()["contrasts"] if (r["metric"], r["concept"]) == (METRIC, "animal")}
    differences = values["high"] - values["matched"]
    assert rows["high"]["estimate"] == pytest.approx(differences.mean())
    assert rows["high"]["se"] < 0.1 < 0.5 < rows["related"]["se"]
    signs = np.array(np.meshgrid(*[(1, -1)] * N_INJECTIONS)).reshape(N_INJECTIONS, -1)
    sums = np.abs(differences.mean(axis=0) @ signs)
    assert rows["high"]["p_permutation"] == pytest.approx(np.mean(sums >= sums[0] - 1e-12))
