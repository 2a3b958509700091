"""A language model that glosses, played by a script: what it is shown, what is kept of what it says, how it is tested."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from harness.providers.scripted import ScriptedProvider
from harness.records import Prompt
from harness.whitebox.features import autointerp
from harness.whitebox.features.autointerp import Case, Context, Interpreter, balanced_accuracy, explaining, read_cases
from harness.whitebox.features.glosses import Gloss
from harness.whitebox.sources.sites import Site
from harness.whitebox.stage import site_folder

from ..tiny_catalogue import SiteData, write_catalogue

SITE = Site(layer=1, submodule="resid_post")


def context(text: str, word: str, document: int = 0) -> Context:
    start = text.index(word)
    return Context(document=document, text=text, start=start, end=start + len(word))


STRONG = tuple(context(f"a strong man {number}", " strong", number) for number in range(4))
BIRDS = tuple(context(f"a bird sings {number}", " bird", 10 + number) for number in range(4))
CASE = Case(feature=7, shown=STRONG[:2], firing=STRONG[2:], others=BIRDS[:2])


def says(line: str) -> dict[str, float]:
    return {line: 0.9, " other": 0.05}


def knowing(prompt: Prompt) -> Mapping[str, float]:
    """Writes `physical strength.` word by word, and says yes where a text speaks of it."""
    text = prompt.text
    if text.endswith("fit the topic?"):
        asked = text.rsplit("Text: ", 1)[1]
        return {" Yes": 0.6, " no": 0.3} if "strong" in asked else {" yes": 0.2, " No": 0.5, "no": 0.1}
    written = text.rsplit(autointerp.COMMON, 1)[1]
    return says({"": " physical", " physical": " strength", " physical strength": "."}.get(written, "\nmore"))


def ask(provider: ScriptedProvider, *cases: Case) -> dict[int, Gloss]:
    return asyncio.run(Interpreter(provider).gloss(cases))


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_a_gloss_is_what_is_written_up_to_the_end_of_the_line_and_is_scored(batch_size: int) -> None:
    birds = Case(feature=3, shown=BIRDS[:2], firing=BIRDS[2:], others=STRONG[:2])
    found = ask(ScriptedProvider(knowing, name="expert", batch_size=batch_size), CASE, birds)
    assert found == {
        7: Gloss(text="physical strength", source="llm:expert", score=1.0),
        3: Gloss(text="physical strength", source="llm:expert", score=0.0),
    }


def test_who_always_says_yes_gets_a_half() -> None:
    def agreeing(prompt: Prompt) -> Mapping[str, float]:
        return {" Yes": 0.9} if prompt.text.endswith("topic?") else knowing(prompt)

    assert ask(ScriptedProvider(agreeing), CASE)[7].score == 0.5


def test_without_an_answer_there_is_no_score_and_without_words_no_gloss() -> None:
    def evasive(prompt: Prompt) -> Mapping[str, float]:
        return {" maybe": 0.9} if prompt.text.endswith("topic?") else knowing(prompt)

    assert ask(ScriptedProvider(evasive), CASE)[7].score is None
    assert ask(ScriptedProvider(lambda _prompt: {"\n": 0.9}), CASE) == {}


def test_a_failed_question_costs_only_its_own_gloss() -> None:
    def failing(prompt: Prompt) -> Mapping[str, float]:
        if "bird" in prompt.text.split("stove")[-1] and autointerp.COMMON in prompt.text:
            raise RuntimeError("no")
        return knowing(prompt)

    birds = Case(feature=3, shown=BIRDS[:2])
    found = ask(ScriptedProvider(failing), birds, CASE)
    assert set(found) == {7}


def test_an_endless_line_is_cut() -> None:
    found = ask(ScriptedProvider(lambda _prompt: {" on": 0.9}), Case(feature=0, shown=STRONG[:1]))
    assert found[0].text.split() == ["on"] * autointerp.MAX_TOKENS
    assert found[0].score is None


def test_the_explainer_sees_the_place_marked_and_only_what_is_shown() -> None:
    prompt = explaining(CASE.shown)
    assert "1. a <<strong>> man 0\n2. a <<strong>> man 1\n" in prompt
    assert "man 2" not in prompt
    assert prompt.endswith(autointerp.COMMON)
    assert Context(document=0, text="one\ntwo\n", start=7, end=8).marked == "one two"


def test_the_balanced_accuracy_weighs_both_kinds_alike() -> None:
    assert balanced_accuracy([True, True, None], [True, False, False, False]) == pytest.approx((1 + 0.75) / 2)
    assert balanced_accuracy([], [False]) is None
    assert balanced_accuracy([True], [None]) is None


def site(folder: Path) -> Path:
    tokens = [[(f"w{feature}x{number}", 9.0 - number) for number in range(6)] for feature in range(8)]
    data = SiteData(W_dec=np.eye(9), tokens=[*tokens, []], density=np.array([*range(8), 99]) / 100)
    write_catalogue(folder, sites={SITE: data})
    return site_folder(folder, SITE)


def test_cases_are_the_most_frequent_features_and_hold_out_every_other_context(tmp_path: Path) -> None:
    folder = site(tmp_path)
    cases = read_cases(folder, 3, seed=0)
    assert [case.feature for case in cases] == [7, 6, 5]  # the ninth never fires
    assert len(read_cases(folder, None, seed=0)) == 8
    for case in cases:
        words = [[c.plain.split()[2] for c in part] for part in (case.shown, case.firing)]
        assert words[0] == [f"w{case.feature}x{number}" for number in (0, 2, 4)]
        assert words[1] == [f"w{case.feature}x{number}" for number in (1, 3, 5)]
        assert len(case.others) == 3
        assert not {c.document for c in case.others} & {c.document for c in (*case.shown, *case.firing)}
    assert read_cases(folder, 3, seed=0) == cases
    assert read_cases(folder, 3, seed=1) != cases


def test_a_site_is_glossed_by_what_its_tables_hold(tmp_path: Path) -> None:
    notes: list[str] = []
    asker = Interpreter(ScriptedProvider(knowing, name="expert"), note=notes.append)
    found = asyncio.run(asker.gloss_site(site(tmp_path), 2))
    assert set(found) == {7, 6}
    assert notes == ["asking expert about 2 features"]
