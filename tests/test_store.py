"""The journal keeps answers under everything they depend on, and nothing is lost when its process is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness.errors import StorageError
from harness.records import Capabilities, Lexicon, Mode, Observation, Prompt, Readout, TargetInfo
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
