"""The journal: every answer as it arrives, under a key that holds everything the answer depends on.

One SQLite file (write-ahead log) for each target. What is put together is one block, in one transaction, so a process killed at
any moment leaves whole blocks. Blocks are only ever added: where a key's rows are kept apart, random keys touch a page each,
and writing costs more than asking. Failures are kept for the record and never taken for an answer.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from harness.errors import StorageError
from harness.paths import writing
from harness.records import Lists, Mode, Observation, Prompt, Readout, TargetInfo

KEY_BYTES = 16

_SCHEMA = """
CREATE TABLE IF NOT EXISTS blocks (
    id INTEGER PRIMARY KEY, answered INTEGER NOT NULL, keys BLOB NOT NULL, failed BLOB NOT NULL, data BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS rates (at TEXT PRIMARY KEY, prompts INTEGER NOT NULL, seconds REAL NOT NULL);
"""
_HINT = "free some space or set HARNESS_CACHE to a folder that can be written"
_BLOCKS_AT_HAND = 16
"""Blocks kept unpacked: prompts that stand together in a plan lie in a few blocks, those that were under way together."""

_PLAIN = (
    "tokens",
    "covered_mass",
    "mode",
    "mass_low",
    "mass_high",
    "hits",
    "n_draws",
    "bias",
    "error",
    "attempts",
    "latency_s",
)


Block = tuple[int, bytes, bytes, bytes]
"""How many answers, the keys, which ones failed, and the observations: a row of the journal."""


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
        base = hashlib.blake2b(self._identity, digest_size=KEY_BYTES)
        mode = readout.mode or self._best
        lexicon = "" if mode is Mode.TOPK else f"{mode}|{readout.n_draws}|{readout.lexicon.digest}"
        base.update(f"|{readout.n_logprobs}|{lexicon}|".encode())
        return [_key(base, prompt) for prompt in prompts]


def _key(base: hashlib.blake2b, prompt: Prompt) -> bytes:
    digest = base.copy()
    if prompt.token_ids is None:
        digest.update(b"text" + prompt.text.encode())
    else:
        digest.update(b"ids" + array("i", prompt.token_ids).tobytes())
    return digest.digest()


class Journal:
    """Answers by key. Use as a context manager; every method raises StorageError for what SQLite reports.

    One thread may put while another one looks up.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._index = _Index()
        self._block = lru_cache(maxsize=_BLOCKS_AT_HAND)(self._read_block)
        with writing(path.parent, hint=_HINT):
            path.parent.mkdir(parents=True, exist_ok=True)
        with self._errors():
            self._db = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            # A killed process loses nothing at NORMAL; only a power cut could take the last transactions, never the file.
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(_SCHEMA)
            if self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'answers'").fetchone():
                self._take_over_rows()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._lock:  # a put that is under way in another thread ends first
            self._db.close()

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Observation]:
        """What is journalled under `keys`, failures included (their `error` is set)."""
        with self._errors():
            self._look_for_new_blocks()
            places = self._index.find(keys)
            return {
                key: self._block(place >> _PLACE_BITS).observation(place & _PLACE_MASK)
                for key, place in zip(keys, places, strict=True)
                if place >= 0
            }

    def answered(self, keys: Sequence[bytes]) -> list[bool]:
        """Whether each key has an answer; a failure is none."""
        with self._errors():
            self._look_for_new_blocks()
            return self._index.answered(keys)

    def count(self) -> int:
        """How many answers there are."""
        with self._errors():
            return int(self._db.execute("SELECT coalesce(sum(answered), 0) FROM blocks").fetchone()[0])

    def put(self, answers: Iterable[tuple[bytes, Observation]]) -> None:
        """Keep `answers` in one transaction. Of several under one key the first answer counts, else the last failure."""
        pairs = list(answers)
        if pairs:
            self.write(pack([([key for key, _ in pairs], [observation for _, observation in pairs])]))

    def write(self, block: Block) -> None:
        """Keep what `pack` packed: all that waits for the disk, without the interpreter's lock."""
        with self._errors():
            self._insert(block)

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

    def _insert(self, block: Block) -> None:
        self._db.execute("INSERT INTO blocks (answered, keys, failed, data) VALUES (?, ?, ?, ?)", block)

    def _look_for_new_blocks(self) -> None:
        """Take in what was put since the last look, here or by another process."""
        rows = self._db.execute("SELECT id, keys, failed FROM blocks WHERE id > ? ORDER BY id", (self._index.last_block,))
        self._index.add(rows.fetchall())

    def _read_block(self, number: int) -> _Block:
        return _Block(self._db.execute("SELECT data FROM blocks WHERE id = ?", (number,)).fetchone()[0])

    def _take_over_rows(self) -> None:
        """Journals of an earlier version hold a row for each key."""
        have = {row[1] for row in self._db.execute("PRAGMA table_info(answers)")}
        names = [name for name in ("key", "token_ids", "logprobs", *_PLAIN) if name in have]
        self._db.execute("BEGIN IMMEDIATE")
        rows = self._db.execute(f"SELECT {', '.join(names)} FROM answers")
        while part := rows.fetchmany(512):
            found = [dict(zip(names, row, strict=True)) for row in part]
            self._insert(pack([([row.pop("key") for row in found], [_of_row(row) for row in found])]))
        self._db.execute("DROP TABLE answers")
        self._db.execute("COMMIT")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            with self._lock:
                yield
        except sqlite3.Error as exc:
            with suppress(sqlite3.Error):  # nothing to undo, or nothing that can be undone
                self._db.rollback()
            raise StorageError(f"{self.path}: the journal cannot be used: {exc}", hint=_HINT) from exc


