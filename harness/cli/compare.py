"""`harness compare`: two targets, or two finished runs: the same model, served alike?"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from harness.cli.comparison import show
from harness.cli.console import note, print_json, progress
from harness.cli.env_file import ENV_FILE_HELP, load_env_file
from harness.cli.numbers import require_above_zero, require_at_least
from harness.compare.asking import Side
from harness.compare.compare import Settings
from harness.compare.compare import compare as compare_targets
from harness.compare.identity import Rule
from harness.compare.result import CompareResult
from harness.compare.runs import compare_runs
from harness.compare.writing import REPORT, check_out, write
from harness.errors import UsageError
from harness.evals.budget import Budget, Limits, open_within, require_prices
from harness.paths import make_dir, reports_dir
from harness.providers.targets import OpenOptions, TargetSpec, find_target
from harness.reports.reading import read_run
from harness.reports.run import MANIFEST

EXIT_CODES = {"equivalent": 0, "different": 1, "inconclusive": 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareOptions:
    """The options of `harness compare`."""

    prompts: Annotated[int, Parameter(help="Sentinel prompts asked of both sides, besides near ties")] = 48
    near_ties: Annotated[int, Parameter(help="Prompts whose two likeliest tokens are nearly equal at B; 0: none")] = 16
    repeats: Annotated[int, Parameter(help="How often each side is asked each sentinel prompt")] = 5
    draws: Annotated[int, Parameter(help="Tokens drawn for each prompt from a side that shows no log-probabilities")] = 64
    eval: Annotated[str, Parameter(help="Eval whose primary contrast is scored on both sides")] = "transfer"
    score: Annotated[bool, Parameter(negative="--no-score", show_default=False, help="Compare the harness's score too")] = True
    concept: Annotated[list[str] | None, Parameter(negative="", help="Concept to score on; repeat for several")] = None
    limit: Annotated[int, Parameter(help="Sentences, and injections, scored for each concept and arm")] = 4
    margin: Annotated[float | None, Parameter(help="Distance that counts as none; default: what benign variants reach")] = None
    alpha: Annotated[float, Parameter(help="How often a difference beyond the margin may be called equivalent")] = 0.05
    seed: Annotated[int, Parameter(help="Seed of every random choice")] = 0
    out: Annotated[Path | None, Parameter(help="Folder to write to. Default: reports/<time>-compare-A-B")] = None
    max_cost: Annotated[float | None, Parameter(help="Stop before more US dollars are spent, by the targets' prices")] = None
    max_requests: Annotated[int | None, Parameter(help="Stop after so many requests to both, retries and probes too")] = None
    max_seconds: Annotated[float | None, Parameter(help="Send nothing more after so many seconds")] = None
    env_file: Annotated[Path | None, Parameter(help=ENV_FILE_HELP)] = None
    json: Annotated[bool, Parameter(negative="", show_default=False, help="Print the result as one JSON document")] = False

    def check(self) -> None:
        """Raises UsageError for a number that makes no sense."""
        for name, least in (("prompts", 2), ("near_ties", 0), ("repeats", 1), ("draws", 2), ("limit", 2)):
            require_at_least(self, least, name)
        if not 0 < self.alpha < 0.5:
            raise UsageError(f"--alpha {self.alpha:g}: must lie between 0 and 0.5")
        require_above_zero(self, "margin", "max_cost", "max_requests", "max_seconds")

    @property
    def rule(self) -> Rule:
        """What decides."""
        return Rule(margin=self.margin, alpha=self.alpha, seed=self.seed)

    @property
    def settings(self) -> Settings:
        """What is asked."""
        return Settings(
            n_prompts=self.prompts,
            n_near_ties=self.near_ties,
            repeats=self.repeats,
            n_draws=self.draws,
            eval_name=self.eval if self.score else None,
            concepts=tuple(self.concept or ()),
            limit=self.limit,
            rule=self.rule,
        )

    @property
    def limits(self) -> Limits:
        """What may be spent on both sides together."""
        return Limits(usd=self.max_cost, requests=self.max_requests, seconds=self.max_seconds)


DEFAULTS = CompareOptions()


def compare(a: str, b: str, /, *, options: Annotated[CompareOptions, Parameter(name="*")] = DEFAULTS) -> int:
    """Say whether two targets are the same model, served alike: equivalent, different or inconclusive.

    Exit code 0, 1 or 3. B is the reference: what is known of it chooses the prompts.

    Parameters
    ----------
    a
        Target to judge, such as a hosted endpoint; or the folder of a finished run.
    b
        Target to hold it against, such as the same model served by yourself; or the folder of a finished run.
    """
    options.check()
    if options.env_file is not None:
        load_env_file(options.env_file)
    runs = [(Path(name) / MANIFEST).is_file() for name in (a, b)]
    if any(runs) and not all(runs):
        raise UsageError(
            f"{a if runs[0] else b} is a finished run and {b if runs[0] else a} is none", hint="compare like with like"
        )
    out = (options.out or make_dir(reports_dir()) / _name(a, b)).absolute()
    check_out(out)
    if all(runs):
        result = compare_runs(read_run(Path(a)), read_run(Path(b)), options.rule)
    else:
        result = asyncio.run(_ask(find_target(a), find_target(b), options))
    write(result, out)
    if options.json:
        print_json(asdict(result))
    else:
        show(result)
    note(f"report: {out / REPORT}")
    return EXIT_CODES[result.decision]


def _name(a: str, b: str) -> str:
    """Time first, so that comparisons sort; then what was compared."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-compare-{Path(a).name}-{Path(b).name}"


async def _ask(spec_a: TargetSpec, spec_b: TargetSpec, options: CompareOptions) -> CompareResult:
    for spec in (spec_a, spec_b):  # before a model is loaded or anything is sent
        if options.max_cost is not None:
            require_prices(spec)
    budget = Budget(limits=options.limits)
    async with AsyncExitStack() as stack:
        sides = []
        for name, spec in (("A", spec_a), ("B", spec_b)):
            provider = await open_within(budget, spec, OpenOptions(note=note))
            stack.push_async_callback(provider.aclose)
            sides.append(Side(name=name, spec=spec, provider=provider))
        return await compare_targets(sides[0], sides[1], options.settings, progress)
