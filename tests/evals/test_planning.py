"""Planning from a pilot: its components are those that made the data, and a planned design finds what it promises."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from harness.evals.planning import ENDLESS, Design, Pilot, Planning, Question, read_pilot
from harness.evals.spec import Contrast
from harness.stats.components import Components
from harness.stats.crossed import Trials, mean_two_way

METRIC = "delta_log_odds"
PARTS = Components(sentences=0.2, injections=0.06, rest=0.19, concepts=0.01)
OFFER = Design(concepts=16, injections=32, sentences=60)


def tables(rng: np.random.Generator, size: tuple[int, ...], parts: Components, effect: float = 0.0) -> NDArray[np.float64]:
    """Differences (..., C, S, K) with the given variances around `effect`."""
    *reps, n_concepts, n_sentences, n_injections = size
    shape = (*reps, n_concepts)
    return (
        effect
        + rng.normal(0, (parts.concepts or 0) ** 0.5, (*shape, 1, 1))
        + rng.normal(0, parts.sentences**0.5, (*shape, n_sentences, 1))
        + rng.normal(0, parts.injections**0.5, (*shape, 1, n_injections))
        + rng.normal(0, parts.rest**0.5, (*shape, n_sentences, n_injections))
    )


def columns(differences: NDArray[np.float64], control: NDArray[np.float64] | float = 0.0) -> dict[str, Any]:
    """The trials of `high` (control plus difference) and `matched` (control), as a run has them."""
    rows = [
        (f"c{c:03d}", arm, f"s{s}", f"{arm}-{k:04d}", value)
        for arm, table in (("high", differences + control), ("matched", np.broadcast_to(control, differences.shape)))
        for (c, s, k), value in np.ndenumerate(table)
    ]
    names = ("concept", "arm", "sentence_id", "injection_id", METRIC)
    made: dict[str, Any] = {name: np.array(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
    return made | {"off_type": np.zeros(len(rows))}


PRIMARY = Contrast(arm="high", control="matched")


def partners(table: dict[str, Any]) -> dict[tuple[str, str], str]:
    """Every control matched to the injection of its number."""
    names = zip(table["concept"].tolist(), table["injection_id"].tolist(), strict=True)
    return {(concept, name): name.replace("matched", "high") for concept, name in names if name.startswith("matched")}


def read(table: dict[str, Any]) -> Pilot:
    pilot = read_pilot(table, PRIMARY, METRIC, partners(table))
    assert pilot is not None
    return pilot


def planning(mde: float = 0.1, *, parts: Components = PARTS, width: float = 0.0, offer: Design = OFFER) -> Planning:
    design = Design(concepts=16, injections=8, sentences=12)
    return Planning(
        pilot=Pilot(parts=parts, design=design, width=width),
        question=Question(mde=mde, alpha=0.05, power=0.8),
        offer=offer,
        arms=6.5,
    )


def test_components_are_those_of_the_differences_of_matched_pairs() -> None:
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 3, (80, 12, 8))  # what a pair has in common in a sentence cancels
    pilot = read(columns(tables(rng, (80, 12, 8), PARTS), shared))
    assert pilot.design == Design(concepts=80, injections=8, sentences=12)
    assert pilot.parts.sentences == pytest.approx(PARTS.sentences, rel=0.15)
    assert pilot.parts.injections == pytest.approx(PARTS.injections, rel=0.25)
    assert pilot.parts.rest == pytest.approx(PARTS.rest, rel=0.1)
    assert pilot.parts.concepts == pytest.approx(PARTS.concepts, abs=0.015)
    assert pilot.width == 0


def test_failed_and_off_type_trials_are_left_out() -> None:
    rng = np.random.default_rng(1)
    whole = columns(tables(rng, (5, 6, 6), PARTS))
    spoiled = {name: np.concatenate([column, column[:50]]) for name, column in whole.items()}
    spoiled[METRIC] = np.concatenate([whole[METRIC], np.full(50, 99.0)])
    spoiled["off_type"] = np.concatenate([whole["off_type"], np.ones(50)])
    spoiled["sentence_id"] = np.concatenate([whole["sentence_id"], np.full(50, "off")])
    assert read(spoiled) == read(whole)
    failed = {**whole, METRIC: np.where(np.arange(len(whole[METRIC])) % 17 == 0, np.nan, whole[METRIC])}
    assert read(failed).parts.rest == pytest.approx(read(whole).parts.rest, rel=0.5)


def test_pairs_are_those_that_were_matched_whatever_their_numbers() -> None:
    rng = np.random.default_rng(2)
    table = columns(tables(rng, (3, 5, 4), PARTS), rng.normal(0, 3, (3, 5, 4)))
    turned = {f"matched-{k:04d}": f"matched-{3 - k:04d}" for k in range(4)}
    named = {**table, "injection_id": np.array([turned.get(name, name) for name in table["injection_id"].tolist()])}
    back = {(concept, turned[name]): high for (concept, name), high in partners(table).items()}
    assert read_pilot(named, PRIMARY, METRIC, back) == read(table)
    assert read(named).parts.rest > 2 * read(table).parts.rest


def test_a_control_that_was_not_matched_is_paired_in_order() -> None:
    rng = np.random.default_rng(2)
    table = columns(tables(rng, (3, 5, 4), PARTS), rng.normal(0, 1, (3, 5, 4)))
    assert read_pilot(table, PRIMARY, METRIC, {}) == read(table)


def test_bounds_are_read_at_their_middle_and_their_width_adds_to_what_is_seen() -> None:
    rng = np.random.default_rng(3)
    table = columns(tables(rng, (4, 6, 6), PARTS))
    wide = {**table, f"{METRIC}_low": table[METRIC] - 0.02, f"{METRIC}_high": table[METRIC] + 0.02}
    pilot = read(wide)
    assert pilot.width == pytest.approx(0.08)
    assert pilot.parts.rest == pytest.approx(read(table).parts.rest)
    design = Design(concepts=16, injections=8, sentences=12)
    seen, wider = planning().seen(design)[0], planning(width=0.08).seen(design)[0]
    assert seen is not None
    assert wider == pytest.approx(seen + 0.08)


@pytest.mark.parametrize("shape", [(3, 1, 5), (3, 5, 1)])
def test_a_pilot_of_one_sentence_or_one_injection_tells_nothing(shape: tuple[int, int, int]) -> None:
    table = columns(tables(np.random.default_rng(4), shape, PARTS))
    assert read_pilot(table, PRIMARY, METRIC, partners(table)) is None
    assert read_pilot(table, Contrast(arm="high", control="random"), METRIC, {}) is None


def test_a_pilot_of_one_concept_plans_for_one_concept_only() -> None:
    pilot = read(columns(tables(np.random.default_rng(5), (1, 12, 8), PARTS)))
    made = Planning(pilot=pilot, question=Question(mde=0.4, alpha=0.05, power=0.8), offer=OFFER, arms=6)
    assert pilot.parts.concepts is None
    assert made.cheapest(8) is None
    assert made.cheapest(1) is not None
    assert made.uncertainty() is None


def test_at_its_own_size_a_pilot_sees_what_its_t_test_sees() -> None:
    differences = tables(
        np.random.default_rng(6), (9, 10, 7), Components(sentences=0.2, injections=0.06, rest=0.19, concepts=0.1)
    )
    pilot = read(columns(differences))
    made = Planning(pilot=pilot, question=Question(mde=0.1, alpha=0.05, power=0.8), offer=OFFER, arms=6)
    se = differences.mean(axis=(1, 2)).std(ddof=1) / 3
    assert made.seen(pilot.design)[0] == pytest.approx((stats.t.ppf(0.975, 8) + stats.t.ppf(0.8, 8)) * se)
    assert made.uncertainty() == pytest.approx(tuple((8 / stats.chi2.ppf(q, 8)) ** 0.5 for q in (0.975, 0.025)))


def test_a_planned_design_over_concepts_finds_the_effect_as_often_as_promised() -> None:
    made = planning(0.12)
    design = made.cheapest(12)
    assert design is not None
    rng = np.random.default_rng(7)
    found = dict.fromkeys((0.12, 0.0), 0.0)
    for effect in found:
        means = np.concatenate(
            [tables(rng, (50, 12, design.sentences, design.injections), PARTS, effect).mean(axis=(2, 3)) for _ in range(40)]
        )
        found[effect] = float(np.mean(stats.ttest_1samp(means, 0, axis=1).pvalue <= 0.05))
    assert found[0.12] == pytest.approx(0.8, abs=0.035)
    assert found[0.0] == pytest.approx(0.05, abs=0.02)


def test_a_planned_design_of_one_concept_finds_the_effect_at_least_about_as_often_as_promised() -> None:
    made = planning(0.4)
    design = made.cheapest(1)
    assert design is not None
    rng = np.random.default_rng(8)
    alone = Components(sentences=0.2, injections=0.06, rest=0.19)
    sentences, injections = np.indices((design.sentences, design.injections)).reshape(2, -1)
    found = 0
    for table in tables(rng, (600, 1, design.sentences, design.injections), alone, 0.4)[:, 0]:
        p = mean_two_way(Trials.of(table.ravel(), sentences, injections)).p
        found += p is not None and p <= 0.05
    assert found / 600 == pytest.approx(0.8, abs=0.06)


def test_planning_from_a_pilots_estimates_comes_near_the_promise_too() -> None:
    rng = np.random.default_rng(9)
    pilot = read(columns(tables(rng, (60, 12, 8), PARTS)))
    made = Planning(pilot=pilot, question=Question(mde=0.12, alpha=0.05, power=0.8), offer=OFFER, arms=6.5)
    design = made.cheapest(12)
    assert design is not None
    means = np.concatenate(
        [tables(rng, (50, 12, design.sentences, design.injections), PARTS, 0.12).mean(axis=(2, 3)) for _ in range(20)]
    )
    assert 0.7 < np.mean(stats.ttest_1samp(means, 0, axis=1).pvalue <= 0.05) < 0.9


@pytest.mark.parametrize(("n_concepts", "mde"), [(16, 0.12), (10, 0.15), (1, 0.4)])
def test_the_cheapest_design_is_the_cheapest_of_all_on_offer(n_concepts: int, mde: float) -> None:
    made = planning(mde)
    grid = [
        Design(concepts=n_concepts, injections=k, sentences=s)
        for k, s in product(range(2, OFFER.injections + 1), range(2, OFFER.sentences + 1))
    ]
    best = made.cheapest(n_concepts)
    assert best is not None
    assert made.reaches(best)
    assert made.prompts(best) == min(made.prompts(design) for design in grid if made.reaches(design))


def test_what_pack_and_rooms_have_is_preferred_and_what_goes_beyond_is_named() -> None:
    narrow = planning(0.105, offer=Design(concepts=16, injections=8, sentences=400))
    free, within = planning(0.105).cheapest(16), narrow.cheapest(16)
    assert free is not None
    assert within is not None
    assert narrow.exceeds(free) == ("injections",)
    assert (narrow.exceeds(within), within.injections <= 8) == ((), True)
    assert narrow.prompts(within) >= narrow.prompts(free)
    poor = planning(0.12, offer=Design(concepts=8, injections=4, sentences=4))
    best = poor.cheapest(16)
    assert best is not None
    assert poor.outlook(best).exceeds == ("concepts", "injections", "sentences")


def test_no_number_of_sentences_beats_the_spread_of_injections_and_concepts() -> None:
    made = planning()
    t = stats.t.ppf(0.975, 15) + stats.t.ppf(0.8, 15)
    endless, _ = made.seen(Design(concepts=16, injections=8, sentences=ENDLESS))
    assert endless == pytest.approx(t * ((0.01 + 0.06 / 8) / 16) ** 0.5, rel=1e-6)
    both, _ = made.seen(Design(concepts=16, injections=ENDLESS, sentences=ENDLESS))
    assert both == pytest.approx(t * (0.01 / 16) ** 0.5, rel=1e-6)


def test_where_no_size_is_enough_the_number_of_concepts_that_is_gets_named() -> None:
    made = planning(0.07)
    assert made.cheapest(12) is None
    n = made.concepts_needed(32, 60)
    assert n is not None
    se = [((0.01 + 0.2 / 60 + 0.06 / 32 + 0.19 / (60 * 32)) / c) ** 0.5 for c in (n - 1, n)]
    fewer, enough = ((stats.t.ppf(0.975, c - 1) + stats.t.ppf(0.8, c - 1)) * e for c, e in zip((n - 1, n), se, strict=True))
    assert enough <= 0.07 < fewer
    assert planning(0.001).concepts_needed(ENDLESS, ENDLESS) is None


def test_alternatives_show_the_fewest_sentences_or_all_on_offer_where_none_do() -> None:
    made = planning(0.1)
    few, many = made.alternatives(16, (4, 32))
    assert few.design == Design(concepts=16, injections=4, sentences=60)
    assert few.mde is not None
    assert few.mde > 0.1
    assert many.mde is not None
    assert many.mde <= 0.1
    less = Design(concepts=16, injections=32, sentences=many.design.sentences - 1)
    assert not made.reaches(less)
    assert many.prompts == round(16 * many.design.sentences * (1 + 6.5 * 32))
