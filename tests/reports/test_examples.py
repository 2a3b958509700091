"""Which trials are shown, and what is shown of them, against a recount by hand."""

from __future__ import annotations

import gc
import math
import weakref
from dataclasses import dataclass, replace

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from harness.evals.score import Scorer
from harness.evals.trials import ScoredBatch
from harness.providers.vocabulary import Vocabulary
from harness.records import CLEAN, Lexicon, Mode, Observation, Prompt
from harness.reports.examples import Example, ExamplePicker

WORDS = [f"w{i:02d}" for i in range(40)]
MEMBERS = frozenset(WORDS[:6])
N_LISTED = 20


@dataclass(frozen=True, kw_only=True)
class Case:
    """One prompt and the whole distribution that answered it."""

    prompt: Prompt
    observation: Observation
    full: dict[str, float]

    @property
    def mass(self) -> float:
        return sum(p for word, p in self.full.items() if word in MEMBERS)


def lexicon(*, ids: bool) -> Lexicon:
    token_ids = np.arange(6, dtype=np.int32) if ids else None
    return Lexicon(concept="c", words=MEMBERS, token_ids=token_ids, resolved_share=1.0, digest="")


def case(rng: np.random.Generator, concept: str, arm: str, injection: str, sentence: str, *, ids: bool = True) -> Case:
    probabilities = rng.dirichlet(np.full(len(WORDS), 0.4))
    full = {word: float(p) for word, p in zip(WORDS, probabilities, strict=True)}
    order = np.argsort(-probabilities)[:N_LISTED]
    mass = sum(full[word] for word in MEMBERS)
    observation = Observation(
        token_ids=order.astype(np.int32) if ids else None,
        tokens=() if ids else tuple(WORDS[i] for i in order),
        logprobs=np.log(probabilities[order]).astype(np.float32),
        covered_mass=float(probabilities[order].sum()),
        mode=Mode.EXACT,
        mass_low=mass,
        mass_high=mass,
    )
    text = f"{sentence} goes to the"
    prompt = Prompt(
        prompt_id=f"{concept}/{arm}/{injection}/{sentence}",
        concept=concept,
        arm=arm,
        sentence_id=sentence,
        injection_id=injection,
        template="paren",
        group=f"{concept}/{arm}/{injection}",
        text=text if arm == CLEAN else f"({injection} words){text}",
    )
    return Case(prompt=prompt, observation=observation, full=full)


def world(seed: int, *, concept: str = "c", ids: bool = True) -> tuple[list[Case], list[Case]]:
    """The clean and the injected cases of one concept: 2 arms x 4 injections x 5 sentences."""
    rng = np.random.default_rng(seed)
    sentences = [f"s{i}" if concept == "c" else f"{concept}-s{i}" for i in range(5)]
    clean = [case(rng, concept, CLEAN, "", sentence, ids=ids) for sentence in sentences]
    injected = [
        case(rng, concept, arm, f"{arm}{i}", sentence, ids=ids)
        for arm in ("high", "low")
        for i in range(4)
        for sentence in sentences
    ]
    return clean, injected


def feed(picker: ExamplePicker, clean: list[Case], injected: list[Case], *, size: int = 7, ids: bool = True) -> None:
    """Score the cases in batches of `size` and hand them over, the clean ones first."""
    scorer = Scorer(lexicon(ids=ids), k=10, n_vocab=len(WORDS), similarity=None)
    whole = scorer.view([c.observation for c in clean])
    row_of = {c.prompt.sentence_id: row for row, c in enumerate(clean)}
    for cases in (clean, injected):
        for start in range(0, len(cases), size):
            part = cases[start : start + size]
            prompts, observations = [c.prompt for c in part], [c.observation for c in part]
            view = scorer.view(observations)
            trials = None
            if cases is injected:
                trials = scorer.trials(prompts, whole.take([row_of[p.sentence_id] for p in prompts]), view)
            picker.add(ScoredBatch(prompts=prompts, observations=observations, view=view, trials=trials))


def picker(seed: int = 0, *, ids: bool = True) -> ExamplePicker:
    vocabulary = Vocabulary(Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token=WORDS[0])))
    return ExamplePicker(seed=seed, vocabulary=vocabulary if ids else None, lexicons={"c": lexicon(ids=ids)})


