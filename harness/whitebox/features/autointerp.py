"""Glosses from a language model: it reads where a feature fires, says in a phrase what that has in common, and is tested.

The explainer is asked as `asking` says. The test is one of detection on contexts that it was not shown, as many where the
feature fires as where others do: given the phrase, does it tell which are which (yes or no, whichever it holds likelier)?
The score is the balanced accuracy, so that an explainer who always says yes gets a half.

The protocol is that of Bills et al. (2023) with the detection score of Paulo et al. (2024, arXiv 2410.13928); the words are
our own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from harness.packs.sampling import generator
from harness.providers.base import Provider
from harness.whitebox.asking import Answer, Asker
from harness.whitebox.features.glosses import Gloss

PROTOCOL = 1
"""Raised when prompts or test change: glosses made otherwise are then made again."""

MAX_TOKENS = 24
N_SHOWN = 8
N_TESTED = 4
"""Contexts of each kind in the test, at most."""

POOL = 1024
"""Features whose contexts stand against those of the feature that is tested: a sample, so that few are held."""

# Three worked examples of different kinds: a small model repeats the answer of a single one.
EXPLAIN = """\
In each list one word of every text is marked with << and >>. A short phrase says what the marked words have in common.

1. the <<cat>> slept beside the stove
2. two <<dogs>> that guard a farm
3. to ride a <<pony>> to the village
What the marked words have in common: animals that people keep

1. they met <<on>> Monday
2. <<in>> the spring of 1848
3. it closes <<at>> noon
What the marked words have in common: prepositions before a time

1. a plan that is bound to <<fail>>
2. the crew that <<lost>> its ship
3. an <<unsuccessful>> attempt
What the marked words have in common: failure and loss

"""
COMMON = "What the marked words have in common:"

DETECT = """\
Topic: animals that people keep
Text: two dogs that guard a farm
Does the text fit the topic? Yes

Topic: animals that people keep
Text: a bank that lends money to farmers
Does the text fit the topic? No

"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """A text and where in it a feature fires most; `document` tells texts apart."""

    document: int
    text: str
    start: int
    end: int

    @property
    def marked(self) -> str:
        """The text on one line, the place marked; spaces beside the place stay outside."""
        place = self.text[self.start : self.end]
        core = place.strip()
        if not core:
            return _line(self.text)
        start = self.start + place.index(core)
        return _line(f"{self.text[:start]}<<{core}>>{self.text[start + len(core) :]}")

    @property
    def plain(self) -> str:
        """The text on one line."""
        return _line(self.text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A feature with the contexts that its explainer is shown, and those that it is tested on."""

    feature: int
    shown: tuple[Context, ...]
    firing: tuple[Context, ...] = ()
    others: tuple[Context, ...] = ()


class Interpreter:
    """Asks `provider` about features; `note` takes lines for the user."""

    def __init__(self, provider: Provider, *, seed: int = 0, note: Callable[[str], None] = lambda _line: None) -> None:
        self._target = provider.info.target
        self._asker = Asker(provider)
        self._seed = seed
        self._note = note

    async def gloss_site(self, folder: Path, n_features: int | None = None) -> dict[int, Gloss]:
        """Scored glosses of the features of a catalogued site, or of the `n_features` that fire most often."""
        cases = read_cases(folder, n_features, seed=self._seed)
        self._note(f"asking {self._target} about {len(cases):,} features")
        return await self.gloss(cases)

    async def gloss(self, cases: Sequence[Case]) -> dict[int, Gloss]:
        """Scored glosses of `cases`; a feature about which nothing was said, or whose question failed, has none."""
        texts = await self._asker.continuations([explaining(case.shown) for case in cases], max_tokens=MAX_TOKENS, stop="\n")
        said = [(case, cleaned) for case, text in zip(cases, texts, strict=True) if (cleaned := text.rstrip(".").strip())]
        scores = await self._scores(said)
        return {
            case.feature: Gloss(text=text, source=f"llm:{self._target}", score=score)
            for (case, text), score in zip(said, scores, strict=True)
        }

    async def _scores(self, said: Sequence[tuple[Case, str]]) -> list[float | None]:
        """The balanced accuracy of each gloss on the contexts its explainer was not shown."""
        questions = [detecting(text, context) for case, text in said for context in (*case.firing, *case.others)]
        answers = iter(await self._asker.answers(questions))
        scores = []
        for case, _ in said:
            own, other = ([_yes(next(answers)) for _ in contexts] for contexts in (case.firing, case.others))
            scores.append(balanced_accuracy(own, other))
        return scores


