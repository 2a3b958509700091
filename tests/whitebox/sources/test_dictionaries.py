"""Reading dictionaries in SAELens' layout: what is believed, what is refused, and the traps of published ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from harness.errors import EndpointError, FileFormatError, UsageError
from harness.whitebox.sources import dictionaries
from harness.whitebox.sources.dictionaries import (
    Dictionary,
    Directions,
    alike,
    choose,
    load,
    local_dictionaries,
    locate,
    open_dictionaries,
)
from harness.whitebox.sources.sites import Site
from harness.whitebox.sources.sources import find_source


def write(folder: Path, W_dec: np.ndarray, hook_name: str, *, old: bool = False, **config: Any) -> Path:
    """A folder as `SAE.save_model` leaves it: version 6 keeps the hook point under `metadata`."""
    folder.mkdir(parents=True)
    top = {"d_in": W_dec.shape[1], "d_sae": W_dec.shape[0], "normalize_activations": "none", **config}
    told = {"hook_name": hook_name, "prepend_bos": False, "context_size": 64}
    (folder / "cfg.json").write_text(json.dumps({**top, **told} if old else {**top, "metadata": told}))
    save_file({"W_dec": W_dec, "b_dec": np.zeros(W_dec.shape[1], np.float32)}, folder / "sae_weights.safetensors")
    return folder


def rows(n: int = 40, d: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def read(folder: Path) -> Directions:
    (dictionary,) = local_dictionaries("mine", folder, print)
    return load(locate(dictionary))


@pytest.mark.parametrize("old", [False, True])
def test_both_layouts_give_the_site_and_unit_rows(tmp_path: Path, old: bool) -> None:
    W_dec = 3 * rows()
    write(tmp_path / "deep" / "nested", W_dec, "blocks.6.hook_resid_post", old=old)
    (dictionary,) = local_dictionaries("mine", tmp_path, print)
    located = locate(dictionary)
    assert (str(dictionary.site), dictionary.sae_id) == ("resid_post.6", "blocks.6.hook_resid_post")
    assert (located.config.prepend_bos, located.config.context_size) == (False, 64)
    directions = load(located)
    np.testing.assert_allclose(directions.unit, W_dec / np.linalg.norm(W_dec, axis=1, keepdims=True), rtol=1e-6)
    assert (directions.d_sae, directions.n_dead) == (40, 0)


def test_rows_are_the_same_however_few_are_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a", rows(), "blocks.1.hook_mlp_out")
    whole = read(tmp_path)
    monkeypatch.setattr(dictionaries, "ROWS", 7)
    np.testing.assert_array_equal(read(tmp_path).unit, whole.unit)


def test_rows_of_zeros_are_dead_and_the_others_keep_their_numbers(tmp_path: Path) -> None:
    W_dec = rows()
    W_dec[[0, 17, 39]] = 0
    W_dec[5] *= 1e-30
    write(tmp_path / "a", W_dec, "blocks.0.hook_attn_out")
    directions = read(tmp_path)
    assert directions.n_dead == 3
    assert directions.features.tolist() == [i for i in range(40) if i not in (0, 17, 39)]
    np.testing.assert_allclose(np.linalg.norm(directions.unit, axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused_naming_the_feature(tmp_path: Path, bad: float) -> None:
    W_dec = rows()
    W_dec[23, 4] = bad
    write(tmp_path / "a", W_dec, "blocks.0.hook_attn_out")
    with pytest.raises(FileFormatError, match="NaN or infinity, first in feature 23"):
        read(tmp_path)


def test_a_width_that_is_not_the_configured_one_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a", rows(), "blocks.0.hook_attn_out", d_in=9)
    with pytest.raises(FileFormatError, match=r"W_dec of blocks\.0\.hook_attn_out has d_model 8, its declaration says 9"):
        read(tmp_path)


def test_a_declared_sources_width_counts_whatever_the_configuration_says(tmp_path: Path) -> None:
    write(tmp_path / "3-mlp-sm", rows(), "blocks.3.hook_mlp_out")
    (dictionary,) = local_dictionaries("pythia-70m", tmp_path, print)
    with pytest.raises(FileFormatError, match="has d_sae 40, its declaration says 32768"):
        load(locate(dictionary))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_number_types_are_read_as_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = write(tmp_path / "a", rows(), "blocks.0.hook_mlp_out")
    W_dec = torch.from_numpy(rows()).to(dtype)
    save_torch({"W_dec": W_dec}, folder / "sae_weights.safetensors")
    expected = torch.nn.functional.normalize(W_dec.double(), dim=1).float().numpy()
    directions = read(tmp_path)
    assert directions.unit.dtype == np.float32
    np.testing.assert_allclose(directions.unit, expected, atol=1e-6)


def test_a_file_without_a_decoder_or_that_is_no_safetensors_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", rows(), "blocks.0.hook_mlp_out")
    save_file({"W_enc": rows()}, folder / "sae_weights.safetensors")
    with pytest.raises(FileFormatError, match="no matrix W_dec") as error:
        read(tmp_path)
    assert error.value.hint == "tensors there: W_enc"
    (folder / "sae_weights.safetensors").write_bytes(b"no tensors")
    with pytest.raises(FileFormatError, match="not a readable safetensors file"):
        read(tmp_path)


def test_a_configuration_that_is_no_json_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", rows(), "blocks.0.hook_mlp_out")
    (folder / "cfg.json").write_text("{")
    with pytest.raises(FileFormatError, match=r"cfg\.json: not valid JSON"):
        read(tmp_path)


def test_other_hook_points_are_passed_over_with_a_note(tmp_path: Path) -> None:
    write(tmp_path / "e-res-sm", rows(), "blocks.0.hook_resid_pre")
    write(tmp_path / "0-res-sm", rows(), "blocks.0.hook_resid_post")
    notes: list[str] = []
    found = local_dictionaries("pythia-70m", tmp_path, notes.append)
    assert [str(d.site) for d in found] == ["resid_post.0"]
    assert len(notes) == 1
    assert "blocks.0.hook_resid_pre" in notes[0]


def test_two_folders_that_claim_one_site_are_refused(tmp_path: Path) -> None:
    for name in ("v5_32k_layer_8.pt", "copy"):
        write(tmp_path / name, rows(), "blocks.9.hook_resid_post")
    with pytest.raises(UsageError, match=r"both say that they are blocks\.9\.hook_resid_post"):
        local_dictionaries("mine", tmp_path, print)


def test_the_folder_of_layer_8_that_holds_layer_9_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "v5_32k_layer_8.pt", rows(), "blocks.9.hook_resid_post")
    with pytest.raises(FileFormatError, match=r"says that it is blocks\.9\.hook_resid_post, but the folder is that of layer 8"):
        local_dictionaries("gpt2-small", tmp_path, print)


def test_a_fetched_configuration_of_another_site_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "snapshots" / "c0ffee" / "v5_32k_layer_8.pt", rows(), "blocks.9.hook_resid_post")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda _, name, **__: tmp_path / "snapshots" / "c0ffee" / name)
    (wanted,) = choose(open_dictionaries("gpt2-small", None, print), [Site.parse("resid_post.8")])
    with pytest.raises(FileFormatError, match=r"says that it is blocks\.9\.hook_resid_post, expected blocks\.8"):
        locate(wanted)


def test_what_is_fetched_comes_from_the_declared_place_and_tells_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "snapshots" / "c0ffee" / "v5_32k_layer_9.pt", rows(), "blocks.9.hook_resid_post")
    asked = []

    def fetch(repository: str, name: str, *, revision: str | None) -> str:
        asked.append((repository, name, revision))
        return str(tmp_path / "snapshots" / "c0ffee" / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    (wanted,) = choose(open_dictionaries("gpt2-small", None, print), [Site.parse("resid_post.9")])
    assert locate(wanted).revision == "c0ffee"
    assert asked[0] == ("jbloom/GPT2-Small-OAI-v5-32k-resid-post-SAEs", "v5_32k_layer_9.pt/sae_weights.safetensors", None)


def test_without_a_hub_the_error_has_the_command_that_fetches(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_: Any, **__: Any) -> str:
        raise LocalEntryNotFoundError("cannot reach the hub")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    (wanted,) = choose(open_dictionaries("pythia-70m", None, print), [Site.parse("mlp_out.2")])
    with pytest.raises(
        EndpointError, match=r"2-mlp-sm/sae_weights\.safetensors cannot be fetched: cannot reach the hub"
    ) as error:
        locate(wanted)
    assert error.value.hint is not None
    assert "hf download ctigges/pythia-70m-deduped__mlp-sm_processed" in error.value.hint


def test_an_empty_folder_a_missing_one_and_a_missing_site_are_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no dictionary of mine there"):
        open_dictionaries("mine", tmp_path, print)
    with pytest.raises(UsageError, match="no such folder"):
        open_dictionaries("mine", tmp_path / "none", print)
    with pytest.raises(UsageError, match=r"no dictionary for the site resid_mid\.1"):
        choose(open_dictionaries("pythia-70m", None, print), [Site.parse("resid_mid.1")])


def sketch(W_dec: np.ndarray) -> np.ndarray:
    unit = W_dec / np.maximum(np.linalg.norm(W_dec, axis=1, keepdims=True), 1e-30)
    alive = np.flatnonzero(np.any(W_dec != 0, axis=1)).astype(np.int32)
    return Directions(unit=unit[alive], features=alive, d_sae=len(W_dec)).sketch()


def test_a_copy_is_alike_even_rounded_rescaled_and_with_dead_rows_and_another_is_not() -> None:
    W_dec = rows(500, 32)
    copy = 2 * W_dec.astype(np.float16).astype(np.float32)
    copy[::5] = 0
    assert alike(sketch(W_dec), sketch(copy))
    assert not alike(sketch(W_dec), sketch(rows(500, 32, seed=1)))
    assert not alike(sketch(W_dec), sketch(W_dec[::-1].copy()))
    assert not alike(sketch(W_dec), sketch(rows(500, 16)))
    assert not alike(sketch(np.zeros((500, 32), np.float32)), sketch(np.zeros((500, 32), np.float32)))


def test_a_dictionary_of_nowhere_is_a_programming_error() -> None:
    site = find_source("pythia-70m").sites()[0]
    with pytest.raises(ValueError, match="neither a folder nor a release"):
        locate(Dictionary(source="x", site=site))
