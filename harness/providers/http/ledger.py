"""Which lines of which batch jobs are out, and what came back: tables of their own in the journal's SQLite file.

A job is written down before it is submitted, so that a process killed at any moment leaves either no job, or one that can be
looked for. An answer lies here as it came until it is decoded and journalled.
"""

from __future__ import annotations

import json
import sqlite3
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from harness.errors import StorageError, UsageError
from harness.providers.http.batch import Result
from harness.providers.wire.base import read_usage
from harness.records import TargetInfo

_SCHEMA = """
CREATE TABLE IF NOT EXISTS batch_jobs (
    tag TEXT PRIMARY KEY, endpoint TEXT NOT NULL, found TEXT NOT NULL, job TEXT, n_lines INTEGER NOT NULL, at REAL NOT NULL,
    ended INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS batch_lines (
    key BLOB NOT NULL, number INTEGER NOT NULL, round INTEGER NOT NULL, tag TEXT NOT NULL, open INTEGER NOT NULL DEFAULT 1,
    answer BLOB, reason TEXT, final INTEGER NOT NULL DEFAULT 0, input_tokens INTEGER, output_tokens INTEGER,
    PRIMARY KEY (key, number, round)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS batch_lines_by_tag ON batch_lines (tag, key, number);
"""
_SELECT_MANY = 500  # below SQLite's limit on the variables of one statement
_RETRIED = frozenset({401, 402, 403, 404, 408, 409, 425, 429})
"""Statuses below 500 that are about the endpoint or the moment, so that the same line may be answered later."""

NO_ANSWER = "the batch brought no answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job that is not collected. `job` is the service's id, None while it is not known that there is one. `found`: what the
    endpoint was found to be when it was submitted, as the keys of its lines hold it."""

    tag: str
    found: str
    job: str | None
    n_lines: int
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """The latest state of one request of a prompt: out (`open`), answered, or failed with a `reason`.

    `final`: the request itself was refused, and sending it again is no use.
    """

    number: int
    round: int
    open: bool
    answer: Any = None
    reason: str | None = None
    final: bool = False
    input_tokens: int | None = None
    output_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What one job brought, in lines. `contradicted`: answered twice with different contents; the first one counts."""

    answered: int
    failed: int
    contradicted: int
    unknown: int


def custom_id(key: bytes, number: int) -> str:
    """The name of a line: the journal key of its prompt, and which of the prompt's requests it is."""
    return f"{key.hex()}-{number}"


def read_id(text: str) -> tuple[bytes, int] | None:
    """The journal key and the number in a `custom_id`, None where it is none of ours."""
    head, _, tail = text.partition("-")
    try:
        return bytes.fromhex(head), int(tail)
    except ValueError:
        return None


