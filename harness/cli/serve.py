"""`harness serve`: the vLLM command that serves a target with what the harness needs."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from typing import Annotated

from cyclopts import Parameter

from harness.cli.console import note
from harness.errors import UsageError
from harness.providers.targets import find_target
from harness.providers.vllm_command import serve_command


def serve(
    *,
    target: Annotated[str, Parameter(help="A target of a vLLM endpoint, such as llama-70b")],
    python: Annotated[str, Parameter(help="Interpreter of the environment that has vLLM")] = sys.executable,
    exec_: Annotated[bool, Parameter(name="--exec", negative="", help="Run the command instead of printing it")] = False,
) -> None:
    """Print the vLLM command that serves a target, with the flags that this harness needs; --exec runs it."""
    command = serve_command(find_target(target), python)
    if not exec_:
        print(shlex.join(command))
        return
    note(shlex.join(command))
    if shutil.which(command[0]) is None:
        raise UsageError(f"no interpreter at {command[0]}", hint="name the one that has vLLM with --python")
    os.execvp(command[0], command)
