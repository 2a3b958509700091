"""From pairs of answers to a decision: what counts as a difference, and what its interval rests on."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from harness.gate.answers import Answer, clusters_of
from harness.gate.baseline import Cluster, Entry
from harness.gate.judge import anytime_score, by_concept, decide, fixed_score, pair
from harness.gate.result import Score

from .conftest import answer, gate_spec

VALUED = {"metric": "delta_log_odds", "arm": "related"}


def valued(prompt: str, value: float, width: float = 0.0) -> Answer:
    return answer(prompt, value=(value - width, value + width))


def paired(then: list[Answer], now: list[Answer], **gate: object) -> tuple[object, object]:
    spec = gate_spec(**gate)
    return pair(clusters_of(then, spec, seed=0), {one.prompt: one for one in now}, spec), spec


def test_prompts_that_share_a_sentence_or_an_injection_are_one_cluster() -> None:
    crossed = [answer(f"animal/related/k{k}/s{s}") for k in range(2) for s in range(2)]
    alone = [answer("animal/related/k7/s7"), answer("animal/clean//s7"), answer("food/related/k0/s0")]
    clusters = clusters_of([*crossed, *alone], gate_spec(), seed=0)
    found = sorted(sorted(entry.prompt for entry in cluster.prompts) for cluster in clusters)
    assert found == [
        ["animal/clean//s7", "animal/related/k7/s7"],
        sorted(one.prompt for one in crossed),
        ["food/related/k0/s0"],
    ]


def test_clusters_come_in_a_random_order_that_the_seed_fixes() -> None:
    answers = [answer(f"animal/related/k{i}/s{i}") for i in range(30)]
    orders = [[c.prompts[0].prompt for c in clusters_of(answers, gate_spec(), seed=seed)] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert orders[0] != sorted(orders[0])


def test_equal_lists_agree_wholly_and_lists_of_other_words_not_at_all() -> None:
    then = [answer(f"animal/clean//s{i}", p={" a": 0.6, " b": 0.4}) for i in range(2)]
    now = [answer("animal/clean//s0", p={" b": 0.4, " a": 0.6}), answer("animal/clean//s1", p={" c": 0.7, " d": 0.3})]
    pairs, _ = paired(then, now)
    by_prompt = dict(zip([one.prompt for one in pairs.answers], pairs.now, strict=True))
    assert by_prompt == pytest.approx({"animal/clean//s0": 1.0, "animal/clean//s1": 0.0}, abs=1e-4)


def test_what_a_cut_list_hides_is_not_held_against_the_run() -> None:
    then = [answer("animal/clean//s0", p={" a": 0.5, " b": 0.1})]
    now = [answer("animal/clean//s0", p={" a": 0.5, " c": 0.1})]  # " b" and " c" may each be as likely in the other's tail
    pairs, _ = paired(then, now)
    assert pairs.low == pytest.approx([0.0])


def test_a_difference_of_rounding_is_none() -> None:
    p = {f" {i}": float(q) for i, q in enumerate(np.sort(np.random.default_rng(0).dirichlet(np.ones(20)))[::-1])}
    pairs, _ = paired([answer("animal/clean//s0", p=p)], [answer("animal/clean//s0", p=p)])
    assert pairs.low.tolist() == [0.0]


def test_one_prompt_counts_no_more_than_the_bound() -> None:
    then, now = [answer("animal/clean//s0", p={" a": 1.0})], [answer("animal/clean//s0", p={" b": 1.0})]
    assert paired(then, now, bound=0.25)[0].low.tolist() == [-0.25]
    values = [valued("animal/related/k0/s0", v) for v in (50.0, -50.0)]
    assert paired(values[:1], values[1:], **VALUED)[0].low.tolist() == [-4.0]


def test_bounds_of_both_times_widen_the_difference() -> None:
    pairs, _ = paired([valued("a/related/k/s", 1.0, 0.2)], [valued("a/related/k/s", 0.5, 0.1)], **VALUED)
    assert (pairs.low[0], pairs.high[0]) == pytest.approx((-0.8, -0.2))


def test_a_failed_prompt_is_left_out_and_is_no_zero() -> None:
    then = [answer(f"animal/clean//s{i}") for i in range(3)]
    now = [then[0], then[1], answer("animal/clean//s2", error="HTTP 500", tokens=(), p={})]
    assert len(paired(then, now)[0].answers) == 2


def test_of_independent_clusters_the_interval_is_student_s() -> None:
    rng = np.random.default_rng(1)
    then = [valued(f"animal/related/k{i}/s{i}", v) for i, v in enumerate(rng.normal(size=30))]
    moved = rng.normal(-0.2, 0.3, 30)
    now = [valued(one.prompt, one.value[0] + d) for one, d in zip(then, moved, strict=True)]
    score = fixed_score(*paired(then, now, alpha=0.01, **VALUED))
    expected = stats.ttest_1samp(moved, 0).confidence_interval(0.98)
    assert (score.ci_low, score.ci_high) == pytest.approx((expected.low, expected.high))
    assert (score.n_units, score.n_clusters) == (30, 30)


def test_a_control_s_change_is_taken_off() -> None:
    rng = np.random.default_rng(2)
    prompts = [f"animal/{arm}/{arm}{i}/s{i}" for i in range(40) for arm in ("related", "matched")]
    then = [valued(prompt, float(v)) for prompt, v in zip(prompts, rng.normal(size=80), strict=True)]
    now = [valued(p.prompt, p.value[0] + 0.5 + (0.3 if p.arm == "related" else 0) + rng.normal(0, 0.01)) for p in then]
    gate = {"control": "matched", "bound": 1.0, **VALUED}
    for score in (fixed_score(*paired(then, now, **gate)), anytime_score(*paired(then, now, **gate))):
        assert score.estimate == pytest.approx(0.3, abs=0.01)
        assert score.ci_low < 0.3 < score.ci_high


def test_where_nothing_differs_the_interval_is_still_as_wide_as_so_few_clusters_allow() -> None:
    then = [answer(f"animal/clean//s{i}") for i in range(10)]
    pairs, gate = paired(then, then, alpha=0.01)
    score = fixed_score(pairs, gate)
    assert (score.estimate, score.ci_high) == (0.0, 0.0)
    assert score.ci_low <= -(
        1 - 0.01 ** (1 / 10)
    )  # the mean of 10 values that are all 0 may be so low, no method can do better
    assert score == anytime_score(pairs, gate)


def test_each_concept_has_a_score_of_its_own() -> None:
    then = [answer(f"{concept}/clean//s{i}", p={" a": 1.0}) for concept in ("animal", "food") for i in range(8)]
    now = [one if one.concept == "food" else answer(one.prompt, p={" a": 0.5, " b": 0.5}) for one in then]
    scores = by_concept(*paired(then, now))
    assert scores["food"].estimate == 0.0
    assert scores["animal"].estimate == pytest.approx(-0.5, abs=1e-4)


def test_nothing_answered_says_so() -> None:
    cluster = Cluster(concept="animal", prompts=(Entry(prompt="animal/clean//s0", tokens=(" a",), lacking=(1,)),))
    pairs = pair([cluster], {}, gate_spec())
    assert anytime_score(pairs, gate_spec()).reason == "no cluster was answered"
    assert fixed_score(pairs, gate_spec()).estimate is None


@pytest.mark.parametrize(
    ("low", "high", "decision"),
    [
        (-0.09, 0.0, "pass"),
        (-0.3, -0.11, "fail"),
        (-0.11, 0.2, "inconclusive"),
        (-0.2, -0.05, "inconclusive"),
        (None, None, "inconclusive"),
    ],
)
def test_the_decision_is_by_the_interval_against_the_margin(low: float | None, high: float | None, decision: str) -> None:
    assert decide(Score(estimate=-0.1, ci_low=low, ci_high=high), 0.1) == decision


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"metric": "count_success"}, "name their arm"),
        ({"metric": "agreement", "arm": "related", "control": "matched"}, "knows no control"),
    ],
)
def test_a_gate_that_cannot_be_judged_is_no_gate(given: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gate_spec(**given)
