"""From observations to trials: what an injection did to a sentence's next-token distribution.

Owns the columns of `trials.parquet` and their definitions; means and intervals are `analysis`' business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from harness.lexicon import matches
from harness.providers.embedding import Similarity
from harness.records import Lexicon, Mode, Observation, Prompt
from harness.stats.bounds import difference_bounds, log_odds, mass_bounds, tv_bounds
from harness.stats.draws import binomial_interval, log_odds_of_draws, without_bias

SCORING_VERSION = 1
"""Goes up when equal answers would get other scores, so that baselines from before are not compared with runs from after."""

Floats = NDArray[np.float64]
Columns = dict[str, Any]
"""Column name to a sequence of equal length; None (or NaN in a float array) where a value is missing."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class View:
    """A batch of B observations as arrays. Failed ones: ids -1, numbers NaN.

    `ids` (B, n), -1 at padding; `logprobs` (B, n); `count` (B,) lexicon tokens among the k likeliest; `low`, `high` (B,) bounds
    of the lexicon's mass; `cosine` (B,), the weighted cosine over the k likeliest; `failed` (B,).

    Of draws there is no list: `ids` are -1, `count` and `cosine` NaN, `low` and `high` the ends of the mass's exact 95%
    interval. `share` (B,) is then the mass as drawn, and `odds` (B,) its log-odds where they were amplified; NaN elsewhere.
    """

    ids: NDArray[np.int64]
    logprobs: NDArray[np.float32]
    count: Floats
    low: Floats
    high: Floats
    cosine: Floats
    share: Floats
    odds: Floats
    failed: NDArray[np.bool_]

    def take(self, rows: Sequence[int]) -> View:
        """The observations at `rows`, repeated as often as they are named."""
        return View(**{name: getattr(self, name)[rows] for name in self.__slots__})


