"""Intervals of a mean known within bounds: against the t interval, the defining equation and simulated coverage."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from harness.stats.intervals import identified_interval, identified_p, smallest_effect

ERRORS = st.floats(0.01, 10)


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.999])
@pytest.mark.parametrize("df", [1, 7, 200])
def test_bounds_that_meet_give_the_t_interval_and_its_p(df: int, confidence: float) -> None:
    expected = stats.t.interval(confidence, df, loc=1.3, scale=0.4)
    assert identified_interval(1.3, 1.3, 0.4, 0.4, df, confidence) == pytest.approx(expected)
    assert identified_interval(1.3, 1.3 + 1e-15, 0.4, 0.4, df, confidence) == pytest.approx(expected)
    assert identified_p(1.3, 1.3, 0.4, 0.4, df) == pytest.approx(2 * stats.t.sf(1.3 / 0.4, df))


def test_bounds_far_apart_take_one_sided_quantiles() -> None:
    quantile = stats.t.ppf(0.95, 9)
    assert identified_interval(-1e6, 1e6, 2.0, 3.0, 9) == pytest.approx((-1e6 - 2 * quantile, 1e6 + 3 * quantile), rel=1e-12)
    assert identified_p(3.0, 1e6, 2.0, 1.0, 9) == pytest.approx(stats.t.sf(1.5, 9))
    assert identified_p(-1e6, -3.0, 1.0, 2.0, 9) == pytest.approx(stats.t.sf(1.5, 9))


@settings(deadline=None, max_examples=60)
@given(st.floats(-5, 5), st.floats(0, 10), ERRORS, ERRORS, st.integers(1, 60))
def test_the_interval_solves_its_equation(low: float, width: float, se_low: float, se_high: float, df: int) -> None:
    start, end = identified_interval(low, low + width, se_low, se_high, df, 0.9)
    c = (low - start) / se_low
    assert (end - low - width) / se_high == pytest.approx(c, rel=1e-6)
    assert stats.t.cdf(c + width / max(se_low, se_high), df) - stats.t.cdf(-c, df) == pytest.approx(0.9, abs=1e-6)


@settings(deadline=None, max_examples=60)
@given(st.floats(0.01, 5), st.floats(0, 10), ERRORS, ERRORS, st.integers(1, 60), st.booleans())
def test_p_is_the_smallest_alpha_whose_interval_leaves_zero_out(
    near: float, width: float, se_near: float, se_far: float, df: int, below: bool
) -> None:
    ends = (-near - width, -near, se_far, se_near, df) if below else (near, near + width, se_near, se_far, df)
    p = identified_p(*ends)
    assume(1e-8 < p < 0.9)
    for alpha, leaves_out in ((p * 0.99, False), (p * 1.01, True)):
        start, end = identified_interval(*ends, 1 - alpha)
        assert (start > 0 or end < 0) is leaves_out


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 2.0), (-2.0, 0.0), (0.0, 0.0)])
def test_zero_within_the_bounds_is_no_evidence(low: float, high: float) -> None:
    assert identified_p(low, high, 0.1, 0.1, 9) == 1.0


def test_an_interval_never_leaves_the_bounds_out() -> None:
    assert identified_interval(0.0, 9.0, 1.0, 1.0, 9, confidence=0.3) == (0.0, 9.0)


@pytest.mark.parametrize("width", [0.0, 0.1, 0.3, 1.0, 5.0])
def test_the_interval_covers_the_worst_placed_mean_as_promised(width: float) -> None:
    """12 clusters whose bounds end a random way above and below; the true mean is that of the lower ones or of the upper ones.

    The error of a mean is about .29, so that the widths go from none to far apart.
    """
    rng = np.random.default_rng(1)
    runs, n = 4000, 12
    low = rng.normal(size=(runs, n))
    high = low + width * rng.uniform(0.5, 1.5, (runs, n))
    means = low.mean(1), high.mean(1)
    errors = low.std(1, ddof=1) / n**0.5, high.std(1, ddof=1) / n**0.5
    intervals = np.array([identified_interval(*row, n - 1) for row in zip(*means, *errors, strict=True)])
    for truth in (0.0, width):
        assert 0.93 <= np.mean((intervals[:, 0] <= truth) & (truth <= intervals[:, 1])) <= 0.97


@pytest.mark.parametrize(("df", "power"), [(5, 0.8), (7, 0.9), (29, 0.8), (99, 0.5)])
def test_the_smallest_effect_is_found_with_the_promised_power(df: int, power: float) -> None:
    effect = smallest_effect(1.0, df, power=power)
    quantile = stats.t.ppf(0.975, df)
    found = stats.nct.sf(quantile, df, effect) + stats.nct.cdf(-quantile, df, effect)
    assert found == pytest.approx(power, abs=0.01)


def test_the_smallest_effect_of_many_clusters_is_millers() -> None:
    """Miller's example: 969 questions whose paired differences have variance 1/9 see 3 points at 80% power."""
    assert smallest_effect((1 / 9 / 969) ** 0.5, df=968) == pytest.approx(0.03, rel=2e-3)
    assert smallest_effect(2.0, df=10**6, alpha=0.1, power=0.9) == pytest.approx(2 * (1.6449 + 1.2816), rel=1e-4)
