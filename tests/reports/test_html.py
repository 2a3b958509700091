"""The page: what it says, that it loads nothing, and that no text of a model or a pack becomes markup."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from jinja2 import UndefinedError

from harness.reports.examples import Change, Example, Likely
from harness.reports.html import render
from harness.reports.wording import visible

Builder = Callable[..., dict[str, Any]]
Pages = Callable[..., Any]


def example(**replaced: Any) -> Example:
    made = Example(
        concept="color",
        arm="related",
        picked="largest",
        injection="(brush canvas)",
        sentence="She painted the door",
        mass_clean=(0.02, 0.02),
        mass_injected=(0.05, 0.06),
        delta_log_odds=0.98,
        clean_top=(Likely(" to", 0.4, False), Likely(" red", 0.011, True)),
        injected_top=(Likely(" red", 0.3, True), Likely("\n", 0.1, False)),
        risen=(Change(" red", 0.011, 0.3, True), Change("blue", None, 0.02, True)),
        fallen=(Change(" to", 0.4, None, False),),
        smallest_clean=0.0031,
        smallest_injected=0.0042,
    )
    return replace(made, **replaced)


@pytest.fixture
def page_of(read_page: Callable[[str], Any]) -> Pages:
    """The page of a manifest, a summary and examples, read."""
    return lambda manifest, summary, *examples: read_page(render(manifest, summary, examples))


def says(value: float | None, low: float | None, high: float | None, reason: str | None = None) -> dict[str, Any]:
    return {"estimate": value, "estimate_low": value, "estimate_high": value, "ci_low": low, "ci_high": high, "reason": reason}


def claim(summary: dict[str, Any]) -> dict[str, Any]:
    """The primary contrast's row over all concepts."""
    rows = [row for row in summary["contrasts"] if row["metric"] == "delta_log_odds" and row["concept"] == "all"]
    return rows[0]


def withheld(summary: dict[str, Any]) -> dict[str, Any]:
    """The summary as it is where the silent check failed."""
    verdict = summary["verdict"]
    verdict |= {"verdict": "undetermined", "withheld": "transfers", "reason": "shuffled words move it as well, by +0.31 nat"}
    verdict["calibration"][1] |= {"status": "failed", "reason": "found"}
    for row in summary["contrasts"]:
        row |= {"verdict": "undetermined", "verdict_reason": verdict["reason"]}
    return summary


def test_the_answer_comes_first_then_the_figure_then_the_table(
    page_of: Pages, make_manifest: Builder, make_summary: Builder
) -> None:
    page = page_of(make_manifest(), make_summary(), example())
    assert page.find("h1")[0].text == "Transfers: words near the concept move the next word towards it"
    order = [n.tag for n in page.find("body")[0].walk() if n.tag in ("h1", "figure", "table")]
    assert order[:3] == ["h1", "figure", "table"]


def test_the_odds_are_the_exponential_of_the_shift(page_of: Pages, make_manifest: Builder, make_summary: Builder) -> None:
    page = page_of(make_manifest(), make_summary(says(0.6931472, 0.0, 1.0986123)))
    assert "2.00 times [1.00, 3.00]" in page.find("p", class_="gloss")[0].text


def test_the_parts_come_in_the_order_of_a_reader(page_of: Pages, make_manifest: Builder, make_summary: Builder) -> None:
    page = page_of(make_manifest(), make_summary(), example())
    marks = [n.text if n.tag == "h2" else n.tag for n in page.find("body")[0].walk() if n.tag in ("h1", "h2", "figure")]
    details = ["Arms", "Concepts", "Contrasts", "Examples", "How to read this", "What was run"]
    assert marks == ["h1", "figure", "Verdict by concept", "Can this run be believed?", "Prediction", *details]


