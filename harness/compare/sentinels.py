"""The prompts that both sides are asked: unfinished sentences of the concepts, some long texts, and near ties.

Owns the choice alone. All of it follows from a seed, but for the near ties, which the reference side's own answers choose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from harness.packs.concepts import concept_names, find_concept
from harness.packs.sampling import generator
from harness.records import CLEAN, Observation, Prompt, Sentence

Kind = Literal["plain", "long", "tie"]

_LONG_SHARE = 6
"""One prompt in so many is long: a context that is cut, or read otherwise, shows there and nowhere else."""

_LONG_SENTENCES = 20
"""Sentences of a long prompt, about 200 tokens."""

_CANDIDATES_A_TIE = 16
"""Sentences among which one near tie is looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sentinel:
    """A prompt to compare on. `tie`: the reference side's two likeliest tokens are nearly equal, so little flips them."""

    prompt_id: str
    text: str
    kind: Kind

    def prompt(self, token_ids: tuple[int, ...] | None) -> Prompt:
        """As a provider takes it, alone in its group."""
        return Prompt(
            prompt_id=self.prompt_id,
            concept="",
            arm=CLEAN,
            sentence_id=self.prompt_id,
            injection_id="",
            template="",
            group=self.prompt_id,
            text=self.text,
            token_ids=token_ids,
        )


def choose(n: int, seed: int) -> tuple[Sentinel, ...]:
    """`n` prompts spread evenly over the concepts, one in six of them long; equal seeds give equal prompts."""
    n_long = n // _LONG_SHARE
    plain = [Sentinel(prompt_id=one.sentence_id, text=one.text, kind="plain") for one in _spread(n - n_long, seed, "sentinels")]
    parts = _spread(n_long * _LONG_SENTENCES, seed, "long sentinels")
    rng = generator(seed, "long sentinels", "order")
    order = rng.permutation(len(parts))
    size = len(parts) // max(n_long, 1)
    long = [
        Sentinel(prompt_id=f"long-{i:02}", text=" ".join(parts[j].text for j in order[i * size : (i + 1) * size]), kind="long")
        for i in range(n_long)
    ]
    return (*plain, *long)


def tie_candidates(n: int, seed: int, taken: Sequence[Sentinel]) -> tuple[Sentinel, ...]:
    """Sentences that are not taken yet, among which `n` near ties are looked for."""
    texts = {one.text for one in taken}
    fresh = [one for one in _spread(n * _CANDIDATES_A_TIE + len(texts), seed, "near ties") if one.text not in texts]
    return tuple(Sentinel(prompt_id=one.sentence_id, text=one.text, kind="tie") for one in fresh[: n * _CANDIDATES_A_TIE])


def near_ties(candidates: Sequence[Sentinel], answers: Sequence[Observation], n: int) -> tuple[Sentinel, ...]:
    """The `n` candidates whose two likeliest tokens are nearest to each other; fewer where fewer lists came."""
    gaps = [float(seen.logprobs[0] - seen.logprobs[1]) if len(seen.logprobs) > 1 else np.inf for seen in answers]
    order = np.argsort(gaps, kind="stable")[:n]
    return tuple(candidates[i] for i in order if np.isfinite(gaps[i]))


def _spread(n: int, seed: int, purpose: str) -> list[Sentence]:
    """At most `n` sentences, as many of each concept as of any other, give or take one, in an order that mixes them."""
    drawn = []
    for name in concept_names():
        concept = find_concept(name)
        sentences = (*concept.sentences, *concept.off_type)
        rng = generator(seed, purpose, name)
        drawn.append([sentences[i] for i in rng.permutation(len(sentences))])
    rounds = max(map(len, drawn), default=0)
    mixed = [sentences[i] for i in range(rounds) for sentences in drawn if i < len(sentences)]
    return mixed[:n]
