"""Cosines against a dense matrix, nulls against simulations, and the output folder: whole, resumed, refused."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file
from scipy import stats

from harness.cli.main import execute
from harness.errors import FileFormatError, StorageError, UsageError
from harness.whitebox.sources.dictionaries import local_dictionaries
from harness.whitebox.topology import distributions, nulls, tiles, topology
from harness.whitebox.topology.distributions import gloss_similarity
from harness.whitebox.topology.nulls import Isotropic, expected_pairs, matched, threshold_of
from harness.whitebox.topology.tiles import NumpyTile, TorchTile, scan
from harness.whitebox.topology.topology import Job, Options, map_topology
from harness.whitebox.topology.topology_plot import draw

LEVELS = (0.05, 0.2, 0.4, 0.6)
Pairs = dict[tuple[int, int], float]


def unit_rows(n: int, d: int, seed: int = 0) -> np.ndarray:
    """Random unit rows (n, d), the last tenth near the first one."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, d))
    near = n // 10
    rows[n - near :] = rows[:near] + 0.5 * rng.standard_normal((near, d))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def scanned(unit: np.ndarray, threshold: float, device: str = "numpy") -> tuple[tiles.Scan, list[tuple[int, int, float]]]:
    found: list[tuple[int, int, float]] = []
    tile = TorchTile(unit, "cpu") if device == "torch" else NumpyTile(unit, tiles.tile_rows(len(unit)))
    seen = scan(
        unit, threshold, LEVELS, lambda i, j, c: found.extend(zip(i.tolist(), j.tolist(), c.tolist(), strict=True)), tile
    )
    return seen, found


@pytest.mark.parametrize("device", ["numpy", "torch"])
@pytest.mark.parametrize(("n", "max_rows"), [(1, 4), (2, 4), (7, 4), (8, 4), (9, 4), (130, 32), (130, 1), (130, 1024)])
def test_pairs_and_neighbours_are_those_of_the_dense_matrix(
    n: int, max_rows: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "MAX_ROWS", max_rows)
    unit = unit_rows(n, 16)
    dense = unit.astype(np.float64) @ unit.T.astype(np.float64)
    i, j = np.triu_indices(n, 1)
    threshold = 0.3
    assert n < 2 or np.abs(dense[i, j] - threshold).min() > 1e-6  # rounding decides about no pair
    seen, found = scanned(unit, threshold, device)
    kept = dense[i, j] > threshold
    assert [(a, b) for a, b, _ in found] == list(zip(i[kept].tolist(), j[kept].tolist(), strict=True))
    np.testing.assert_allclose([c for _, _, c in found], dense[i, j][kept], atol=1e-6)
    assert seen.above.tolist() == [int(np.sum(dense[i, j] > level)) for level in LEVELS]
    np.fill_diagonal(dense, -np.inf)
    if n == 1:
        assert (seen.nearest.tolist(), bool(np.isnan(seen.cosine[0]))) == ([-1], True)
    else:
        assert seen.nearest.tolist() == dense.argmax(axis=1).tolist()
        np.testing.assert_allclose(seen.cosine, dense.max(axis=1), atol=1e-6)


@pytest.mark.parametrize("device", ["numpy", "torch"])
def test_among_equally_near_rows_the_first_wins_in_whatever_tile_it_lies(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "MAX_ROWS", 3)
    unit = np.eye(8, dtype=np.float32)[[0, 1, 0, 2, 0, 1, 3, 2, 0, 3]]  # cosines are 0 or 1, exactly
    seen, found = scanned(unit, 0.5, device)
    assert seen.nearest.tolist() == [2, 5, 0, 7, 0, 1, 9, 3, 0, 6]
    assert [(i, j) for i, j, _ in found] == [(0, 2), (0, 4), (0, 8), (1, 5), (2, 4), (2, 8), (3, 7), (4, 8), (6, 9)]


def test_a_scan_keeps_one_tile_of_cosines_however_many_rows_there_are() -> None:
    assert tiles.tile_rows(32_768) * 32_768 <= tiles.TILE_CELLS
    assert [tiles.tile_rows(n) for n in (0, 1, 10, 1 << 25)] == [1, 1, 10, 1]


