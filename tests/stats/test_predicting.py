"""Rank correlation beyond covariates, against regressions written out with dummies and against simulation."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from scipy import stats

from harness.stats.predicting import (
    Points,
    calibration,
    correlation_interval,
    fit_line,
    freedman_lane_p,
    partial_rank_correlation,
    rank_correlation,
    weighted_ranks,
)


def points(n: int = 60, *, seed: int = 1, direct: float = 0.5, through: float = 1.0, groups: int = 4) -> Points:
    """Observed follows the prediction by `direct`, and both follow two covariates and the group by `through`."""
    rng = np.random.default_rng(seed)
    group = np.arange(n) % groups
    covariates = rng.normal(size=(n, 2))
    common = through * (covariates.sum(axis=1) + 2 * group)
    predicted = common + rng.normal(size=n)
    observed = direct * (predicted - common) + common + rng.normal(size=n)
    return Points(predicted=predicted, observed=observed, covariates=covariates, groups=group)


def ones(p: Points) -> np.ndarray:
    return np.ones(len(p))


def design(p: Points, columns: np.ndarray) -> np.ndarray:
    return np.column_stack([p.groups[:, None] == np.unique(p.groups), columns]).astype(float)


def residual(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    return y - x @ np.linalg.lstsq(x, y, rcond=None)[0]


def test_ranks_of_equal_weights_are_midranks() -> None:
    values = np.array([3.0, 1.0, 2.0, 2.0, 5.0])
    assert weighted_ranks(values, np.ones(5)) + 0.5 == pytest.approx(stats.rankdata(values))


def test_a_weight_stands_for_so_many_equal_points() -> None:
    p = points(20)
    times = np.random.default_rng(2).integers(0, 3, len(p))
    p_repeated = p.take(np.ones(len(p), bool))
    rows = np.repeat(np.arange(len(p)), times)
    repeated = Points(
        predicted=p_repeated.predicted[rows],
        observed=p_repeated.observed[rows],
        covariates=p_repeated.covariates[rows],
        groups=p_repeated.groups[rows],
    )
    for correlation in (rank_correlation, partial_rank_correlation):
        assert correlation(p, times.astype(float)) == pytest.approx(correlation(repeated, ones(repeated)))


def test_the_plain_correlation_is_spearmans() -> None:
    p = points()
    assert rank_correlation(p, ones(p)) == pytest.approx(stats.spearmanr(p.predicted, p.observed).statistic)


def test_the_partial_correlation_is_that_of_the_ranks_of_residuals_on_dummies_and_covariates() -> None:
    p = points()
    left = [residual(side, design(p, p.covariates)) for side in (p.predicted, p.observed)]
    assert partial_rank_correlation(p, ones(p)) == pytest.approx(stats.spearmanr(*left).statistic)


def test_what_group_and_covariates_explain_does_not_count() -> None:
    p = points(400, direct=0.0)
    assert rank_correlation(p, ones(p)) > 0.5
    assert abs(partial_rank_correlation(p, ones(p))) < 0.15
    assert freedman_lane_p(p, seed=1) > 0.01


def test_what_goes_beyond_them_is_found() -> None:
    p = points(100, direct=0.8)
    assert freedman_lane_p(p, seed=1) == pytest.approx(1 / 2000)


def test_a_constant_covariate_changes_nothing_and_a_perfect_one_leaves_nothing() -> None:
    p = points()
    constant = Points(
        predicted=p.predicted, observed=p.observed, covariates=np.column_stack([p.covariates, np.zeros(60)]), groups=p.groups
    )
    assert partial_rank_correlation(constant, ones(p)) == pytest.approx(partial_rank_correlation(p, ones(p)))
    same = Points(predicted=p.predicted, observed=p.observed, covariates=p.predicted[:, None], groups=p.groups)
    assert np.isnan(partial_rank_correlation(same, ones(p)))
    assert freedman_lane_p(same, seed=1) is None


def test_the_permutation_p_is_the_share_of_all_orders_within_groups() -> None:
    p = points(10, groups=2, direct=0.4, seed=3)
    x = design(p, p.covariates)
    x_left, y_left = residual(p.predicted, x), residual(p.observed, x)
    moved = np.empty((14_400, 10), int)
    moved[:, 0::2] = np.repeat(list(permutations(range(0, 10, 2))), 120, axis=0)
    moved[:, 1::2] = np.tile(list(permutations(range(1, 10, 2))), (120, 1))
    again = residual((p.observed - y_left)[:, None] + y_left[moved.T], x)  # fit plus permuted residuals
    rhos = np.corrcoef(stats.rankdata(x_left), stats.rankdata(again, axis=0).T)[0, 1:]
    exact = np.mean(np.abs(rhos) >= abs(rhos[0]) - 1e-12)
    assert 0.02 < exact < 0.9
    assert freedman_lane_p(p, seed=1) == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 1999))


@pytest.mark.parametrize(("n", "groups"), [(30, 4), (200, 10)])
def test_a_null_beyond_the_covariates_is_rejected_as_often_as_promised_where_ranks_first_reject_more(
    n: int, groups: int
) -> None:
    runs = 200
    nulls = [points(n, seed=seed, direct=0.0, groups=groups) for seed in range(runs)]
    rejected = sum(freedman_lane_p(null, seed=seed, n=99) <= 0.05 for seed, null in enumerate(nulls))
    most = stats.binom.ppf(0.999, runs, 0.05)
    assert stats.binom.ppf(0.001, runs, 0.05) <= rejected <= most
    if n == 200:
        assert sum(ranks_first_p(null) <= 0.05 for null in nulls) > most


def ranks_first_p(p: Points) -> float:
    """p of the usual partial rank correlation, by Student's t."""
    x = design(p, np.apply_along_axis(stats.rankdata, 0, p.covariates))
    rho = np.corrcoef(*(residual(stats.rankdata(side), x) for side in (p.predicted, p.observed)))[0, 1]
    df = len(p) - x.shape[1] - 1
    return float(2 * stats.t.sf(abs(rho) * np.sqrt(df / (1 - rho**2)), df))


