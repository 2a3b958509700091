"""The shift that a source itself shows for an injection: what a probe predicts of other models.

    predicted_shift = mean over reserved sentences of log-odds(lexicon | injection, sentence) - log-odds(lexicon | sentence)

in nats, in the source's own vocabulary. The sentences are reserved: `distill` takes them out of the pack's own copy of the
concept, so that no run is scored on them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit

from harness.lexicon import resolve
from harness.packs.concepts import Concept
from harness.packs.templates import Template
from harness.providers.engine import PrefixEngine
from harness.providers.vocabulary import Vocabulary
from harness.records import Lexicon, Readout
from harness.whitebox.sources.models import LocalModel

BATCH = 64
"""Injections asked together; their number changes no result but in rounding."""

Injection = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Predictor:
    """A source that is asked. `engine` has taken over its model."""

    source: str
    engine: PrefixEngine
    vocabulary: Vocabulary

    @classmethod
    def of(cls, model: LocalModel) -> Predictor:
        """From a loaded model, which cannot be used for anything else afterwards."""
        return cls(source=model.name, engine=PrefixEngine(model.model), vocabulary=Vocabulary.load(model.folder))

    def shifts(
        self, concept: Concept, sentences: Sequence[str], injections: Sequence[Injection], template: Template
    ) -> NDArray[np.float64]:
        """The mean shift of each injection over `sentences`, nats, (n,); NaN where no token is a word of it."""
        lexicon = resolve(concept, self.vocabulary, first_token=False)
        if lexicon.token_ids is None or not len(lexicon.token_ids):
            return np.full(len(injections), np.nan)
        clean = self._log_odds(lexicon, {(): list(sentences)})[()]
        found = np.empty(len(injections))
        for start in range(0, len(injections), BATCH):
            part = injections[start : start + BATCH]
            prompts = {injection: [template.render(injection, sentence) for sentence in sentences] for injection in part}
            odds = self._log_odds(lexicon, prompts)
            found[start : start + len(part)] = [float(np.mean(odds[injection] - clean)) for injection in part]
        return found

    def _log_odds(self, lexicon: Lexicon, prompts: Mapping[Injection, Sequence[str]]) -> dict[Injection, NDArray[np.float64]]:
        """The log-odds of the lexicon's mass after each prompt, by injection."""
        ids = [self.vocabulary.encode(texts) for texts in prompts.values()]
        groups = [str(number) for number, part in enumerate(ids) for _ in part]
        seen = self.engine.observe([one for part in ids for one in part], groups, Readout(lexicon=lexicon, n_logprobs=1))
        masses = np.array([np.nan if one.mass_low is None else one.mass_low for one in seen])
        cuts = np.cumsum([len(part) for part in ids])[:-1]
        with np.errstate(invalid="ignore"):
            return dict(zip(prompts, np.split(logit(masses), cuts), strict=True))