def test_hostile_text_stays_text_wherever_it_stands(
    page_of: Pages, make_manifest: Builder, make_summary: Builder, hostile: str
) -> None:
    def filled(text: str) -> Any:
        """The page of a run in which every text is `text`."""
        summary = withheld(predicted(make_summary()))
        for entry in (*summary["cells"], *summary["contrasts"]):
            entry["concept"] = text if entry["concept"] == "color" else entry["concept"]
            entry["reason"] = entry["verdict_reason"] = text
        summary["verdict"] |= dict.fromkeys(("sentence", "reason"), text)
        summary["verdict"]["calibration"][0] |= dict.fromkeys(("arm", "control", "reason"), text)
        summary["prediction"] |= {"reason": text, "within": {text: summary["prediction"] | {"spearman": None, "reason": text}}}
        manifest = make_manifest(
            pack=dict.fromkeys(("name", "digest", "description", "claims"), text),
            settings={text: {text: text}},
            capabilities={text: text},
            versions={text: text},
            lexicons={text: {"words": 1, "ids": None, "resolved_share": None}},
            failures={text: 1},
            counts={"planned": 9, "done": 8, "failed": 1, "from_cache": 0},
            **dict.fromkeys(("target", "model", "endpoint", "revision", "command", "run_id", "started", "finished"), text),
        )
        manifest["eval"] |= dict.fromkeys(("name", "description", "design", "template"), text)
        token, change = Likely(text, 0.2, True), Change(text, None, 0.2, False)
        tokens = {"clean_top": (token,), "injected_top": (token,), "risen": (change,), "fallen": ()}
        return page_of(manifest, summary, example(concept=text, injection=text, sentence=text, **tokens))

    page, tame = filled(hostile), filled("tame, but as long as it")
    assert [(node.tag, list(node.attrs)) for node in page.walk()] == [(node.tag, list(node.attrs)) for node in tame.walk()]
    shown = re.sub(r"\s+", " ", visible(hostile))
    assert page.find("p", class_="prompt")[0].text == shown * 2
    assert page.find("tr", data_contrast=f"related/matched/delta_log_odds/{visible(hostile)}")
    assert page.text.count(shown) == tame.text.lower().count("tame, but as long as it") > 40


def test_every_contrast_has_its_row_with_its_numbers(page_of: Pages, make_manifest: Builder, make_summary: Builder) -> None:
    summary = make_summary()
    page = page_of(make_manifest(), summary)
    rows = {node.attrs["data-contrast"]: node for node in page.find("tr") if "data-contrast" in node.attrs}
    assert set(rows) == {"/".join(c[k] for k in ("arm", "control", "metric", "concept")) for c in summary["contrasts"]}
    for place, concept in enumerate(("animal", "color", "location", "all")):
        value = 0.1 + 0.2 * place
        cells = [cell.text.strip().replace("−", "-") for cell in rows[f"related/matched/delta_log_odds/{concept}"].find("td")]
        assert cells == [f"+{value:.2f}", f"[{value - 0.25:.2f}, {value + 0.25:.2f}]", "0.010", "0.040", "0.030"]
        points = rows[f"related/matched/count_success/{concept}"].find("td")[0].text
        assert points == f"+{100 * value:.1f}"


def test_every_cell_has_its_row(page_of: Pages, make_manifest: Builder, make_summary: Builder) -> None:
    page = page_of(make_manifest(), make_summary())
    arms, concepts = page.section("Arms"), page.section("Concepts")
    assert [row.find("th")[0].text for row in arms.find("tr")[1:]] == ["self", "related", "matched"]
    assert [th.text for th in concepts.find("th", scope="rowgroup")] == ["animal", "color", "location"]
    first = [td.text.strip() for td in arms.find("tr")[1].find("td")]
    assert first[:2] == ["+0.44 [0.37, 0.51]", "41.2 [38.0, 44.4]"]
    assert first[4:] == ["62%", "96", "0", "12", "8"]


