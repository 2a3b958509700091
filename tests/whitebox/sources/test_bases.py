"""Dictionaries of other directions against plain formulas, loaded by SAELens itself."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.numpy import load_file  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402
from tokenizers.models import WordLevel  # noqa: E402
from tokenizers.pre_tokenizers import WhitespaceSplit  # noqa: E402

from harness.errors import UsageError  # noqa: E402
from harness.whitebox.sources import bases, packing  # noqa: E402
from harness.whitebox.sources.bases import Basis, basis_dictionaries  # noqa: E402
from harness.whitebox.sources.corpus import Corpus, make_corpus  # noqa: E402
from harness.whitebox.sources.dictionaries import load as load_directions  # noqa: E402
from harness.whitebox.sources.dictionaries import local_dictionaries, locate  # noqa: E402
from harness.whitebox.sources.models import LocalModel, load_model  # noqa: E402
from harness.whitebox.sources.sites import Site  # noqa: E402
from harness.whitebox.training import training  # noqa: E402
from harness.whitebox.training.sae_quality import RandomDictionary  # noqa: E402

from ..tiny_models import VOCABULARY, WIDTH, changing, gemma3, gpt2, llama, neox, part  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(find_spec("sae_lens") is None, reason="needs sae_lens (the extra `whitebox`)"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

SITE = Site(layer=1, submodule="resid_post")
MLP = Site(layer=0, submodule="mlp_out")
SMALL = {"d_sae": 40, "k": 4}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> LocalModel:
    folder = tmp_path_factory.mktemp("tiny")
    llama().save_pretrained(folder)
    tokenizer = Tokenizer(WordLevel({f"w{number}": number for number in range(VOCABULARY)}, unk_token="w0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    return load_model("tiny", lambda _: None, dtype="float32", folder=folder)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    rng = np.random.default_rng(0)
    words = [[f"w{number}" for number in rng.zipf(1.3, 40) % VOCABULARY] for _ in range(60)]
    return make_corpus([" ".join(paragraph) for paragraph in words], source="own")


def write(source: LocalModel, corpus: Corpus, out: Path, basis: Basis, sites: tuple[Site, ...] = (SITE,)) -> list[str]:
    told: list[str] = []
    assert basis_dictionaries(source, sites, basis, corpus, out, told.append) == out
    return told


def sae_of(out: Path, site: Site = SITE) -> Any:
    return training.import_sae_lens().SAE.load_from_disk(out / str(site), device="cpu").requires_grad_(False)


def activations_of(source: LocalModel, corpus: Corpus, site: Site = SITE) -> Any:
    """All but each context's first position, from one forward pass a context and a hook of its own."""
    found = []
    for context in packing.contexts(corpus.documents, source.tokenizer):

        def keep(x: Any) -> Any:
            found.append(x[0, 1:])
            return x

        with changing(source.model, site, keep), torch.no_grad():
            source.model(torch.tensor([context]))
    return torch.cat(found)


def test_a_random_basis_encodes_the_largest_projections_of_what_differs_from_the_mean(
    source: LocalModel, corpus: Corpus, tmp_path: Path
) -> None:
    write(source, corpus, tmp_path, Basis(kind="random", **SMALL))
    sae, x = sae_of(tmp_path), activations_of(source, corpus)
    assert torch.allclose(sae.b_dec, x.mean(0), atol=1e-4)
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(40), atol=1e-5)
    control = RandomDictionary(x, d_sae=40, k=4, seed=0)
    control.W_dec = sae.W_dec.detach()
    with torch.no_grad():
        assert torch.allclose(sae.encode(x), control.encode(x), atol=1e-3)
    manifest = json.loads((tmp_path / str(SITE) / "manifest.json").read_text())
    assert (manifest["d_sae"], manifest["n_tokens"], manifest["quality"]) == (40, len(x), None)
    assert manifest["key"]["basis"]["kind"] == "random"
    assert manifest["key"]["model_sha256"] == source.digest


