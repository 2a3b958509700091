"""The options of `harness run`, as one record, and what they come to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from harness.cli.env_file import ENV_FILE_HELP
from harness.cli.numbers import require_above_zero, require_at_least
from harness.errors import UsageError
from harness.evals.budget import Limits
from harness.evals.plan import Choice
from harness.providers.targets import Dtype, OpenOptions
from harness.records import Mode

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
    injections: Annotated[int | None, Parameter(help="Injections for each concept and arm, instead of the eval's number")] = (
        None
    )
    sentences: Annotated[int | None, Parameter(help="Sentences for each concept, instead of the eval's number")] = None
    full: Annotated[
        bool, Parameter(negative="", show_default=False, help="The eval's full sizes instead of the quick ones")
    ] = False
    seed: Annotated[int, Parameter(help="Seed of every random choice")] = 0
    mode: Annotated[
        Mode | None, Parameter(help="How much of the next-word distribution is asked for; default: the most the target shows")
    ] = None
    draws: Annotated[
        int | None, Parameter(help="Continuations of each prompt, where they are drawn; default: as the eval says")
    ] = None
    dtype: Annotated[Dtype | None, Parameter(help="Number type of a model run in this process")] = None
    out: Annotated[Path | None, Parameter(help="Run folder; with several targets, their parent. Default: reports/<run-id>")] = (
        None
    )
    dry_run: Annotated[
        bool,
        Parameter(negative="", show_default=False, help="Say how many requests and tokens, how long, what price; send nothing"),
    ] = False
    max_cost: Annotated[float | None, Parameter(help="Stop before more US dollars are spent, by the target's prices")] = None
    max_requests: Annotated[int | None, Parameter(help="Stop after so many requests, retries and probes too")] = None
    max_seconds: Annotated[float | None, Parameter(help="Send nothing more after so many seconds")] = None
    max_connections: Annotated[
        int | None, Parameter(help="Most requests under way at once, instead of the endpoint's own limit")
    ] = None
    env_file: Annotated[Path | None, Parameter(help=ENV_FILE_HELP)] = None
    batch: Annotated[
        bool,
        Parameter(
            negative="",
            show_default=False,
            help="By batch jobs, at their price: submit and leave; the same command later collects and, at the end, writes",
        ),
    ] = False
    json: Annotated[
        bool, Parameter(negative="", show_default=False, help="Print the summary as JSON on stdout, one line a target")
    ] = False

    def check(self) -> None:
        """Raises UsageError for a number that makes no sense, and for options that do not go together."""
        require_at_least(self, 1, "limit", "injections", "sentences", "draws", "max_requests", "max_connections")
        require_above_zero(self, "max_cost", "max_seconds")
        if self.batch and self.max_seconds is not None:
            raise UsageError("--max-seconds does not go with --batch: batch jobs take the time that the service takes")

    @property
    def choice(self) -> Choice:
        """What is picked of the eval."""
        return Choice(
            concepts=tuple(self.concept or ()),
            limit=self.limit,
            injections=self.injections,
            sentences=self.sentences,
            full=self.full,
            seed=self.seed,
            mode=self.mode,
            draws=self.draws,
        )

    @property
    def limits(self) -> Limits:
        """What may be spent."""
        return Limits(usd=self.max_cost, requests=self.max_requests, seconds=self.max_seconds)

    def opening(self, note: Callable[[str], None], sending: Callable[[], None]) -> OpenOptions:
        """How targets are opened."""
        return OpenOptions(dtype=self.dtype, note=note, max_connections=self.max_connections, sending=sending)
