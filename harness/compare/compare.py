"""`harness compare` on two targets, from opened providers to the answer: checks, score, identity, causes, verdict.

Owns the order. Answers come as data: what failed is counted, and what could not be seen is said.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from harness.compare import contracts
from harness.compare.asking import Answers, Rounds, Side, ask_both, first_tokens, first_words, lists
from harness.compare.identity import Rule
from harness.compare.judging import MAX_FAILED, Material, conclude
from harness.compare.naming import Told
from harness.compare.result import CompareResult, ScoreDifference
from harness.compare.score import Stage, scores, small_plan
from harness.compare.sentinels import Sentinel, choose, near_ties, tie_candidates
from harness.compare.weighing import LISTED, weigh
from harness.errors import CapabilityError
from harness.evals.runner import Tally
from harness.records import Mode, Readout


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is asked. `n_prompts` sentinels beside `n_near_ties`; `n_draws` tokens of each where a side shows no lists.

    `eval_name` None: no score. `concepts` empty: a few, by seed.
    """

    n_prompts: int = 48
    n_near_ties: int = 16
    repeats: int = 5
    n_draws: int = 64
    eval_name: str | None = "transfer"
    concepts: tuple[str, ...] = ()
    limit: int = 4
    rule: Rule = field(default_factory=Rule)


def silent(_title: str) -> AbstractContextManager[Callable[[Tally], None]]:
    """A stage that shows nothing."""
    return nullcontext(lambda _tally: None)


async def compare(a: Side, b: Side, settings: Settings, stage: Stage = silent) -> CompareResult:
    """Ask both sides and judge.

    Raises CapabilityError, before anything is asked, where the two have nothing in common that could be compared, and what
    asking raises where an endpoint is gone for good.
    """
    readouts = _readouts(a, b, settings)
    score, lost = await _score(a, b, settings, stage)
    sentinels, unseen = await _sentinels(b, settings, stage)
    answers = await _ask((a, readouts[0]), (b, readouts[1]), sentinels, settings, stage)
    sides = list(zip((a, b), answers, strict=True))
    if lost:
        unseen.append(f"{lost:.1%} of the score's prompts: they failed")
    return conclude(
        Material(
            a=_described(a),
            b=_described(b),
            checks=[*contracts.checks(a, b), *contracts.answer_checks(*sides)],
            score=score,
            sentinels=sentinels,
            weighed=weigh(_told(a, answers[0], readouts[0]), _told(b, answers[1], readouts[1]), sentinels, settings.rule),
            n_requests=a.n_requests + b.n_requests,
            failed_share=max(lost, *(one.n_failed / max(one.n_asked, 1) for one in answers)),
            unseen=unseen + [line for side, own in sides for line in _failures(side, own)],
        )
    )


async def _score(a: Side, b: Side, settings: Settings, stage: Stage) -> tuple[ScoreDifference | None, float]:
    """The difference of the scores and the share of prompts that failed; None where no score is wanted."""
    if settings.eval_name is None:
        return None, 0.0
    plan = small_plan(settings.eval_name, concepts=settings.concepts, limit=settings.limit, seed=settings.rule.seed)
    return await scores(a, b, plan, settings.rule.alpha, stage)


async def _sentinels(b: Side, settings: Settings, stage: Stage) -> tuple[tuple[Sentinel, ...], list[str]]:
    """The prompts, and what could not be had. Each candidate for a near tie is asked once, on B alone."""
    chosen = choose(settings.n_prompts, settings.rule.seed)
    if not settings.n_near_ties:
        return chosen, []
    if b.list_mode is None:
        return chosen, ["near ties: B shows no log-probabilities to choose them by"]
    candidates = tie_candidates(settings.n_near_ties, settings.rule.seed, chosen)
    tally = Tally(planned=len(candidates))
    with stage("near ties of B") as show:
        seen = await b.observe(b.prompts(candidates), lists(b, 2))
        tally.count(seen)
        show(tally)
    return (*chosen, *near_ties(candidates, seen, settings.n_near_ties)), []


async def _ask(
    a: tuple[Side, Readout], b: tuple[Side, Readout], sentinels: Sequence[Sentinel], settings: Settings, stage: Stage
) -> tuple[Answers, Answers]:
    rounds = Rounds(repeats=settings.repeats, seed=settings.rule.seed)
    with stage("sentinels of A and B") as show:
        return await ask_both(a, b, sentinels, rounds, show)


def _readouts(a: Side, b: Side, settings: Settings) -> tuple[Readout, Readout]:
    """Lists from a side that shows some, and single tokens drawn from the other; first words where neither shows any, or where
    single tokens cannot be drawn. Raises CapabilityError where not even those can be had from both."""
    sides = (a, b)
    n_draws = -(-settings.n_draws // settings.repeats)
    drawing = [side for side in sides if side.list_mode is None]
    if len(drawing) == 2 or not all(side.draws_tokens for side in drawing):
        for side in sides:
            if Mode.SAMPLED not in side.provider.info.capabilities.able():
                raise CapabilityError(
                    f"{side.spec.name} shows lists and draws nothing, the other side draws words and shows no list",
                    hint="compare with a target that shows log-probabilities, or serve the reference with vLLM",
                )
        return first_words(n_draws), first_words(n_draws)
    one, other = (first_tokens(n_draws) if side in drawing else lists(side, LISTED) for side in sides)
    return one, other


def _told(side: Side, answers: Answers, readout: Readout) -> Told:
    vocabulary = side.provider.vocabulary
    return Told(
        rounds=answers.rounds,
        shows_lists=readout.mode is not None and not readout.mode.drawn,
        tokenizer=side.provider.info.tokenizer_digest,
        spell=vocabulary.text if vocabulary is not None else None,
    )


def _failures(side: Side, answers: Answers) -> list[str]:
    """What failed on one side, and the commonest reason."""
    if not answers.n_failed:
        return []
    reason, count = answers.reasons.most_common(1)[0]
    much = ", too many to call anything equivalent" if answers.n_failed > MAX_FAILED * answers.n_asked else ""
    return [f"{answers.n_failed} of {answers.n_asked} answers of {side.name}: they failed{much} ({count} with: {reason})"]


def _described(side: Side) -> dict[str, Any]:
    info = side.provider.info
    mode: Mode | None = side.list_mode or Mode.SAMPLED
    return {
        "name": info.target,
        "endpoint": info.endpoint,
        "model": info.model,
        "revision": info.revision,
        "mode": str(mode),
        "settings": dict(info.settings),
        "run_id": None,
    }
