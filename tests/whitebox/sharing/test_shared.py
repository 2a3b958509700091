"""Shared pairs of two sources with different tokens, different bases and permuted features: what was planted, and no decoy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file
from scipy import sparse

from harness.cli.main import execute
from harness.errors import FileFormatError, StorageError, UsageError
from harness.whitebox.sharing import shared
from harness.whitebox.sharing.shared import Job, find_shared, read_shared
from harness.whitebox.sharing.shared_ends import End, Options
from harness.whitebox.sources.dictionaries import local_dictionaries
from harness.whitebox.sources.sites import Site
from harness.whitebox.topology import nulls
from harness.whitebox.topology.topology import Job as TopologyJob
from harness.whitebox.topology.topology import Options as TopologyOptions
from harness.whitebox.topology.topology import map_topology

from ..tiny_catalogue import SiteData, write_catalogue

D, D_MODEL, WORDS = 60, 80, 2500
COMMON = 50
"""Features below fire on the same words in both sources, the others do not."""

SHARED_PAIRS = [(0, 1), (2, 3), (4, 5)]
ONLY_IN_A, ONE_MEMBER, ALIKE, ONLY_IN_B, NO_GLOSS = (6, 7), (8, 50), (10, 11), (12, 13), (14, 15)
IN_A = [*SHARED_PAIRS, ONLY_IN_A, ONE_MEMBER, ALIKE, NO_GLOSS]
IN_B = [*SHARED_PAIRS, ONE_MEMBER, ALIKE, ONLY_IN_B, NO_GLOSS]
ONE, TWO, OTHER = (Site.parse(name) for name in ("resid_post.1", "mlp_out.2", "resid_post.4"))


def directions(rng: np.random.Generator, pairs: list[tuple[int, int]]) -> np.ndarray:
    """Random rows; the second of each pair has a cosine of 0.8 with the first."""
    W = np.linalg.qr(rng.standard_normal((D_MODEL, D_MODEL)))[0][:D]
    for i, j in pairs:
        W[j] = 0.8 * W[i] + 0.6 * W[j]
    return W


def glosses(feature_of: np.ndarray) -> np.ndarray:
    """Unlike each other, but those of ALIKE; what is common to both sources has the same one."""
    vectors = np.eye(2 * D, dtype=np.float32)[[f if f < COMMON else f + D * int(feature_of[0] != 0) for f in feature_of]]
    vectors[feature_of == ALIKE[1]] = vectors[feature_of == ALIKE[0]]
    return vectors


def firing(rng: np.random.Generator, n: int = D) -> np.ndarray:
    return rng.uniform(1, 3, (WORDS, n)) * (rng.random((WORDS, n)) < 0.03)


def write_source(folder: Path, name: str, spans: np.ndarray, sites: dict[Site, SiteData], threshold: float = 0.5) -> End:
    catalogue = write_catalogue(folder / "catalogue", source=name, spans=spans, sites=sites)
    topology = TopologyJob(
        dictionaries=local_dictionaries(name, catalogue.folder / "dictionaries", print),
        out=folder / "topology",
        options=TopologyOptions(threshold=threshold),
        glosses=catalogue.folder / "glosses.safetensors",
    )
    map_topology(topology, print)
    return End(source=name, catalogue=catalogue.folder, topology=folder / "topology")


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    a: End
    b: End
    order: np.ndarray
    """Of each feature of b, the feature of a that it is."""

    def own(self, row: dict[str, Any]) -> tuple[tuple[int, int], tuple[int, int]]:
        """The pair of a in a row, and what b's pair is in a's numbers."""
        return (row["i_a"], row["j_a"]), (int(self.order[row["i_b"]]), int(self.order[row["j_b"]]))


def words_as_tokens(pieces: np.ndarray) -> np.ndarray:
    """Spans of words of four characters, ten a document, each cut into one or two tokens."""
    rows = []
    for word, n in enumerate(pieces.tolist()):
        start = word % 10 * 4
        rows += (
            [(word // 10, start, start + 4)] if n == 1 else [(word // 10, start, start + 2), (word // 10, start + 2, start + 4)]
        )
    return np.array(rows, np.int32)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("world")
    fired = firing(rng)
    order = rng.permutation(D)
    order[[0, int(np.flatnonzero(order == 0)[0])]] = order[[int(np.flatnonzero(order == 0)[0]), 0]]  # see `glosses`
    order = np.roll(order, 1)
    pieces = rng.integers(1, 3, WORDS)
    noisy = np.where(np.arange(D) < COMMON, fired * rng.uniform(0.8, 1.2, fired.shape), firing(rng))[:, order]
    at = np.cumsum(pieces) - 1  # b's features fire on the last token of a word
    codes_b = np.zeros((int(pieces.sum()), D))
    codes_b[at] = noisy * (rng.random(noisy.shape) > 0.05)
    vectors_a, vectors_b = glosses(np.arange(D)), glosses(order)
    vectors_b[order == NO_GLOSS[1]] = 0
    W_a, W_b = directions(rng, IN_A), directions(rng, IN_B)[order]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nulls, "DRAWS", 50)
        a = write_source(
            folder / "a",
            "one",
            words_as_tokens(np.ones(WORDS, int)),
            {
                ONE: SiteData(W_dec=W_a, codes=sparse.csr_matrix(fired), gloss_vectors=vectors_a),
                TWO: SiteData(W_dec=directions(rng, IN_A), codes=sparse.csr_matrix(fired), gloss_vectors=vectors_a),
            },
        )
        data = SiteData(W_dec=W_b, codes=sparse.csr_matrix(codes_b), gloss_vectors=vectors_b)
        b = write_source(folder / "b", "other", words_as_tokens(pieces), {OTHER: data})
    return World(a=a, b=b, order=order)


def job(world: World, out: Path, **changed: Any) -> Job:
    return Job(a=world.a, b=world.b, out=out, options=Options(**changed))


@pytest.mark.parametrize("method", ["correlation", "gloss", "affine"])
def test_all_planted_pairs_are_found_none_of_the_decoys_and_chance_finds_none(
    method: Any, world: World, tmp_path: Path
) -> None:
    found = find_shared(job(world, tmp_path / "out", method=method), print)
    rows = read_shared(tmp_path / "out").to_pylist()
    for site in (ONE, TWO):
        ours = [world.own(row) for row in rows if row["site_a"] == str(site)]
        assert sorted(pair for pair, _ in ours) == SHARED_PAIRS
        assert all(of_a == of_b for of_a, of_b in ours)
    assert {row["site_b"] for row in rows} == {str(OTHER)}
    for row in rows:
        assert (row["cosine_a"], row["cosine_b"]) == (pytest.approx(0.8, abs=1e-5), pytest.approx(0.8, abs=1e-5))
        assert row["score"] == min(row["match_i"], row["match_j"]) > 0.4
        assert max(row["similarity_a"], row["similarity_b"]) < 0.3
        assert row["margin"] >= 0.05
    assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)
    assert found["counts"] == {"shared": 6, "shared_pairs_a": 6, "shared_pairs_b": 3}
    null = found["null"]["relabelled"]
    assert null == {"observed": 6, "mean": pytest.approx(0, abs=0.2), "max": null["max"], "p": 1 / 21}
    assert [row["unknown_b"] for row in found["rows"]] == [1, 1]


def test_matches_are_the_features_that_fire_together(world: World, tmp_path: Path) -> None:
    find_shared(job(world, tmp_path / "out"), print)
    table = pq.read_table(tmp_path / "out/matches.parquet").to_pylist()
    mutual = [row for row in table if row["mutual"] and row["site_a"] == str(ONE)]
    assert {(row["source_a"], row["source_b"], row["site_b"]) for row in mutual} == {("one", "other", str(OTHER))}
    assert sorted(row["feature_a"] for row in mutual) == list(range(COMMON))
    assert all(world.order[row["feature_b"]] == row["feature_a"] for row in mutual)
    assert all(row["rank_ab"] == row["rank_ba"] == 0 for row in mutual)
    null = pq.read_table(tmp_path / "out/null.parquet").to_pylist()
    assert len(null) == 2 * 2 * 20  # sites, nulls, draws
    assert {row["null"] for row in null} == {"relabelled", "partner"}


def test_segments_count_words_that_both_read_whole(world: World, tmp_path: Path) -> None:
    notes: list[str] = []
    found = find_shared(job(world, tmp_path / "out"), notes.append)
    assert [row["segments"] for row in found["rows"]] == [WORDS, WORDS]
    assert notes[0] == f"one: 100.0% of {WORDS:,} tokens lie in {WORDS:,} common segments"
    assert "other resid_post.4: 1 of 7 pairs left out, a gloss is missing" in notes
    assert "peak memory" in notes[-1]


@pytest.fixture(scope="module")
def unrelated(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Two sources with many pairs whose features have nothing to do with each other."""
    rng = np.random.default_rng(3)
    spans = words_as_tokens(np.ones(WORDS, int))
    ends = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nulls, "DRAWS", 50)
        for name, site in (("one", ONE), ("other", OTHER)):
            data = SiteData(
                W_dec=rng.standard_normal((D, 12)),
                codes=sparse.csr_matrix(firing(rng)),
                gloss_vectors=np.eye(D, dtype=np.float32),
            )
            ends.append(write_source(tmp_path_factory.mktemp(name), name, spans, {site: data}, threshold=0.25))
    return World(a=ends[0], b=ends[1], order=np.arange(D))


