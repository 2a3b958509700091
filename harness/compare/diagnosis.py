"""What fits the difference: likely causes, each with what speaks for it, the strongest first.

Each cause leaves a mark of its own: a temperature a slope, a renormalised list an intercept and sums of one, several backends
repeats in two clusters, a template other token counts, a cut context distances on long prompts alone, quantisation a small
scatter without any of these, another model other likeliest tokens. Where no mark is found, nothing is said.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from harness.compare.contracts import RENORMALISED, regime
from harness.compare.identity import known_mean
from harness.compare.result import Check, Diagnosis, Identity, Rung
from harness.compare.sentinels import Sentinel
from harness.compare.weighing import Weighed
from harness.stats.distances import clustering, spread
from harness.stats.scaling import scaling

_SLOPE, _SLOPE_EXPLAINS = 0.03, 0.8
"""A temperature of 0.97 or less has this slope, and leaves next to nothing else; other causes explain at most half by one."""

_SAME_TOKENS = 0.7
"""A temperature changes no order, so both lists hold the same tokens but for a few that rounding lets in."""

_TWO_CLUSTERS = 0.9
"""Share of the repeats' scatter between two clusters: noise leaves 0.4 of five repeats there, two backends nearly all."""

_LONG_TIMES = 4.0
"""Long prompts that lie so many times as far apart as the others do were not read to their beginning."""

_MANY_FLIPS, _LARGE_TV = 0.25, 0.15
"""Above either, the likeliest tokens are others: eight bits change a tenth of them and 0.03 of the probability, four bits half
and 0.28, another prompt a third and 0.2."""

_SHARED = 0.54
"""Share of the listed tokens that both sides list: 0.61 or more on the ladder for another prompt to the same weights, 0.46 or
less for weights that are rounded to four bits or noisy by a tenth."""

OTHER_WEIGHTS = "another model, or weights rounded to a few bits"
OTHER_PROMPT = "another prompt than was sent: a template or a system prompt"
ROUNDED = "quantised or otherwise rounded weights"
TEMPLATE = "another template or an added system prompt"
TEMPERATURE = "a temperature, or lists processed otherwise"
CUT = "a context that is cut, or long prompts that are read otherwise"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evidence:
    """What there is to go by."""

    checks: Sequence[Check]
    sentinels: Sequence[Sentinel]
    weighed: Weighed
    rungs: Sequence[Rung] = ()

    @property
    def identity(self) -> Identity:
        """The distance, judged."""
        return self.weighed.compared.identity

    @property
    def moved(self) -> bool:
        """Whether the distributions are not called equivalent, so that a cause is looked for."""
        return self.identity.estimate is not None and self.identity.decision != "equivalent"


def diagnose(evidence: Evidence) -> list[Diagnosis]:
    """Causes that fit, the strongest first; none where nothing was found."""
    found = [*_prompt_read_otherwise(evidence), *_backends(evidence), *_rescaled(evidence), *_cut(evidence)]
    if not any(one.strength >= 0.8 for one in found):
        found += _weights(evidence)
    return sorted(found, key=lambda one: -one.strength)


def _prompt_read_otherwise(evidence: Evidence) -> Iterator[Diagnosis]:
    """Template, BOS and token counts."""
    differs = {one.name: one for one in evidence.checks if one.agreement == "differs"}
    told = {name: f"{name}: {differs[name].a} at A, {differs[name].b} at B" for name in differs}
    if "tokenizer" in differs and evidence.moved:
        texts = [told[name] for name in ("tokenizer", "prompt tokens") if name in told]
        yield Diagnosis(cause="another tokenizer, so another model", evidence="; ".join(texts), strength=0.97)
    elif "prompt tokens" in differs or "template" in differs:
        texts = [told[name] for name in ("template", "prompt tokens", "BOS") if name in told]
        strength = 0.95 if evidence.moved else 0.5
        yield Diagnosis(cause=TEMPLATE, evidence="; ".join(texts), strength=strength)
    elif "BOS" in differs:
        yield Diagnosis(cause="another number of BOS tokens", evidence=told["BOS"], strength=0.9 if evidence.moved else 0.5)


