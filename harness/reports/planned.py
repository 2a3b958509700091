"""A run planned from a pilot: the eval, the pack and the targets that it concerns, and the answer in words.

The search over designs stands in `harness.evals.planning`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness.errors import UsageError
from harness.evals.contrasts import BOUNDED
from harness.evals.measures import MEASURES, NOT_AVAILABLE, number
from harness.evals.plan import Choice, Plan, count_prompts, make_plan
from harness.evals.planning import ENDLESS, Design, Outlook, Pilot, Planning, Question, read_pilot
from harness.evals.spec import Contrast, Eval, find_eval
from harness.packs.concepts import concept_names
from harness.packs.pack import Pack, find_pack
from harness.providers.targets import find_target
from harness.reports.estimate import Estimate, estimate
from harness.reports.reading import FinishedRun

INJECTIONS = (4, 8, 16, 32, 64)
"""Of the alternatives that are shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the user named; None: as the pilot was, or as its eval says. `mde` in the primary metric's unit."""

    mde: float | None = None
    power: float | None = None
    alpha: float | None = None
    concepts: int | None = None
    eval: str | None = None
    pack: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """What is known of a run to come. `best`, `alone`: the cheapest design over all concepts, and of one by itself."""

    run: FinishedRun
    eval: Eval
    pack: Pack
    planning: Planning
    n_concepts: int
    best: Outlook | None
    alone: Outlook | None

    @property
    def pilot(self) -> Pilot:
        """As it was read."""
        return self.planning.pilot

    @property
    def pack_changed(self) -> bool:
        """Whether the pack is another than the pilot's, or has been edited."""
        return bool(self.pack.digest != self.run.manifest["pack"]["digest"])

    @property
    def n_in_room(self) -> int:
        """Concepts that packs can be made of."""
        return len(concept_names())

    def value(self, effect: float | None) -> str:
        """An effect in the metric's unit."""
        measure = MEASURES[self.run.summary["primary"]["metric"]]
        if effect is None:
            return NOT_AVAILABLE
        return f"{number(measure.scale * effect, measure.decimals + 1)} {measure.difference}"


def prepare(run: FinishedRun, asked: Asked) -> Planned:
    """Read the pilot and look for designs; raises UsageError where the run is none, or the pack lacks its arms."""
    eval_ = find_eval(asked.eval or run.manifest["eval"]["name"])
    pack = find_pack(asked.pack or run.manifest["pack"]["name"])
    pilot, whole = _pilot(run, pack), make_plan(eval_, pack, Choice(seed=run.manifest["seed"], full=True))
    primary = run.summary["primary"]
    planning = Planning(
        pilot=pilot,
        question=Question(
            mde=asked.mde or _margin(eval_, primary),
            alpha=asked.alpha or eval_.spec.alpha,
            power=asked.power or eval_.spec.power,
        ),
        offer=_offer(whole, primary["arm"], primary["control"]),
        arms=sum((name, arm) in pack.probes for name in whole.concepts for arm in whole.arms) / len(whole.concepts),
    )
    n_concepts = asked.concepts or pilot.design.concepts
    best, alone = (planning.cheapest(n) for n in (n_concepts, 1))
    return Planned(
        run=run,
        eval=eval_,
        pack=pack,
        planning=planning,
        n_concepts=n_concepts,
        best=None if best is None else planning.outlook(best),
        alone=None if alone is None else planning.outlook(alone),
    )