class Ledger:
    """The batch jobs of one target. Use as a context manager; one process at a time: raises UsageError for the second one."""

    def __init__(self, journal: Path, info: TargetInfo) -> None:
        self.path = journal
        self.found = json.dumps(
            {
                "model": info.model,
                "revision": info.revision,
                "tokenizer": info.tokenizer_digest,
                "settings": dict(info.settings),
            },
            sort_keys=True,
            default=str,
        )
        self._endpoint = info.endpoint
        with self._errors():
            self._lock = sqlite3.connect(journal.with_suffix(".batch-lock"), timeout=0, isolation_level=None)
            try:
                self._lock.execute("BEGIN EXCLUSIVE")  # given back by the system when the process ends, however it ends
            except sqlite3.OperationalError as exc:
                self._lock.close()
                raise UsageError(f"another process is at work on the batches in {journal}", hint="wait until it ends") from exc
            self._db = sqlite3.connect(journal, timeout=60, isolation_level=None)
            self._db.execute("PRAGMA synchronous=FULL")  # a job that is out must not be forgotten, whatever happens
            self._db.executescript(_SCHEMA)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._db.close()
        self._lock.close()

    def prepare(self, tag: str, lines: Sequence[tuple[bytes, int, int]]) -> None:
        """Write down a job that is about to be submitted: the (key, number, round) of its lines."""
        with self._transaction():
            self._db.execute(
                "INSERT INTO batch_jobs (tag, endpoint, found, n_lines, at) VALUES (?, ?, ?, ?, ?)",
                (tag, self._endpoint, self.found, len(lines), time.time()),
            )
            self._db.executemany(
                "INSERT INTO batch_lines (key, number, round, tag) VALUES (?, ?, ?, ?)", ((*line, tag) for line in lines)
            )

    def submitted(self, tag: str, job: str) -> None:
        """The service calls the job so."""
        with self._transaction():
            self._db.execute("UPDATE batch_jobs SET job = ? WHERE tag = ?", (job, tag))

    def drop(self, tag: str) -> None:
        """The job was never submitted."""
        with self._transaction():
            self._db.execute("DELETE FROM batch_lines WHERE tag = ?", (tag,))
            self._db.execute("DELETE FROM batch_jobs WHERE tag = ?", (tag,))

    def out(self) -> list[Job]:
        """The jobs of this endpoint that are not collected, the oldest first."""
        with self._errors():
            rows = self._db.execute(
                "SELECT tag, found, job, n_lines, at FROM batch_jobs WHERE endpoint = ? AND NOT ended ORDER BY at",
                (self._endpoint,),
            ).fetchall()
        return [Job(tag=tag, found=found, job=job, n_lines=n_lines, at=at) for tag, found, job, n_lines, at in rows]

    def known(self) -> set[str]:
        """The service's ids of every job that was ever ours."""
        with self._errors():
            return {row[0] for row in self._db.execute("SELECT job FROM batch_jobs WHERE job IS NOT NULL")}

    def collect(self, tag: str, results: Iterable[Result], reason: str | None = None) -> Collected:
        """Close a job with what it brought, all in one transaction; lines without a result failed for `reason`.

        A line that came twice: an answer outweighs an error, and of two answers the first in the service's order counts.
        """
        ours = self._lines_of(tag)
        best: dict[tuple[bytes, int], tuple[bytes | None, Result]] = {}
        contradicted = unknown = 0
        for result in results:
            name = read_id(result.custom_id)
            if name is None or name not in ours:
                unknown += 1
                continue
            packed = None if result.answer is None else json.dumps(result.answer, sort_keys=True).encode()
            earlier = best.get(name)
            if earlier is None or (earlier[0] is None and packed is not None):
                best[name] = (packed and zlib.compress(packed, 1), result)
            elif packed is not None and earlier[0] is not None and zlib.decompress(earlier[0]) != packed:
                contradicted += 1
        with self._transaction():
            self._db.execute("UPDATE batch_lines SET open = 0, reason = ? WHERE tag = ?", (reason or NO_ANSWER, tag))
            self._db.executemany(
                "UPDATE batch_lines SET answer = ?, reason = ?, final = ?, input_tokens = ?, output_tokens = ?"
                " WHERE key = ? AND number = ? AND tag = ?",
                ((*_told(packed, result), *name, tag) for name, (packed, result) in best.items()),
            )
            self._db.execute("UPDATE batch_jobs SET ended = 1 WHERE tag = ?", (tag,))
        answered = sum(packed is not None for packed, _ in best.values())
        return Collected(answered=answered, failed=len(ours) - answered, contradicted=contradicted, unknown=unknown)

    def lines(self, keys: Sequence[bytes]) -> dict[bytes, dict[int, Line]]:
        """What is known of each prompt's requests by number: the first answer, else the latest round."""
        found: dict[bytes, dict[int, Line]] = {}
        with self._errors():
            for start in range(0, len(keys), _SELECT_MANY):
                part = keys[start : start + _SELECT_MANY]
                rows = self._db.execute(
                    "SELECT key, number, round, open, answer, reason, final, input_tokens, output_tokens FROM batch_lines"
                    f" WHERE key IN ({','.join('?' * len(part))}) ORDER BY key, number, round",
                    part,
                )
                for key, number, *rest in rows:
                    lines = found.setdefault(key, {})
                    if number not in lines or lines[number].answer is None:
                        lines[number] = _line(number, *rest)
        return found

    def unusable(self, key: bytes, reason: str) -> None:
        """The answers to a prompt's requests say nothing: they count as failed."""
        with self._transaction():
            self._db.execute("UPDATE batch_lines SET answer = NULL, reason = ? WHERE key = ? AND NOT open", (reason, key))

    def forget(self, keys: Iterable[bytes]) -> None:
        """These prompts are answered and their run is written."""
        with self._transaction():
            self._db.executemany("DELETE FROM batch_lines WHERE key = ? AND NOT open", ((key,) for key in keys))

    def _lines_of(self, tag: str) -> set[tuple[bytes, int]]:
        with self._errors():
            return {(k, n) for k, n in self._db.execute("SELECT key, number FROM batch_lines WHERE tag = ?", (tag,))}

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as exc:
            raise StorageError(f"{self.path}: the batch tables cannot be used: {exc}", hint="free some space") from exc


def _line(number: int, round_: int, *rest: Any) -> Line:
    open_, answer, reason, final, input_tokens, output_tokens = rest
    return Line(
        number=number,
        round=round_,
        open=bool(open_),
        answer=None if answer is None else json.loads(zlib.decompress(answer)),
        reason=reason,
        final=bool(final),
        input_tokens=input_tokens,
        output_tokens=output_tokens,
    )


def _told(packed: bytes | None, result: Result) -> tuple[Any, ...]:
    """answer, reason, final, input_tokens, output_tokens"""
    if packed is None:
        status = result.status
        final = status is not None and 400 <= status < 500 and status not in _RETRIED
        return None, result.reason or NO_ANSWER, final, None, None
    return packed, None, False, *(read_usage(result.answer) or (None, None))