def _backends(evidence: Evidence) -> Iterator[Diagnosis]:
    """One side's repeats fall into two clusters, farther apart than is benign."""
    margin = evidence.identity.margin
    for name, lists, own in zip("AB", evidence.weighed.lists or (), evidence.weighed.noises, strict=False):
        if own.mean is None or own.highest is None or own.highest < margin:
            continue
        far = spread(lists) > margin / 4
        shares = clustering(lists)[far]
        shares = shares[~np.isnan(shares)]
        if len(shares) and float(np.median(shares)) > _TWO_CLUSTERS:
            text = (
                f"the repeats of {len(shares)} of {len(far)} prompts fall into two groups, {own.mean:.2g} nat apart in the mean"
            )
            strength = float(np.median(shares))
            yield Diagnosis(cause=f"several backends behind {name}'s address", evidence=text, strength=strength)


def _rescaled(evidence: Evidence) -> Iterator[Diagnosis]:
    """A temperature, or a list that was made to sum to one."""
    if evidence.weighed.lists is None:
        return
    a, b = evidence.weighed.lists
    sums = regime(a), regime(b)
    scale = scaling(a, b)
    for name, own, other in (("A", sums[0], sums[1]), ("B", sums[1], sums[0])):
        if own == RENORMALISED != other:
            text = f"{name}'s probabilities sum to one over its list; in the mean A's are {scale.offset or 0:+.2f} nat off B's"
            yield Diagnosis(cause=f"{name}'s list is renormalised", evidence=text, strength=0.85)
    if scale.slope is None or scale.explained is None or not evidence.moved:
        return
    if scale.common > _SAME_TOKENS and abs(scale.slope) > _SLOPE and scale.explained > _SLOPE_EXPLAINS and scale.slope > -1:
        text = (
            f"A's log-probabilities are B's times {1 + scale.slope:.3f} within a prompt, which explains {scale.explained:.0%}"
            f" of the difference: a temperature of {1 / (1 + scale.slope):.3g} at A against B"
        )
        yield Diagnosis(cause=TEMPERATURE, evidence=text, strength=scale.explained)


def _cut(evidence: Evidence) -> Iterator[Diagnosis]:
    """Long prompts alone lie far apart."""
    own = evidence.weighed.compared.distances
    if own is None or not evidence.moved:
        return
    values = own.excess
    long = np.array([one.kind == "long" for one in evidence.sentinels], np.bool_)
    far, near = known_mean(values[long]), known_mean(values[~long])
    if far is None or near is None:
        return
    if far > evidence.identity.margin and far > _LONG_TIMES * max(near, 0.0):
        text = f"long prompts are {far:.2g} nat apart, the others {max(near, 0.0):.2g}"
        yield Diagnosis(cause=CUT, evidence=text, strength=0.9)


def _weights(evidence: Evidence) -> Iterator[Diagnosis]:
    """Other weights: rounded ones move little, another model's likeliest tokens are others."""
    identity = evidence.identity
    if not evidence.moved or identity.estimate is None:
        return
    nearest = _nearest(identity.estimate, evidence.rungs)
    near = f"; the nearest known variant is {nearest.variant} of {nearest.model}, {nearest.distance:.2g}" if nearest else ""
    if identity.flip_share is None or identity.tv_low is None:
        if identity.decision == "different":
            text = f"drawn tokens are {identity.estimate:.2g} apart ({identity.unit}){near}"
            yield Diagnosis(cause="another model, template or temperature", evidence=text, strength=0.6)
        return
    text = f"{identity.estimate:.2g} nat apart, {identity.flip_share:.0%} of the likeliest tokens differ"
    if identity.flip_share > _MANY_FLIPS or identity.tv_low > _LARGE_TV:
        common = scaling(*evidence.weighed.lists).common if evidence.weighed.lists is not None else 0.0
        strengths = (0.5, 0.7) if common > _SHARED else (0.7, 0.5)
        text += f", {common:.0%} of the listed tokens are common{near}"
        for cause, strength in zip((OTHER_WEIGHTS, OTHER_PROMPT), strengths, strict=True):
            yield Diagnosis(cause=cause, evidence=text, strength=strength)
    elif identity.decision == "different":
        yield Diagnosis(cause=ROUNDED, evidence=text + near, strength=0.6)


def _nearest(distance: float, rungs: Sequence[Rung]) -> Rung | None:
    """The ladder's variant of the nearest distance, by ratio."""
    known = [one for one in rungs if one.distance > 0]
    return min(known, key=lambda one: abs(np.log(one.distance / max(distance, 1e-9))), default=None)
