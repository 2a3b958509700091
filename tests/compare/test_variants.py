"""Variants of a model on disk: what is changed, by how much, and what is left alone."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from harness.compare.variants import COPY, INT4, INT8, Variant, endpoint_file, make_variant, rounded
from harness.config import validate
from harness.errors import StorageError, UsageError
from harness.providers.targets import Endpoint
from harness.providers.weights import RECORD, digest_of

BLOCK = ("model.layers.0.mlp.down_proj.weight", "model.layers.1.self_attn.q_proj.weight")
LEFT = ("model.embed_tokens.weight", "lm_head.weight", "model.layers.0.input_layernorm.weight", "model.layers.0.mlp.bias")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A model's folder in two shards, with a tokenizer."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "source"
    folder.mkdir()
    shapes = {BLOCK[0]: (40, 72), BLOCK[1]: (24, 40), LEFT[0]: (50, 40), LEFT[1]: (50, 40), LEFT[2]: (40,), LEFT[3]: (72,)}
    tensors = {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    first = (BLOCK[0], *LEFT[:2])
    save_file({name: tensors[name] for name in first}, folder / "model-1.safetensors")
    save_file({name: tensors[name] for name in tensors if name not in first}, folder / "model-2.safetensors")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / RECORD).write_text(json.dumps({"sha256": "of the source"}))
    return folder


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def test_a_copy_holds_the_same_bytes(source: Path, tmp_path: Path) -> None:
    assert make_variant(source, tmp_path / "out", COPY) == []
    for path in source.iterdir():
        if path.name != RECORD:
            assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("variant", [Variant(kind="noise", noise=0.1), INT8, INT4])
def test_only_the_matrices_inside_the_blocks_change(source: Path, tmp_path: Path, variant: Variant) -> None:
    assert sorted(make_variant(source, tmp_path / "out", variant)) == sorted(BLOCK)
    before, after = tensors_of(source), tensors_of(tmp_path / "out")
    assert all((before[name] == after[name]).all() for name in LEFT)
    assert all((before[name] != after[name]).any() for name in BLOCK)
    assert {name: (t.shape, t.dtype) for name, t in before.items()} == {name: (t.shape, t.dtype) for name, t in after.items()}
    assert (tmp_path / "out/chat_template.jinja").read_text() == "{{ messages }}"


def test_the_record_says_what_was_done_and_gives_the_new_digest(source: Path, tmp_path: Path) -> None:
    make_variant(source, tmp_path / "out", INT4)
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    assert record["variant"] == {"kind": "int4", "noise": 0.0, "seed": 0, "group": 32}
    assert record["of_sha256"] == "of the source"
    told = digest_of(tmp_path / "out")
    (tmp_path / "out" / RECORD).unlink()
    assert told == digest_of(tmp_path / "out")


def test_noise_has_the_size_asked_for_and_comes_back_from_its_seed(source: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("again", 1), ("b", 2)):
        make_variant(source, tmp_path / name, Variant(kind="noise", noise=0.2, seed=seed))
    before, a, again, b = (tensors_of(folder) for folder in (source, *(tmp_path / name for name in ("a", "again", "b"))))
    for name in BLOCK:
        off = a[name] - before[name]
        assert off.std() / before[name].std() == pytest.approx(0.2, rel=0.1)
        assert abs(off.mean()) < 4 * off.std() / np.sqrt(off.size)
        assert (a[name] == again[name]).all()
        assert (a[name] != b[name]).any()
    first = [(tensors[BLOCK[0]] - before[BLOCK[0]]).ravel()[:960] for tensors in (a, b)]
    second = (a[BLOCK[1]] - before[BLOCK[1]]).ravel()[:960]
    assert max(abs(np.corrcoef(first[0], other)[0, 1]) for other in (first[1], second)) < 0.15


def test_int8_is_torchs_quantisation_by_channel() -> None:
    torch = pytest.importorskip("torch")
    W = torch.randn(16, 48, generator=torch.Generator().manual_seed(0))
    scale = W.abs().amax(1) / 127
    theirs = torch.fake_quantize_per_channel_affine(W, scale, torch.zeros(16, dtype=torch.int32), 0, -127, 127)
    ours = rounded(W.numpy(), 127, None)
    assert np.abs(ours - theirs.numpy()).max() < 1e-6


def test_int4_takes_every_group_by_itself_and_a_short_last_one() -> None:
    W = np.random.default_rng(1).normal(size=(5, 70)).astype(np.float32)
    ours = rounded(W, 7, 32)
    for row in range(5):
        for start in (0, 32, 64):
            part = [float(w) for w in W[row, start : start + 32]]
            scale = max(abs(w) for w in part) / 7
            expected = [round(w / scale) * scale for w in part]
            assert ours[row, start : start + 32].tolist() == pytest.approx(expected, abs=1e-6)
            assert len({round(v / scale) for v in expected}) <= 15


def test_rows_of_zeros_stay_zero() -> None:
    assert (rounded(np.zeros((2, 8), np.float32), 7, 4) == 0).all()


def test_half_precision_is_kept_and_rounded_as_torch_rounds(source: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file as load
    from safetensors.torch import save_file as save

    whole = {name: torch.from_numpy(tensor) for name, tensor in tensors_of(source).items()}
    for kind in (torch.bfloat16, torch.float16):
        half = tmp_path / str(kind)
        half.mkdir()
        save({name: tensor.to(kind) for name, tensor in whole.items()}, half / "model.safetensors")
        make_variant(half, half / "out", INT4)
        after = load(half / "out/model.safetensors")
        for name in BLOCK:
            expected = torch.from_numpy(rounded(whole[name].to(kind).float().numpy(), 7, 32)).to(kind)
            assert after[name].dtype == kind
            assert torch.equal(after[name], expected)


def test_a_folder_without_weights_and_one_that_is_there_are_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no safetensors"):
        make_variant(tmp_path, tmp_path / "out", COPY)
    with pytest.raises(StorageError, match="cannot be written"):
        make_variant(source, source, COPY)


def test_weights_that_are_quantised_already_are_refused(tmp_path: Path) -> None:
    save_file({BLOCK[0]: np.ones((4, 4), np.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match="is I8: only weights in F64"):
        make_variant(tmp_path, tmp_path / "out", INT8)


def test_the_endpoint_file_declares_targets_that_run_the_folders() -> None:
    text = endpoint_file({"plain": Path("/models/a"), "noisy": Path("/models/b")}, "bfloat16")
    endpoint = validate(tomllib.loads(text), Endpoint, where="here")
    assert endpoint.api == "embedded"
    assert {name: target.model for name, target in endpoint.targets.items()} == {"plain": "/models/a", "noisy": "/models/b"}
    assert endpoint.targets["noisy"].tokenizer == "/models/b"
    assert endpoint.targets["noisy"].dtype == "bfloat16"
