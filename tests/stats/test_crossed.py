"""Two-way clustered estimates: against the textbook's double sum, closed forms, and simulated nulls."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from harness.stats import crossed
from harness.stats.crossed import Estimate, Trials, contrast_two_way, mean_of_concepts, mean_two_way, paired_differences
from harness.stats.intervals import identified_interval, identified_p, smallest_effect

Floats = NDArray[np.float64]


def crossed_trials(values: Floats, injections: Sequence[object] | None = None) -> Trials:
    """Trials of a full (S, K) table."""
    n_sentences, n_injections = values.shape
    names = np.array(injections if injections is not None else [f"k{k}" for k in range(n_injections)])
    return Trials.of(values.ravel(), np.repeat(np.arange(n_sentences), n_injections), np.tile(names, n_sentences))


def unbalanced(rng: np.random.Generator, n: int, prefix: str = "k") -> Trials:
    """n trials thrown at random into 9 sentences x 7 injections, with effects of both; some cells twice, some never."""
    s, k = rng.integers(0, 9, n), rng.integers(0, 7, n)
    values = rng.normal(size=9)[s] + rng.normal(size=7)[k] + rng.normal(size=n)
    return Trials.of(values, [f"s{i}" for i in s], [f"{prefix}{i}" for i in k])


def pair_sum(residuals: Floats, labels: Sequence[object], n_clusters: int) -> float:
    """The textbook's meat: every pair of observations that share a cluster, times G / (G - 1), over n squared."""
    total = 0.0
    for i in range(len(residuals)):
        for j in range(len(residuals)):
            if labels[i] == labels[j]:
                total += residuals[i] * residuals[j]
    return total / len(residuals) ** 2 * n_clusters / (n_clusters - 1)


def textbook(trials: Trials) -> tuple[float, float, int]:
    """Mean, standard error with the max rule, and degrees of freedom of one arm."""
    cells = list(zip(trials.sentences.tolist(), trials.injections.tolist(), strict=True))
    sentences, injections = zip(*cells, strict=True)
    residuals = trials.low - trials.low.mean()
    v_s, v_k, v_sk = (pair_sum(residuals, labels, len(set(labels))) for labels in (sentences, injections, cells))
    degrees = min(len(set(sentences)), len(set(injections))) - 1
    return float(trials.low.mean()), math.sqrt(max(v_s + v_k - v_sk, v_s, v_k)), degrees


def assert_same(found: Estimate, expected: Estimate) -> None:
    for field in ("value", "ci_low", "ci_high", "se", "p"):
        assert getattr(found, field) == near(getattr(expected, field)), field
    assert (found.df, found.reason) == (expected.df, expected.reason)


def near(expected: float | None) -> object:
    return None if expected is None else pytest.approx(expected, rel=1e-9, abs=1e-12)


def numbers(estimate: Estimate) -> tuple[float | None, ...]:
    return (estimate.ci_low, estimate.ci_high, estimate.se, estimate.df, estimate.p)


@pytest.mark.parametrize("seed", range(4))
def test_an_unbalanced_mean_is_the_textbooks_double_sum(seed: int) -> None:
    trials = unbalanced(np.random.default_rng(seed), 60)
    value, se, df = textbook(trials)
    found = mean_two_way(trials, confidence=0.9)
    assert (found.value, found.se, found.df) == (pytest.approx(value), pytest.approx(se), df)
    low, high = stats.t.interval(0.9, df, loc=value, scale=se)
    assert (found.ci_low, found.ci_high) == (pytest.approx(low), pytest.approx(high))
    assert found.p == pytest.approx(2 * stats.t.sf(abs(value) / se, df))
    assert (found.n_trials, found.n_dropped) == (60, 0)


