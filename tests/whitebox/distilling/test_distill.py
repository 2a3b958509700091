"""Packs from small maps of two sources; the sources' own models are played by a function of the text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

pytest.importorskip("torch")

from harness.cli.main import execute
from harness.errors import FileFormatError, UsageError
from harness.packs.concepts import find_concept
from harness.packs.lexical import common_words
from harness.packs.pack import Pack, write_pack
from harness.whitebox.distilling import distill, token_sets
from harness.whitebox.distilling.distill import Job, Options, draft_pack
from harness.whitebox.distilling.injections import Sizes
from harness.whitebox.sources.sites import Site
from harness.whitebox.stage import write_json, write_table

from ..tiny_catalogue import SiteData, write_catalogue

GOOD, WEAK = Site(layer=0, submodule="resid_post"), Site(layer=2, submodule="mlp_out")
PAPERWORK = ("ledger", "invoice", "audit", "clerk", "receipt", "folder", "notary", "archive", "clause", "dossier")
SHIPPING = ("anchor", "harbor", "cargo", "mast", "sail", "deck", "rudder", "keel", "hull", "dock", "crew", "port")
NUMBERS = ("ninth", "dozen", "twelve", "fifty", "hundred", "seven")
SIZES = Sizes(injections=6, strings=4, fewest=2)


def embed(texts: Sequence[str]) -> np.ndarray:
    """Vectors that depend on the text alone; words of one list are alike."""
    vectors = np.stack([np.random.default_rng(sum(map(ord, text))).standard_normal(32) for text in texts])
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


class Reader:
    """Stands for a source: each word of paperwork adds a tenth of a nat, whatever the sentence."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.asked: set[str] = set()

    def shifts(self, _: Any, sentences: Sequence[str], injections: Sequence[tuple[str, ...]], __: Any) -> np.ndarray:
        self.asked |= set(sentences)
        return np.array([sum(text.strip() in PAPERWORK for text in injection) / 10 for injection in injections])


def write_maps(maps: Path, source: str) -> None:
    """At a good and a weak site: animals, paperwork that interferes with them, ships that do not, numbers that would at the
    weak.
    """
    animals = sorted(find_concept("animal").words)[:8]
    W_dec = np.zeros((4, 8))
    W_dec[[0, 2, 3], [0, 2, 3]] = 1
    W_dec[1, [0, 1]] = 0.6, 0.8
    tokens = [[(word, 1.0) for word in listed] for listed in (animals, PAPERWORK, SHIPPING, NUMBERS)]
    good = SiteData(W_dec=W_dec, tokens=tokens, gloss_vectors=np.eye(4, 8), quality={"ce_recovered": 0.95})
    weak = SiteData(W_dec=W_dec[[0, 3, 2, 1]], tokens=tokens, gloss_vectors=np.eye(4, 8), quality={"ce_recovered": 0.4})
    model = maps / "model"
    write_catalogue(maps / f"catalogue-{source}", source=source, sites={GOOD: good, WEAK: weak}, model={"folder": str(model)})
    folder = maps / f"topology-{source}"
    folder.mkdir()
    rows = [{"site": str(site), "threshold_isotropic": 0.1, "threshold_matched": 0.3} for site in (GOOD, WEAK)]
    write_table(folder / "sites.parquet", pa.Table.from_pylist(rows))
    write_json(folder / "manifest.json", {"stage": "topology"})


@pytest.fixture
def maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for source in ("one", "two"):
        write_maps(tmp_path, source)
    (tmp_path / "shared-one-two").mkdir()
    write_json(tmp_path / "shared-one-two" / "manifest.json", {"stage": "shared", "method": "correlation"})
    pair = {"i": 0, "j": 1, "cosine": 0.6, "similarity": 0.0, "site": str(GOOD)}
    table = pa.Table.from_pylist([{f"{key}_{end}": value for end in "ab" for key, value in pair.items()}])
    monkeypatch.setattr(distill, "read_shared", lambda _folder: table)
    monkeypatch.setattr(token_sets, "NEAR_SHARE", 0.0)  # made-up vectors know no meaning
    return tmp_path


def job(maps: Path, *sources: str, **options: Any) -> Job:
    return Job(
        sources=sources,
        maps=maps,
        concepts=("animal", "color"),
        words=tuple(dict.fromkeys([*PAPERWORK, *SHIPPING, *NUMBERS, *common_words()[:800]])),
        embed=embed,
        open_predictor=Reader,  # type: ignore[arg-type]
        options=Options(sizes=SIZES, **options),
    )


def made(job: Job, out: Path, told: list[str] | None = None) -> Pack:
    return write_pack(draft_pack(job, out.name, [].append if told is None else told.append), out)


