"""Two endpoints whose truth is known: the verdict, the first cause, and what is said to be unseen."""

from __future__ import annotations

import dataclasses
import json

import pytest

from harness.compare.diagnosis import CUT, OTHER_WEIGHTS, ROUNDED, TEMPERATURE, TEMPLATE
from harness.compare.identity import Rule
from harness.compare.result import CompareResult
from harness.errors import CapabilityError
from harness.records import Mode
from harness.reports.compare_page import render_compare

from .toy import (
    QUICK,
    Change,
    ToyProvider,
    another_model,
    compared,
    cooled,
    cut_context,
    noisy,
    sometimes,
    weights,
)

SCORED = dataclasses.replace(QUICK, n_prompts=12, repeats=2, eval_name="transfer", concepts=("animal", "body"), limit=3)


def checked(result: CompareResult, name: str) -> tuple[str, bool]:
    """How a check came out, and whether it weighs."""
    (check,) = (one for one in result.checks if one.name == name)
    return check.agreement, check.weighs


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.3])
def test_one_endpoint_against_itself_is_equivalent_whatever_its_noise(noise: float) -> None:
    result = compared(ToyProvider(noisy(noise), seed=1), ToyProvider(noisy(noise), seed=2))
    assert result.decision == "equivalent"
    assert result.diagnoses == []
    assert result.identity is not None
    assert result.identity.statistic == "centred log-probabilities"
    assert (result.noise_a.mean or 0) == pytest.approx(1.03 * noise, rel=0.2)
    assert result.reason.startswith("The same model, served alike")


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (cooled(0.7), TEMPERATURE),
        (another_model, OTHER_WEIGHTS),
        (sometimes(weights(0.8)), "several backends behind A's address"),
        (weights(0.2), ROUNDED),
    ],
    ids=["temperature", "model", "backends", "weights"],
)
def test_what_is_served_otherwise_is_different_and_its_cause_comes_first(change: Change, cause: str) -> None:
    result = compared(ToyProvider(change, seed=1), ToyProvider(noisy(0.002), seed=2))
    assert result.decision == "different"
    assert result.diagnoses[0].cause == cause
    assert cause in result.reason
    assert result.identity is not None
    assert result.identity.ci_low is not None
    assert result.identity.ci_low > result.identity.margin


def test_a_context_that_is_cut_is_different_though_short_prompts_are_the_same() -> None:
    result = compared(ToyProvider(cut_context), ToyProvider(), dataclasses.replace(QUICK, n_near_ties=16))
    assert result.decision == "different"
    assert result.diagnoses[0].cause == CUT
    assert result.identity is not None
    assert (result.identity.reason or "").startswith("long prompts by themselves lie")


def test_the_reference_may_be_the_one_with_several_backends() -> None:
    result = compared(ToyProvider(), ToyProvider(sometimes(weights(0.8))))
    assert result.diagnoses[0].cause == "several backends behind B's address"


def test_a_renormalised_list_is_the_same_model_and_yet_not_served_alike() -> None:
    result = compared(ToyProvider(renormalised=True), ToyProvider())
    assert result.identity is not None
    assert result.identity.decision == "equivalent"
    assert result.decision == "inconclusive"
    assert checked(result, "sum of the list") == ("differs", True)
    assert result.diagnoses[0].cause == "A's list is renormalised"
    assert "sum of the list differ" in result.reason


def test_another_template_comes_before_every_other_cause() -> None:
    a = ToyProvider(another_model, findings={"template": "31 tokens with the text; digest 1f"})
    b = ToyProvider(findings={"template": "12 tokens with the text; digest 2e"})
    result = compared(a, b)
    assert result.decision == "different"
    assert result.diagnoses[0].cause == TEMPLATE


def test_a_difference_about_the_margin_is_inconclusive() -> None:
    far = compared(ToyProvider(weights(0.08)), ToyProvider()).identity
    assert far is not None
    assert far.estimate is not None
    result = compared(ToyProvider(weights(0.08)), ToyProvider(), dataclasses.replace(QUICK, rule=Rule(margin=far.estimate)))
    assert result.decision == "inconclusive"
    assert result.identity is not None
    assert result.identity.p == pytest.approx(0.0001)


def test_answers_that_fail_are_counted_and_keep_it_from_being_equivalent() -> None:
    result = compared(ToyProvider(noisy(0.01), fails=0.3, seed=1), ToyProvider(noisy(0.01), seed=2))
    assert result.identity is not None
    assert result.identity.decision == "equivalent"
    assert result.identity.n_prompts == 24
    assert result.decision == "inconclusive"
    assert "of the answers failed" in result.reason
    assert any("toy: out of order" in line for line in result.unseen)


