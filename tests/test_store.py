"""The journal keeps answers under everything they depend on, and nothing is lost when its process is killed."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import store
from harness.errors import StorageError
from harness.records import Capabilities, Lexicon, Lists, Mode, Observation, Prompt, Readout, TargetInfo
from harness.store import KEY_BYTES, Journal, KeyMaker

INFO = TargetInfo(
    target="t",
    endpoint="http://e",
    model="m",
    revision="r",
    tokenizer_digest="d",
    settings={"dtype": "bfloat16"},
    capabilities=Capabilities(token_ids=True, max_logprobs=None, mode=Mode.EXACT, max_prompts_per_request=1),
)
PROMPT = Prompt(
    prompt_id="p",
    concept="c",
    arm="high",
    sentence_id="s",
    injection_id="i",
    template="t",
    group="g",
    text="x",
    token_ids=(1, 2),
)
READOUT = Readout(
    lexicon=Lexicon(concept="c", words=frozenset(), token_ids=None, resolved_share=None, digest="L"), n_logprobs=30
)

K, OTHER = b"k" * KEY_BYTES, b"o" * KEY_BYTES


def key(info: TargetInfo = INFO, prompt: Prompt = PROMPT, readout: Readout = READOUT) -> bytes:
    return KeyMaker(info).keys([prompt], readout)[0]


def test_whatever_changes_an_answer_changes_its_key() -> None:
    other_lexicon = replace(READOUT, lexicon=replace(READOUT.lexicon, digest="M"))
    keys = [
        key(),
        key(replace(INFO, endpoint="http://f")),
        key(replace(INFO, model="n")),
        key(replace(INFO, revision="s")),
        key(replace(INFO, tokenizer_digest="e")),
        key(replace(INFO, settings={"dtype": "float32"})),
        key(prompt=replace(PROMPT, token_ids=(1, 3))),
        key(prompt=replace(PROMPT, token_ids=None)),
        key(readout=replace(READOUT, n_logprobs=31)),
        key(readout=other_lexicon),
    ]
    assert len(set(keys)) == len(keys)
    assert key(prompt=replace(PROMPT, prompt_id="q", arm="low", concept="d")) == key(), "bookkeeping is no part of an answer"


def test_a_list_of_tokens_serves_every_lexicon() -> None:
    topk = replace(INFO, capabilities=replace(INFO.capabilities, mode=Mode.TOPK))
    other_lexicon = replace(READOUT, lexicon=replace(READOUT.lexicon, digest="M"))
    assert key(topk, readout=other_lexicon) == key(topk)


def test_answers_come_back_as_they_went_in(tmp_path: Path) -> None:
    answer = Observation(
        token_ids=np.array([3, 1], np.int32),
        tokens=(" ä", "\x00"),
        logprobs=np.array([-0.5, -1.5], np.float32),
        covered_mass=0.83,
        mode=Mode.TOPK,
        mass_low=0.1,
        mass_high=0.2,
        attempts=2,
        latency_s=0.25,
    )
    with Journal(tmp_path / "j.sqlite") as journal:
        journal.put([(K, answer)])
    with Journal(tmp_path / "j.sqlite") as journal:
        (back,) = journal.get([K, OTHER]).values()
    assert back.token_ids is not None
    assert back.token_ids.tolist() == [3, 1]
    assert back.logprobs.tolist() == [-0.5, -1.5]
    names = ("tokens", "covered_mass", "mode", "mass_low", "mass_high", "error", "attempts", "latency_s")
    assert [getattr(back, name) for name in names] == [getattr(answer, name) for name in names]


def test_an_answer_replaces_a_failure_and_nothing_replaces_an_answer(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.sqlite") as journal:
        for observation in (Observation(error="HTTP 500"), Observation(covered_mass=0.5), Observation(error="late")):
            journal.put([(K, observation)])
        (back,) = journal.get([K]).values()
    assert (back.error, back.covered_mass) == (None, 0.5)


def test_rates_are_remembered(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.sqlite") as journal:
        assert journal.rate() is None
        journal.add_rate("2026-01-01", 100, 4.0)
        journal.add_rate("2026-01-02", 100, 1.0)
        assert journal.rate() == pytest.approx(40)


def test_a_file_that_is_no_journal_is_named(tmp_path: Path) -> None:
    (tmp_path / "j.sqlite").write_text("not a database, " * 100)
    with pytest.raises(StorageError, match=r"j\.sqlite: the journal cannot be used"):
        Journal(tmp_path / "j.sqlite")


def test_a_killed_process_leaves_whole_batches(tmp_path: Path) -> None:
    writer = (
        "import sys; from pathlib import Path; from harness.store import Journal; from harness.records import Observation\n"
        "with Journal(Path(sys.argv[1])) as j:\n"
        "    for b in range(10**6):\n"
        "        j.put([(b'%08d%08d' % (b, i), Observation(covered_mass=1.0)) for i in range(10)])\n"
        "        print(b, flush=True)\n"
    )
    path = tmp_path / "j.sqlite"
    process = subprocess.Popen([sys.executable, "-c", writer, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "0\n"
    time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    written = [0, *(int(line) for line in process.stdout.read().split())]
    process.wait()
    process.stdout.close()
    with Journal(path) as journal:
        for batch in range(written[-1] + 2):
            found = journal.get([b"%08d%08d" % (batch, i) for i in range(10)])
            assert len(found) == 10 or (batch == written[-1] + 1 and not found)


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=1, max_size=6), max_size=25),
    st.integers(0, 8),
)
def test_the_first_answer_of_a_key_counts_else_its_last_failure(blocks: list[list[tuple[int, bool]]], many: int) -> None:
    """Against a dictionary; `many` keys stay out of the sorted arrays."""
    expected: dict[bytes, tuple[bool, float]] = {}
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patched:
        patched.setattr(store, "_NEW_KEYS", many)
        with Journal(Path(folder) / "j.sqlite") as journal:
            for number, block in enumerate(blocks):
                put = []
                for place, (name, fails) in enumerate(block):
                    own, value = name.to_bytes(KEY_BYTES), number + place / 100
                    put.append((own, Observation(error="no", latency_s=value) if fails else Observation(latency_s=value)))
                    if own not in expected or expected[own][0]:
                        expected[own] = (fails, value)
                journal.put(put)
                asked = [name.to_bytes(KEY_BYTES) for name in range(14)]
                found = journal.get(asked)
                assert {k: (o.error is not None, o.latency_s) for k, o in found.items()} == expected
                assert journal.answered(asked) == [k in expected and not expected[k][0] for k in asked]


def test_what_another_process_puts_is_seen(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.sqlite") as one, Journal(tmp_path / "j.sqlite") as other:
        assert one.answered([K]) == [False]
        other.put([(K, Observation(covered_mass=0.5))])
        assert one.answered([K, OTHER]) == [True, False]
        assert one.get([K])[K].covered_mass == 0.5
        assert one.count() == other.count() == 1


def test_answers_of_every_mode_come_back_from_one_block(tmp_path: Path) -> None:
    answers = [
        Observation(token_ids=np.array([5, 2, 9], np.int32), logprobs=np.array([-1, -2, -3], np.float32), mode=Mode.EXACT),
        Observation(error="HTTP 500: \ud83d", attempts=3),
        Observation(tokens=("\ud83d", "a"), logprobs=np.array([-1, -2], np.float32), mode=Mode.TOPK),
        Observation(tokens=("dog",), logprobs=np.array([0.0], np.float32), mode=Mode.AMPLIFIED, hits=3, n_draws=8, bias=6.5),
        Observation(token_ids=np.array([], np.int32), mass_low=0.25, mass_high=0.5, latency_s=1.5),
    ]
    keys = [i.to_bytes(KEY_BYTES) for i in range(len(answers))]
    with Journal(tmp_path / "j.sqlite") as journal:
        journal.put(zip(keys, answers, strict=True))
        found = journal.get(keys)
    for key_, answer in zip(keys, answers, strict=True):
        for name in Observation.__slots__:
            back, went = getattr(found[key_], name), getattr(answer, name)
            if isinstance(went, np.ndarray):
                assert back.dtype == went.dtype
                assert back.tolist() == went.tolist()
            else:
                assert back == went
                assert type(back) is type(went)


def test_a_journal_of_an_earlier_version_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "j.sqlite"
    with closing(sqlite3.connect(path)) as db:
        db.execute(
            "CREATE TABLE answers (key BLOB PRIMARY KEY, token_ids BLOB, tokens TEXT, logprobs BLOB, covered_mass REAL,"
            " mode TEXT, mass_low REAL, mass_high REAL, error TEXT, attempts INTEGER NOT NULL, latency_s REAL NOT NULL)"
            " WITHOUT ROWID"
        )
        ids, logprobs = np.array([4, 7], "<i4").tobytes(), np.array([-0.5, -1.5], "<f4").tobytes()
        db.execute("INSERT INTO answers VALUES (?, ?, NULL, ?, 0.8, 'topk', NULL, NULL, NULL, 2, 0.25)", (K, ids, logprobs))
        db.execute("INSERT INTO answers VALUES (?, NULL, NULL, x'', NULL, NULL, NULL, NULL, 'HTTP 500', 4, 9.0)", (OTHER,))
        db.execute(
            "INSERT INTO answers VALUES (?, NULL, '[\" a\"]', x'00000000', 1, 'topk', NULL, NULL, NULL, 1, 0)", (bytes(16),)
        )
        db.commit()
    for _ in range(2):
        with Journal(path) as journal:
            found = journal.get([K, OTHER, bytes(16)])
            assert journal.answered([K, OTHER, bytes(16)]) == [True, False, True]
    assert found[K].token_ids is not None
    assert (found[K].token_ids.tolist(), found[K].logprobs.tolist()) == ([4, 7], [-0.5, -1.5])
    assert (found[K].covered_mass, found[K].mode, found[K].attempts, found[K].hits) == (0.8, Mode.TOPK, 2, None)
    assert (found[OTHER].error, found[OTHER].attempts, found[OTHER].mode) == ("HTTP 500", 4, None)
    assert found[bytes(16)].tokens == (" a",)


def test_a_key_that_is_none_is_refused(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.sqlite") as journal, pytest.raises(ValueError, match="16 bytes"):
        journal.put([(b"short", Observation())])


def test_a_folder_that_is_a_file_is_an_error_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(StorageError, match=r"cannot be written: (File exists|Not a directory)") as caught:
        Journal(tmp_path / "cache" / "j.sqlite")
    assert "HARNESS_CACHE" in (caught.value.hint or "")


def test_a_full_disk_is_an_error_and_what_was_kept_is_readable(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: the system fails the write either way."""
    script = (
        "import resource, sys; from pathlib import Path; from harness.store import Journal\n"
        "from harness.errors import StorageError; from harness.records import Observation\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, 1 << 18))\n"
        "with Journal(Path(sys.argv[1])) as j:\n"
        "    for b in range(10**4):\n"
        "        try:\n"
        "            j.put([(b'%08d%08d' % (b, i), Observation(error='x' * 100)) for i in range(20)])\n"
        "        except StorageError as exc:\n"
        "            assert len(j.get([b'%08d%08d' % (b - 1, i) for i in range(20)])) == 20\n"
        "            print(b, exc, exc.hint, sep='|')\n"
        "            break\n"
    )
    path = tmp_path / "j.sqlite"
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    batches, said, hint = done.stdout.strip().split("|")
    assert int(batches) > 10
    assert "the journal cannot be used: " in said
    assert hint == "free some space or set HARNESS_CACHE to a folder that can be written"
    with Journal(path) as journal:
        keys = [b"%08d%08d" % (batch, i) for batch in range(int(batches)) for i in range(20)]
        assert len(journal.get(keys)) == len(keys)
        journal.put([(K, Observation())])
        assert journal.answered([K]) == [True]


def test_answers_in_arrays_come_back_one_by_one_beside_others(tmp_path: Path) -> None:
    lists = Lists(
        token_ids=np.array([[5, 2], [9, 1]], np.int32),
        logprobs=np.array([[-1, -2], [-0.5, -3]], np.float32),
        covered_mass=[0.5, 0.65],
        mode=Mode.TOPK,
        attempts=[1, 3],
        latency_s=[0.25, 0.5],
    )
    keys = [bytes([i]) * KEY_BYTES for i in range(4)]
    alone = [Observation(error="no"), Observation(tokens=("a",), logprobs=np.array([-1], np.float32))]
    with Journal(tmp_path / "j.sqlite") as journal:
        journal.write(store.pack([(keys[:1], alone[:1]), (keys[1:3], lists), (keys[3:], alone[1:])]))
        found = journal.get(keys)
        assert journal.answered(keys) == [False, True, True, True]
        assert journal.count() == 3
    for own, went in zip(keys, [alone[0], *lists.observations(), alone[1]], strict=True):
        for name in Observation.__slots__:
            back, expected = getattr(found[own], name), getattr(went, name)
            if isinstance(expected, np.ndarray):
                assert back.tolist() == expected.tolist()
            else:
                assert back == expected
