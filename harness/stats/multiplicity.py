"""Corrections of p-values for the number of questions asked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjusted p-values, in the order given: the family-wise error stays at the level compared with.

    With m tests and p sorted upwards, adjusted p_(i) = max over j <= i of min(1, (m - j + 1) p_(j)) (Holm 1979). None,
    a test that could not be made, stays None and does not count towards m.
    """
    made = [place for place, p in enumerate(p_values) if p is not None]
    p = np.array([p_values[place] for place in made], np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.minimum(1.0, p[order] * np.arange(len(p), 0, -1))
    adjusted: list[float | None] = [None] * len(p_values)
    for rank, p_holm in zip(order, np.maximum.accumulate(stepped), strict=True):
        adjusted[made[rank]] = float(p_holm)
    return adjusted