# Nulls


@pytest.mark.parametrize("d", [2, 3, 16])
def test_the_isotropic_tail_is_the_share_of_gaussian_pairs_above(d: int) -> None:
    x = np.random.default_rng(1).standard_normal((2, 400_000, d))
    cosine = np.einsum("nd,nd->n", x[0], x[1]) / np.prod(np.linalg.norm(x, axis=2), axis=0)
    for level in (0.0, 0.1, 0.4, 0.7):
        share = np.mean(cosine > level)
        assert Isotropic(d=d).tail(level) == pytest.approx(share, abs=4 * np.sqrt(share / 400_000) + 1e-5)


def test_the_isotropic_tail_has_its_closed_forms_in_two_and_three_dimensions() -> None:
    for cosine in (0.1, 0.5, 0.99):
        assert Isotropic(d=2).tail(cosine) == pytest.approx(np.arccos(cosine) / np.pi)
        assert Isotropic(d=3).tail(cosine) == pytest.approx((1 - cosine) / 2)


def test_the_matched_tail_of_a_round_covariance_is_the_isotropic_one_however_small() -> None:
    null = matched(np.eye(512), seed=0, draws=40)
    for cosine in (0.02, 0.05, 0.1, 0.25, 0.4):
        assert 0.97 < null.tail(cosine) / Isotropic(d=512).tail(cosine) < 1.17


@pytest.mark.parametrize("spectrum", [np.arange(1, 151.0) ** -0.5, 1 / np.arange(1, 65.0), np.r_[60.0, np.ones(99)]])
def test_the_matched_tail_is_the_share_of_simulated_pairs_above(spectrum: np.ndarray) -> None:
    rng = np.random.default_rng(2)
    cosines = []
    for _ in range(8):
        x = rng.standard_normal((2, 20_000, len(spectrum)), dtype=np.float32) * np.sqrt(spectrum).astype(np.float32)
        cosines.append(np.einsum("nd,nd->n", x[0], x[1]) / np.prod(np.linalg.norm(x, axis=2), axis=0))
    basis = np.linalg.qr(rng.standard_normal((len(spectrum),) * 2))[0]
    null = matched(basis * spectrum @ basis.T, seed=0)
    for share in (0.3, 0.1, 0.01, 1e-3):  # 160 pairs of the simulation lie above the last
        level = float(np.quantile(np.concatenate(cosines), 1 - share))
        assert null.tail(level) == pytest.approx(share, rel=0.1 if share > 0.05 else 0.3)


def test_grouping_small_eigenvalues_hardly_moves_a_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    covariance = np.diag(np.arange(1, 305.0) ** -0.7)
    grouped = matched(covariance, seed=0, draws=10).spectrum
    monkeypatch.setattr(nulls, "_APART", 304)
    apart = matched(covariance, seed=0, draws=200)
    assert (len(grouped.times), len(apart.spectrum.times)) == (64 + 30, 304)
    squares = np.add.reduceat(apart.squares, np.r_[0, np.cumsum(grouped.times)[:-1].astype(int)], axis=1)
    same = nulls.Matched(spectrum=grouped, squares=squares, sampled=apart.sampled)
    for cosine in (0.05, 0.2, 0.4, 0.6):
        assert same.tail(cosine) == pytest.approx(apart.tail(cosine), rel=0.05)


@pytest.mark.parametrize("d", [64, 512])
def test_above_the_threshold_the_null_puts_no_more_pairs_than_declared(d: int) -> None:
    for null in (Isotropic(d=d), matched(np.diag(np.arange(1, d + 1.0) ** -0.5), seed=0, draws=200)):
        threshold = threshold_of(null, 32_768, 1.0)
        assert expected_pairs(null, 32_768, threshold) == pytest.approx(1.0, rel=0.01)
        assert expected_pairs(null, 32_768, threshold - 0.01) > 1.2


def test_gaussian_rows_have_as_many_pairs_above_a_cosine_as_the_null_expects() -> None:
    rows = np.random.default_rng(3).standard_normal((3000, 64)).astype(np.float32)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    level = threshold_of(Isotropic(d=64), 3000, 100.0)
    _, found = scanned(unit, level)
    low, high = stats.poisson.interval(0.999, 100)
    assert low <= len(found) <= high