def picked(clean: list[Case], injected: list[Case], seed: int = 0, **options: int) -> tuple[Example, ...]:
    chosen = picker(seed)
    feed(chosen, clean, injected, **options)
    return chosen.examples()


def shift(clean: Case, injected: Case) -> float:
    def log_odds(p: float) -> float:
        return math.log(p) - math.log(1 - p)

    return log_odds(injected.mass) - log_odds(clean.mass)


@pytest.mark.parametrize("seed", range(8))
def test_the_largest_positive_shift_of_each_arm_is_kept(seed: int) -> None:
    clean, injected = world(seed)
    of_sentence = {c.prompt.sentence_id: c for c in clean}
    examples = picked(clean, injected, seed)
    for arm in ("high", "low"):
        cases = [c for c in injected if c.prompt.arm == arm]
        best = max(cases, key=lambda c: shift(of_sentence[c.prompt.sentence_id], c))
        before = of_sentence[best.prompt.sentence_id]
        found = next(e for e in examples if e.arm == arm and e.picked == "largest")
        assert found.injection + found.sentence == best.prompt.text
        assert found.sentence == before.prompt.text
        assert found.delta_log_odds == pytest.approx(shift(before, best))
        assert found.mass_clean == pytest.approx((before.mass, before.mass))
        assert found.mass_injected == pytest.approx((best.mass, best.mass))


def test_no_shift_upwards_leaves_only_the_random_example() -> None:
    clean, injected = world(1)
    of_sentence = {c.prompt.sentence_id: c for c in clean}
    fallen = [c for c in injected if shift(of_sentence[c.prompt.sentence_id], c) < 0]
    assert {e.picked for e in picked(clean, fallen)} == {"random"}


@pytest.mark.parametrize("ids", [True, False])
def test_what_rose_and_fell_is_what_a_recount_of_the_lists_says(ids: bool) -> None:
    clean, injected = world(3, ids=ids)
    chosen = picker(ids=ids)
    feed(chosen, clean, injected, ids=ids)
    by_text = {c.prompt.text: c for c in (*clean, *injected)}
    for example in chosen.examples():
        listed = []
        for text in (example.sentence, example.injection + example.sentence):
            full = by_text[text].full
            listed.append(dict(sorted(full.items(), key=lambda item: -item[1])[:N_LISTED]))
        before, after = listed
        assert (example.smallest_clean, example.smallest_injected) == pytest.approx((min(before.values()), min(after.values())))
        rises = {w: after.get(w, 0) - before.get(w, min(before.values())) for w in {**before, **after}}
        falls = {w: before.get(w, 0) - after.get(w, min(after.values())) for w in {**before, **after}}
        for changes, sizes in ((example.risen, rises), (example.fallen, falls)):
            expected = sorted((w for w in sizes if sizes[w] > 0), key=lambda w: -sizes[w])[:6]
            assert [change.text for change in changes] == expected
            for change in changes:
                assert change.clean == (pytest.approx(before[change.text]) if change.text in before else None)
                assert change.injected == (pytest.approx(after[change.text]) if change.text in after else None)
                assert change.member == (change.text in MEMBERS)
        for top, side in ((example.clean_top, before), (example.injected_top, after)):
            assert [t.text for t in top] == list(side)[:8]
            assert [t.probability for t in top] == pytest.approx(list(side.values())[:8])
            assert [t.member for t in top] == [t.text in MEMBERS for t in top]


def test_a_token_that_may_not_have_changed_is_neither_risen_nor_fallen() -> None:
    clean, injected = world(5)

    def listing(**probabilities: float) -> Observation:
        logprobs = np.log(np.array([*probabilities.values()])).astype(np.float32)
        ids = np.array([WORDS.index(word) for word in probabilities], np.int32)
        return Observation(token_ids=ids, logprobs=logprobs, covered_mass=sum(probabilities.values()), mode=Mode.TOPK)

    before = replace(clean[0], observation=listing(w10=0.5, w11=0.25, w12=0.125))
    after = replace(injected[0], observation=listing(w10=0.5, w13=0.25, w14=0.0625))
    (example,) = picked([before], [after])
    # w12 was 0.125 and is at most 0.0625; w14 is 0.0625 and may have been 0.125 before; w10 has not moved.
    assert [(c.text, c.clean is None, c.injected is None) for c in example.risen] == [("w13", True, False)]
    assert [(c.text, c.clean is None, c.injected is None) for c in example.fallen] == [
        ("w11", False, True),
        ("w12", False, True),
    ]


