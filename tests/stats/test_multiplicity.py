"""Corrections for many tests: cases worked by hand, the definitions, and simulated nulls."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.stats.multiplicity import benjamini_yekutieli, holm


def test_four_tests_worked_by_hand() -> None:
    # Sorted: .005 x 4 = .02; .01 x 3 = .03; .03 x 2 = .06; .04 x 1 = .04, lifted to the .06 before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_a_test_that_could_not_be_made_stays_none_and_does_not_count() -> None:
    assert holm([None, 0.02, None, 0.03]) == [None, pytest.approx(0.04), None, pytest.approx(0.04)]
    assert holm([None]) == [None]
    assert holm([]) == []


def test_nothing_exceeds_one() -> None:
    assert holm([0.6, 0.7, 1.0]) == [1.0, 1.0, 1.0]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.01, 0.2))
def test_what_is_rejected_is_what_stepping_down_rejects(p_values: list[float], level: float) -> None:
    adjusted = np.array(holm(p_values))
    rejected: set[int] = set()
    for step, place in enumerate(np.argsort(p_values, kind="stable")):
        if p_values[place] * (len(p_values) - step) > level:
            break
        rejected.add(int(place))
    assert set(np.flatnonzero(adjusted <= level).tolist()) == rejected


def test_benjamini_and_yekutieli_worked_by_hand() -> None:
    # m = 4, c = 1 + 1/2 + 1/3 + 1/4 = 25/12. Sorted: .005 x 4/1, .01 x 4/2, .03 x 4/3, .04 x 4/4 = .02, .02, .04, .04, times c.
    assert benjamini_yekutieli([0.01, 0.04, 0.03, 0.005]) == pytest.approx([p * 25 / 12 for p in (0.02, 0.04, 0.04, 0.02)])
    # m = 3, c = 11/6: .02 x 3 x c = .11; .5 x 3/2 x c and .9 x c exceed 1.
    assert benjamini_yekutieli([0.5, None, 0.02, 0.9]) == [1.0, None, pytest.approx(0.11), 1.0]
    assert benjamini_yekutieli([None]) == [None]
    assert benjamini_yekutieli([]) == []
    assert benjamini_yekutieli([0.03]) == [0.03]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.01, 0.2))
def test_what_benjamini_and_yekutieli_reject_is_what_stepping_up_rejects(p_values: list[float], level: float) -> None:
    m = len(p_values)
    harmonic = sum(1 / i for i in range(1, m + 1))
    passing = [i for i, p in enumerate(sorted(p_values), 1) if p <= i * level / (m * harmonic)]
    adjusted = np.array(benjamini_yekutieli(p_values))
    borderline = np.isclose(adjusted, level, rtol=1e-9)
    assert (adjusted <= level)[~borderline].sum() <= max(passing, default=0) <= (adjusted <= level * (1 + 1e-9)).sum()
