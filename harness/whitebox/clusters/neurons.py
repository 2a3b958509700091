"""How many clusters of meaning a neuron serves.

A neuron is a coordinate of a site's output (Gong et al. 2026). A feature is linked to those of the `top` largest entries of its
unit decoder row that exceed `link`; as published, negative entries count for nothing, with `absolute` their size counts. A
neuron's *degree* is the number of distinct clusters that features link to it.

What degrees would be by chance: every feature deals its l links to l of the d neurons at random. A cluster then reaches a
given neuron with the probability p = 1 - prod (1 - l / d) over its features, and a degree is a sum of independent yes and no,
one for each cluster. A *super-neuron* has a degree that the null expects at most SUPER of the d neurons of the site to reach.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.errors import UsageError

Indices = NDArray[np.int64]
Floats = NDArray[np.float64]

LINK, TOP = 0.2, 3
SUPER = 0.05
BANDS = ((1, 1), (2, 5), (6, 20), (21, 50), (51, 100), (101, 200), (201, 500))
"""Degrees of each band but the last, which has all above."""

NAMES = (*(f"{low}-{high}" if high > low else str(low) for low, high in BANDS), f">{BANDS[-1][1]}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Linking:
    """Which entries of a decoder row link a feature to a neuron."""

    link: float = LINK
    top: int = TOP
    absolute: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.link < 1:
            raise UsageError(f"link: {self.link} is not in [0, 1)")
        if self.top < 1:
            raise UsageError(f"top: {self.top} is not above 0")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Links:
    """Feature (as a row of the decoder) and neuron of each link, (n_links,), by row; `d_model`: how many neurons there are."""

    row: Indices
    neuron: Indices
    d_model: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Degrees:
    """Of each neuron, (d_model,): distinct clusters (`degree`) and features (`n_features`) linked to it.

    `expected`: the degree that the null expects, of every neuron alike; `super_degree`: the smallest of a super-neuron.
    """

    degree: Indices
    n_features: Indices
    expected: float
    super_degree: int

    @property
    def is_super(self) -> NDArray[np.bool_]:
        """Which neurons are super-neurons, (d_model,)."""
        return self.degree >= self.super_degree


def links_of(unit: NDArray[np.floating], linking: Linking) -> Links:
    """The links of unit decoder rows (n, d_model); of equal entries the first ones are taken."""
    left = np.abs(unit) if linking.absolute else np.array(unit)
    rows = np.arange(len(unit))
    found: list[tuple[Indices, Indices]] = []
    for _ in range(min(linking.top, unit.shape[1])):
        neuron = left.argmax(axis=1)
        linked = left[rows, neuron] > linking.link
        found.append((rows[linked], neuron[linked]))
        left[rows, neuron] = -np.inf
    row, neuron = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.lexsort((neuron, row))
    return Links(row=row[order], neuron=neuron[order], d_model=unit.shape[1])


def degrees(links: Links, cluster: NDArray[np.integer]) -> Degrees:
    """How many clusters each neuron serves, where `cluster` (n,) is that of each decoder row, negative for rows in none."""
    of = cluster[links.row].astype(np.int64)
    of, row, neuron = (values[of >= 0] for values in (of, links.row, links.neuron))
    pairs = np.unique(of * links.d_model + neuron)
    chance = _chances(of, row, links.d_model)
    return Degrees(
        degree=np.bincount(pairs % links.d_model, minlength=links.d_model),
        n_features=np.bincount(neuron, minlength=links.d_model),
        expected=float(chance.sum()),
        super_degree=_super_degree(chance, links.d_model),
    )


def band(degree: int) -> str | None:
    """The band of a degree; None for 0."""
    if degree < 1:
        return None
    return next((name for name, (_, high) in zip(NAMES, BANDS, strict=False) if degree <= high), NAMES[-1])


def law(chance: Floats) -> Floats:
    """P(degree = 0, 1, ...) for clusters that reach a neuron with these probabilities, as far as it is not vanishing."""
    mean, variance = chance.sum(), (chance * (1 - chance)).sum()
    reach = min(len(chance), int(mean + 12 * np.sqrt(variance)) + 30)  # beyond lies less than 1e-15
    found = np.zeros(reach + 1)
    found[0] = 1.0
    for p in chance:
        found[1:] = found[1:] * (1 - p) + found[:-1] * p
        found[0] *= 1 - p
    return found


def _chances(cluster: Indices, row: Indices, d_model: int) -> Floats:
    """The probability that a cluster's links, dealt out at random, reach a given neuron; of each cluster with any, (n,)."""
    if not len(row):
        return np.empty(0)
    _, first, n_links = np.unique(row, return_index=True, return_counts=True)
    with np.errstate(divide="ignore"):  # a feature linked to every neuron misses none
        missed = np.log1p(-n_links / d_model)
    known, of = np.unique(cluster[first], return_inverse=True)
    total = np.zeros(len(known))
    np.add.at(total, of, missed)
    chances: Floats = -np.expm1(total)
    return chances


def _super_degree(chance: Floats, d_model: int) -> int:
    """The smallest degree that the null expects at most SUPER of `d_model` neurons to reach."""
    reached = np.cumsum(law(chance)[::-1])[::-1]  # P(degree >= k)
    rare = np.flatnonzero(d_model * reached <= SUPER)
    return int(rare[0]) if len(rare) else len(reached)
