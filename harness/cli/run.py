"""`harness run`: a probe pack put to one or several targets."""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from harness.cli.console import err, note, print_table, progress
from harness.errors import UsageError
from harness.evals.plan import Choice, Plan, count_prompts, make_plan
from harness.evals.spec import find_eval
from harness.packs.pack import find_pack
from harness.paths import make_dir, reports_dir
from harness.providers.targets import Dtype, OpenOptions, TargetSpec, find_target, open_target
from harness.reports.estimate import Estimate, estimate
from harness.reports.run import Finished, check_out, execute, run_id
from harness.reports.table import print_summary

DEFAULT_TARGET = "smollm2-135m"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """The options of `harness run`."""

    target: Annotated[
        list[str], Parameter(negative="", help="Target to ask; repeat for several. See: harness targets list")
    ] = field(default_factory=lambda: [DEFAULT_TARGET])
    eval: Annotated[str, Parameter(help="Eval that says what is measured. See: harness evals list")] = "transfer"
    pack: Annotated[str | None, Parameter(help="Probe pack, by name or folder; default: the eval's own")] = None
    concept: Annotated[list[str] | None, Parameter(negative="", help="Concept to keep; repeat for several")] = None
    limit: Annotated[int | None, Parameter(help="At most so many sentences, and injections, for each concept and arm")] = None
    full: Annotated[
        bool, Parameter(negative="", show_default=False, help="The eval's full sizes instead of the quick ones")
    ] = False
    seed: Annotated[int, Parameter(help="Seed of every random choice")] = 0
    dtype: Annotated[Dtype | None, Parameter(help="Number type of a model run in this process")] = None
    out: Annotated[Path | None, Parameter(help="Run folder; with several targets, their parent. Default: reports/<run-id>")] = (
        None
    )
    dry_run: Annotated[
        bool, Parameter(negative="", show_default=False, help="Say how many prompts, tokens and seconds; send nothing")
    ] = False
    json: Annotated[
        bool, Parameter(negative="", show_default=False, help="Print the summary as JSON on stdout, one line a target")
    ] = False


def run(options: Annotated[RunOptions, Parameter(name="*")] = RunOptions()) -> int:
    """Put a probe pack to a target and say what shifted.

    Answers are journalled as they arrive: the same command after an interruption goes on where it stopped.
    """
    specs = [find_target(name) for name in dict.fromkeys(options.target)]
    eval_ = find_eval(options.eval)
    if options.pack is None and eval_.spec.pack == "published":
        raise UsageError(
            f"eval {eval_.name!r} runs on the authors' published data, which is not part of this project",
            hint="harness packs import-published DIR --out PACK, then add --pack PACK",
        )
    pack = find_pack(options.pack or eval_.spec.pack)
    choice = Choice(concepts=tuple(options.concept or ()), limit=options.limit, full=options.full, seed=options.seed)
    plan = make_plan(eval_, pack, choice)
    if options.dry_run:
        _print_estimates([estimate(plan, spec) for spec in specs], as_json=options.json)
        return 0
    started = datetime.now(UTC)
    outs = {spec.name: _out(options.out, plan, spec, len(specs), started) for spec in specs}
    for out in outs.values():
        check_out(out)
    return max([asyncio.run(_run_target(plan, spec, options, outs[spec.name])) for spec in specs])


def _out(chosen: Path | None, plan: Plan, spec: TargetSpec, n_targets: int, started: datetime) -> Path:
    if chosen is None:
        return make_dir(reports_dir()) / run_id(plan, spec.name, started)
    return chosen.absolute() / spec.name if n_targets > 1 else chosen.absolute()


async def _run_target(plan: Plan, spec: TargetSpec, options: RunOptions, out: Path) -> int:
    provider = await open_target(spec, OpenOptions(dtype=options.dtype, note=note))
    try:
        note(f"{spec.name}: {count_prompts(plan)} prompts of eval {plan.eval.name}, pack {plan.pack.manifest.name}")
        with progress(spec.name) as show:
            finished = await execute(
                plan, spec, provider, out=out, command=shlex.join(["harness", *sys.argv[1:]]), on_progress=show
            )
    finally:
        await provider.aclose()
    _show(finished, as_json=options.json)
    return 3 if finished.tally.failed else 0


def _show(finished: Finished, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(finished.summary, ensure_ascii=False) + "\n")
    print_summary(finished.summary, err(), claims=finished.manifest["pack"]["claims"])
    tally = finished.tally
    if tally.failed:
        worst = max(tally.reasons, key=lambda reason: tally.reasons[reason])
        note(f"incomplete: {tally.failed} of {tally.planned} prompts failed ({tally.reasons[worst]} with: {worst})")
        note("hint: the same command asks only for those")
    note(f"{tally.done} answers, {tally.from_cache} of them from the journal")
    note(f"report: {finished.folder / 'report.html'}")


def _print_estimates(estimates: list[Estimate], *, as_json: bool) -> None:
    """The dry run: one row, or one line of JSON, a target."""
    if as_json:
        for item in estimates:
            sys.stdout.write(json.dumps(asdict(item)) + "\n")
        return
    rows = [
        (
            item.target,
            f"{item.prompts:,}",
            f"{item.tokens:,}" if item.exact else f"about {item.tokens:,}",
            "unknown before the first run" if item.seconds is None else f"about {item.seconds:,.0f} s",
            f"{item.usd:.2f} USD",
        )
        for item in estimates
    ]
    print_table(("target", "prompts", "tokens", "time", "price"), rows)
    note("nothing was sent; answers that are already journalled will not be asked again")
