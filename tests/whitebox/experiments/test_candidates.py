"""Targets and candidates on a catalogue in which every cosine and every similarity is planted."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

pytest.importorskip("transformers")

from harness.errors import UsageError
from harness.packs.sampling import generator
from harness.whitebox.distilling.links import SiteFeatures
from harness.whitebox.experiments import candidates
from harness.whitebox.experiments.candidates import (
    BANDS,
    NORM_MATCHED,
    RANDOM,
    SELF,
    SIMILARITY_MATCHED,
    Band,
    Candidate,
    Chooser,
    NeuronChooser,
    Wanted,
    matched,
)
from harness.whitebox.features.catalogue import Catalogue

from ..tiny_world import (
    ALIKE,
    COSINES,
    EACH,
    LEXICON,
    SAYS_PINK,
    SAYS_WARM,
    SITE,
    codes,
    cosines,
    decoder,
    make_catalogue,
    save_model,
    similarities,
)
from ..tiny_world import gpt2 as tiny_gpt2

NAMES = [str(band) for band in BANDS]
WORDS = frozenset(LEXICON)


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    folder = tmp_path_factory.mktemp("world")
    return make_catalogue(folder / "catalogue", save_model(folder / "model", tiny_gpt2()))


def wanted(**changes: object) -> Wanted:
    usual = {"targets": 4, "candidates": EACH, "bands": BANDS, "named": False, "seed": 0}
    return Wanted(**(usual | changes))  # type: ignore[arg-type]


def by_arm(chosen: tuple[Candidate, ...]) -> dict[str, list[Candidate]]:
    found: dict[str, list[Candidate]] = {}
    for candidate in chosen:
        found.setdefault(candidate.arm, []).append(candidate)
    return found


def test_each_arm_has_the_planted_features_equally_many_and_what_is_known_of_them(catalogue: Catalogue) -> None:
    chosen = Chooser(catalogue, SITE, wanted()).targets(WORDS)
    assert list(chosen) == [1, 0]  # both words of 1 are colours, two of three of 0
    phi = np.corrcoef((codes().toarray() > 0).T)
    for target, listed in chosen.items():
        arms = by_arm(listed)
        assert list(arms) == [SELF, *NAMES, SIMILARITY_MATCHED, NORM_MATCHED, RANDOM]
        assert {name: len(members) for name, members in arms.items()} == {name: 1 if name == SELF else EACH for name in arms}
        assert arms[SELF][0].feature == target
        for name, cosine in zip(NAMES, COSINES, strict=True):
            assert {c.feature for c in arms[name]} == set(np.flatnonzero(np.isclose(cosines()[:, target], cosine)).tolist())
        for name in (SIMILARITY_MATCHED, NORM_MATCHED):
            assert all(abs(c.interference) < 0.05 for c in arms[name])  # type: ignore[arg-type]
            assert len({c.feature for c in arms[name]}) == EACH
        assert all((c.feature, c.interference, c.similarity, c.density) == (None,) * 4 for c in arms[RANDOM])
        assert [c.draw for c in arms[RANDOM]] == list(range(EACH))
        barred = {SAYS_PINK} if target == 1 else {ALIKE, SAYS_PINK, SAYS_WARM}
        assert not barred & {c.feature for c in listed}
        for candidate in listed:
            if candidate.feature is None:
                continue
            assert candidate.interference == pytest.approx(cosines()[candidate.feature, target], abs=1e-6)
            assert candidate.coactivation == pytest.approx(phi[target, candidate.feature], abs=1e-6)
            assert candidate.density == pytest.approx(float((codes()[:, [candidate.feature]] > 0).mean()), abs=1e-6)
            if target == 0:
                assert candidate.similarity == pytest.approx(similarities()[candidate.feature], abs=1e-6)


def test_the_scarcest_band_sets_the_number_of_candidates_of_every_arm(catalogue: Catalogue) -> None:
    bands = (Band(low=0.1, high=0.2), Band(low=0.2, high=0.5), Band(low=0.9, high=1.0))
    arms = by_arm(Chooser(catalogue, SITE, wanted(bands=bands, candidates=5)).targets(WORDS)[0])
    assert {name: len(listed) for name, listed in arms.items() if name != SELF} == dict.fromkeys(
        ["0.1-0.2", "0.2-0.5", SIMILARITY_MATCHED, NORM_MATCHED, RANDOM], EACH
    )
    assert Chooser(catalogue, SITE, wanted(bands=(Band(low=0.9, high=1.0),))).targets(WORDS) == {}
    assert Chooser(catalogue, SITE, wanted()).targets(frozenset({"nothing"})) == {}
    assert len(Chooser(catalogue, SITE, wanted(targets=1)).targets(WORDS)) == 1


def test_named_random_candidates_are_features_without_the_targets_meaning(catalogue: Catalogue) -> None:
    arms = by_arm(Chooser(catalogue, SITE, wanted(named=True)).targets(WORDS)[0])
    numbers = {c.feature for c in arms[RANDOM]}
    assert len(numbers) == EACH
    assert not numbers & {None, 0, 1, ALIKE, SAYS_PINK, SAYS_WARM}


def test_draws_depend_on_seed_and_target_and_do_not_run_in_the_order_of_features(catalogue: Catalogue) -> None:
    def drawn(seed: int) -> list[tuple[int | None, ...]]:
        chosen = Chooser(catalogue, SITE, wanted(candidates=3, bands=(Band(low=0.1, high=1.0),), seed=seed)).targets(WORDS)
        return [tuple(c.feature for c in listed if c.arm == "0.1-1") for listed in chosen.values()]

    assert drawn(1) == drawn(1)
    many = [draw for seed in range(20) for draw in drawn(seed)]
    assert len(set(many)) > 30
    assert any(max(draw) - min(draw) > EACH for draw in many)  # type: ignore[type-var, operator]


def test_similarity_matched_features_are_the_nearest_in_similarity() -> None:
    values = np.array([0.0, 0.11, 0.2, 0.29, 0.1, 0.28])
    found = matched(np.array([0, 1, 2, 3]), values, np.array([4, 5]), generator(0, "x"))
    assert found.tolist() == [1, 3]
    twice = matched(np.array([0, 1, 2, 3]), values, np.array([4, 4]), generator(0, "x"))
    assert sorted(twice.tolist()) in ([0, 1], [1, 2])
    assert len(matched(np.array([0]), values, np.array([4, 5]), generator(0, "x"))) == 0


def test_a_feature_that_never_fires_has_no_coactivation(catalogue: Catalogue) -> None:
    chooser = Chooser(catalogue, SITE, wanted())
    kept = np.ones(chooser._fired.shape[1], np.float32)
    kept[3] = 0
    chooser._fired = (chooser._fired @ sparse.diags_array(kept)).tocsc()
    chooser._fired.eliminate_zeros()
    (one,) = [c for c in chooser.targets(WORDS)[0] if c.feature == 3]
    assert one.coactivation is None


@pytest.mark.parametrize("text", ["0.2", "0.3-0.2", "a-b", "0-0.1", "0.5-1.5", "nan-1"])
def test_what_is_no_band_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no band of interference"):
        Band.parse(text)


def test_bands_meet_without_overlap_and_the_last_holds_one() -> None:
    cosine = np.array([0.1, 0.2, 0.3, 0.4, 1.0, 1.0000001, 0.05, -0.5])
    held = np.stack([band.holds(cosine) for band in BANDS])
    assert held.sum(axis=0).tolist() == [1, 1, 1, 1, 1, 1, 0, 0]
    assert Band.parse("0.2-0.3") == BANDS[1]


def test_neurons_are_drawn_by_degree_and_their_controls_by_root_mean_square(catalogue: Catalogue) -> None:
    degree = np.repeat([0, 1, 3, 10], 8)
    rms = np.random.default_rng(0).random(32) + 0.1
    chosen = NeuronChooser(SiteFeatures(catalogue, SITE), wanted(), degree, rms).targets(WORDS)
    for target, listed in chosen.items():
        arms = by_arm(listed)
        names = ["0", "1", "2-5", "6-20"]
        assert list(arms) == [SELF, *names, *(f"{NORM_MATCHED} {name}" for name in names), RANDOM]
        assert {len(arms[name]) for name in arms if name != SELF} == {EACH}
        assert arms[SELF][0].feature == target  # its row is largest in the coordinate of its own number
        for name, low, high in (("0", 0, 0), ("1", 1, 1), ("2-5", 2, 5), ("6-20", 6, 20)):
            assert all(low <= c.degree <= high for c in arms[name])  # type: ignore[operator]
            control = arms[f"{NORM_MATCHED} {name}"]
            assert not any(low <= c.degree <= high for c in control)  # type: ignore[operator]
            gap = np.abs(rms[[c.feature for c in control]] - rms[[c.feature for c in arms[name]]]).mean()  # type: ignore[index]
            assert gap < 0.1
        for candidate in listed:
            assert candidate.interference == pytest.approx(decoder()[target, candidate.feature], abs=1e-6)
            assert candidate.activation == pytest.approx(rms[candidate.feature])  # type: ignore[index]


def test_no_arm_is_named_like_another() -> None:
    assert len({SELF, SIMILARITY_MATCHED, NORM_MATCHED, RANDOM, *NAMES}) == 4 + len(candidates.BANDS)