def _pilot(run: FinishedRun, pack: Pack) -> Pilot:
    primary = run.summary["primary"]
    if primary is None:
        raise UsageError(f"{run.folder}: the run has no primary contrast", hint="harness run with a pack that has its arms")
    if run.manifest["eval"]["design"] != "crossed":
        raise UsageError(
            f"{run.folder}: its injections were drawn afresh for each sentence, so they cannot be told from the rest",
            hint="harness run --eval transfer makes a pilot whose injections meet every sentence",
        )
    metric = primary["metric"]
    bounds = [f"{metric}_{end}" for end in ("low", "high")] if metric in BOUNDED else []
    columns = run.trials(["concept", "arm", "sentence_id", "injection_id", "off_type", metric, *bounds])
    contrast = Contrast(arm=primary["arm"], control=primary["control"])
    partners = {
        (concept, probe.injection_id): str(probe.provenance["matched_to"])
        for (concept, arm), probes in pack.probes.items()
        for probe in probes
        if arm == contrast.control and "matched_to" in probe.provenance
    }
    pilot = read_pilot(columns, contrast, metric, partners)
    if pilot is None:
        raise UsageError(
            f"{run.folder}: too few trials of {primary['arm']} and {primary['control']} to plan from",
            hint="a pilot needs at least 2 sentences and 2 injections in some concept, better 8 of each in 8 concepts",
        )
    return pilot


def _margin(eval_: Eval, primary: dict[str, Any]) -> float:
    for one in eval_.spec.primary:
        if all(getattr(one, key) == primary[key] for key in ("arm", "control", "metric")):
            return one.margin
    raise UsageError(f"eval {eval_.name!r} declares no margin for the pilot's contrast", hint="name the effect with --mde")


def _offer(whole: Plan, arm: str, control: str) -> Design:
    """What the pack has of the contrast in every concept that has both arms; raises UsageError where that is no crossed run."""
    probes = whole.pack.probes
    pairs = {name: min(len(probes.get((name, one), ())) for one in (arm, control)) for name in whole.concepts}
    both = [name for name, n in pairs.items() if n]
    injections = min((pairs[name] for name in both), default=0)
    n_sentences = min((len(whole.pack.concept(name).sentences) for name in both), default=0)
    if min(injections, n_sentences) < 2:
        problem = f"has {injections} injections of {arm} and {control}, and {n_sentences} sentences, for each concept"
        raise UsageError(f"pack {whole.pack.manifest.name!r} {problem}", hint="name another one with --pack")
    return Design(concepts=len(both), injections=injections, sentences=n_sentences)


def alternatives(planned: Planned) -> list[Outlook]:
    """By number of concepts (as asked, as the pack has, as the room has) and of injections, each with fewest sentences."""
    numbers = {planned.n_concepts, planned.planning.offer.concepts, planned.n_in_room} - {0, 1}
    return [outlook for n in sorted(numbers) for outlook in planned.planning.alternatives(n, INJECTIONS)]


def estimates(planned: Planned, targets: Sequence[str]) -> list[Estimate]:
    """What the best design asks of each target; one beyond the pack is scaled up from what the pack has."""
    if planned.best is None:
        return []
    design, offer = planned.best.design, planned.planning.offer
    order = [*planned.run.manifest["concepts"], *planned.pack.concepts]
    names = [name for name in dict.fromkeys(order) if name in planned.pack.concepts][: design.concepts]
    choice = Choice(
        concepts=tuple(names),
        injections=min(design.injections, offer.injections),
        sentences=min(design.sentences, offer.sentences),
        seed=planned.run.manifest["seed"],
    )
    made = make_plan(planned.eval, planned.pack, choice)
    factor = planned.best.prompts / count_prompts(made) if planned.best.exceeds else 1.0
    chosen = list(dict.fromkeys(targets or [planned.run.manifest["target"]]))
    return [_scaled(estimate(made, find_target(name)), factor) for name in chosen]


def _scaled(item: Estimate, factor: float) -> Estimate:
    if factor == 1:
        return item
    return replace(
        item,
        exact=False,
        prompts=round(factor * item.prompts),
        tokens=round(factor * item.tokens),
        requests=round(factor * item.requests),
        input_tokens=round(factor * item.input_tokens),
        output_tokens=round(factor * item.output_tokens),
        seconds=None if item.seconds is None else factor * item.seconds,
        usd=None if item.usd is None else factor * item.usd,
    )


