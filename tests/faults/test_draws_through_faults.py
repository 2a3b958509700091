"""Draws through an endpoint that spoils 30% of its answers: as many as were asked for, each the endpoint's, and once."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from harness.evals.plan import Choice, count_prompts
from harness.faults.protocol import Question, write_answer
from harness.providers.http.drawing import WORD_TOKENS, first_word
from harness.providers.vocabulary import spelling
from harness.records import Mode, Observation

from .asking import OPENED_AFTER, Asked, Way, ask, declare, ids_sent, oracle, plan_of, workplace
from .fault_server import fault_command

N_DRAWS = 32
PLANNED = 2 * (6 + 7 * 6 * 6)
CHOICE = {"concepts": ("color", "number"), "limit": 6, "draws": N_DRAWS}
MOST_TIMES = 12
"""How often a prompt was drawn from at the most."""


def asked_twice(folder: Path, way: Way, mode: Mode) -> tuple[Asked, Asked]:
    """What came through the faults, and what came when they were over."""
    with workplace(folder):
        plan = plan_of(Choice(mode=mode, **CHOICE))
        argv = ("--rate", "0.3", "--after", str(OPENED_AFTER), "--drip-s", "0.1", "--huge-mb", "20")
        with fault_command(*argv) as url:
            declare(folder, url, way)
            spoiled = asyncio.run(ask(plan, url, way, folder / "journal.sqlite"))
        with fault_command("--rate", "0", "--port", url.removesuffix("/v1").rpartition(":")[2]) as url:
            return spoiled, asyncio.run(ask(plan, url, way, folder / "journal.sqlite"))


def drawn(ids: tuple[int, ...], nth: int, n: int, *, max_tokens: int, bias: Mapping[int, float]) -> list[str]:
    """The `n` continuations that the server gives when it is asked for them for the `nth` time."""
    question = Question(
        chat=False,
        prompts=(ids,),
        n=n,
        max_tokens=max_tokens,
        temperature=1.0,
        bias=bias,
        seed=None,
        logprobs=None,
        chosen=None,
        by_id=False,
    )
    answer = json.loads(write_answer(question, oracle().model, oracle().tokens, times=lambda _: nth))
    return [choice["text"] for choice in answer["choices"]]


def counts(one: Observation) -> Counter[str]:
    """How often each word was drawn."""
    times = np.exp(one.logprobs.astype(np.float64)) * N_DRAWS
    np.testing.assert_allclose(times, np.round(times), atol=1e-4)
    return Counter(dict(zip(one.tokens, np.round(times).astype(int).tolist(), strict=True)))


def adds_up(left: Counter[str], parts: Sequence[Counter[str]], n_parts: int) -> bool:
    """Whether `n_parts` different ones of `parts` come to `left`."""
    if not n_parts:
        return not left.total()
    return any(part <= left and adds_up(left - part, parts[i + 1 :], n_parts - 1) for i, part in enumerate(parts))


def check_ends(spoiled: Asked, again: Asked) -> None:
    """Every prompt ended once, with as many draws as were asked for, or failed; and the failed ones alone were asked again."""
    assert len(spoiled.seen) == PLANNED == count_prompts(spoiled.plan)
    assert (spoiled.tally.done, spoiled.tally.failed) == (len(spoiled.answered), len(spoiled.failed))
    assert 0 < spoiled.tally.failed < 0.5 * PLANNED
    assert spoiled.n_journalled == spoiled.tally.done
    assert spoiled.requests == len(spoiled.ledger.sequence)
    for prompt, one in spoiled.answered:
        assert one.n_draws == N_DRAWS == counts(one).total()
        words = spoiled.job.lexicons[prompt.concept].words
        assert one.hits == sum(n for word, n in counts(one).items() if word in words)
    assert (again.tally.from_cache, again.tally.done, again.tally.failed) == (spoiled.tally.done, PLANNED, 0)
    assert again.ledger.answered.keys() == {ids_sent(prompt, "completions") for prompt, _ in spoiled.failed}
    kept = {prompt.prompt_id: (one.hits, one.bias) for prompt, one in spoiled.answered}
    assert {prompt.prompt_id: (one.hits, one.bias) for prompt, one in again.seen if prompt.prompt_id in kept} == kept


def test_sampled_prompts_hold_every_draw_once_over_several_requests(tmp_path: Path) -> None:
    per_request = 8
    way = Way(mode=Mode.SAMPLED, connections=64, draws_per_request=per_request)
    spoiled, again = asked_twice(tmp_path, way, Mode.SAMPLED)
    check_ends(spoiled, again)
    for prompt, one in spoiled.answered:
        ids = ids_sent(prompt, "completions")
        parts = [
            Counter(map(first_word, drawn(ids, nth, per_request, max_tokens=WORD_TOKENS, bias={}))) for nth in range(MOST_TIMES)
        ]
        assert adds_up(counts(one), parts, N_DRAWS // per_request)


def test_amplified_prompts_hold_the_draws_with_their_bias_and_no_pilots(tmp_path: Path) -> None:
    spoiled, again = asked_twice(tmp_path, Way(mode=Mode.AMPLIFIED, connections=64), Mode.AMPLIFIED)
    check_ends(spoiled, again)
    for prompt, one in spoiled.answered:
        assert one.bias is not None
        lexicon = spoiled.job.lexicons[prompt.concept]
        assert lexicon.token_ids is not None
        bias = dict.fromkeys(lexicon.token_ids.tolist(), one.bias)
        ids = ids_sent(prompt, "completions")
        assert any(
            Counter(map(spelling, drawn(ids, nth, N_DRAWS, max_tokens=1, bias=bias))) == counts(one)
            for nth in range(MOST_TIMES)
        )
