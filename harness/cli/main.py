"""The command `harness`: verbs, errors and exit codes. What a verb does stands in the file of its name."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError

from harness import __version__
from harness.cli import (
    compare,
    distill,
    evals,
    gate,
    intervene,
    packs,
    paper,
    plan,
    run,
    serve,
    serve_faults,
    targets,
    train_sae,
)
from harness.cli import map as map_
from harness.cli.console import print_error
from harness.errors import HarnessError
from harness.masking import guard

app = App(
    name="harness",
    version=f"harness {__version__}",
    help="Do interference pairs found in small language models shift the next word of large ones? Ask, with error bars.",
    help_format="plaintext",
    suppress_keyboard_interrupt=False,  # else it exits with 130 before `execute` can say what is kept
)
app.command(run.run)
app.command(serve.serve)
app.command(serve_faults.serve_faults)
app.command(targets.app)
app.command(packs.app)
app.command(evals.app)
app.command(map_.app)
app.command(train_sae.train_sae)
app.command(distill.distill)
app.command(intervene.intervene)
app.command(plan.plan)
app.command(paper.paper)
app.command(gate.gate)
app.command(compare.compare)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command and exit: 0 done, 1 gate failed, 2 usage or configuration, 3 run incomplete."""
    guard()
    sys.exit(execute(sys.argv[1:] if argv is None else list(argv)))


def execute(argv: list[str]) -> int:
    """Run the command and return its exit code; expected errors are printed to stderr."""
    try:
        code = app(argv, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as exc:
        print_error(str(exc), hint="harness --help")
        return 2
    except HarnessError as exc:
        print_error(exc.message, hint=exc.hint)
        return exc.exit_code
    except KeyboardInterrupt:
        print_error("stopped", hint="the same command goes on where it stopped; every answer that came back is kept")
        return 3
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    return code if isinstance(code, int) else 0
