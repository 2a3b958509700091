"""Which pairs of features link a concept to unrelated words: a target feature that speaks of it, and one that interferes
with that.

A feature's *high tokens* are those on which it fires at least HIGH times as strongly as at its most. It *speaks of* a concept
if at least half of its high words belong to the lexicon; by the published rule (Gong et al. 2026) one word is enough, which
lets in features of anything that the concept happens to touch.

Owns the search. What becomes of the tokens is `token_sets`' matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from harness.whitebox.features.catalogue import Catalogue
from harness.whitebox.sources.sites import Site

HIGH = 0.8
SPEAKS_OF = 0.5

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A pair inside one source. `similarity`: cosine of the two glosses."""

    source: str
    site: str
    target: int
    feature: int
    interference: float
    similarity: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A pair as it bears on a concept, in one source or (a shared pair) in two.

    `tokens` are the interfering feature's high ones as the tokenizers have them, `words` the whole words they lie in, strongest
    first.
    """

    members: tuple[Member, ...]
    tokens: tuple[str, ...]
    words: tuple[str, ...]

    @property
    def interference(self) -> float:
        """That of the member in which it is weakest."""
        return min(member.interference for member in self.members)

    @property
    def similarity(self) -> float:
        """That of the member in which the two features are most alike."""
        return max(member.similarity for member in self.members)


class SiteWords:
    """The high tokens of one site's features.

    Features that never fire, or have no gloss, have none. `alive` (d_sae,) tells which have. Every high word of every feature
    stands once in `said_by` (m,), the feature, and `said` (m,), the word's place in `vocabulary`.
    """

    def __init__(self, catalogue: Catalogue, site: Site) -> None:
        self.source, self.site = catalogue.source, site
        table = catalogue.table(site, "tokens").select(["feature", "token", "word", "value"])
        table = table.sort_by([("feature", "ascending"), ("value", "descending")])
        feature, value = table["feature"].to_numpy(), table["value"].to_numpy()
        first = np.diff(feature, prepend=-1) != 0
        top = value[first][np.cumsum(first) - 1]
        glossed: NDArray[np.bool_] = np.any(catalogue.gloss_vectors(site) != 0, axis=1)
        kept: NDArray[np.bool_] = (value >= HIGH * top) & glossed[feature]
        self._table = table.filter(pa.array(kept)).combine_chunks()
        feature = feature[kept]
        self._start = np.searchsorted(feature, np.arange(len(glossed) + 1))
        words = np.char.lower(np.asarray(self._table["word"].to_pylist(), np.str_))
        self.vocabulary, said = np.unique(words, return_inverse=True)
        pairs = np.unique(np.stack([feature.astype(np.intp), said]), axis=1)
        self.said_by: NDArray[np.intp] = pairs[0]
        self.said: NDArray[np.intp] = pairs[1]
        self.alive = np.diff(self._start) > 0

    def high(self, feature: int) -> tuple[list[str], list[str]]:
        """The high tokens of a feature and their words, in lower case, strongest first."""
        rows = self._table.slice(self._start[feature], self._start[feature + 1] - self._start[feature])
        return rows["token"].to_pylist(), [word.lower() for word in rows["word"].to_pylist()]

    def shares(self, words: frozenset[str]) -> Floats:
        """The share of each feature's high words that belong to `words`, (d_sae,); NaN where it has none."""
        of_concept = np.isin(self.vocabulary, list(words))[self.said]
        own, total = (np.bincount(self.said_by, w, minlength=len(self.alive)) for w in (of_concept, None))
        with np.errstate(invalid="ignore"):
            shares: Floats = (own / total).astype(np.float32)
        return shares


