"""A gate's page: the decision first, the score against its margin, and hostile text kept as text."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import pytest

from harness.gate.result import Difference, GateResult, Look, Score, Unit
from harness.reports.gate_page import render_gate
from harness.reports.wording import visible

Pages = Callable[..., Any]


def score(value: float | None, half: float | None = 0.02, **more: Any) -> Score:
    low, high = (None, None) if value is None or half is None else (value - half, value + half)
    return Score(estimate=value, ci_low=low, ci_high=high, n_units=36, n_clusters=6, **more)


def result(**replaced: Any) -> GateResult:
    made = GateResult(
        decision="fail",
        exit_code=1,
        reason="the run lost 0.120, more than the 0.05 that is accepted",
        metric="agreement",
        unit="total variation",
        arm=None,
        control=None,
        margin=0.05,
        alpha=0.01,
        method="anytime",
        score=score(-0.12),
        n_cap=40,
        n_planned=240,
        n_failed=3,
        max_failed_share=0.02,
        n_requests=240,
        failures={"timeout": 2, "HTTP 500": 1},
        looks=[Look(n_clusters=n, estimate=-0.1, ci_low=-0.1 - 1 / n, ci_high=-0.1 + 1 / n) for n in range(4, 41)],
        concepts={"color": score(-0.2), "time": score(-0.01), "food": score(-0.05), "plant": score(None, reason="no pair")},
        units=[Unit(concept="color", arm="related", prompt="She painted it", baseline=0.98, run=0.61)],
        differences=[Difference(key="revision", baseline="aaa", run="bbb")],
        baseline={"name": "the-baseline", "target": "smollm2-135m", "revision": "aaa"},
        run={"name": None, "target": "smollm2-135m", "revision": "bbb"},
    )
    return dataclasses.replace(made, **replaced)


@pytest.fixture
def page_of(read_page: Callable[[str], Any]) -> Pages:
    """The page of a gate's result, read."""
    return lambda made: read_page(render_gate(dataclasses.asdict(made)))


def rows_of(figure: Any) -> dict[str, Any]:
    """A forest's rows by the name in their title."""
    groups = [node for node in figure.find("g") if "row" in node.attrs.get("class", "").split()]
    return {node.find("title")[0].text.split(":")[0]: node for node in groups}


@pytest.mark.parametrize(
    ("decision", "stamp"),
    [("pass", "Passed"), ("fail", "Failed"), ("inconclusive", "Inconclusive"), ("incomplete", "Incomplete")],
)
def test_the_decision_and_its_reason_come_first_then_the_figure_then_the_table(
    page_of: Pages, decision: str, stamp: str
) -> None:
    page = page_of(result(decision=decision, reason="what happened, in a sentence"))
    assert page.find("h1")[0].text == f"{stamp} What happened, in a sentence"
    assert [n.tag for n in page.find("body")[0].walk() if n.tag in ("h1", "figure", "table")][:3] == ["h1", "figure", "figure"]
    assert [h.text for h in page.find("h2")][:3] == ["Scores", "Prompts that moved most", "What else is not alike"]


def test_the_looks_are_drawn_against_the_margin(page_of: Pages) -> None:
    figure, _ = page_of(result()).find("svg", role="img")
    box = next(node for node in figure.find("svg") if "viewbox" in node.attrs)
    top, height = float(box.attrs["y"]), float(box.attrs["height"])
    curve = [tuple(map(float, pair.split(","))) for pair in figure.find("polyline")[0].attrs["points"].split()]
    band = figure.find("polygon")[0].attrs["points"].split()
    assert len(curve) == 37
    assert len(band) == 2 * 37
    zero, margin = (float(figure.find("line", class_=name)[0].attrs["y1"]) for name in ("zero", "edge"))
    for _, y in curve:
        assert top + height * y / 100 - zero == pytest.approx(2 * (margin - zero), abs=0.05)  # -0.1 against -0.05
    assert [x for x, _ in curve] == sorted(x for x, _ in curve)
    (zone,) = figure.find("rect", class_="zone beyond")
    assert float(zone.attrs["y"]) == margin
    assert float(zone.attrs["y"]) + float(zone.attrs["height"]) == pytest.approx(top + height)


