"""What annotators say of shared pairs, with annotators whose answers are known."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import sparse

from harness.providers.scripted import ScriptedProvider
from harness.records import Prompt
from harness.whitebox.features.catalogue import Catalogue
from harness.whitebox.sharing import annotation
from harness.whitebox.sharing.annotation import REASON_TOKENS, agreement, annotate, annotate_shared, top_words
from harness.whitebox.sharing.shared import SHARED
from harness.whitebox.sources.sites import Site

from ..tiny_catalogue import SiteData, write_catalogue

ONE, OTHER = Site.parse("resid_post.1"), Site.parse("mlp_out.2")
GROUPS = [(("cat", "cow"), ("dog", "hen")), (("red", "blue"), ("June", "May"))]
REASON = [" both", " are", " animals", ".", " And"]


def question(prompt: Prompt) -> tuple[str, str, str]:
    """The two groups that a prompt asks about last, and what stands behind "Answer:"."""
    *_, first, second, _, answer = prompt.text.split("\n")
    return first.removeprefix("Group 1: "), second.removeprefix("Group 2: "), answer.removeprefix("Answer:")


def zoologist(prompt: Prompt) -> Mapping[str, float]:
    """Finds animals related, more so if the cat comes first, and says why in four tokens."""
    first, second, answer = question(prompt)
    if answer:
        said = answer.split("because")[1]
        return {next(t for n, t in enumerate(REASON) if said == "".join(REASON[:n])): 0.9, " x": 0.05}
    if "cat" in first:
        return {" yes": 0.5, "Yes": 0.1, " no": 0.2, " maybe": 0.2}
    return {" yes": 0.3, " no": 0.3} if "cat" in second else {" yes": 0.1, " no": 0.7}


def test_yes_and_no_are_weighed_in_both_orders() -> None:
    related, unrelated = asyncio.run(annotate(GROUPS, ScriptedProvider(zoologist)))
    assert related.p_related == pytest.approx((0.6 / 0.8 + 0.5) / 2)
    assert unrelated.p_related == pytest.approx(0.125)
    assert (related.related, unrelated.related) == (True, False)
    assert related.reason == "both are animals."


def test_batches_are_as_large_as_the_provider_takes_them() -> None:
    sizes = []

    class Counting(ScriptedProvider):
        async def observe(self, prompts: Any, readout: Any) -> Any:
            sizes.append(len(prompts))
            return await super().observe(prompts, readout)

    found = asyncio.run(annotate(GROUPS * 3, Counting(zoologist, batch_size=4)))
    assert max(sizes) == 4
    assert [one.related for one in found] == [True, False] * 3


def test_a_reason_ends_with_its_line_and_after_so_many_tokens() -> None:
    def talks(prompt: Prompt) -> Mapping[str, float]:
        answer = question(prompt)[2] if "because" not in prompt.text.rsplit("Answer:", 1)[1] else " x"
        return {" on": 0.9} if answer else {" yes": 0.9}

    (one,) = asyncio.run(annotate(GROUPS[:1], ScriptedProvider(talks)))
    assert one.reason == " ".join(["on"] * REASON_TOKENS)

    def line(prompt: Prompt) -> Mapping[str, float]:
        return {" so\nGroup": 0.9} if prompt.text.rsplit("Answer:", 1)[1] else {" no": 0.9}

    (one,) = asyncio.run(annotate(GROUPS[:1], ScriptedProvider(line)))
    assert (one.p_related, one.reason) == (0.0, "so")


def test_no_answer_is_no_judgement_and_says_why() -> None:
    (one,) = asyncio.run(annotate(GROUPS[:1], ScriptedProvider(lambda _: {" perhaps": 0.9})))
    assert (one.p_related, one.related, one.reason) == (None, None, "")
    assert one.error == "neither yes nor no is among the 1 likeliest tokens"

    def fails(_: Prompt) -> Mapping[str, float]:
        raise ValueError("out of order")

    (one,) = asyncio.run(annotate(GROUPS[:1], ScriptedProvider(fails)))
    assert (one.p_related, one.error) == (None, "script: out of order")


def test_kappa_is_that_of_the_textbook_and_none_where_it_says_nothing() -> None:
    # 20 both yes, 15 both no, 5 and 10 in which they differ: po .7, pe .5, kappa .4
    one = [True] * 20 + [True] * 5 + [False] * 10 + [False] * 15
    other = [True] * 20 + [False] * 5 + [True] * 10 + [False] * 15
    found = agreement([*one, None], [*other, True])
    assert (found.n, found.share, found.kappa) == (50, pytest.approx(0.7), pytest.approx(0.4))
    few = agreement([True, None, False], [True, True, False])
    assert (few.n, few.kappa, few.problem) == (2, None, "fewer than 5 pairs that both judged")
    same = agreement([True] * 6, [True, False] * 3)
    assert (same.kappa, same.share, same.problem) == (None, 0.5, "an annotator always says the same")


def catalogues(tmp_path: Path) -> tuple[Catalogue, Catalogue]:
    rows = np.eye(6, dtype=np.float32)
    words = [["cat", "Cat", "cow"], ["dog"], ["red"], ["June"], [], ["six"]]
    tokens = [[(word, 2.0 - n / 10) for n, word in enumerate(listed)] for listed in words]
    codes = sparse.csr_matrix(np.eye(50, 6, dtype=np.float32))
    a = write_catalogue(tmp_path / "a", source="a", sites={ONE: SiteData(W_dec=rows, tokens=tokens, codes=codes)})
    others = [[("hen", 1.0), ("dog", 0.9)], [("lion", 1.0), ("cat", 0.9)], *tokens[2:]]
    b = write_catalogue(tmp_path / "b", source="b", sites={OTHER: SiteData(W_dec=rows, tokens=others, codes=codes)})
    return a, b


def test_a_feature_speaks_through_its_first_distinct_words(tmp_path: Path) -> None:
    a, _ = catalogues(tmp_path)
    assert top_words(a, ONE, [0, 2, 4]) == {0: ("cat", "cow"), 2: ("red",)}


def test_shared_pairs_are_judged_best_first_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = catalogues(tmp_path)
    place = {"site_a": str(ONE), "site_b": str(OTHER), "mutual": True}
    listed = [
        {**place, "i_a": 2, "j_a": 3, "i_b": 2, "j_b": 3, "score": 0.5, "shared": True},
        {**place, "i_a": 0, "j_a": 1, "i_b": 1, "j_b": 0, "score": 0.9, "shared": True},
        {**place, "i_a": 2, "j_a": 5, "i_b": 2, "j_b": 5, "score": 0.95, "shared": False},
    ]
    out = tmp_path / "shared"
    out.mkdir()
    pq.write_table(pa.Table.from_pylist(listed, schema=SHARED), out / "shared.parquet")
    (out / "manifest.json").write_text("{}")
    asked: list[str] = []

    async def opened(spec: Any, _: Any) -> ScriptedProvider:
        def script(prompt: Prompt) -> Mapping[str, float]:
            asked.append(" | ".join(question(prompt)[:2]))
            return zoologist(prompt) if spec == "first" else {" yes": 0.9, "\n": 0.1}

        return ScriptedProvider(script, name=spec)

    monkeypatch.setattr(annotation, "find_target", lambda name: name)
    monkeypatch.setattr(annotation, "open_target", opened)
    found = asyncio.run(annotate_shared(out, both, ["first", "second"], print, most=10))
    assert asked[:2] == ["cat, cow, lion | dog, hen", "red | June"]  # the words of both sources, each once
    table = pq.read_table(out / "annotations.parquet").to_pylist()
    assert [(row["annotator"], row["i_a"], row["related"]) for row in table] == [
        ("first", 0, True),
        ("first", 2, False),
        ("second", 0, True),
        ("second", 2, True),
    ]
    assert table[0]["reason"] == "both are animals."
    assert found["agreement"]["problem"] == "fewer than 5 pairs that both judged"
    assert json.loads((out / "annotations.json").read_text()) == found
    only = asyncio.run(annotate_shared(out, both, ["first"], print, most=1))
    assert (only["agreement"], only["annotators"][0]["n"]) == (None, 1)
