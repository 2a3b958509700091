"""Ten thousand prompts through an endpoint that spoils 30% of its answers: none is lost, counted twice or answered wrongly."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pytest

from harness.evals.plan import Choice, count_prompts
from harness.faults.registry import FAULTS, HARMLESS
from harness.records import Mode

from .asking import KEY, OPENED_AFTER, SCORED_TOGETHER, TIMEOUT_S, Asked, Way, ask, declare, ids_sent, plan_of, truth, workplace
from .fault_server import fault_command

LISTS = ("--max-logprobs", "50")
WELL = (*LISTS, "--rate", "0")
SPOILED = (*LISTS, "--rate", "0.3", "--seed", "43", "--after", str(OPENED_AFTER), "--drip-s", "0.1", "--huge-mb", "20")
LISTED = 30

WAYS = {
    "one a request": (Way(), Choice(mode=Mode.TOPK), 11_244),
    "32 a request, chosen ids": (
        Way(prompts=32, mode=Mode.EXACT, connections=64, chosen_ids=21),
        Choice(mode=Mode.EXACT, concepts=("color",), full=True, limit=31),
        10_028,
    ),
    "chat": (Way(api="chat"), Choice(mode=Mode.TOPK, concepts=("animal", "food", "number"), limit=7), 1_001),
}

REFUSED = ("429-", "500", "502", "503", "529", "echoed-key", "html-502", "redirect-")
"""How the faults begin that come with an HTTP status of their own."""

REASONS = re.compile(
    r"HTTP (429|500|502|503|529|30[278])\b"
    rf"|no answer within {TIMEOUT_S:g} s"
    r"|the connection broke"
    r"|the answer is (not JSON|larger than)"
    r"|bad answer: (a log-probability is (not finite|a stand-in|positive)|an empty list|no log-probabilities|no list of choices"
    r"|\d+ of the \d+ wanted token ids are missing"
    r"|\d+ choices for \d+ prompts|the choices are not numbered"
    r"|the answer is from another model: 'another-model', not 'fault-model'$)"
)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Story:
    """One way to ask: through the faults, once more when they are over, and on a journal of its own without any."""

    way: Way
    planned: int
    spoiled: Asked
    again: Asked
    clean: Asked


@pytest.fixture(scope="module", params=WAYS.values(), ids=WAYS)
def story(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Story:
    way, choice, planned = request.param
    folder = tmp_path_factory.mktemp("story")
    with workplace(folder):
        plan = plan_of(choice)
        with fault_command(*SPOILED) as url:
            declare(folder, url, way)
            spoiled = asyncio.run(ask(plan, url, way, folder / "journal.sqlite"))
        port = url.removesuffix("/v1").rpartition(":")[2]
        with fault_command(*WELL, "--port", port) as url:
            again = asyncio.run(ask(plan, url, way, folder / "journal.sqlite"))
            together = replace(way, prompts=SCORED_TOGETHER, connections=32)  # in how many requests makes no difference
            declare(folder, url, together)
            clean = asyncio.run(ask(plan, url, together, folder / "clean.sqlite"))
    return Story(way=way, planned=planned, spoiled=spoiled, again=again, clean=clean)


def test_every_fault_was_met_often(story: Story) -> None:
    assert story.spoiled.opened_after < OPENED_AFTER, "opening is another test's matter"
    served = Counter(story.spoiled.ledger.sequence)
    least = 20 if story.planned > 10_000 else 5
    assert {name for name in FAULTS if served[name] >= least} == set(FAULTS)
    assert 0.25 < 1 - served[None] / len(story.spoiled.ledger.sequence) < 0.35


def test_every_prompt_ends_exactly_once_as_answered_or_as_failed(story: Story) -> None:
    run = story.spoiled
    assert count_prompts(run.plan) == story.planned == len(run.seen) == len({prompt.prompt_id for prompt, _ in run.seen})
    assert (run.tally.done, run.tally.failed) == (len(run.answered), len(run.failed))
    assert run.tally.done + run.tally.failed == run.tally.planned == story.planned
    assert run.n_journalled == len(run.answered)
    assert run.tally.reasons == Counter(one.error for _, one in run.failed)


def test_a_failed_prompt_says_what_happened_to_it(story: Story) -> None:
    for _, one in story.spoiled.failed:
        assert REASONS.match(one.error or "")
        assert KEY not in (one.error or "")
        assert not len(one.logprobs)
        assert one.mass_low is None


def test_nearly_every_prompt_is_answered_with_the_default_attempts(story: Story) -> None:
    """A redirect is the endpoint's last word, so that each costs the prompts of its request; all else is asked for again."""
    run = story.spoiled
    redirected = sum("redirects to" in (one.error or "") for _, one in run.failed)
    redirects = sum((name or "").startswith("redirect-") for name in run.ledger.sequence)
    assert redirected <= redirects * story.way.prompts
    assert len(run.failed) - redirected <= 0.02 * story.planned


def test_every_request_is_counted_once(story: Story) -> None:
    run = story.spoiled
    assert run.requests == len(run.ledger.sequence)
    assert run.refused == sum((name or "").startswith(REFUSED) for name in run.ledger.sequence)
    if story.way.prompts == 1:
        assert sum(one.attempts for _, one in run.seen) == len(run.ledger.sequence)


