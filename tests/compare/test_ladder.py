"""The ladder's fixture: what it claims, what follows from it, and that it can be made anew."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy.stats import norm

from harness.compare.ladder import FILE, VERSION, Ladder, load_ladder, reach
from harness.compare.margin import DRAWS, LISTS, ONE_SIDED, decide
from harness.errors import FileFormatError
from harness.stats.distances import bootstrap_mean

STATISTICS = (LISTS, ONE_SIDED, DRAWS)

WITHIN_BENIGN = {(model, "int8 in groups against float32") for model in ("smollm2-135m", "gemma3-270m")}
"""Material pairs that are no farther apart than benign ones are, as the page says."""


def decisions(ladder: Ladder, statistic: str, kind: str) -> dict[tuple[str, str], str]:
    """What the judge makes of the stored numbers, by model and pair."""
    margin = ladder.margin(statistic)
    assert margin is not None
    found = {}
    for pair in ladder.pairs:
        if pair.kind == kind:
            interval = bootstrap_mean(np.array(pair.values[statistic]), confidence=0.9)
            assert interval is not None
            found[pair.model, pair.name] = decide(*interval, margin)
    return found


def test_every_benign_pair_is_called_equivalent_by_every_statistic() -> None:
    for statistic in STATISTICS:
        assert set(decisions(load_ladder(), statistic, "benign").values()) == {"equivalent"}, statistic


def test_every_material_pair_is_called_different_but_those_that_the_page_names() -> None:
    found = decisions(load_ladder(), LISTS, "material")
    assert {pair for pair, decision in found.items() if decision != "different"} == WITHIN_BENIGN
    assert len(found) > 10


def test_draws_tell_four_bits_and_another_model_but_not_eight_bits_as_the_page_says() -> None:
    for statistic in (ONE_SIDED, DRAWS):
        found = decisions(load_ladder(), statistic, "material")
        coarse = {decision for (_, name), decision in found.items() if any(w in name for w in ("int4", "10%", "gemma"))}
        fine = {decision for (_, name), decision in found.items() if "int8" in name}
        assert (coarse, fine) == ({"different"}, {"equivalent"}), statistic


def test_both_models_bring_benign_and_material_pairs() -> None:
    pairs = load_ladder().pairs
    assert {(pair.model, pair.kind) for pair in pairs} == {
        (model, kind) for model in ("smollm2-135m", "gemma3-270m") for kind in ("benign", "material")
    }
    variants = " ".join(pair.variant for pair in pairs)
    for word in ("bfloat16", "vllm", "alone", "int8", "int4", "noise", "template", "system", "temperature"):
        assert word in variants


def test_the_margin_is_the_reach_of_the_stored_benign_pairs() -> None:
    ladder = load_ladder()
    benign = [np.array(pair.values[LISTS]) for pair in ladder.pairs if pair.kind == "benign"]
    assert ladder.margin(LISTS) == pytest.approx(reach(benign, n_prompts=ladder.margin_prompts), rel=0.01)


def test_a_statistic_that_was_not_measured_has_neither_margin_nor_rungs() -> None:
    assert load_ladder().margin("continuations") is None
    assert load_ladder().rungs("continuations") == []


def test_rungs_are_mean_distances_the_nearest_first() -> None:
    ladder = load_ladder()
    rungs = ladder.rungs(LISTS)
    assert [rung.distance for rung in rungs] == sorted(rung.distance for rung in rungs)
    assert len(rungs) == len(ladder.pairs)
    by_name = {(pair.model, pair.name): sum(pair.values[LISTS]) / len(pair.values[LISTS]) for pair in ladder.pairs}
    assert all(by_name[rung.model, rung.variant] == pytest.approx(rung.distance) for rung in rungs)


def test_the_file_is_small_and_has_a_distance_for_each_prompt() -> None:
    assert FILE.stat().st_size < 200_000
    ladder = load_ladder()
    assert {len(values) for pair in ladder.pairs for values in pair.values.values()} == {ladder.n_prompts}
    assert {key for pair in ladder.pairs for key in pair.values} == set(STATISTICS)


@pytest.mark.parametrize("version", [VERSION + 1, "1", None])
def test_a_file_of_another_version_is_refused_with_a_hint(tmp_path: Path, version: object) -> None:
    path = tmp_path / "ladder.json"
    path.write_text(json.dumps(json.loads(FILE.read_text()) | {"version": version}))
    with pytest.raises(FileFormatError, match=f"version {version!r}, expected {VERSION}") as caught:
        load_ladder(path)
    assert "compare_ladder.py" in str(caught.value.hint)


def test_a_file_that_is_no_json_or_has_an_unknown_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_text("{")
    with pytest.raises(FileFormatError, match="not valid JSON"):
        load_ladder(path)
    other = tmp_path / "other.json"
    other.write_text(json.dumps(json.loads(FILE.read_text()) | {"margin": 1}))
    with pytest.raises(FileFormatError, match="margin"):
        load_ladder(other)


def test_the_reach_of_normal_distances_is_the_quantile_of_their_upper_ends() -> None:
    rng = np.random.default_rng(1)
    near, far = rng.normal(0.01, 0.01, 4000), rng.normal(0.04, 0.02, 4000)
    expected = far.mean() + (norm.ppf(0.95) + norm.ppf(0.99)) * far.std() / 8
    assert reach([near, far], n_prompts=64) == pytest.approx(expected, rel=0.02)
    assert reach([near, far, near, near], n_prompts=64) == pytest.approx(expected, rel=0.02)
    assert reach([far], n_prompts=16) > reach([far], n_prompts=64)


def test_a_benign_pair_is_called_equivalent_within_its_own_reach() -> None:
    rng = np.random.default_rng(2)
    values = rng.gamma(4.0, 0.01, 96)
    margin = reach([values], n_prompts=64)
    called = [
        decide(*interval, margin)
        for seed in range(200)
        if (interval := bootstrap_mean(values[rng.integers(96, size=64)], confidence=0.9, n=299, seed=seed))
    ]
    assert called.count("equivalent") >= 190


# Made anew, from a tiny model in the place of a real one


@pytest.fixture
def scripts(root: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, ModuleType]:
    """The scripts that ask and that tell."""
    monkeypatch.syspath_prepend(root / "reports/benchmarks")
    import compare_ladder
    import compare_ladder_lists

    return compare_ladder_lists, compare_ladder


def tiny_model(folder: Path) -> None:
    """A random Llama with a tokenizer of whole words."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = [f"w{i}" for i in range(60)]
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=len(words), max_position_embeddings=64, initializer_range=0.5, **shape)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))


