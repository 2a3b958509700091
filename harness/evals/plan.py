"""The plan: which prompts, in which order. A pure function of eval, pack, seed and the user's choice; equal inputs give equal
plans, byte for byte.

Order: concept by concept; the clean sentences first, then arm by arm, injection by injection, so that prompts that share a
prefix stand together. Prompts are generated, never held: a plan of 300,000 takes the memory of one concept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from harness.errors import CapabilityError, UsageError
from harness.evals.spec import CHECKS, Check, Contrast, Eval, Primary, Sizes
from harness.packs.concepts import Concept
from harness.packs.pack import Pack
from harness.packs.sampling import draw, generator, subset
from harness.packs.templates import Template, find_template
from harness.records import CLEAN, Mode, Probe, Prompt, Sentence


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What the user picked beyond the eval. `limit`: at most so many sentences, and injections, for each concept and arm;
    `injections`, `sentences`: so many of them, instead of the eval's own sizes.
    `mode`: how much of the distribution is asked for; None: the most that the target shows. `draws`: how many continuations of
    each prompt, in the modes that draw; None: as many as the eval says."""

    concepts: tuple[str, ...] = ()
    limit: int | None = None
    injections: int | None = None
    sentences: int | None = None
    full: bool = False
    seed: int = 0
    mode: Mode | None = None
    draws: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A run's prompts. `arms` in the pack's order; `template` is both the name and the record. `mode`: known once a target is
    opened. `only`: the ids of the prompts that are asked, None for all."""

    eval: Eval
    pack: Pack
    choice: Choice
    concepts: tuple[str, ...]
    arms: tuple[str, ...]
    sizes: Sizes
    template_name: str
    template: Template
    mode: Mode = Mode.EXACT
    only: frozenset[str] | None = None

    @property
    def primary(self) -> Primary | None:
        """The first declared primary contrast whose arms are planned and that holds in the mode, None if there is none."""
        fitting = (p for p in self.eval.spec.primary if self.mode in p.modes)
        return next((p for p in fitting if {p.arm, p.control} <= set(self.arms)), None)

    @property
    def draws(self) -> int:
        """How many continuations of each prompt are drawn, in the modes that draw."""
        return self.choice.draws or self.eval.spec.draws

    @property
    def calibration(self) -> dict[Check, Contrast]:
        """For each check the first declared contrast whose arms are planned. One whose arm is the primary contrast's own is
        passed over: a claim cannot vouch for itself."""
        claimed = self.primary.arm if self.primary else None
        usable = [(check, c) for check in CHECKS for c in getattr(self.eval.spec.calibration, check) if c.arm != claimed]
        return {check: c for check, c in reversed(usable) if {c.arm, c.control} <= set(self.arms)}

    @property
    def contrasts(self) -> tuple[Contrast, ...]:
        """The declared contrasts whose arms are planned, the primary one first, without repeats."""
        first = [Contrast(arm=self.primary.arm, control=self.primary.control)] if self.primary else []
        wanted = [c for c in self.eval.spec.contrasts if {c.arm, c.control} <= set(self.arms)]
        return tuple(dict.fromkeys([*first, *wanted, *self.calibration.values()]))


def make_plan(eval_: Eval, pack: Pack, choice: Choice) -> Plan:
    """Check that `pack` can serve `eval_` and the choice; raises UsageError and its kin before anything is sent."""
    spec = eval_.spec
    source = pack.pools if spec.design == "fresh" else pack.probes
    if not source:
        what = "pools to draw fresh injections from" if spec.design == "fresh" else "probes"
        raise CapabilityError(
            f"eval {eval_.name!r} needs a pack with {what}; {pack.manifest.name!r} has none",
            hint="harness packs import-published DIR --out PACK makes one that has both",
        )
    present = tuple(arm for arm in pack.arms if any(a == arm for _, a in source))
    missing = [arm for arm in spec.arms if arm not in present]
    if missing:
        raise CapabilityError(f"eval {eval_.name!r} needs the arm {missing[0]!r}; pack {pack.manifest.name!r} has {present}")
    concepts = choice.concepts or tuple(sorted({concept for concept, _ in source}))
    for name in concepts:
        pack.concept(name)
    for name in ("limit", "injections", "sentences", "draws"):
        number = getattr(choice, name)
        if number is not None and number < 1:
            raise UsageError(f"--{name} {number}: must be at least 1")
    return Plan(
        eval=eval_,
        pack=pack,
        choice=choice,
        concepts=tuple(sorted(set(concepts))),
        arms=tuple(arm for arm in present if not spec.arms or arm in spec.arms),
        sizes=_sizes(spec.full if choice.full else spec.sizes, choice),
        template_name=spec.template,
        template=find_template(spec.template),
    )


def _sizes(declared: Sizes, choice: Choice) -> Sizes:
    """The eval's sizes as the user changed them."""
    most = choice.limit or max(declared.injections, declared.sentences, declared.off_type)
    return Sizes(
        injections=choice.injections or min(declared.injections, most),
        sentences=choice.sentences or min(declared.sentences, most),
        off_type=min(declared.off_type, most),
    )


