"""A lexicon's mass from the log-probabilities of its own ids, asked beside the list in as many passes as an engine needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from harness.records import Mode, Observation

CHOSEN_IDS = 128
"""Token ids that vLLM's `logprob_token_ids` takes at the most (vLLM 0.33, `sampling_params.py`)."""


def passes(ids: Sequence[int], size: int) -> list[tuple[int, ...]]:
    """`ids` in parts of at most `size`."""
    return [tuple(ids[start : start + size]) for start in range(0, len(ids), size)]


def with_mass(listed: Sequence[Observation], parts: Sequence[Sequence[Observation]]) -> list[Observation]:
    """`listed` with the mass that the ids of all `parts` have together; a prompt that failed in any pass has failed.

    A part's observations hold the log-probabilities of its ids alone. Attempts are the most of any pass, latencies add up.
    """
    found = []
    for row, one in enumerate(listed):
        others = [part[row] for part in parts]
        error = next((other.error for other in (one, *others) if other.error), None)
        mass = sum(float(np.exp(other.logprobs.astype(np.float64)).sum()) for other in others)
        mass = min(mass, 1.0)
        whole = Observation(error=error) if error else replace(one, mode=Mode.EXACT, mass_low=mass, mass_high=mass)
        attempts = max(other.attempts for other in (one, *others))
        found.append(replace(whole, attempts=attempts, latency_s=sum(other.latency_s for other in (one, *others))))
    return found
