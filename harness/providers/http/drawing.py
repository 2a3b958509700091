"""Modes without a list that decides: draws at temperature 1, plain or with the lexicon's logits raised by a known bias.

Brings back counts and the bias; what they say of a mass is `evals`' business (exact intervals, the logit minus the bias).
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import numpy as np

from harness.providers.http.line import Line
from harness.providers.http.transport import RequestFailedError
from harness.providers.targets import TargetSpec
from harness.providers.vocabulary import spelling
from harness.providers.wire.base import Dialect, Question, TextOrIds
from harness.records import Lexicon, Mode, Observation, Readout

MAX_BIAS = 100.0
"""What OpenAI's logit_bias takes at the most."""

FIRST_BIAS = 6.0
"""Nats that lift a mass of 1 in 400 to one half: where the search for a bias starts when nothing is known of the mass."""

PILOT_DRAWS = 16
_MAX_PILOTS = 6
_FEW = 2
"""Hits, and misses, of a pilot that settles the bias: a single one may come of a share of 1 in 200, and where one was enough,
up to 6% of the estimates had more than twice the standard error."""

MOST_DRAWS = 128
"""Draws that a request asks for where the target's file does not say how many it may."""

WORD_TOKENS = 6
"""Tokens that hold a first word of any length that a lexicon has, where a word may be several tokens."""

_FIRST_WORD = re.compile(r"\s*([^\W_]+(?:['’-][^\W_]+)*)")

_Draw = Callable[[TextOrIds, Readout], Awaitable[Observation]]


class Drawer:
    """Draws continuations of each prompt and counts those that fall into the lexicon."""

    def __init__(self, spec: TargetSpec, line: Line) -> None:
        self._line = line
        self._per_request = draws_per_request(spec, line.dialect)
        self._temperature = None if spec.claims.temperature is False else 1.0

    async def observe(self, prompts: Sequence[TextOrIds], readout: Readout, mode: Mode) -> list[Observation]:
        """One observation for each prompt, with `hits`, `n_draws` and `bias`."""
        draw = self._amplified if mode is Mode.AMPLIFIED else self._sampled
        return await asyncio.gather(*(self._observed(draw, prompt, readout) for prompt in prompts))

    async def _observed(self, draw: _Draw, prompt: TextOrIds, readout: Readout) -> Observation:
        start = time.perf_counter()
        try:
            seen = await draw(prompt, readout)
        except RequestFailedError as exc:
            return Observation(error=exc.reason, attempts=exc.attempts, latency_s=time.perf_counter() - start)
        return replace(seen, latency_s=time.perf_counter() - start)

    async def _sampled(self, prompt: TextOrIds, readout: Readout) -> Observation:
        """The first word of each continuation against the lexicon's words: a word of several tokens counts as a whole.

        Unless the readout wants single tokens: they are told as they came.
        """
        most = WORD_TOKENS if readout.whole_words else 1
        draws = await self._draws(prompt, Question(n_draws=readout.n_draws, temperature=self._temperature, max_tokens=most))
        words = [first_word(text) for text in draws] if readout.whole_words else draws
        return _counted(words, readout.lexicon, bias=0.0, mode=Mode.SAMPLED)

    async def _amplified(self, prompt: TextOrIds, readout: Readout) -> Observation:
        """Draws with the bias that makes about half of them hits; the pilots that find it are not counted.

        One bias b on every id of the lexicon turns its mass P into P' = P e^b / (1 - P + P e^b), so that
        logit P = logit P' - b exactly, and N draws know logit P' best, to 2 / sqrt(N), where P' is one half.
        """
        bias = FIRST_BIAS
        for _ in range(_MAX_PILOTS):
            hits = (await self._biased(prompt, readout.lexicon, bias, PILOT_DRAWS)).hits or 0
            last, bias = bias, _within(bias - math.log((hits + 0.5) / (PILOT_DRAWS - hits + 0.5)))
            if _FEW <= hits <= PILOT_DRAWS - _FEW or bias == last:
                break
        return await self._biased(prompt, readout.lexicon, bias, readout.n_draws)

    async def _biased(self, prompt: TextOrIds, lexicon: Lexicon, bias: float, n_draws: int) -> Observation:
        ids = [] if lexicon.token_ids is None else lexicon.token_ids.tolist()
        question = Question(n_draws=n_draws, temperature=self._temperature, bias=dict.fromkeys(ids, bias))
        words = [spelling(text) for text in await self._draws(prompt, question)]
        return _counted(words, lexicon, bias=bias, mode=Mode.AMPLIFIED)

    async def _draws(self, prompt: TextOrIds, question: Question) -> list[str]:
        """`question.n_draws` continuations, over as many requests as the endpoint needs for them."""
        sizes = [self._per_request] * (question.n_draws // self._per_request)
        sizes += [question.n_draws % self._per_request] * bool(question.n_draws % self._per_request)
        parts = await asyncio.gather(*(self._part(prompt, question, size) for size in sizes))
        return [text for part in parts for text in part]

    async def _part(self, prompt: TextOrIds, question: Question, size: int) -> list[str]:
        (draws,), _ = await self._line.draw([prompt], replace(question, n_draws=size))
        if isinstance(prompt, str):  # llama.cpp repeats a prefilled message
            return [text.removeprefix(prompt) for text in draws]
        return draws


def draws_per_request(spec: TargetSpec, dialect: Dialect | type[Dialect] | None) -> int:
    """How many draws one request asks for; `dialect` None: of an api that is not ours."""
    return (spec.claims.draws_per_request or MOST_DRAWS) if dialect is None or dialect.takes_draws else 1


def first_word(text: str) -> str:
    """The first word of a continuation, case folded; empty where it begins with none."""
    found = _FIRST_WORD.match(text)
    return found[1].casefold() if found else ""


def _counted(words: Sequence[str], lexicon: Lexicon, *, bias: float, mode: Mode) -> Observation:
    shares = Counter(words).most_common()
    return Observation(
        tokens=tuple(word for word, _ in shares),
        logprobs=np.log(np.array([count for _, count in shares]) / len(words)).astype(np.float32),
        covered_mass=1.0,
        mode=mode,
        hits=sum(word in lexicon.words for word in words),
        n_draws=len(words),
        bias=bias,
    )


def _within(bias: float) -> float:
    return min(max(bias, -MAX_BIAS), MAX_BIAS)
