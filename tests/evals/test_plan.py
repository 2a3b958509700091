"""Plans are deterministic, nested, and ordered by shared prefix."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from harness.errors import CapabilityError, UnknownNameError
from harness.evals.plan import (
    Choice,
    Plan,
    batches,
    clean_prompts,
    count_prompts,
    injected_prompts,
    make_plan,
    sentences_of,
)
from harness.evals.spec import find_eval
from harness.packs.pack import Draft, Pack, PoolRow, find_pack, write_pack
from harness.records import Probe, Prompt


@pytest.fixture
def pack(tmp_path: Path) -> Pack:
    probes = [
        Probe(concept=concept, arm=arm, injection_id=f"{arm}-{i}", injection=(f" word{i}", f" {arm}"))
        for concept in ("animal", "food")
        for arm in ("related", "matched")
        for i in range(20)
    ]
    pools = [PoolRow(concept="animal", arm=arm, tokens=tuple(f" t{i}" for i in range(50))) for arm in ("high", "random")]
    draft = Draft(name="p", description="d", claims="none", maker="test", seed=0, probes=probes, pools=pools)
    return write_pack(draft, tmp_path / "pack")


def all_prompts(plan: Plan) -> list[Prompt]:
    prompts: list[Prompt] = []
    for name in plan.concepts:
        concept = plan.pack.concept(name)
        sentences = sentences_of(plan, concept)
        prompts += [*clean_prompts(plan, sentences), *injected_prompts(plan, concept, sentences)]
    return prompts


def as_bytes(plan: Plan) -> bytes:
    return "\n".join(json.dumps(asdict(prompt)) for prompt in all_prompts(plan)).encode()


def test_equal_inputs_give_equal_plans_byte_for_byte(pack: Pack) -> None:
    plans = [make_plan(find_eval("transfer"), pack, Choice(seed=3)) for _ in range(2)]
    assert as_bytes(plans[0]) == as_bytes(plans[1])
    assert as_bytes(make_plan(find_eval("transfer"), pack, Choice(seed=4))) != as_bytes(plans[0])


def test_every_injection_meets_every_sentence_once(pack: Pack) -> None:
    plan = make_plan(find_eval("transfer"), pack, Choice(concepts=("animal",)))
    prompts = all_prompts(plan)
    clean = [p.sentence_id for p in prompts if p.arm == "clean"]
    assert len(set(clean)) == len(clean) == plan.sizes.sentences
    pairs = [(p.arm, p.injection_id, p.sentence_id) for p in prompts if p.arm != "clean"]
    assert len(set(pairs)) == len(pairs) == 2 * plan.sizes.injections * plan.sizes.sentences
    assert len({p.prompt_id for p in prompts}) == len(prompts) == count_prompts(plan)


def test_prompts_of_one_injection_stand_together_and_share_its_text(pack: Pack) -> None:
    prompts = [p for p in all_prompts(make_plan(find_eval("transfer"), pack, Choice())) if p.arm != "clean"]
    starts = [i for i, p in enumerate(prompts) if i == 0 or p.group != prompts[i - 1].group]
    assert len(starts) == len({p.group for p in prompts})
    assert prompts[0].text.startswith("( word")
    assert prompts[0].text.index(")") > 0


def test_an_injection_is_asked_together_with_the_control_that_was_matched_to_it() -> None:
    plan = make_plan(find_eval("transfer"), find_pack("lexical"), Choice(concepts=("animal",), seed=5))
    chosen = {p.injection_id for p in all_prompts(plan)}
    matched_to = {p.injection_id: p.provenance["matched_to"] for p in plan.pack.probes["animal", "matched"]}
    controls = chosen & set(matched_to)
    assert len(controls) == plan.sizes.injections
    assert {matched_to[control] for control in controls} <= chosen


def test_sizes_that_are_named_take_the_place_of_the_evals(pack: Pack) -> None:
    plan = make_plan(find_eval("transfer"), pack, Choice(concepts=("animal",), injections=3, sentences=5))
    prompts = [p for p in all_prompts(plan) if p.arm == plan.arms[0]]
    assert len({p.injection_id for p in prompts}) == 3
    assert len({p.sentence_id for p in prompts}) == 5


def test_a_limit_gives_a_part_of_the_larger_plan(pack: Pack) -> None:
    small = {p.prompt_id for p in all_prompts(make_plan(find_eval("transfer"), pack, Choice(limit=3)))}
    large = {p.prompt_id for p in all_prompts(make_plan(find_eval("transfer"), pack, Choice()))}
    assert small < large


def test_fresh_draws_differ_from_trial_to_trial(pack: Pack) -> None:
    published = find_eval("published")
    spec = published.spec.model_copy(update={"arms": ("high", "random")})
    plan = make_plan(
        type(published)(name="published", spec=spec, digest="", found=published.found),
        pack,
        Choice(concepts=("animal",), limit=5),
    )
    prompts = [p for p in all_prompts(plan) if p.arm == "high"]
    assert len(prompts) == 25
    assert len({p.injection_id for p in prompts}) == len({p.text.split(")")[0] for p in prompts}) == 25
    tokens = prompts[0].text[1:].split(")")[0].split()
    assert len(tokens) == len(set(tokens)) == 30


def test_what_a_pack_lacks_is_refused_before_anything_runs(pack: Pack) -> None:
    with pytest.raises(CapabilityError, match="needs the arm 'self'"):
        make_plan(find_eval("published"), pack, Choice())
    with pytest.raises(UnknownNameError, match="unknown concept in pack 'p': 'anmal'") as caught:
        make_plan(find_eval("transfer"), pack, Choice(concepts=("anmal",)))
    assert caught.value.hint == "did you mean 'animal'?"


def test_the_primary_contrast_is_the_first_that_the_pack_has(pack: Pack) -> None:
    plan = make_plan(find_eval("transfer"), pack, Choice())
    assert plan.primary is not None
    assert (plan.primary.arm, plan.primary.control) == ("related", "matched")
    assert plan.contrasts[0].arm == "related"


def test_batches_keep_groups_whole_where_they_fit() -> None:
    def prompt(group: str, i: int) -> Prompt:
        return Prompt(
            prompt_id=f"{group}{i}",
            concept="c",
            arm="a",
            sentence_id="s",
            injection_id=group,
            template="t",
            group=group,
            text="",
        )

    prompts = [prompt("a", i) for i in range(3)] + [prompt("b", i) for i in range(3)] + [prompt("c", i) for i in range(9)]
    sizes = [[p.group for p in batch] for batch in batches(prompts, 4)]
    assert sizes == [["a"] * 3, ["b"] * 3, ["c"] * 4, ["c"] * 4, ["c"]]
    assert [p for batch in batches(prompts, 4) for p in batch] == prompts


def declared(pack: Pack, arms: tuple[str, ...]) -> dict[str, tuple[str, str]]:
    """The calibration of a plan over `pack` with `arms`, as pairs."""
    plan = replace(make_plan(find_eval("transfer"), pack, Choice()), arms=arms)
    assert set(plan.calibration.values()) <= set(plan.contrasts)
    return {check: (contrast.arm, contrast.control) for check, contrast in plan.calibration.items()}


def test_a_check_takes_the_first_contrast_whose_arms_there_are(pack: Pack) -> None:
    assert declared(pack, ("high", "matched", "random", "shuffled", "related")) == {
        "detected": ("related", "matched"),
        "silent": ("shuffled", "matched"),
    }
    assert declared(pack, ("high", "random", "related")) == {"detected": ("related", "random")}
    assert declared(pack, ("high", "low")) == {}


def test_an_arm_that_a_run_is_about_does_not_vouch_for_it(pack: Pack) -> None:
    assert declared(pack, ("related", "matched")) == {}
    assert declared(pack, ("self", "related", "matched")) == {"detected": ("self", "matched")}


def test_in_a_paired_design_each_sentence_meets_one_injection_of_each_arm(pack: Pack) -> None:
    plan = make_plan(find_eval("regression"), pack, Choice(concepts=("animal",)))
    concept = pack.concept("animal")
    prompts = list(injected_prompts(plan, concept, sentences_of(plan, concept)))
    for arm in plan.arms:
        met = [(p.sentence_id, p.injection_id) for p in prompts if p.arm == arm]
        assert len({sentence for sentence, _ in met}) == len(met) == plan.sizes.sentences
        assert len({injection for _, injection in met}) == min(plan.sizes.injections, len(pack.probes["animal", arm]))
    assert count_prompts(plan) == plan.sizes.sentences + len(prompts)


def test_a_plan_of_only_some_prompts_asks_these_in_their_order(pack: Pack) -> None:
    whole = make_plan(find_eval("regression"), pack, Choice(concepts=("animal",)))
    concept = pack.concept("animal")
    sentences = sentences_of(whole, concept)
    wanted = [p.prompt_id for p in (*clean_prompts(whole, sentences), *injected_prompts(whole, concept, sentences))][1::3]
    part = replace(whole, only=frozenset(wanted))
    asked = [p.prompt_id for p in (*clean_prompts(part, sentences), *injected_prompts(part, concept, sentences))]
    assert asked == wanted
    assert count_prompts(part) == len(wanted)