def test_a_piece_made_anew_has_the_layout_of_the_file(
    tmp_path: Path, scripts: tuple[ModuleType, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    from harness.paths import model_dir

    lists, telling = scripts
    tiny_model(model_dir(lists.SMOLLM))
    raw = tmp_path / "raw"
    raw.mkdir()
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{i}" for i in rng.integers(60, size=6)) for _ in range(12)]
    (raw / "prompts.json").write_text(json.dumps([[str(i), text, "tie" if i > 8 else "plain"] for i, text in enumerate(texts)]))
    wanted = [one for one in lists.served() if one.model == lists.SMOLLM and one.name in ("float32", "bfloat16", "int4")]
    monkeypatch.setattr(lists, "served", lambda: wanted)
    monkeypatch.setattr(telling, "TRIALS", 5)
    asyncio.run(lists.ask_all(raw, ""))
    kept = telling.Lists(raw)
    measured = [telling.measure(held, kept) for held in telling.pairs() if kept.has(held)]
    path = tmp_path / "ladder.json"
    path.write_text(telling.stored(telling.ladder(measured, 3, kept.versions)))
    made = load_ladder(path)
    assert {pair.name for pair in made.pairs} == {
        "bfloat16 against float32", "int4 against float32", "temperature 0.9 against float32"
    }  # fmt: skip
    assert {key for pair in made.pairs for key in pair.values} == set(STATISTICS)
    means = {pair.name: np.mean(pair.values[LISTS]) for pair in made.pairs}
    assert 0 < means["bfloat16 against float32"] < means["int4 against float32"]
    assert made.n_prompts == len(texts)
    assert set(made.made_with) == {"torch", "transformers"}
    directions = {
        name: telling.direction(kept.get(lists.SMOLLM, name), kept.get(lists.SMOLLM, "float32"))
        for name in ("bfloat16", "int4")
    }
    assert "| smollm2-135m | int4 against float32 | material |" in telling.page(measured, made, directions)