def test_two_sites_and_two_seeds_draw_different_random_directions(source: LocalModel, corpus: Corpus, tmp_path: Path) -> None:
    write(source, corpus, tmp_path / "a", Basis(kind="random", **SMALL), (SITE, MLP))
    write(source, corpus, tmp_path / "b", Basis(kind="random", seed=1, **SMALL))
    rows = [sae_of(tmp_path / "a").W_dec, sae_of(tmp_path / "a", MLP).W_dec, sae_of(tmp_path / "b").W_dec]
    for i in range(3):
        for j in range(i):
            assert float((rows[i] * rows[j]).sum(1).abs().mean()) < 0.4


def test_matched_random_directions_have_the_activations_covariance() -> None:
    rng = np.random.default_rng(3)
    mixing = rng.standard_normal((6, 6)) * np.array([3.0, 2, 1, 1, 0.5, 0])
    covariance = mixing @ mixing.T
    rows = bases.random_rows(200_000, covariance, rng)
    assert np.cov(rows.T) == pytest.approx(covariance, abs=0.02 * np.abs(covariance).max())


def test_matched_directions_follow_the_site(source: LocalModel, corpus: Corpus, tmp_path: Path) -> None:
    write(source, corpus, tmp_path / "plain", Basis(kind="random", d_sae=4000, k=4))
    write(source, corpus, tmp_path / "matched", Basis(kind="random", d_sae=4000, k=4, matched=True))
    covariance = torch.cov(activations_of(source, corpus).T)

    def variance(sae: Any) -> float:
        """Of the activations along a direction, on average."""
        return float(torch.einsum("nd,de,ne->n", sae.W_dec, covariance, sae.W_dec).mean())

    plain, matched = (variance(sae_of(tmp_path / name)) for name in ("plain", "matched"))
    assert plain == pytest.approx(float(covariance.trace()) / WIDTH, rel=0.1)
    assert matched > 1.5 * plain


def test_activations_of_an_outlying_norm_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).standard_normal((900, 4)).astype(np.float32) + np.float32(2)
    parts = [np.concatenate([part_, np.full((1, 4), 1e4, np.float32)]) for part_ in np.array_split(rows, 3)]
    monkeypatch.setattr(bases.activations, "read", lambda *_: ({SITE: torch.from_numpy(part_)} for part_ in parts))
    seen = bases.look(None, [[0]], [SITE])[SITE]
    assert seen.n_tokens == 900
    assert seen.mean == pytest.approx(rows.mean(0), abs=1e-5)
    assert seen.covariance == pytest.approx(np.cov(rows.T, bias=True), abs=1e-4)


@pytest.mark.parametrize("build", [llama, gpt2, neox, gemma3])
def test_a_neurons_row_is_the_way_the_stream_moves_when_it_alone_is_active(build: Any) -> None:
    model, layer = build(), 1
    rows = bases.unit(bases.neuron_rows(model, Site(layer=layer, submodule="mlp_out")))
    mlp, down = part(model, layer, "mlp_out"), part(model, layer, "down")
    wide = rows.shape[0]
    for neuron in (0, wide - 1):
        hidden = torch.zeros(1, 1, wide)
        hidden[..., neuron] = 1

        def alone(_module: Any, _inputs: Any, hidden: Any = hidden) -> Any:
            return (hidden,)

        outputs: list[Any] = []
        hooks = [
            down.register_forward_pre_hook(alone),
            mlp.register_forward_hook(lambda _m, _i, output, seen=outputs: seen.append(output)),
        ]
        if getattr(down, "bias", None) is not None:
            torch.nn.init.zeros_(down.bias)
        with torch.no_grad():
            model(torch.tensor([[5]]))
        for hook in hooks:
            hook.remove()
        written = outputs[0][0, 0]
        assert rows[neuron] == pytest.approx((written / written.norm()).numpy(), abs=1e-4)


