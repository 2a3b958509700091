"""The importer of the published layout: its clean-ups, its sampling, its concepts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.errors import FileFormatError
from harness.packs.pack import write_pack
from harness.packs.published import clean, decode_byte_level, draft_published


@pytest.fixture
def source(tmp_path: Path) -> Path:
    sets = {
        "target": [f" Town{i}" for i in range(40)] + ["Town1", " two words"],
        "high_interference": [f" h{i}" for i in range(40)] + [" shared"],
        "medium_interference": [f" m{i}" for i in range(40)] + [" shared", "<|endoftext|>"],
        "random": ["only", "three", "strings"],
    }
    folder = tmp_path / "data"
    for name, content in (("token_sets", sets), ("sentences", ["We drove to", "We  drove to", "They live in"])):
        (folder / name).mkdir(parents=True)
        (folder / name / "location.json").write_text(json.dumps(content))
    return folder


def test_sets_become_arms_and_pools(source: Path, tmp_path: Path) -> None:
    pack = write_pack(draft_published(source, n_injections=7, n_tokens=30, seed=0), tmp_path / "out")
    assert pack.arms == ("self", "high", "low", "random")
    for arm in ("self", "high", "low"):
        probes = pack.probes["location", arm]
        assert len(probes) == 7
        assert all(len(p.injection) == len(set(p.injection)) == 30 for p in probes), "without replacement"
        assert all(set(p.injection) <= set(pack.pools["location", arm]) for p in probes)
    assert len(pack.probes["location", "random"][0].injection) == 30, "with replacement where a set is too small"
    report = pack.manifest.parameters["cleanup"]["location"]
    assert report["shared_between_arms"]["high&low"] == 1
    assert report["low"]["dropped_special"] == 1


def test_the_pack_brings_the_published_concept(source: Path, tmp_path: Path) -> None:
    concept = write_pack(draft_published(source, n_injections=1, n_tokens=3, seed=0), tmp_path / "out").concept("location")
    assert [s.text for s in concept.sentences] == ["We drove to", "They live in"]
    assert "town1" in concept.words
    assert "two words" not in concept.words


def test_equal_seeds_give_equal_packs(source: Path, tmp_path: Path) -> None:
    made = [
        write_pack(draft_published(source, n_injections=3, n_tokens=5, seed=s), tmp_path / f"{i}")
        for i, s in enumerate([1, 1, 2])
    ]
    assert made[0].digest == made[1].digest != made[2].digest


def byte_level(text: str) -> str:
    """Bytes as a byte-level tokenizer shows them, written out for the characters used here."""
    shown = {0xC3: "Ã", 0xA9: "©", 0xD0: "Ð", 0xB0: "°", 0xE2: "â", 0x80: "Ģ", 0x99: "Ļ"}
    return "".join(shown.get(b, chr(b)) for b in text.encode())


@pytest.mark.parametrize("text", [" café", "а", " it’s"])
def test_byte_level_text_is_decoded(text: str) -> None:
    assert byte_level(text) != text
    assert decode_byte_level(byte_level(text)) == text


@pytest.mark.parametrize(
    ("token", "kept"), [(" plain", " plain"), ("Ã", None), ("Ð", None), ("a\ufffd", None), ("日本", "日本")]
)
def test_broken_bytes_are_dropped_and_real_text_is_kept(token: str, kept: str | None) -> None:
    assert decode_byte_level(token) == kept


def test_clean_counts_what_it_did() -> None:
    cleaned = clean([" a", " a", "Ã", byte_level(" é"), "<|padding|>", "  "])
    assert cleaned.tokens == (" a", " é")
    assert (cleaned.decoded, cleaned.dropped_bytes, cleaned.dropped_special, cleaned.dropped_repeats) == (1, 1, 2, 1)


def test_a_folder_of_another_layout_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"no \*\.json here"):
        draft_published(tmp_path, n_injections=1, n_tokens=1, seed=0)
