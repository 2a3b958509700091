"""Where a gate's result goes: files in its folder, the job's summary and the annotations of GitHub Actions."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from harness.gate.annotations import annotation
from harness.gate.junit import junit_xml
from harness.gate.markdown import markdown
from harness.gate.presentable import presentable
from harness.gate.result import GateResult
from harness.paths import make_dir, writing

JUNIT = "junit.xml"
SUMMARY = "summary.md"


def write_outputs(result: GateResult, folder: Path) -> None:
    """Write `junit.xml` and `summary.md` to `folder`; raises StorageError.

    Inside a workflow of GitHub the summary is appended to the job's as well (`$GITHUB_STEP_SUMMARY`), and an annotation is
    printed to stdout, where the runner looks for it.
    """
    shown = presentable(result)
    summary = markdown(shown)
    with writing(make_dir(folder), hint="name another folder with --out"):
        (folder / JUNIT).write_text(junit_xml(shown), encoding="utf-8")
        (folder / SUMMARY).write_text(summary, encoding="utf-8")
    if (step := os.environ.get("GITHUB_STEP_SUMMARY")) is not None:
        with writing(Path(step), hint="the variable GITHUB_STEP_SUMMARY names it"), open(step, "a", encoding="utf-8") as page:
            page.write(summary + "\n")
    if os.environ.get("GITHUB_ACTIONS") == "true":
        sys.stdout.write(annotation(shown) + "\n")