def test_a_balanced_mean_has_the_closed_form() -> None:
    rng = np.random.default_rng(21)
    table = rng.normal(size=(12, 1)) + rng.normal(size=(1, 5)) + rng.normal(size=(12, 5))
    e, n = table - table.mean(), table.size
    v_s = 12 / 11 * (e.sum(1) ** 2).sum() / n**2
    v_k = 5 / 4 * (e.sum(0) ** 2).sum() / n**2
    v_sk = n / (n - 1) * (e**2).sum() / n**2
    found = mean_two_way(crossed_trials(table))
    assert v_s + v_k - v_sk > max(v_s, v_k), "the table should not need the max rule"
    assert (found.se, found.df) == (pytest.approx(math.sqrt(v_s + v_k - v_sk)), 4)
    assert (found.n_sentences, found.n_injections, found.n_trials) == (12, 5, 60)


def test_a_variance_below_one_way_is_lifted_to_it() -> None:
    # Injections cancel within sentences, so that V_s = 0 and V = V_k - V_sk < V_k.
    table = np.array([[1.0, -1.0], [1.5, -1.5], [0.5, -0.5]])
    v_k = 2 * (2 * 3.0**2) / 36
    assert mean_two_way(crossed_trials(table)).se == pytest.approx(math.sqrt(v_k))


def test_fresh_injections_for_each_trial_leave_the_sentences_clusters() -> None:
    rng = np.random.default_rng(22)
    values = (rng.normal(size=(10, 1)) + rng.normal(size=(10, 6))).ravel()
    found = mean_two_way(Trials.of(values, np.repeat(np.arange(10), 6), np.arange(60)))
    by_sentence = values.reshape(10, 6).mean(1)
    assert found.se == pytest.approx(stats.sem(by_sentence))
    assert (found.df, found.n_injections) == (9, 60)


def test_missing_trials_are_dropped_and_counted() -> None:
    trials = unbalanced(np.random.default_rng(23), 50)
    values = trials.low.copy()
    values[[3, 17]] = np.nan
    known = ~np.isnan(values)
    found = mean_two_way(Trials.of(values, trials.sentences, trials.injections))
    assert_same(found, mean_two_way(trials.take(known)))
    assert (found.n_trials, found.n_dropped) == (48, 2)


@pytest.mark.parametrize(
    ("values", "sentences", "injections", "value", "reason"),
    [
        ([], [], [], None, crossed.NO_TRIALS),
        ([np.nan, np.nan], [0, 1], [0, 1], None, crossed.NO_TRIALS),
        ([1.0, 2.0], [0, 0], [0, 1], 1.5, crossed.FEW_SENTENCES),
        ([1.0, 2.0], [0, 1], [0, 0], 1.5, crossed.FEW_INJECTIONS),
        ([0.1] * 4, [0, 0, 1, 1], [0, 1, 0, 1], 0.1, crossed.NO_VARIATION),
        ([0.0] * 4, [0, 0, 1, 1], [0, 1, 0, 1], 0.0, crossed.NO_VARIATION),
        ([1.0, np.inf, 0.0, 2.0], [0, 0, 1, 1], [0, 1, 0, 1], None, "without a finite bound: 1 of 4 trials (25.0%)"),
    ],
)
def test_too_little_data_gives_no_interval_but_a_reason(
    values: list[float], sentences: list[int], injections: list[int], value: float | None, reason: str
) -> None:
    found = mean_two_way(Trials.of(values, sentences, injections))
    assert found.reason == reason
    assert found.value == near(value)
    assert numbers(found) == (None,) * 5


def test_values_that_cancel_in_every_row_and_column_give_no_interval() -> None:
    found = mean_two_way(crossed_trials(np.array([[1.0, -1.0], [-1.0, 1.0]])))
    assert (found.value, found.se, found.reason) == (0.0, None, crossed.NO_VARIATION)


