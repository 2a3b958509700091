"""A comparison's page: alike or not first, the distance among known variants, and hostile text kept as text."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import pytest

from harness.compare.result import Check, CompareResult, Diagnosis, Identity, Noise, PromptDistance, Rung, ScoreDifference
from harness.reports.compare_page import render_compare
from harness.reports.wording import visible

Pages = Callable[..., Any]

RUNGS = [
    Rung(variant="other batch size", model="small", kind="benign", distance=0.01),
    Rung(variant="other batch size", model="large", kind="benign", distance=0.02),
    Rung(variant="int4", model="small", kind="material", distance=1.0),
    Rung(variant="int8", model="small", kind="material", distance=0.1),
]


def score(**replaced: Any) -> ScoreDifference:
    named = {"metric": "delta_log_odds", "arm": "related", "control": "matched", "unit": "nat", "margin": 0.1}
    found = {"decision": "equivalent", "estimate": 0.01, "ci_low": -0.03, "ci_high": 0.05, "n_trials": 96}
    return ScoreDifference(**{**named, **found, **replaced})


def identity(**replaced: Any) -> Identity:
    named = {"statistic": "centred log-probabilities", "unit": "nat", "margin": 0.05, "margin_from": "the ladder"}
    found = {"decision": "different", "estimate": 0.2, "ci_low": 0.15, "ci_high": 0.25, "p": 0.0002}
    shares = {
        "n_prompts": 64,
        "n_near_ties": 16,
        "tv_low": 0.1,
        "tv_high": 0.12,
        "flip_share": 0.25,
        "near_tie_flip_share": 0.5,
    }
    return Identity(**{**named, **found, **shares, **replaced})


def result(**replaced: Any) -> CompareResult:
    made = CompareResult(
        decision="different",
        reason="B lies 0.2 nat away, four times as far as harmless differences reach",
        a={"name": "ours", "model": "m", "mode": "exact"},
        b={"name": "theirs", "model": "m", "mode": "topk", "revision": None},
        checks=[
            Check(name="model", a="m", b="M", agreement="differs", note="names may differ for one model"),
            Check(name="prompt tokens", a="33", b="58", agreement="differs", note="another template", weighs=True),
            Check(name="BOS", a="none", b="none", agreement="same", note="of no interest here"),
            Check(name="list", a="raw", b="not asked", agreement="unknown"),
        ],
        noise_a=Noise(n_prompts=64, n_repeats=3, mean=0.0, highest=0.0, flip_share=0.0),
        noise_b=Noise(reason="could not be repeated"),
        score=score(),
        identity=identity(),
        n_requests=768,
        diagnoses=[
            Diagnosis(cause="another model", evidence="it is as far as one", strength=0.2),
            Diagnosis(cause="a system prompt", evidence="25 tokens more", strength=0.9),
        ],
        prompts=[
            PromptDistance(
                prompt="The capital is", distance=0.4, near_tie=False, top_a=" Paris", top_b=" the", tv_low=0.2, tv_high=0.3
            ),
            PromptDistance(prompt="They went to the", distance=0.1, near_tie=True, top_a=" sea", top_b=" sea"),
        ],
        rungs=RUNGS,
        unseen=["the template: B takes conversations only"],
    )
    return dataclasses.replace(made, **replaced)


@pytest.fixture
def page_of(read_page: Callable[[str], Any]) -> Pages:
    """The page of a comparison's result, read."""
    return lambda made: read_page(render_compare(dataclasses.asdict(made)))


def ladder_of(page: Any) -> Any:
    (figure,) = page.find("svg", class_="plot ladder")
    return figure


@pytest.mark.parametrize(
    ("decision", "stamp"), [("equivalent", "Equivalent"), ("different", "Different"), ("inconclusive", "Inconclusive")]
)
def test_the_decision_and_its_reason_come_first_then_the_figures_then_the_table(
    page_of: Pages, decision: str, stamp: str
) -> None:
    page = page_of(result(decision=decision, reason="what was found, in 1.5 sentences. And then 2.5 more."))
    assert page.find("h1")[0].text == f"{stamp} What was found, in 1.5 sentences"
    assert page.find("p", class_="gloss")[0].text == "And then 2.5 more."
    order = [n.tag for n in page.find("body")[0].walk() if n.tag in ("h1", "figure", "table")]
    assert order[:4] == ["h1", "figure", "figure", "table"]


