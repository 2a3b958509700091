"""How often tests reject a true null, how often intervals cover, and how often planned effects are found, in crossed designs.

    python reports/benchmarks/error_rates.py

Two arms share sentences (effects of sd 1, or as said); sentence x arm and injection effects have the design's sd, noise has
sd 1. `pooled`
is Welch's test on all trials, `pairs` the t test of the differences of cells, `by sentence` that of the sentences' mean
differences; `two-way`, `permutation` and `pigeonhole` are those of `harness.stats`. Unmatched injections are paired in order
where a method needs pairs. Prints Markdown tables; every design has a seed of its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import stats

from harness.stats.bootstrap import crossed_bootstrap
from harness.stats.components import Components, differences_for_planning, planned_se
from harness.stats.crossed import Trials, contrast_two_way, mean_two_way
from harness.stats.intervals import smallest_effect
from harness.stats.permutation import block_permutation_p, label_permutation_p

METHODS = ("pooled", "pairs", "by sentence", "two-way", "permutation", "pigeonhole")
EXPENSIVE = 300
"""Runs in which the resampling methods are tried too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """`sd` of sentence x arm and injection effects, `shared` of sentences; `missing`: the share of trials that failed."""

    sentences: int
    injections: int
    matched: bool = True
    sd: float = 0.3
    shared: float = 1.0
    missing: float = 0.0
    runs: int = 2000
    seed: int

    def __str__(self) -> str:
        kind = "matched" if self.matched else "own"
        sentences = f", sentences {self.shared:g}" if self.shared != 1 else ""
        missing = f", {self.missing:.0%} missing" if self.missing else ""
        return f"{self.sentences} x {self.injections} {kind}, sd {self.sd:g}{sentences}{missing}"

    def draw(self) -> Iterator[tuple[Trials, Trials]]:
        """Arms without a difference."""
        rng = np.random.default_rng(self.seed)
        shape = (self.sentences, self.injections)
        s, k = np.repeat(np.arange(shape[0]), shape[1]), np.tile(np.arange(shape[1]), shape[0])
        for _ in range(self.runs):
            shared = self.shared * rng.normal(size=(shape[0], 1))
            arms = []
            for place in range(2):
                effects = shared + self.sd * rng.normal(size=(shape[0], 1)) + self.sd * rng.normal(size=shape[1])
                values = effects + rng.normal(size=shape)
                values[rng.random(shape) < self.missing] = np.nan
                arms.append(Trials.of(values.ravel(), s, k if self.matched else k + place * shape[1]).complete())
            yield arms[0], arms[1]

    @property
    def effect(self) -> float:
        """What is found with a power of .8, as `harness plan` would have it."""
        parts = Components(sentences=2 * self.sd**2, injections=2 * self.sd**2, rest=2.0)
        size = {"concepts": 1, "sentences": self.sentences, "injections": self.injections}
        cells = round(self.sentences * self.injections * (1 - self.missing))
        return smallest_effect(*planned_se(parts, **size, trials=cells).concept)


DESIGNS = (
    Design(sentences=100, injections=100, runs=500, seed=1),
    Design(sentences=100, injections=12, seed=2),
    Design(sentences=30, injections=8, seed=3),
    Design(sentences=100, injections=12, matched=False, seed=4),
    Design(sentences=30, injections=8, matched=False, seed=5),
    Design(sentences=30, injections=20, matched=False, shared=3.0, seed=12),
    Design(sentences=100, injections=12, missing=0.2, seed=6),
    Design(sentences=30, injections=8, matched=False, missing=0.2, seed=7),
    Design(sentences=100, injections=12, sd=0.1, seed=8),
    Design(sentences=100, injections=12, sd=0.0, seed=9),
)


def moved(trials: Trials, effect: float) -> Trials:
    return Trials.of(trials.low + effect, trials.sentences, trials.injections)