@pytest.mark.parametrize(("by_sentence", "by_injection", "largest"), [(1.0, 1.0, "V"), (1.0, 0.0, "V_s"), (0.0, 1.0, "V_k")])
def test_matched_injections_make_the_contrast_a_mean_of_differences(
    by_sentence: float, by_injection: float, largest: str
) -> None:
    """Whichever of V, V_s and V_k is used, so that all three parts of V are those of the differences."""
    rng = np.random.default_rng(24)
    d = by_sentence * rng.normal(size=(8, 1)) + by_injection * rng.normal(size=6) + 0.1 * rng.normal(size=(8, 6))
    if largest != "V":  # what one factor explains is taken out whole, so that V_sk exceeds its V
        d -= d.mean(1 if largest == "V_k" else 0, keepdims=True)
    control = rng.normal(size=(8, 6)) + 3 * rng.normal(size=(8, 1)) + rng.normal(size=6)
    e, n = d - d.mean(), d.size
    parts = {"V_s": 8 / 7 * (e.sum(1) ** 2).sum() / n**2, "V_k": 6 / 5 * (e.sum(0) ** 2).sum() / n**2}
    parts["V"] = parts["V_s"] + parts["V_k"] - n / (n - 1) * (e**2).sum() / n**2
    assert max(parts, key=parts.__getitem__) == largest
    found = contrast_two_way(crossed_trials(control + d), crossed_trials(control))
    assert found.se == pytest.approx(math.sqrt(parts[largest]))
    assert_same(found, mean_two_way(crossed_trials(d)))
    differences = paired_differences(crossed_trials(control + d), crossed_trials(control))
    assert_same(found, mean_two_way(differences))


def test_the_cluster_jackknife_of_a_full_table_gives_the_same_parts() -> None:
    rng = np.random.default_rng(38)
    for rows_differ in (True, False):  # V_s is the largest part, then V_k
        table = rng.normal(size=(9, 7)) * 0.1 + (rng.normal(size=(9, 1)) if rows_differ else rng.normal(size=7))
        table -= table.mean(0 if rows_differ else 1, keepdims=True)
        axis = 0 if rows_differ else 1
        left_out = np.array([np.delete(table, place, axis).mean() for place in range(table.shape[axis])])
        jackknife = (len(left_out) - 1) / len(left_out) * ((left_out - left_out.mean()) ** 2).sum()
        assert mean_two_way(crossed_trials(table)).se == pytest.approx(math.sqrt(jackknife))


def test_what_arms_share_in_a_sentence_changes_nothing_where_injections_are_not_matched() -> None:
    rng = np.random.default_rng(39)
    arm, control, shared = rng.normal(size=(8, 6)), rng.normal(size=(8, 9)), 100 * rng.normal(size=(8, 1))
    names = [f"c{k}" for k in range(9)]
    plain = contrast_two_way(crossed_trials(arm), crossed_trials(control, names))
    assert_same(contrast_two_way(crossed_trials(arm + shared), crossed_trials(control + shared, names)), plain)


def test_own_injections_make_the_injections_part_of_the_contrast_welchs() -> None:
    # Every sentence says the same, so that only injections vary: the standard error is that of their two samples.
    rng = np.random.default_rng(25)
    effects, others = rng.normal(size=6), 2 * rng.normal(size=9)
    arm = crossed_trials(np.tile(effects, (5, 1)), [f"a{k}" for k in range(6)])
    control = crossed_trials(np.tile(others, (5, 1)), [f"b{k}" for k in range(9)])
    found = contrast_two_way(arm, control)
    welch = stats.ttest_ind(effects, others, equal_var=False)
    assert found.value / found.se == pytest.approx(welch.statistic)
    assert (found.df, found.n_sentences, found.n_injections, found.n_trials) == (4, 5, 6, 75)