def test_the_figure_has_a_mark_a_label_and_an_interval_for_each_concept(
    page_of: Pages, make_manifest: Builder, make_summary: Builder
) -> None:
    page = page_of(make_manifest(), make_summary())
    (figure,) = page.find("svg", role="img")
    ids = figure.attrs["aria-labelledby"].split()
    assert [next(n.tag for n in figure.walk() if n.attrs.get("id") == i) for i in ids] == ["title", "desc"]
    rows = [n for n in figure.find("g") if "row" in n.attrs.get("class", "").split()]
    assert [row.find("text", class_="label")[0].text for row in rows] == ["location", "color", "animal", "all concepts"]
    assert all(len(row.find("line")) == 1 for row in rows)
    assert all(row.find("text", class_="word")[0].text == "transfers" for row in rows)
    centres = [float(row.find("svg")[0].attrs["x"].rstrip("%")) for row in rows[:-1]]
    assert centres[0] - centres[1] == pytest.approx(centres[1] - centres[2], abs=0.01)  # 0.5, 0.3, 0.1
    assert "nats of log-odds" in figure.text
    assert figure.find("line", class_="zero")
    (zone,) = figure.find("rect", class_="zone within")
    edges = [float(line.attrs["x1"].rstrip("%")) for line in figure.find("line", class_="edge")]
    assert edges[1] - edges[0] == pytest.approx(float(zone.attrs["width"].rstrip("%")), abs=0.01)  # -0.1 to 0.1
    assert (centres[0] - centres[1]) == pytest.approx(edges[1] - edges[0], abs=0.01)


def test_a_prompt_shows_where_the_injection_ends(page_of: Pages, make_manifest: Builder, make_summary: Builder) -> None:
    prompt = page_of(make_manifest(), make_summary(), example()).find("p", class_="prompt")[0]
    assert [mark.text for mark in prompt.find("mark")] == ["(brush canvas)"]
    assert prompt.text == "(brush canvas)She painted the door"


def test_an_unlisted_token_is_below_the_smallest_listed_and_never_nothing(
    page_of: Pages, make_manifest: Builder, make_summary: Builder
) -> None:
    page = page_of(make_manifest(), make_summary(), example())
    rose, fell = (page.find("div", class_=kind)[0].find("tbody")[0].find("tr") for kind in ("risen", "fallen"))
    numbers = [[td.text.replace("\u202f", "").replace(" ", "") for td in row.find("td")[:2]] for row in (*rose, *fell)]
    assert numbers == [["1.1%", "30%"], ["<0.31%", "2.0%"], ["40%", "<0.42%"]]


def test_spaces_and_newlines_of_tokens_are_seen(page_of: Pages, make_manifest: Builder, make_summary: Builder) -> None:
    page = page_of(make_manifest(), make_summary(), example(risen=(Change("", None, 0.2, False),)))
    tokens = {span.text for span in page.find("span", class_="tok")}
    assert {"␣to", "↵", "empty"} <= tokens
    assert "␣red" in {span.text for span in page.find("span", class_="tok member")}


def test_an_unknown_shift_and_mass_are_not_available(page_of: Pages, make_manifest: Builder, make_summary: Builder) -> None:
    shown = example(delta_log_odds=None, mass_clean=(float("nan"), float("nan")))
    header = page_of(make_manifest(), make_summary(), shown).find("article")[0].find("header")[0]
    assert "words of the concept n/a → 5.0% to 6.0%, log-odds n/a" in header.text


def test_what_is_none_reads_as_not_available_with_its_reason(
    page_of: Pages, make_manifest: Builder, make_summary: Builder
) -> None:
    summary = make_summary()
    for cell in summary["cells"]:
        for metric in ("count_success", "mass_success", "delta_mass", "delta_log_odds"):
            cell[metric] = says(None, None, None, "no trials at all")
    for row in summary["contrasts"]:
        row.update(says(None, None, None, "no sentence in common"), p=None, p_holm=None)
    summary["prediction"] |= {"n": 3}
    summary["cost"]["usd"] = summary["timing"]["prompts_per_s"] = None
    manifest = make_manifest(git_revision=None, revision=None, tokenizer_digest=None)
    manifest["lexicons"]["color"] = {"words": 3, "ids": None, "resolved_share": None}
    page = page_of(manifest, summary)
    assert not page.find("svg")
    assert {abbr.text for abbr in page.find("abbr")} == {"n/a"}
    assert {"no trials at all", "no sentence in common", "fewer than 5 points"} <= {a.attrs["title"] for a in page.find("abbr")}
    assert "None" not in page.text
    assert "nan" not in page.text.lower().split()


