"""`harness run --batch`: one look at the batch jobs of a plan on a target, and what it came to."""

from __future__ import annotations

from dataclasses import replace

from harness.cli.console import note
from harness.evals.batching import BATCHED, MAX_ROUNDS, Batching, Progress
from harness.evals.plan import Plan
from harness.evals.runner import make_job
from harness.providers.base import Provider
from harness.providers.http.batch import open_service
from harness.providers.http.ledger import Ledger
from harness.providers.http.provider import HttpProvider
from harness.providers.targets import TargetSpec
from harness.records import Mode
from harness.reports.run import journal_path
from harness.store import Journal


def pinned(plan: Plan, provider: Provider) -> Plan:
    """The plan in the target's best mode, if jobs can be asked in it: what would be amplified when asked directly is not."""
    able = provider.info.capabilities.able()
    if plan.choice.mode is not None or able[0] not in BATCHED:
        return plan
    if Mode.AMPLIFIED in able:
        note("batch jobs: concepts that the lists do not show are not amplified")
    return replace(plan, choice=replace(plan.choice, mode=able[0]))


async def advance(plan: Plan, spec: TargetSpec, provider: Provider, *, written: bool = False) -> Progress:
    """Collect what is ready and submit what is missing; or, once the run is `written`, forget what its lines brought."""
    assert isinstance(provider, HttpProvider), "apis with batch jobs are asked over HTTP"
    service = open_service(spec, provider.transport.clean)
    try:
        with Journal(journal_path(spec.name)) as journal, Ledger(journal.path, provider.info) as ledger:
            batching = Batching(make_job(plan, provider, journal), service, ledger, note)
            if not written:
                return await batching.advance()
            batching.settle()
            return Progress()
    finally:
        await service.aclose()


def show(name: str, progress: Progress) -> None:
    """What a user reads when a run by batches is not complete."""
    note(f"{name}: {progress.done} of {progress.planned} prompts answered, {progress.waiting} in batch jobs")
    if progress.exhausted:
        worst = max(progress.reasons, key=lambda reason: progress.reasons[reason])
        note(
            f"{progress.exhausted} prompts failed in {MAX_ROUNDS} rounds or were refused"
            f" ({progress.reasons[worst]} with: {worst})"
        )
        note("hint: the same command without --batch asks them directly")
    if progress.waiting:
        note("hint: the same command later collects what is ready; most jobs end within a day")