def test_few_directions_have_the_threshold_0_and_a_line_has_1() -> None:
    assert threshold_of(Isotropic(d=5), 2, 1.0) == 0.0
    assert threshold_of(matched(np.diag([1.0, 0.0]), seed=0), 100, 1.0) == 1.0


@pytest.mark.parametrize(
    "bad", [np.ones((2, 3)), np.array([[1.0, 2], [0, 1]]), -np.eye(2), np.full((2, 2), np.nan), np.zeros((2, 2))]
)
def test_what_is_no_covariance_is_refused(bad: np.ndarray) -> None:
    with pytest.raises(UsageError, match="a covariance"):
        matched(bad, seed=0)


# The output folder


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder's null need not be as exact as a real one: where that matters a test says how many draws."""
    monkeypatch.setattr(nulls, "DRAWS", 50)


def dictionary(folder: Path, layer: int, *, seed: int | None = None, n: int = 300, d: int = 32) -> np.ndarray:
    """A dictionary with feature 2 dead and 250 a copy of 40."""
    W_dec = np.random.default_rng(layer if seed is None else seed).standard_normal((n, d)).astype(np.float32)
    W_dec[2] = 0
    W_dec[250] = 3 * W_dec[40]
    site = folder / f"layer_{layer}"
    site.mkdir(parents=True)
    (site / "cfg.json").write_text(json.dumps({"metadata": {"hook_name": f"blocks.{layer}.hook_resid_post"}}))
    save_file({"W_dec": W_dec}, site / "sae_weights.safetensors")
    return W_dec


def job(tmp_path: Path, **changed: Any) -> Job:
    found = local_dictionaries("mine", tmp_path / "saes", print)
    return Job(**{"dictionaries": found, "out": tmp_path / "out", **changed})


def pairs_of(table: Any) -> Pairs:
    return {(i, j): c for i, j, c in zip(*(table[name].to_pylist() for name in ("i", "j", "cosine")), strict=True)}


def test_a_planted_copy_is_found_above_the_threshold_under_its_features_numbers(tmp_path: Path) -> None:
    W_dec = dictionary(tmp_path / "saes", 0)
    (row,) = map_topology(job(tmp_path), print)
    found = pairs_of(pq.read_table(tmp_path / "out/pairs.parquet"))
    assert found[40, 250] == pytest.approx(1.0)
    assert len(found) == row["n_pairs"] < 10
    nearest = pq.read_table(tmp_path / "out/nearest.parquet").to_pydict()
    assert (nearest["i"], nearest["j"][2], nearest["cosine"][2]) == (list(range(300)), None, None)
    assert (nearest["j"][40], nearest["j"][250]) == (250, 40)
    assert row["n_dead"] == 1
    unit = np.delete(W_dec, 2, axis=0).astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    cosines = (unit @ unit.T)[np.triu_indices(299, 1)]
    assert (row["mean_cosine"], row["sd_cosine"]) == (
        pytest.approx(cosines.mean(), abs=1e-6),
        pytest.approx(cosines.std(), rel=1e-4),
    )
    levels = pq.read_table(tmp_path / "out/levels.parquet").to_pydict()
    assert levels["pairs"] == [int(np.sum(cosines > level)) for level in levels["cosine"]]
    assert levels["isotropic"][3] == pytest.approx(299 * 298 / 2 * Isotropic(d=32).tail(0.2))


def test_the_chosen_null_or_a_given_threshold_sets_what_is_kept(tmp_path: Path) -> None:
    dictionary(tmp_path / "saes", 0)
    (larger,) = map_topology(job(tmp_path), print)
    assert larger["threshold"] == max(larger["threshold_isotropic"], larger["threshold_matched"])
    (fixed,) = map_topology(job(tmp_path, options=Options(threshold=0.25)), print)
    assert (fixed["threshold"], fixed["matched_to"]) == (0.25, "decoder_second_moment")
    assert fixed["n_pairs"] > larger["n_pairs"]
    save_file({"resid_post.0": np.diag(np.r_[50.0, np.ones(31)])}, tmp_path / "cov.safetensors")
    (given,) = map_topology(job(tmp_path, covariances=tmp_path / "cov.safetensors"), print)
    assert given["matched_to"] == "activation_covariance"
    assert given["threshold"] > larger["threshold"] + 0.05