@pytest.mark.parametrize("prefix", ["b", "a"])
def test_an_unbalanced_contrast_is_the_textbooks_double_sum_over_both_arms(prefix: str) -> None:
    """Injections of their own ("b") or matched ("a"); injections and cells about the mean of their sentence in both arms."""
    rng = np.random.default_rng(26)
    arm, control = unbalanced(rng, 45, "a"), unbalanced(rng, 60, prefix)
    assert set(arm.sentences) == set(control.sentences)
    sizes = (len(arm), len(control))
    of_arm = np.arange(sum(sizes)) < sizes[0]
    scale = np.where(of_arm, 1 / sizes[0], -1 / sizes[1])
    residuals = np.concatenate([arm.low - arm.low.mean(), control.low - control.low.mean()])
    of_trial = np.concatenate([arm.sentences, control.sentences])
    about_sentence = residuals - [residuals[of_trial == s].mean() for s in of_trial]
    labels = [*zip(arm.sentences, arm.injections, strict=True), *zip(control.sentences, control.injections, strict=True)]
    parts = []
    for kept in ((0,), (1,), (0, 1)):
        names = [tuple(label[place] for place in kept) for label in labels]
        g_arm, g_control = len({names[i] for i in range(45)}), len({names[i] for i in range(45, 105)})
        psi = scale * (residuals if kept == (0,) else about_sentence)
        scaled = psi * np.where(of_arm, math.sqrt(g_arm / (g_arm - 1)), math.sqrt(g_control / (g_control - 1)))
        parts.append(sum(scaled[i] * scaled[j] for i in range(105) for j in range(105) if names[i] == names[j]))
    v_s, v_k, v_sk = parts
    found = contrast_two_way(arm, control)
    assert found.value == pytest.approx(arm.low.mean() - control.low.mean())
    assert found.se == pytest.approx(math.sqrt(max(v_s + v_k - v_sk, v_s, v_k)))
    assert found.df == 6


def test_a_contrast_uses_only_sentences_that_both_arms_have() -> None:
    rng = np.random.default_rng(27)
    arm, control = unbalanced(rng, 60, "a"), unbalanced(rng, 60, "b")
    fewer = control.take(np.isin(control.sentences, ["s1", "s2", "s3", "s4"]))
    on_four = arm.take(np.isin(arm.sentences, ["s1", "s2", "s3", "s4"]))
    found = contrast_two_way(arm, fewer)
    assert_same(found, contrast_two_way(on_four, fewer))
    assert (found.n_sentences, found.n_trials, found.n_dropped) == (4, len(on_four) + len(fewer), 0)


def test_a_contrast_without_a_common_sentence_or_without_trials_says_so() -> None:
    arm, other = Trials.of([1.0, 2.0], ["a", "b"], [0, 1]), Trials.of([1.0, 2.0], ["c", "d"], [0, 1])
    nothing = Trials.of([np.nan], ["a"], [0])
    assert contrast_two_way(arm, other).reason == crossed.NO_COMMON_SENTENCE
    found = contrast_two_way(arm, nothing)
    assert (found.value, found.reason, found.n_dropped) == (None, crossed.NO_TRIALS, 1)


def test_swapping_arm_and_control_turns_the_contrast_round() -> None:
    rng = np.random.default_rng(28)
    arm, control = unbalanced(rng, 60, "a"), unbalanced(rng, 50, "b")
    found, turned = contrast_two_way(arm, control), contrast_two_way(control, arm)
    assert (found.value, found.ci_low, found.ci_high) == pytest.approx((-turned.value, -turned.ci_high, -turned.ci_low))
    assert (found.p, found.se) == pytest.approx((turned.p, turned.se))


def ends_of(found: Estimate, at_low: Estimate, at_high: Estimate, confidence: float = 0.95) -> tuple[object, object]:
    """The interval and p that the two ends make together, as `identified_interval` and `identified_p` have it."""
    ends = (at_low.value, at_high.value, at_low.se, at_high.se, found.df)
    return pytest.approx(identified_interval(*ends, confidence)), pytest.approx(identified_p(*ends))


