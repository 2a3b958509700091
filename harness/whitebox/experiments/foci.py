"""The four foci of an intervention: what is done to a model for a candidate, and how its answers are read.

- `feature`: dose * unit direction is added at the site, at every position. The direction is the decoder row, or in a model
  that has no dictionary the difference in means (`firing.elsewhere`).
- `token`: the same with the token gradient (`screen.token_gradient`) of that direction where the feature fires in its top
  context. The one of a random direction is taken where the target fires. It is taken on the model's weights as they are.
- `neuron`: a coordinate of what the model computes at the site is multiplied by the dose, at every position.
- `prompt`: WORDS of the candidate's high words are put in brackets before the sentence, as `(  one two ...)`; there is no dose.

Doses of directions are in units of the activation's standard deviation at the site, the square root of trace / d_model of its
covariance: one number for every direction, so that all arms are moved equally far.

Owns what is done. Which candidates, and what becomes of the effects, is `intervene`'s matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.errors import UsageError
from harness.packs.sampling import draw, generator
from harness.packs.templates import find_template
from harness.providers.engine import PrefixEngine
from harness.providers.vocabulary import Vocabulary
from harness.whitebox.experiments.candidates import Candidate
from harness.whitebox.sources.sites import Site
from harness.whitebox.steering.cached_prompt import last_logits
from harness.whitebox.steering.interventions import CoordinateScaling, Intervention, Steering, doses_in_std
from harness.whitebox.steering.screen import token_gradient
from harness.whitebox.steering.steering import Effects, Reading, Steerer

Focus = Literal["prompt", "token", "feature", "neuron"]

WORDS = 16
TEMPLATE = "paren"

Ids = tuple[int, ...]
Doses = NDArray[np.float64]
Read = Callable[[Tensor], Reading]
"""From the clean logits (V,) of a sentence, what is to be read of the changed ones."""

Outcome = tuple[Reading, Effects]


class Runner(Protocol):
    """Carries out one focus at one site of one model."""

    def able(self, candidate: Candidate) -> bool:
        """Whether anything can be done for `candidate`: not where a context that is needed is missing."""
        ...

    def run(self, sentences: Sequence[str], cases: Sequence[Candidate], doses: Doses, read: Read) -> Iterator[Outcome]:
        """What each case does at each of its doses (n, k) to each sentence; effects have the shape (n, k)."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Compass:
    """Unit directions (d_model,) at `site` of the model that is steered, by feature; `std` is the unit of dose there."""

    site: Site
    directions: Mapping[int, NDArray[np.float32]]
    d_model: int
    std: float
    seed: int

    def __call__(self, candidate: Candidate) -> NDArray[np.float32]:
        """The direction of a candidate; a random one is drawn from a generator of this site and target."""
        if candidate.feature is not None:
            return self.directions[candidate.feature]
        rng = generator(self.seed, "direction", str(self.site), str(candidate.target))
        drawn = rng.standard_normal((candidate.draw + 1, self.d_model), np.float32)[-1]
        unit: NDArray[np.float32] = drawn / np.linalg.norm(drawn)
        return unit


class FeatureRunner:
    """Adds directions."""

    def __init__(self, steerer: Steerer, vocabulary: Vocabulary, compass: Compass) -> None:
        self._steerer, self._vocabulary, self._compass = steerer, vocabulary, compass

    def able(self, candidate: Candidate) -> bool:
        return candidate.feature is None or candidate.feature in self._compass.directions

    def run(self, sentences: Sequence[str], cases: Sequence[Candidate], doses: Doses, read: Read) -> Iterator[Outcome]:
        directions = torch.from_numpy(np.stack([self._compass(case) for case in cases]))
        steering = _steering(self._compass, directions, doses)
        yield from _steered(self._steerer, self._vocabulary.encode(sentences), steering, read)


class TokenRunner:
    """Adds token gradients. `contexts`: for each feature, token ids that end where it fires, strongest first."""

    def __init__(
        self, steerer: Steerer, vocabulary: Vocabulary, compass: Compass, contexts: Mapping[int, Sequence[Ids]]
    ) -> None:
        self._steerer, self._vocabulary, self._compass, self._contexts = steerer, vocabulary, compass, contexts
        self._known: dict[tuple[int, int | None, int], Tensor] = {}

    def able(self, candidate: Candidate) -> bool:
        known = candidate.feature is None or candidate.feature in self._compass.directions
        return known and bool(self._contexts.get(_fires(candidate)))

    def run(self, sentences: Sequence[str], cases: Sequence[Candidate], doses: Doses, read: Read) -> Iterator[Outcome]:
        directions = torch.stack([self.gradient(case) for case in cases])
        steering = _steering(self._compass, directions, doses)
        yield from _steered(self._steerer, self._vocabulary.encode(sentences), steering, read)

    def gradient(self, case: Candidate) -> Tensor:
        """The token gradient of a case, (d_model,), computed once."""
        name = (case.target, None, case.draw) if case.feature is None else (case.feature, case.feature, 0)
        if name not in self._known:
            ids = self._contexts[_fires(case)][0]
            direction = torch.from_numpy(self._compass(case))
            prompt = self._steerer.cache(ids)
            self._known[name] = token_gradient(prompt, self._compass.site, direction, [len(ids) - 1]).cpu()
        return self._known[name]


