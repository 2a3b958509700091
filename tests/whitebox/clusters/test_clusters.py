"""Clusters against scipy on a square matrix, the neighbour graph against all pairs, and the output folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from harness.cli.main import execute
from harness.errors import StorageError, UsageError
from harness.whitebox import usage
from harness.whitebox.clusters import clusters, linkage, neighbour_graph
from harness.whitebox.clusters.clusters import CUTS, Job, Options, map_clusters
from harness.whitebox.clusters.linkage import Linkage, condensed, cut, exact_tree, needed_gb, unit_rows
from harness.whitebox.clusters.neighbour_graph import graph_tree, n_parts, nearest, tree_of
from harness.whitebox.clusters.neurons import Linking, degrees, links_of
from harness.whitebox.features.catalogue import Catalogue
from harness.whitebox.sources.sites import Site

from ..tiny_catalogue import SiteData, write_catalogue

LINKAGES: tuple[Linkage, ...] = ("average", "complete", "single")


def grouped(n: int, d: int = 400, groups: int = 9, seed: int = 0) -> np.ndarray:
    """Unit rows around a few centres, within cosines of about 0.8 in the closest group to 0.2 in the widest, rows 3 and 5
    one and the same."""
    rng = np.random.default_rng(seed)
    group = rng.integers(groups, size=n)
    spread = np.linspace(0.5, 2.0, groups)[group, None]
    rows = rng.standard_normal((groups, d))[group] + spread * rng.standard_normal((n, d))
    if n > 5:
        rows[5] = rows[3]
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def square(vectors: np.ndarray) -> np.ndarray:
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    return unit @ unit.T


def together(labels: np.ndarray) -> np.ndarray:
    """Which pairs share a cluster: the same for two numberings of one clustering."""
    return labels[:, None] == labels[None, :]


# Trees


@pytest.mark.parametrize("name", LINKAGES)
@pytest.mark.parametrize("n", [2, 3, 60, 150])
def test_every_cut_is_that_of_scipy_on_the_square_matrix(name: Linkage, n: int) -> None:
    vectors = grouped(n)
    distance = (1 - square(vectors)).clip(0)
    np.fill_diagonal(distance, 0)
    expected = hierarchy.linkage(squareform(distance, checks=False), name)
    tree = exact_tree(vectors, name)
    np.testing.assert_allclose(tree[:, 2], expected[:, 2], atol=1e-9)
    for similarity in CUTS:
        labels = hierarchy.fcluster(expected, 1 - similarity, "distance")
        assert (together(cut(tree, similarity)) == together(labels)).all()
        assert n < 60 or 1 < labels.max() < n


@pytest.mark.parametrize("height", [1, 7, 64])
def test_distances_do_not_depend_on_the_size_of_the_blocks_bit_for_bit(height: int, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = grouped(131, d=384)
    whole, edges = condensed(vectors), nearest(unit_rows(vectors), 6)
    np.testing.assert_allclose(whole, 1 - square(vectors)[np.triu_indices(131, 1)], atol=1e-12)
    monkeypatch.setattr(linkage, "BLOCK_CELLS", 131 * height)
    assert (condensed(vectors) == whole).all()
    assert all((one == other).all() for one, other in zip(edges, nearest(unit_rows(vectors), 6), strict=True))


def test_single_linkage_keeps_clusters_less_similar_than_the_cut_and_complete_their_members_at_least_as_similar() -> None:
    vectors = grouped(120)
    similarity = square(vectors)
    for level in CUTS:
        apart = ~together(cut(exact_tree(vectors, "single"), level))
        inside = together(cut(exact_tree(vectors, "complete"), level))
        assert apart.any()
        assert similarity[apart].max() < level
        assert similarity[inside].min() >= level
        assert not inside.all()


def test_clusters_are_numbered_in_the_order_of_their_first_rows() -> None:
    labels = cut(exact_tree(grouped(150), "average"), 0.3)
    assert list(dict.fromkeys(labels.tolist())) == list(range(labels.max() + 1))
    assert cut(exact_tree(grouped(1), "average"), 0.3).tolist() == [0]


def test_what_does_not_fit_into_memory_is_refused_before_it_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    assert needed_gb(32_768, "average") == pytest.approx(8.9, abs=0.05)
    assert needed_gb(32_768, "single") < 5.5
    monkeypatch.setattr(linkage, "condensed", lambda _: pytest.fail("was tried"))
    monkeypatch.setattr(linkage, "free_memory_gb", lambda: 6.0)
    with pytest.raises(UsageError, match=r"average linkage of 32,768 features needs 8\.9 GB, 6\.0 GB are free") as caught:
        exact_tree(np.ones((32_768, 1), np.float32), "average")
    assert "--method graph" in (caught.value.hint or "")

    def out_of_memory(_: Any) -> np.ndarray:
        raise MemoryError

    monkeypatch.setattr(linkage, "condensed", out_of_memory)
    monkeypatch.setattr(linkage, "free_memory_gb", lambda: None)
    with pytest.raises(UsageError, match="which the system does not give"):
        exact_tree(grouped(10), "average")


def test_free_memory_is_the_machines_or_what_the_containers_limit_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:  9000000 kB\nMemAvailable:    5000000 kB\n")
    monkeypatch.setattr(usage, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(usage, "CONTROL_GROUP", tmp_path)
    assert usage.free_memory_gb() == 5.12
    (tmp_path / "memory.stat").write_text("anon 1000000000\nfile 7000000000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert usage.free_memory_gb() == 5.12
    (tmp_path / "memory.max").write_text("4000000000\n")
    assert usage.free_memory_gb() == 3.0
    monkeypatch.setattr(usage, "MEMINFO", tmp_path / "none")
    monkeypatch.setattr(usage, "CONTROL_GROUP", tmp_path / "none")
    assert usage.free_memory_gb() is None


# The graph of nearest neighbours


@pytest.mark.parametrize("n", [2, 40, 131])
def test_with_all_neighbours_the_graph_gives_exact_single_linkage(n: int) -> None:
    vectors = grouped(n)
    exact, graph = exact_tree(vectors, "single"), graph_tree(vectors, n - 1)
    assert (exact[:, 2] == graph[:, 2]).all()
    assert n_parts(graph) == 1
    for similarity in (*CUTS, 0.9):
        assert (cut(exact, similarity) == cut(graph, similarity)).all()
    assert hierarchy.is_valid_linkage(graph)


def test_neighbours_are_the_nearest_rows_and_among_equals_the_first() -> None:
    vectors = np.eye(6)[[0, 1, 0, 2, 0, 1]]
    first, second, distance = nearest(vectors, 2)
    assert first.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert second.tolist() == [2, 4, 5, 0, 0, 4, 0, 1, 0, 2, 1, 0]
    assert distance.tolist() == [0, 0, 0, 1, 0, 0, 1, 1, 0, 0, 0, 1]
    unit = unit_rows(grouped(80))
    dense = 1 - unit @ unit.T
    np.fill_diagonal(dense, np.inf)
    first, second, distance = nearest(unit, 5)
    np.testing.assert_allclose(distance.reshape(80, 5), np.sort(dense, axis=1)[:, :5], atol=1e-12)
    np.testing.assert_allclose(dense[first, second], distance, atol=1e-12)


def test_parts_that_no_edge_joins_stay_apart_at_every_cut_however_similar() -> None:
    vectors = np.repeat(np.array([[1.0, 0.02], [1.0, 0.0], [-1.0, 0.0]]), 4, axis=0)
    tree = graph_tree(vectors, 3)
    assert n_parts(tree) == 3
    assert cut(tree, 0.15).tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert cut(tree, -0.999).tolist() == cut(tree, 0.15).tolist()
    assert cut(exact_tree(vectors, "single"), 0.15).tolist() == [0] * 8 + [1] * 4
    assert sorted(hierarchy.leaves_list(tree).tolist()) == list(range(12))


def test_a_graph_merges_no_earlier_than_all_pairs_do() -> None:
    vectors = grouped(200)
    exact, graph = exact_tree(vectors, "single"), graph_tree(vectors, 3)
    for similarity in (*CUTS, 0.6, 0.8):
        assert (together(cut(graph, similarity)) <= together(cut(exact, similarity))).all()


def test_a_forest_becomes_a_tree_with_sizes() -> None:
    tree = tree_of(5, np.array([3, 0]), np.array([1, 3]), np.array([0.1, 0.2]))
    assert tree.tolist() == [[1, 3, 0.1, 2], [0, 5, 0.2, 3], [2, 6, np.inf, 4], [4, 7, np.inf, 5]]
    assert tree_of(1, *(np.empty(0, np.int64),) * 2, np.empty(0)).shape == (0, 4)


def test_a_graph_of_too_many_features_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbour_graph, "MAX_ROWS", 9)
    with pytest.raises(UsageError, match="10 features: a neighbour graph takes at most 9"):
        graph_tree(grouped(10))


# The output folder

SITE, LATER = Site.parse("resid_post.0"), Site.parse("mlp_out.1")


def site_data(n: int = 90, d: int = 10, seed: int = 0) -> SiteData:
    """Features of which 7 has no gloss and 11 no direction."""
    rng = np.random.default_rng(seed)
    vectors = grouped(n, seed=seed)
    vectors[7] = 0
    W_dec = rng.standard_normal((n, d)) ** 3
    W_dec[11] = 0
    return SiteData(W_dec=W_dec, gloss_vectors=vectors, glosses=[None if i == 7 else f"gloss {i}" for i in range(n)])


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    return write_catalogue(tmp_path / "catalogue", sites={SITE: site_data(), LATER: site_data(seed=1)})


def job(catalogue: Catalogue, tmp_path: Path, **options: Any) -> Job:
    return Job(catalogue=catalogue, out=tmp_path / "out", options=Options(**options))


def test_the_tables_hold_every_glossed_feature_and_every_neuron_at_every_cut(catalogue: Catalogue, tmp_path: Path) -> None:
    rows = map_clusters(job(catalogue, tmp_path), print)
    features = np.delete(np.arange(90), 7)
    vectors = catalogue.gloss_vectors(SITE)[features]
    kept = load_file(tmp_path / "out/sites/resid_post.0/linkage.safetensors")
    assert kept["features"].tolist() == features.tolist()
    assert (kept["tree"] == exact_tree(vectors, "average")).all()
    found = pq.read_table(tmp_path / "out/clusters.parquet").to_pylist()
    neurons = pq.read_table(tmp_path / "out/neurons.parquet").to_pylist()
    directions = catalogue.directions(SITE)
    links = links_of(directions.unit, Linking())
    for row in rows[:4]:
        mine = [each for each in found if each["site"] == "resid_post.0" and each["cut"] == row["cut"]]
        labels = cut(kept["tree"], row["cut"])
        assert [each["feature"] for each in mine] == features.tolist()
        assert [each["cluster"] for each in mine] == labels.tolist()
        assert (row["n_features"], row["n_without"], row["n_clusters"]) == (89, 1, labels.max() + 1)
        assert row["largest"] == np.bincount(labels).max()
        of = dict(zip(features.tolist(), labels.tolist(), strict=True))
        expected = degrees(links, np.array([of.get(feature, -1) for feature in directions.features.tolist()]))
        served = [each for each in neurons if each["site"] == "resid_post.0" and each["cut"] == row["cut"]]
        assert [each["neuron"] for each in served] == list(range(10))
        assert [each["degree"] for each in served] == expected.degree.tolist()
        assert [each["super"] for each in served] == expected.is_super.tolist()
        assert sum(row["bands"].values()) == sum(each["degree"] > 0 for each in served)
        assert row["largest_degree"] == max(each["degree"] for each in served)
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert list(manifest["sites"]) == ["resid_post.0", "mlp_out.1"]
    assert manifest["sites"]["mlp_out.1"]["cuts"][3]["cut"] == 0.15
    assert manifest["options"]["linkage"] == "average"


def test_equal_runs_write_equal_files(catalogue: Catalogue, tmp_path: Path) -> None:
    for name in ("one", "two"):
        map_clusters(Job(catalogue=catalogue, out=tmp_path / name), print)
    for path in ("clusters.parquet", "neurons.parquet", "sites/mlp_out.1/linkage.safetensors"):
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes()


def test_an_interrupted_run_goes_on_and_another_option_computes_again(
    catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, made = clusters.exact_tree, []

    def stops(vectors: np.ndarray, name: Linkage) -> np.ndarray:
        if made:
            raise KeyboardInterrupt
        made.append(name)
        return real(vectors, name)

    monkeypatch.setattr(clusters, "exact_tree", stops)
    with pytest.raises(KeyboardInterrupt):
        map_clusters(job(catalogue, tmp_path), print)
    assert not (tmp_path / "out/clusters.parquet").exists()
    monkeypatch.setattr(clusters, "exact_tree", lambda vectors, name: (made.append(name), real(vectors, name))[1])
    notes: list[str] = []
    map_clusters(job(catalogue, tmp_path), notes.append)
    assert made == ["average", "average"]
    assert "1 without a gloss" in notes[0]
    assert "kept from before (1/2)" in notes[0]
    map_clusters(job(catalogue, tmp_path), print)
    assert len(made) == 2
    map_clusters(job(catalogue, tmp_path, linkage="complete"), print)
    map_clusters(job(catalogue, tmp_path, linkage="complete", linking=Linking(absolute=True)), print)
    assert len(made) == 6


def test_other_glosses_or_another_dictionary_make_a_site_new(catalogue: Catalogue, tmp_path: Path) -> None:
    map_clusters(job(catalogue, tmp_path), print)
    save_file(
        {"resid_post.0": grouped(90, seed=5), "mlp_out.1": catalogue.gloss_vectors(LATER)},
        catalogue.folder / "glosses.safetensors",
    )
    notes: list[str] = []
    map_clusters(job(catalogue, tmp_path), notes.append)
    assert ["kept" in line for line in notes] == [False, True]
    weights = catalogue.dictionary(LATER).weights
    W_dec = load_file(weights)
    save_file({**W_dec, "W_dec": -W_dec["W_dec"]}, weights)
    notes.clear()
    map_clusters(job(catalogue, tmp_path), notes.append)
    assert ["kept" in line for line in notes] == [True, False]


def test_a_full_disk_is_told_and_finished_sites_stay(
    catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = clusters.save_file

    def full(tensors: Any, path: Path) -> None:
        if "mlp_out" in str(path):
            raise OSError(28, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(clusters, "save_file", full)
    with pytest.raises(StorageError, match="No space left on device"):
        map_clusters(job(catalogue, tmp_path), print)
    assert [path.name for path in (tmp_path / "out/sites").glob("[a-z]*")] == ["resid_post.0"]


def test_features_without_glosses_are_an_error_with_the_command_that_makes_some(catalogue: Catalogue, tmp_path: Path) -> None:
    save_file({str(site): np.zeros((90, 4), np.float32) for site in catalogue.sites}, catalogue.folder / "glosses.safetensors")
    with pytest.raises(UsageError, match=r"no feature of resid_post\.0 has a gloss") as caught:
        map_clusters(job(catalogue, tmp_path), print)
    assert caught.value.hint == "harness map catalogue --gloss contexts"
    (catalogue.folder / "glosses.safetensors").unlink()
    with pytest.raises(UsageError, match="has no glosses"):
        map_clusters(job(catalogue, tmp_path), print)


@pytest.mark.parametrize("bad", [{"cuts": ()}, {"cuts": (0.3, 0.3)}, {"cuts": (1.0,)}, {"neighbours": 0}, {"method": "graph"}])
def test_options_that_make_no_sense_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Options(**bad)


def test_the_verb_prints_a_table_or_json(catalogue: Catalogue, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["map", "clusters", "--catalogue", str(catalogue.folder), "--out", str(tmp_path / "out")]
    assert execute(argv) == 0
    captured = capsys.readouterr()
    assert len([line for line in captured.out.splitlines() if line.startswith("resid_post.0")]) == 4
    assert "peak memory" in captured.err
    assert execute([*argv, "--json", "--site", "mlp_out.1", "--method", "graph", "--cut", "0.5", "0.3"]) == 0
    captured = capsys.readouterr()
    rows = json.loads(captured.out)
    assert [(row["site"], row["cut"], row["linkage"]) for row in rows] == [
        ("mlp_out.1", 0.5, "single"),
        ("mlp_out.1", 0.3, "single"),
    ]
    assert "of the graph" in captured.err
    assert execute([*argv, "--method", "graph", "--linkage", "average"]) == 2
    assert "--linkage single" in capsys.readouterr().err
    assert execute([*argv, "--site", "resid_post.7"]) == 2
    assert execute(["map", "clusters"]) == 2
    assert execute(["map", "clusters", "--catalogue", str(tmp_path / "none")]) == 2
    assert "harness map catalogue" in capsys.readouterr().err
