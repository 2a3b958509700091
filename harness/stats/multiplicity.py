"""Corrections of p-values for the number of questions asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjusted p-values, in the order given: the family-wise error stays at the level compared with.

    With m tests and p sorted upwards, adjusted p_(i) = max over j <= i of min(1, (m - j + 1) p_(j)) (Holm 1979), valid
    under any dependence. None, a test that could not be made, stays None and does not count towards m.
    """
    return _of_those_made(p_values, _holm)


def benjamini_yekutieli(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjusted p-values, in the order given: rejecting those <= q keeps the expected share of false rejections at q.

    With m tests, p sorted upwards and c = 1 + 1/2 + ... + 1/m, adjusted p_(i) = min over j >= i of min(1, c m p_(j) / j)
    (Benjamini and Yekutieli 2001, theorem 1.3), valid under any dependence. None stays None and does not count towards m.
    """
    return _of_those_made(p_values, lambda p: stats.false_discovery_control(p, method="by"))


def _holm(p: Floats) -> Floats:
    order = np.argsort(p, kind="stable")
    stepped = np.minimum(1.0, p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(stepped)
    return adjusted


def _of_those_made(p_values: Sequence[float | None], adjust: Callable[[Floats], Floats]) -> list[float | None]:
    """`adjust` applied to the p-values that are not None, the others left where they stand."""
    made = [place for place, p in enumerate(p_values) if p is not None]
    result: list[float | None] = [None] * len(p_values)
    if made:
        adjusted = adjust(np.array([p_values[place] for place in made], np.float64))
        for place, p in zip(made, adjusted, strict=True):
            result[place] = float(p)
    return result
