"""How large a run must be to see an effect of a given size, from a finished pilot. Pure: numbers in, designs out.

Owns the search over designs. The model of the spread and its estimates stand in `harness.stats.components`, the test that a
verdict rests on in `harness.stats.crossed`, what a design costs a target in `harness.reports.estimate`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtri

from harness.evals.score import Columns
from harness.evals.spec import Contrast
from harness.stats.components import Components, PlannedError, components, differences_for_planning, planned_se
from harness.stats.crossed import Trials
from harness.stats.intervals import smallest_effect

ENDLESS = 10**9
"""Sentences, or injections, of a run without end: what is left then is the spread of the others."""

MOST = 1024
"""Sentences and injections of a concept, and concepts, beyond which no design is looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """Each of `injections` (of every arm) meets each of `sentences`, in each of `concepts`."""

    concepts: int
    injections: int
    sentences: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """The effect that is to be found, in the metric's unit, with `power`, by a two-sided test at `alpha`."""

    mde: float
    alpha: float
    power: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Pilot:
    """What a pilot tells: its primary contrast's `parts`, the size that it had (the most of any concept), and `width`, what the
    bounds of trials leave open in the mean, in the metric's unit; no design narrows that."""

    parts: Components
    design: Design
    width: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What a design would see: `mde` over all concepts (None with one, or where the pilot does not tell how concepts differ),
    `mde_concept` of one concept by itself. `prompts` with every arm, clean sentences included. `exceeds`: of what pack and
    rooms have too little."""

    design: Design
    prompts: int
    mde: float | None
    mde_concept: float
    exceeds: tuple[str, ...]


def read_pilot(columns: Columns, primary: Contrast, metric: str, partners: Mapping[tuple[str, str], str]) -> Pilot | None:
    """The pilot, from the trials of a crossed run; None where they are too few to tell sentences, injections and rest apart.

    `columns`: concept, arm, sentence_id, injection_id, off_type, and the metric, with its bounds `<metric>_low`, `_high` if it
    has such. `partners`: by (concept, injection of the control) the injection that it was matched to.
    """
    on_type = columns["off_type"] == 0
    blocks: list[Trials] = []
    for concept in np.unique(columns["concept"]).tolist():
        rows = on_type & (columns["concept"] == concept)
        arms = [_trials(columns, rows & (columns["arm"] == name), metric) for name in (primary.arm, primary.control)]
        matched = [partners.get((concept, name), name) for name in arms[1].injections.tolist()]
        differences = differences_for_planning(arms[0], replace(arms[1], injections=np.array(matched, np.str_)))
        differences = differences.take(np.isfinite(differences.low) & np.isfinite(differences.high))
        if len(differences):
            blocks.append(differences)
    parts = components(blocks)
    if parts is None:
        return None
    return Pilot(
        parts=parts,
        design=Design(
            concepts=len(blocks),
            injections=max(len(np.unique(block.injections)) for block in blocks),
            sentences=max(len(np.unique(block.sentences)) for block in blocks),
        ),
        width=float(np.mean([(block.high - block.low).mean() for block in blocks])),
    )


def _trials(columns: Columns, rows: NDArray[np.bool_], metric: str) -> Trials:
    low, high = (columns[name if name in columns else metric][rows] for name in (f"{metric}_low", f"{metric}_high"))
    return Trials.of(low, columns["sentence_id"][rows], columns["injection_id"][rows], high=high)


@dataclass(frozen=True, slots=True, kw_only=True)
class Planning:
    """A question put to a pilot. `offer`: the most that pack and rooms have. `arms`: injected arms of a concept, on average."""

    pilot: Pilot
    question: Question
    offer: Design
    arms: float

    def seen(self, design: Design) -> tuple[float | None, float]:
        """The smallest effect that `design` sees over all concepts, None where it cannot, and of one concept by itself.

        `intervals.smallest_effect` of the planned error, plus what the bounds leave open, as a run's own `mde` has it.
        """
        errors = planned_se(
            self.pilot.parts, concepts=design.concepts, sentences=design.sentences, injections=design.injections
        )
        return None if errors.overall is None else self._smallest(errors.overall), self._smallest(errors.concept)

    def _smallest(self, error: PlannedError) -> float:
        return self.pilot.width + smallest_effect(error.se, error.df, self.question.alpha, self.question.power)

    def reaches(self, design: Design) -> bool:
        """Whether `design` sees the effect that is asked for: over all its concepts, or of its only one."""
        overall, alone = self.seen(design)
        mde = alone if design.concepts == 1 else overall
        return mde is not None and mde <= self.question.mde

    def uncertainty(self, confidence: float = 0.95) -> tuple[float, float] | None:
        """By which factors effects over all concepts may be smaller or larger: the interval of a standard deviation that is
        known from the pilot's C concepts, sqrt((C - 1) / chi^2_{C - 1}) (Pearson 1900; as if their means were normal). Exact at
        the pilot's own size, and about right where the design is alike. None with one concept."""
        df = self.pilot.design.concepts - 1
        if df < 1:
            return None
        low, high = (float((df / chdtri(df, (1 + side * confidence) / 2)) ** 0.5) for side in (-1, 1))
        return low, high

    def outlook(self, design: Design) -> Outlook:
        """What `design` would see and take."""
        overall, alone = self.seen(design)
        return Outlook(
            design=design, prompts=self.prompts(design), mde=overall, mde_concept=alone, exceeds=self.exceeds(design)
        )

    def prompts(self, design: Design) -> int:
        """Clean sentences, and each with every injection of every arm."""
        return round(design.concepts * design.sentences * (1 + self.arms * design.injections))

    def exceeds(self, design: Design) -> tuple[str, ...]:
        """Of what pack and rooms have less than `design` takes."""
        return tuple(name for name in design.__slots__ if getattr(design, name) > getattr(self.offer, name))

    def fewest_sentences(self, concepts: int, injections: int) -> Design | None:
        """The design of so many concepts and injections that sees the effect with fewest sentences."""

        def of(sentences: int) -> Design:
            return Design(concepts=concepts, injections=injections, sentences=sentences)

        fewest = _least(lambda sentences: self.reaches(of(sentences)))
        return None if fewest is None else of(fewest)

    def cheapest(self, concepts: int) -> Design | None:
        """The design of so many concepts that sees the effect with fewest prompts; of what is offered if any of that does."""
        found = [d for n in range(2, MOST + 1) if (d := self.fewest_sentences(concepts, n)) is not None]
        within = [design for design in found if not self.exceeds(replace(design, concepts=1))]
        return min(within or found, key=self.prompts, default=None)

    def concepts_needed(self, injections: int, sentences: int) -> int | None:
        """How many concepts see the effect over all of them with so many injections and sentences each."""
        return _least(lambda n: self.reaches(Design(concepts=n, injections=injections, sentences=sentences)))

    def alternatives(self, concepts: int, injections: Sequence[int]) -> list[Outlook]:
        """For each number of injections the fewest sentences that see the effect, or all on offer where none do."""
        found = []
        for n in injections:
            design = self.fewest_sentences(concepts, n)
            found.append(design or Design(concepts=concepts, injections=n, sentences=self.offer.sentences))
        return [self.outlook(design) for design in found]


def _least(holds: Callable[[int], bool]) -> int | None:
    """The least number from 2 to `MOST` that `holds`, which once true stays so; None if none does."""
    if not holds(MOST):
        return None
    low, high = 1, MOST
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
