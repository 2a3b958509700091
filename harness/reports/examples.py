"""Example prompts for the report: for each concept and arm the largest shift and one trial drawn at random.

Owns the choice and what is shown of a trial; `html` owns how it looks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, NamedTuple

import numpy as np

from harness.evals.trials import ScoredBatch
from harness.lexicon import matches
from harness.packs.sampling import generator
from harness.providers.vocabulary import Vocabulary
from harness.records import Lexicon, Observation, Prompt

N_TOP = 8
N_CHANGED = 6

Bounds = tuple[float, float]
Picked = Literal["largest", "random"]


class Likely(NamedTuple):
    """A token among the likeliest; `member`: it belongs to the concept's lexicon."""

    text: str
    probability: float
    member: bool


class Change(NamedTuple):
    """A token whose probability changed; None on the side where it is not listed."""

    text: str
    clean: float | None
    injected: float | None
    member: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One trial, shown. `injection` is all that stands before the sentence, the template's marks included.

    `mass_*`: bounds of the lexicon's mass. `risen`, `fallen`: the tokens that changed most for sure, by the least change that
    the lists allow: an unlisted token lies anywhere between 0 and `smallest_*`, the smallest listed probability of that side.
    """

    concept: str
    arm: str
    picked: Picked
    injection: str
    sentence: str
    mass_clean: Bounds
    mass_injected: Bounds
    delta_log_odds: float | None
    clean_top: tuple[Likely, ...]
    injected_top: tuple[Likely, ...]
    risen: tuple[Change, ...]
    fallen: tuple[Change, ...]
    smallest_clean: float
    smallest_injected: float


@dataclass(slots=True)
class _Choice:
    """What is kept for one concept and arm: two trials, whatever the number seen."""

    rng: np.random.Generator
    n_seen: int = 0
    largest_shift: float = 0.0
    largest: tuple[str, Example] | None = None
    random: tuple[str, Example] | None = None

    def examples(self) -> list[Example]:
        """The largest first; one trial that is both is shown once."""
        kept = dict(choice for choice in (self.random, self.largest) if choice is not None)
        return list(reversed(kept.values()))


class ExamplePicker:
    """Takes scored batches in the plan's order and keeps two trials of each concept and arm.

    Which ones depends on the plan and the seed, not on how the plan is cut into batches. Trials that failed and off-type
    sentences are passed over. `vocabulary` names tokens that came as ids alone; without `lexicons` no token is marked as a
    word of its concept.
    """

    def __init__(self, *, seed: int, vocabulary: Vocabulary | None, lexicons: Mapping[str, Lexicon] | None = None) -> None:
        self._seed = seed
        self._vocabulary = vocabulary
        self._lexicons = lexicons or {}
        self._concept: str | None = None
        self._clean: dict[str, tuple[Prompt, Observation]] = {}
        self._choices: dict[tuple[str, str], _Choice] = {}

    def add(self, batch: ScoredBatch) -> None:
        """Look at one batch; a concept's clean batches come before its injected ones."""
        if batch.trials is None:
            self._remember(batch)
            return
        shifts = np.asarray(batch.trials["delta_log_odds"], np.float64)
        failed = [way is None for way in batch.trials["identified"]]
        for row, prompt in enumerate(batch.prompts):
            if not failed[row] and not prompt.off_type:
                self._offer(batch, row, float(shifts[row]))

    def examples(self) -> tuple[Example, ...]:
        """The examples of every concept and arm, in the order in which they were seen."""
        return tuple(example for choice in self._choices.values() for example in choice.examples())

    def _remember(self, batch: ScoredBatch) -> None:
        """Keep the clean observations of one concept, until the next one's come."""
        if batch.prompts[0].concept != self._concept:
            self._concept = batch.prompts[0].concept
            self._clean.clear()
        for prompt, observation in zip(batch.prompts, batch.observations, strict=True):
            self._clean[prompt.sentence_id] = (prompt, observation)

    def _offer(self, batch: ScoredBatch, row: int, shift: float) -> None:
        """Keep the trial if it is the largest so far, and with probability 1 / n as the n-th seen."""
        prompt = batch.prompts[row]
        key = (prompt.concept, prompt.arm)
        if key not in self._choices:
            self._choices[key] = _Choice(generator(self._seed, "examples", *key))
        choice = self._choices[key]
        choice.n_seen += 1
        if choice.rng.random() * choice.n_seen < 1:
            choice.random = (prompt.prompt_id, self._example(batch, row, "random"))
        if shift > choice.largest_shift:
            choice.largest_shift = shift
            choice.largest = (prompt.prompt_id, self._example(batch, row, "largest"))

    def _example(self, batch: ScoredBatch, row: int, picked: Picked) -> Example:
        prompt = batch.prompts[row]
        sentence, observation = self._clean[prompt.sentence_id]
        clean, injected = self._listed(prompt.concept, observation), self._listed(prompt.concept, batch.observations[row])
        trials: Mapping[str, Any] = batch.trials or {}
        shift = float(trials["delta_log_odds"][row])
        drawn = observation.mode is not None and observation.mode.drawn  # what was not drawn may be as likely as what was
        risen, fallen = ((), ()) if drawn else _changes(clean, injected)
        return Example(
            concept=prompt.concept,
            arm=prompt.arm,
            picked=picked,
            injection=prompt.text.removesuffix(sentence.text),
            sentence=sentence.text,
            mass_clean=(float(trials["mass_clean_low"][row]), float(trials["mass_clean_high"][row])),
            mass_injected=(float(trials["mass_injected_low"][row]), float(trials["mass_injected_high"][row])),
            delta_log_odds=None if np.isnan(shift) else shift,
            clean_top=tuple(islice(clean.tokens.values(), N_TOP)),
            injected_top=tuple(islice(injected.tokens.values(), N_TOP)),
            risen=risen,
            fallen=fallen,
            smallest_clean=clean.smallest,
            smallest_injected=injected.smallest,
        )

    def _listed(self, concept: str, observation: Observation) -> _Listed:
        ids = None if observation.token_ids is None else [int(i) for i in observation.token_ids]
        texts = list(observation.tokens)
        if not texts and ids is not None and self._vocabulary is not None:
            texts = [self._vocabulary.text(i) for i in ids]
        keys: Sequence[int | str] = texts if ids is None else ids
        probabilities = np.exp(observation.logprobs.astype(np.float64)).tolist()
        members = self._members(concept, ids, texts)
        tokens: dict[int | str, Likely] = {}
        for key, text, probability, member in zip(keys, texts, probabilities, members, strict=True):
            tokens.setdefault(key, Likely(text, probability, member))  # different ids may read alike: the likelier one stands
        return _Listed(tokens=tokens, smallest=min(probabilities, default=1.0))

    def _members(self, concept: str, ids: list[int] | None, texts: list[str]) -> list[bool]:
        lexicon = self._lexicons.get(concept)
        if lexicon is None:
            return [False] * len(texts)
        if ids is None or lexicon.token_ids is None:
            return [matches(text, lexicon.words) for text in texts]
        return [bool(member) for member in np.isin(ids, lexicon.token_ids)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Listed:
    """What an observation lists, likeliest first, by token id, or by text where there are no ids."""

    tokens: Mapping[int | str, Likely]
    smallest: float

    def range(self, key: int | str) -> Bounds:
        """The bounds of a token's probability."""
        token = self.tokens.get(key)
        return (0.0, self.smallest) if token is None else (token.probability, token.probability)


def _changes(clean: _Listed, injected: _Listed) -> tuple[tuple[Change, ...], tuple[Change, ...]]:
    """The tokens that rose and those that fell, most first."""
    risen: list[tuple[float, Change]] = []
    fallen: list[tuple[float, Change]] = []
    for key, token in {**injected.tokens, **clean.tokens}.items():
        before, after = clean.tokens.get(key), injected.tokens.get(key)
        (clean_low, clean_high), (injected_low, injected_high) = clean.range(key), injected.range(key)
        change = Change(token.text, before.probability if before else None, after.probability if after else None, token.member)
        if injected_low > clean_high:
            risen.append((injected_low - clean_high, change))
        elif injected_high < clean_low:
            fallen.append((clean_low - injected_high, change))
    return _most(risen), _most(fallen)


def _most(changes: list[tuple[float, Change]]) -> tuple[Change, ...]:
    return tuple(change for _, change in sorted(changes, key=lambda item: -item[0])[:N_CHANGED])
