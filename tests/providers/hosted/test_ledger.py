"""The batch tables: which line of a job counts, and what is remembered of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.providers.http.batch import Result
from harness.providers.http.ledger import NO_ANSWER, Ledger, custom_id, read_id
from harness.records import Capabilities, Mode, TargetInfo

A, B = b"a" * 16, b"b" * 16
INFO = TargetInfo(
    target="t",
    endpoint="here",
    model="m",
    revision=None,
    tokenizer_digest=None,
    settings={},
    capabilities=Capabilities(token_ids=False, max_logprobs=0, mode=Mode.SAMPLED, max_prompts_per_request=1),
)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """A ledger with one job out: two lines of prompt A, one of prompt B."""
    with Ledger(tmp_path / "t.sqlite", INFO) as made:
        made.prepare("tag", [(A, 0, 1), (A, 1, 1), (B, 0, 1)])
        made.submitted("tag", "batch_1")
        yield made


def said(key: bytes, number: int, text: str) -> Result:
    usage = {"input_tokens": 3, "output_tokens": 1}
    return Result(custom_id=custom_id(key, number), answer={"text": text, "usage": usage}, status=200)


def failed(key: bytes, number: int, status: int | None) -> Result:
    return Result(custom_id=custom_id(key, number), reason=f"failed with {status}", status=status)


def test_the_name_of_a_line_is_short_and_plain_and_read_back() -> None:
    name = custom_id(A, 12345)
    assert len(name) <= 64
    assert set(name) <= set("0123456789abcdef-")
    assert read_id(name) == (A, 12345)


@pytest.mark.parametrize("text", ["", "request-1", "xyz-0", custom_id(A, 0)[:-1], "-"])
def test_other_names_are_none_of_ours(text: str) -> None:
    assert read_id(text) is None


def test_of_two_different_answers_the_first_counts_and_equal_ones_are_no_contradiction(ledger: Ledger) -> None:
    results = [said(A, 0, "dog"), said(A, 1, "cat"), said(A, 0, "cow"), said(A, 1, "cat"), said(B, 0, "fox")]
    collected = ledger.collect("tag", results)
    assert (collected.answered, collected.failed, collected.contradicted, collected.unknown) == (3, 0, 1, 0)
    lines = ledger.lines([A])[A]
    assert [lines[number].answer["text"] for number in (0, 1)] == ["dog", "cat"]
    assert (lines[0].input_tokens, lines[0].output_tokens) == (3, 1)


def test_an_answer_outweighs_an_error_wherever_it_stands(ledger: Ledger) -> None:
    ledger.collect("tag", [failed(A, 0, 400), said(A, 0, "dog"), said(A, 1, "cat"), failed(A, 1, 500)])
    lines = ledger.lines([A, B])
    assert [lines[A][number].answer["text"] for number in (0, 1)] == ["dog", "cat"]
    assert (lines[B][0].answer, lines[B][0].reason, lines[B][0].final) == (None, NO_ANSWER, False)


@pytest.mark.parametrize(
    ("status", "final"), [(400, True), (422, True), (404, False), (429, False), (500, False), (None, False)]
)
def test_only_what_is_refused_for_what_it_holds_is_final(ledger: Ledger, status: int | None, final: bool) -> None:
    ledger.collect("tag", [failed(A, 0, status)])
    assert ledger.lines([A])[A][0].final is final


def test_a_job_is_out_until_it_is_collected_and_a_dropped_one_never_was(ledger: Ledger) -> None:
    ledger.prepare("cut off", [(b"c" * 16, 0, 1)])
    assert [(job.tag, job.job, job.n_lines) for job in ledger.out()] == [("tag", "batch_1", 3), ("cut off", None, 1)]
    assert ledger.known() == {"batch_1"}
    ledger.drop("cut off")
    assert not ledger.lines([b"c" * 16])
    assert all(line.open for line in ledger.lines([A])[A].values())
    ledger.collect("tag", [], "the file was refused")
    assert ledger.out() == []
    assert {line.reason for line in ledger.lines([A])[A].values()} == {"the file was refused"}


def test_a_later_round_stands_for_a_line_until_one_has_answered(ledger: Ledger) -> None:
    ledger.collect("tag", [said(A, 0, "dog")])
    ledger.prepare("again", [(A, 1, 2)])
    assert (ledger.lines([A])[A][1].round, ledger.lines([A])[A][1].open) == (2, True)
    ledger.collect("again", [said(A, 1, "cat")])
    lines = ledger.lines([A])[A]
    assert [(lines[number].round, lines[number].answer["text"]) for number in (0, 1)] == [(1, "dog"), (2, "cat")]


def test_another_jobs_line_is_unknown(ledger: Ledger) -> None:
    collected = ledger.collect("tag", [said(b"c" * 16, 0, "dog"), said(A, 7, "dog")])
    assert (collected.answered, collected.unknown) == (0, 2)


def test_answers_outlive_the_process_and_are_forgotten_when_told(tmp_path: Path) -> None:
    path = tmp_path / "t.sqlite"
    with Ledger(path, INFO) as ledger:
        ledger.prepare("tag", [(A, 0, 1)])
        ledger.collect("tag", [said(A, 0, "dog")])
    with Ledger(path, INFO) as ledger:
        assert ledger.lines([A])[A][0].answer["text"] == "dog"
        ledger.forget([A])
        assert not ledger.lines([A])