class Scorer:
    """Scores the prompts of one concept on one target.

    `n_vocab`: size of the target's vocabulary, None if unknown; `similarity`: from its embeddings, None without them.
    Tokens that come as text only get numbers of this scorer's own, so that equal texts are equal tokens.
    """

    def __init__(self, lexicon: Lexicon, *, k: int, n_vocab: int | None, similarity: Similarity | None) -> None:
        self.lexicon = lexicon
        self.k = k
        self._n_vocab = n_vocab
        self._similarity = similarity
        self._text_ids: dict[str, int] = {}
        self._text_members: list[bool] = []

    def view(self, observations: Sequence[Observation]) -> View:
        """The observations as arrays, with the mass bounds filled in where the provider left them open."""
        drawn = np.array([o.mode is not None and o.mode.drawn for o in observations], np.bool_)
        width = max((len(o.logprobs) for o in observations if o.hits is None), default=0) or 1
        ids = np.full((len(observations), width), -1, np.int64)
        logprobs = np.full((len(observations), width), -np.inf, np.float32)
        for row, observation in enumerate(observations):
            if drawn[row]:
                continue
            n = len(observation.logprobs)
            ids[row, :n] = self._text_numbers(observation) if observation.token_ids is None else observation.token_ids
            logprobs[row, :n] = observation.logprobs
        member = self._members(ids, by_text=any(o.token_ids is None and not o.error for o in observations if o.hits is None))
        failed = np.array([o.error is not None for o in observations])
        low, high = self._mass(observations, ids, logprobs, member)
        draws = _draws(observations)
        low, high = np.where(drawn, draws.low, low), np.where(drawn, draws.high, high)
        unlisted = failed | drawn
        head = slice(0, self.k)
        cosine = np.full(len(observations), np.nan)
        if self._similarity is not None:
            probabilities = np.exp(logprobs[:, head].astype(np.float64))
            cosine = (probabilities * self._similarity.of(ids[:, head])).sum(axis=1)  # (B,)
        return View(
            ids=ids,
            logprobs=logprobs,
            count=np.where(unlisted, np.nan, member[:, head].sum(axis=1)),
            low=low,
            high=high,
            cosine=np.where(unlisted, np.nan, cosine),
            share=draws.share,
            odds=draws.odds,
            failed=failed,
        )

    def _text_numbers(self, observation: Observation) -> list[int]:
        numbers = []
        for text in observation.tokens:
            if text not in self._text_ids:
                self._text_ids[text] = len(self._text_ids)
                self._text_members.append(matches(text, self.lexicon.words))
            numbers.append(self._text_ids[text])
        return numbers

    def _members(self, ids: NDArray[np.int64], *, by_text: bool) -> NDArray[np.bool_]:
        if by_text or self.lexicon.token_ids is None:
            members = np.array([*self._text_members, False])
            return members[ids]  # padding, -1, reads the last entry
        return np.isin(ids, self.lexicon.token_ids)

    def _mass(
        self,
        observations: Sequence[Observation],
        ids: NDArray[np.int64],
        logprobs: NDArray[np.float32],
        member: NDArray[np.bool_],
    ) -> tuple[Floats, Floats]:
        """The provider's own bounds where it gave them, else those of the list."""
        own_low = np.array([np.nan if o.mass_low is None else o.mass_low for o in observations])
        own_high = np.array([np.nan if o.mass_high is None else o.mass_high for o in observations])
        covered = np.array([np.nan if o.covered_mass is None else o.covered_mass for o in observations])
        probabilities = np.exp(logprobs.astype(np.float64))
        listed = ids >= 0
        words = self.lexicon.token_ids
        low, high = mass_bounds(
            (probabilities * member).sum(axis=1),
            None if words is None else np.maximum(len(words) - member.sum(axis=1), 0),
            covered,
            probabilities.min(axis=1, where=listed, initial=1.0),
            self._n_vocab,
            listed.sum(axis=1),
        )
        return np.where(np.isnan(own_low), low, own_low), np.where(np.isnan(own_high), high, own_high)

    def trials(self, prompts: Sequence[Prompt], clean: View, injected: View) -> Columns:
        """The columns of `trials.parquet` for B injected prompts and the B clean views of their sentences.

        A success is strict, as published: more lexicon tokens among the k likeliest than clean, or more mass. `delta_*` is the
        midpoint of its bounds `delta_*_low`, `delta_*_high`; equal bounds mean it was measured, and no midpoint is given to
        bounds that reach to infinity. `mass_success` is None where the bounds of the two masses overlap, and `identified` says
        which way the shift certainly went: up, down, or unidentified.

        Where both masses were drawn, `delta_mass` is the difference of their unbiased estimates, whose error the spread over
        trials shows; so is `delta_log_odds` where both were amplified. `identified` then goes by the exact 95% intervals.
        """
        mass_low, mass_high = difference_bounds(injected.low, injected.high, clean.low, clean.high)
        odds_low, odds_high = difference_bounds(
            log_odds(injected.low), log_odds(injected.high), log_odds(clean.low), log_odds(clean.high)
        )
        identified = np.where(mass_low > 0, "up", np.where(mass_high < 0, "down", "unidentified"))
        success = np.where(mass_low > 0, 1.0, np.where(mass_high <= 0, 0.0, np.nan))
        mass_low, mass_high = _measured(injected.share - clean.share, mass_low, mass_high)
        odds_low, odds_high = _measured(injected.odds - clean.odds, odds_low, odds_high)
        failed = clean.failed | injected.failed
        unlisted = np.isnan(clean.count) | np.isnan(injected.count)
        tv_low, tv_high = tv_bounds(clean.ids, clean.logprobs, injected.ids, injected.logprobs)
        return {
            "concept": [p.concept for p in prompts],
            "arm": [p.arm for p in prompts],
            "sentence_id": [p.sentence_id for p in prompts],
            "injection_id": [p.injection_id for p in prompts],
            "off_type": [p.off_type for p in prompts],
            "k": [self.k] * len(prompts),
            "count_clean": clean.count,
            "count_injected": injected.count,
            "count_success": np.where(unlisted, np.nan, injected.count > clean.count),
            "mass_clean_low": clean.low,
            "mass_clean_high": clean.high,
            "mass_injected_low": injected.low,
            "mass_injected_high": injected.high,
            "mass_success": success,
            "identified": [None if lost else str(way) for lost, way in zip(failed, identified, strict=True)],
            "delta_mass": _midpoint(mass_low, mass_high),
            "delta_mass_low": mass_low,
            "delta_mass_high": mass_high,
            "delta_log_odds": _midpoint(odds_low, odds_high),
            "delta_log_odds_low": odds_low,
            "delta_log_odds_high": odds_high,
            "cosine_clean": clean.cosine,
            "cosine_injected": injected.cosine,
            "delta_cosine": injected.cosine - clean.cosine,
            "tv_low": np.where(unlisted, np.nan, tv_low),
            "tv_high": np.where(unlisted, np.nan, tv_high),
            "top1_changed": np.where(unlisted, np.nan, clean.ids[:, 0] != injected.ids[:, 0]),
            "predicted_shift": np.array([np.nan if p.predicted_shift is None else p.predicted_shift for p in prompts]),
        }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Draws:
    """What draws say of the lexicon's mass, (B,) each, NaN where nothing was drawn."""

    low: Floats
    high: Floats
    share: Floats
    odds: Floats


def _draws(observations: Sequence[Observation]) -> _Draws:
    hits, n, bias = (
        np.array([np.nan if (value := getattr(o, name)) is None else value for o in observations], np.float64)
        for name in ("hits", "n_draws", "bias")
    )
    amplified = np.array([o.mode is Mode.AMPLIFIED for o in observations], np.bool_)
    low, high = (without_bias(end, bias) for end in binomial_interval(hits, n))
    odds = np.where(amplified, log_odds_of_draws(hits, n, bias), np.nan)
    return _Draws(low=low, high=high, share=np.where(amplified, expit(odds), hits / n), odds=odds)


def _measured(estimate: Floats, low: Floats, high: Floats) -> tuple[Floats, Floats]:
    """`low`, `high`, and the estimate in place of both where there is one."""
    return np.where(np.isnan(estimate), low, estimate), np.where(np.isnan(estimate), high, estimate)


def _midpoint(low: Floats, high: Floats) -> Floats:
    """The middle of finite bounds, NaN otherwise."""
    with np.errstate(invalid="ignore"):
        middle = (low + high) / 2
    return np.where(np.isfinite(low) & np.isfinite(high), middle, np.nan)