def test_the_line_is_least_squares_with_an_error_clustered_by_group() -> None:
    p = points(groups=6)
    found = fit_line(p)
    expected = stats.linregress(p.predicted, p.observed)
    assert (found.slope, found.intercept) == pytest.approx((expected.slope, expected.intercept))
    x = np.column_stack([np.ones(60), p.predicted])
    bread = np.linalg.inv(x.T @ x)
    errors = p.observed - x @ [expected.intercept, expected.slope]
    meat = sum(np.outer(s, s) for s in (x[p.groups == g].T @ errors[p.groups == g] for g in range(6)))
    se = np.sqrt((6 / 5 * 59 / 58 * bread @ meat @ bread)[1, 1])
    half = stats.t.ppf(0.975, 5) * se
    assert (found.ci_low, found.ci_high) == pytest.approx((found.slope - half, found.slope + half))
    assert found.p == pytest.approx(2 * stats.t.sf(abs(found.slope) / se, 5))


def test_the_adjusted_slope_is_that_of_the_regression_with_dummies_and_covariates() -> None:
    p = points(groups=6)
    x = np.column_stack([p.predicted, design(p, p.covariates)])
    assert fit_line(p, adjusted=True).slope == pytest.approx(np.linalg.lstsq(x, p.observed, rcond=None)[0][0])
    assert fit_line(p, adjusted=True).intercept is None


def test_a_line_through_one_group_has_no_interval_and_through_a_constant_none_at_all() -> None:
    p = points(groups=1)
    assert fit_line(p).slope is not None
    assert fit_line(p).ci_low is None
    flat = Points(predicted=np.full(60, 0.1), observed=p.observed, covariates=p.covariates, groups=p.groups)
    assert fit_line(flat).slope is None


def test_calibration_goes_from_the_lowest_predictions_to_the_highest() -> None:
    p = points(23)
    rows = calibration(p, 5)
    assert [row[0] for row in rows] == [5, 5, 5, 4, 4]
    order = np.argsort(p.predicted)
    assert rows[0][1:] == pytest.approx((p.predicted[order[:5]].mean(), p.observed[order[:5]].mean()))
    assert rows[-1][1:] == pytest.approx((p.predicted[order[-4:]].mean(), p.observed[order[-4:]].mean()))


def test_the_interval_of_a_correlation_stands_around_it_on_fishers_scale() -> None:
    replicates = np.tanh(np.random.default_rng(1).normal(0.4, 0.2, 4000))
    low, high = correlation_interval(0.6, replicates) or (0.0, 0.0)
    assert (np.arctanh(0.6) - np.arctanh(low), np.arctanh(high) - np.arctanh(0.6)) == pytest.approx((1.96 * 0.2,) * 2, abs=0.02)
    assert correlation_interval(1.0, replicates) is None
    assert correlation_interval(0.6, np.full(100, 0.6)) is None
    assert correlation_interval(0.6, np.where(np.arange(100) < 20, np.nan, 0.5)) is None