def test_an_interrupted_run_goes_on_at_the_site_it_stood_at_and_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for layer in range(3):
        dictionary(tmp_path / "saes", layer)
    map_topology(job(tmp_path, out=tmp_path / "straight"), print)
    real, mapped = topology.scan, []

    def stops(unit: np.ndarray, *rest: Any) -> tiles.Scan:
        if len(mapped) == 1:
            real(unit, *rest)  # pairs are written, then the process dies
            raise KeyboardInterrupt
        mapped.append(1)
        return real(unit, *rest)

    monkeypatch.setattr(topology, "scan", stops)
    with pytest.raises(KeyboardInterrupt):
        map_topology(job(tmp_path), print)
    assert not (tmp_path / "out/pairs.parquet").exists()

    def counts(unit: np.ndarray, *rest: Any) -> tiles.Scan:
        mapped.append(1)
        return real(unit, *rest)

    mapped.clear()
    monkeypatch.setattr(topology, "scan", counts)
    notes: list[str] = []
    map_topology(job(tmp_path), notes.append)
    assert len(mapped) == 2
    assert "kept from before (1/3)" in notes[0]
    for name in ("pairs.parquet", "nearest.parquet", "levels.parquet"):
        assert pq.read_table(tmp_path / "out" / name).equals(pq.read_table(tmp_path / "straight" / name))
    assert sorted(path.name for path in (tmp_path / "out/sites").iterdir()) == [f"resid_post.{layer}" for layer in range(3)]


def test_a_site_is_computed_again_when_its_dictionary_or_the_options_change(tmp_path: Path) -> None:
    dictionary(tmp_path / "saes", 0)
    map_topology(job(tmp_path), print)
    (other,) = map_topology(job(tmp_path, options=Options(null_pairs=20)), print)
    assert other["expected_matched"] == pytest.approx(20, rel=0.1) or other["expected_isotropic"] == pytest.approx(20, rel=0.1)
    save_file({"W_dec": unit_rows(300, 32)}, tmp_path / "saes/layer_0/sae_weights.safetensors")
    (new,) = map_topology(job(tmp_path), print)
    assert new["n_dead"] == 0


def test_two_sites_with_one_dictionary_are_refused_and_what_is_done_is_kept(tmp_path: Path) -> None:
    dictionary(tmp_path / "saes", 8, seed=9)
    dictionary(tmp_path / "saes", 9)
    with pytest.raises(UsageError, match=r"resid_post\.8 and resid_post\.9 hold the same dictionary"):
        map_topology(job(tmp_path), print)
    assert (tmp_path / "out/sites/resid_post.8/site.json").exists()
    notes: list[str] = []
    assert len(map_topology(job(tmp_path, allow_alike=True), notes.append)) == 2
    assert any(line.startswith("warning: resid_post.8 and resid_post.9") for line in notes)


