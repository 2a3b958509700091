"""Up to which distance two endpoints count as one model, served alike, and what follows from an interval."""

from __future__ import annotations

from harness.compare.ladder import FILE, load_ladder
from harness.compare.result import Decision, Rung

LISTS, ONE_SIDED, DRAWS = "centred log-probabilities", "share against probability", "first tokens"

UNITS = {LISTS: "nat", ONE_SIDED: "squared difference of probabilities", DRAWS: "squared difference of probabilities"}

_PROVISIONAL = {LISTS: 0.05, ONE_SIDED: 0.02, DRAWS: 0.02}
"""Where no ladder measured the statistic: what other arithmetic does to a list is below 0.05 nat, what four bits do above."""


def margin_of(statistic: str, chosen: float | None) -> tuple[float, str]:
    """The margin and where it comes from: the user's, else the ladder's, else a provisional one."""
    if chosen is not None:
        return chosen, "--margin"
    measured = load_ladder().margin(statistic) if FILE.is_file() else None
    return (_PROVISIONAL[statistic], "provisional") if measured is None else (measured, "the ladder of known variants")


def rungs_of(statistic: str) -> list[Rung]:
    """The known variants that were measured by this statistic."""
    return load_ladder().rungs(statistic) if FILE.is_file() else []


def decide(low: float, high: float, margin: float) -> Decision:
    """By an interval of a distance, or of a difference of either sign, against (-margin, margin)."""
    if -margin < low and high < margin:
        return "equivalent"
    return "different" if low > margin or high < -margin else "inconclusive"
