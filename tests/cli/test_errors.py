"""What a user who mistypes gets: an error on stderr that helps, exit 2, and nothing on stdout."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.cli.main import execute

PACK = """format = 1
name = "p"
description = "d"
claims = "none"
maker = "test"
harness_version = "0"
seed = 0
"""


def fails(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 2) -> str:
    """The error that `harness ARGV` prints."""
    assert execute(list(argv)) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    return captured.err


@pytest.mark.parametrize(
    ("argv", "message", "hint"),
    [
        (("run", "--target", "lama-70b"), "unknown target 'lama-70b'", "did you mean 'llama-70b'?"),
        (("run", "--eval", "transfr"), "unknown eval 'transfr'", "did you mean 'transfer'?"),
        (("run", "--pack", "lexicl"), "unknown pack 'lexicl'", "did you mean 'lexical'?"),
        (("run", "--pack", "./nowhere"), "no pack at ./nowhere", "by name there are: embedded"),
        (("run", "--concept", "anmal"), "'anmal'", "did you mean 'animal'?"),
        (("run", "--limit", "0"), "--limit 0: must be at least 1", ""),
        (("run", "--limit", "many"), "many", "harness --help"),
        (("run", "--targt", "x"), "--targt", "harness --help"),
        (("evals", "show", "nothing-like-it"), "unknown eval", "known: "),
        (("serve", "--target", "smollm2-135m"), "smollm2-135m", "hint: "),
        (("run", "--eval", "published"), "published data", "harness packs import-published"),
    ],
)
def test_a_wrong_word_is_named_with_what_helps(
    capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], message: str, hint: str
) -> None:
    error = fails(capsys, *argv)
    assert message in error
    assert hint in error


def test_a_pack_with_a_wrong_digest(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "probes.jsonl").write_text('{"concept": "animal", "arm": "high", "injection_id": "i", "injection": [" x"]}\n')
    (tmp_path / "pack.toml").write_text(PACK + '[digests]\n"probes.jsonl" = "00"\n')
    error = fails(capsys, "run", "--target", "scripted", "--pack", str(tmp_path))
    assert "does not match its digest" in error
    assert f"harness packs seal {tmp_path}" in error


def test_a_malformed_target_file_names_file_and_key(capsys: pytest.CaptureFixture[str], project: Path) -> None:
    (project / "providers").mkdir()
    (project / "providers/mine.toml").write_text('api = "completions"\n[targets.t]\nmodle = "m"\n')
    error = fails(capsys, "targets", "list")
    assert "mine.toml: unknown key 'targets.t.modle'" in error
    assert "did you mean 'model'?" in error


def test_a_folder_that_cannot_be_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    error = fails(capsys, "run", "--target", "scripted", "--limit", "2", "--out", str(tmp_path / "file/run"))
    assert "file" in error
    assert "--out" in error


def test_an_endpoint_that_is_not_there_says_so_in_three_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_VLLM_URL", "http://127.0.0.1:9/v1")
    error = fails(capsys, "run", "--target", "llama-70b", "--limit", "2", code=3)
    assert len(error.strip().splitlines()) <= 3
    assert "http://127.0.0.1:9/v1" in error
    assert "harness serve --target llama-70b" in error
