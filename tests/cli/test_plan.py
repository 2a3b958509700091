"""`harness plan` as a user types it: a pilot whose spread is known, and what cannot be planned from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.cli.main import execute
from harness.packs.pack import Draft, write_pack
from harness.records import Probe

CONCEPTS = ("animal", "body", "color", "food", "music", "plant")
SPREAD = {"concept": 0.3, "sentence_id": 0.3, "injection_id": 0.2, "rest": 0.3}


def planted(table: pa.Table) -> pa.Table:
    """The trials with log-odds drawn anew: known exactly, and the related arm's with a spread of `SPREAD`."""
    rng = np.random.default_rng(0)
    columns = {name: np.array(table[name].to_pylist()) for name in ("concept", "sentence_id", "injection_id", "arm")}
    values = rng.normal(0, SPREAD["rest"], len(table))
    for name in ("concept", "sentence_id", "injection_id"):
        keys = np.char.add(np.char.add(columns["concept"], "/"), columns[name])
        _, codes = np.unique(keys, return_inverse=True)
        values += rng.normal(0, SPREAD[name], codes.max() + 1)[codes]
    values = np.where(columns["arm"] == "related", values, 0.0)
    for name in ("delta_log_odds", "delta_log_odds_low", "delta_log_odds_high"):
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    return table


