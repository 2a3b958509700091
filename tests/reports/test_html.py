"""The page: what it says, that it loads nothing, and that no text of a model or a pack becomes markup."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from typing import Any

import pytest
from jinja2 import UndefinedError

from harness.reports.examples import Change, Example, Likely
from harness.reports.html import render
from harness.reports.wording import reading, visible

Builder = Callable[..., dict[str, Any]]

VOID = {"meta", "br", "hr", "img", "link", "input", "col"}
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7*7 }}\u202e\u200b\x1b[31m\n"


@dataclass
class Node:
    tag: str
    attrs: dict[str, str] = field(default_factory=dict)
    children: list[Node | str] = field(default_factory=list)

    def walk(self) -> Iterator[Node]:
        yield self
        for child in self.children:
            if isinstance(child, Node):
                yield from child.walk()

    def find(self, tag: str, **attrs: str) -> list[Node]:
        wanted = {name.rstrip("_").replace("_", "-"): value for name, value in attrs.items()}
        return [n for n in self.walk() if n.tag == tag and all(n.attrs.get(k) == v for k, v in wanted.items())]

    @property
    def text(self) -> str:
        parts = (child if isinstance(child, str) else child.text for child in self.children)
        return re.sub(r"\s+", " ", "".join(parts))


class Tree(HTMLParser):
    """Builds nodes and insists that every element is closed where it should be."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Node("root")
        self._open = [self.root]
        self.feed(page)
        self.close()
        assert self._open == [self.root], [node.tag for node in self._open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"an attribute of {tag} stands twice"
        node = Node(tag, {name: value or "" for name, value in attrs})
        self._open[-1].children.append(node)
        if tag not in VOID:
            self._open.append(node)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open[-1].children.append(Node(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open[-1].tag == tag, f"</{tag}> closes <{self._open[-1].tag}>"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        self._open[-1].children.append(data)


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


def page_of(manifest: dict[str, Any], summary: dict[str, Any], *examples: Example) -> Node:
    return Tree(render(manifest, summary, examples)).root


def says(value: float | None, low: float | None, high: float | None, reason: str | None = None) -> dict[str, Any]:
    return {"estimate": value, "estimate_low": value, "estimate_high": value, "ci_low": low, "ci_high": high, "reason": reason}


@pytest.mark.parametrize(
    ("overall", "expected"),
    [
        (says(0.314, 0.121, 0.503), "log-odds +0.31 nat [0.12, 0.50] over 3 concepts: the interval excludes zero"),
        (
            says(-0.1, -0.25, 0.05),
            "log-odds −0.10 nat [−0.25, 0.05] over 3 concepts: the interval includes zero: "
            "no shift told apart from the control",
        ),
        (says(None, None, None, "no trials"), "undetermined over 3 concepts: no trials"),
    ],
)
def test_the_page_opens_with_the_answer(
    make_manifest: Builder, make_summary: Builder, overall: dict[str, Any], expected: str
) -> None:
    summary = make_summary(overall)
    page = page_of(make_manifest(), summary)
    assert [h.text for h in page.find("h1")] == [f"related − matched: {expected}"]
    assert page.find("h1")[0].text.replace("−", "-") == reading(summary)
    first = next(node for node in page.find("body")[0].walk() if node.tag in ("h1", "h2", "table", "svg"))
    assert first.tag == "h1"


def test_the_odds_are_the_exponential_of_the_shift(make_manifest: Builder, make_summary: Builder) -> None:
    page = page_of(make_manifest(), make_summary(says(0.6931472, 0.0, 1.0986123)))
    assert "2.00 times [1.00, 3.00]" in page.find("p", class_="gloss")[0].text


def test_the_parts_come_in_the_order_of_a_reader(make_manifest: Builder, make_summary: Builder) -> None:
    page = page_of(make_manifest(), make_summary(), example())
    marks = [n.text if n.tag == "h2" else n.tag for n in page.find("body")[0].walk() if n.tag in ("h1", "h2", "figure")]
    assert marks == ["h1", "figure", "Arms", "Concepts", "Contrasts", "Examples", "How to read this", "What was run"]


def test_the_page_loads_nothing_and_runs_nothing(make_manifest: Builder, make_summary: Builder) -> None:
    page = page_of(make_manifest(), make_summary(), example())
    tags = {node.tag for node in page.walk()}
    assert not tags & {
        "script",
        "link",
        "img",
        "iframe",
        "object",
        "embed",
        "base",
        "form",
        "image",
        "use",
        "a",
        "audio",
        "video",
    }
    for node in page.walk():
        assert not [name for name in node.attrs if name in ("src", "href", "srcset", "xlink:href") or name.startswith("on")]
        assert "url(" not in node.attrs.get("style", "")
    style = "".join(str(child) for node in page.find("style") for child in node.children)
    assert "url(" not in style
    assert "@import" not in style
    policy = page.find("meta", http_equiv="Content-Security-Policy")[0].attrs["content"]
    assert "default-src 'none'" in policy
    assert "script" not in policy


def test_hostile_text_stays_text_wherever_it_stands(make_manifest: Builder, make_summary: Builder) -> None:
    tame = page_of(make_manifest(), make_summary(), example())
    summary, names = make_summary(), {"color": HOSTILE}
    for entry in (*summary["cells"], *summary["contrasts"]):
        entry["concept"] = names.get(entry["concept"], entry["concept"])
        entry["reason"] = HOSTILE
    token, change = Likely(HOSTILE, 0.2, True), Change(HOSTILE, None, 0.2, False)
    manifest = make_manifest(
        pack=dict.fromkeys(("name", "digest", "description", "claims"), HOSTILE),
        settings={HOSTILE: {HOSTILE: [HOSTILE]}},
        capabilities={HOSTILE: HOSTILE},
        versions={HOSTILE: HOSTILE},
        lexicons={HOSTILE: {"words": 1, "ids": None, "resolved_share": None}},
        failures={HOSTILE: 1},
        counts={"planned": 9, "done": 8, "failed": 1, "from_cache": 0},
        **dict.fromkeys(("target", "model", "endpoint", "revision", "command", "run_id", "started", "finished"), HOSTILE),
    )
    manifest["eval"] |= dict.fromkeys(("name", "description", "design", "template"), HOSTILE)
    shown = example(
        concept=HOSTILE,
        injection=HOSTILE,
        sentence=HOSTILE,
        clean_top=(token,),
        injected_top=(token,),
        risen=(change,),
        fallen=(),
    )
    text = render(manifest, summary, (shown,))
    page = Tree(text).root
    assert {node.tag for node in page.walk()} <= {node.tag for node in tame.walk()} | {"abbr"}
    assert {name for node in page.walk() for name in node.attrs} <= {n for node in tame.walk() for n in node.attrs} | {
        "colspan"
    }
    assert not set("\u202e\u200b\x1b") & set(text)
    expected = re.sub(r"\s+", " ", visible(HOSTILE))
    assert page.find("p", class_="prompt")[0].text == expected * 2
    assert page.find("tr", data_contrast=f"related/matched/delta_log_odds/{visible(HOSTILE)}")
    assert page.text.count(expected) >= 25


def test_every_contrast_has_its_row_with_its_numbers(make_manifest: Builder, make_summary: Builder) -> None:
    summary = make_summary()
    page = page_of(make_manifest(), summary)
    rows = {node.attrs["data-contrast"]: node for node in page.find("tr") if "data-contrast" in node.attrs}
    assert set(rows) == {"/".join(c[k] for k in ("arm", "control", "metric", "concept")) for c in summary["contrasts"]}
    for place, concept in enumerate(("animal", "color", "location", "all")):
        value = 0.1 + 0.2 * place
        cells = [cell.text.strip().replace("−", "-") for cell in rows[f"related/matched/delta_log_odds/{concept}"].find("td")]
        assert cells == [f"+{value:.2f}", f"[{value - 0.25:.2f}, {value + 0.25:.2f}]", "0.010", "0.030"]
        points = rows[f"related/matched/count_success/{concept}"].find("td")[0].text
        assert points == f"+{100 * value:.1f}"


def test_every_cell_has_its_row(make_manifest: Builder, make_summary: Builder) -> None:
    page = page_of(make_manifest(), make_summary())
    arms, concepts = page.find("section")[:2]
    assert [row.find("th")[0].text for row in arms.find("tr")[1:]] == ["self", "related", "matched"]
    assert [th.text for th in concepts.find("th", scope="rowgroup")] == ["animal", "color", "location"]
    first = [td.text.strip() for td in arms.find("tr")[1].find("td")]
    assert first[:2] == ["+0.44 [0.37, 0.51]", "41.2 [38.0, 44.4]"]
    assert first[4:] == ["62%", "96", "0", "12", "8"]


def test_the_figure_has_a_mark_a_label_and_an_interval_for_each_concept(make_manifest: Builder, make_summary: Builder) -> None:
    page = page_of(make_manifest(), make_summary())
    (figure,) = page.find("svg", role="img")
    ids = figure.attrs["aria-labelledby"].split()
    assert [next(n.tag for n in figure.walk() if n.attrs.get("id") == i) for i in ids] == ["title", "desc"]
    rows = [n for n in figure.find("g") if "row" in n.attrs.get("class", "").split()]
    assert [row.find("text", class_="label")[0].text for row in rows] == ["location", "color", "animal", "all concepts"]
    assert all(len(row.find("line")) == 1 for row in rows)
    centres = [float(row.find("circle")[0].attrs["cx"].rstrip("%")) for row in rows[:-1]]
    assert centres[0] - centres[1] == pytest.approx(centres[1] - centres[2], abs=0.01)  # 0.5, 0.3, 0.1
    assert "nats of log-odds" in figure.text
    assert figure.find("line", class_="zero")


def test_a_prompt_shows_where_the_injection_ends(make_manifest: Builder, make_summary: Builder) -> None:
    prompt = page_of(make_manifest(), make_summary(), example()).find("p", class_="prompt")[0]
    assert [mark.text for mark in prompt.find("mark")] == ["(brush canvas)"]
    assert prompt.text == "(brush canvas)She painted the door"


def test_an_unlisted_token_is_below_the_smallest_listed_and_never_nothing(
    make_manifest: Builder, make_summary: Builder
) -> None:
    page = page_of(make_manifest(), make_summary(), example())
    rose, fell = (page.find("div", class_=kind)[0].find("tbody")[0].find("tr") for kind in ("risen", "fallen"))
    numbers = [[td.text.replace("\u202f", "").replace(" ", "") for td in row.find("td")[:2]] for row in (*rose, *fell)]
    assert numbers == [["1.1%", "30%"], ["<0.31%", "2.0%"], ["40%", "<0.42%"]]


def test_spaces_and_newlines_of_tokens_are_seen(make_manifest: Builder, make_summary: Builder) -> None:
    page = page_of(make_manifest(), make_summary(), example(risen=(Change("", None, 0.2, False),)))
    tokens = {span.text for span in page.find("span", class_="tok")}
    assert {"␣to", "↵", "empty"} <= tokens
    assert "␣red" in {span.text for span in page.find("span", class_="tok member")}


def test_an_unknown_shift_and_mass_are_not_available(make_manifest: Builder, make_summary: Builder) -> None:
    shown = example(delta_log_odds=None, mass_clean=(float("nan"), float("nan")))
    header = page_of(make_manifest(), make_summary(), shown).find("article")[0].find("header")[0]
    assert "words of the concept n/a → 5.0% to 6.0%, log-odds n/a" in header.text


def test_what_is_none_reads_as_not_available_with_its_reason(make_manifest: Builder, make_summary: Builder) -> None:
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


def test_a_prediction_is_told_with_its_interval(make_manifest: Builder, make_summary: Builder) -> None:
    summary = make_summary()
    summary["prediction"] = {"n": 40, "spearman": 0.31, "ci_low": -0.02, "ci_high": 0.6, "p": 0.06, "reason": None}
    assert (
        "over 40 injections: Spearman’s rank correlation 0.31 [−0.02, 0.60], p 0.060" in page_of(make_manifest(), summary).text
    )


def test_failures_stand_beside_the_answer_with_their_reasons(make_manifest: Builder, make_summary: Builder) -> None:
    manifest = make_manifest(
        counts={"planned": 1000, "done": 988, "failed": 12, "from_cache": 0}, failures={"timeout": 9, "HTTP 500": 3}
    )
    page = page_of(manifest, make_summary())
    (note,) = page.find("li", class_="bad")
    assert note.text.strip() == "12 of 1,000 prompts failed (1.2%) and are left out: timeout (9); HTTP 500 (3)"
    assert not page_of(make_manifest(), make_summary()).find("li", class_="bad")


def test_the_manifest_is_told(make_manifest: Builder, make_summary: Builder) -> None:
    text = page_of(make_manifest(), make_summary()).find("section")[-1].text
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


def test_a_run_with_nothing_in_it_still_has_a_page(make_manifest: Builder, make_summary: Builder) -> None:
    summary = make_summary() | {"cells": [], "contrasts": [], "primary": None}
    page = page_of(make_manifest(concepts=[], lexicons={}), summary)
    assert page.find("h1")[0].text.startswith("no primary contrast")
    assert not page.find("article")


def test_a_lone_concept_has_its_own_intervals_and_no_row_over_all(make_manifest: Builder, make_summary: Builder) -> None:
    page = page_of(make_manifest(), make_summary(concepts=("color",)))
    (figure,) = page.find("svg", role="img")
    assert "all concepts" not in figure.text
    assert page.find("caption")[0].text == "Means on color alone, with 95% intervals"


def test_a_manifest_that_lacks_a_key_is_refused_rather_than_shown_with_a_hole(
    make_manifest: Builder, make_summary: Builder
) -> None:
    manifest = make_manifest()
    del manifest["command"]
    with pytest.raises(UndefinedError, match="command"):
        render(manifest, make_summary(), ())
