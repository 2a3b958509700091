"""One run, from an opened target to a written folder: ask, score, summarise, write. `reports/README.md` shows the folder."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.errors import BudgetSpentError, StorageError
from harness.evals.analysis import Analysis
from harness.evals.plan import Plan, count_prompts
from harness.evals.runner import Job, Tally, ask_all, make_job
from harness.evals.trials import scored_batches
from harness.paths import cache_dir, make_dir, writing
from harness.providers.base import Provider
from harness.providers.embedding import find_embedding
from harness.providers.targets import TargetSpec
from harness.reports.cost import cost
from harness.reports.examples import Example, ExamplePicker
from harness.reports.html import render
from harness.reports.lock import locked
from harness.reports.manifest import make_manifest
from harness.reports.parquet import OBSERVATIONS, TRIALS, TableWriter, observation_columns
from harness.store import Journal

MANIFEST, SUMMARY, REPORT = "manifest.json", "summary.json", "report.html"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A run that was written to `folder`. `tally.failed` above 0 means that it is incomplete."""

    folder: Path
    manifest: dict[str, Any]
    summary: dict[str, Any]
    tally: Tally
    examples: tuple[Example, ...]

    def rewrite(self) -> None:
        """Write summary and page anew, after `summary` was changed."""
        with locked(self.folder), writing(self.folder, hint="run it again: answers that are journalled are not asked twice"):
            write_json(self.folder / SUMMARY, self.summary)
            (self.folder / REPORT).write_text(render(self.manifest, self.summary, self.examples), encoding="utf-8")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Written:
    """The records of a run whose tables are written; `page` is its report."""

    manifest: dict[str, Any]
    summary: dict[str, Any]
    examples: tuple[Example, ...]

    @property
    def page(self) -> str:
        return render(self.manifest, self.summary, self.examples)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Asked:
    """What was asked of a target, from `started` on, in `seconds`; the answers lie in the job's journal."""

    job: Job
    spec: TargetSpec
    tally: Tally
    started: datetime
    seconds: float
    command: str

    @property
    def n_prompts(self) -> int:
        """Prompts that were sent: not those from the journal, nor those that a limit left out."""
        return self.tally.planned - self.tally.from_cache - self.tally.not_asked


def journal_path(target: str) -> Path:
    """The journal of one target, shared by all its runs."""
    return cache_dir() / "journal" / f"{target}.sqlite"


def run_id(plan: Plan, target: str, started: datetime) -> str:
    """Time first, so that runs sort; then what was run on what."""
    return f"{started:%Y%m%d-%H%M%S}-{plan.eval.name}-{target}"


def check_out(out: Path) -> None:
    """Raises StorageError, before anything is asked, where a run could not be written to `out`."""
    make_dir(out.parent)
    if out.exists() and not (out / MANIFEST).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise StorageError(f"{out}: exists and is no run folder", hint="name an empty or a new folder with --out")


async def execute(
    plan: Plan,
    spec: TargetSpec,
    provider: Provider,
    *,
    out: Path,
    command: str,
    on_progress: Callable[[Tally], None],
) -> Finished:
    """Ask what the journal lacks, then write the run to `out` in one rename. A limit that is reached ends the asking, not the
    run. Raises what asking and writing raise."""
    started, clock = datetime.now(UTC), time.perf_counter()
    with locked(out), Journal(journal_path(spec.name)) as journal:
        job = make_job(plan, provider, journal)
        tally = Tally(planned=count_prompts(plan))
        try:
            await ask_all(job, tally, on_progress)
        except BudgetSpentError as exc:
            tally.stop(f"{exc.limit} is reached")
        asked = Asked(job=job, spec=spec, tally=tally, started=started, seconds=time.perf_counter() - clock, command=command)
        if asked.n_prompts and not tally.failed:
            journal.add_rate(started.isoformat(), asked.n_prompts, asked.seconds)
        with replacing(out) as folder:
            written = write_run(asked, folder, run_id=out.name)
            (folder / REPORT).write_text(written.page, encoding="utf-8")
    return Finished(folder=out, manifest=written.manifest, summary=written.summary, tally=tally, examples=written.examples)


def write_run(asked: Asked, folder: Path, *, run_id: str) -> Written:
    """Write records and tables of what is journalled to `folder`, without the page."""
    job, tally = asked.job, asked.tally
    analysis, picker = _write_tables(job, asked.spec, folder)
    finished = datetime.now(UTC)
    manifest = make_manifest(job, tally, run_id=run_id, started=asked.started, finished=finished, command=asked.command)
    summary = {
        "run_id": run_id,
        **analysis.summary(),
        "cost": cost(job, tally, asked.spec),
        "timing": {
            "asked_s": round(asked.seconds, 3),
            "total_s": round((finished - asked.started).total_seconds(), 3),
            "prompts_per_s": round(asked.n_prompts / asked.seconds, 2) if asked.n_prompts else None,
        },
    }
    write_json(folder / MANIFEST, manifest)
    write_json(folder / SUMMARY, summary)
    return Written(manifest=manifest, summary=summary, examples=tuple(picker.examples()))


def _write_tables(job: Job, spec: TargetSpec, folder: Path) -> tuple[Analysis, ExamplePicker]:
    """Stream the journalled answers through scoring into both tables, the analysis and the examples."""
    analysis = Analysis(job.plan, spec.name, job.modes)
    vocabulary = job.provider.vocabulary
    picker = ExamplePicker(seed=job.plan.choice.seed, vocabulary=vocabulary, lexicons=job.lexicons)
    embedding = find_embedding(spec)
    with (
        TableWriter(folder / "observations.parquet", OBSERVATIONS) as observations,
        TableWriter(folder / "trials.parquet", TRIALS) as trials,
    ):
        for concept in job.plan.concepts:
            for batch in scored_batches(job, concept, embedding):
                observations.add(observation_columns(batch, vocabulary))
                picker.add(batch)
                if batch.trials is not None:
                    trials.add(batch.trials)
                    analysis.add(batch.trials)
            analysis.close_concept(concept)
    return analysis, picker


def write_json(path: Path, data: dict[str, Any]) -> None:
    """`data` as a readable JSON file."""
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place when the block ends well, and is removed when it does not."""
    partial = out.with_name(f".{out.name}.partial")
    old = out.with_name(f".{out.name}.old")
    try:
        with writing(out, hint="name another folder with --out"):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            yield partial
            if out.exists():
                shutil.rmtree(old, ignore_errors=True)
                out.rename(old)
            partial.rename(out)
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
