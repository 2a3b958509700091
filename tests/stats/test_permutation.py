"""Permutation tests of contrasts: against scipy's, counts by hand, and simulated nulls."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from harness.stats import permutation
from harness.stats.crossed import Trials, contrast_two_way, mean_two_way, paired_differences
from harness.stats.permutation import block_permutation_p, label_permutation_p

Floats = NDArray[np.float64]


def crossed_trials(values: Floats, prefix: str = "k") -> Trials:
    """Trials of a full (S, K) table."""
    n_sentences, n_injections = values.shape
    names = [f"{prefix}{k}" for k in range(n_injections)]
    return Trials.of(values.ravel(), np.repeat(np.arange(n_sentences), n_injections), np.tile(names, n_sentences))


def table(rng: np.random.Generator, n_sentences: int, n_injections: int, *, spread: float = 0.5) -> Floats:
    """No mean, sentence effects (sd .3), injection effects (sd `spread`), noise (sd 1)."""
    effects = 0.3 * rng.normal(size=(n_sentences, 1)) + spread * rng.normal(size=n_injections)
    values: Floats = effects + rng.normal(size=(n_sentences, n_injections))
    return values


def holes(rng: np.random.Generator, trials: Trials, share: float) -> Trials:
    missing = rng.random(len(trials)) < share
    return Trials.of(np.where(missing, np.nan, trials.low), trials.sentences, trials.injections)


def test_three_pairs_by_hand() -> None:
    # The pairs' sums are 3, 2 and 1: |T| reaches 6 with all signs alike, 2 of 8 ways; with -1 it is 4, reached 4 of 8 ways.
    assert block_permutation_p([crossed_trials(np.array([[1.0, 1.5, 0.5], [2.0, 0.5, 0.5]]))], seed=1) == 2 / 8
    assert block_permutation_p([crossed_trials(np.array([[1.0, 1.5, -0.5], [2.0, 0.5, -0.5]]))], seed=1) == 4 / 8


def test_few_pairs_give_scipys_exact_p_of_their_means() -> None:
    values = table(np.random.default_rng(1), 6, 9) + 0.3
    expected = stats.permutation_test((values.mean(0),), np.mean, permutation_type="samples", n_resamples=2**9)
    assert block_permutation_p([crossed_trials(values)], seed=1) == pytest.approx(expected.pvalue)


def test_many_pairs_give_nearly_the_exact_p_and_never_zero() -> None:
    values = table(np.random.default_rng(2), 6, 13) + 0.4
    exact = block_permutation_p([crossed_trials(values)], seed=1)
    drawn = block_permutation_p([crossed_trials(values)], seed=1, n=8000)
    assert 0.001 < exact < 0.2
    assert exact != drawn
    assert drawn == pytest.approx(exact, abs=0.02)
    assert block_permutation_p([crossed_trials(values[:, [0] * 40] ** 2)], seed=1, n=99) == 1 / 100


def test_concepts_count_alike_however_many_trials_they_have() -> None:
    rng = np.random.default_rng(3)
    large, small = table(rng, 20, 5), table(rng, 3, 4)
    found = block_permutation_p([crossed_trials(large), crossed_trials(small)], seed=1)
    blocks = np.concatenate((large.mean(0) / 5, small.mean(0) / 4))
    expected = stats.permutation_test((blocks,), np.sum, permutation_type="samples", n_resamples=2**9)
    assert found == pytest.approx(expected.pvalue)


def test_a_concept_without_trials_changes_nothing_and_nothing_at_all_gives_none() -> None:
    some, none = crossed_trials(table(np.random.default_rng(4), 5, 8)), Trials.of([np.nan], ["s"], ["k"])
    assert block_permutation_p([some, none], seed=1) == block_permutation_p([some], seed=1)
    assert block_permutation_p([none], seed=1) is None
    assert block_permutation_p([], seed=1) is None
    assert label_permutation_p([(some, none)], seed=1) is None
    lone = crossed_trials(np.ones((5, 1)), "lone")
    assert label_permutation_p([(some, lone)], seed=1) is None
    other = crossed_trials(table(np.random.default_rng(5), 5, 8), "other")
    assert label_permutation_p([(some, lone), (some, other)], seed=1) == label_permutation_p([(some, other)], seed=1)


def test_labels_permuted_are_scipys_independent_samples_with_welchs_statistic() -> None:
    rng = np.random.default_rng(6)
    arm, control = table(rng, 7, 4) + 0.9, 3 * table(rng, 7, 6)
    found = label_permutation_p([(crossed_trials(arm), crossed_trials(control, "c"))], seed=1)
    expected = stats.permutation_test(
        (arm.mean(0), control.mean(0)),
        lambda a, b, axis: stats.ttest_ind(a, b, equal_var=False, axis=axis).statistic,
        permutation_type="independent",
        vectorized=True,
        n_resamples=10**4,
    )
    as_extreme = np.abs(expected.null_distribution) >= abs(expected.statistic) * (1 - 1e-9)
    assert found == pytest.approx(as_extreme.mean(), abs=0.02)  # all 210 labellings
    assert 0.02 < found < 0.9


def test_the_first_labelling_is_the_contrast_that_is_tested() -> None:
    """T of the data as they are: with one concept and own injections, the contrast over the square root of its V_k."""
    rng = np.random.default_rng(7)
    arm = holes(rng, crossed_trials(table(rng, 9, 6)), 0.2).complete()
    control = holes(rng, crossed_trials(table(rng, 9, 8), "c"), 0.2).complete()
    moments, n_arm = permutation._injection_moments((arm, control), np.concatenate((arm.low, control.low)))
    totals = np.zeros(1), np.zeros(1)
    permutation._add_relabelled(moments, n_arm, totals, rng)
    both = np.concatenate((arm.low, control.low))
    sentences = np.concatenate((arm.sentences, control.sentences))
    centred = both - np.array([both[sentences == s].mean() for s in sentences])
    parts = centred[: len(arm)], centred[len(arm) :]
    assert totals[0][0] == pytest.approx(parts[0].mean() - parts[1].mean())
    variance = 0.0
    for values, of in zip(parts, (arm, control), strict=True):
        names = np.unique(of.injections)
        sums = [(values[of.injections == name] - values.mean()).sum() / len(values) for name in names]
        variance += len(names) / (len(names) - 1) * float(np.square(sums).sum())
    assert totals[1][0] == pytest.approx(variance)


def test_what_differs_between_sentences_alone_does_not_blur_the_labels() -> None:
    rng = np.random.default_rng(8)
    arm, control = table(rng, 6, 9) + 0.5, table(rng, 6, 9)
    shift = 1000 * rng.normal(size=(6, 1))
    plain = label_permutation_p([(crossed_trials(arm), crossed_trials(control, "c"))], seed=1)
    moved = label_permutation_p([(crossed_trials(arm + shift), crossed_trials(control + shift, "c"))], seed=1)
    assert moved == plain


@pytest.mark.parametrize("batch", [1, 50])
def test_memory_batches_do_not_change_who_is_right(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(9)
    d, arm, control = (crossed_trials(table(rng, 5, 20) + 0.2, p) for p in ("d", "a", "c"))
    whole = block_permutation_p([d], seed=1), label_permutation_p([(arm, control)], seed=1)
    monkeypatch.setattr(permutation, "_BATCH_ENTRIES", 20 * batch)
    assert block_permutation_p([d], seed=1) == pytest.approx(whole[0], abs=0.02)
    assert label_permutation_p([(arm, control)], seed=1) == pytest.approx(whole[1], abs=0.02)
    assert block_permutation_p([d], seed=1) == block_permutation_p([d], seed=1)


def test_bounds_count_at_the_end_nearer_zero() -> None:
    rng = np.random.default_rng(10)
    at_low = crossed_trials(table(rng, 6, 9) + 0.6)
    wide = Trials.of(at_low.low, at_low.sentences, at_low.injections, high=at_low.low + 1)
    around = Trials.of(at_low.low - 9, at_low.sentences, at_low.injections, high=at_low.low + 9)
    turned = Trials.of(-wide.high, wide.sentences, wide.injections, high=-wide.low)
    control = crossed_trials(np.zeros((6, 9)) + rng.normal(size=9), "c")
    assert block_permutation_p([wide], seed=1) == block_permutation_p([at_low], seed=1) == block_permutation_p([turned], seed=1)
    assert block_permutation_p([around], seed=1) == 1.0
    assert label_permutation_p([(wide, control)], seed=1) == label_permutation_p([(at_low, control)], seed=1)
    assert label_permutation_p([(around, control)], seed=1) == 1.0


def test_differences_pair_cells_that_both_arms_have() -> None:
    arm = Trials.of([1.0, 2.0, 4.0, np.nan, 9.0], list("aabbc"), ["x", "y", "x", "y", "x"], high=[1.5, 2, 4, 5, 9])
    control = Trials.of([0.5, 1.0, 2.0, 7.0, 8.0], list("aabbb"), ["x", "x", "x", "y", "z"], high=[0.5, 2, 3, 7, 8])
    found = paired_differences(arm, control)
    rows = zip(found.sentences.tolist(), found.injections.tolist(), found.low.tolist(), found.high.tolist(), strict=True)
    assert sorted(rows) == [("a", "x", -0.25, 0.75), ("b", "x", 1.0, 2.0)]
    assert len(paired_differences(arm, Trials.of([1.0], ["q"], ["x"]))) == 0
    assert len(paired_differences(arm, Trials.of([np.nan], ["a"], ["x"]))) == 0


def cell_flip_p(values: Floats, rng: np.random.Generator) -> float:
    """What we do not do: the sign of every (sentence, injection) cell flipped for itself."""
    signs = rng.choice((-1.0, 1.0), (199, values.size))
    return float((1 + (np.abs(signs @ values.ravel()) >= abs(values.sum())).sum()) / 200)


def test_pairs_that_merely_differ_are_not_an_effect_unless_cells_are_flipped() -> None:
    rng = np.random.default_rng(11)
    runs = 500
    blocks = cells = 0
    for _ in range(runs):
        values = 0.5 * rng.normal(size=10) + rng.normal(size=(20, 10))
        blocks += block_permutation_p([crossed_trials(values)], seed=1) < 0.05
        cells += cell_flip_p(values, rng) < 0.05
    assert 0.03 <= blocks / runs <= 0.07
    assert cells / runs > 0.3


def test_labels_keep_the_level_in_unequal_arms_of_unequal_spread_with_holes() -> None:
    """The smaller arm spreads three times as far: a difference of means that is not studentised rejects .2 of these."""
    rng = np.random.default_rng(12)
    runs = 500
    rejected = 0
    for run in range(runs):
        arms = [
            (
                holes(rng, crossed_trials(table(rng, 10, 8, spread=1.5)), 0.2),
                holes(rng, crossed_trials(table(rng, 10, 24), "c"), 0.2),
            )
            for _ in range(2)
        ]
        rejected += label_permutation_p(arms, seed=run, n=199) < 0.05
    assert 0.03 <= rejected / runs <= 0.075


def test_a_planted_effect_is_found_by_permutation_as_by_the_interval() -> None:
    rng = np.random.default_rng(13)
    d = [crossed_trials(table(rng, 10, 20, spread=0.3) + 0.5) for _ in range(3)]
    assert block_permutation_p(d, seed=1) == 1 / 10_000
    assert mean_two_way(d[0]).p < 0.01
    arms = [(crossed_trials(table(rng, 10, 20, spread=0.3) + 0.5), crossed_trials(table(rng, 10, 20), "c")) for _ in range(3)]
    assert label_permutation_p(arms, seed=1) < 0.01
    assert contrast_two_way(*arms[0]).value > 0
