"""From links to the strings of each arm, by one of three constructions.

- `clean` (default): whole words of `prompts/words.txt` (lower-case, one leading space, frequency known by rank). `high` are
  the high words of interfering features that neither lie near the lexicon in meaning nor share a form with it; `low` those
  that interfere least with any target of the concept; `related` lie near the lexicon in meaning; `far`, from which
  `matched` and `random` come, do neither.
- `faithful`: the published rules (Gong et al. 2026, as released): strings as the tokenizer has them; a target needs one word
  of the lexicon; a feature counts as `high` or `low` by its strongest interference; only its first 10 high strings are taken;
  what is in both is dropped from both; sources are united; `far` is the rest of the sources' vocabularies.
- `intersection`: the same, but of `high`, `low` and `far` only what every source has there.

No string stands in two sets of a concept. Owns which strings an arm may draw from; how they become injections is
`injections`' matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from harness.packs.lexical import WordList, overlaps
from harness.whitebox.distilling.links import Link

Construction = Literal["clean", "faithful", "intersection"]

FIRST_TOKENS = 10
"""Strings taken of each interfering feature, as published."""

N_RELATED = 300
NEAR_SHARE = 0.125
"""Of the words of the list, at most so many nearest to the lexicon are `related`; this share of them is near in meaning, and
kept out of `high`, `low` and `far`."""

TRIGRAMS = 0.3

LOW_SHARE = 0.25
"""The words of `low`: the quarter of those that some feature fires on that interfere least."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lexicon:
    """A concept's words, and the unit mean of their vectors (d_embed,)."""

    concept: str
    words: frozenset[str]
    centre: NDArray[np.float32]

    @classmethod
    def of(cls, concept: str, words: frozenset[str], vectors: NDArray[np.float32]) -> Lexicon:
        """From the vectors (n, d_embed) of the words."""
        centre = vectors.mean(axis=0)
        return cls(concept=concept, words=words, centre=centre / np.linalg.norm(centre))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sets:
    """What the arms of a concept may draw from. `high`: its strings with the strongest link each comes from, strongest first.

    `near`: strings near the concept in meaning, which no arm but `related` may hold. `rank`: how frequent each string is, 0 the
    most, by whatever list the strings come from.
    """

    concept: str
    high: Mapping[str, Link]
    low: tuple[str, ...]
    own: tuple[str, ...]
    related: tuple[str, ...]
    far: tuple[str, ...]
    rank: Mapping[str, int]
    near: frozenset[str] = frozenset()


def clean_sets(
    lexicon: Lexicon, links: Iterable[Link], interference: Mapping[str, float], listed: WordList, rank: Mapping[str, int]
) -> Sets:
    """The sets of a concept by `clean`.

    `interference`: of every word that some feature fires on the strongest with any target, as a share of its site's threshold;
    words at 1 or more that no link vouches for are left out everywhere. `rank`: the place of each ` word` in `listed`.
    """
    own = lexicon.words
    near, related = _near(lexicon, listed)
    strongest = {f" {word}": link for word, link in _strongest(links, of_words=True).items()}
    high = {w: link for w, link in strongest.items() if w in rank and w not in near and not alike(w.strip(), own)}
    taken = {*high, *near, *(f" {word}" for word in own)}
    known = sorted((share, f" {w}") for w, share in interference.items() if f" {w}" in rank and f" {w}" not in taken)
    low = tuple(w for share, w in known[: round(LOW_SHARE * len(known))] if share < 1 and not alike(w.strip(), own))
    taken |= {*low, *(w for share, w in known if share >= 1)}
    return Sets(
        concept=lexicon.concept,
        high=high,
        low=low,
        own=tuple(f" {word}" for word in sorted(own)),
        related=related,
        far=tuple(w for w in rank if w not in taken),
        rank=rank,
        near=frozenset(near),
    )


def published_sets(
    lexicon: Lexicon,
    links: Mapping[str, Sequence[Link]],
    thresholds: Mapping[str, float],
    vocabularies: Mapping[str, Mapping[str, int]],
    related: Sequence[str],
    *,
    united: bool,
) -> Sets:  # fmt: skip
    """The sets of a concept by `faithful` (`united`) or `intersection`.

    `links` of each source, those of `thresholds` and above are `high`; `vocabularies`: each source's decodable strings, with
    their ids. Strings in `high` and `low` of one source are dropped from both, as published; across sources the first of
    high, low, far that has a string keeps it (published sets hold it in several).
    """
    combine = set.union if united else set.intersection
    own = {f" {word}" for word in lexicon.words}
    high_links: dict[str, Link] = {}
    highs: list[set[str]] = []
    lows: list[set[str]] = []
    for source, found in links.items():
        strong = _strongest((link for link in found if link.interference >= thresholds[source]), take=FIRST_TOKENS)
        weak = _strongest((link for link in found if link.interference < thresholds[source]), take=FIRST_TOKENS)
        highs.append({text for text in strong if text not in weak and text.strip()} - own)
        lows.append({text for text in weak if text not in strong and text.strip()} - own)
        high_links = {**strong, **high_links}
    rank = reduce(lambda known, more: {**more, **known}, vocabularies.values(), dict[str, int]())
    high = {text: link for text, link in high_links.items() if text in combine(*highs)}
    low = combine(*lows) - high.keys()
    rest = combine(*(set(vocabulary) for vocabulary in vocabularies.values())) - high.keys() - low - own
    return Sets(
        concept=lexicon.concept,
        high=high,
        low=tuple(sorted(low)),
        own=tuple(sorted(own)),
        related=tuple(word for word in related if word in rank and word not in high and word not in low),
        far=tuple(sorted(rest.difference(related))),
        rank={text: rank.get(text, len(rank)) for text in {*rest, *high, *low, *own, *related}},
    )


def near_words(lexicon: Lexicon, listed: WordList) -> tuple[str, ...]:
    """The words of the list nearest to the lexicon in meaning that share no form with it, nearest first."""
    return _near(lexicon, listed)[1]


def alike(word: str, words: frozenset[str]) -> bool:
    """Whether `word` shares its form with one of `words`: as `lexical.overlaps` says, or more than TRIGRAMS of all trigrams."""
    own = _trigrams(word)
    return overlaps(word, words) or any(
        len(own & other) > TRIGRAMS * len(own | other) for other in (_trigrams(one) for one in words)
    )


@cache
def _trigrams(word: str) -> frozenset[str]:
    return frozenset(word[at : at + 3] for at in range(max(len(word) - 2, 1)))


def _near(lexicon: Lexicon, listed: WordList) -> tuple[set[str], tuple[str, ...]]:
    """All words near the lexicon, and of those the `related` ones."""
    order = np.argsort(-(listed.vectors @ lexicon.centre), kind="stable")
    nearest = [listed.words[at] for at in order[: round(NEAR_SHARE * len(order))]]
    distinct = [f" {word}" for word in nearest if not alike(word, lexicon.words)]
    return {f" {word}" for word in nearest}, tuple(distinct[:N_RELATED])


def _strongest(links: Iterable[Link], *, take: int | None = None, of_words: bool = False) -> dict[str, Link]:
    """For each string of the links' tokens (as the tokenizer has it, or the whole word) its strongest link, strongest first."""
    found: dict[str, Link] = {}
    for link in sorted(links, key=lambda link: -link.interference):
        for text in (link.words if of_words else link.tokens)[:take]:
            found.setdefault(text, link)
    return found
