"""The ladder: how far known variants of small models lie from what they are variants of, and the margin that follows.

Owns the record of the numbers (`ladder.json`) and the margin's rule. The numbers are made by
`reports/benchmarks/compare_ladder.py`, from models that were really run; the page beside it tells what each variant was.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from harness.compare.result import Rung
from harness.config import Strict, read_text, validate
from harness.errors import FileFormatError

Floats = NDArray[np.float64]

VERSION = 1
"""Of the file's layout and of the statistics in it: numbers of another version are not comparable."""

FILE = Path(__file__).with_name("ladder.json")

_RESAMPLES = 2000


class Pair(Strict):
    """A variant and what it is held against. `values`: by statistic, the distance at each prompt, in the statistic's unit.

    `kind`: `benign` is served alike, however else its arithmetic is done; `material` is another model or another service.
    `repeats`: lists a prompt of the variant and of the reference.
    """

    model: str
    reference: str
    variant: str
    kind: Literal["benign", "material"]
    repeats: tuple[int, int]
    values: dict[str, tuple[float, ...]]

    @property
    def name(self) -> str:
        """Both ends."""
        return f"{self.variant} against {self.reference}"


class Ladder(Strict):
    """All pairs, and what they were made with. `margins`: by statistic, `reach` of the benign pairs at `margin_prompts`."""

    version: int
    made_with: dict[str, str]
    n_prompts: int
    n_near_ties: int
    n_listed: int
    n_draws: int
    margin_prompts: int
    margins: dict[str, float]
    pairs: tuple[Pair, ...]

    def margin(self, statistic: str) -> float | None:
        """The distance up to which benign variants reach, None where the statistic was not measured."""
        return self.margins.get(statistic)

    def rungs(self, statistic: str) -> list[Rung]:
        """Every pair's mean distance, the nearest first."""
        found = [
            Rung(variant=pair.name, model=pair.model, kind=pair.kind, distance=float(np.mean(pair.values[statistic])))
            for pair in self.pairs
            if statistic in pair.values
        ]
        return sorted(found, key=lambda rung: rung.distance)


@cache
def load_ladder(path: Path = FILE) -> Ladder:
    """The ladder in `path`; raises FileFormatError for a file of another version or layout."""
    try:
        data = json.loads(read_text(path))
    except ValueError as exc:
        raise FileFormatError(str(path), f"not valid JSON: {exc}") from exc
    version = data.get("version") if isinstance(data, dict) else None
    if version != VERSION:
        raise FileFormatError(
            str(path),
            f"version {version!r}, expected {VERSION}: its numbers cannot be compared with today's",
            hint="make it anew: python reports/benchmarks/compare_ladder.py DIR",
        )
    return validate(data, Ladder, where=str(path))


def reach(benign: Sequence[Floats], *, n_prompts: int, alpha: float = 0.05, quantile: float = 0.99, seed: int = 0) -> float:
    """The smallest margin within which every benign pair is called equivalent at least `quantile` of the time.

    For each pair, of its distances d (n,): n_prompts of them are drawn with replacement, 2000 times, and each time the upper
    end U = mean + z_{1 - alpha} sd / sqrt(n_prompts) is taken; the pair's reach is the `quantile` of U, the margin the largest
    reach. Equivalent is what lies inside with its whole 1 - 2 alpha interval (Schuirmann 1987), so unlike the quantile of the
    mean over all pairs together, this one has the farthest benign pair called equivalent too, not inconclusive half the
    time, and does not fall when near pairs are added. z stands for the percentile bootstrap that `compare` takes.
    """
    rng = np.random.default_rng(seed)
    reaches = []
    for values in benign:
        drawn = values[rng.integers(len(values), size=(_RESAMPLES, n_prompts))]  # (2000, n_prompts)
        upper = drawn.mean(axis=1) + norm.ppf(1 - alpha) * drawn.std(axis=1, ddof=1) / np.sqrt(n_prompts)
        reaches.append(float(np.quantile(upper, quantile)))
    return max(reaches)