def test_a_full_disk_is_told_and_finished_sites_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for layer in range(2):
        dictionary(tmp_path / "saes", layer)
    real = topology.save_file

    def full(tensors: Any, path: Path) -> None:
        if "resid_post.1" in str(path):
            raise OSError(28, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(topology, "save_file", full)
    with pytest.raises(StorageError, match="No space left on device"):
        map_topology(job(tmp_path), print)
    assert [path.name for path in (tmp_path / "out/sites").glob("r*")] == ["resid_post.0"]


def test_gloss_similarities_stand_beside_the_surviving_pairs(tmp_path: Path) -> None:
    dictionary(tmp_path / "saes", 0)
    glosses = np.random.default_rng(5).standard_normal((300, 12)).astype(np.float32)
    glosses[7] = 0
    save_file({"resid_post.0": glosses}, tmp_path / "glosses.safetensors")
    map_topology(job(tmp_path, glosses=tmp_path / "glosses.safetensors", options=Options(threshold=0.2)), print)
    table = pq.read_table(tmp_path / "out/pairs.parquet").to_pydict()
    unit = glosses / np.linalg.norm(glosses, axis=1, keepdims=True).clip(1e-9)
    for i, j, similarity in zip(table["i"], table["j"], table["gloss_similarity"], strict=True):
        if 7 in (i, j):
            assert similarity is None
        else:
            assert similarity == pytest.approx(float(unit[i] @ unit[j]), abs=1e-6)
    assert any(7 in pair for pair in zip(table["i"], table["j"], strict=True))


def test_gloss_similarity_is_gathered_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    glosses = unit_rows(50, 8)
    i, j = np.triu_indices(50, 1)
    monkeypatch.setattr(distributions, "GLOSS_ROWS", 7)
    np.testing.assert_allclose(gloss_similarity(glosses, i, j), (glosses @ glosses.T)[i, j], atol=1e-6)


def test_files_of_glosses_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    dictionary(tmp_path / "saes", 0)
    with pytest.raises(FileFormatError, match=r"none\.safetensors: cannot be read"):
        map_topology(job(tmp_path, glosses=tmp_path / "none.safetensors"), print)
    save_file({"resid_post.0": np.ones((5, 2), np.float32)}, tmp_path / "few.safetensors")
    with pytest.raises(FileFormatError, match=r"has the shape \(5, 2\), expected 300 rows"):
        map_topology(job(tmp_path, glosses=tmp_path / "few.safetensors"), print)


def test_a_dictionary_of_zeros_is_refused_and_bad_options_too(tmp_path: Path) -> None:
    dictionary(tmp_path / "saes", 0)
    save_file({"W_dec": np.zeros((5, 4), np.float32)}, tmp_path / "saes/layer_0/sae_weights.safetensors")
    with pytest.raises(UsageError, match="every row of W_dec is zero"):
        map_topology(job(tmp_path), print)
    for bad in ({"null_pairs": 0.0}, {"threshold": 1.0}, {"threshold": -0.1}):
        with pytest.raises(UsageError):
            Options(**bad)  # type: ignore[arg-type]


def test_the_plot_has_a_panel_a_site_and_curves_that_fall(tmp_path: Path) -> None:
    for layer in range(5):
        dictionary(tmp_path / "saes", layer)
    map_topology(job(tmp_path), print)
    svg = ET.fromstring((tmp_path / "out/topology.svg").read_text())
    name = "{http://www.w3.org/2000/svg}"
    assert len(svg.findall(f"{name}g")) == 5
    for line in svg.iter(f"{name}polyline"):
        heights = [float(point.split(",")[1]) for point in line.attrib["points"].split()]
        assert heights == sorted(heights)
    assert "<polyline" not in draw([("a", {name: [] for name in ("cosine", "pairs", "isotropic", "matched")})])


def test_the_verb_prints_a_table_or_json_and_writes_the_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for layer in range(2):
        dictionary(tmp_path / "saes", layer)
    argv = ["map", "topology", "--source", "mine", "--dictionary", str(tmp_path / "saes"), "--out", str(tmp_path / "out")]
    assert execute(argv) == 0
    captured = capsys.readouterr()
    assert "resid_post.1" in captured.out
    assert "peak memory" in captured.err
    assert execute([*argv, "--json", "--site", "resid_post.1"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["site"] == "resid_post.1"
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["sites"]["resid_post.1"]["sha256"] == row["sha256"]
    assert execute([*argv, "--site", "resid_post.7"]) == 2


def test_one_command_maps_several_sources(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for source in ("one", "two"):
        dictionary(tmp_path / "saes" / source, 0)
    argv = ["map", "topology", "--source", "one,two", "--dictionary", str(tmp_path / "saes"), "--out", str(tmp_path / "out")]
    assert execute([*argv, "--json"]) == 0
    captured = capsys.readouterr()
    assert [row["source"] for row in json.loads(captured.out)] == ["one", "two"]
    assert execute(argv) == 0
    assert capsys.readouterr().err.count("kept from before") == 2
    assert (tmp_path / "out/topology-two/pairs.parquet").is_file()
    assert execute([*argv, "--glosses", "x.safetensors"]) == 2
    assert "those of one source" in capsys.readouterr().err
