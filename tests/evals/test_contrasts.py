"""Which injections count as one pair, and over which rows a contrast is taken."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from harness.evals.contrasts import ArmTrials, Contrasts, partners
from harness.evals.spec import METRICS, Contrast, Primary
from harness.records import Mode, Probe

S = 4


def arm(name: str, places: tuple[int, ...], *, partner: str = "", values: np.ndarray | None = None) -> ArmTrials:
    """Trials of injections `name-<place>`, each with S sentences, matched to `partner-<place>` if there is one."""
    probes = [
        Probe(
            concept="animal",
            arm=name,
            injection_id=f"{name}-{i}",
            injection=(" x",),
            provenance={"matched_to": f"{partner}-{i}"} if partner else {},
        )
        for i in places
    ]
    flat = np.zeros(len(places) * S) if values is None else values.ravel()
    columns: dict[str, Any] = {"injection_id": np.repeat([f"{name}-{i}" for i in places], S)}
    columns |= dict.fromkeys(METRICS, flat)
    columns |= {f"delta_{m}_{end}": flat for m in ("mass", "log_odds") for end in ("low", "high")}
    return ArmTrials.of(columns, np.tile(np.arange(S), len(places)), probes)


def test_a_control_has_the_code_of_the_injection_that_it_was_matched_to() -> None:
    codes, paired = partners(arm("high", (0, 1, 2)), arm("matched", (0, 1, 2), partner="high"))
    assert codes.tolist() == [0, 1, 2]
    assert paired


def test_the_pair_is_known_from_either_side() -> None:
    codes, paired = partners(arm("matched", (2, 3), partner="high"), arm("high", (1, 2, 3)))
    assert codes.tolist()[1:] == [0, 1]
    assert codes[0] not in (0, 1)
    assert paired


def test_an_injection_whose_partner_is_not_in_the_plan_stands_alone() -> None:
    codes, paired = partners(arm("high", (0, 1, 2)), arm("matched", (1, 2, 3), partner="high"))
    assert codes.tolist()[:2] == [1, 2]
    assert codes[2] not in (0, 1, 2)
    assert not paired


def test_a_control_of_another_arm_is_no_partner() -> None:
    codes, paired = partners(arm("related", (0, 1)), arm("matched", (0, 1), partner="high"))
    assert not {0, 1} & set(codes.tolist())
    assert not paired


def rows(high: ArmTrials, control: ArmTrials, *, permuted: bool = True) -> list[dict[str, Any]]:
    primary = Primary(arm="high", control="matched", metric="delta_log_odds", margin=0.1)
    contrasts = Contrasts(
        declared=(Contrast(arm="high", control="matched"),), primary=primary, alpha=0.05, power=0.8, seed=0, permuted=permuted
    )
    contrasts.add("animal", {"high": high, "matched": control}, Mode.EXACT)
    return [row for row in contrasts.rows() if row["metric"] == "delta_log_odds"]


def test_a_partly_planned_set_of_pairs_is_estimated_whole_and_permuted_by_labels() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(0, 1, (2, 3, S)) + rng.normal(0, 1, (2, 3, 1))
    row, _ = rows(arm("high", (0, 1, 2), values=values[0]), arm("matched", (1, 2, 3), partner="high", values=values[1]))
    assert row["estimate"] == pytest.approx(values[0].mean() - values[1].mean())
    assert (row["n_sentences"], row["n_injections"]) == (S, 3)
    assert 0 < row["p_permutation"] <= 1


def test_injections_that_meet_one_sentence_each_are_not_permuted() -> None:
    values = np.random.default_rng(2).normal(0, 1, (2, 3, S))
    made = rows(arm("high", (0, 1, 2), values=values[0]), arm("matched", (0, 1, 2), values=values[1]), permuted=False)
    assert [row["p_permutation"] for row in made] == [None, None]