def rejections(arms: tuple[Trials, Trials], matched: bool, run: int) -> dict[str, bool]:
    """Which methods reject at .05."""
    arm, control = arms
    d = differences_for_planning(arm, control)
    by_arm = [np.bincount(trials.sentences, trials.low) / np.bincount(trials.sentences) for trials in arms]
    p = {
        "pooled": stats.ttest_ind(arm.low, control.low, equal_var=False).pvalue,
        "pairs": stats.ttest_1samp(d.low, 0).pvalue,
        "by sentence": stats.ttest_rel(*by_arm).pvalue,
        "two-way": contrast_two_way(arm, control).p,
    }
    rejected = {name: value < 0.05 for name, value in p.items()}
    if run < EXPENSIVE:
        permuted = block_permutation_p([d], seed=run, n=999) if matched else label_permutation_p([arms], seed=run, n=999)
        resampled = crossed_bootstrap(
            lambda w: float(w @ d.low / w.sum()), d.sentences, d.injections, seed=run, n_resamples=399
        ).interval()
        rejected["permutation"] = permuted < 0.05
        rejected["pigeonhole"] = not resampled[0] <= 0 <= resampled[1]
    return rejected


def row_of(design: Design) -> str:
    """A line of the table: rejections of a true null, then coverage and power of the two-way interval at the planned effect."""
    counts = {name: [0, 0] for name in (*METHODS, "covered", "found")}
    for run, arms in enumerate(design.draw()):
        planted = contrast_two_way(moved(arms[0], design.effect), arms[1])
        found = {"covered": planted.ci_low <= design.effect <= planted.ci_high, "found": planted.p < 0.05}
        for name, hit in (rejections(arms, design.matched, run) | found).items():
            counts[name][0] += hit
            counts[name][1] += 1
    rates = " | ".join(f"{hits / tried:.3f}".lstrip("0") for hits, tried in counts.values())
    return f"| {design} | {design.runs:,} | {rates} | {design.effect:.2f} |"


def bounded_row(width: float, runs: int = 2000) -> str:
    """Trials of one arm known within bounds that are `width` wide on average; the true mean at either end."""
    design = Design(sentences=30, injections=12, runs=runs, seed=10)
    rng = np.random.default_rng(11)
    intervals, ends = np.empty((runs, 2)), np.empty((runs, 2))
    for run, (arm, _) in enumerate(design.draw()):
        high = moved(arm, 0).low + 2 * width * rng.random(len(arm))
        found = mean_two_way(Trials.of(arm.low, arm.sentences, arm.injections, high=high))
        intervals[run] = found.ci_low, found.ci_high
        at_high = mean_two_way(Trials.of(high, arm.sentences, arm.injections))
        ends[run] = mean_two_way(arm).ci_low, at_high.ci_high
    rates = [np.mean((e[:, 0] <= t) & (t <= e[:, 1])) for e in (intervals, ends) for t in (0.0, width)]
    lengths = [float(np.diff(e, axis=1).mean()) for e in (intervals, ends)]
    return f"| {width:g} | " + " | ".join(f"{r:.3f}".lstrip("0") for r in rates) + f" | {lengths[0]:.2f} | {lengths[1]:.2f} |"


def main() -> None:
    started = time.process_time()
    print(
        "Share of true nulls rejected at .05, by method; then the two-way interval's coverage and power at the planned effect."
    )
    print(f"Permutation and pigeonhole on the first {EXPENSIVE} runs of each design.\n")
    print(f"| sentences x injections | runs | {' | '.join(METHODS)} | coverage | power | planned for .8 |")
    print("|---|" + "---:|" * (len(METHODS) + 4))
    for design in DESIGNS:
        print(row_of(design), flush=True)
    print(
        "\nMeans of bounded trials (30 x 12, 2,000 runs): coverage of a mean at the lower and the upper end, and mean length,"
    )
    print("of Imbens and Manski's interval and of the one from the lower end's limit to the upper end's.\n")
    print("| width | low | high | low, from limit to limit | high | length | from limit to limit |")
    print("|---:|" + "---:|" * 6)
    for width in (0.0, 0.05, 0.2, 0.5, 3.0):
        print(bounded_row(width), flush=True)
    print(f"\n{time.process_time() - started:.0f} s of processor time")


if __name__ == "__main__":
    main()
