"""Targets, links and shared pairs of a small catalogue, against what a reader would pick by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from harness.whitebox.distilling.links import SharedPairs, SiteFeatures, SiteWords
from harness.whitebox.features.catalogue import Catalogue
from harness.whitebox.sources.sites import Site

from ..tiny_catalogue import SiteData, write_catalogue

SITE = Site(layer=1, submodule="resid_post")
ANIMALS = frozenset({"cat", "dog", "cow"})
TOKENS = [
    [("cat", 1.0), ("Dog", 0.9), ("zebra", 0.5)],  # 0 speaks of animals: what it does below HIGH does not count
    [("tax", 2.0), ("invoice", 1.7), ("cat", 0.3)],  # 1 interferes with 0
    [("tax", 1.0), ("rent", 0.9)],  # 2 interferes less
    [("cow", 1.0), ("barn", 0.95), ("hay", 0.9)],  # 3 says one word of animals
    [("meadow", 1.0)],  # 4 interferes, but means something close
    [],  # 5 never fires
]


def rows(cosines: list[float]) -> np.ndarray:
    """Unit rows of which the first is an axis and the others have these cosines with it, and none with each other."""
    W_dec = np.zeros((len(cosines) + 1, len(cosines) + 1))
    W_dec[0, 0] = 1
    for number, cosine in enumerate(cosines, start=1):
        W_dec[number, [0, number]] = cosine, np.sqrt(1 - cosine**2)
    return W_dec


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    glosses = np.eye(6, 8)
    glosses[4] = glosses[0] * 0.8 + glosses[4] * 0.6
    glosses[5] = 0
    data = SiteData(W_dec=rows([0.6, 0.4, 0.1, 0.7, 0.9]), tokens=TOKENS, gloss_vectors=glosses)
    return write_catalogue(tmp_path / "catalogue", source="tiny", sites={SITE: data})


def test_a_features_share_counts_its_high_words_only(catalogue: Catalogue) -> None:
    words = SiteWords(catalogue, SITE)
    assert words.shares(ANIMALS)[:5].tolist() == pytest.approx([1, 0, 0, 1 / 3, 0])
    assert words.alive.tolist() == [True] * 5 + [False]
    assert words.high(0) == ([" cat", " Dog"], ["cat", "dog"])


def test_links_are_pairs_above_the_threshold_that_mean_something_else(catalogue: Catalogue) -> None:
    features = SiteFeatures(catalogue, SITE)
    (link,) = features.links(ANIMALS, above=0.5, max_similarity=0.3)
    (member,) = link.members
    assert (member.target, member.feature, member.interference) == (0, 1, pytest.approx(0.6))
    assert link.words == ("tax", "invoice")
    found = list(features.links(ANIMALS, above=0.3, max_similarity=0.3))
    assert [one.members[0].feature for one in found] == [1, 2]
    assert {one.members[0].feature for one in features.links(ANIMALS, above=0.3, max_similarity=0.9)} == {1, 2, 4}
    assert not list(features.links(frozenset({"house"}), above=0.0, max_similarity=0.3))


def test_by_the_published_rule_one_word_makes_a_target(catalogue: Catalogue) -> None:
    found = SiteFeatures(catalogue, SITE).links(ANIMALS, above=0.05, max_similarity=0.3, speaks_of=0.0)
    assert {link.members[0].feature: link.members[0].target for link in found} == {1: 0, 2: 0, 4: 3}  # 4 means what 0 does
    assert SiteFeatures(catalogue, SITE).shares(ANIMALS)[3] == pytest.approx(1 / 3)


def test_a_words_interference_is_the_strongest_of_the_features_that_fire_on_it(catalogue: Catalogue) -> None:
    found = SiteFeatures(catalogue, SITE).word_interference(ANIMALS, max_similarity=0.3)
    assert found["tax"] == pytest.approx(0.6)
    assert found["rent"] == pytest.approx(0.4)
    assert found["hay"] == pytest.approx(0.1)
    assert found["meadow"] == -np.inf
    assert SiteFeatures(catalogue, SITE).word_interference(frozenset({"house"}), max_similarity=0.3) == {}


def test_shared_pairs_link_a_concept_where_one_member_speaks_of_it_in_both_sources(catalogue: Catalogue) -> None:
    sites = {(source, str(SITE)): SiteWords(catalogue, SITE) for source in ("a", "b")}

    def row(i_a: int, j_a: int, i_b: int, j_b: int, site: str = str(SITE)) -> dict[str, object]:
        ends = {"site_a": site, "i_a": i_a, "j_a": j_a, "cosine_a": 0.6, "similarity_a": 0.1}
        return ends | {"site_b": str(SITE), "i_b": i_b, "j_b": j_b, "cosine_b": 0.5, "similarity_b": 0.2}

    listed = [
        row(0, 1, 0, 2),  # found
        row(1, 0, 2, 3),  # found the other way round: 3 says a word of animals, 0 speaks of them
        row(3, 1, 3, 1),  # neither speaks of animals
        row(0, 3, 0, 1),  # the interfering one says a word of animals in a
        row(0, 5, 0, 1),  # never fires
        row(0, 1, 0, 1, site="resid_post.9"),  # a site that was left out
    ]
    pairs = SharedPairs(pa.Table.from_pylist(listed), ("a", "b"), sites)
    found = list(pairs.links(ANIMALS))
    assert len(pairs) == 5
    assert [[(m.source, m.target, m.feature) for m in link.members] for link in found] == [
        [("a", 0, 1), ("b", 0, 2)],
        [("a", 0, 1), ("b", 3, 2)],
    ]
    assert found[0].words == ("tax", "invoice", "rent")
    assert (found[0].interference, found[0].similarity) == (0.5, 0.2)
