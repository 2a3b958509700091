"""Which features of a site are steered along for a target feature, or neurons scaled, and what they are compared with.

A target feature speaks of a concept (`links.SPEAKS_OF` of its high words are of the lexicon). Its arms are

- `self`: the target's own direction;
- a band of interference, such as `0.2-0.3`: features whose decoder cosine with the target lies in it;
- `similarity_matched`: features with hardly any interference (below NEAR), their gloss as similar to the target's as those of
  the features drawn from the bands;
- `norm_matched`: features with hardly any interference, as strong when they fire (`mean_act`) as those drawn;
- `random`: fresh Gaussian directions, or, where an arm must have words, any features.

All but `self` have gloss similarity below MAX_SIMILARITY with the target (`random` features too), no high word of the lexicon
and none that the target has. All arms of a target, but for `self`, have equally many candidates: as many as asked for, or as
the scarcest band that is not empty has. Draws are independent and without replacement, from one generator a target.

A neuron, a coordinate of the site's output, is chosen by how many clusters (or features) it serves, its degree:

- `self`: the neuron that the target's decoder row is largest in; its interference is that entry, and so is that of the others;
- a band of degrees, such as `2-5`, and for each one `norm_matched 2-5`: neurons outside the band whose root mean square is
  nearest to that of the neurons drawn from it;
- `random`: any neurons.

Owns the choice. What is done along them is `foci`'s matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from harness.errors import UsageError
from harness.packs.sampling import generator
from harness.whitebox.clusters import neurons
from harness.whitebox.distilling.links import SPEAKS_OF, SiteFeatures
from harness.whitebox.features.catalogue import Catalogue
from harness.whitebox.sources.sites import Site

MAX_SIMILARITY = 0.3
NEAR = 0.05

SELF, SIMILARITY_MATCHED, NORM_MATCHED, RANDOM = "self", "similarity_matched", "norm_matched", "random"

Floats = NDArray[np.floating]
Places = NDArray[np.intp]


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Band:
    """Cosines from `low` up to, but for 1 itself, below `high`."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:g}-{self.high:g}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """`0.2-0.3` as a band; raises UsageError."""
        low, _, high = text.partition("-")
        try:
            band = cls(low=float(low), high=float(high))
        except ValueError:
            band = cls(low=0.0, high=0.0)
        if not NEAR <= band.low < band.high <= 1:
            raise UsageError(f"{text!r} is no band of interference", hint=f"write LOW-HIGH, from {NEAR:g} to 1, as 0.2-0.3")
        return band

    def holds(self, cosine: Floats) -> NDArray[np.bool_]:
        """Which of `cosine` lie in the band; rounding may put a cosine of 1 a little above."""
        return (cosine >= self.low) & ((cosine < self.high) | (self.high >= 1))


BANDS = (Band(low=0.1, high=0.2), Band(low=0.2, high=0.3), Band(low=0.3, high=0.4), Band(low=0.4, high=1.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """The `draw`-th of an arm of `target`. `feature`: a feature or neuron, None for a random direction.

    What is not known, or makes no sense, is None. `coactivation`: correlation of the two features' firing, as 0 and 1, over the
    tokens of the catalogue's codes; `activation`: mean of the feature where it fires, or root mean square of the neuron;
    `degree`: how many features or clusters a neuron serves.
    """

    target: int
    arm: str
    draw: int
    feature: int | None = None
    interference: float | None = None
    similarity: float | None = None
    density: float | None = None
    coactivation: float | None = None
    activation: float | None = None
    degree: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """How the candidates of a site are to be chosen: `targets` for each concept, at most `candidates` in each arm.

    `named`: random candidates are features, not directions.
    """

    targets: int
    candidates: int
    bands: tuple[Band, ...]
    named: bool
    seed: int


class Chooser:
    """Chooses targets and their candidates at one site of a catalogue."""

    def __init__(self, catalogue: Catalogue, site: Site, wanted: Wanted) -> None:
        self.features = SiteFeatures(catalogue, site)
        self._wanted = wanted
        table = catalogue.table(site, "features")
        self._density, self._activation = (table[name].to_numpy() for name in ("density", "mean_act"))
        self._fired = catalogue.codes(site).astype(bool).astype(np.float32).tocsc()

    def targets(self, words: frozenset[str]) -> dict[int, tuple[Candidate, ...]]:
        """The candidates of the targets that speak of a concept most: by the share, then by the number, of its words.

        A feature with which none interferes is no target, so that every target has something to be compared with.
        """
        foreign = self.features.shares(words) == 0
        found: dict[int, tuple[Candidate, ...]] = {}
        for at in ranked(self.features, words):
            if len(found) == self._wanted.targets:
                break
            if chosen := self._candidates(at, foreign):
                found[int(self.features.features[at])] = chosen
        return found

    def _candidates(self, target: int, foreign: NDArray[np.bool_]) -> tuple[Candidate, ...]:
        """The candidates of all arms for the feature at place `target`; none where every band is empty."""
        features, wanted = self.features, self._wanted
        cosine, similarity = (rows @ rows[target] for rows in (features.unit, features.glosses))
        own = features.said[features.said_by == target]
        pool = foreign & (similarity < MAX_SIMILARITY)
        pool[features.said_by[np.isin(features.said, own)]] = False  # the target itself too
        bands = {str(band): np.flatnonzero(pool & band.holds(cosine)) for band in wanted.bands}
        bands = {name: places for name, places in bands.items() if len(places)}
        if not bands:
            return ()
        n = min(wanted.candidates, *map(len, bands.values()))
        rng = generator(wanted.seed, "candidates", features.source, str(features.site), str(features.features[target]))
        arms = {name: rng.choice(places, n, replace=False) for name, places in bands.items()}
        drawn = np.concatenate(list(arms.values()))
        far = np.flatnonzero(pool & (np.abs(cosine) < NEAR))
        strength = np.log(np.maximum(self._activation[features.features], 1e-9))
        arms[SIMILARITY_MATCHED] = matched(far, similarity, rng.choice(drawn, n, replace=False), rng)
        arms[NORM_MATCHED] = matched(far, strength, rng.choice(drawn, n, replace=False), rng)
        if wanted.named:
            arms[RANDOM] = rng.choice(np.flatnonzero(pool), n, replace=False)
        told = self._told(target, cosine, similarity)
        found = [told(SELF, 0, target), *(told(arm, i, int(at)) for arm, places in arms.items() for i, at in enumerate(places))]
        if not wanted.named:
            feature = int(features.features[target])
            found += [Candidate(target=feature, arm=RANDOM, draw=draw) for draw in range(n)]
        return tuple(found)

    def _told(self, target: int, cosine: Floats, similarity: Floats) -> _Told:
        numbers = self.features.features
        return _Told(
            target=int(numbers[target]),
            features=numbers,
            cosine=cosine,
            similarity=similarity,
            density=self._density,
            activation=self._activation,
            coactivation=self._coactivation(int(numbers[target])),
        )

    def _coactivation(self, target: int) -> Floats:
        """The correlation of firing with each feature, (d_sae,); NaN where one of the two never, or always, fires."""
        n_tokens = self._fired.shape[0]
        count = np.diff(self._fired.indptr).astype(np.float64)
        own = count[target]
        both = np.asarray(self._fired.T @ self._fired[:, [target]].toarray()).ravel().astype(np.float64)
        spread = np.sqrt(count * (n_tokens - count) * own * (n_tokens - own))
        with np.errstate(divide="ignore", invalid="ignore"):
            phi: Floats = np.where(spread > 0, (n_tokens * both - count * own) / spread, np.nan)
        return phi


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Told:
    """Candidates of one target with what is known of them."""

    target: int
    features: NDArray[np.int32]
    cosine: Floats
    similarity: Floats
    density: Floats
    activation: Floats
    coactivation: Floats

    def __call__(self, arm: str, draw: int, at: int) -> Candidate:
        feature = int(self.features[at])
        phi = float(self.coactivation[feature])
        return Candidate(
            target=self.target,
            arm=arm,
            draw=draw,
            feature=feature,
            interference=float(self.cosine[at]),
            similarity=float(self.similarity[at]),
            density=float(self.density[feature]),
            coactivation=None if np.isnan(phi) else phi,
            activation=float(self.activation[feature]),
        )


class NeuronChooser:
    """Chooses targets and neurons. `degree` and `rms` (d_model,): how much each neuron serves, and its root mean square."""

    def __init__(self, features: SiteFeatures, wanted: Wanted, degree: NDArray[np.integer], rms: Floats) -> None:
        self.features = features
        self._wanted = wanted
        self._degree, self._rms = degree, rms
        names = np.array([neurons.band(int(d)) or "0" for d in degree])
        self._bands = {name: np.flatnonzero(names == name) for name in ("0", *neurons.NAMES) if name in names}

    def targets(self, words: frozenset[str]) -> dict[int, tuple[Candidate, ...]]:
        """The neurons of the targets that speak of a concept most, as in `Chooser`."""
        best = ranked(self.features, words)[: self._wanted.targets]
        return {int(self.features.features[at]): self._candidates(at) for at in best}

    def _candidates(self, target: int) -> tuple[Candidate, ...]:
        row = self.features.unit[target]
        feature = int(self.features.features[target])
        own = int(np.argmax(row))
        bands = {name: members[members != own] for name, members in self._bands.items()}
        bands = {name: members for name, members in bands.items() if len(members)}
        n = min(self._wanted.candidates, *map(len, bands.values()))
        rng = generator(self._wanted.seed, "neurons", self.features.source, str(self.features.site), str(feature))
        arms = {SELF: np.array([own])} | {name: rng.choice(members, n, replace=False) for name, members in bands.items()}
        every = np.delete(np.arange(len(row)), own)
        for name, members in bands.items():
            arms[f"{NORM_MATCHED} {name}"] = matched(np.setdiff1d(every, members), self._rms, arms[name], rng)
        arms[RANDOM] = rng.choice(every, n, replace=False)
        return tuple(
            Candidate(
                target=feature,
                arm=arm,
                draw=draw,
                feature=int(neuron),
                interference=float(row[neuron]),
                activation=float(self._rms[neuron]),
                degree=int(self._degree[neuron]),
            )
            for arm, members in arms.items()
            for draw, neuron in enumerate(members)
        )


def ranked(features: SiteFeatures, words: frozenset[str]) -> list[int]:
    """The places of the features that speak of `words`, best first: by the share, then by the number, of words among theirs."""
    shares = features.shares(words)
    sizes = np.bincount(features.said_by, minlength=len(shares))
    places = np.flatnonzero(shares >= SPEAKS_OF).tolist()
    return sorted(places, key=lambda at: (-shares[at], -sizes[at], at))


def matched(pool: Places, values: Floats, partners: Sequence[int] | Places, rng: np.random.Generator) -> Places:
    """For each of `partners` the nearest of `pool` by its value, each once, ties drawn; empty where the pool is too small."""
    if len(pool) < len(partners):
        return np.zeros(0, np.intp)
    left = list(rng.permutation(pool))
    found = []
    for partner in partners:
        nearest = int(np.argmin(np.abs(values[left] - values[partner])))
        found.append(left.pop(nearest))
    return np.array(found, np.intp)
