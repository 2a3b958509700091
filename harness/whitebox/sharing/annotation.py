"""What a language model says of shared pairs: are the two groups of words that their features fire on related, and why.

The pairs were chosen because their glosses are unlike, so that an association which a reader sees at once, or after a while, is
of a higher order than the embedder's. The model is asked as `asking` says, about the groups in both orders, and for a
reason. Two annotators are compared by Cohen's kappa.

Beside the tables of `shared` it writes `annotations.parquet`: annotator, site_a, i_a, j_a, site_b, i_b, j_b, p_related (null
where the model said neither), related, reason, error; and `annotations.json`: annotators, agreement, prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from harness.paths import writing
from harness.providers.base import Provider
from harness.providers.targets import OpenOptions, find_target, open_target
from harness.whitebox.asking import Answer, Asker
from harness.whitebox.features.catalogue import Catalogue
from harness.whitebox.sharing.shared import read_shared
from harness.whitebox.sources.sites import Site
from harness.whitebox.stage import NO_ROOM, Record, write_json, write_table

WORDS = 8
"""Words of each feature, of either source, that a group takes at most."""

REASON_TOKENS = 24

MIN_PAIRS = 5
"""Fewer pairs say nothing about agreement."""

PROMPT = """\
Group 1: knife, fork, spoon
Group 2: plate, bowl, cup
Are the words of group 1 and the words of group 2 related in meaning, yes or no?
Answer: yes, because both are used at the table.

Group 1: green, yellow, purple
Group 2: Monday, Friday, Sunday
Are the words of group 1 and the words of group 2 related in meaning, yes or no?
Answer: no, because the first are colors and the second are days.

Group 1: {first}
Group 2: {second}
Are the words of group 1 and the words of group 2 related in meaning, yes or no?
Answer:"""

PLACE = ("site_a", "i_a", "j_a", "site_b", "i_b", "j_b")
ANNOTATIONS = pa.schema(
    [
        ("annotator", pa.string()),
        *((name, pa.string() if name.startswith("site") else pa.int32()) for name in PLACE),
        ("p_related", pa.float32()),
        ("related", pa.bool_()),
        *((name, pa.string()) for name in ("reason", "error")),
    ]
)

Words = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotation:
    """What one annotator said of one pair of groups. `p_related`: P(yes) / (P(yes) + P(no)), the mean of both orders; None, and
    then `error` says why, where it could not be told."""

    p_related: float | None = None
    reason: str = ""
    error: str | None = None

    @property
    def related(self) -> bool | None:
        """The likelier answer."""
        return None if self.p_related is None else self.p_related >= 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How far two annotators agree on the `n` pairs that both judged. What cannot be said is None, and `problem` says why."""

    n: int
    share: float | None = None
    kappa: float | None = None
    problem: str | None = None


async def annotate_shared(
    folder: Path, catalogues: tuple[Catalogue, Catalogue], targets: Sequence[str], note: Callable[[str], None], *, most: int
) -> Record:
    """Let each of `targets` judge the `most` best shared pairs in `folder`, and write what they said there; the summary.

    Raises what `read_shared` and opening a target raise.
    """
    rows = read_shared(folder).slice(0, most)
    groups = _groups(rows, catalogues)
    said: dict[str, list[Annotation]] = {}
    told = []
    for target in dict.fromkeys(targets):
        provider = await open_target(find_target(target), OpenOptions(note=note))
        try:
            said[target] = await annotate(groups, provider)
        finally:
            await provider.aclose()
        failed = sum(one.p_related is None for one in said[target])
        related = sum(bool(one.related) for one in said[target])
        told.append({"target": target, "model": provider.info.model, "n": len(groups), "failed": failed, "related": related})
        note(f"{target}: {related} of {len(groups) - failed} shared pairs are of related meaning, {failed} without an answer")
    judged = [[one.related for one in annotations] for annotations in said.values()]
    summary: Record = {
        "annotators": told,
        "agreement": asdict(agreement(judged[0], judged[1])) if len(judged) == 2 else None,
        "prompt": PROMPT,
    }
    with writing(folder, hint=NO_ROOM):
        write_table(folder / "annotations.parquet", _table(rows, said))
        write_json(folder / "annotations.json", summary)
    return summary


