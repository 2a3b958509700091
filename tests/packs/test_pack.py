"""Packs are read with every check, and a changed file is noticed."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import FileFormatError, StorageError, UnknownNameError
from harness.packs.pack import Draft, find_pack, load_pack, seal, write_pack
from harness.records import Probe


def draft(*probes: Probe) -> Draft:
    return Draft(name="p", description="d", claims="none", maker="test", seed=1, probes=probes)


def probe(concept: str = "animal", arm: str = "high", injection_id: str = "h-0", injection: tuple[str, ...] = (" x",)) -> Probe:
    return Probe(concept=concept, arm=arm, injection_id=injection_id, injection=injection, predicted_shift=0.5)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    pack = write_pack(draft(probe(), probe(arm="random", injection_id="r-0")), tmp_path / "p")
    assert load_pack(tmp_path / "p") == pack
    assert pack.arms == ("high", "random")
    assert pack.probes["animal", "high"] == (probe(),)


def test_an_edited_file_is_refused_until_it_is_sealed(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    before = write_pack(draft(probe()), folder)
    probes = folder / "probes.jsonl"
    probes.write_text(probes.read_text().replace(" x", " y"))
    with pytest.raises(FileFormatError, match=r"probes\.jsonl: does not match its digest") as caught:
        load_pack(folder)
    assert caught.value.hint == f"harness packs seal {folder} accepts an edit that you meant"
    assert seal(folder).digest != before.digest


def test_a_file_without_a_digest_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    write_pack(draft(probe()), folder)
    (folder / "pools.jsonl").write_text("")
    with pytest.raises(FileFormatError, match=r"no digest for 'pools\.jsonl'"):
        load_pack(folder)


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (probe(concept="anmal"), "probes.jsonl:2: key 'concept': unknown concept 'anmal'"),
        (probe(), "probes.jsonl:2: key 'injection_id': 'h-0' stands twice"),
    ],
)
def test_a_probe_that_does_not_fit_names_its_line(tmp_path: Path, bad: Probe, problem: str) -> None:
    with pytest.raises(FileFormatError) as caught:
        write_pack(draft(probe(), bad), tmp_path / "p")
    assert problem in caught.value.message


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(StorageError, match="not empty"):
        write_pack(draft(probe()), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_folder_that_is_no_pack_and_a_name_that_is_unknown(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="no probe pack"):
        find_pack(str(tmp_path))
    with pytest.raises(UnknownNameError, match="unknown pack 'lexicl'"):
        find_pack("lexicl")