def test_an_interval_of_bounds_is_shorter_than_from_the_low_ends_to_the_high_ends_limit() -> None:
    rng = np.random.default_rng(29)
    trials = unbalanced(rng, 60)
    low, high = trials.low + 2.0, trials.low + 2.0 + rng.random(60)
    found = mean_two_way(Trials.of(low, trials.sentences, trials.injections, high=high))
    at_low = mean_two_way(Trials.of(low, trials.sentences, trials.injections))
    at_high = mean_two_way(Trials.of(high, trials.sentences, trials.injections))
    assert found.value == pytest.approx((at_low.value + at_high.value) / 2)
    assert ((found.ci_low, found.ci_high), found.p) == ends_of(found, at_low, at_high)
    assert at_low.ci_low < found.ci_low < at_low.value < at_high.value < found.ci_high < at_high.ci_high
    assert found.p < at_low.p
    assert found.se == pytest.approx(max(at_low.se, at_high.se))


def test_the_smallest_effect_allows_for_what_may_hide_within_the_bounds() -> None:
    trials = unbalanced(np.random.default_rng(37), 60)
    exact = mean_two_way(trials)
    wide = mean_two_way(Trials.of(trials.low, trials.sentences, trials.injections, high=trials.low + 3))
    assert exact.smallest_effect(0.01, 0.9) == pytest.approx(smallest_effect(exact.se, exact.df, 0.01, 0.9))
    assert wide.smallest_effect() == pytest.approx(3 + exact.smallest_effect())
    assert Estimate(n_trials=3, value=1.0, value_low=1.0, value_high=1.0).smallest_effect() is None


def test_bounds_around_zero_are_no_evidence_however_many_trials() -> None:
    trials = unbalanced(np.random.default_rng(30), 60)
    noise = 1e-3 * trials.low
    found = mean_two_way(Trials.of(noise - 1, trials.sentences, trials.injections, high=noise + 1))
    assert found.p == 1.0
    assert found.ci_low < -1 < 1 < found.ci_high


def test_wide_bounds_below_zero_take_the_one_sided_p_of_the_upper_end() -> None:
    trials = unbalanced(np.random.default_rng(31), 60)
    low, high = trials.low - 1e6, trials.low - 2
    found = mean_two_way(Trials.of(low, trials.sentences, trials.injections, high=high))
    assert found.p == pytest.approx(mean_two_way(Trials.of(high, trials.sentences, trials.injections)).p / 2)


def test_equal_bounds_are_exact_values() -> None:
    trials = unbalanced(np.random.default_rng(32), 60)
    bounded = Trials.of(trials.low, trials.sentences, trials.injections, high=trials.low.copy())
    assert_same(mean_two_way(bounded), mean_two_way(trials))


def test_a_contrast_of_bounds_subtracts_the_far_ends() -> None:
    rng = np.random.default_rng(33)
    arm, control = unbalanced(rng, 60, "a"), unbalanced(rng, 60, "b")
    arm_high = Trials.of(arm.low + rng.random(60), arm.sentences, arm.injections)
    control_high = Trials.of(control.low + rng.random(60), control.sentences, control.injections)
    found = contrast_two_way(
        Trials.of(arm.low, arm.sentences, arm.injections, high=arm_high.low),
        Trials.of(control.low, control.sentences, control.injections, high=control_high.low),
    )
    lowest, highest = contrast_two_way(arm, control_high), contrast_two_way(arm_high, control)
    assert found.value == pytest.approx((lowest.value + highest.value) / 2)
    assert ((found.ci_low, found.ci_high), found.p) == ends_of(found, lowest, highest)


def test_a_shift_without_a_finite_bound_gives_the_share_that_is_not_identified() -> None:
    trials = unbalanced(np.random.default_rng(34), 40)
    low = trials.low.copy()
    low[:3] = -np.inf
    found = mean_two_way(Trials.of(low, trials.sentences, trials.injections, high=trials.low))
    assert (found.value, found.reason) == (None, "without a finite bound: 3 of 40 trials (7.5%)")
    assert numbers(found) == (None,) * 5


