"""The journal: every answer as it arrives, under a key that holds everything the answer depends on.

One SQLite file (write-ahead log) for each target. A batch is one transaction, so a process killed at any moment leaves
whole batches. Failures are kept for the record and never taken for an answer.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import numpy as np

from harness.errors import StorageError
from harness.paths import make_dir
from harness.records import Mode, Observation, Prompt, Readout, TargetInfo

_COLUMNS = (
    "key, token_ids, tokens, logprobs, covered_mass, mode, mass_low, mass_high, hits, n_draws, bias, error, attempts, latency_s"
)
_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    key BLOB PRIMARY KEY, token_ids BLOB, tokens TEXT, logprobs BLOB, covered_mass REAL, mode TEXT,
    mass_low REAL, mass_high REAL, hits INTEGER, n_draws INTEGER, bias REAL,
    error TEXT, attempts INTEGER NOT NULL, latency_s REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS rates (at TEXT PRIMARY KEY, prompts INTEGER NOT NULL, seconds REAL NOT NULL);
"""
_SELECT_MANY = 500  # below SQLite's limit on the variables of one statement


class KeyMaker:
    """Makes journal keys for one target: 16 bytes of BLAKE2b over endpoint, model, revision, tokenizer, settings, what is
    read off, and the exact ids (or text) of the prompt.

    Where the answer depends on the lexicon (every mode but `topk`, whose lists are read later), its digest is part of the key.
    """

    def __init__(self, info: TargetInfo) -> None:
        identity = {
            "endpoint": info.endpoint,
            "model": info.model,
            "revision": info.revision,
            "tokenizer": info.tokenizer_digest,
            "settings": dict(info.settings),
        }
        self._identity = json.dumps(identity, sort_keys=True, default=str).encode()
        self._best = info.capabilities.mode

    def keys(self, prompts: Sequence[Prompt], readout: Readout) -> list[bytes]:
        """One key for each prompt, in order."""
        base = hashlib.blake2b(self._identity, digest_size=16)
        mode = readout.mode or self._best
        lexicon = "" if mode is Mode.TOPK else f"{mode}|{readout.n_draws}|{readout.lexicon.digest}"
        base.update(f"|{readout.n_logprobs}|{lexicon}|".encode())
        return [_key(base, prompt) for prompt in prompts]


def _key(base: hashlib.blake2b, prompt: Prompt) -> bytes:
    digest = base.copy()
    if prompt.token_ids is None:
        digest.update(b"text" + prompt.text.encode())
    else:
        digest.update(b"ids" + np.asarray(prompt.token_ids, np.int32).tobytes())
    return digest.digest()


class Journal:
    """Answers by key. Use as a context manager; every method raises StorageError for what SQLite reports."""

    def __init__(self, path: Path) -> None:
        make_dir(path.parent)
        self.path = path
        with self._errors():
            self._db = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            # A killed process loses nothing at NORMAL; only a power cut could take the last transactions, never the file.
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(_SCHEMA)
            self._add_missing_columns()

    def _add_missing_columns(self) -> None:
        """Journals of an earlier version lack the columns of the modes that draw."""
        have = {row[1] for row in self._db.execute("PRAGMA table_info(answers)")}
        for column in ("hits INTEGER", "n_draws INTEGER", "bias REAL"):
            if column.split()[0] not in have:
                self._db.execute(f"ALTER TABLE answers ADD COLUMN {column}")

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._db.close()

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Observation]:
        """What is journalled under `keys`, failures included (their `error` is set)."""
        found: dict[bytes, Observation] = {}
        with self._errors():
            for start in range(0, len(keys), _SELECT_MANY):
                part = keys[start : start + _SELECT_MANY]
                marks = ",".join("?" * len(part))
                rows = self._db.execute(f"SELECT {_COLUMNS} FROM answers WHERE key IN ({marks})", part)
                found.update((row[0], _from_row(row)) for row in rows)
        return found

    def put(self, answers: Iterable[tuple[bytes, Observation]]) -> None:
        """Keep `answers` in one transaction; a later answer replaces an earlier failure of the same key, never an answer."""
        rows = [_to_row(key, observation) for key, observation in answers]
        marks = ",".join("?" * len(_COLUMNS.split(", ")))
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.executemany(
                    f"INSERT INTO answers ({_COLUMNS}) VALUES ({marks}) ON CONFLICT(key) DO UPDATE SET "
                    + ", ".join(f"{name} = excluded.{name}" for name in _COLUMNS.split(", ")[1:])
                    + " WHERE answers.error IS NOT NULL",
                    rows,
                )
                self._db.execute("COMMIT")
            except sqlite3.Error:
                self._db.execute("ROLLBACK")
                raise

    def add_rate(self, at: str, prompts: int, seconds: float) -> None:
        """Remember how fast a run was asked, for the next estimate."""
        with self._errors():
            self._db.execute("INSERT OR REPLACE INTO rates VALUES (?, ?, ?)", (at, prompts, seconds))

    def rate(self) -> float | None:
        """Prompts a second over the latest runs of this target, None before the first."""
        with self._errors():
            rows = self._db.execute("SELECT prompts, seconds FROM rates ORDER BY at DESC LIMIT 5").fetchall()
        seconds = sum(row[1] for row in rows)
        return sum(row[0] for row in rows) / seconds if seconds else None

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as exc:
            raise StorageError(
                f"{self.path}: the journal cannot be used: {exc}",
                hint="free some space or set HARNESS_CACHE to a folder that can be written",
            ) from exc


def _to_row(key: bytes, o: Observation) -> tuple[object, ...]:
    return (
        key,
        None if o.token_ids is None else np.asarray(o.token_ids, "<i4").tobytes(),
        json.dumps(o.tokens, ensure_ascii=False) if o.tokens else None,
        np.asarray(o.logprobs, "<f4").tobytes(),
        o.covered_mass,
        o.mode,
        o.mass_low,
        o.mass_high,
        o.hits,
        o.n_draws,
        o.bias,
        o.error,
        o.attempts,
        o.latency_s,
    )


def _from_row(row: tuple[object, ...]) -> Observation:
    _, token_ids, tokens, logprobs, covered, mode, low, high, hits, n_draws, bias, error, attempts, latency = row
    return Observation(
        token_ids=None if token_ids is None else np.frombuffer(token_ids, "<i4"),  # type: ignore[call-overload]
        tokens=tuple(json.loads(tokens)) if tokens else (),  # type: ignore[arg-type]
        logprobs=np.frombuffer(logprobs, "<f4"),  # type: ignore[call-overload]
        covered_mass=covered,  # type: ignore[arg-type]
        mode=None if mode is None else Mode(str(mode)),
        mass_low=low,  # type: ignore[arg-type]
        mass_high=high,  # type: ignore[arg-type]
        hits=hits,  # type: ignore[arg-type]
        n_draws=n_draws,  # type: ignore[arg-type]
        bias=bias,  # type: ignore[arg-type]
        error=error,  # type: ignore[arg-type]
        attempts=attempts,  # type: ignore[arg-type]
        latency_s=latency,  # type: ignore[arg-type]
    )