def sentences(planned: Planned) -> list[str]:
    """The answer, first over all concepts, then for one; then why."""
    question, pilot, primary = planned.planning.question, planned.pilot, planned.run.summary["primary"]
    seen, alone = planned.planning.seen(pilot.design)
    parts = {"sentences": pilot.parts.sentences, "injections": pilot.parts.injections, "the rest": pilot.parts.rest}
    if pilot.parts.concepts is not None:
        parts["concepts"] = pilot.parts.concepts
    return [
        f"{primary['arm']} - {primary['control']}, {MEASURES[primary['metric']].name}: a shift of {planned.value(question.mde)}"
        f" with power {question.power:g} at alpha {question.alpha:g}",
        f"over all concepts: {_overall(planned)}",
        f"one concept by itself, before correction over concepts: {_alone(planned)}",
        f"the pilot, {size(pilot.design)}, could see {planned.value(seen)} over all concepts, {planned.value(alone)} of one",
        *_floors(planned),
        "standard deviations: " + ", ".join(f"{name} {planned.value(variance**0.5)}" for name, variance in parts.items()),
        *_uncertain(planned),
        *([f"what the target did not list leaves {planned.value(pilot.width)} open, whatever the size"] if pilot.width else []),
    ]


def _uncertain(planned: Planned) -> list[str]:
    factors = planned.planning.uncertainty()
    if factors is None or planned.pilot.parts.concepts is None:
        return []
    low, high = factors
    n = planned.pilot.design.concepts
    return [f"known from {n} concepts: effects over all that can be seen may be {low:.2f} to {high:.2f} times as large (95%)"]


def _overall(planned: Planned) -> str:
    if planned.best is not None:
        return f"{size(planned.best.design)}, {planned.best.prompts:,} prompts{_beyond(planned.best, planned)}"
    if planned.pilot.parts.concepts is None:
        return "a pilot of one concept does not tell how concepts differ"
    if planned.pilot.width >= planned.planning.question.mde:
        return "no size is enough while the target lists so little; raise logprobs in the eval, or choose another --mode"
    return f"not with {planned.n_concepts} concepts, whatever sentences and injections; {_more_concepts(planned)}"


def _more_concepts(planned: Planned) -> str:
    """How many concepts would do, with all that the pack has of each, or with no end of it."""
    offer, room = planned.planning.offer, planned.n_in_room
    each = f"{offer.injections} injections x {offer.sentences} sentences each"
    n = planned.planning.concepts_needed(offer.injections, offer.sentences)
    if n is None:
        n, each = planned.planning.concepts_needed(ENDLESS, ENDLESS), "no end of either"
    if n is None:
        return "no number of concepts would"
    return f"{n} concepts would with {each}" + (f"; the room prompts/concepts has {room}" if n > room else "")


def _alone(planned: Planned) -> str:
    offer = planned.planning.offer
    _, most = planned.planning.seen(replace(offer, concepts=1))
    if planned.alone is None:
        return f"out of reach; all that the pack has sees {planned.value(most)}"
    answer = f"{size(planned.alone.design)}, {planned.alone.prompts:,} prompts{_beyond(planned.alone, planned)}"
    return f"{answer}, all of which sees {planned.value(most)}" if planned.alone.exceeds else answer


def _floors(planned: Planned) -> list[str]:
    """What more sentences, and more of both, cannot beat."""
    design = replace(planned.pilot.design, concepts=planned.n_concepts)
    sentences, _ = planned.planning.seen(replace(design, sentences=ENDLESS))
    both, _ = planned.planning.seen(replace(design, sentences=ENDLESS, injections=ENDLESS))
    if sentences is None or both is None:
        return []
    return [
        f"with {design.injections} injections in {design.concepts} concepts no number of sentences sees less than"
        f" {planned.value(sentences)}; with no end of either it is {planned.value(both)}"
    ]


def size(design: Design) -> str:
    """A design in words."""
    plural = "" if design.concepts == 1 else "s"
    return f"{design.concepts} concept{plural} x {design.injections} injections x {design.sentences} sentences"


def _beyond(outlook: Outlook, planned: Planned) -> str:
    if not outlook.exceeds:
        return ""
    has = ", ".join(f"{getattr(planned.planning.offer, name)} {name}" for name in outlook.exceeds)
    return f"; pack {planned.pack.manifest.name} has {has}"