def test_the_score_stands_first_against_its_equivalence_margin(page_of: Pages) -> None:
    figure = page_of(result()).find("svg", role="img")[0]
    edges = sorted(float(line.attrs["x1"].rstrip("%")) for line in figure.find("line", class_="edge"))
    (span,) = figure.find("line", class_="span")
    low, high = (float(span.attrs[name].rstrip("%")) for name in ("x1", "x2"))
    assert edges[0] < low < high < edges[1]
    assert (high - low) / (edges[1] - edges[0]) == pytest.approx(0.08 / 0.2, abs=0.01)


def test_equal_factors_of_distance_are_equal_steps_of_the_ladder_and_its_margin_lies_among_them(page_of: Pages) -> None:
    figure = ladder_of(page_of(result()))
    steps = {g.find("title")[0].text.split(":")[0]: g for g in figure.find("g") if "step" in g.attrs.get("class", "").split()}
    assert list(steps) == ["other batch size", "int8", "int4"]
    places = {name: [float(n.attrs["x"].rstrip("%")) for n in step.find("svg")] for name, step in steps.items()}
    assert [len(found) for found in places.values()] == [2, 1, 1]
    decade = places["int4"][0] - places["int8"][0]
    assert places["int8"][0] - places["other batch size"][0] == pytest.approx(decade, abs=0.02)  # 0.01, 0.1, 1
    margin = float(figure.find("line", class_="edge")[0].attrs["x1"].rstrip("%"))
    assert places["other batch size"][1] < margin < places["int8"][0]
    (own,) = [g for g in figure.find("g") if "overall" in g.attrs.get("class", "").split()]
    (span,) = own.find("line", class_="span")
    assert margin < float(span.attrs["x1"].rstrip("%")) < float(span.attrs["x2"].rstrip("%")) < places["int4"][0]


def test_harmless_and_harmful_variants_differ_in_shape(page_of: Pages) -> None:
    steps = {g.find("title")[0].text.split(":")[0]: g for g in ladder_of(page_of(result())).find("g", class_="row step open")}
    assert list(steps) == ["other batch size"]
    assert not steps["other batch size"].find("rect")
    assert all(g.find("rect", class_="mark") for g in ladder_of(page_of(result())).find("g", class_="row step bad"))


def test_a_distance_of_nothing_or_below_it_lies_at_the_start_and_is_cut(page_of: Pages) -> None:
    figure = ladder_of(page_of(result(identity=identity(estimate=-0.001, ci_low=-0.01, ci_high=0.02, decision="equivalent"))))
    (own,) = [g for g in figure.find("g") if "overall" in g.attrs.get("class", "").split()]
    assert own.find("path", class_="cut")
    assert float(own.find("line", class_="span")[0].attrs["x1"].rstrip("%")) == pytest.approx(33.0)


def test_a_variant_that_is_the_same_to_the_last_bits_does_not_stretch_the_axis(page_of: Pages) -> None:
    same = Rung(variant="same to the bits", model="small", kind="benign", distance=6e-17)
    figure = ladder_of(page_of(result(rungs=[same, *RUNGS])))
    ticks = [float(text.text) for text in figure.find("g", class_="axis")[0].find("text")[:-1]]
    assert min(ticks) >= 0.0005
    (step,) = [g for g in figure.find("g", class_="row step open") if "bits" in g.find("title")[0].text]
    assert step.find("text", class_="value")[0].text == "<0.001"
    assert step.find("path", class_="cut")
    assert sum(bool(g.find("path", class_="cut")) for g in figure.find("g", class_="row step open")) == 1


def test_without_a_ladder_the_distance_is_drawn_by_itself(page_of: Pages) -> None:
    page = page_of(result(rungs=[]))
    assert not page.find("svg", class_="plot ladder")
    assert len(page.find("svg", role="img")) == 2
    assert "No known variants" in page.find("figcaption")[1].text


def test_the_table_holds_both_measures_with_their_margins(page_of: Pages) -> None:
    section = page_of(result()).section("Measured")
    rows = {
        row.find("th")[0].text: [td.text.strip() for td in row.find("td")] for row in section.find("table")[0].find("tr")[1:]
    }
    assert rows["Score: log-odds, nat"] == ["+0.010", "[−0.030, 0.050]", "±0.100", "–", "96 trials", "equivalent"]
    key = "Identity: centred log-probabilities, nat"
    assert rows[key] == ["0.200", "[0.150, 0.250]", "0.050", "<0.001", "64 prompts", "different"]
    assert "between 0.100 and 0.120" in section.text
    assert "25% of prompts, 50% of near ties" in section.text


