"""Tables 1 and 5 of the paper beside runs of ours, and what either says of concepts in general.

The printed figures stand in `paper.csv`: Gong, Lai, Evans, Song, ICLR 2026, arXiv 2505.11611v3. Their stars are Welch tests on
10,000 trials an arm taken as independent, though each cell has 100 sentences and one set of strings; a cell below `random` is
unmarked. Here the concept is the unit: one difference each, so that the answer speaks of concepts not tried.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import stats

from harness.config import read_lines
from harness.evals.measures import ALL, number
from harness.reports.reading import FinishedRun
from harness.reports.wording import p_value
from harness.stats.crossed import Trials, mean_of_concepts
from harness.stats.multiplicity import holm
from harness.stats.permutation import block_permutation_p

SOURCE = "Gong, Lai, Evans, Song, ICLR 2026, arXiv 2505.11611v3, Tables 1 and 5"
SETS = {"original": "self", "high": "high", "low": "low", "random": "random"}
"""The paper's sets of strings, and our arms."""

CONTROLS = ("random", "low")
SMALL = ("Pythia-70M", "GPT-2-Small")
"""The models that the pairs were found in; the others are the targets of the claim."""

N_TRIALS = 10_000
ALPHA = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Count success in percent: of the paper with its stars, of ours with an interval."""

    percent: float
    stars: str = ""
    ci_low: float | None = None
    ci_high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One target. `rates` by (concept, set); `run` None: as published."""

    target: str
    rates: Mapping[tuple[str, str], Rate]
    run: str | None = None

    @property
    def concepts(self) -> list[str]:
        """In the column's own order."""
        return list(dict.fromkeys(concept for concept, _ in self.rates))

    @property
    def family(self) -> str:
        """Whose p-values are corrected together; none of the small models', which are no targets."""
        return "ours" if self.run else "" if self.target in SMALL else "published"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """`high` less `control` in percentage points, the concept being the unit: paired t with C - 1 degrees of freedom (Student
    1908); None where there are fewer than 2 concepts.

    `p_flip`: sign flips of whole concepts (Fisher 1935), which asks of these concepts alone. `p_holm`: Holm (1979) of `p` over
    the targets of a family. `n_starred`, `n_below`: high cells that the paper stars against random, and those that lie below it
    at 0.05 by the same test; None where nothing was starred.
    """

    target: str
    run: str | None
    control: str
    n_concepts: int
    estimate: float | None
    ci_low: float | None
    ci_high: float | None
    p: float | None
    p_flip: float | None
    p_holm: float | None = None
    n_starred: int | None = None
    n_below: int | None = None


def published() -> list[Column]:
    """The paper's five models, in its order."""
    rates: dict[str, dict[tuple[str, str], Rate]] = {}
    for row in csv.DictReader(read_lines(Path(__file__).with_name("paper.csv"))):
        for name in SETS:
            percent, stars = re.fullmatch(r"([\d.]+)(\**)", row[name]).groups()  # type: ignore[union-attr]
            rates.setdefault(row["target"], {})[row["concept"], name] = Rate(percent=float(percent), stars=stars)
    return [Column(target=target, rates=found) for target, found in rates.items()]


def of_run(run: FinishedRun) -> Column:
    """A run of ours in the paper's layout; cells without a count (drawn, or failed throughout) are left out."""
    rates = {}
    names = {arm: name for name, arm in SETS.items()}
    for cell in run.summary["cells"]:
        found = cell["count_success"]
        if cell["concept"] == ALL or cell["off_type"] or cell["arm"] not in names or found["estimate"] is None:
            continue
        low, high = (None if found[end] is None else 100 * found[end] for end in ("ci_low", "ci_high"))
        rates[cell["concept"], names[cell["arm"]]] = Rate(percent=100 * found["estimate"], ci_low=low, ci_high=high)
    return Column(target=run.summary["target"], rates=rates, run=run.manifest["run_id"])