async def annotate(groups: Sequence[tuple[Words, Words]], provider: Provider) -> list[Annotation]:
    """Whether the words of each two groups are related, and why; one annotation for each, in order."""
    asker = Asker(provider)
    questions = [PROMPT.format(first=", ".join(one), second=", ".join(other)) for one, other in groups]
    turned = [PROMPT.format(first=", ".join(other), second=", ".join(one)) for one, other in groups]
    answers = await asker.answers([*questions, *turned])
    found = [_judged(both) for both in zip(answers[: len(groups)], answers[len(groups) :], strict=True)]
    answered = [at for at, one in enumerate(found) if one.related is not None]
    begun = [f"{questions[at]} {'yes' if found[at].related else 'no'}, because" for at in answered]
    reasons = await asker.continuations(begun, max_tokens=REASON_TOKENS, stop="\n.")
    for at, reason in zip(answered, reasons, strict=True):
        found[at] = replace(found[at], reason=reason)
    return found


def agreement(one: Sequence[bool | None], other: Sequence[bool | None]) -> Agreement:
    """Cohen's kappa of two annotators' answers, over the pairs that both answered (Cohen 1960)."""
    both = np.array([(a, b) for a, b in zip(one, other, strict=True) if a is not None and b is not None], bool).reshape(-1, 2)
    n = len(both)
    if n < MIN_PAIRS:
        return Agreement(n=n, problem=f"fewer than {MIN_PAIRS} pairs that both judged")
    observed = float(np.mean(both[:, 0] == both[:, 1]))
    yes = both.mean(axis=0)
    if np.any((yes == 0) | (yes == 1)):
        return Agreement(n=n, share=observed, problem="an annotator always says the same")
    expected = float(yes.prod() + (1 - yes).prod())
    return Agreement(n=n, share=observed, kappa=(observed - expected) / (1 - expected))


def top_words(catalogue: Catalogue, site: Site, features: Sequence[int]) -> dict[int, Words]:
    """The first WORDS distinct words that each of `features` fires on most."""
    table = catalogue.table(site, "tokens")
    table = table.filter(pc.is_in(table["feature"], pa.array(sorted(set(features)), pa.int32())))
    table = table.sort_by([("feature", "ascending"), ("rank", "ascending")])
    found: dict[int, dict[str, str]] = {}
    for feature, word in zip(table["feature"].to_pylist(), table["word"].to_pylist(), strict=True):
        if word.strip():
            found.setdefault(feature, {}).setdefault(word.strip().casefold(), word.strip())
    return {feature: tuple(words.values())[:WORDS] for feature, words in found.items()}


def _groups(rows: pa.Table, catalogues: tuple[Catalogue, Catalogue]) -> list[tuple[Words, Words]]:
    """For each shared pair the words of its two features, those of both sources together."""
    listed = rows.select(PLACE).to_pylist()
    words: dict[tuple[str, str], Mapping[int, Words]] = {}
    for end, catalogue in zip("ab", catalogues, strict=True):
        for site in sorted({row[f"site_{end}"] for row in listed}):
            features = [row[f"{m}_{end}"] for row in listed if row[f"site_{end}"] == site for m in "ij"]
            words[end, site] = top_words(catalogue, Site.parse(site), features)
    return [(_group(row, "i", words), _group(row, "j", words)) for row in listed]


def _group(row: Mapping[str, Any], member: str, words: Mapping[tuple[str, str], Mapping[int, Words]]) -> Words:
    together = [word for end in "ab" for word in words[end, row[f"site_{end}"]].get(row[f"{member}_{end}"], ())]
    first: dict[str, str] = {}
    for word in together:
        first.setdefault(word.casefold(), word)
    return tuple(first.values())


def _judged(both: tuple[Answer, Answer]) -> Annotation:
    """One annotation of the answers to a question and to its turned form."""
    shares = [answer.p_yes for answer in both if answer.p_yes is not None]
    if len(shares) < len(both):
        return Annotation(error=next(answer.error for answer in both if answer.p_yes is None))
    return Annotation(p_related=float(np.mean(shares)))


def _table(rows: pa.Table, said: Mapping[str, Sequence[Annotation]]) -> pa.Table:
    places = rows.select(PLACE).to_pylist()
    return pa.Table.from_pylist(
        [
            {"annotator": target, **place, "related": one.related, **asdict(one)}
            for target, annotations in said.items()
            for place, one in zip(places, annotations, strict=True)
        ],
        schema=ANNOTATIONS,
    )
