"""The folder of a gate: its answer in every form, beside the run that it made, if it made one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from harness.errors import StorageError
from harness.gate.outputs import write_outputs
from harness.gate.result import GateResult
from harness.paths import make_dir
from harness.reports.gate_page import render_gate
from harness.reports.run import REPORT, write_json

RESULT = "gate.json"

RUN_REPORT = "run.html"
"""The report of the run that a gate made, beside the gate's own."""


def check_gate_folder(out: Path) -> None:
    """Raises StorageError, before anything is asked, where `out` holds anything but an earlier gate's answer."""
    make_dir(out.parent)
    if out.exists() and not (out / RESULT).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise StorageError(f"{out}: exists and is no gate's folder", hint="name an empty or a new folder with --out")


def write_result(result: GateResult, folder: Path) -> None:
    """gate.json, the page, and what `outputs` makes of it."""
    fields = asdict(result)
    write_json(folder / RESULT, fields)
    (folder / REPORT).write_text(render_gate(fields), encoding="utf-8")
    write_outputs(result, folder)
