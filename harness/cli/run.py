"""`harness run`: a probe pack put to one or several targets."""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from harness.cli import batches
from harness.cli.console import err, note, progress
from harness.cli.env_file import load_env_file
from harness.cli.estimates import print_estimates
from harness.cli.run_options import RunOptions
from harness.errors import UsageError
from harness.evals.budget import Budget, Budgeted, require_prices
from harness.evals.plan import Plan, count_prompts, make_plan
from harness.evals.spec import find_eval
from harness.evals.verdicts import across_targets
from harness.packs.pack import find_pack
from harness.paths import make_dir, reports_dir
from harness.providers.http.batch import require_batches
from harness.providers.targets import TargetSpec, find_target, open_target
from harness.reports.estimate import Estimate, estimate
from harness.reports.run import Finished, check_out, execute, run_id
from harness.reports.table import print_summary

DEFAULTS = RunOptions()


def run(options: Annotated[RunOptions, Parameter(name="*")] = DEFAULTS) -> int:
    """Put a probe pack to a target and say what shifted.

    Answers are journalled as they arrive: the same command after an interruption goes on where it stopped.
    """
    options.check()
    if options.env_file is not None:
        load_env_file(options.env_file)
    specs = [find_target(name) for name in dict.fromkeys(options.target)]
    plan = _plan(options)
    if options.dry_run:
        _print_estimates([estimate(plan, spec, batch=options.batch) for spec in specs], as_json=options.json)
        return 0
    budget = Budget(limits=options.limits)
    _check_limits(plan, specs, options)
    started = datetime.now(UTC)
    outs = {spec.name: _out(options.out, plan, spec, len(specs), started) for spec in specs}
    for out in outs.values():
        check_out(out)
    runs: list[Finished] = []
    try:
        for spec in specs:
            runs += asyncio.run(_run_target(plan, spec, options, outs[spec.name], budget))
    finally:
        _conclude(runs, as_json=options.json)
    return 3 if len(runs) < len(specs) or any(run.tally.failed for run in runs) else 0


def _conclude(runs: list[Finished], *, as_json: bool) -> None:
    """Show what was run; each of several targets is one more chance to find something, which their verdicts allow for."""
    if len(runs) > 1:
        across_targets([run.summary for run in runs])
        for run in runs:
            run.rewrite()
    for run in runs:
        _show(run, as_json=as_json)


def _plan(options: RunOptions) -> Plan:
    eval_ = find_eval(options.eval)
    if options.pack is None and eval_.spec.pack == "published":
        raise UsageError(
            f"eval {eval_.name!r} runs on the authors' published data, which is not part of this project",
            hint="harness packs import-published DIR --out PACK, then add --pack PACK",
        )
    return make_plan(eval_, find_pack(options.pack or eval_.spec.pack), options.choice)


def _check_limits(plan: Plan, specs: list[TargetSpec], options: RunOptions) -> None:
    """Raises, before anything is sent, for a limit that cannot be kept to, and for batch jobs that are above one."""
    for spec in specs:
        if options.max_cost is not None:
            require_prices(spec)
    if options.batch:
        for spec in specs:
            require_batches(spec)
        _check_batches([estimate(plan, spec, batch=True) for spec in specs], options)


def _check_batches(estimates: list[Estimate], options: RunOptions) -> None:
    """A job is sent whole or not at all, and the command that collects must not be refused: the whole plan counts each time."""
    usd, requests = sum(item.usd or 0.0 for item in estimates), sum(item.requests for item in estimates)
    if options.max_cost is not None and usd > options.max_cost:
        raise UsageError(f"--max-cost {options.max_cost:g}: the batch jobs would cost about {usd:.2f} USD, and none was sent")
    if options.max_requests is not None and requests > options.max_requests:
        raise UsageError(f"--max-requests {options.max_requests}: the batch jobs hold {requests} requests, and none was sent")


def _out(chosen: Path | None, plan: Plan, spec: TargetSpec, n_targets: int, started: datetime) -> Path:
    if chosen is None:
        return make_dir(reports_dir()) / run_id(plan, spec.name, started)
    return chosen.absolute() / spec.name if n_targets > 1 else chosen.absolute()


async def _run_target(plan: Plan, spec: TargetSpec, options: RunOptions, out: Path, budget: Budget) -> list[Finished]:
    """The run, written; none while a batch job is not done."""
    provider = await open_target(spec, options.opening(note, budget.sending))
    if budget.limited and not options.batch:
        provider = Budgeted(provider, spec, budget)
    try:
        note(f"{spec.name}: {count_prompts(plan)} prompts of eval {plan.eval.name}, pack {plan.pack.manifest.name}")
        if options.batch:
            plan = batches.pinned(plan, provider)
        if options.batch and not (batched := await batches.advance(plan, spec, provider)).complete:
            batches.show(spec.name, batched)
            return []
        with progress(spec.name) as show:
            finished = await execute(
                plan, spec, provider, out=out, command=shlex.join(["harness", *sys.argv[1:]]), on_progress=show
            )
        if options.batch:
            await batches.advance(plan, spec, provider, written=True)
    finally:
        await provider.aclose()
    return [finished]


def _show(finished: Finished, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(finished.summary, ensure_ascii=False) + "\n")
    print_summary(finished.summary, err(), claims=finished.manifest["pack"]["claims"])
    tally = finished.tally
    if tally.failed:
        worst = max(tally.reasons, key=lambda reason: tally.reasons[reason])
        note(f"incomplete: {tally.failed} of {tally.planned} prompts failed ({tally.reasons[worst]} with: {worst})")
        higher = " with a higher limit" if tally.not_asked else ""
        note(f"hint: the same command{higher} asks only for those")
    if finished.summary["cost"]["requests"]:
        note(_told(finished.summary["cost"]))
    note(f"{tally.done} answers, {tally.from_cache} of them from the journal")
    note(f"report: {finished.folder / 'report.html'}")


def _told(cost: dict[str, Any]) -> str:
    """What was spent, in a line."""
    usd = "" if cost["usd"] is None else f", {cost['usd']:.4f} USD"
    counted = "as the endpoint counts" if cost["counted_by"] == "endpoint" else "as counted here"
    return (
        f"asked: {cost['requests']:,} requests, {cost['input_tokens']:,} tokens in and {cost['output_tokens']:,} out"
        f" ({counted}){usd}"
    )


def _print_estimates(estimates: list[Estimate], *, as_json: bool) -> None:
    """The dry run: one row, or one line of JSON, a target."""
    if as_json:
        for item in estimates:
            sys.stdout.write(json.dumps(asdict(item)) + "\n")
        return
    print_estimates(estimates)
    note("nothing was sent; answers that are already journalled will not be asked again")