def compare(columns: Sequence[Column], *, seed: int = 0) -> list[Comparison]:
    """Every column's `high` against both controls, with Holm over the targets of each family and control."""
    found = []
    for control in CONTROLS:
        made = [_compare(column, control, seed) for column in columns]
        for family in ("published", "ours"):
            places = [place for place, column in enumerate(columns) if column.family == family]
            for place, adjusted in zip(places, holm([made[place].p for place in places]), strict=True):
                made[place] = replace(made[place], p_holm=adjusted)
        found += made
    return found


def _compare(column: Column, control: str, seed: int) -> Comparison:
    pairs = [
        (column.rates[concept, "high"], column.rates[concept, control])
        for concept in column.concepts
        if {(concept, "high"), (concept, control)} <= column.rates.keys()
    ]
    differences = [high.percent - other.percent for high, other in pairs]
    estimate = mean_of_concepts(differences)
    comparison = Comparison(
        target=column.target,
        run=column.run,
        control=control,
        n_concepts=len(pairs),
        estimate=estimate.value,
        ci_low=estimate.ci_low,
        ci_high=estimate.ci_high,
        p=estimate.p,
        p_flip=None if estimate.p is None else _flip_p(differences, seed),
    )
    if column.run is not None or control != "random":
        return comparison
    below = [high.percent < other.percent and pooled_p(high.percent, other.percent) < ALPHA for high, other in pairs]
    return replace(comparison, n_starred=sum(bool(high.stars) for high, _ in pairs), n_below=sum(below))


def pooled_p(percent: float, other: float, n: int = N_TRIALS) -> float:
    """The published test: Welch's, two-sided, on the zeros and ones of `n` trials an arm taken as independent.

    Done anew from the printed rates it gives 117 of the 120 printed entries.
    """
    spread = [(rate / 100 * (1 - rate / 100) * n / (n - 1)) ** 0.5 for rate in (percent, other)]
    test = stats.ttest_ind_from_stats(percent / 100, spread[0], n, other / 100, spread[1], n, equal_var=False)
    return float(test.pvalue)


def _flip_p(differences: Sequence[float], seed: int) -> float | None:
    """Two-sided p of the mean under flips of each concept's sign: all of them up to 13 concepts, else some that are drawn."""
    n = len(differences)
    return block_permutation_p([Trials.of(differences, np.zeros(n), np.arange(n))], seed=seed)


def sentence(comparison: Comparison) -> str:
    """What the stars claim of a target beside what a test over concepts says; the latter alone where nothing was starred."""
    name = f"{comparison.target} ({comparison.run})" if comparison.run else comparison.target
    contrast = f"high - {comparison.control}"
    if comparison.estimate is None or comparison.p is None:
        return f"{name}: {contrast}: too few concepts with both sets"
    ends = ", ".join(number(end, 2) for end in (comparison.ci_low, comparison.ci_high))
    value = f"{contrast} is {number(comparison.estimate, 2, signed=True)} points [{ends}] over {comparison.n_concepts} concepts"
    p, decisive = f"p {p_value(comparison.p)}", comparison.p
    if comparison.p_holm is not None and (comparison.run is None or comparison.p_holm != comparison.p):
        p, decisive = f"{p}, {p_value(comparison.p_holm)} after Holm over the targets", comparison.p_holm
    answer = "not told apart from zero" if decisive > ALPHA else "above zero" if comparison.estimate > 0 else "below zero"
    said = f"{value}, {p}: {answer}"
    if comparison.n_starred is None:
        return f"{name}: {said}"
    unmarked = f" and leave {comparison.n_below} below it unmarked" if comparison.n_below else ""
    return (
        f"{name}: the stars put {comparison.n_starred} of {comparison.n_concepts} high cells above random{unmarked},"
        f" taking {N_TRIALS:,} trials an arm as independent; {said}"
    )