def _yes(answer: Answer) -> bool | None:
    """Whether yes is likelier than no; None where neither is seen, or both are equally likely."""
    return None if answer.p_yes in (None, 0.5) else bool(answer.p_yes and answer.p_yes > 0.5)


def explaining(shown: Sequence[Context]) -> str:
    """The prompt that asks what the marked words of these contexts have in common."""
    listed = "\n".join(f"{number}. {context.marked}" for number, context in enumerate(shown, start=1))
    return f"{EXPLAIN}{listed}\n{COMMON}"


def detecting(gloss: str, context: Context) -> str:
    """The prompt that asks whether a text fits a gloss."""
    return f"{DETECT}Topic: {gloss}\nText: {context.plain}\nDoes the text fit the topic?"


def balanced_accuracy(firing: Sequence[bool | None], others: Sequence[bool | None]) -> float | None:
    """The mean of the share of yes among `firing` and of no among `others`; unanswered ones do not count, None without any."""
    yes = [answer for answer in firing if answer is not None]
    no = [not answer for answer in others if answer is not None]
    return (sum(yes) / len(yes) + sum(no) / len(no)) / 2 if yes and no else None


def read_cases(folder: Path, n_features: int | None, *, seed: int) -> list[Case]:
    """The features of a catalogued site that fire anywhere, the most frequent first, with contexts to show and to test on.

    Every other context is held out, so that those shown and those tested are equally strong; the others come from features
    drawn at random, from documents in which the feature itself has no top context.
    """
    features = pq.read_table(folder / "features.parquet", columns=["feature", "density", "max_act"])
    fires = features["max_act"].to_numpy() > 0
    density = np.nan_to_num(features["density"].to_numpy())
    order = np.lexsort((np.arange(len(fires)), -density))
    chosen = order[fires[order]][:n_features]
    firing = np.flatnonzero(fires)
    pool = np.sort(generator(seed, "detection").permutation(firing)[:POOL])
    contexts = _contexts(folder / "contexts.parquet", np.union1d(chosen, pool))
    pool = pool[np.isin(pool, list(contexts))]
    return [_case(int(feature), contexts, pool, seed) for feature in chosen if int(feature) in contexts]


def _case(feature: int, contexts: dict[int, list[Context]], pool: NDArray[np.int64], seed: int) -> Case:
    own = contexts[feature]
    shown, held_out = own[::2][:N_SHOWN], own[1::2][:N_TESTED]
    documents = {context.document for context in own}
    others: list[Context] = []
    rng = generator(seed, "detection", str(feature))
    for other in rng.permutation(pool)[: 8 * N_TESTED].tolist():
        if len(others) == len(held_out):
            break
        context = contexts[other][int(rng.integers(len(contexts[other])))]
        if context.document not in documents:
            documents.add(context.document)
            others.append(context)
    return Case(feature=feature, shown=tuple(shown), firing=tuple(held_out), others=tuple(others))


def _contexts(path: Path, features: NDArray[np.int64]) -> dict[int, list[Context]]:
    """The contexts of each of `features` that has any, the strongest first."""
    found: dict[int, list[Context]] = {}
    names = ("feature", "document", "text", "start", "end")
    table = pq.read_table(path, columns=list(names), filters=[("feature", "in", features.tolist())])
    for feature, document, text, start, end in zip(*(table[name].to_pylist() for name in names), strict=True):
        found.setdefault(feature, []).append(Context(document=document, text=text, start=start, end=end))
    return found


def _line(text: str) -> str:
    return " ".join(text.split())
