"""Pairs of features of one source matched to pairs of another, both members jointly, and how many chance would match.

Knows arrays of pairs and matches of features (see `matching`), neither catalogues nor files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from harness.whitebox.sharing.matching import Matches

Ints = NDArray[np.integer]
Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

COMBINATIONS = 1 << 20
"""Pairs of matches looked up at once: tens of MB."""

DENSITY_BINS = 10
COSINE_BIN = 0.05
"""Width of the bins of equal cosine."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pairs:
    """Pairs of features of one site, (n,) each: i < j, the cosine of their directions and of their glosses."""

    i: Ints
    j: Ints
    cosine: Floats
    similarity: Floats

    def __len__(self) -> int:
        return len(self.i)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidates:
    """Pairs of a and of b whose members match, each two once, (n,) each.

    `a`, `b`: numbers of the pairs; `i_b` matches the first feature of a's pair with `match_i`, `j_b` its second with
    `match_j`; `score`: the smaller of the two.
    """

    a: Ints
    b: Ints
    i_b: Ints
    j_b: Ints
    match_i: Floats
    match_j: Floats

    @property
    def score(self) -> Floats:
        """How well the pairs match: as well as the worse of their members."""
        return np.minimum(self.match_i, self.match_j)

    def __getitem__(self, wanted: Mask | Ints) -> Candidates:
        return Candidates(**{name: getattr(self, name)[wanted] for name in self.__dataclass_fields__})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Decision:
    """What became of each candidate, (n,) each.

    `best`: of the one pair or of the other; `mutual`: of both; `margin`: by how much the score beats that of the next pair,
    the smaller one of both directions (a rival that is no match scores 0), NaN where not mutual; `shared`: mutual, by
    the margin that was asked for.
    """

    best: Mask
    mutual: Mask
    margin: Floats
    shared: Mask


def candidates(a: Pairs, b: Pairs, matches: Matches) -> Candidates:
    """All pairs of `b` whose two features match those of a pair of `a`, in the one order or the other, the better one."""
    width = 1 + max((int(values.max()) for values in (b.j, matches.b) if len(values)), default=0)
    places = b.i.astype(np.int64) * width + b.j
    order = np.argsort(places)
    sorted_places = np.append(places[order], -1)
    found: list[Candidates] = []
    for number, one, other in _combinations(a, matches):
        i_b, j_b = matches.b[one], matches.b[other]
        place = np.minimum(i_b, j_b).astype(np.int64) * width + np.maximum(i_b, j_b)
        at = np.searchsorted(sorted_places[:-1], place)
        hit = np.flatnonzero(sorted_places[at] == place)
        found.append(
            Candidates(
                a=number[hit],
                b=order[at[hit]],
                i_b=i_b[hit],
                j_b=j_b[hit],
                match_i=matches.score[one[hit]],
                match_j=matches.score[other[hit]],
            )
        )
    names = Candidates.__dataclass_fields__
    return _each_once(Candidates(**{name: np.concatenate([getattr(part, name) for part in found]) for name in names}))


def decide(found: Candidates, margin: float) -> Decision:
    """Which candidates are each other's best, by at least `margin`."""
    (best_a, lead_a), (best_b, lead_b) = _leading(found.a, found.b, found.score), _leading(found.b, found.a, found.score)
    mutual = best_a & best_b
    smaller = np.where(mutual, np.minimum(lead_a, lead_b), np.nan).astype(np.float32)
    with np.errstate(invalid="ignore"):
        return Decision(best=best_a | best_b, mutual=mutual, margin=smaller, shared=mutual & (smaller >= margin))


def relabelled(matches: Matches, density: Floats, usable: Mask, rng: np.random.Generator) -> Matches:
    """The matches with b's features put in another's place: any usable one of about its density (d_sae of b,) each.

    What a feature of b fires on is thereby torn from the direction it has, and nothing else: its share of matches, their
    scores and b's pairs stay.
    """
    swapped = np.arange(len(density), dtype=np.int32)
    features = np.flatnonzero(usable)
    ordered = features[np.argsort(density[features], kind="stable")]
    for part in np.array_split(ordered, min(DENSITY_BINS, max(len(ordered) // 2, 1))):
        swapped[part] = rng.permutation(part)
    return replace(matches, b=swapped[matches.b])


def partner_chance(found: Candidates, matches: Matches, a: Pairs, unit: Floats, usable: Mask) -> NDArray[np.float64]:
    """The chance that each shared pair would count with one member of b's pair drawn anew, NaN where there is no other.

    One match is kept, say that of the first features; in the place of the second of b comes any usable feature whose cosine
    with the first lies in the same bin (`unit`: directions (d_sae, d), zeros where there is none). It counts if it matches
    the second of a at all. Features near one another in direction may fire together: a high chance says that the second
    match tells nothing beyond the first. The mean over both members, of those that have another feature in their bin.
    """
    chance = np.full(len(found.a), np.nan)
    alike: dict[int, set[int]] = {}
    for one, other in zip(matches.a.tolist(), matches.b.tolist(), strict=True):
        alike.setdefault(one, set()).add(other)
    members = zip(a.i[found.a], a.j[found.a], found.i_b, found.j_b, strict=True)
    for row, (i_a, j_a, i_b, j_b) in enumerate(members):
        shares = []
        for kept, drawn, own in ((i_b, j_b, j_a), (j_b, i_b, i_a)):
            bins = np.floor(unit @ unit[kept] / COSINE_BIN)
            there = usable & (bins == bins[drawn])
            there[[kept, drawn]] = False
            others = np.flatnonzero(there)
            if len(others):
                shares.append(np.isin(others, list(alike[int(own)])).mean())
        if shares:
            chance[row] = np.mean(shares)
    return chance


def _combinations(a: Pairs, matches: Matches) -> Iterator[tuple[Ints, Ints, Ints]]:
    """For each pair of `a` every match of its first feature with every match of its second: pair, match, match; in parts."""
    (first_i, last_i), (first_j, last_j) = (
        (np.searchsorted(matches.a, features), np.searchsorted(matches.a, features, side="right")) for features in (a.i, a.j)
    )
    wide = (last_j - first_j).astype(np.int64)
    sizes = (last_i - first_i) * wide
    until = np.append(0, np.cumsum(sizes))
    start = 0
    while True:
        stop = max(int(np.searchsorted(until, until[start] + COMBINATIONS, side="right")) - 1, start + 1)
        number = np.repeat(np.arange(start, min(stop, len(a))), sizes[start:stop])
        place = np.arange(len(number)) - (until[number] - until[start])
        yield number, first_i[number] + place // wide[number], first_j[number] + place % wide[number]
        start = stop
        if start >= len(a):
            return


def _each_once(found: Candidates) -> Candidates:
    """Of the two orders in which two pairs can match, the one with the better score."""
    found = found[np.lexsort((found.i_b, -found.score, found.b, found.a))]
    again = (np.diff(found.a, prepend=-1) == 0) & (np.diff(found.b, prepend=-1) == 0)
    return found[~again]


def _leading(group: Ints, other: Ints, score: Floats) -> tuple[Mask, Floats]:
    """Which candidate is the best of its group, and by how much each leads the next one of its group."""
    order = np.lexsort((other, -score, group))
    same = np.diff(group[order], append=-1) == 0
    following = np.where(same, np.append(score[order][1:], 0.0)[: len(order)], 0.0)
    best, lead = np.zeros(len(order), bool), np.zeros(len(order), np.float32)
    best[order] = np.append(True, ~same[:-1])[: len(order)]
    lead[order] = score[order] - following
    return best, lead