def test_a_trial_with_one_bound_missing_is_dropped() -> None:
    trials = unbalanced(np.random.default_rng(36), 40)
    high = trials.low + 1
    high[5] = np.nan
    found = mean_two_way(Trials.of(trials.low, trials.sentences, trials.injections, high=high))
    assert (found.n_trials, found.n_dropped, found.reason) == (39, 1, None)


def test_columns_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"columns of one length expected, got shapes \(2,\), \(2,\), \(3,\), \(2,\)"):
        Trials.of([1.0, 2.0], [0, 1, 2], [0, 1])


def test_concepts_are_averaged_as_single_values() -> None:
    values = [0.3, None, 1.2, -0.4, 0.9, float("nan")]
    known = [0.3, 1.2, -0.4, 0.9]
    expected = stats.ttest_1samp(known, 0)
    found = mean_of_concepts(values)
    assert (found.value, found.p, found.df) == (pytest.approx(0.5), pytest.approx(expected.pvalue), 3)
    assert (found.ci_low, found.ci_high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert (found.n_trials, found.n_dropped, found.n_sentences) == (4, 2, None)


@pytest.mark.parametrize(
    ("values", "value", "reason"),
    [
        ([], None, crossed.NO_TRIALS),
        ([None], None, crossed.NO_TRIALS),
        ([0.4, None], 0.4, crossed.FEW_CONCEPTS),
        ([0.4, 0.4, 0.4], 0.4, crossed.NO_VARIATION),
        ([0.4, np.inf], None, "not finite: 1 of 2 concepts (50.0%)"),
    ],
)
def test_too_few_concepts_give_a_reason(values: list[float | None], value: float | None, reason: str) -> None:
    found = mean_of_concepts(values)
    assert found.value == near(value)
    assert found.reason == reason
    assert numbers(found) == (None,) * 5


observed = st.lists(st.tuples(st.integers(-40, 40), st.integers(0, 4), st.integers(0, 4)), min_size=4, max_size=30).map(
    lambda rows: np.array(rows)
)


@settings(deadline=None, max_examples=40)
@given(observed, st.randoms(use_true_random=False))
def test_the_order_of_trials_changes_nothing(rows: NDArray[np.int64], random: object) -> None:
    order = list(range(len(rows)))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert_same(mean_two_way(Trials.of(*rows[order].T)), mean_two_way(Trials.of(*rows.T)))


@settings(deadline=None, max_examples=40)
@given(observed, st.integers(-1000, 1000))
def test_a_constant_moves_the_mean_and_the_interval_and_nothing_else(rows: NDArray[np.int64], constant: int) -> None:
    values, sentences, injections = rows.T
    before = mean_two_way(Trials.of(values, sentences, injections))
    after = mean_two_way(Trials.of(values + constant, sentences, injections))
    assert after.value == near(before.value + constant)
    assert after.ci_low == near(None if before.ci_low is None else before.ci_low + constant)
    assert (after.se, after.df, after.reason) == (near(before.se), before.df, before.reason)


@settings(deadline=None, max_examples=40)
@given(observed)
def test_names_of_sentences_and_injections_do_not_matter(rows: NDArray[np.int64]) -> None:
    values, sentences, injections = rows.T
    named = Trials.of(values, np.array([f"s{9 - s}" for s in sentences], object), [f"é{k}" for k in injections])
    assert_same(mean_two_way(named), mean_two_way(Trials.of(values, sentences, injections)))


def test_bounds_of_concepts_widen_the_interval_and_equal_bounds_do_not() -> None:
    low, high = [0.1, 0.3, 0.2], [0.4, 0.5, 0.3]
    ends = [mean_of_concepts(low), mean_of_concepts(high)]
    bounded = mean_of_concepts(low, high=high)
    assert ((bounded.ci_low, bounded.ci_high), bounded.p) == ends_of(bounded, *ends)
    assert (bounded.value_low, bounded.value_high) == (ends[0].value, ends[1].value)
    assert mean_of_concepts(low, high=low) == ends[0]
