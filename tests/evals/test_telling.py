"""The verdict's sentence, for a reader who has not read the paper."""

from __future__ import annotations

from typing import Any

import pytest

from harness.evals.measures import ALL
from harness.evals.telling import failure, sentence

Row = dict[str, Any]
CONCEPTS = ("animal", "color", "music")


def row(estimate: float | None, half: float | None = 0.1, *, concept: str = ALL, **more: Any) -> Row:
    ends = (None, None) if estimate is None or half is None else (estimate - half, estimate + half)
    names = {"concept": concept, "arm": "high", "control": "matched", "metric": "delta_log_odds"}
    values = {"estimate": estimate, "estimate_low": estimate, "estimate_high": estimate, "ci_low": ends[0], "ci_high": ends[1]}
    return {**names, **values, "margin": 0.1, "mde": 0.08, "within_margin": False} | more


def told(verdict: str, claim: Row | None, **more: Any) -> str:
    result = {"verdict": verdict, "withheld": None, "reason": None, "power": 0.8} | more
    rows = [row(0.2, concept=concept) for concept in CONCEPTS]
    return sentence(result, claim, [*rows, claim] if claim else rows)


CONTROLS = "control words alike in length and frequency"


@pytest.mark.parametrize(
    ("verdict", "claim", "more", "expected"),
    [
        (
            "transfers",
            row(0.27),
            {},
            "transfers: words that interfere with the concept move the next word towards it more than "
            f"{CONTROLS} do: +0.27 nat [0.17, 0.37] over 3 concepts (odds times 1.31)",
        ),
        (
            "transfers",
            row(0.06, 0.02, within_margin=True),
            {},
            "transfers: words that interfere with the concept move the next word towards it more than "
            f"{CONTROLS} do: +0.06 nat [0.04, 0.08] over 3 concepts (odds times 1.06), less than would matter",
        ),
        (
            "reversed",
            row(-0.27),
            {},
            f"reversed: words that interfere with the concept move the next word away from it, against {CONTROLS}: "
            "-0.27 nat [-0.37, -0.17] over 3 concepts (odds times 0.76)",
        ),
        (
            "no evidence",
            row(0.02),
            {},
            f"no evidence: words that interfere with the concept are not seen to move the next word otherwise than {CONTROLS} "
            "do: +0.02 nat [-0.08, 0.12] over 3 concepts; a shift of 0.08 nat would have been seen with 80% power",
        ),
        (
            "no evidence",
            row(0.0, 0.05, within_margin=True),
            {},
            f"no evidence: words that interfere with the concept are not seen to move the next word otherwise than {CONTROLS} "
            "do: +0.00 nat [-0.05, 0.05] over 3 concepts; no shift as large as 0.10 nat, in either direction",
        ),
        (
            "undetermined",
            row(0.1, 0.2),
            {"reason": "the run is too small"},
            f"undetermined: words that interfere with the concept are not seen to move the next word otherwise than {CONTROLS} "
            "do: +0.10 nat [-0.10, 0.30] over 3 concepts; the run is too small",
        ),
        (
            "undetermined",
            row(0.1, None),
            {"reason": "no variation"},
            f"undetermined: words that interfere with the concept against {CONTROLS}: no variation",
        ),
        ("undetermined", None, {"reason": "no trials"}, "undetermined: no trials"),
    ],
)
def test_the_sentence_says_what_was_found_and_how_much(verdict: str, claim: Row | None, more: Row, expected: str) -> None:
    assert told(verdict, claim, **more) == expected


def test_a_withheld_verdict_says_what_was_found_and_why_it_does_not_count() -> None:
    text = told("undetermined", row(0.27), withheld="transfers", reason="the check failed")
    assert text.startswith("undetermined, the verdict is withheld: words that interfere with the concept move the next word")
    assert text.endswith("towards it: +0.27 nat [0.17, 0.37] over 3 concepts; but the check failed")


def test_a_lone_concept_is_named() -> None:
    assert "[0.17, 0.37] on music alone" in told("transfers", row(0.27, concept="music"))


def test_shares_are_told_in_points() -> None:
    text = told("transfers", row(0.0118, 0.005, metric="count_success"))
    assert text.endswith("do: +1.2 points [0.7, 1.7] over 3 concepts")


def test_a_shift_that_lists_leave_undecided_is_told_with_its_bounds() -> None:
    text = told("transfers", row(0.3, estimate_low=0.22, estimate_high=0.38))
    assert "over 3 concepts (the listed tokens leave it between +0.22 nat and +0.38 nat)" in text


def test_a_failed_check_says_what_should_have_been() -> None:
    check = row(0.23) | {"check": "silent", "arm": "shuffled", "reason": "found", "n_found": 4, "n_concepts": 13}
    assert failure(check, metric="delta_log_odds") == (
        "words that interfere with another concept, which should not, move it too: +0.23 nat [0.13, 0.33]"
    )
    assert failure(check | {"reason": "found in 4 of 13 concepts"}, metric="delta_log_odds") == (
        "words that interfere with another concept, which should not, move it too: in 4 of 13 concepts, far more often than by "
        "chance"
    )
    missed = check | {"check": "detected", "arm": "related", "reason": "not found"}
    assert failure(missed, metric="delta_log_odds") == (
        "the run does not see what it must see: words near the concept in meaning against "
        f"{CONTROLS} are not found (+0.23 nat [0.13, 0.33])"
    )
