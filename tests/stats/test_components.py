"""Variance components and planned errors: against mean squares, simulated designs with holes, and what runs then show."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from harness.stats.components import Components, components, differences_for_planning, planned_se
from harness.stats.crossed import Trials, mean_of_concepts, mean_two_way

Floats = NDArray[np.float64]
TRUTH = Components(sentences=0.16, injections=0.36, rest=1.0, concepts=0.25)


def crossed_trials(values: Floats, prefix: str = "k") -> Trials:
    """Trials of an (S, K) table, NaN where a cell is missing."""
    n_sentences, n_injections = values.shape
    names = [f"{prefix}{k}" for k in range(n_injections)]
    return Trials.of(values.ravel(), np.repeat(np.arange(n_sentences), n_injections), np.tile(names, n_sentences))


def draw(rng: np.random.Generator, n_sentences: int, n_injections: int, parts: Components = TRUTH) -> Floats:
    """A concept's table of differences under `parts`."""
    values: Floats = (
        rng.normal(0, (parts.concepts or 0) ** 0.5)
        + rng.normal(0, parts.sentences**0.5, (n_sentences, 1))
        + rng.normal(0, parts.injections**0.5, n_injections)
        + rng.normal(0, parts.rest**0.5, (n_sentences, n_injections))
    )
    return values


def mean_squares(table: Floats) -> tuple[Floats, Floats]:
    """Sums of squares (sentences, injections, rest) of a full table, and their degrees of freedom."""
    n_s, n_k = table.shape
    rows, columns, mean = table.mean(1, keepdims=True), table.mean(0, keepdims=True), table.mean()
    squares = [
        n_k * ((rows - mean) ** 2).sum(),
        n_s * ((columns - mean) ** 2).sum(),
        ((table - rows - columns + mean) ** 2).sum(),
    ]
    return np.array(squares), np.array([n_s - 1, n_k - 1, (n_s - 1) * (n_k - 1)])


@pytest.mark.parametrize("n_concepts", [1, 4])
def test_full_tables_give_the_estimates_from_mean_squares(n_concepts: int) -> None:
    rng = np.random.default_rng(1)
    tables = [draw(rng, 12, 8) + 1000 for _ in range(n_concepts)]
    sums = [mean_squares(table) for table in tables]
    ms_s, ms_k, ms_e = sum(squares for squares, _ in sums) / sum(degrees for _, degrees in sums)
    found = components([crossed_trials(table) for table in tables])
    expected = ((ms_s - ms_e) / 8, (ms_k - ms_e) / 12, ms_e)
    assert (found.sentences, found.injections, found.rest) == pytest.approx(expected)
    if n_concepts == 1:
        assert found.concepts is None
    else:
        of_mean = expected[0] / 12 + expected[1] / 8 + expected[2] / 96
        assert found.concepts == pytest.approx(np.var([table.mean() for table in tables], ddof=1) - of_mean)


def test_tables_with_holes_are_unbiased() -> None:
    """40 concepts of 9 x 7 at a time with three cells in ten missing, of which no component is cut at 0."""
    rng = np.random.default_rng(2)
    found = []
    for _ in range(60):
        tables = [np.where(rng.random((9, 7)) < 0.3, np.nan, draw(rng, 9, 7)) for _ in range(40)]
        parts = components([crossed_trials(table) for table in tables])
        found.append((parts.sentences, parts.injections, parts.rest, parts.concepts))
    expected = (TRUTH.sentences, TRUTH.injections, TRUTH.rest, TRUTH.concepts)
    z = (np.mean(found, 0) - expected) / (np.std(found, 0) / 60**0.5)
    assert (np.abs(z) < 3).all(), z
    assert np.min(found) > 0