def test_on_unrelated_features_no_more_is_shared_than_by_chance(unrelated: World, tmp_path: Path) -> None:
    found = find_shared(job(unrelated, tmp_path / "out", min_match=0.001, margin=0.0, permutations=40), print)
    null = found["null"]["relabelled"]
    assert null["observed"] > 10
    assert null["observed"] == pytest.approx(null["mean"], rel=0.25)
    assert null["p"] > 0.05
    partner = found["null"]["partner"]
    assert 0 < partner["mean"] < partner["observed"]
    strict = find_shared(job(unrelated, tmp_path / "strict"), print)
    assert strict["counts"]["shared"] == 0
    assert strict["null"]["relabelled"] == {"observed": 0, "mean": 0.0, "max": 0, "p": 1.0}


def test_an_interrupted_run_goes_on_where_it_stood_and_ends_the_same(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_shared(job(world, tmp_path / "straight"), print)
    real, seen = shared.best, []

    def stops(*given: Any) -> Any:
        seen.append(1)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(shared, "best", stops)
    with pytest.raises(KeyboardInterrupt):
        find_shared(job(world, tmp_path / "out"), print)
    with pytest.raises(FileFormatError, match="has not finished"):
        read_shared(tmp_path / "out")
    notes: list[str] = []
    find_shared(job(world, tmp_path / "out"), notes.append)
    assert len(seen) == 3
    assert sum("kept from before" in line for line in notes) == 1
    for name in ("matches", "shared", "null"):
        assert pq.read_table(tmp_path / f"out/{name}.parquet").equals(pq.read_table(tmp_path / f"straight/{name}.parquet"))
    find_shared(job(world, tmp_path / "out", min_match=0.4), print)  # other options: all over again
    assert len(seen) == 5


def test_only_the_sites_that_are_asked_for_are_matched(world: World, tmp_path: Path) -> None:
    only = replace(job(world, tmp_path / "out"), a=replace(world.a, sites=(TWO,)))
    found = find_shared(only, print)
    assert [(row["site_a"], row["site_b"]) for row in found["rows"]] == [(str(TWO), str(OTHER))]
    with pytest.raises(UsageError, match=r"has no site resid_post\.1"):
        find_shared(replace(only, b=replace(world.b, sites=(ONE,))), print)


def changed(end: End, folder: Path, change: Callable[[dict[str, Any]], Any], part: str = "catalogue") -> End:
    """A copy of `end` whose manifest is changed."""
    shutil.copytree(getattr(end, part), folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return replace(end, **{part: folder})


def test_sources_that_cannot_be_compared_are_refused(world: World, tmp_path: Path) -> None:
    whole = job(world, tmp_path / "out")
    text = changed(world.b, tmp_path / "text", lambda m: m["corpus"].update(sha256="2" * 64))
    with pytest.raises(UsageError, match="different texts") as told:
        find_shared(replace(whole, b=text), print)
    assert "--method gloss" in (told.value.hint or "")
    assert find_shared(replace(whole, b=text, options=Options(method="gloss")), print)["counts"]["shared"] == 6
    with pytest.raises(UsageError, match="both sources are one"):
        find_shared(replace(whole, b=world.a), print)
    with pytest.raises(UsageError, match="is of other, not of third"):
        find_shared(replace(whole, b=replace(world.b, source="third")), print)
    digest = changed(world.b, tmp_path / "digest", lambda m: m["sites"][str(OTHER)].update(sha256="x"), "topology")
    with pytest.raises(UsageError, match="different dictionaries"):
        find_shared(replace(whole, b=digest), print)
    lacking = changed(world.b, tmp_path / "lacking", lambda m: m["sites"].clear(), "topology")
    with pytest.raises(UsageError, match=r"has no site resid_post\.4"):
        find_shared(replace(whole, b=lacking), print)
    with pytest.raises(FileFormatError, match="has not finished") as told_too:
        find_shared(replace(whole, b=replace(world.b, topology=tmp_path)), print)
    assert "harness map topology --source other --glosses" in (told_too.value.hint or "")


def test_pairs_of_which_no_gloss_is_known_are_refused(world: World, tmp_path: Path) -> None:
    bare = TopologyJob(
        dictionaries=local_dictionaries("other", world.b.catalogue / "dictionaries", print),
        out=tmp_path / "topology",
        options=TopologyOptions(threshold=0.5),
    )
    map_topology(bare, print)
    with pytest.raises(UsageError, match="no pair has a similarity of glosses") as told:
        find_shared(replace(job(world, tmp_path / "out"), b=replace(world.b, topology=bare.out)), print)
    assert "--glosses" in (told.value.hint or "")


def test_texts_without_a_common_place_and_codes_of_other_text_are_refused(unrelated: World, tmp_path: Path) -> None:
    shutil.copytree(unrelated.b.catalogue, tmp_path / "b")
    spans = words_as_tokens(np.ones(WORDS, int))
    spans[:, 0] += 1000
    save_file({"spans": spans}, tmp_path / "b/spans.safetensors")
    other = replace(job(unrelated, tmp_path / "out"), b=replace(unrelated.b, catalogue=tmp_path / "b"))
    with pytest.raises(UsageError, match="have no text in common"):
        find_shared(other, print)
    save_file({"spans": words_as_tokens(np.ones(WORDS - 1, int))}, tmp_path / "b/spans.safetensors")
    with pytest.raises(FileFormatError, match=r"codes of 2,500 tokens, spans\.safetensors has 2,499"):
        find_shared(other, print)


def test_a_missing_file_and_bad_options_are_told(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.b.topology, tmp_path / "topology")
    (tmp_path / "topology/sites" / str(OTHER) / "pairs.parquet").unlink()
    with pytest.raises(FileFormatError, match=r"pairs\.parquet: cannot be read"):
        find_shared(replace(job(world, tmp_path / "out"), b=replace(world.b, topology=tmp_path / "topology")), print)
    for bad in ({"method": "magic"}, {"min_match": 0.0}, {"margin": 1.0}, {"candidates": 0}, {"permutations": 0}):
        with pytest.raises(UsageError):
            Options(**bad)  # type: ignore[arg-type]


def test_a_full_disk_is_told_and_what_is_done_stays(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shared.write_table

    def full(path: Path, rows: Any) -> None:
        if str(TWO) in str(path):
            raise OSError(28, "No space left on device")
        real(path, rows)

    monkeypatch.setattr(shared, "write_table", full)
    with pytest.raises(StorageError, match="No space left on device"):
        find_shared(job(world, tmp_path / "out"), print)
    assert [path.name for path in (tmp_path / "out/sites").glob("r*")] == ["resid_post.1--resid_post.4"]


def test_the_verb_prints_a_table_or_json(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["map", "shared", "--sources", "one,other", "--out", str(tmp_path / "out")]
    for name, end in (("a", world.a), ("b", world.b)):
        argv += [f"--catalogue-{name}", str(end.catalogue), f"--topology-{name}", str(end.topology)]
    assert execute(argv) == 0
    captured = capsys.readouterr()
    assert "resid_post.1 x resid_post.4" in captured.out
    assert "peak memory" in captured.err
    assert execute([*argv, "--json", "--site-a", "mlp_out.2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["sources"], found["counts"]["shared"], len(found["rows"])) == (["one", "other"], 3, 1)
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["null"] == found["null"]
    assert manifest["options"]["min_match"] == 0.3
    assert execute(["map", "shared", "--sources", "one"]) == 2
    assert "two different sources" in capsys.readouterr().err
    assert execute([*argv, "--annotate-second", "scripted"]) == 2
