"""`harness gate`: a run, or a target that is asked first, held against an accepted baseline."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from harness.cli.console import note, print_error, print_table, progress
from harness.cli.env_file import ENV_FILE_HELP, load_env_file
from harness.cli.numbers import require_above_zero, require_at_least
from harness.errors import UsageError
from harness.evals.budget import Limits
from harness.evals.measures import number
from harness.gate.baseline import default_path
from harness.gate.gate import accept_run, accept_target, judge_run, run_gate
from harness.gate.order import Order, Rule
from harness.gate.presentable import details, interval, presentable
from harness.gate.result import GateResult, Score
from harness.providers.targets import Dtype, OpenOptions
from harness.reports.reading import read_run
from harness.reports.run import REPORT

WORST = 5
"""Concepts that are shown; the report has them all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateOptions:
    """The options of `harness gate`."""

    target: Annotated[str | None, Parameter(help="Target to ask, in place of a finished run")] = None
    eval: Annotated[
        str | None, Parameter(help="Eval whose [gate] says what is compared; default: regression, or the finished run's")
    ] = None
    pack: Annotated[str | None, Parameter(help="Probe pack, by name or folder; default: the eval's own")] = None
    baseline: Annotated[Path | None, Parameter(help="Accepted baseline; default: reports/baselines/<eval>-<target>.json")] = (
        None
    )
    accept: Annotated[
        bool, Parameter(negative="", show_default=False, help="Make the run, or all that the gate may ask, the baseline")
    ] = False
    margin: Annotated[float | None, Parameter(help="Largest loss that passes; default: as the eval says")] = None
    alpha: Annotated[float | None, Parameter(help="How often an unchanged target may fail; default: as the eval says")] = None
    inconclusive: Annotated[
        Literal["fail", "pass"] | None,
        Parameter(help="Exit 3 (fail) or 0 (pass) where the data do not decide; default: as the eval says"),
    ] = None
    max_clusters: Annotated[
        int | None, Parameter(help="Ask no more than so many clusters of prompts; default: all of the baseline's")
    ] = None
    resume: Annotated[
        bool,
        Parameter(
            negative="",
            show_default=False,
            help="Go on with what an interrupted gate asked for the same --out, in place of asking everything anew",
        ),
    ] = False
    out: Annotated[Path | None, Parameter(help="Folder to write; default: reports/<run-id>-gate")] = None
    dtype: Annotated[Dtype | None, Parameter(help="Number type of a model run in this process")] = None
    max_connections: Annotated[
        int | None, Parameter(help="Most requests under way at once, instead of the endpoint's own limit")
    ] = None
    max_cost: Annotated[float | None, Parameter(help="Stop before more US dollars are spent, by the target's prices")] = None
    max_requests: Annotated[int | None, Parameter(help="Stop after so many requests, retries and probes too")] = None
    max_seconds: Annotated[float | None, Parameter(help="Send nothing more after so many seconds")] = None
    env_file: Annotated[Path | None, Parameter(help=ENV_FILE_HELP)] = None
    json: Annotated[bool, Parameter(negative="", show_default=False, help="Print the result as JSON on stdout")] = False

    def check(self, run: Path | None) -> None:
        """Raises UsageError for options that do not go together."""
        if (run is None) == (self.target is None):
            raise UsageError(
                "name either a finished run or a --target to ask", hint="harness gate RUN, or harness gate --target T"
            )
        if self.resume and self.out is None:
            raise UsageError("--resume needs the --out of the gate that was interrupted")
        require_at_least(self, 1, "max_connections", "max_requests")
        require_above_zero(self, "max_cost", "max_seconds")

    @property
    def rule(self) -> Rule:
        """What is judged otherwise than the eval says."""
        return Rule(margin=self.margin, alpha=self.alpha, inconclusive=self.inconclusive, max_clusters=self.max_clusters)


DEFAULTS = GateOptions()


def gate(run: Path | None = None, /, *, options: Annotated[GateOptions, Parameter(name="*")] = DEFAULTS) -> int:
    """Hold a finished RUN, or a target that is asked first, against its baseline: pass, fail or inconclusive.

    A target is asked until the answer is clear, and always anew: what earlier runs left in the journal is not taken for an
    answer. Exit code 0: passed, 1: failed, 2: cannot be compared, 3: inconclusive or too many failures.

    Parameters
    ----------
    run
        Finished run, by folder.
    """
    options.check(run)
    if options.env_file is not None:
        load_env_file(options.env_file)
    try:
        return _accept(run, options) if options.accept else _judge(run, options)
    except KeyboardInterrupt:
        print_error("stopped", hint="the same command asks anew; with the same --out and --resume it goes on where it stopped")
        return 3


def _judge(run: Path | None, options: GateOptions) -> int:
    if run is not None:
        result = judge_run(run, options.baseline or _default_baseline(run), options.rule, out=options.out)
    else:
        with progress(options.target or "") as show:
            result = run_gate(_order(options), _opening(options), show)
    _show(result, as_json=options.json)
    return result.exit_code


def _accept(run: Path | None, options: GateOptions) -> int:
    if run is not None:
        path = accept_run(run, options.baseline, eval_name=options.eval)
    else:
        with progress(options.target or "") as show:
            path = accept_target(_order(options), _opening(options), show)
    if options.json:
        sys.stdout.write(json.dumps({"baseline": str(path)}) + "\n")
    note(f"baseline: {path}")
    return 0


def _default_baseline(run: Path) -> Path:
    manifest = read_run(run).manifest
    return default_path(manifest["eval"]["name"], manifest["target"])


def _order(options: GateOptions) -> Order:
    assert options.target is not None
    return Order(
        target=options.target,
        eval=options.eval or "regression",
        pack=options.pack,
        baseline=options.baseline,
        rule=options.rule,
        out=options.out,
        resume=options.resume,
        limits=Limits(usd=options.max_cost, requests=options.max_requests, seconds=options.max_seconds),
    )


def _opening(options: GateOptions) -> OpenOptions:
    return OpenOptions(dtype=options.dtype, note=note, max_connections=options.max_connections)


def _show(result: GateResult, *, as_json: bool) -> None:
    """The answer first, then the table; what is not alike goes to stderr."""
    if as_json:
        sys.stdout.write(json.dumps(asdict(result), ensure_ascii=False, allow_nan=False) + "\n")
        return
    shown = presentable(result)
    sys.stdout.write(f"{shown.decision.upper()}: {shown.reason}\n\n")
    worst = sorted(shown.concepts.items(), key=lambda item: item[1].estimate or 0.0)[:WORST]
    columns = (f"{shown.metric}, {shown.unit}", "run minus baseline", "interval", "prompts", "clusters")
    print_table(columns, [_row("all", shown.score), *(_row(name, score) for name, score in worst)])
    for line in details(shown)[1:]:
        note(line)
    note(f"report: {Path(shown.folder or '') / REPORT}")


def _row(name: str, score: Score) -> tuple[str, ...]:
    return name, number(score.estimate, 4, signed=True), interval(score).strip(), str(score.n_units), str(score.n_clusters)