_NEW_KEYS = 1 << 16
_PLACE_BITS = 20
_PLACE_MASK = (1 << _PLACE_BITS) - 1
_FAILED = 1 << 62
"""Added to the place of a failure, so that in order of places any answer comes before it."""


class _Index:
    """Where each key lies: block and place in one number. Sorted arrays; the newest keys stand in a dict till they are many."""

    def __init__(self) -> None:
        self.last_block = 0
        self._keys: NDArray[np.bytes_] = np.empty(0, f"S{KEY_BYTES}")
        self._places = np.empty(0, np.int64)
        self._new: dict[bytes, int] = {}

    def add(self, blocks: Sequence[tuple[int, bytes, bytes]]) -> None:
        """Take in blocks (number, keys, which failed), in the order of their numbers."""
        for number, keys, failed in blocks:
            self.last_block = number
            for i, key_failed in enumerate(failed):
                key = keys[i * KEY_BYTES : (i + 1) * KEY_BYTES]
                place = (number << _PLACE_BITS | i) + (_FAILED if key_failed else 0)
                known = self._new.get(key)
                if known is None or known >= _FAILED:
                    self._new[key] = place
            if len(self._new) > max(_NEW_KEYS, len(self._keys) // 4):
                self._merge()

    def find(self, keys: Sequence[bytes]) -> list[int]:
        """The place of each key's answer or failure, -1 where there is neither."""
        return [place if place < 0 else place & ~_FAILED for place in self._find(keys)]

    def answered(self, keys: Sequence[bytes]) -> list[bool]:
        """Whether each key has an answer."""
        return [0 <= place < _FAILED for place in self._find(keys)]

    def _find(self, keys: Sequence[bytes]) -> list[int]:
        newer = [self._new.get(key, -1) for key in keys]
        if not len(self._keys):
            return newer
        wanted = np.frombuffer(b"".join(keys), self._keys.dtype)
        at = np.searchsorted(self._keys, wanted)
        at[at == len(self._keys)] = 0
        older = np.where(self._keys[at] == wanted, self._places[at], -1).tolist()
        return [old if 0 <= old < _FAILED or new < 0 else new for old, new in zip(older, newer, strict=True)]

    def _merge(self) -> None:
        """An answer stands before a later one, and a failure behind a later one: of each key the first in this order stays."""
        fresh = np.frombuffer(b"".join(self._new), self._keys.dtype)
        keys = np.concatenate([self._keys, fresh])
        places = np.concatenate([self._places, np.fromiter(self._new.values(), np.int64, len(self._new))])
        order = np.lexsort((np.where(places >= _FAILED, np.iinfo(np.int64).max - places, places), keys))
        keys, places = keys[order], places[order]
        first = np.ones(len(keys), bool)
        first[1:] = keys[1:] != keys[:-1]
        self._keys, self._places = keys[first], places[first]
        self._new.clear()


class _Block:
    """The observations of one block, unpacked one by one as they are asked for."""

    def __init__(self, data: bytes) -> None:
        length = int.from_bytes(data[:4], "little")
        head: dict[str, Any] = _loads(data[4 : 4 + length])
        self._lengths: list[int] = head.pop("n_logprobs")
        self._n_ids: list[int | None] = head.pop("n_ids") or [None] * len(self._lengths)
        self._columns = {name: values for name, values in head.items() if values is not None}
        n_ids = sum(n or 0 for n in self._n_ids)
        self._ids = np.frombuffer(data, "<i4", n_ids, 4 + length)
        self._logprobs = np.frombuffer(data, "<f4", sum(self._lengths), 4 + length + 4 * n_ids)
        self._ids_from = [0, *accumulate(n or 0 for n in self._n_ids)]
        self._from = [0, *accumulate(self._lengths)]

    def observation(self, place: int) -> Observation:
        """The observation at `place`."""
        fields = {name: values[place] for name, values in self._columns.items()}
        fields["tokens"] = tuple(fields.get("tokens") or ())
        if (mode := fields.get("mode")) is not None:
            fields["mode"] = Mode(mode)
        ids = None
        if self._n_ids[place] is not None:
            ids = self._ids[self._ids_from[place] : self._ids_from[place + 1]]
        return Observation(token_ids=ids, logprobs=self._logprobs[self._from[place] : self._from[place + 1]], **fields)


def pack(answers: Sequence[tuple[Sequence[bytes], Lists | Sequence[Observation]]]) -> Block:
    """A block of what came under these keys."""
    keys = [key for part, _ in answers for key in part]
    if set(map(len, keys)) != {KEY_BYTES}:
        raise ValueError(f"a key of the journal has {KEY_BYTES} bytes")
    parts = [part for _, part in answers]
    failed = b"".join(
        bytes(len(part)) if isinstance(part, Lists) else bytes(one.error is not None for one in part) for part in parts
    )
    return len(failed) - sum(failed), b"".join(keys), failed, _pack(parts)


def _pack(parts: Sequence[Lists | Sequence[Observation]]) -> bytes:
    """A JSON head with its length before it, then the ids and the log-probabilities of all; `_Block` reads it.

    A column that is empty throughout is null.
    """
    columns: dict[str, list[Any]] = {name: [] for name in (*_PLAIN, "n_ids", "n_logprobs")}
    ids: list[bytes] = []
    logprobs: list[bytes] = []
    for part in parts:
        if isinstance(part, Lists):
            n, length = part.logprobs.shape
            alike = dict.fromkeys(_PLAIN) | {"mode": part.mode, "n_ids": length, "n_logprobs": length}
            own: dict[str, Sequence[Any]] = {name: [value] * n for name, value in alike.items()}
            own |= {"covered_mass": part.covered_mass, "attempts": part.attempts, "latency_s": part.latency_s}
            ids.append(np.asarray(part.token_ids, "<i4").tobytes())
            logprobs.append(np.asarray(part.logprobs, "<f4").tobytes())
        else:
            own = {name: [getattr(one, name) for one in part] for name in _PLAIN}
            own["n_ids"] = [None if one.token_ids is None else len(one.token_ids) for one in part]
            own["n_logprobs"] = [len(one.logprobs) for one in part]
            ids += [np.asarray(one.token_ids, "<i4").tobytes() for one in part if one.token_ids is not None]
            logprobs += [np.asarray(one.logprobs, "<f4").tobytes() for one in part]
        for name, values in own.items():
            columns[name] += values
    head = _dumps(
        {name: values if any(v is not None and v != () for v in values) else None for name, values in columns.items()}
    )
    return b"".join((len(head).to_bytes(4, "little"), head, *ids, *logprobs))


def _dumps(head: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(head, option=orjson.OPT_SERIALIZE_NUMPY)
    except TypeError:  # text that is no Unicode, half of a pair of surrogates
        return json.dumps(head).encode()


def _loads(head: bytes) -> Any:
    try:
        return orjson.loads(head)
    except orjson.JSONDecodeError:
        return json.loads(head)


def _of_row(row: dict[str, Any]) -> Observation:
    """A row of an earlier version's table."""
    ids, logprobs, tokens, mode = (row.pop(name) for name in ("token_ids", "logprobs", "tokens", "mode"))
    return Observation(
        token_ids=None if ids is None else np.frombuffer(ids, "<i4"),
        tokens=tuple(json.loads(tokens)) if tokens else (),
        logprobs=np.frombuffer(logprobs, "<f4"),
        mode=None if mode is None else Mode(mode),
        **row,
    )
