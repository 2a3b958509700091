"""What tests and intervals promise, counted in simulated crossed designs: level, coverage and power, with failures too.

Two arms share sentences, whose effects have sd 1; effects of sentence x arm and of injections have sd .3, noise has sd 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from harness.stats.components import Components, PlannedError, planned_se
from harness.stats.crossed import Estimate, Trials, contrast_two_way, mean_of_concepts, mean_two_way
from harness.stats.intervals import smallest_effect

Floats = NDArray[np.float64]

SD = 0.3
OF_DIFFERENCES = Components(sentences=2 * SD**2, injections=2 * SD**2, rest=2.0, concepts=0.04)


@dataclass(frozen=True, kw_only=True)
class Design:
    sentences: int
    injections: int
    matched: bool = False
    missing: float = 0.0
    shared: float = 1.0

    def arms(self, rng: np.random.Generator, effect: float = 0.0) -> tuple[Trials, Trials]:
        """The arm, whose mean is larger by `effect`, and its control; missing trials are NaN."""
        shape = (self.sentences, self.injections)
        s, k = np.repeat(np.arange(shape[0]), shape[1]), np.tile(np.arange(shape[1]), shape[0])
        shared = self.shared * rng.normal(size=(shape[0], 1))
        arms = []
        for place, mean in enumerate((effect, 0.0)):
            values = (
                mean + shared + SD * rng.normal(size=(shape[0], 1)) + SD * rng.normal(size=shape[1]) + rng.normal(size=shape)
            )
            values[rng.random(shape) < self.missing] = np.nan
            arms.append(Trials.of(values.ravel(), s, k if self.matched else k + place * shape[1]))
        return arms[0], arms[1]

    @property
    def planned(self) -> PlannedError:
        """One concept's error as planned from the components that `arms` draws with."""
        size = {"concepts": 1, "sentences": self.sentences, "injections": self.injections}
        trials = round(self.sentences * self.injections * (1 - self.missing))
        return planned_se(OF_DIFFERENCES, **size, trials=trials).concept


def rejected(estimates: list[Estimate]) -> float:
    return float(np.mean([estimate.p < 0.05 for estimate in estimates]))


def covered(estimates: list[Estimate], truth: float) -> float:
    return float(np.mean([estimate.ci_low <= truth <= estimate.ci_high for estimate in estimates]))


def pooled_p(arms: tuple[Trials, Trials]) -> float:
    return float(stats.ttest_ind(*(arm.low for arm in arms), equal_var=False).pvalue)


@pytest.mark.parametrize(
    ("design", "runs", "pooled"),
    [
        (Design(sentences=100, injections=100, matched=True), 400, 0.505),
        (Design(sentences=100, injections=12, matched=True), 1000, 0.402),
        (Design(sentences=30, injections=8, matched=True), 1000, 0.177),
        (Design(sentences=100, injections=12), 1000, 0.402),
        (Design(sentences=30, injections=20, shared=3.0), 1000, None),
    ],
)
def test_a_true_null_is_rejected_as_promised_while_pooled_trials_reject_it_often(
    design: Design, runs: int, pooled: float | None
) -> None:
    """`pooled`: the rate of Welch's test on trials taken as independent, the published one, in simulations of others."""
    rng = np.random.default_rng(1)
    drawn = [design.arms(rng) for _ in range(runs)]
    estimates = [contrast_two_way(*arms) for arms in drawn]
    assert 0.03 <= rejected(estimates) <= 0.07
    assert 0.93 <= covered(estimates, 0.0) <= 0.97
    if pooled is not None:
        assert np.mean([pooled_p(arms) < 0.05 for arms in drawn]) == pytest.approx(pooled, abs=0.05)


@pytest.mark.parametrize("matched", [True, False])
@pytest.mark.parametrize("shape", [(100, 12), (30, 8)])
def test_the_level_survives_a_fifth_of_the_trials_missing(shape: tuple[int, int], matched: bool) -> None:
    rng = np.random.default_rng(2)
    design = Design(sentences=shape[0], injections=shape[1], matched=matched, missing=0.2)
    estimates = [contrast_two_way(*design.arms(rng)) for _ in range(800)]
    assert 0.03 <= rejected(estimates) <= 0.07
    assert 0.93 <= covered(estimates, 0.0) <= 0.97


