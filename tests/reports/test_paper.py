"""The paper's tables: typed as printed, tested over concepts, and beside runs of ours in the same layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from harness.reports.paper import SMALL, Column, Comparison, Rate, compare, of_run, pooled_p, published, sentence
from harness.reports.reading import FinishedRun

LARGE = ("Llama-3.1-8B-Instruct", "Gemma-2-9B-Instruct", "Llama-3.1-70B-Instruct")
Builder = Callable[..., dict[str, Any]]


@pytest.fixture(name="honest", scope="module")
def _honest() -> dict[tuple[str, str], Comparison]:
    return {(one.target, one.control): one for one in compare(published())}


def test_all_160_cells_are_there_with_the_stars_of_the_tables() -> None:
    columns = published()
    assert [column.target for column in columns] == [*SMALL, *LARGE]
    for column in columns:
        assert column.concepts == ["location", "number", "science", "person", "animal", "emotion", "color", "time"]
        assert len(column.rates) == 32
        assert not any(rate.stars for (_, name), rate in column.rates.items() if name == "random")
    rates = columns[4].rates
    assert rates["location", "low"] == Rate(percent=23.09, stars="**")
    assert rates["time", "original"] == Rate(percent=78.28, stars="***")


def test_typing_errors_would_show_in_the_sums_of_the_columns() -> None:
    mean = {
        column.target: np.mean([column.rates[c, "high"].percent - column.rates[c, "random"].percent for c in column.concepts])
        for column in published()
    }
    assert mean == pytest.approx(dict(zip((*SMALL, *LARGE), (-0.2275, 1.57375, 1.17875, 0.96, 2.42875), strict=True)))


@pytest.mark.parametrize(
    ("target", "over_random", "over_low"),
    [
        ("Llama-3.1-8B-Instruct", (1.18, 0.00, 2.35, 0.050), (0.59, 0.17)),
        ("Gemma-2-9B-Instruct", (0.96, -0.38, 2.30, 0.13), (0.05, 0.93)),
        ("Llama-3.1-70B-Instruct", (2.43, 0.58, 4.27, 0.017), (2.55, 0.007)),
    ],
)
def test_large_targets_over_concepts_are_as_worked_out_apart_from_this_code(
    honest: dict[tuple[str, str], Comparison],
    target: str,
    over_random: tuple[float, float, float, float],
    over_low: tuple[float, float],
) -> None:
    one, other = honest[target, "random"], honest[target, "low"]
    assert one.n_concepts == 8
    assert (one.estimate, one.ci_low, one.ci_high, one.p) == pytest.approx(over_random, abs=0.0055)
    assert (other.estimate, other.p) == pytest.approx(over_low, abs=0.0055)


def test_no_large_target_is_above_random_after_holm_and_the_sources_are_not_in_the_family(
    honest: dict[tuple[str, str], Comparison],
) -> None:
    adjusted = [honest[target, "random"].p_holm for target in LARGE]
    assert all(p is not None and p > 0.05 for p in adjusted)
    assert adjusted[2] == pytest.approx(0.051, abs=5e-4)
    small = [honest[target, "random"] for target in SMALL]
    assert [(round(one.estimate or 0, 2), round(one.p or 0, 2), one.p_holm) for one in small] == [
        (-0.23, 0.87, None),
        (1.57, 0.37, None),
    ]


def test_t_and_sign_flips_agree_with_scipy_and_with_counting_all_256_flips(honest: dict[tuple[str, str], Comparison]) -> None:
    column = published()[4]
    high, random = ([column.rates[c, name].percent for c in column.concepts] for name in ("high", "random"))
    test = stats.ttest_rel(high, random)
    one = honest[column.target, "random"]
    assert one.p == pytest.approx(test.pvalue)
    assert (one.ci_low, one.ci_high) == pytest.approx(tuple(test.confidence_interval(0.95)))
    differences = np.subtract(high, random)
    signs = np.array(np.meshgrid(*[[-1, 1]] * 8)).reshape(8, -1)  # (8, 256)
    sums = np.abs(signs.T @ differences)
    assert one.p_flip == pytest.approx(np.mean(sums >= abs(differences.sum()) - 1e-9))


def test_the_pooled_test_gives_the_stars_as_printed_but_for_three_cells() -> None:
    odd = []
    for column in published():
        for concept in column.concepts:
            random = column.rates[concept, "random"].percent
            for name in ("original", "high", "low"):
                rate = column.rates[concept, name]
                p = pooled_p(rate.percent, random)
                stars = "*" * sum(p < level for level in (0.05, 0.01, 0.001)) if rate.percent > random else ""
                if stars != rate.stars:
                    odd.append((column.target, concept, name))
    assert odd == [
        ("Llama-3.1-8B-Instruct", "animal", "high"),
        ("Gemma-2-9B-Instruct", "animal", "original"),
        ("Llama-3.1-70B-Instruct", "location", "low"),
    ]


def test_the_stars_claim_23_of_40_high_cells_and_leave_9_unmarked(honest: dict[tuple[str, str], Comparison]) -> None:
    of_random = [one for one in honest.values() if one.control == "random"]
    assert sum(one.n_starred or 0 for one in of_random) == 23
    assert sum(one.n_below or 0 for one in of_random) == 9
    assert all(one.n_starred is None for one in honest.values() if one.control == "low")


def test_a_sentence_sets_the_stars_against_the_test_over_concepts(honest: dict[tuple[str, str], Comparison]) -> None:
    said = sentence(honest["Llama-3.1-70B-Instruct", "random"])
    assert said.startswith("Llama-3.1-70B-Instruct: the stars put 6 of 8 high cells above random, taking 10,000 trials an arm")
    assert said.endswith(
        "+2.43 points [0.58, 4.27] over 8 concepts, p 0.017, 0.051 after Holm over the targets: not told apart from zero"
    )
    assert "leave 1 below it unmarked" in sentence(honest["Gemma-2-9B-Instruct", "random"])
    assert sentence(honest["Llama-3.1-70B-Instruct", "low"]).endswith("0.020 after Holm over the targets: above zero")


def a_run(summary: dict[str, Any], run_id: str = "r1") -> FinishedRun:
    return FinishedRun(folder=Path("r"), manifest={"run_id": run_id}, summary=summary)


def a_cell(concept: str, arm: str, rate: float | None, *, off_type: bool = False) -> dict[str, Any]:
    ends = {"ci_low": None, "ci_high": None} if rate is None else {"ci_low": rate - 0.1, "ci_high": rate + 0.1}
    return {"concept": concept, "arm": arm, "off_type": off_type, "count_success": {"estimate": rate, **ends}}


def test_a_run_of_ours_takes_the_papers_layout() -> None:
    cells = [
        a_cell("animal", "self", 0.5), a_cell("animal", "high", 0.3), a_cell("animal", "high", 0.9, off_type=True),
        a_cell("animal", "matched", 0.2), a_cell("food", "random", None), a_cell("all", "high", 0.3),
    ]  # fmt: skip
    column = of_run(a_run({"target": "t", "cells": cells}))
    assert column.run == "r1"
    assert set(column.rates) == {("animal", "original"), ("animal", "high")}
    high = column.rates["animal", "high"]
    assert (high.percent, high.ci_low, high.ci_high, high.stars) == pytest.approx((30, 20, 40, ""))


def test_runs_are_a_family_of_their_own_and_one_without_the_arms_says_so() -> None:
    def column(run: str, shifts: list[float]) -> Column:
        rates = {(f"c{i}", name): Rate(percent=20 + (s if name == "high" else 0)) for i, s in enumerate(shifts)
                 for name in ("high", "random")}  # fmt: skip
        return Column(target="t", rates=rates, run=run)

    shifts = [1.0, 2.0, 3.0, 2.5]
    found = {
        one.run: one for one in compare([column("a", shifts), column("b", [-s for s in shifts])]) if one.control == "random"
    }
    p = stats.ttest_1samp(shifts, 0).pvalue
    assert (found["a"].p, found["a"].p_holm) == pytest.approx((p, 2 * p))
    assert sentence(found["b"]).endswith("below zero" if 2 * p <= 0.05 else "not told apart from zero")
    without = compare([column("a", shifts)])[1]
    assert (without.control, without.n_concepts, without.p) == ("low", 0, None)
    assert sentence(without) == "t (a): high - low: too few concepts with both sets"
