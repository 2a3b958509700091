"""Links and degrees against brute force, the law of chance against scipy and a simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from harness.errors import UsageError
from harness.whitebox.clusters import neurons
from harness.whitebox.clusters.neurons import Linking, band, degrees, law, links_of


def unit(n: int, d: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((n, d)) ** 3
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("linking", [Linking(), Linking(absolute=True), Linking(link=0.5, top=2), Linking(link=0.0, top=40)])
def test_a_feature_is_linked_to_its_largest_entries_above_the_link(linking: Linking) -> None:
    rows = unit(50, 16)
    expected = set()
    for row, entries in enumerate(rows):
        size = np.abs(entries) if linking.absolute else entries
        for neuron in sorted(range(16), key=lambda n: -size[n])[: linking.top]:
            if size[neuron] > linking.link:
                expected.add((row, neuron))
    links = links_of(rows, linking)
    found = list(zip(links.row.tolist(), links.neuron.tolist(), strict=True))
    assert set(found) == expected
    assert found == sorted(found)
    assert (rows == unit(50, 16)).all()


def test_negative_entries_count_only_by_size() -> None:
    rows = np.array([[-0.9, 0.3, 0.1, 0.3]])
    assert links_of(rows, Linking()).neuron.tolist() == [1, 3]
    assert links_of(rows, Linking(absolute=True)).neuron.tolist() == [0, 1, 3]
    assert links_of(np.array([[0.5, 0.5, 0.5, 0.5]]), Linking(top=1)).neuron.tolist() == [0]


def test_a_degree_counts_distinct_clusters_and_leaves_out_features_in_none() -> None:
    rows = unit(200, 12)
    cluster = np.random.default_rng(1).integers(-1, 25, size=200)
    links = links_of(rows, Linking())
    found = degrees(links, cluster)
    for neuron in range(12):
        linked = [cluster[r] for r, n in zip(links.row, links.neuron, strict=True) if n == neuron and cluster[r] >= 0]
        assert found.degree[neuron] == len(set(linked))
        assert found.n_features[neuron] == len(linked)
    assert found.degree.max() > 5


def test_chance_is_a_sum_of_clusters_that_reach_a_neuron_or_not() -> None:
    chance = np.random.default_rng(2).random(60) ** 3
    expected = stats.poisson_binom(chance).pmf(np.arange(61))
    np.testing.assert_allclose(law(chance), expected[: len(law(chance))], atol=1e-12)
    few = np.full(3000, 0.002)
    assert len(law(few)) < 200
    np.testing.assert_allclose(law(few)[:30], stats.binom(3000, 0.002).pmf(np.arange(30)), atol=1e-12)
    assert law(few).sum() == pytest.approx(1.0, abs=1e-12)
    assert law(np.empty(0)).tolist() == [1.0]


def test_links_dealt_out_at_random_give_the_expected_degree_and_hardly_a_super_neuron() -> None:
    rng = np.random.default_rng(3)
    n, d = 3000, 100
    cluster = np.minimum(rng.geometric(0.004, size=n), 400)
    found = []
    for _ in range(40):
        links = neurons.Links(
            row=np.repeat(np.arange(n), 2),
            neuron=np.array([rng.choice(d, 2, replace=False) for _ in range(n)]).ravel(),
            d_model=d,
        )
        found.append(degrees(links, cluster))
    mean = np.mean([each.degree.mean() for each in found])
    assert found[0].expected == pytest.approx(mean, rel=0.01)
    assert sum(int(each.is_super.sum()) for each in found) <= 8  # 2 expected
    assert found[0].expected + 3 * np.sqrt(found[0].expected) < found[0].super_degree < 2.5 * found[0].expected


def test_a_planted_neuron_that_every_cluster_uses_is_super() -> None:
    rng = np.random.default_rng(4)
    n, d = 1000, 100
    neuron = rng.integers(d, size=n)
    neuron[::10] = 42
    found = degrees(neurons.Links(row=np.arange(n), neuron=neuron, d_model=d), np.arange(n))
    assert np.flatnonzero(found.is_super).tolist() == [42]
    assert found.expected == pytest.approx(10.0)
    assert d * stats.binom(n, 1 / d).sf(found.super_degree - 1) <= neurons.SUPER
    assert d * stats.binom(n, 1 / d).sf(found.super_degree - 2) > neurons.SUPER


def test_without_links_and_with_all_of_them_nothing_is_super() -> None:
    none = degrees(links_of(np.zeros((5, 4)), Linking()), np.arange(5))
    assert (none.degree.tolist(), none.expected, none.is_super.any()) == ([0] * 4, 0.0, False)
    full = degrees(links_of(np.full((5, 4), 0.5), Linking(top=4)), np.arange(5))
    assert (full.degree.tolist(), full.expected, full.is_super.any()) == ([5] * 4, 5.0, False)


def test_bands_are_the_published_ones() -> None:
    edges = {0: None, 1: "1", 2: "2-5", 5: "2-5", 6: "6-20", 20: "6-20", 21: "21-50", 50: "21-50", 51: "51-100", 100: "51-100"}
    edges |= {101: "101-200", 200: "101-200", 201: "201-500", 500: "201-500", 501: ">500", 30_000: ">500"}
    assert {degree: band(degree) for degree in edges} == edges
    assert set(edges.values()) == {None, *neurons.NAMES}


@pytest.mark.parametrize("bad", [{"link": -0.1}, {"link": 1.0}, {"top": 0}])
def test_links_that_make_no_sense_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Linking(**bad)  # type: ignore[arg-type]
