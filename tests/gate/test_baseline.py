"""The baseline's file: what it keeps, what it refuses, and which differences it tells."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.errors import FileFormatError, UsageError
from harness.gate.answers import clusters_of
from harness.gate.baseline import (
    LISTED,
    MUST_AGREE,
    UNIT,
    Baseline,
    Source,
    differences,
    read_baseline,
    require_comparable,
    write_baseline,
)

from .conftest import answer, gate_spec

MANIFEST: dict[str, Any] = {
    "run_id": "20260101-000000-regression-t",
    "harness_version": "0.1.0",
    "scoring_version": 1,
    "eval": {"name": "regression", "digest": "e" * 64, "template": "paren", "mode": "topk", "k": 30},
    "pack": {"name": "lexical", "digest": "a" * 64},
    "target": "t",
    "endpoint": "here",
    "model": "m",
    "revision": "r1",
    "tokenizer_digest": None,
    "settings": {"dtype": "bfloat16"},
    "seed": 0,
    "sizes": {"injections": 2, "sentences": 2, "off_type": 0},
    "started": "2026-01-01T00:00:00+00:00",
    "arms": ["related"],
}


@pytest.fixture
def baseline() -> Baseline:
    words = {f" {i}": float(p) for i, p in enumerate(sorted(np.random.default_rng(0).dirichlet(np.ones(40)), reverse=True))}
    answers = [answer(f"animal/{arm}/{k}/s{s}", p=words) for s in range(3) for arm, k in (("clean", ""), ("related", f"k{s}"))]
    source = Source.of(MANIFEST)
    return Baseline(format=1, gate=gate_spec(), source=source, clusters=clusters_of(answers, gate_spec(), seed=0))


def changed(**keys: Any) -> dict[str, Any]:
    return Source.of(MANIFEST).model_dump() | keys


def test_it_is_read_back_as_it_was_written_one_line_a_cluster(baseline: Baseline, tmp_path: Path) -> None:
    path = tmp_path / "deeper" / "b.json"
    write_baseline(baseline, path)
    assert read_baseline(path) == baseline
    assert sum(line.startswith('{"concept"') for line in path.read_text().splitlines()) == 3
    assert json.loads(path.read_text())["format"] == 1


def test_it_keeps_the_likeliest_tokens_to_a_ten_thousandth_of_a_nat(baseline: Baseline) -> None:
    entry = baseline.clusters[0].prompts[0]
    p = sorted(np.random.default_rng(0).dirichlet(np.ones(40)), reverse=True)
    assert len(entry.tokens) == len(entry.lacking) == LISTED
    assert np.abs(-UNIT * np.array(entry.lacking) - np.log(p[:LISTED])).max() <= UNIT / 2 * 1.001


def test_ids_stay_numbers_and_texts_stay_texts(baseline: Baseline, tmp_path: Path) -> None:
    numbered = answer("animal/clean//s0", tokens=(17, 4), p={" a": 0.5, " b": 0.2})
    digits = answer("food/clean//s0", tokens=("17", "4"), p={" a": 0.5, " b": 0.2})
    write_baseline(
        baseline.model_copy(update={"clusters": clusters_of([numbered, digits], gate_spec(), seed=0)}), tmp_path / "b.json"
    )
    read = {cluster.concept: cluster.prompts[0].tokens for cluster in read_baseline(tmp_path / "b.json").clusters}
    assert read == {"animal": (17, 4), "food": ("17", "4")}


def test_failed_prompts_are_left_out() -> None:
    answers = [answer("animal/clean//s0"), replace(answer("animal/clean//s1"), error="HTTP 500")]
    assert len(clusters_of(answers, gate_spec(), seed=0)) == 1


@pytest.mark.parametrize("key", [*MUST_AGREE])
def test_what_must_agree_is_named_with_both_values_and_what_to_do(baseline: Baseline, key: str) -> None:
    counted = baseline.model_copy(update={"gate": gate_spec(metric="count_success", arm="related")})
    old = changed()[key]
    new = old + 1 if isinstance(old, int) else "another"
    with pytest.raises(UsageError) as refused:
        require_comparable(counted, changed(**{key: new}))
    assert f"{key} is {new} and was" in refused.value.message
    assert refused.value.hint == MUST_AGREE[key]


def test_all_keys_that_differ_are_named_at_once(baseline: Baseline) -> None:
    with pytest.raises(UsageError, match=r"pack_digest is b+\.\.\. and was a+\.\.\.; seed is 7 and was 0"):
        require_comparable(baseline, changed(pack_digest="b" * 64, seed=7))


def test_the_count_s_k_matters_to_counts_alone(baseline: Baseline) -> None:
    require_comparable(baseline, changed(k=5))


def test_another_revision_or_version_is_told_and_not_refused(baseline: Baseline) -> None:
    now = changed(revision="r2", harness_version="0.2.0", settings={"dtype": "float32", "device": "cpu"})
    require_comparable(baseline, now)
    told = {d.key: (d.baseline, d.run) for d in differences(baseline.source, Source.model_validate(now))}
    assert told == {
        "revision": ("r1", "r2"),
        "harness_version": ("0.1.0", "0.2.0"),
        "settings.dtype": ("bfloat16", "float32"),
        "settings.device": ("unknown", "cpu"),
    }


def test_a_manifest_of_a_version_without_scoring_numbers_is_refused() -> None:
    with pytest.raises(FileFormatError, match="scoring_version"):
        Source.of({key: value for key, value in MANIFEST.items() if key != "scoring_version"})


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda text: text[:-20], "not valid JSON"),
        (lambda text: text.replace('"format": 1', '"format": 2'), "this version reads 1, not 2"),
        (lambda text: text.replace('"seed": 0', '"sede": 0'), "unknown key 'source.sede'"),
        (lambda _: "[]", "b.json"),
    ],
)
def test_a_spoiled_file_is_refused_with_the_place(baseline: Baseline, tmp_path: Path, edit: Any, problem: str) -> None:
    path = tmp_path / "b.json"
    write_baseline(baseline, path)
    path.write_text(edit(path.read_text()))
    with pytest.raises(FileFormatError, match=problem):
        read_baseline(path)


def test_no_baseline_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such baseline") as missing:
        read_baseline(tmp_path / "none.json")
    assert "--accept" in str(missing.value.hint)
