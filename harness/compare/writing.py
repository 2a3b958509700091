"""A comparison's folder: `compare.json` and `report.html`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from harness.compare.result import CompareResult
from harness.errors import StorageError
from harness.paths import make_dir, writing
from harness.reports.compare_page import render_compare

RECORD, REPORT = "compare.json", "report.html"


def check_out(out: Path) -> None:
    """Raises StorageError, before anything is asked, where a comparison could not be written to `out`."""
    if out.exists() and not (out / RECORD).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise StorageError(f"{out}: exists and is no comparison's folder", hint="name an empty or a new folder with --out")
    make_dir(out)


def write(result: CompareResult, out: Path) -> None:
    """Write both files; a comparison that stood there is replaced."""
    told = asdict(result)
    with writing(out, hint="name another folder with --out"):
        (out / RECORD).write_text(json.dumps(told, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
        (out / REPORT).write_text(render_compare(told), encoding="utf-8")