def test_the_cut_into_batches_changes_nothing() -> None:
    clean, injected = world(7)
    assert picked(clean, injected, size=1) == picked(clean, injected, size=7) == picked(clean, injected, size=1000)


def test_equal_seeds_pick_equal_trials_and_other_seeds_others() -> None:
    clean, injected = world(9)
    assert picked(clean, injected, 4) == picked(clean, injected, 4)
    assert len({picked(clean, injected, seed) for seed in range(20)}) > 5


def test_the_random_example_is_any_trial_with_equal_probability() -> None:
    clean, injected = world(11)
    of_sentence = {c.prompt.sentence_id: c for c in clean}
    high = [c for c in injected if c.prompt.arm == "high" and shift(of_sentence[c.prompt.sentence_id], c) < 0]
    counts = dict.fromkeys((c.prompt.text for c in high), 0)
    n_seeds = 60 * len(high)
    scored = _scored(clean, high)
    for seed in range(n_seeds):
        chosen = picker(seed)
        for batch in scored:
            chosen.add(batch)
        (example,) = chosen.examples()
        counts[example.injection + example.sentence] += 1
    spread = (60 * (1 - 1 / len(high))) ** 0.5
    assert all(abs(count - 60) < 5 * spread for count in counts.values())


def _scored(clean: list[Case], injected: list[Case]) -> list[ScoredBatch]:
    """The batches themselves, so that many pickers can be shown the same ones."""

    class Recorder(ExamplePicker):
        def add(self, batch: ScoredBatch) -> None:
            batches.append(batch)

    batches: list[ScoredBatch] = []
    feed(Recorder(seed=0, vocabulary=None), clean, injected)
    return batches


def test_failed_trials_and_off_type_sentences_are_never_shown() -> None:
    clean, injected = world(13)
    broken = Observation(error="HTTP 500")
    clean[0] = replace(clean[0], observation=broken)
    clean[1] = replace(clean[1], prompt=replace(clean[1].prompt, off_type=True))
    injected = [
        replace(c, prompt=replace(c.prompt, off_type=c.prompt.sentence_id == "s1"))
        if c.prompt.sentence_id != "s2"
        else replace(c, observation=broken)
        for c in injected
    ]
    seen = {example.sentence for seed in range(60) for example in picked(clean, injected, seed)}
    assert seen == {"s3 goes to the", "s4 goes to the"}


def test_a_shift_without_finite_bounds_is_shown_as_none() -> None:
    clean, injected = world(15)
    open_ended = [replace(c, observation=replace(c.observation, mass_low=0.0, mass_high=0.5)) for c in injected]
    examples = picked(clean, open_ended)
    assert {e.delta_log_odds for e in examples} == {None}
    assert {e.mass_injected for e in examples} == {(0.0, 0.5)}


def test_without_lexicons_no_token_is_marked() -> None:
    chosen = ExamplePicker(seed=0, vocabulary=None)
    feed(chosen, *world(3, ids=False), ids=False)
    for example in chosen.examples():
        assert not any(token.member for token in (*example.clean_top, *example.injected_top, *example.risen, *example.fallen))


def test_memory_holds_one_concept_of_clean_answers_and_two_trials_an_arm() -> None:
    chosen = picker()
    clean, injected = world(17)
    feed(chosen, clean, injected)
    held = [weakref.ref(c.observation.logprobs) for c in (*clean, *injected)]
    del clean, injected
    feed(chosen, *world(18, concept="d"))
    gc.collect()
    assert not any(reference() is not None for reference in held)
    keys = [(e.concept, e.arm) for e in chosen.examples()]
    assert set(keys) == {(concept, arm) for concept in "cd" for arm in ("high", "low")}
    assert all(keys.count(key) <= 2 for key in keys)
