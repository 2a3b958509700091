"""Which prompts are asked: spread evenly, the same for the same seed, near ties by the reference's own lists."""

from __future__ import annotations

from collections import Counter

import numpy as np

from harness.compare.sentinels import choose, near_ties, tie_candidates
from harness.packs.concepts import concept_names, find_concept
from harness.records import Observation


def test_prompts_are_spread_over_the_concepts_and_one_in_six_is_long() -> None:
    chosen = choose(144, seed=0)
    long = [one for one in chosen if one.kind == "long"]
    assert (len(chosen), len(long)) == (144, 24)
    assert min(len(one.text) for one in long) > 5 * max(len(one.text) for one in chosen if one.kind == "plain")
    concept_of = {
        s.text: name for name in concept_names() for s in (*find_concept(name).sentences, *find_concept(name).off_type)
    }
    assert set(Counter(concept_of[one.text] for one in chosen if one.kind == "plain").values()) == {5}
    assert len({one.text for one in chosen}) == len({one.prompt_id for one in chosen}) == 144


def test_equal_seeds_choose_equal_prompts_and_others_do_not() -> None:
    assert choose(48, seed=1) == choose(48, seed=1)
    assert choose(48, seed=1) != choose(48, seed=2)
    assert set(choose(12, seed=1)[:10]) <= set(choose(48, seed=1))


def test_candidates_for_near_ties_are_none_of_those_already_chosen() -> None:
    chosen = choose(48, seed=0)
    candidates = tie_candidates(16, 0, chosen)
    assert len(candidates) == 256
    assert not {one.text for one in candidates} & {one.text for one in chosen}


def test_near_ties_have_the_smallest_gap_and_lost_answers_are_none() -> None:
    candidates = tie_candidates(1, 0, [])[:5]
    gaps = (0.5, 0.01, None, 2.0, 0.2)
    answers = [
        Observation(error="lost") if gap is None else Observation(logprobs=np.array([-1, -1 - gap], np.float32)) for gap in gaps
    ]
    assert near_ties(candidates, answers, 2) == (candidates[1], candidates[4])
    assert len(near_ties(candidates, answers, 9)) == 4
