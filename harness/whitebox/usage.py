"""What a stage used of the machine."""

from __future__ import annotations

import resource
import sys


def peak_memory_gb() -> float:
    """The most memory that this process has held so far, in 10^9 bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