def test_a_spread_that_is_not_there_is_zero_and_not_less() -> None:
    rng = np.random.default_rng(3)
    none = Components(sentences=0.0, injections=0.0, rest=1.0)
    found = [components([crossed_trials(draw(rng, 6, 5, none)) for _ in range(3)]) for _ in range(50)]
    for name in ("sentences", "injections", "concepts"):
        values = np.array([getattr(parts, name) for parts in found])
        assert values.min() == 0 < values.max()


@pytest.mark.parametrize(
    "table",
    [np.empty((0, 0)), np.ones((1, 5)), np.ones((5, 1)), np.full((3, 3), np.nan), np.array([[1.0, np.nan], [np.nan, 2.0]])],
)
def test_a_table_that_cannot_tell_the_parts_apart_gives_none(table: Floats) -> None:
    assert components([crossed_trials(table)]) is None
    assert components([]) is None


def test_a_failed_concept_is_left_out_and_bounds_count_at_their_middle() -> None:
    table = draw(np.random.default_rng(4), 6, 5)
    whole, failed = crossed_trials(table), crossed_trials(np.full((6, 5), np.nan))
    hidden = np.random.default_rng(5).random(30)
    bounded = Trials.of(whole.low - hidden, whole.sentences, whole.injections, high=whole.low + hidden)
    assert components([whole, failed]) == components([whole])
    assert components([bounded]).rest == pytest.approx(components([whole]).rest)


def test_arms_without_matched_injections_are_paired_for_planning() -> None:
    rng = np.random.default_rng(5)
    found = []
    for _ in range(200):
        arms = [crossed_trials(draw(rng, 10, 8), prefix) for prefix in ("a", "b")]
        parts = components([differences_for_planning(*arms)])
        found.append((parts.injections, parts.rest))
    assert np.mean(found, 0) == pytest.approx((2 * TRUTH.injections, 2 * TRUTH.rest), abs=0.1)
    matched = [crossed_trials(draw(rng, 10, 8)) for _ in range(2)]
    shuffled = matched[1].take(rng.permutation(80) >= 0)
    assert (differences_for_planning(matched[0], shuffled).low == matched[0].low - matched[1].low).all()


def test_planned_errors_are_those_of_the_runs() -> None:
    """The mean squared standard error of 400 runs of the planned size, and their spread, are the planned error's square."""
    rng = np.random.default_rng(6)
    planned = planned_se(TRUTH, concepts=6, sentences=10, injections=9)
    estimates, overall = [], []
    for _ in range(400):
        of_concepts = [mean_two_way(crossed_trials(draw(rng, 10, 9))) for _ in range(6)]
        estimates += of_concepts
        overall.append(mean_of_concepts([e.value for e in of_concepts]))
    assert np.mean([e.se**2 for e in overall]) == pytest.approx(planned.overall.se**2, rel=0.1)
    assert np.var([e.value for e in overall]) == pytest.approx(planned.overall.se**2, rel=0.2)
    # One concept's error is for its own mean; the safe rule makes it a little larger on average.
    assert np.mean([e.se**2 for e in estimates]) == pytest.approx(planned.concept.se**2, rel=0.1)
    assert (planned.overall.df, planned.concept.df) == (5, 8) == (overall[0].df, estimates[0].df)


def test_more_sentences_cannot_beat_the_injections_floor() -> None:
    many = planned_se(TRUTH, concepts=1, sentences=10**9, injections=9)
    assert many.concept.se == pytest.approx((TRUTH.injections / 9) ** 0.5)
    assert (many.overall, many.concept.df) == (None, 8)


def test_an_incomplete_design_has_more_of_the_rest() -> None:
    whole = planned_se(TRUTH, concepts=2, sentences=60, injections=100)
    part = planned_se(TRUTH, concepts=2, sentences=60, injections=100, trials=1200)
    assert part.concept.se**2 - whole.concept.se**2 == pytest.approx(TRUTH.rest * (1 / 1200 - 1 / 6000))
    assert planned_se(Components(sentences=0, injections=0, rest=1), concepts=8, sentences=2, injections=2).overall is None
