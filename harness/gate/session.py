"""A gate's own run: what is planned for it, its own journal, and the folder it is written to."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from harness.errors import UsageError
from harness.evals.plan import Choice, Plan, make_plan
from harness.evals.runner import Job, Tally, make_job
from harness.evals.score import SCORING_VERSION
from harness.evals.spec import Eval, GateSpec, Sizes, find_eval
from harness.gate.answers import is_looked_at
from harness.gate.asking import restricted
from harness.gate.baseline import Baseline, Source, require_comparable
from harness.gate.folder import check_gate_folder
from harness.gate.order import Order
from harness.packs.pack import find_pack
from harness.paths import make_dir, reports_dir
from harness.providers.base import Provider
from harness.providers.targets import TargetSpec, find_target
from harness.records import Mode
from harness.reports.lock import locked
from harness.reports.manifest import make_manifest
from harness.reports.run import Asked, check_out, run_id, write_run
from harness.store import Journal


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Session:
    """An opened gate. `source` describes what is asked as a finished run's manifest would."""

    job: Job
    spec: TargetSpec
    out: Path
    source: Source
    started: datetime
    clock: float

    def write(self, tally: Tally, prompts: Sequence[str], folder: Path) -> str:
        """Write what was asked to `folder` as a run; returns the page of its report."""
        asked = Asked(
            job=restricted(self.job, prompts),
            spec=self.spec,
            tally=tally,
            started=self.started,
            seconds=time.perf_counter() - self.clock,
            command=shlex.join(["harness", *sys.argv[1:]]),
        )
        return write_run(asked, folder, run_id=self.out.name).page


@contextmanager
def session(order: Order, plan: Plan, provider: Provider, *, gate: bool) -> Iterator[Session]:
    """Hold the folder's lock, and the journal, which is new unless the order says to go on.

    `gate`: whether a gate is to be written, in a folder of its own kind, or a run.
    """
    started, clock = datetime.now(UTC), time.perf_counter()
    name = run_id(plan, order.target, started) + ("-gate" if gate else "")
    out = order.out.absolute() if order.out else make_dir(reports_dir()) / name
    (check_gate_folder if gate else check_out)(out)
    journal_path = out.with_name(f".{out.name}.journal.sqlite")
    with locked(out), _journal(journal_path, resume=order.resume, keep=order.out is not None) as journal:
        job = make_job(plan, provider, journal)
        manifest = make_manifest(job, Tally(planned=0), run_id=out.name, started=started, finished=started, command="")
        source = Source.of(manifest)
        yield Session(job=job, spec=find_target(order.target), out=out, source=source, started=started, clock=clock)


@contextmanager
def _journal(path: Path, *, resume: bool, keep: bool) -> Iterator[Journal]:
    """A journal that is gone once the block ends well, and unless `keep`, when it ends otherwise."""
    if not resume:
        _remove(path)
    try:
        with Journal(path) as journal:
            yield journal
    except BaseException:
        if not keep:
            _remove(path)
        raise
    _remove(path)


def _remove(journal: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        journal.with_name(journal.name + suffix).unlink(missing_ok=True)


def declared(eval_: Eval) -> GateSpec:
    """The eval's gate; raises UsageError where it declares none."""
    if eval_.spec.gate is None:
        raise UsageError(
            f"eval {eval_.name!r} declares no gate",
            hint="add [gate] with metric and margin to its eval.toml; see evals/regression",
        )
    return eval_.spec.gate


def plan_anew(order: Order, eval_: Eval, *, mode: Mode) -> Plan:
    """The plan of a baseline that is to be."""
    plan = make_plan(eval_, find_pack(order.pack or eval_.spec.pack), Choice(mode=mode))
    return _of_gate(plan, declared(eval_))


def plan_like(order: Order, baseline: Baseline) -> Plan:
    """The plan that the baseline was made by; raises UsageError where eval or pack are no longer the same."""
    then = baseline.source
    eval_ = find_eval(order.eval)
    pack = find_pack(order.pack or eval_.spec.pack)
    known = {"eval": eval_.name, "eval_digest": eval_.digest, "pack_digest": pack.digest, "scoring_version": SCORING_VERSION}
    require_comparable(baseline, known)
    concepts = tuple({cluster.concept for cluster in baseline.clusters})
    plan = make_plan(eval_, pack, Choice(concepts=concepts, seed=then.seed, mode=Mode(then.mode)))
    return _of_gate(replace(plan, sizes=Sizes(**then.sizes)), baseline.gate)


def _of_gate(plan: Plan, gate: GateSpec) -> Plan:
    """Of the arms that the gate looks at."""
    missing = [arm for arm in (gate.arm, gate.control) if arm is not None and arm not in plan.arms]
    if missing:
        raise UsageError(f"eval {plan.eval.name!r}: its gate is about arm {missing[0]!r}, which it does not ask")
    return replace(plan, arms=tuple(arm for arm in plan.arms if is_looked_at(gate, arm)))
