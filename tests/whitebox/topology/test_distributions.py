"""Shares of pairs against a dense matrix; the sample against all pairs; what topology writes of them."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from harness.cli.main import execute
from harness.whitebox.topology import distributions, nulls
from harness.whitebox.topology.distributions import (
    SIMILARITIES,
    SIMILARITY_LEVELS,
    interference_columns,
    similarities,
    similarity_columns,
)


def glosses(n: int, d: int = 6, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((n, d)) + 0.4
    return rows.astype(np.float32)


def cosines(vectors: np.ndarray) -> np.ndarray:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return (unit @ unit.T)[np.triu_indices(len(vectors), 1)]


@pytest.mark.parametrize("height", [1, 7, 512])
def test_shares_are_those_of_all_pairs_of_features_that_have_a_gloss(height: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributions, "BLOCK_ROWS", height)
    vectors = glosses(80)
    known = cosines(vectors)
    holes = np.insert(np.insert(vectors, 20, 0, axis=0), 3, np.nan, axis=0)
    found = similarities(holes, seed=0, name="a")
    assert (found.n_pairs, found.sampled) == (80 * 79 // 2, False)
    assert found.share_below == pytest.approx([np.mean(known < level) for level in SIMILARITY_LEVELS], abs=1e-3)
    columns = similarity_columns(found)
    for level in SIMILARITIES:
        assert columns[f"similarity_below_{round(100 * level)}"] == pytest.approx(np.mean(known < level), abs=1e-3)
    assert 0.1 < columns["similarity_below_15"] < columns["similarity_below_40"] < 0.9  # type: ignore[operator]


def test_many_features_are_sampled_with_the_seed_and_close_to_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = glosses(300)
    exact = similarities(vectors, seed=0, name="a")
    monkeypatch.setattr(distributions, "EXACT", 299)
    monkeypatch.setattr(distributions, "SAMPLE", 100_000)
    found = similarities(vectors, seed=0, name="a")
    assert (found.n_pairs, found.sampled) == (100_000, True)
    assert found.share_below == pytest.approx(exact.share_below, abs=0.01)
    assert similarities(vectors, seed=0, name="a") == found
    assert similarities(vectors, seed=0, name="b").share_below != found.share_below
    assert similarities(vectors, seed=1, name="a").share_below != found.share_below


def test_a_sample_draws_no_feature_with_itself_and_every_pair_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributions, "EXACT", 1)
    monkeypatch.setattr(distributions, "SAMPLE", 60_000)
    vectors = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])  # cosines 0, -1, 0
    found = dict(zip(SIMILARITY_LEVELS, similarities(vectors, seed=0, name="a").share_below, strict=True))
    assert found[-0.5] == pytest.approx(1 / 3, abs=0.01)
    assert found[0.95] == 1.0


def test_fewer_than_two_glosses_give_no_share() -> None:
    found = similarities(np.zeros((5, 3), np.float32), seed=0, name="a")
    assert (found.n_pairs, set(found.share_below)) == (0, {None})
    assert set(similarity_columns(None).values()) == {None}
    assert set(interference_columns((0.3, 0.4), (0, 0), 1).values()) == {None}


def test_interference_below_a_level_is_what_is_not_above() -> None:
    found = interference_columns((0.2, 0.3, 0.4), (30, 9, 1), 10)
    assert found == {"interference_below_40": pytest.approx(44 / 45), "interference_below_30": pytest.approx(36 / 45)}


def test_topology_adds_the_shares_to_its_table_and_draws_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(nulls, "DRAWS", 50)
    vectors = {}
    for layer in range(2):
        W_dec = np.random.default_rng(layer).standard_normal((60, 8)).astype(np.float32)
        W_dec[2] = 0
        folder = tmp_path / f"saes/layer_{layer}"
        folder.mkdir(parents=True)
        (folder / "cfg.json").write_text(json.dumps({"metadata": {"hook_name": f"blocks.{layer}.hook_resid_post"}}))
        save_file({"W_dec": W_dec}, folder / "sae_weights.safetensors")
        vectors[f"resid_post.{layer}"] = glosses(60, seed=layer)
    save_file(vectors, tmp_path / "glosses.safetensors")
    argv = ["map", "topology", "--source", "mine", "--dictionary", str(tmp_path / "saes"), "--out", str(tmp_path / "out")]
    assert execute([*argv, "--glosses", str(tmp_path / "glosses.safetensors")]) == 0
    assert "glosses <0.40" in capsys.readouterr().out
    table = pq.read_table(tmp_path / "out/sites.parquet").to_pylist()
    known = cosines(np.delete(vectors["resid_post.1"], 2, axis=0))  # a dead feature is in no pair
    assert table[1]["similarity_pairs"] == len(known)
    assert table[1]["similarity_below_30"] == pytest.approx(np.mean(known < 0.3), abs=1e-3)
    unit = np.random.default_rng(1).standard_normal((60, 8)).astype(np.float32)
    assert table[1]["interference_below_30"] == pytest.approx(np.mean(cosines(np.delete(unit, 2, axis=0)) < 0.3), abs=1e-3)
    curve = pq.read_table(tmp_path / "out/similarity.parquet").to_pydict()
    assert curve["similarity"] == list(SIMILARITY_LEVELS) * 2
    assert curve["share_below"][: len(SIMILARITY_LEVELS)] == sorted(curve["share_below"][: len(SIMILARITY_LEVELS)])
    svg = ET.fromstring((tmp_path / "out/similarity.svg").read_text())
    name = "{http://www.w3.org/2000/svg}"
    assert len(svg.findall(f"{name}g")) == 2
    assert len(list(svg.iter(f"{name}circle"))) == 2 * len(SIMILARITIES)
    assert execute(argv) == 0
    assert "glosses" not in capsys.readouterr().out
    assert not (tmp_path / "out/similarity.svg").exists()
    assert pq.read_table(tmp_path / "out/sites.parquet").to_pylist()[0]["similarity_below_40"] is None