def test_marks_tell_by_their_shape_on_which_side_of_the_margin_a_concept_lies(page_of: Pages) -> None:
    rows = rows_of(page_of(result()).find("svg", role="img")[1])
    assert list(rows) == ["time", "food", "color", "plant", "all"]  # the largest first, those without an estimate last
    drawn = {name: [n.tag for n in row.walk() if "mark" in n.attrs.get("class", "").split()] for name, row in rows.items()}
    assert drawn == {"time": ["circle"], "food": ["circle"], "color": ["rect"], "plant": [], "all": ["path"]}
    assert not rows["time"].find("circle", class_="mark hollow")
    assert rows["food"].find("circle", class_="mark hollow")
    assert "no pair" in rows["plant"].text


def test_the_table_has_every_concept_and_all_of_them_together(page_of: Pages) -> None:
    table = page_of(result()).section("Scores").find("table")[0]
    rows = {row.find("th")[0].text: [td.text.strip() for td in row.find("td")] for row in table.find("tr")[1:]}
    assert rows["color"] == ["−0.200", "[−0.220, −0.180]", "36", "6"]
    assert rows["plant"] == ["n/a: no pair", "36", "6"]
    assert rows["all"] == ["−0.120", "[−0.140, −0.100]", "36", "6"]


def test_failures_prompts_and_differences_are_told(page_of: Pages) -> None:
    page = page_of(result())
    (note,) = page.find("li", class_="bad")
    assert note.text.strip() == "3 of 240 prompts failed (1.2%; at most 2.0% may): timeout (2); HTTP 500 (1)"
    assert "She painted itcolorrelated0.9800.610−0.370" in page.section("Prompts that moved most").text
    assert "revisionaaabbb" in page.section("What else is not alike").text
    run = {row.find("th")[0].text: row for row in page.section("What was run").find("tr")[1:]}
    assert run["revision"].attrs["class"] == "differs"
    assert "class" not in run["target"].attrs


def test_a_result_with_nothing_in_it_still_has_a_page(page_of: Pages) -> None:
    bare = result(
        decision="incomplete",
        method="two-way",
        score=Score(reason="nothing came back"),
        n_planned=0,
        n_failed=0,
        failures={},
        looks=[],
        concepts={},
        units=[],
        differences=[],
        baseline={},
        run={},
    )
    page = page_of(bare)
    assert not page.find("svg", role="img")
    assert "n/a: nothing came back" in page.section("Scores").text
    assert "No prompt is recorded." in page.section("Prompts that moved most").text


def test_few_looks_are_marked_one_by_one_and_of_many_the_last(page_of: Pages) -> None:
    few, many = (page_of(result(looks=result().looks[:n])).find("svg", role="img")[0] for n in (4, 37))
    assert len(few.find("circle", class_="mark")) == 4
    assert len(many.find("circle", class_="mark")) == 1


def test_one_look_is_no_course_and_many_are_thinned(page_of: Pages) -> None:
    assert len(page_of(result(looks=result().looks[:1])).find("svg", role="img")) == 1
    many = [Look(n_clusters=n, estimate=0.0, ci_low=-1.0, ci_high=1.0) for n in range(1, 5001)]
    points = page_of(result(looks=many)).find("polyline")[0].attrs["points"].split()
    assert len(points) == 400
    assert points[0].startswith("0.02,")
    assert points[-1].startswith("100,")


def test_many_concepts_and_prompts_each_have_their_row(page_of: Pages) -> None:
    concepts = {f"concept {i}": score(0.001 * i) for i in range(200)}
    page = page_of(result(concepts=concepts, units=result().units * 300))
    assert len(rows_of(page.find("svg", role="img")[1])) == 201
    assert len(page.section("Prompts that moved most").find("tr")) == 301


def test_hostile_text_stays_text_wherever_it_stands(page_of: Pages, hostile: str) -> None:
    def filled(text: str) -> Any:
        """The page of a result in which every text is `text`."""
        made = result(
            reason=text,
            metric=text,
            unit=text,
            arm=text,
            control=text,
            failures={text: 3},
            concepts={text: score(None, reason=text), "other": score(0.1)},
            units=[Unit(concept=text, arm=text, prompt=text, baseline=0.1, run=0.2)],
            differences=[Difference(key=text, baseline=text, run=text)],
            baseline={"name": text, text: {text: text}},
            run={"target": text, "created": text},
        )
        return page_of(made)

    page, tame = filled(hostile), filled("tame, but as long as it")
    assert [(node.tag, list(node.attrs)) for node in page.walk()] == [(node.tag, list(node.attrs)) for node in tame.walk()]
    shown = re.sub(r"\s+", " ", visible(hostile))
    assert page.text.count(shown) == tame.text.lower().count("tame, but as long as it") > 20
