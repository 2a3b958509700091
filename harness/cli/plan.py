"""`harness plan`: how large a run must be to see an effect of a given size, from a pilot, and what it costs."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from harness.cli.console import note, print_json, print_table
from harness.cli.estimates import print_estimates
from harness.cli.numbers import require_above_zero
from harness.errors import UsageError
from harness.reports.estimate import Estimate
from harness.reports.planned import Asked, Planned, alternatives, estimates, prepare, sentences, size
from harness.reports.reading import read_run


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """The options of `harness plan`."""

    mde: Annotated[
        float | None,
        Parameter(help="Effect to be seen, in the primary metric's unit (nat, or a share of 1); default: the eval's margin"),
    ] = None
    pilot: Annotated[Path | None, Parameter(help="Finished run, by folder, that tells how much trials differ")] = None
    target: Annotated[
        list[str] | None, Parameter(negative="", help="Target that the run is to ask; repeat for several. Default: the pilot's")
    ] = None
    power: Annotated[float | None, Parameter(help="How often the effect is to be found; default: as the eval says")] = None
    alpha: Annotated[float | None, Parameter(help="How often none may be found; default: as the eval says")] = None
    concepts: Annotated[int | None, Parameter(help="How many concepts the run is to have; default: the pilot's")] = None
    eval: Annotated[str | None, Parameter(help="Eval that declares margin and arms; default: the pilot's")] = None
    pack: Annotated[str | None, Parameter(help="Probe pack that limits the sizes; default: the pilot's")] = None
    json: Annotated[bool, Parameter(negative="", show_default=False, help="Print everything as one JSON document")] = False

    def check(self) -> None:
        """Raises UsageError for a number that makes no sense."""
        require_above_zero(self, "mde")
        if self.concepts is not None and self.concepts < 2:
            raise UsageError(f"--concepts {self.concepts}: must be at least 2, the verdict is one over concepts")
        if self.power is not None and not 0.5 < self.power < 1:
            raise UsageError(f"--power {self.power:g}: must lie between 0.5 and 1")
        if self.alpha is not None and not 0 < self.alpha < 0.5:
            raise UsageError(f"--alpha {self.alpha:g}: must lie between 0 and 0.5")

    @property
    def asked(self) -> Asked:
        """What is planned."""
        return Asked(mde=self.mde, power=self.power, alpha=self.alpha, concepts=self.concepts, eval=self.eval, pack=self.pack)


DEFAULTS = PlanOptions()


def plan(*, options: Annotated[PlanOptions, Parameter(name="*")] = DEFAULTS) -> int:
    """Say how many sentences, injections and concepts see an effect of a given size, and what they cost.

    From a finished pilot: how much its primary contrast differs between sentences, injections and concepts. Nothing is sent.
    """
    options.check()
    if options.pilot is None:
        raise UsageError(
            "harness plan needs a pilot: a small finished run whose trials tell how much they differ",
            hint="harness run --target T --out pilot makes one; then: harness plan --mde 0.1 --pilot pilot",
        )
    planned = prepare(read_run(options.pilot), options.asked)
    costs = estimates(planned, options.target or ())
    if options.json:
        print_json(_record(planned, costs))
        return 0
    sys.stdout.write("".join(f"{line}\n" for line in sentences(planned)) + "\n")
    print_table(*_table(planned))
    if costs and planned.best is not None:
        sys.stdout.write(f"\n{size(planned.best.design)}:\n")
        print_estimates(costs)
    _notes(planned, n_targets=len(costs))
    return 0


def _table(planned: Planned) -> tuple[list[str], list[list[str]]]:
    """The pilot, the cheapest design, then the alternatives."""
    rows = [("pilot", planned.planning.outlook(planned.pilot.design))]
    rows += [("cheapest", planned.best)] if planned.best is not None else []
    rows += [("", outlook) for outlook in alternatives(planned)]
    headers = ["", "concepts", "injections", "sentences", "prompts", "sees over all", "sees of one concept", "beyond the pack"]
    return headers, [
        [
            name,
            *(
                f"{n:,}"
                for n in (outlook.design.concepts, outlook.design.injections, outlook.design.sentences, outlook.prompts)
            ),
            planned.value(outlook.mde),
            planned.value(outlook.mde_concept),
            ", ".join(outlook.exceeds),
        ]
        for name, outlook in rows
    ]


def _notes(planned: Planned, *, n_targets: int) -> None:
    if planned.pack_changed:
        note(f"pack {planned.pack.manifest.name} is not the same as when the pilot was run")
    if n_targets > 1:
        alpha = planned.planning.question.alpha / n_targets
        note(
            f"verdicts of one command are corrected over its {n_targets} targets: --alpha {alpha:.2g} is right for all of them"
        )
    if planned.best is None:
        return
    if "concepts" in planned.best.exceeds or "injections" in planned.best.exceeds:
        note(f"the room prompts/concepts has {planned.n_in_room} concepts; harness distill makes a larger pack of them")
    design = planned.best.design
    note(f"hint: harness run --injections {design.injections} --sentences {design.sentences} asks it")


def _record(planned: Planned, costs: list[Estimate]) -> dict[str, Any]:
    planning = planned.planning
    return {
        "pilot": {
            "run_id": planned.run.manifest["run_id"],
            **asdict(planned.pilot),
            **asdict(planning.outlook(planned.pilot.design)),
        },
        "primary": planned.run.summary["primary"],
        "question": asdict(planning.question),
        "offer": asdict(planning.offer),
        "answer": sentences(planned),
        "overall": None if planned.best is None else asdict(planned.best),
        "concept": None if planned.alone is None else asdict(planned.alone),
        "alternatives": [asdict(outlook) for outlook in alternatives(planned)],
        "estimates": [asdict(item) for item in costs],
    }