@pytest.fixture(name="made", scope="module")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "pilot"
    argv = ["run", "--pack", "lexical", "--target", "scripted", "--limit", "6", "--out", str(out)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARNESS_CACHE", str(out.parent / "cache"))
        assert execute([*argv, *(part for name in CONCEPTS for part in ("--concept", name))]) == 0
    trials = pq.read_table(out / "trials.parquet")
    pq.write_table(planted(trials), out / "trials.parquet")
    return out


@pytest.fixture(name="pilot")
def _pilot(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(made, tmp_path / "pilot"))


def planned(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    assert execute(["plan", *argv, "--json"]) == 0
    record: dict[str, Any] = json.loads(capsys.readouterr().out)
    return record


def test_the_answer_comes_first_then_alternatives_and_costs(pilot: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["plan", "--pilot", str(pilot), "--mde", "1"]) == 0
    captured = capsys.readouterr()
    first, overall, alone, seen, *_ = captured.out.splitlines()
    assert first == "related - matched, log-odds: a shift of 1.000 nat with power 0.8 at alpha 0.05"
    assert overall.startswith("over all concepts: 6 concepts x ")
    assert overall.endswith("prompts")
    assert alone.startswith("one concept by itself")
    assert seen.startswith("the pilot, 6 concepts x 6 injections x 6 sentences, could see 0.")
    rows = [line.split() for line in captured.out.splitlines()]
    assert any(row[:4] == ["pilot", "6", "6", "6"] for row in rows)
    assert any(row[:2] == ["cheapest", "6"] for row in rows)
    assert any(row[:1] == ["scripted"] for row in rows)
    assert "hint: harness run --injections " in captured.err


def test_a_design_of_what_the_pack_has_costs_what_a_run_of_it_asks(pilot: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = planned(capsys, "--pilot", str(pilot), "--mde", "1", "--target", "scripted", "--target", "llama-70b")
    best = record["overall"]
    assert best["exceeds"] == []
    assert best["mde"] <= 1
    assert [item["target"] for item in record["estimates"]] == ["scripted", "llama-70b"]
    design = best["design"]
    for item in record["estimates"]:
        assert item["prompts"] == best["prompts"] == 6 * design["sentences"] * (1 + 4 * design["injections"])


def test_the_pilots_spread_is_the_planted_one(pilot: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = planned(capsys, "--pilot", str(pilot), "--mde", "1")["pilot"]["parts"]
    assert parts["sentences"] ** 0.5 == pytest.approx(SPREAD["sentence_id"], rel=0.4)
    assert parts["injections"] ** 0.5 == pytest.approx(SPREAD["injection_id"], rel=0.4)
    assert parts["rest"] ** 0.5 == pytest.approx(SPREAD["rest"], rel=0.2)


def test_the_evals_margin_is_the_effect_unless_another_is_named(pilot: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert planned(capsys, "--pilot", str(pilot))["question"] == {"mde": 0.1, "alpha": 0.05, "power": 0.8}
    argv = ("--pilot", str(pilot), "--mde", "0.2", "--alpha", "0.01", "--power", "0.9")
    assert planned(capsys, *argv)["question"] == {"mde": 0.2, "alpha": 0.01, "power": 0.9}


def test_a_design_beyond_the_pack_says_so_and_its_cost_is_scaled_up(pilot: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ("--pilot", str(pilot), "--mde", "0.25", "--concepts", "40")
    record = planned(capsys, *argv)
    assert record["overall"]["exceeds"] == ["concepts"]
    (item,) = record["estimates"]
    assert item["prompts"] == record["overall"]["prompts"]
    assert item["exact"] is False
    assert execute(["plan", *argv]) == 0
    captured = capsys.readouterr()
    assert "; pack lexical has 24 concepts" in captured.out
    assert "the room prompts/concepts has 24 concepts" in captured.err


def test_where_no_size_is_enough_the_concepts_that_would_be_are_named(pilot: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = planned(capsys, "--pilot", str(pilot), "--mde", "0.02")
    assert record["overall"] is None
    assert record["estimates"] == []
    assert "not with 6 concepts, whatever sentences and injections" in record["answer"][1]
    assert " concepts would with " in record["answer"][1]


def test_a_list_that_leaves_more_open_than_the_effect_is_the_reason(pilot: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pq.read_table(pilot / "trials.parquet")
    wider = pa.compute.add(table["delta_log_odds"], 0.6)
    pq.write_table(
        table.set_column(table.column_names.index("delta_log_odds_high"), "delta_log_odds_high", wider),
        pilot / "trials.parquet",
    )
    answer = planned(capsys, "--pilot", str(pilot), "--mde", "1")["answer"]
    assert "no size is enough while the target lists so little" in answer[1]
    assert answer[-1] == "what the target did not list leaves 1.200 nat open, whatever the size"


def test_without_a_pilot_it_says_how_to_make_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["plan", "--mde", "0.1"]) == 2
    err = capsys.readouterr().err
    assert "needs a pilot" in err
    assert "harness run --target T --out pilot" in err


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"primary": None}, "no primary contrast"),
        ({"primary": {"arm": "high", "control": "matched", "metric": "delta_log_odds"}}, "too few trials of high and matched"),
    ],
)
def test_a_run_that_cannot_serve_as_pilot_says_why(
    pilot: Path, capsys: pytest.CaptureFixture[str], edit: dict[str, Any], message: str
) -> None:
    summary = json.loads((pilot / "summary.json").read_text())
    (pilot / "summary.json").write_text(json.dumps(summary | edit))
    assert execute(["plan", "--pilot", str(pilot)]) == 2
    assert message in capsys.readouterr().err


def test_a_pack_without_the_pilots_arms_is_refused(pilot: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = json.loads((pilot / "summary.json").read_text())
    summary["primary"] = {"arm": "related", "control": "random", "metric": "delta_log_odds"}
    (pilot / "summary.json").write_text(json.dumps(summary))
    only = pilot.parent / "only"
    related = [Probe(concept="food", arm="related", injection_id=f"r{i}", injection=(f" w{i}",)) for i in range(3)]
    write_pack(Draft(name="only", description="d", claims="none", maker="t", seed=0, probes=related), only)
    assert execute(["plan", "--pilot", str(pilot), "--mde", "1", "--pack", str(only)]) == 2
    assert "pack 'only' has 0 injections of related and random" in capsys.readouterr().err


def test_fresh_injections_are_no_pilot(pilot: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = json.loads((pilot / "manifest.json").read_text())
    manifest["eval"]["design"] = "fresh"
    (pilot / "manifest.json").write_text(json.dumps(manifest))
    assert execute(["plan", "--pilot", str(pilot)]) == 2
    assert "drawn afresh for each sentence" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [("--mde", "0"), ("--concepts", "1"), ("--power", "0.4"), ("--alpha", "0.7")])
def test_numbers_that_make_no_sense_are_refused(
    pilot: Path, capsys: pytest.CaptureFixture[str], wrong: tuple[str, str]
) -> None:
    assert execute(["plan", "--pilot", str(pilot), *wrong]) == 2
    assert f"{wrong[0]} {wrong[1]}: must" in capsys.readouterr().err