def test_an_endpoint_that_answers_nothing_leaves_nothing_to_compare() -> None:
    result = compared(ToyProvider(fails=1.0), ToyProvider())
    assert result.decision == "inconclusive"
    assert result.identity is not None
    assert result.identity.reason == "no prompt was answered by both sides"
    assert result.prompts == []


@pytest.mark.parametrize("listing", ["A", "B", "neither"])
def test_draws_tell_another_model_and_never_call_it_equivalent(listing: str) -> None:
    a, b = (
        ToyProvider(change, shows_lists=name == listing, seed=3) for name, change in (("A", another_model), ("B", noisy(0)))
    )
    result = compared(a, b)
    assert result.decision == "different"
    assert result.identity is not None
    assert result.identity.statistic == ("first tokens" if listing == "neither" else "share against probability")
    assert result.identity.p == pytest.approx(0.001)
    assert any("log-probabilities" in line for line in result.unseen)


@pytest.mark.parametrize("listing", ["A", "B", "neither"])
def test_draws_of_one_model_are_not_called_different(listing: str) -> None:
    settings = dataclasses.replace(QUICK, n_prompts=48)
    decisions = [
        compared(
            ToyProvider(shows_lists=listing == "A", seed=10 + seed),
            ToyProvider(shows_lists=listing == "B", seed=20 + seed),
            settings,
        ).decision
        for seed in range(2)
    ]
    assert "different" not in decisions
    assert "equivalent" in decisions


def test_words_are_drawn_from_both_where_one_cannot_draw_a_single_token() -> None:
    a = ToyProvider(shows_lists=False, path="/responses")
    draws_too = ToyProvider(modes=(Mode.TOPK, Mode.SAMPLED))
    identity = compared(a, draws_too).identity
    assert identity is not None
    assert identity.statistic == "first tokens"
    draws_none = ToyProvider()
    with pytest.raises(CapabilityError, match="shows lists and draws nothing"):
        compared(a, draws_none, SCORED)
    assert draws_none.asked == 0


def test_near_ties_are_chosen_on_the_reference_and_flip_first() -> None:
    settings = dataclasses.replace(QUICK, n_near_ties=6)
    a, b = ToyProvider(weights(0.05)), ToyProvider()
    result = compared(a, b, settings)
    assert result.identity is not None
    assert result.identity.n_near_ties == 6
    assert result.identity.n_prompts == 30
    assert result.identity.near_tie_flip_share is not None
    assert result.identity.near_tie_flip_share > (result.identity.flip_share or 0)
    assert b.asked - a.asked == 6 * 16
    assert result.n_requests == a.asked + b.asked


def test_without_lists_on_the_reference_there_are_no_near_ties() -> None:
    result = compared(ToyProvider(), ToyProvider(shows_lists=False), dataclasses.replace(QUICK, n_near_ties=6))
    assert any(line.startswith("near ties: B shows no log-probabilities") for line in result.unseen)


def test_the_score_is_compared_trial_by_trial() -> None:
    same = compared(ToyProvider(), ToyProvider(), SCORED)
    assert same.score is not None
    assert (same.score.estimate, same.score.decision) == (0.0, "equivalent")
    moved = compared(ToyProvider(another_model), ToyProvider(), SCORED)
    assert moved.score is not None
    assert moved.score.estimate != 0
    assert moved.score.n_trials > 0


def test_scores_of_lists_and_of_draws_are_not_compared() -> None:
    result = compared(ToyProvider(), ToyProvider(shows_lists=False), SCORED)
    assert result.score is not None
    assert result.score.estimate is None
    assert any("not comparable" in line for line in result.unseen)


def test_scores_of_draws_are_compared_in_mass() -> None:
    result = compared(ToyProvider(shows_lists=False), ToyProvider(shows_lists=False, seed=5), SCORED)
    assert result.score is not None
    assert result.score.metric == "delta_mass"
    assert result.score.ci_low is not None


def test_equal_seeds_ask_and_answer_alike_and_the_result_is_json_and_a_page() -> None:
    first, again = (compared(ToyProvider(noisy(0.05), seed=1), ToyProvider(weights(0.1))) for _ in range(2))
    assert first == again
    told = json.loads(json.dumps(dataclasses.asdict(first), allow_nan=False))
    assert first.reason.split()[0] in render_compare(told)