def test_neurons_are_taken_all_and_read_back_as_directions(source: LocalModel, corpus: Corpus, tmp_path: Path) -> None:
    write(source, corpus, tmp_path, Basis(kind="neurons", **SMALL), (MLP,))
    down = source.model.model.layers[0].mlp.down_proj.weight.detach()
    (found,) = local_dictionaries("tiny", tmp_path, print)
    assert found.site == MLP
    directions = load_directions(locate(found))
    assert directions.d_sae == down.shape[1] == 48
    assert directions.unit == pytest.approx((down / down.norm(dim=0)).T.numpy(), abs=1e-6)


def test_the_unembedding_gives_the_first_ids_or_the_most_frequent(source: LocalModel, corpus: Corpus, tmp_path: Path) -> None:
    head = source.model.lm_head.weight.detach()
    head = head / head.norm(dim=1, keepdim=True)
    write(source, corpus, tmp_path / "first", Basis(kind="unembedding", **SMALL))
    assert torch.allclose(sae_of(tmp_path / "first").W_dec, head[:40], atol=1e-6)
    write(source, corpus, tmp_path / "frequent", Basis(kind="unembedding", tokens="frequent", d_sae=10, k=4))
    ids = load_file(tmp_path / "frequent" / str(SITE) / bases.TOKEN_IDS)["token_ids"]
    assert torch.allclose(sae_of(tmp_path / "frequent").W_dec, head[torch.from_numpy(ids).long()], atol=1e-6)
    seen = np.bincount([i for context in packing.contexts(corpus.documents, source.tokenizer) for i in context])
    assert sorted(seen[ids], reverse=True) == sorted(seen, reverse=True)[:10]


def test_no_more_rows_are_made_than_the_vocabulary_has(source: LocalModel, corpus: Corpus, tmp_path: Path) -> None:
    write(source, corpus, tmp_path, Basis(kind="unembedding", d_sae=4096, k=4))
    assert sae_of(tmp_path).W_dec.shape == (VOCABULARY, WIDTH)


def test_what_is_there_is_kept_and_what_was_made_otherwise_is_replaced(
    source: LocalModel, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    basis = Basis(kind="random", **SMALL)
    write(source, corpus, tmp_path, basis)
    first = sae_of(tmp_path).W_dec
    left = tmp_path / ".resid_post.2"  # a process was killed while it wrote this one
    left.mkdir()
    (left / "sae_weights.safetensors").write_bytes(b"half")
    assert [found.site for found in local_dictionaries("tiny", tmp_path, print)] == [SITE]
    with monkeypatch.context() as context:
        context.setattr(bases.activations, "read", None)  # nothing is read again
        told = write(source, corpus, tmp_path, basis)
    assert "kept from before" in told[0]
    write(source, corpus, tmp_path, Basis(kind="random", seed=5, **SMALL), (SITE, MLP))
    assert not torch.allclose(sae_of(tmp_path).W_dec, first)
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".")) == [str(MLP), str(SITE)]


def test_an_interrupted_site_leaves_no_folder(
    source: LocalModel, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bases, "write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write(source, corpus, tmp_path, Basis(kind="random", **SMALL))
    assert not (tmp_path / str(SITE)).exists()


def test_what_makes_no_basis_is_an_error(source: LocalModel, corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="k must lie between"):
        Basis(kind="random", k=4096)
    with pytest.raises(UsageError, match="only random directions"):
        Basis(kind="neurons", matched=True)
    with pytest.raises(UsageError, match="layers 0 to 2"):
        write(source, corpus, tmp_path, Basis(kind="neurons", **SMALL), (Site(layer=9, submodule="mlp_out"),))
    with pytest.raises(UsageError, match="fills no context"):
        write(source, make_corpus(["w1 w2 w3"], source="short"), tmp_path, Basis(kind="random", **SMALL))
    with pytest.raises(UsageError, match="only 61 directions, k is 80"):
        write(source, corpus, tmp_path, Basis(kind="unembedding", k=80))