def test_what_was_answered_was_asked_no_more(story: Story) -> None:
    """One prompt a request: each answered one had its true answer once, unless it came too late, and each failed one none."""
    run, way = story.spoiled, story.way
    answered = run.ledger.answered
    for prompt, one in run.answered:
        times = answered.get(ids_sent(prompt, way.api), 0)
        assert times >= 1
        # A time-out before an answer that was spoiled is in the attempts only.
        assert times == 1 or way.prompts > 1 or one.latency_s >= TIMEOUT_S or one.attempts > 2
    if way.prompts == 1:
        assert not [prompt for prompt, one in run.failed if ids_sent(prompt, way.api) in answered and one.latency_s < TIMEOUT_S]


def test_every_answer_is_the_true_one(story: Story) -> None:
    assert story.spoiled.answered
    for prompt, one in story.spoiled.answered:
        true = truth(ids_sent(prompt, story.way.api))
        assert one.token_ids is not None
        likeliest = np.sort(true)[::-1][:LISTED]
        np.testing.assert_array_equal(one.logprobs, likeliest.astype(np.float32))
        np.testing.assert_array_equal(one.logprobs, true[one.token_ids].astype(np.float32))
        assert len(set(one.token_ids.tolist())) == LISTED
        assert one.covered_mass == pytest.approx(np.exp(likeliest).sum(), abs=1e-6)
        if story.way.mode is Mode.EXACT:
            words = story.spoiled.job.lexicons[prompt.concept].token_ids
            assert words is not None
            assert one.mass_low == one.mass_high == pytest.approx(np.exp(true[words]).sum(), rel=1e-5)


def test_the_same_command_asks_only_what_failed_and_completes(story: Story) -> None:
    spoiled, again = story.spoiled, story.again
    assert (again.tally.from_cache, again.tally.done, again.tally.failed) == (len(spoiled.answered), story.planned, 0)
    failed = {ids_sent(prompt, story.way.api) for prompt, _ in spoiled.failed}
    assert again.ledger.answered.keys() == failed
    if story.way.prompts == 1:
        assert len(again.ledger.sequence) == len(spoiled.failed)
    for name, column in story.clean.trials.items():
        np.testing.assert_array_equal(again.trials[name], column)
    assert again.summary == story.clean.summary


def test_trials_equal_those_of_a_run_without_faults_where_both_have_them(story: Story) -> None:
    lost = lost_trials(story)
    # Many prompts a request: which of them fail for good depends on the order of arrival, and it may be none.
    assert lost.any() == bool(story.spoiled.failed)
    assert story.spoiled.failed or story.way.prompts > 1
    assert lost.sum() < 0.5 * len(lost)
    for name, column in story.clean.trials.items():
        np.testing.assert_array_equal(story.spoiled.trials[name][~lost], column[~lost])
    for name in ("count_success", "delta_mass", "mass_injected_low", "tv_high"):
        spoiled, clean = (run.trials[name][lost] for run in (story.spoiled, story.clean))
        assert name == "mass_injected_low" or np.isnan(spoiled.astype(float)).all()
        assert np.isfinite(clean.astype(float)).all()


def test_means_are_those_of_a_run_without_faults_over_the_trials_that_both_have(story: Story) -> None:
    trials, lost = story.clean.trials, lost_trials(story)
    cells = [cell for cell in story.spoiled.summary["cells"] if cell["concept"] != "all"]
    assert len(cells) == len(set(zip(trials["concept"], trials["arm"], trials["off_type"], strict=True)))
    for cell in cells:
        names = ("concept", "arm", "off_type")
        rows = np.logical_and.reduce([trials[name] == cell[name] for name in names])
        assert (cell["n_trials"], cell["n_failed"]) == (rows.sum(), (rows & lost).sum())
        kept = rows & ~lost
        for metric, low, high in (
            ("count_success", "count_success", "count_success"),
            ("delta_mass", "delta_mass_low", "delta_mass_high"),
        ):
            if not kept.any():
                assert cell[metric]["estimate"] is None
                assert cell[metric]["reason"]
                continue
            assert cell[metric]["estimate_low"] == pytest.approx(trials[low][kept].astype(float).mean())
            assert cell[metric]["estimate_high"] == pytest.approx(trials[high][kept].astype(float).mean())


def test_what_is_sent_elsewhere_is_nothing(story: Story) -> None:
    assert sum((name or "").startswith("redirect-") for name in story.spoiled.ledger.sequence) > 0
    assert (story.spoiled.ledger.arrived_elsewhere, story.spoiled.ledger.arrived_elsewhere_with_key) == (0, 0)


def test_answers_that_come_late_or_in_another_order_are_taken(story: Story) -> None:
    """Else these faults would have cost attempts, and more requests would have been sent than the others explain."""
    run = story.spoiled
    if story.way.prompts == 1:
        true = sum(name is None or name in HARMLESS for name in run.ledger.sequence)
        late = sum(one.attempts for _, one in run.seen if one.latency_s >= TIMEOUT_S)
        assert true - late <= len(run.answered) <= true


def lost_trials(story: Story) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which trials the faults cost: either of their two prompts failed."""
    failed = {(p.concept, p.arm, p.sentence_id, p.injection_id) for p, _ in story.spoiled.failed}
    names = ("concept", "arm", "sentence_id", "injection_id")
    rows = zip(*(story.clean.trials[name].tolist() for name in names), strict=True)
    return np.array([row in failed or (row[0], "clean", row[2], "") in failed for row in rows])