def predicted(summary: dict[str, Any], **found: Any) -> dict[str, Any]:
    """The summary with a prediction that was compared with what was observed."""
    numbers = {"n": 40, "spearman": 0.31, "ci_low": -0.02, "ci_high": 0.6, "p": 0.01, "partial": 0.1, "partial_p": 0.4}
    line = {"slope": 0.5, "intercept": 0.1, "partial_ci_low": -0.2, "partial_ci_high": 0.3, "reason": None}
    bins = [{"n": 8, "predicted": 0.1 * i, "observed": 0.1 + 0.05 * i} for i in range(5)]
    summary["prediction"] |= numbers | line | {"calibration": bins} | found
    summary["prediction"]["pairs"] = {"arm": "high", "control": "matched", **numbers, "reason": None}
    del summary["prediction"]["pairs"]["ci_low"], summary["prediction"]["pairs"]["ci_high"]
    return summary


def test_a_prediction_is_told_with_its_interval_and_what_it_adds(
    page_of: Pages, make_manifest: Builder, make_summary: Builder
) -> None:
    section = page_of(make_manifest(), predicted(make_summary())).section("Prediction")
    rows = {row.attrs["data-prediction"]: row.text for row in section.find("tr") if "data-prediction" in row.attrs}
    assert list(rows) == ["all arms", "high - matched, pair by pair"]
    assert "40 0.31 [−0.02, 0.60]0.010" in rows["all arms"].replace("\n", "")
    assert "but not seen to do so beyond" in section.find("p", class_="lead")[0].text


@pytest.mark.parametrize(
    ("found", "meaning"),
    [
        ({"partial_p": 0.01}, "also beyond"),
        ({"partial_p": 0.01, "partial": -0.1}, "but not seen to do so beyond"),
        ({"p": 0.3}, "are not seen to rank"),
        ({"spearman": -0.4}, "are not seen to rank"),
        ({"n": 0}, "predicts no shift"),
    ],
)
def test_what_a_prediction_comes_to_is_said_in_a_sentence(
    page_of: Pages, make_manifest: Builder, make_summary: Builder, found: dict[str, Any], meaning: str
) -> None:
    section = page_of(make_manifest(), predicted(make_summary(), **found)).section("Prediction")
    assert meaning in section.find("p", class_="lead")[0].text


def test_groups_of_injections_lie_on_the_line_that_they_were_made_from(
    page_of: Pages, make_manifest: Builder, make_summary: Builder
) -> None:
    (figure,) = page_of(make_manifest(), predicted(make_summary())).section("Prediction").find("svg", role="img")
    (line,) = figure.find("line", class_="fit")
    (box,) = [node for node in figure.find("svg") if "viewbox" in node.attrs]
    left, top, width, height = (float(box.attrs[name].rstrip("%")) for name in ("x", "y", "width", "height"))
    start, end = (top + height * float(line.attrs[name]) / 100 for name in ("y1", "y2"))
    dots = [(float(n.attrs["x"].rstrip("%")), float(n.attrs["y"])) for n in figure.find("svg", class_="good")]
    assert len(dots) == 5
    for x, y in dots:
        assert y == pytest.approx(start + (end - start) * (x - left) / width, abs=0.1)


def test_a_withheld_verdict_says_what_was_seen_and_why_it_does_not_count(
    page_of: Pages, make_manifest: Builder, make_summary: Builder
) -> None:
    page = page_of(make_manifest(), withheld(make_summary()))
    seen, why = page.find("dl", class_="withheld")[0].find("dd")
    assert "related − matched, log-odds +0.70 [0.45, 0.95] nat, p 0.010" in seen.text
    assert why.text == "Shuffled words move it as well, by +0.31 nat"
    assert {row.find("td")[-1].text.strip() for row in page.find("tr") if "data-verdict" in row.attrs} == {"withheld"}
    assert {text.text for text in page.find("text", class_="word")} == {"withheld"}
    assert not page.find("p", class_="gloss")
    assert not page_of(make_manifest(), make_summary()).find("dl", class_="withheld")


