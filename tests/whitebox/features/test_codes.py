"""Sparse codes against the dense ones, and dictionaries in either layout of SAELens."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import sparse

torch = pytest.importorskip("torch")
if find_spec("sae_lens") is None:
    pytest.skip("needs sae_lens (the extra `whitebox`)", allow_module_level=True)

from harness.errors import FileFormatError  # noqa: E402
from harness.whitebox.features.codes import Codes, Encoder, KeptCodes, open_encoder, training_record  # noqa: E402
from harness.whitebox.sources.dictionaries import Located, local_dictionaries, locate  # noqa: E402
from harness.whitebox.sources.sites import Site  # noqa: E402

from ..tiny_models import WIDTH  # noqa: E402
from ..tiny_sources import D_SAE, damage, make_older, write_sae  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]
SITE = Site(layer=1, submodule="resid_post")
GPT2_LAYOUT = {
    "architecture": "standard",
    "activation_fn_str": "topk",
    "activation_fn_kwargs": {"k": 4},
    "normalize_activations": "layer_norm",
}


def located(folder: Path) -> Located:
    (dictionary,) = local_dictionaries("tiny", folder, lambda _line: None)
    return locate(dictionary)


def activations(n: int = 50) -> Any:
    return torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(3)) * 2 + 1


def weights(encoder: Encoder) -> dict[str, np.ndarray]:
    return {name: tensor.numpy().astype(np.float64) for name, tensor in encoder._sae.state_dict().items()}


def dense(codes: Codes) -> np.ndarray:
    matrix = sparse.coo_matrix((codes.values, (codes.rows, codes.features)), shape=(codes.n_rows, D_SAE))
    return matrix.toarray()


def by_hand(W: dict[str, np.ndarray], x: np.ndarray, k: int | None) -> np.ndarray:
    """The codes of a ReLU or TopK dictionary, from the definition."""
    before = (x - W["b_dec"]) @ W["W_enc"] + W["b_enc"]
    if k is not None:
        before = np.where(before >= np.sort(before, axis=1)[:, [-k]], before, 0)
    return np.maximum(before, 0)


@pytest.mark.parametrize("architecture", ["topk", "standard"])
@pytest.mark.parametrize("cells", [1, 7 * D_SAE, 1 << 24])
def test_codes_are_the_dense_activations_above_zero_in_slices_of_any_size(
    architecture: str, cells: int, tmp_path: Path
) -> None:
    write_sae(tmp_path, SITE, architecture=architecture)
    opened = open_encoder(located(tmp_path))
    codes = Encoder(opened._sae, cells=cells).encode(activations())
    expected = by_hand(weights(opened), activations().numpy().astype(np.float64), 4 if architecture == "topk" else None)
    np.testing.assert_allclose(dense(codes), expected, rtol=1e-4, atol=1e-4)
    assert (codes.values > 0).all()
    order = codes.rows.astype(np.int64) * D_SAE + codes.features
    assert (np.diff(order) > 0).all()


def test_a_dictionary_in_the_older_layout_encodes_standardised_activations(tmp_path: Path) -> None:
    make_older(write_sae(tmp_path, SITE), **GPT2_LAYOUT)
    encoder = open_encoder(located(tmp_path))
    x = activations().numpy().astype(np.float64)
    centred = x - x.mean(1, keepdims=True)
    expected = by_hand(weights(encoder), centred / x.std(1, ddof=1, keepdims=True), 4)
    np.testing.assert_allclose(dense(encoder.encode(activations())), expected, rtol=1e-3, atol=1e-3)


def test_an_older_relu_dictionary_opens_too(tmp_path: Path) -> None:
    make_older(write_sae(tmp_path, SITE, architecture="standard"), activation_fn_str="relu", normalize_activations="none")
    encoder = open_encoder(located(tmp_path))
    expected = by_hand(weights(encoder), activations().numpy().astype(np.float64), None)
    np.testing.assert_allclose(dense(encoder.encode(activations())), expected, rtol=1e-4, atol=1e-4)


def test_tokens_that_training_left_out_have_no_codes(tmp_path: Path) -> None:
    sae = write_sae(tmp_path, SITE)
    (sae / "manifest.json").write_text(json.dumps({"norm_limit": 30.0, "quality": {"l0": 4.0}}))
    encoder = open_encoder(located(tmp_path))
    x = activations()
    x[3] *= 100
    codes = encoder.encode(x)
    assert 3 not in codes.rows
    assert set(codes.rows.tolist()) == set(range(50)) - {3}
    assert encoder.fit(x).tolist() == [number != 3 for number in range(50)]
    assert training_record(sae)["quality"] == {"l0": 4.0}
    assert training_record(tmp_path) == {}


@pytest.mark.parametrize("name", ["b_enc", "W_enc"])
def test_weights_that_are_not_finite_are_told(name: str, tmp_path: Path) -> None:
    damage(write_sae(tmp_path, SITE), name)
    with pytest.raises(FileFormatError, match=f"{name} has NaN or infinity"):
        open_encoder(located(tmp_path))


def test_what_sae_lens_cannot_load_is_told(tmp_path: Path) -> None:
    sae = write_sae(tmp_path, SITE)
    config = json.loads((sae / "cfg.json").read_text())
    (sae / "cfg.json").write_text(json.dumps(config | {"architecture": "unheard-of"}))
    with pytest.raises(FileFormatError, match="sae_lens cannot load it"):
        open_encoder(located(tmp_path))


@pytest.mark.parametrize("limit", [1, 20, 33, 50, 80])
def test_the_codes_that_are_kept_are_those_of_the_first_rows(limit: int) -> None:
    rng = np.random.default_rng(0)
    matrix = (rng.random((50, D_SAE)) * (rng.random((50, D_SAE)) < 0.2)).astype(np.float32)
    matrix[7] = 0  # a row without codes
    kept = KeptCodes(limit)
    for start in (0, 20, 40):
        part = matrix[start : start + 20]
        rows, features = part.nonzero()
        values = part[rows, features]
        kept.add(Codes(rows=rows.astype(np.int32), features=features.astype(np.int32), values=values, n_rows=len(part)))
    found = kept.tensors()
    n_rows = min(limit, 50)
    rebuilt = sparse.csr_matrix((found["values"], found["indices"], found["indptr"]), shape=(n_rows, D_SAE))
    np.testing.assert_array_equal(rebuilt.toarray(), matrix[:n_rows])
