"""Reading a finished run back: the numbers that were written, and what is said of a folder that is no whole run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from harness.cli.main import execute
from harness.errors import FileFormatError, UsageError
from harness.reports.reading import read_run

ARGV = ("run", "--pack", "lexical", "--target", "scripted", "--concept", "animal", "--concept", "food", "--limit", "2")


@pytest.fixture(name="written", scope="module")
def _written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 2 concepts, 2 sentences and 2 injections in each of 4 arms."""
    out = tmp_path_factory.mktemp("written") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARNESS_CACHE", str(out.parent / "cache"))
        assert execute([*ARGV, "--out", str(out)]) == 0
    return out


@pytest.fixture(name="folder")
def _folder(written: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may spoil."""
    return Path(shutil.copytree(written, tmp_path / "run"))


def test_columns_come_as_they_were_written(folder: Path) -> None:
    written = pq.read_table(folder / "trials.parquet").to_pydict()
    run = read_run(folder)
    assert (run.manifest["target"], run.summary["target"]) == ("scripted", "scripted")
    read = run.trials(["delta_log_odds", "arm", "count_success"])
    assert list(read) == ["delta_log_odds", "arm", "count_success"]
    assert read["arm"].tolist() == written["arm"]
    assert read["delta_log_odds"].tolist() == written["delta_log_odds"]
    assert read["count_success"].tolist() == [float(flag) for flag in written["count_success"]]


def test_one_concept_is_read_alone(folder: Path) -> None:
    run = read_run(folder)
    for read in (run.trials, run.observations):
        food = read(["sentence_id"], concept="food")["sentence_id"]
        assert set(np.char.partition(food, "-")[:, 0]) == {"food"}
        assert 0 < len(food) < len(read(["sentence_id"])["sentence_id"])


def test_lists_come_as_arrays_and_what_is_missing_as_nan_none_or_an_empty_text(folder: Path) -> None:
    table = pq.read_table(folder / "observations.parquet")
    read = read_run(folder).observations(["logprobs", "prompt_token_ids", "error", "bias", "mode"])
    assert read["logprobs"][0].tolist() == table["logprobs"][0].as_py()
    assert read["prompt_token_ids"].tolist() == [None] * len(table)  # a scripted target has no tokenizer
    assert read["error"].tolist() == [""] * len(table)
    assert np.isnan(read["bias"]).all()
    assert set(read["mode"]) == set(table["mode"].to_pylist())


def test_a_folder_that_is_no_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no run, it has no manifest\.json") as caught:
        read_run(tmp_path)
    assert "harness run" in (caught.value.hint or "")
    with pytest.raises(UsageError, match="no such folder"):
        read_run(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["manifest.json", "summary.json"])
def test_a_record_that_was_cut_short_names_file_and_line(folder: Path, name: str) -> None:
    text = (folder / name).read_text()
    (folder / name).write_text(text[: len(text) // 2])
    with pytest.raises(FileFormatError, match=rf"{name}:\d+: not valid JSON"):
        read_run(folder)


@pytest.mark.parametrize(("name", "key"), [("manifest.json", "counts"), ("summary.json", "cells")])
def test_a_record_without_a_key_names_it(folder: Path, name: str, key: str) -> None:
    record = json.loads((folder / name).read_text())
    del record[key]
    (folder / name).write_text(json.dumps(record))
    with pytest.raises(FileFormatError, match=f"{name}: key '{key}' is missing"):
        read_run(folder)


def test_the_summary_of_another_run_is_refused(folder: Path) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"run_id": "other"}))
    with pytest.raises(FileFormatError, match=r"key 'run_id': 'other', but manifest\.json says 'run'"):
        read_run(folder)


def test_a_table_that_was_cut_short_is_no_parquet(folder: Path) -> None:
    whole = (folder / "trials.parquet").read_bytes()
    (folder / "trials.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FileFormatError, match=r"trials\.parquet: cannot be read as Parquet"):
        read_run(folder).trials(["arm"])


def test_a_table_with_rows_taken_out_is_not_the_runs(folder: Path) -> None:
    for name, read in (("trials.parquet", read_run(folder).trials), ("observations.parquet", read_run(folder).observations)):
        pq.write_table(pq.read_table(folder / name).slice(3), folder / name)
        with pytest.raises(FileFormatError, match=r"\d+ rows, but the run has \d+"):
            read(["arm"])


def test_a_missing_table_and_a_column_of_another_version_are_told(folder: Path) -> None:
    run = read_run(folder)
    with pytest.raises(FileFormatError, match="no column 'effect'"):
        run.trials(["arm", "effect"])
    (folder / "trials.parquet").unlink()
    with pytest.raises(FileFormatError, match=r"trials\.parquet: missing"):
        run.trials(["arm"])