@pytest.mark.parametrize(
    ("states", "meaning"),
    [
        (("passed", "passed"), "The instrument works"),
        (("failed", "passed"), "this run did not find it"),
        (("passed", "failed"), "something else than what the arm stands for"),
        (("passed", "not possible"), "whether it stays silent where there is none was not checked"),
        (("not possible", "passed"), "whether it finds one that is known to be there was not checked"),
        (("not possible", "not possible"), "no arms to check it with"),
    ],
)
def test_the_calibration_has_a_meaning(
    page_of: Pages, make_manifest: Builder, make_summary: Builder, states: tuple[str, str], meaning: str
) -> None:
    summary = make_summary()
    for check, state in zip(summary["verdict"]["calibration"], states, strict=True):
        check["status"] = state
        if state == "not possible":
            unknown = dict.fromkeys(("arm", "control", "estimate", "ci_low", "ci_high", "p", "share", "n_found", "n_concepts"))
            check |= unknown | {"reason": "the eval declares none"}
    section = page_of(make_manifest(), summary).section("Can this run be believed?")
    assert meaning in section.find("p", class_="lead")[0].text
    assert [row.find("b")[-1].text for row in section.find("tbody")[0].find("tr")] == list(states)


def test_each_concept_has_its_verdict_with_the_p_that_it_was_given_by(
    page_of: Pages, make_manifest: Builder, make_summary: Builder
) -> None:
    summary = make_summary()
    color = next(r for r in summary["contrasts"] if r["concept"] == "color" and r["metric"] == "delta_log_odds")
    color |= {"verdict": "no evidence", "within_margin": True}
    page = page_of(make_manifest(), summary)
    rows = {
        n.attrs["data-verdict"]: [td.text.strip() for td in n.find("td")] for n in page.find("tr") if "data-verdict" in n.attrs
    }
    assert rows["animal"] == ["+0.10", "[−0.15, 0.35]", "0.040", "0.36", "transfers"]
    assert rows["all"][2:] == ["0.030", "0.36", "transfers"]
    assert rows["color"][-1] == "no evidence, no shift as large as 0.10 nat"


def test_failures_stand_beside_the_answer_with_their_reasons(
    page_of: Pages, make_manifest: Builder, make_summary: Builder
) -> None:
    manifest = make_manifest(
        counts={"planned": 1000, "done": 988, "failed": 12, "from_cache": 0}, failures={"timeout": 9, "HTTP 500": 3}
    )
    page = page_of(manifest, make_summary())
    (note,) = page.find("li", class_="bad")
    assert note.text.strip() == "12 of 1,000 prompts failed (1.2%) and are left out: timeout (9); HTTP 500 (3)"
    assert not page_of(make_manifest(), make_summary()).find("li", class_="bad")


def test_the_manifest_is_told(page_of: Pages, make_manifest: Builder, make_summary: Builder) -> None:
    text = page_of(make_manifest(), make_summary()).section("What was run").text
    for fact in (
        "e" * 64,
        "d" * 64,
        "c" * 64,
        "harness run --target scripted",
        "revision r1",
        "seed 7",
        "abcdef123456",
        "2026-01-01 00:01 UTC",
        "12,345 tokens in, 300 out, USD 0.25",
        "31.6 prompts a second",
        "max_logprobsn/a",
        "numpy2.3.0",
        "float32",
    ):
        assert fact in text, fact


def test_a_run_with_nothing_in_it_still_has_a_page(page_of: Pages, make_manifest: Builder, make_summary: Builder) -> None:
    summary = make_summary() | {"cells": [], "contrasts": [], "primary": None}
    summary["verdict"] |= {"verdict": "undetermined", "sentence": "undetermined: no primary contrast", "calibration": []}
    summary["verdict"] |= dict.fromkeys(("margin", "mde"))
    page = page_of(make_manifest(concepts=[], lexicons={}), summary)
    assert page.find("h1")[0].text == "Undetermined: no primary contrast"
    assert not page.find("article")


def test_a_lone_concept_has_its_own_intervals_and_no_row_over_all(
    page_of: Pages, make_manifest: Builder, make_summary: Builder
) -> None:
    page = page_of(make_manifest(), make_summary(concepts=("color",)))
    (figure,) = page.find("svg", role="img")
    assert "all concepts" not in figure.text
    assert page.section("Arms").find("caption")[0].text == "Means on color alone, with 95% intervals"


def test_a_manifest_that_lacks_a_key_is_refused_rather_than_shown_with_a_hole(
    make_manifest: Builder, make_summary: Builder
) -> None:
    manifest = make_manifest()
    del manifest["command"]
    with pytest.raises(UndefinedError, match="command"):
        render(manifest, make_summary(), ())