class NeuronRunner:
    """Multiplies coordinates; a dose is a factor."""

    def __init__(self, steerer: Steerer, vocabulary: Vocabulary, site: Site) -> None:
        self._steerer, self._vocabulary, self._site = steerer, vocabulary, site

    def able(self, candidate: Candidate) -> bool:
        return candidate.feature is not None

    def run(self, sentences: Sequence[str], cases: Sequence[Candidate], doses: Doses, read: Read) -> Iterator[Outcome]:
        coordinates = torch.tensor([case.feature for case in cases])
        scaling = CoordinateScaling(site=self._site, coordinates=coordinates, factors=torch.from_numpy(doses))
        yield from _steered(self._steerer, self._vocabulary.encode(sentences), scaling, read)


class Answers:
    """The last logits of prompts. A common prefix is computed once where the engine can run the model, which it takes over."""

    def __init__(self, model: Any) -> None:
        self._model = model
        before = model.config._attn_implementation
        try:
            self._engine: PrefixEngine | None = PrefixEngine(model)
        except UsageError:
            model.set_attn_implementation(before)
            self._engine = None

    def logits(self, prompts: Sequence[Ids], groups: Sequence[str]) -> Iterator[tuple[int, Tensor]]:
        """Each prompt's number and logits (V,), in any order; prompts of one group share what they begin with."""
        if self._engine is None:
            with torch.no_grad():
                yield from ((number, last_logits(self._model, ids)) for number, ids in enumerate(prompts))
            return
        for numbers, logits in self._engine.logits(prompts, groups):
            yield from zip(numbers, logits, strict=True)


class PromptRunner:
    """Puts words before the sentence. `words`: the high words of each feature."""

    def __init__(self, answers: Answers, vocabulary: Vocabulary, words: Mapping[int, Sequence[str]], seed: int) -> None:
        self._answers, self._vocabulary, self._words, self._seed = answers, vocabulary, words, seed
        self._template = find_template(TEMPLATE)

    def able(self, candidate: Candidate) -> bool:
        return candidate.feature is not None and bool(self._words.get(candidate.feature))

    def injection(self, case: Candidate) -> tuple[str, ...]:
        """WORDS high words, each behind a space, in random order; repeated where the feature has fewer."""
        if case.feature is None:
            raise ValueError("a random direction has no words")
        rng = generator(self._seed, "words", str(case.target), case.arm, str(case.draw))
        return draw([f" {word}" for word in self._words[case.feature]], WORDS, rng)

    def run(self, sentences: Sequence[str], cases: Sequence[Candidate], doses: Doses, read: Read) -> Iterator[Outcome]:
        if doses.shape != (len(cases), 1):
            raise ValueError("an injection has no dose")
        injections = [self.injection(case) for case in cases]
        texts = [self._template.render(injection, sentence) for injection in injections for sentence in sentences]
        prompts = self._vocabulary.encode([*sentences, *texts])
        n = len(sentences)
        clean = dict(self._answers.logits(prompts[:n], ["clean"] * n))
        readings = [read(clean[number]) for number in range(n)]
        found: list[dict[int, Effects]] = [{} for _ in sentences]
        for number, logits in self._answers.logits(prompts[n:], [str(at // n) for at in range(len(texts))]):
            found[number % n][number // n] = readings[number % n].read(logits[None])
        for reading, effects in zip(readings, found, strict=True):
            yield reading, _column([effects[case] for case in range(len(cases))])


def _steering(compass: Compass, directions: Tensor, doses: Doses) -> Steering:
    """Unit `directions` (n, d_model) at `doses` (n, k), in standard deviations."""
    unit = doses_in_std(directions, torch.ones(1), compass.std)  # (n, 1)
    return Steering(site=compass.site, directions=directions, doses=unit * torch.from_numpy(doses).to(unit))


def _steered(steerer: Steerer, prompts: Sequence[Ids], intervention: Intervention, read: Read) -> Iterator[Outcome]:
    for ids in prompts:
        prompt = steerer.cache(ids)
        reading = read(prompt.clean_logits)
        yield reading, steerer.read(prompt, intervention, reading)


def _fires(candidate: Candidate) -> int:
    """The feature in whose context the gradient is taken."""
    return candidate.target if candidate.feature is None else candidate.feature


def _column(parts: Sequence[Effects]) -> Effects:
    """Effects of shape (1,) as those of shape (n, 1)."""
    return Effects(**{name: np.stack([getattr(part, name) for part in parts], axis=-2) for name in Effects.__slots__})