def sentences_of(plan: Plan, concept: Concept) -> tuple[Sentence, ...]:
    """The sentences that this plan asks of `concept`, on-type first."""
    rng = generator(plan.choice.seed, "sentences", concept.name)
    return subset(concept.sentences, plan.sizes.sentences, rng) + subset(concept.off_type, plan.sizes.off_type, rng)


def clean_prompts(plan: Plan, sentences: Sequence[Sentence]) -> Iterator[Prompt]:
    """The unmodified sentences."""
    yield from _asked(plan, (_prompt(plan, sentence, None) for sentence in sentences))


def injected_prompts(plan: Plan, concept: Concept, sentences: Sequence[Sentence]) -> Iterator[Prompt]:
    """Every injected prompt of `concept`, prompts of one injection together."""
    yield from _asked(plan, _all_injected(plan, concept, sentences))


def _asked(plan: Plan, prompts: Iterable[Prompt]) -> Iterable[Prompt]:
    return prompts if plan.only is None else (prompt for prompt in prompts if prompt.prompt_id in plan.only)


def _all_injected(plan: Plan, concept: Concept, sentences: Sequence[Sentence]) -> Iterator[Prompt]:
    for arm in plan.arms:
        if plan.eval.spec.fresh is not None:
            yield from _fresh(plan, concept, arm, sentences, plan.eval.spec.fresh.n_tokens)
            continue
        # The same places in every arm: an injection is asked together with the control that was matched to it.
        rng = generator(plan.choice.seed, "injections", concept.name)
        probes = subset(plan.pack.probes.get((concept.name, arm), ()), plan.sizes.injections, rng)
        for place, probe in enumerate(probes):
            # Paired: the first sentence meets the first injection alone, and so on; where all are used, the first comes again.
            for sentence in sentences[place :: len(probes)] if plan.eval.spec.design == "paired" else sentences:
                yield _prompt(plan, sentence, probe)


def _fresh(plan: Plan, concept: Concept, arm: str, sentences: Sequence[Sentence], n_tokens: int) -> Iterator[Prompt]:
    """The published protocol: each trial of each sentence draws an injection of its own (Gong et al., ICLR 2026)."""
    pool = plan.pack.pools.get((concept.name, arm), ())
    if not pool:
        return
    for sentence in sentences:
        rng = generator(plan.choice.seed, "fresh", concept.name, arm, sentence.sentence_id)
        for trial in range(plan.sizes.injections):
            probe = Probe(
                concept=concept.name,
                arm=arm,
                injection_id=f"{arm}-{sentence.sentence_id}-{trial:04d}",
                injection=draw(pool, n_tokens, rng),
            )
            yield _prompt(plan, sentence, probe)


def _prompt(plan: Plan, sentence: Sentence, probe: Probe | None) -> Prompt:
    arm, injection_id = (probe.arm, probe.injection_id) if probe else (CLEAN, "")
    return Prompt(
        prompt_id=f"{sentence.concept}/{arm}/{injection_id}/{sentence.sentence_id}",
        concept=sentence.concept,
        arm=arm,
        sentence_id=sentence.sentence_id,
        injection_id=injection_id,
        template=plan.template_name if probe else "",
        group=f"{sentence.concept}/{arm}/{injection_id}",
        text=plan.template.render(probe.injection, sentence.text) if probe else sentence.text,
        off_type=sentence.off_type,
        predicted_shift=probe.predicted_shift if probe else None,
    )


def count_prompts(plan: Plan) -> int:
    """How many prompts the plan has, clean ones included."""
    if plan.only is not None:
        return len(plan.only)
    total = 0
    for name in plan.concepts:
        concept = plan.pack.concept(name)
        n_sentences = len(sentences_of(plan, concept))
        total += n_sentences
        for arm in plan.arms:
            if plan.eval.spec.fresh is not None:
                per_sentence = plan.sizes.injections if (name, arm) in plan.pack.pools else 0
            elif plan.eval.spec.design == "paired":
                per_sentence = min(1, len(plan.pack.probes.get((name, arm), ())))
            else:
                per_sentence = min(plan.sizes.injections, len(plan.pack.probes.get((name, arm), ())))
            total += n_sentences * per_sentence
    return total


def batches(prompts: Iterable[Prompt], size: int) -> Iterator[list[Prompt]]:
    """Consecutive prompts, at most `size` each; a group is split only if it is larger than `size` itself."""
    batch: list[Prompt] = []
    for _, members in groupby(prompts, key=lambda prompt: prompt.group):
        group = list(members)
        if batch and len(batch) + len(group) > size:
            yield batch
            batch = []
        batch += group
        while len(batch) > size:
            yield batch[:size]
            batch = batch[size:]
    if batch:
        yield batch
