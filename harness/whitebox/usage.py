"""What a stage used of the machine, and what the machine has left."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
CONTROL_GROUP = Path("/sys/fs/cgroup")


def peak_memory_gb() -> float:
    """The most memory that this process has held so far, in 10^9 bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def free_memory_gb() -> float | None:
    """Memory that can still be had without swapping, in 10^9 bytes: the machine's, or what a container's limit leaves of it.

    None where the system does not say.
    """
    machine = _number(MEMINFO, r"^MemAvailable:\s+(\d+) kB")
    limit = _number(CONTROL_GROUP / "memory.max", r"^(\d+)$")
    held = _number(CONTROL_GROUP / "memory.stat", r"^anon (\d+)$")
    left = [] if machine is None else [machine * 1024]
    left += [] if limit is None or held is None else [max(limit - held, 0)]
    return min(left) / 1e9 if left else None


def _number(path: Path, pattern: str) -> int | None:
    try:
        found = re.search(pattern, path.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) if found else None