def test_the_likeliest_cause_stands_first(page_of: Pages) -> None:
    causes = [one.text.strip() for one in page_of(result()).section("Likely causes").find("li")]
    assert causes == ["a system prompt 25 tokens more", "another model it is as far as one"]
    assert "no cause was looked for" in page_of(result(decision="equivalent", diagnoses=[])).section("Likely causes").text
    assert "No known cause fits" in page_of(result(diagnoses=[])).section("Likely causes").text


def test_a_check_says_what_it_means_where_it_is_not_the_same_and_only_weighty_ones_stand_above(page_of: Pages) -> None:
    page = page_of(result())
    rows = {row.find("th")[0].text: row.text for row in page.section("Checks").find("tr")[1:]}
    assert rows["prompt tokens"].endswith("differs another template")
    assert rows["BOS"].endswith("same")
    assert rows["list"].endswith("unknown")
    (note,) = page.find("li", class_="bad")
    assert note.text == "They do not read or show the same: prompt tokens"


def test_near_ties_and_differing_tokens_are_marked(page_of: Pages) -> None:
    first, second = page_of(result()).section("Prompts").find("tr")[1:]
    assert "near tie" not in first.text
    assert "␣Paris␣the ≠" in first.text
    assert "0.200 to 0.300" in first.text
    assert "near tie" in second.text
    assert "≠" not in second.text
    assert "n/a" in second.text


def test_noise_that_could_not_be_measured_says_why(page_of: Pages) -> None:
    rows = page_of(result()).section("Noise of each side").find("tr")[1:]
    assert [td.text for td in rows[0].find("td")] == ["64", "3", "0.000", "0.000", "0%"]
    assert rows[1].text.strip().endswith("n/a: could not be repeated")


def test_what_could_not_be_seen_is_named(page_of: Pages) -> None:
    assert "The template: B takes conversations only" in page_of(result()).section("What could not be seen").text


def test_a_result_with_nothing_in_it_still_has_a_page(page_of: Pages) -> None:
    empty = Noise(reason="not asked")
    nothing: dict[str, Any] = {key: [] for key in ("checks", "diagnoses", "prompts", "rungs", "unseen")}
    page = page_of(result(a={}, b={}, noise_a=empty, noise_b=empty, score=None, identity=None, n_requests=0, **nothing))
    assert not page.find("svg", role="img")
    assert "Nothing could be measured." in page.text


def test_measures_without_numbers_say_why(page_of: Pages) -> None:
    unknown = dict.fromkeys(("estimate", "ci_low", "ci_high"))
    bare = {"p": None, **dict.fromkeys(("tv_low", "tv_high", "flip_share", "near_tie_flip_share"))}
    made = result(
        score=score(**unknown, reason="draws alone"), identity=identity(**unknown, **bare, reason="no prompt was answered")
    )
    page = page_of(made)
    assert not page.find("svg", role="img")
    assert "n/a: draws alone" in page.section("Measured").text
    assert "n/a: no prompt was answered" in page.section("Measured").text


def test_many_rungs_and_prompts_each_have_their_row(page_of: Pages) -> None:
    rungs = [Rung(variant=f"variant {i}", model="small", kind="benign", distance=0.001 * i) for i in range(60)]
    page = page_of(result(rungs=rungs, prompts=result().prompts * 200))
    assert len(ladder_of(page).find("g", class_="row step open")) == 60
    assert len(page.section("Prompts").find("tr")) == 401


def test_hostile_text_stays_text_wherever_it_stands(page_of: Pages, hostile: str) -> None:
    def filled(text: str) -> Any:
        """The page of a result in which every text is `text`."""
        made = result(
            reason=text,
            a={"name": text, text: {text: text}},
            b={"name": text},
            checks=[Check(name=text, a=text, b=text, agreement="differs", note=text, weighs=True)],
            noise_a=Noise(reason=text),
            score=score(metric=text, arm=text, control=text, unit=text),
            identity=identity(statistic=text, unit=text, margin_from=text, p=None, reason=text),
            diagnoses=[Diagnosis(cause=text, evidence=text, strength=1.0)],
            prompts=[PromptDistance(prompt=text, distance=0.1, near_tie=True, top_a=text, top_b="b")],
            rungs=[Rung(variant=text, model=text, kind="material", distance=0.3)],
            unseen=[text],
        )
        return page_of(made)

    page, tame = filled(hostile), filled("tame, but as long as it, with more of it than a label has room for")
    assert [(node.tag, list(node.attrs)) for node in page.walk()] == [(node.tag, list(node.attrs)) for node in tame.walk()]
    shown = re.sub(r"\s+", " ", visible(hostile))
    assert page.text.count(shown) == tame.text.lower().count("tame, but as long as it, with more of it than a label") > 25
