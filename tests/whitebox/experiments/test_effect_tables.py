"""Tables of effects against means taken by hand and the crossed estimates themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

pytest.importorskip("transformers")

from harness.stats.crossed import Trials, contrast_two_way, mean_two_way
from harness.whitebox.experiments.effect_tables import MEASURES, arm_rows, controls_of, tables

ARMS = {"self": 1, "0.1-0.2": 3, "0.4-1": 3, "similarity_matched": 3, "norm_matched": 3, "random": 3}


def made_up(seed: int = 0, doses: tuple[float | None, ...] = (2.0,)) -> pa.Table:
    """Cases of 2 sites, 3 targets each, 5 sentences; the band 0.4-1 is there for one target of each site only."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for site in ("resid_post.0", "resid_post.1"):
        for target in range(3):
            for arm, n in ARMS.items():
                if arm == "0.4-1" and target != 1:
                    continue
                for draw in range(n):
                    for sentence in range(5):
                        for dose in doses:
                            keys = {"site": site, "target": target, "arm": arm, "draw": draw, "dose": dose}
                            values = {name: rng.standard_normal() for name in MEASURES} | {"top1_changed": rng.random() < 0.5}
                            values["log_odds_shift"] += 10 * target
                            rows.append({**keys, "sentence_id": f"s{sentence}", **values})
    return pa.Table.from_pylist(rows)


def test_means_are_over_all_cases_with_both_signs_and_clustered_by_target_and_sentence() -> None:
    effects = made_up()
    rows = {row["arm"]: row for row in arm_rows(effects)}
    assert list(rows) == list(ARMS)
    frame = effects.to_pylist()
    for arm, row in rows.items():
        kept = [case for case in frame if case["arm"] == arm]
        assert row["n_cases"] == len(kept)
        assert row["n_targets"] == (2 if arm == "0.4-1" else 6)
        for name in MEASURES:
            values = [float(case[name]) for case in kept]
            targets = [f"{case['site']}{case['target']}" for case in kept]
            expected = mean_two_way(Trials.of(values, [case["sentence_id"] for case in kept], targets))
            assert row["means"][name]["value"] == pytest.approx(np.mean(values))
            assert row["means"][name]["ci_low"] == pytest.approx(expected.ci_low)
            assert row["means"][name]["ci_high"] == pytest.approx(expected.ci_high)


def test_a_band_is_compared_with_the_controls_of_its_own_targets() -> None:
    effects = made_up()
    (row,) = [row for row in arm_rows(effects) if row["arm"] == "0.4-1"]
    frame = effects.to_pylist()

    def trials(arm: str) -> Trials:
        kept = [case for case in frame if case["arm"] == arm and case["target"] == 1]
        codes = [f"{case['site']}{case['target']}" for case in kept]
        return Trials.of([case["log_odds_shift"] for case in kept], [case["sentence_id"] for case in kept], codes)

    assert list(row["contrasts"]) == ["random", "similarity_matched", "norm_matched"]
    for control, found in row["contrasts"].items():
        expected = contrast_two_way(trials("0.4-1"), trials(control))
        assert found["log_odds_shift"]["value"] == pytest.approx(expected.value)
        assert abs(found["log_odds_shift"]["value"]) < 1.5  # not 10: targets that the band lacks stay out
        assert found["log_odds_shift"]["ci_low"] == pytest.approx(expected.ci_low)


def test_an_arm_has_the_controls_that_there_are() -> None:
    arms = ["self", "2-5", "norm_matched 2-5", "norm_matched 6-20", "random"]
    assert controls_of("2-5", arms) == ("random", "norm_matched 2-5")
    assert controls_of("norm_matched 2-5", arms) == ("random",)
    assert controls_of("random", arms) == ()


def test_sites_and_doses_are_told_apart_where_there_are_several() -> None:
    found = tables(made_up(doses=(1.0, 4.0)))
    assert list(found["by_dose"]) == ["1.0", "4.0"]
    assert list(found["by_site"]) == ["resid_post.0", "resid_post.1"]
    assert sum(row["n_cases"] for row in found["by_dose"]["4.0"]) * 2 == sum(row["n_cases"] for row in found["arms"])
    assert tables(made_up(doses=(None,)))["by_dose"] == {}


def test_missing_answers_are_dropped_and_counted_and_no_cases_give_no_rows() -> None:
    effects = made_up().to_pylist()
    effects[0]["weighted_cosine"] = float("nan")
    row = arm_rows(pa.Table.from_pylist(effects))[0]
    assert row["means"]["weighted_cosine"]["n_dropped"] == 1
    assert row["means"]["weighted_cosine"]["value"] is not None
    assert arm_rows(made_up().slice(0, 0)) == []


def test_bands_stand_in_the_order_of_their_numbers() -> None:
    frame = made_up().to_pylist()[:7]
    names = ["random", ">500", "101-200", "21-50", "norm_matched 21-50", "2-5", "self"]
    shuffled = [{**row, "arm": arm} for row, arm in zip(frame, names, strict=True)]
    order = ["self", "2-5", "21-50", "101-200", ">500", "norm_matched 21-50", "random"]
    assert [row["arm"] for row in arm_rows(pa.Table.from_pylist(shuffled))] == order
