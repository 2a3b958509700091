"""Up to which distance two endpoints count as one model, served alike, and what follows from an interval."""

from __future__ import annotations

from harness.compare.ladder import load_ladder
from harness.compare.result import Decision
from harness.errors import UsageError

LISTS, ONE_SIDED, DRAWS = "centred log-probabilities", "share against probability", "first tokens"

UNITS = {LISTS: "nat", ONE_SIDED: "squared difference of probabilities", DRAWS: "squared difference of probabilities"}


def margin_of(statistic: str, chosen: float | None) -> tuple[float, str]:
    """The margin and where it comes from: the user's, else what benign variants on the ladder reach."""
    if chosen is not None:
        return chosen, "--margin"
    measured = load_ladder().margin(statistic)
    if measured is None:
        raise UsageError(f"the ladder of known variants has no margin for {statistic}", hint="name one with --margin")
    return measured, "the ladder of known variants"


def decide(low: float, high: float, margin: float) -> Decision:
    """By an interval of a distance, or of a difference of either sign, against (-margin, margin)."""
    if -margin < low and high < margin:
        return "equivalent"
    return "different" if low > margin or high < -margin else "inconclusive"
