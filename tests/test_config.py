"""A file that does not fit is refused with its name, its line, its key and the nearest known one."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.config import iter_jsonl, read_lines, read_toml
from harness.errors import FileFormatError
from harness.packs.pack import ProbeRow
from harness.providers.targets import Endpoint


def refusal(path: Path) -> FileFormatError:
    with pytest.raises(FileFormatError) as caught:
        read_toml(path, Endpoint)
    return caught.value


def test_an_unknown_key_is_named_with_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "e.toml"
    path.write_text('api = "x"\nbase_ulr = "http://a"\n[targets.t]\nmodel = "m"\n')
    error = refusal(path)
    assert error.message == f"{path}: unknown key 'base_ulr'"
    assert error.hint == "did you mean 'base_url'?"


def test_a_nested_unknown_key_is_compared_with_its_own_record(tmp_path: Path) -> None:
    path = tmp_path / "e.toml"
    path.write_text('api = "x"\n[targets.t]\nmodel = "m"\ntokeniser = "m"\n')
    error = refusal(path)
    assert error.message == f"{path}: unknown key 'targets.t.tokeniser'"
    assert error.hint == "did you mean 'tokenizer'?"


def test_bad_toml_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "e.toml"
    path.write_text('api = "x"\nbase_url = \n')
    assert "line 2" in refusal(path).message


def test_a_wrong_type_names_the_key(tmp_path: Path) -> None:
    path = tmp_path / "e.toml"
    path.write_text('api = "x"\n[limits]\nconcurrency = 0\n[targets.t]\nmodel = "m"\n')
    assert "key 'limits.concurrency'" in refusal(path).message


def test_bytes_that_are_no_text_and_files_that_are_missing_are_named(tmp_path: Path) -> None:
    path = tmp_path / "e.toml"
    path.write_bytes(b"\xff\xfe")
    assert "not UTF-8 text" in refusal(path).message
    assert "cannot be read" in refusal(tmp_path / "none.toml").message


def test_jsonl_names_file_line_and_field(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    good = '{"concept": "a", "arm": "high", "injection_id": "i", "injection": [" x"]}'
    cases = {
        good.replace('"arm"', '"amr"'): "unknown key 'amr'",
        good.replace('[" x"]', "[]"): "key 'injection'",
        good.replace('[" x"]', '[" "]'): "key 'injection': an empty injection",
        good.replace('"high"', '"hgih"'): "key 'arm'",
        "{": "not valid JSON",
    }
    for line, problem in cases.items():
        path.write_text(f"{good}\n\n{line}\n")
        with pytest.raises(FileFormatError) as caught:
            list(iter_jsonl(path, ProbeRow))
        assert caught.value.message.startswith(f"{path}:3: "), line
        assert problem in caught.value.message


def test_lists_skip_comments_and_empty_lines(tmp_path: Path) -> None:
    path = tmp_path / "l.txt"
    path.write_text("# words\nred\n\n  blue \n")
    assert read_lines(path) == ["red", "blue"]