class SiteFeatures:
    """The features of one site that fire and have a gloss: `features` (n,), `unit` (n, d_model), `glosses` (n, d_embed).

    A feature's *place* is its row there. `said_by` (m,) and `said` (m,) are those of `words`, but the first in places.
    """

    def __init__(self, catalogue: Catalogue, site: Site, words: SiteWords | None = None) -> None:
        self.words = words or SiteWords(catalogue, site)
        self.source, self.site = catalogue.source, site
        directions = catalogue.directions(site)
        fires = self.words.alive[directions.features]
        self.unit, self.features = directions.unit[fires], directions.features[fires]
        self.glosses = catalogue.gloss_vectors(site)[self.features]
        known = np.isin(self.words.said_by, self.features)
        self.said_by: NDArray[np.intp] = np.searchsorted(self.features, self.words.said_by[known])
        self.said = self.words.said[known]

    def shares(self, words: frozenset[str]) -> Floats:
        """The share of each feature's high words that belong to `words`, (n,)."""
        return self.words.shares(words)[self.features]

    def strongest(self, targets: NDArray[np.intp], *, max_similarity: float) -> tuple[Floats, NDArray[np.intp], Floats]:
        """For each feature its largest cosine with any of `targets` (places) whose gloss is not close to its own: cosine,
        target's place, and similarity, (n,) each. Minus infinity where there is none, and for the targets themselves."""
        similarity = self.glosses @ self.glosses[targets].T  # (n, n_targets)
        cosine = np.where(similarity < max_similarity, self.unit @ self.unit[targets].T, np.float32(-np.inf))
        cosine[targets] = -np.inf
        best = cosine.argmax(axis=1)
        rows = np.arange(len(cosine))
        return cosine[rows, best], targets[best], similarity[rows, best]

    def links(
        self, words: frozenset[str], *, above: float, max_similarity: float, speaks_of: float = SPEAKS_OF
    ) -> Iterator[Link]:
        """The links of this site alone: for each feature that says no word of the concept, the target it interferes with most.

        With `speaks_of` 0 a target needs a single word of the lexicon, as published.
        """
        shares = self.shares(words)
        targets = np.flatnonzero((shares > 0) & (shares >= speaks_of))
        if not len(targets):
            return
        cosine, target, similarity = self.strongest(targets, max_similarity=max_similarity)
        for at in np.flatnonzero((cosine > above) & (shares == 0)):
            member = Member(
                source=self.source,
                site=str(self.site),
                target=int(self.features[target[at]]),
                feature=int(self.features[at]),
                interference=float(cosine[at]),
                similarity=float(similarity[at]),
            )
            tokens, said = self.words.high(member.feature)
            yield Link(members=(member,), tokens=tuple(tokens), words=tuple(said))

    def word_interference(self, words: frozenset[str], *, max_similarity: float) -> dict[str, float]:
        """For each high word of the site the strongest interference, of the features that fire on it, with a target of the
        concept that has `words`; empty where no feature speaks of the concept."""
        targets = np.flatnonzero(self.shares(words) >= SPEAKS_OF)
        if not len(targets):
            return {}
        cosine = self.strongest(targets, max_similarity=max_similarity)[0]
        found = np.full(len(self.words.vocabulary), -np.inf)
        np.maximum.at(found, self.said, cosine[self.said_by])
        return dict(zip(self.words.vocabulary.tolist(), found.tolist(), strict=True))


class SharedPairs:
    """The shared pairs of two sources (`shared.read_shared`), at the sites that `sites` has."""

    def __init__(self, rows: pa.Table, sources: tuple[str, str], sites: Mapping[tuple[str, str], SiteWords]) -> None:
        self._sites = sites
        names = [rows[f"site_{end}"].to_pylist() for end in "ab"]
        known = [all(key in sites for key in zip(sources, pair, strict=True)) for pair in zip(*names, strict=True)]
        self._rows = rows.filter(pa.array(known, pa.bool_()))
        self._keys = [
            [(source, name) for name in self._rows[f"site_{end}"].to_pylist()]
            for source, end in zip(sources, "ab", strict=True)
        ]

    def __len__(self) -> int:
        return len(self._rows)

    def links(self, words: frozenset[str]) -> Iterator[Link]:
        """The pairs whose one member speaks of the concept with `words`, while the other says no word of it in either source.

        The target must speak of it in one source at least, and say a word of it in both.
        """
        shares = {key: site.shares(words) for key, site in self._sites.items()}
        said = {f"{m}_{end}": self._shares(shares, m, end) for m in "ij" for end in "ab"}
        for target, other in (("i", "j"), ("j", "i")):
            of_target = np.stack([said[f"{target}_{end}"] for end in "ab"])
            of_other = np.stack([said[f"{other}_{end}"] for end in "ab"])
            fit = (of_target.max(axis=0) >= SPEAKS_OF) & (of_target.min(axis=0) > 0) & (of_other == 0).all(axis=0)
            for at in np.flatnonzero(fit):
                yield self._link(int(at), target, other)

    def _shares(self, shares: Mapping[tuple[str, str], Floats], member: str, end: str) -> Floats:
        features = self._rows[f"{member}_{end}"].to_pylist()
        keys = self._keys["ab".index(end)]
        return np.array([shares[key][feature] for key, feature in zip(keys, features, strict=True)], np.float32)

    def _link(self, at: int, target: str, other: str) -> Link:
        row = self._rows.slice(at, 1).to_pylist()[0]
        members, tokens, words = [], [], []
        for end, keys in zip("ab", self._keys, strict=True):
            source, site = keys[at]
            members.append(
                Member(
                    source=source,
                    site=site,
                    target=row[f"{target}_{end}"],
                    feature=row[f"{other}_{end}"],
                    interference=row[f"cosine_{end}"],
                    similarity=row[f"similarity_{end}"],
                )
            )
            high_tokens, high_words = self._sites[source, site].high(row[f"{other}_{end}"])
            tokens += high_tokens
            words += high_words
        return Link(members=tuple(members), tokens=tuple(dict.fromkeys(tokens)), words=tuple(dict.fromkeys(words)))
