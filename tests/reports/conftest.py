"""Summaries and manifests written by hand, so that what a report must say of them is known without the code under test; and a
reader of pages that knows nothing of how they were made."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

import pytest

METRICS = ("count_success", "mass_success", "delta_mass", "delta_log_odds")
CONCEPTS = ("animal", "color", "location")
Builder = Callable[..., dict[str, Any]]


def estimated(value: float | None, half: float | None = 0.1, reason: str | None = None) -> dict[str, Any]:
    """An estimate with a symmetric interval; without one where `half` is None."""
    low, high = (None, None) if value is None or half is None else (value - half, value + half)
    return {"estimate": value, "estimate_low": value, "estimate_high": value, "ci_low": low, "ci_high": high, "reason": reason}


def _cell(concept: str, arm: str, *, off_type: bool = False, n_failed: int = 0) -> dict[str, Any]:
    counts = {"n_sentences": 12, "n_injections": 8, "n_trials": 96, "n_failed": n_failed, "mode": "topk"}
    counts |= {"n_up": 40, "n_down": 20, "n_unidentified": 36 - n_failed, "identified_share": 60 / (96 - n_failed)}
    means = {
        "count_success": estimated(0.412, 0.032),
        "mass_success": estimated(0.636, 0.05),
        "delta_mass": estimated(0.0123, 0.004),
        "delta_log_odds": estimated(0.44, 0.07),
    }
    return {"target": "scripted", "concept": concept, "arm": arm, "off_type": off_type, **counts, **means}


def _contrast(concept: str, metric: str, place: int) -> dict[str, Any]:
    value = estimated(0.1 + 0.2 * place, 0.25)
    names = {"concept": concept, "arm": "related", "control": "matched", "metric": metric}
    corrected = {"p": 0.01, "p_by": 0.04, "p_holm": 0.03, "p_permutation": 0.008}
    spread = {"se": 0.12, "df": 7, "mde": 0.36, "n_sentences": 12, "n_injections": 8}
    judged = {"margin": 0.1, "within_margin": False, "verdict": "transfers", "verdict_reason": None}
    return {**names, **value, **corrected, **spread, **judged}


def _check(check: str, arm: str, value: float) -> dict[str, Any]:
    counted = {"p": 0.001, "share": 0.75, "n_found": 3, "n_concepts": 4}
    return {"check": check, "arm": arm, "control": "matched", "status": "passed", **estimated(value), **counted}


def _prediction() -> dict[str, Any]:
    """Of a pack that predicts nothing."""
    ends = [f"{name}_ci_{end}" for name in ("partial", "slope", "partial_slope") for end in ("low", "high")]
    names = ("spearman", "ci_low", "ci_high", "p", "partial", "partial_p", "slope", "slope_p", "partial_slope", "intercept")
    unknown: dict[str, Any] = dict.fromkeys((*names, "partial_slope_p", *ends))
    named = {"metric": "delta_log_odds", "arms": [], "covariates": ["length", "frequency", "overlap"]}
    return {**named, "n": 0, **unknown, "reason": "fewer than 5 points", "calibration": [], "within": {}, "pairs": None}


@pytest.fixture
def make_summary() -> Builder:
    """A summary over `concepts`, whose primary contrast over all of them is what `overall` says."""

    def make(
        overall: dict[str, Any] | None = None, *, concepts: tuple[str, ...] = CONCEPTS, metric: str = "delta_log_odds"
    ) -> dict[str, Any]:
        places = [*concepts, "all"]
        contrasts = [_contrast(name, m, place) for m in METRICS for place, name in enumerate(places)]
        for row in contrasts:
            if row["concept"] == "all" and row["metric"] == metric and overall is not None:
                row.update(overall)
        return {
            "run_id": "20260101-000000-transfer-scripted",
            "target": "scripted",
            "mode": "topk",
            "modes": dict.fromkeys(concepts, "topk"),
            "primary": {"arm": "related", "control": "matched", "metric": metric},
            "cells": [_cell(name, arm) for name in places for arm in ("self", "related", "matched")],
            "contrasts": contrasts,
            "prediction": _prediction(),
            "verdict": {
                "verdict": "transfers",
                "reason": None,
                "withheld": None,
                "sentence": "transfers: words near the concept move the next word towards it",
                "alpha": 0.05,
                "power": 0.8,
                "margin": 0.1,
                "mde": 0.36,
                "n_targets": 1,
                "target_is_source": False,
                "calibration": [_check("detected", "self", 0.9), _check("silent", "shuffled", 0.01)],
            },
            "cost": {"input_tokens": 12_345, "output_tokens": 300, "usd": 0.25},
            "timing": {"asked_s": 9.5, "total_s": 12.0, "prompts_per_s": 31.6},
        }

    return make


@pytest.fixture
def make_manifest() -> Builder:
    """A manifest with every key that the report reads; keyword arguments replace entries."""

    def make(**replaced: Any) -> dict[str, Any]:
        return {
            "run_id": "20260101-000000-transfer-scripted",
            "harness_version": "0.1.0",
            "git_revision": "abcdef123456",
            "command": "harness run --target scripted",
            "eval": {
                "name": "transfer",
                "digest": "e" * 64,
                "description": "what the eval asks",
                "design": "crossed",
                "template": "paren",
                "k": 30,
            },
            "pack": {
                "name": "lexical",
                "digest": "d" * 64,
                "description": "word lists",
                "claims": "nothing about interference",
            },
            "target": "scripted",
            "endpoint": "scripted",
            "model": "scripted",
            "revision": "r1",
            "tokenizer_digest": "c" * 64,
            "capabilities": {"token_ids": False, "max_logprobs": None, "notes": ["from a script"]},
            "settings": {"dtype": "float32"},
            "seed": 7,
            "sizes": {"injections": 8, "sentences": 12, "off_type": 0},
            "concepts": list(CONCEPTS),
            "lexicons": {name: {"words": 150, "ids": 210, "resolved_share": 0.6} for name in CONCEPTS},
            "versions": {"python": "3.11.2", "numpy": "2.3.0"},
            "started": "2026-01-01T00:00:00+00:00",
            "finished": "2026-01-01T00:01:30+00:00",
            "counts": {"planned": 300, "done": 300, "failed": 0, "from_cache": 0},
            "failures": {},
        } | replaced

    return make


VOID = {"meta", "br", "hr", "img", "link", "input", "col"}
SHAPES = {"line", "rect", "circle", "path", "polygon", "polyline"}
"""Elements of SVG, which may close themselves."""

LOADING = {"script", "link", "img", "iframe", "object", "embed", "base", "form", "image", "use", "a", "audio", "video"}
UNSEEN = set("\u202e\u200b\x1b")


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

    def section(self, title: str) -> Node:
        (found,) = [n for n in self.find("section") if [h.text for h in n.find("h2")] == [title]]
        return found

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
        assert tag in SHAPES, f"<{tag}/> is no element without content in HTML"
        self._open[-1].children.append(Node(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open[-1].tag == tag, f"</{tag}> closes <{self._open[-1].tag}>"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        self._open[-1].children.append(data)


@pytest.fixture(scope="session")
def read_page() -> Callable[[str], Node]:
    """Reads a page, and insists that it is well formed, loads nothing, runs nothing and shows nothing unseen."""

    def read(text: str) -> Node:
        page = Tree(text).root
        assert not {node.tag for node in page.walk()} & LOADING
        for node in page.walk():
            assert not [name for name in node.attrs if name in ("src", "href", "srcset", "xlink:href") or name.startswith("on")]
            assert "url(" not in node.attrs.get("style", "")
        style = "".join(str(child) for node in page.find("style") for child in node.children)
        assert "url(" not in style
        assert "@import" not in style
        policy = page.find("meta", http_equiv="Content-Security-Policy")[0].attrs["content"]
        assert "default-src 'none'" in policy
        assert "script" not in policy
        ids = [node.attrs["id"] for node in page.walk() if "id" in node.attrs]
        assert len(set(ids)) == len(ids)
        assert {name for node in page.walk() for name in node.attrs.get("aria-labelledby", "").split()} <= set(ids)
        assert not UNSEEN & set(text)
        assert "None" not in page.text
        assert "nan" not in page.text.lower().split()
        assert len(page.find("h1")) == 1
        return page

    return read


@pytest.fixture(scope="session")
def hostile() -> str:
    """Text that would be markup, a template, an order to the terminal, or unseen."""
    return "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7*7 }}\u202e\u200b\x1b[31m\n"