def test_the_level_survives_an_incomplete_design_that_partly_failed() -> None:
    """Each of 40 sentences meets 6 of 20 injections, a third of the arm's injections failed, every tenth sentence too."""
    rng = np.random.default_rng(3)
    design = Design(sentences=40, injections=20)
    met = (np.arange(20) + 3 * np.arange(40)[:, None]) % 20 < 6
    answered = np.ones((40, 20), np.bool_)
    answered[::10] = False
    kept = (met & answered).ravel(), (met & answered & (np.arange(20) % 3 > 0)).ravel()
    estimates = []
    for _ in range(800):
        arm, control = design.arms(rng)
        estimates.append(contrast_two_way(arm.take(kept[1]), control.take(kept[0])))
    assert 0.03 <= rejected(estimates) <= 0.07
    assert {(e.n_sentences, e.n_injections, e.df) for e in estimates} == {(36, 13, 12)}


@pytest.mark.parametrize("power", [0.8, 0.5])
@pytest.mark.parametrize("design", [Design(sentences=100, injections=12), Design(sentences=30, injections=20, missing=0.2)])
def test_a_planted_effect_is_found_with_the_promised_power(design: Design, power: float) -> None:
    rng = np.random.default_rng(4)
    effect = smallest_effect(*design.planned, power=power)
    estimates = [contrast_two_way(*design.arms(rng, effect)) for _ in range(800)]
    assert rejected(estimates) == pytest.approx(power, abs=0.05)
    assert 0.93 <= covered(estimates, effect) <= 0.97
    assert all(estimate.value > 0 for estimate in estimates if estimate.p < 0.05)
    told = np.median([estimate.smallest_effect(power=power) for estimate in estimates])
    assert told == pytest.approx(effect, rel=0.1)


def test_an_effect_over_all_concepts_is_found_with_the_promised_power() -> None:
    rng = np.random.default_rng(5)
    planned = planned_se(OF_DIFFERENCES, concepts=8, sentences=12, injections=6).overall
    effect = smallest_effect(*planned)
    design = Design(sentences=12, injections=6)
    estimates = []
    for _ in range(300):
        of_concepts = effect + OF_DIFFERENCES.concepts**0.5 * rng.normal(size=8)
        estimates.append(mean_of_concepts([contrast_two_way(*design.arms(rng, mean)).value for mean in of_concepts]))
    assert rejected(estimates) == pytest.approx(0.8, abs=0.05)
    assert 0.93 <= covered(estimates, effect) <= 0.97


@pytest.mark.parametrize("width", [0.0, 0.05, 0.3, 3.0])
def test_bounded_trials_cover_the_mean_that_lies_at_either_end(width: float) -> None:
    """The mean over trials of what may hide is `width`, against a standard error of about .13."""
    rng = np.random.default_rng(6)
    design = Design(sentences=30, injections=12, matched=True)
    estimates = []
    for _ in range(600):
        arm, _ = design.arms(rng)
        hidden = 2 * width * rng.random(len(arm))
        estimates.append(mean_two_way(Trials.of(arm.low, arm.sentences, arm.injections, high=arm.low + hidden)))
    for truth in (0.0, width):
        assert 0.93 <= covered(estimates, truth) <= 0.97
    assert covered(estimates, width / 2) >= 0.93


def test_an_effect_is_found_with_the_promised_power_although_bounds_hide_all_they_can_of_it() -> None:
    rng = np.random.default_rng(7)
    width = 0.2
    design = Design(sentences=30, injections=12, matched=True)
    one_arm = Components(sentences=1 + SD**2, injections=SD**2, rest=1.0)
    effect = width + smallest_effect(*planned_se(one_arm, concepts=1, sentences=30, injections=12).concept)
    estimates = []
    for _ in range(600):
        arm, _ = design.arms(rng, effect)
        hidden = 2 * width * rng.random(len(arm))
        estimates.append(mean_two_way(Trials.of(arm.low - hidden, arm.sentences, arm.injections, high=arm.low)))
    assert 0.8 <= rejected(estimates) <= 0.95
    assert np.median([estimate.smallest_effect() for estimate in estimates]) == pytest.approx(effect, rel=0.1)
