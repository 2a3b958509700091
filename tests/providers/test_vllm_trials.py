"""`harness run` on the same weights, once behind a real vLLM server and once in this process: the trials are the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from harness.cli.main import execute

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

CONCEPTS = ("animal", "food", "weather")
ARMS = 4
LIMIT = 4
Trials = dict[str, dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def trials(vllm_url: str, tmp_path_factory: pytest.TempPathFactory) -> Trials:
    """Columns of the trials by who answered: `vllm` and `bfloat16` stray from `float32` in their own ways."""
    asked = {
        "vllm": ["--target", "smollm2-135m-vllm", "--mode", "topk"],
        "chosen": ["--target", "smollm2-135m-vllm"],
        "bfloat16": ["--target", "smollm2-135m"],
        "float32": ["--target", "smollm2-135m", "--dtype", "float32"],
    }
    tables = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARNESS_VLLM_URL", vllm_url)
        for name, target in asked.items():
            out = tmp_path_factory.mktemp("runs") / name
            concepts = [word for concept in CONCEPTS for word in ("--concept", concept)]
            assert execute(["run", "--pack", "lexical", *target, *concepts, "--limit", str(LIMIT), "--out", str(out)]) == 0
            tables[name] = columns(out / "trials.parquet")
    return tables


def columns(path: Path) -> dict[str, np.ndarray]:
    table = pq.read_table(path)
    return {name: np.array(table[name].to_pylist()) for name in table.column_names}


def test_both_ask_the_same_trials(trials: Trials) -> None:
    assert len(trials["vllm"]["arm"]) == len(CONCEPTS) * ARMS * LIMIT * LIMIT
    for name in ("concept", "arm", "sentence_id", "injection_id", "k"):
        assert trials["vllm"][name].tolist() == trials["bfloat16"][name].tolist()


@pytest.mark.parametrize("metric", ["mass_injected", "delta_mass", "delta_log_odds"])
def test_vllms_bounds_hold_what_the_whole_vocabulary_gives(trials: Trials, metric: str) -> None:
    exact = trials["float32"][f"{metric}_low"]
    assert exact.tolist() == trials["float32"][f"{metric}_high"].tolist()
    noise = np.abs(trials["bfloat16"][f"{metric}_low"] - exact)
    low, high = trials["vllm"][f"{metric}_low"], trials["vllm"][f"{metric}_high"]
    outside = np.maximum(np.maximum(low - exact, exact - high), 0)
    print(f"{metric}: vLLM's bounds are {np.mean(high - low):.4f} apart; the float32 value lies {outside.mean():.4f} outside")
    print(f"    (largest {outside.max():.4f}); embedded bfloat16 lies {noise.mean():.4f} off (largest {noise.max():.4f})")
    assert 0 < noise.mean() < 0.1
    assert outside.mean() < 1.5 * noise.mean()
    assert outside.max() < 3 * noise.max()
    assert np.mean(high - low) < 5 * noise.mean(), "the bounds are too wide to compare anything"


@pytest.mark.parametrize("metric", ["delta_mass", "delta_log_odds"])
def test_chosen_ids_give_the_shift_itself_where_a_list_gives_bounds(trials: Trials, metric: str) -> None:
    exact = trials["float32"][f"{metric}_low"]
    assert trials["chosen"][f"{metric}_low"].tolist() == trials["chosen"][f"{metric}_high"].tolist()
    noise = np.abs(trials["bfloat16"][f"{metric}_low"] - exact)
    off = np.abs(trials["chosen"][f"{metric}_low"] - exact)
    print(f"{metric}: chosen ids {off.mean():.4f} off from float32, embedded bfloat16 {noise.mean():.4f}")
    assert off.mean() < 1.5 * noise.mean()
    assert set(trials["chosen"]["identified"]) <= {"up", "down"}


def test_as_many_lexicon_tokens_are_counted_within_the_noise_of_bfloat16(trials: Trials) -> None:
    noise = np.abs(trials["bfloat16"]["count_injected"] - trials["float32"]["count_injected"])
    found = np.abs(trials["vllm"]["count_injected"] - trials["float32"]["count_injected"])
    print(f"lexicon tokens in the top 30, off from float32: vLLM {found.mean():.3f}, embedded bfloat16 {noise.mean():.3f}")
    assert noise.mean() > 0
    assert found.mean() < 2 * noise.mean()


@pytest.mark.parametrize("metric", ["count_success", "top1_changed"])
def test_nearly_all_trials_are_judged_alike(trials: Trials, metric: str) -> None:
    agree = np.mean(trials["vllm"][metric] == trials["bfloat16"][metric])
    print(f"{metric}: vLLM and the embedded engine agree in {agree:.1%} of the trials")
    assert agree > 0.85
