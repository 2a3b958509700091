"""From what two sides said to the same prompts to how far they are apart, by the best statistic that their answers allow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from harness.compare.contracts import list_checks
from harness.compare.identity import Compared, Rule, by_draws, by_draws_and_lists, by_lists, noise
from harness.compare.naming import Naming, Told, shared_naming
from harness.compare.result import Check, Noise
from harness.compare.sentinels import Sentinel
from harness.stats.distances import Repeats

LISTED = 20
"""Tokens compared of each list: what hosted endpoints give at most, and beyond them rounding speaks louder than the model."""

DRAWN = Noise(reason="answers are drawn: one endpoint's draws differ by chance, which the statistic allows for")

_NO_LISTS = (
    "log-probabilities: neither side shows any, so what both draw was compared; rounded weights and small changes of"
    " temperature cannot be seen that way"
)
_ONE_LIST = (
    "log-probabilities of {}: it shows none, so its draws were held against the other side's probabilities; rounded weights"
    " cannot be seen that way"
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Weighed:
    """The distance with what else the answers showed; `lists` where both sides show some, `unseen`: what this could not see."""

    compared: Compared
    checks: list[Check] = field(default_factory=list)
    noises: tuple[Noise, Noise] = (DRAWN, DRAWN)
    lists: tuple[Repeats, Repeats] | None = None
    unseen: list[str] = field(default_factory=list)


def weigh(a: Told, b: Told, sentinels: Sequence[Sentinel], rule: Rule) -> Weighed:
    """Lists against lists, draws against lists, or draws against draws."""
    if a.shows_lists and b.shows_lists:
        naming = shared_naming(a, b)
        lists = naming.repeats(a, most=LISTED), naming.repeats(b, most=LISTED)
        return Weighed(
            compared=by_lists(*lists, sentinels, naming, rule),
            checks=list_checks(*lists),
            noises=(noise(lists[0]), noise(lists[1])),
            lists=lists,
            unseen=_short(lists),
        )
    naming = Naming()
    if not (a.shows_lists or b.shows_lists):
        counts = naming.counts(a), naming.counts(b)
        return Weighed(compared=by_draws(*counts, sentinels, naming, rule), unseen=[_NO_LISTS])
    listing, drawing = (a, b) if a.shows_lists else (b, a)
    listed, drawn = naming.repeats(listing, most=LISTED), naming.counts(drawing)
    own = noise(listed)
    compared = by_draws_and_lists(drawn, listed, sentinels, naming, rule)
    return Weighed(
        compared=compared if b.shows_lists else compared.turned(),
        noises=(own, DRAWN) if a.shows_lists else (DRAWN, own),
        unseen=[_ONE_LIST.format("B" if a.shows_lists else "A")],
    )


def _short(lists: tuple[Repeats, Repeats]) -> list[str]:
    """What lists shorter than the margin's leave open."""
    longest = [int((side.ids >= 0).sum(axis=2).max(initial=0)) for side in lists]
    if not 0 < min(longest) < LISTED:
        return []
    return [f"tokens beyond the {min(longest)} likeliest: no more are listed, and the margin was measured on {LISTED}"]
