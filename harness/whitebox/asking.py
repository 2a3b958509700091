"""Questions to a language model through any provider: what it writes behind a text, and whether it says yes or no.

Providers give next-token distributions, so a continuation is the likeliest token put behind the text until a stop, and an
answer is read off the probabilities of yes and no. Owns the asking; what is asked is the caller's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from harness.providers.base import Provider
from harness.providers.vocabulary import spelling
from harness.records import Lexicon, Observation, Prompt, Readout

LISTED = 20
"""Likeliest tokens that are read for a yes or no: what hosted endpoints show at the most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """`p_yes`: P(yes) / (P(yes) + P(no)); None, and then `error` says why, where neither was seen."""

    p_yes: float | None = None
    error: str | None = None


class Asker:
    """Asks one provider. Prompts that begin alike share what they have in common."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        ids = None if provider.vocabulary is None else np.empty(0, np.int32)
        self._lexicon = Lexicon(concept="", words=frozenset(), token_ids=ids, resolved_share=None, digest="")

    async def continuations(self, texts: Sequence[str], *, max_tokens: int, stop: str) -> list[str]:
        """What the model writes behind each text, up to and without a line's end, up to and with any other character of `stop`.

        Line ends before the first word do not count. A prompt that fails ends where it failed.
        """
        prompts = self._prompts(texts)
        written = [""] * len(texts)
        going = list(range(len(texts)))
        for _ in range(max_tokens):
            still = []
            for at, seen in zip(going, await self._observe([prompts[at] for at in going], 1), strict=True):
                token, token_id = next(iter(self._tokens(seen)), ("", None))
                if seen.error is not None or not token:
                    continue
                written[at] += token
                prompts[at] = _longer(prompts[at], token, token_id)
                if not any(mark in written[at].lstrip() for mark in stop):
                    still.append(at)
            going = still
            if not going:
                break
        return [next(iter(text.strip().splitlines()), "") for text in written]

    async def answers(self, questions: Sequence[str]) -> list[Answer]:
        """Whether the model says yes to each question."""
        return [self._answer(seen) for seen in await self._observe(self._prompts(questions), LISTED)]

    def _prompts(self, texts: Sequence[str]) -> list[Prompt]:
        vocabulary = self._provider.vocabulary
        takes_ids = vocabulary is not None and self._provider.info.capabilities.token_ids
        ids = vocabulary.encode(texts) if vocabulary is not None and takes_ids else [None] * len(texts)
        return [
            Prompt(
                prompt_id=str(number),
                concept="",
                arm="",
                sentence_id="",
                injection_id="",
                template="",
                group="",
                text=text,
                token_ids=own,
            )
            for number, (text, own) in enumerate(zip(texts, ids, strict=True))
        ]

    async def _observe(self, prompts: Sequence[Prompt], n_logprobs: int) -> list[Observation]:
        """An observation for each prompt, in batches of the provider's size, as many at once as it takes."""
        limit = self._provider.info.capabilities.max_logprobs
        readout = Readout(lexicon=self._lexicon, n_logprobs=min(n_logprobs, limit or n_logprobs))
        size = self._provider.batch_size
        free = asyncio.Semaphore(self._provider.concurrency)

        async def one(start: int) -> list[Observation]:
            async with free:
                return await self._provider.observe(prompts[start : start + size], readout)

        parts = await asyncio.gather(*(one(start) for start in range(0, len(prompts), size)))
        return [observation for part in parts for observation in part]

    def _tokens(self, seen: Observation) -> list[tuple[str, int | None]]:
        """The tokens of a distribution, the likeliest first; special ones are empty."""
        vocabulary = self._provider.vocabulary
        if vocabulary is None or seen.token_ids is None:
            return [(token, None) for token in seen.tokens]
        return [("" if i in vocabulary.special_ids else vocabulary.text(i), i) for i in seen.token_ids.tolist()]

    def _answer(self, seen: Observation) -> Answer:
        if seen.error is not None:
            return Answer(error=seen.error)
        mass = {"yes": 0.0, "no": 0.0}
        for (token, _), logprob in zip(self._tokens(seen), seen.logprobs.tolist(), strict=True):
            if (said := spelling(token).strip()) in mass:
                mass[said] += float(np.exp(logprob))
        if not sum(mass.values()):
            return Answer(error=f"neither yes nor no is among the {len(seen.logprobs)} likeliest tokens")
        return Answer(p_yes=mass["yes"] / sum(mass.values()))


def _longer(prompt: Prompt, token: str, token_id: int | None) -> Prompt:
    ids = None if prompt.token_ids is None or token_id is None else (*prompt.token_ids, token_id)
    return replace(prompt, text=prompt.text + token, token_ids=ids)