def high_words(pack: Pack) -> set[str]:
    return {text.strip() for probe in pack.probes["animal", "high"] for text in probe.injection}


def test_a_shared_pair_becomes_probes_with_every_control_that_the_maps_allow(maps: Path, tmp_path: Path) -> None:
    told: list[str] = []
    pack = made(job(maps, "one", "two"), tmp_path / "pack", told)
    assert pack.concepts == ("animal",)
    assert "color: left out, 0 interfering words found, 2 needed" in told
    assert pack.manifest.parameters["concepts_without_probes"] == ["color"]
    assert set(pack.arms) == {"self", "high", "low", "random", "matched"}
    high = {f" {word}" for word in PAPERWORK}
    assert high_words(pack) <= set(PAPERWORK)
    assert pack.manifest.parameters["high_strings"] == {"animal": 9, "color": 0}  # "ledger" looks like "badger"
    strings = {arm: {w for probe in probes for w in probe.injection} for (_, arm), probes in pack.probes.items()}
    assert not strings["matched"] & (high | strings["self"] | strings["low"])
    assert all(len(probes) == 6 for probes in pack.probes.values())


def test_probes_carry_where_they_come_from_and_what_the_sources_predict(maps: Path, tmp_path: Path) -> None:
    pack = made(job(maps, "one", "two"), tmp_path / "pack")
    links = [json.loads(line) for line in (pack.path / "links.jsonl").read_text().splitlines()]
    (probe, *_) = pack.probes["animal", "high"]
    assert probe.provenance["links"] == [0] * 4
    assert probe.provenance["interference"] == pytest.approx(0.6)
    assert {m["source"] for m in links[0]["members"]} == {"one", "two"}
    assert links[0]["members"][0]["site"] == str(GOOD)
    assert probe.predicted_shift == pytest.approx(0.4)
    assert probe.provenance["predicted"] == {"one": 0.4, "two": 0.4}
    (control, *_) = pack.probes["animal", "matched"]
    assert control.provenance["matched_to"] == probe.injection_id
    assert control.predicted_shift == 0


def test_predictions_are_measured_on_sentences_that_the_pack_does_not_have(maps: Path, tmp_path: Path) -> None:
    reader = Reader("one")
    pack = made(replace(job(maps, "one"), open_predictor=lambda _: reader), tmp_path / "pack")
    scored = {sentence.text for sentence in pack.concept("animal").sentences}
    assert len(reader.asked) == 4
    assert not reader.asked & scored
    assert scored | reader.asked == {sentence.text for sentence in find_concept("animal").sentences}


def test_a_weak_dictionary_is_left_out_and_named(maps: Path, tmp_path: Path) -> None:
    pack = made(job(maps, "one"), tmp_path / "pack")
    assert pack.manifest.sources["one"]["sites_left_out"] == {str(WEAK): 0.4}
    assert not high_words(pack) & set(NUMBERS)
    all_sites = made(job(maps, "one", min_recovered=0.1), tmp_path / "all")
    assert high_words(all_sites) & set(NUMBERS)
    with pytest.raises(UsageError, match=r"every site's dictionary recovers less than 0.99") as caught:
        draft_pack(job(maps, "one", min_recovered=0.99), "pack", [].append)
    assert "--min-recovered" in str(caught.value.hint)


def test_equal_maps_give_equal_packs(maps: Path, tmp_path: Path) -> None:
    first, second = (made(job(maps, "one", "two"), tmp_path / name / "pack") for name in ("x", "y"))
    assert (first.path / "probes.jsonl").read_bytes() == (second.path / "probes.jsonl").read_bytes()


def test_nothing_found_and_maps_that_are_not_finished_are_told(maps: Path) -> None:
    with pytest.raises(UsageError, match="no concept has enough interfering words") as caught:
        draft_pack(replace(job(maps, "one"), concepts=("color",)), "pack", [].append)
    assert "--fewest" in str(caught.value.hint)
    (maps / "catalogue-two" / "manifest.json").unlink()
    with pytest.raises(FileFormatError, match="the stage has not finished"):
        draft_pack(job(maps, "one", "two"), "pack", [].append)
    with pytest.raises(UsageError, match="3 sources"):
        draft_pack(job(maps, "a", "b", "c"), "pack", [].append)


def test_the_verb_refuses_what_it_cannot_write_or_find(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], project: Path
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    assert execute(["distill", "--sources", "smollm2-135m", "--out", str(tmp_path / "full")]) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert execute(["distill", "--sources", "smolm2-135m", "--out", str(project / "pack")]) == 2
    assert "unknown source 'smolm2-135m'" in capsys.readouterr().err
