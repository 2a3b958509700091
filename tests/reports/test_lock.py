"""One process for one run folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.errors import StorageError
from harness.reports.lock import locked

HOLDER = (
    "import sys; from pathlib import Path; from harness.reports.lock import locked\n"
    "with locked(Path(sys.argv[1])):\n"
    "    print('held', flush=True)\n"
    "    sys.stdin.read()\n"
)


def holder(out: Path) -> subprocess.Popen[str]:
    """A process that holds the lock until its stdin closes."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(out)], stdin=-1, stdout=-1, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.communicate()


def test_the_second_process_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    first = holder(tmp_path / "run")
    with (
        pytest.raises(StorageError, match=rf"run: another process \(pid {first.pid}\) is at work on this run") as caught,
        locked(tmp_path / "run"),
    ):
        pass
    assert caught.value.exit_code == 2
    with locked(tmp_path / "other"):
        pass
    end(first)
    assert not list(tmp_path.iterdir())


def test_a_killed_process_leaves_the_folder_free(tmp_path: Path) -> None:
    first = holder(tmp_path / "run")
    first.kill()
    end(first)
    assert [path.name for path in tmp_path.iterdir()] == [".run.lock"]
    with locked(tmp_path / "run"):
        assert (tmp_path / ".run.lock").read_text() == f"{os.getpid()}\n"
    assert not list(tmp_path.iterdir())


def test_nothing_stays_behind_where_the_work_failed(tmp_path: Path) -> None:
    with pytest.raises(KeyError), locked(tmp_path / "run"):
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_a_lock_that_was_removed_before_we_got_it_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.reports import lock

    path = tmp_path / ".run.lock"
    flock = lock.fcntl.flock
    calls = []

    def late(file: int, how: int) -> None:
        if not calls:
            path.unlink()  # the holder's end, between our opening and our locking
        calls.append(how)
        flock(file, how)

    monkeypatch.setattr(lock.fcntl, "flock", late)
    with locked(tmp_path / "run"):
        assert len(calls) == 2
        assert path.read_text() == f"{os.getpid()}\n"


def test_a_place_that_cannot_be_written_is_told_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written: Not a directory") as caught, locked(tmp_path / "file" / "run"):
        pass
    assert caught.value.hint == "name another folder with --out"
