"""One process for one run folder: a lock beside it, which the system gives back when the process ends, however it ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.errors import StorageError
from harness.paths import writing


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the lock of the run folder `out`; raises StorageError, which names the process that holds it already."""
    path = out.with_name(f".{out.name}.lock")
    with writing(path, hint="name another folder with --out"):
        file = _open(path, out)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held: whoever opened it meanwhile looks again
        os.close(file)


def _open(path: Path, out: Path) -> int:
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(path, file):
                os.ftruncate(file, 0)
                os.write(file, f"{os.getpid()}\n".encode())
                return file
        except BlockingIOError:
            holder = os.read(file, 20).decode(errors="replace").strip() or "unknown"
            os.close(file)
            raise StorageError(
                f"{out}: another process (pid {holder}) is at work on this run",
                hint="wait until it ends, or name another folder with --out",
            ) from None
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _is_still(path: Path, file: int) -> bool:
    """Whether the file that we hold is the one that the next process will find."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False
