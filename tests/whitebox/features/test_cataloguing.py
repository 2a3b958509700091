"""The stage `catalogue` on a tiny model: its folder against dense activations, what is kept and made anew, what is refused."""

from __future__ import annotations

import errno
import json
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

torch = pytest.importorskip("torch")
if find_spec("sae_lens") is None:
    pytest.skip("needs sae_lens (the extra `whitebox`)", allow_module_level=True)

from harness.cli.main import execute  # noqa: E402
from harness.errors import FileFormatError, StorageError, UsageError  # noqa: E402
from harness.packs import embedder  # noqa: E402
from harness.whitebox.features import cataloguing  # noqa: E402
from harness.whitebox.features.catalogue import CONTEXTS, FEATURES, TOKENS, Catalogue  # noqa: E402
from harness.whitebox.features.cataloguing import Job, Options, SiteReader, make_catalogue, read_rows  # noqa: E402
from harness.whitebox.features.glossing import GlossPlan  # noqa: E402
from harness.whitebox.sources import activations, corpus, packing  # noqa: E402
from harness.whitebox.sources.dictionaries import local_dictionaries  # noqa: E402
from harness.whitebox.sources.models import LocalModel, load_model  # noqa: E402
from harness.whitebox.sources.sites import Site  # noqa: E402
from harness.whitebox.training.training import import_sae_lens  # noqa: E402

from ..tiny_models import WIDTH  # noqa: E402
from ..tiny_sources import D_SAE, damage, write_model, write_sae, write_text  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]
EARLY, LATE = Site(layer=0, submodule="mlp_out"), Site(layer=2, submodule="resid_post")
OPTIONS = Options(tokens=4500, keep_tokens=2500, at_once=4)
NO_GLOSS = GlossPlan(kind="none")


class StubEmbedder:
    """Texts to unit vectors that depend on their first letters."""

    def __init__(self, _note: Any = None) -> None: ...

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        found = np.array([[len(text), *map(ord, text[:2].ljust(2))] for text in texts], np.float32).reshape(-1, 3)
        return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.fixture(autouse=True)
def stub_embedder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedder, "Embedder", StubEmbedder)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(model_dir: Path) -> LocalModel:
    return load_model(str(model_dir), lambda _line: None, dtype="float32")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "own.txt")


@pytest.fixture(scope="module")
def saes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saes")
    write_sae(folder, EARLY, seed=1)
    sae = write_sae(folder, LATE, architecture="standard", seed=2)
    (sae / "manifest.json").write_text(json.dumps({"quality": {"ce_recovered": 0.9}}))
    return folder


@pytest.fixture
def job(model: LocalModel, text: Path, saes: Path, tmp_path: Path) -> Job:
    return new_job(model, text, saes, tmp_path / "out")


def new_job(model: LocalModel, text: Path, saes: Path, out: Path, **more: Any) -> Job:
    found = local_dictionaries("tiny", saes, lambda _line: None)
    given = {"options": OPTIONS, "gloss": NO_GLOSS, **more}
    return Job(dictionaries=found, model=model, corpus=corpus.from_files([text]), out=out, **given)


def silent(_line: str) -> None: ...


def dense(job: Job, site: Site, folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Activations, feature activations, token ids and spans of every token that the job reads, all at once."""
    contexts = list(packing.packed(job.corpus.documents, job.model.tokenizer, bos=job.model.bos))
    contexts = contexts[: -(-job.options.tokens // 127)]
    (found,) = activations.read(job.model.model, [[context.ids for context in contexts]], [site])
    sae = import_sae_lens().SAE.load_from_disk(folder / str(site), device="cpu")
    with torch.no_grad():
        codes = sae.encode(found[site])
    ids = np.concatenate([context.ids[1:] for context in contexts])
    return found[site].numpy(), codes.numpy(), ids, np.concatenate([context.spans[1:] for context in contexts])


@pytest.mark.parametrize("site", [EARLY, LATE])
def test_a_catalogue_holds_what_the_dense_activations_say(job: Job, saes: Path, site: Site) -> None:
    rows = {row["site"]: row for row in make_catalogue(job, silent)}
    x, codes, ids, spans = dense(job, site, saes)
    made = Catalogue(job.out)
    assert len(x) == rows[str(site)]["n_tokens"] == 4572

    np.testing.assert_allclose(made.codes(site).toarray(), codes[:2500], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(made.spans, spans[:2500])
    mean, covariance = made.moments(site)
    np.testing.assert_allclose(mean, x.mean(0), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(covariance, np.cov(x.T.astype(np.float64), bias=True), rtol=1e-3, atol=1e-2)

    features = made.table(site, "features").to_pydict()
    np.testing.assert_allclose(features["density"], (codes > 0).mean(0), rtol=1e-5)
    np.testing.assert_allclose(features["max_act"], codes.max(0), rtol=1e-4)
    np.testing.assert_allclose(features["mean_act"], codes.sum(0) / np.maximum((codes > 0).sum(0), 1), rtol=1e-4)

    top = made.top_tokens(site)
    contexts = made.table(site, "contexts").to_pylist()
    for feature in range(D_SAE):
        values = codes[:, feature]
        best = {int(i): float(values[ids == i].max()) for i in np.unique(ids[values > 0])}
        assert {row.token_id: pytest.approx(row.value, rel=1e-4) for row in top.get(feature, [])} == best  # 60 fit into 100
        own = [row for row in contexts if row["feature"] == feature]
        documents = [float(values[spans[:, 0] == d].max()) for d in np.unique(spans[values > 0, 0])]
        np.testing.assert_allclose([row["value"] for row in own], sorted(documents, reverse=True)[:16], rtol=1e-4)
        assert len({row["document"] for row in own}) == len(own)
    for row in contexts[::50]:
        place = job.corpus.documents[row["document"]].index(row["text"].strip()) + row["start"]
        at = np.flatnonzero((spans[:, 0] == row["document"]) & (spans[:, 1] == place))
        assert codes[at[0], row["feature"]] == pytest.approx(row["value"], rel=1e-4)


def test_words_of_tokens_are_those_of_the_text(job: Job) -> None:
    make_catalogue(job, silent)
    for row in Catalogue(job.out).table(LATE, "tokens").to_pylist():
        assert row["token"] == row["word"] == f"w{row['token_id']}"


def test_the_folder_joins_the_sites_and_says_where_all_comes_from(
    model: LocalModel, text: Path, saes: Path, tmp_path: Path
) -> None:
    job = new_job(model, text, saes, tmp_path, gloss=GlossPlan())
    make_catalogue(job, silent)
    made = Catalogue(tmp_path)
    for name, schema in (("features", FEATURES), ("tokens", TOKENS), ("contexts", CONTEXTS)):
        joined = pq.read_table(tmp_path / f"{name}.parquet")
        assert joined.schema == schema
        assert len(joined) == sum(len(made.table(site, name)) for site in made.sites)
    assert made.sites == (EARLY, LATE)
    for site in made.sites:
        with_glosses = made.table(site, "features")
        assert with_glosses.schema == FEATURES
        has = [gloss is not None for gloss in with_glosses["gloss"].to_pylist()]
        np.testing.assert_allclose(np.linalg.norm(made.gloss_vectors(site), axis=1), has, atol=1e-6)
        assert has == (made.density(site) > 0).tolist()
        assert made.directions(site).d_sae == D_SAE
    from safetensors.numpy import load_file

    covariances = load_file(tmp_path / "covariances.safetensors")
    np.testing.assert_array_equal(covariances[str(LATE)], made.moments(LATE)[1])
    assert covariances[str(EARLY)].shape == (WIDTH, WIDTH)
    manifest = made.manifest
    assert manifest["sites"][str(LATE)]["quality"] == {"ce_recovered": 0.9}
    assert manifest["sites"][str(EARLY)]["quality"] is None
    assert manifest["model"] == {"name": model.name, "folder": str(model.folder), "sha256": model.digest, "bos": None}
    assert manifest["corpus"]["sha256"] == job.corpus.digest
    assert manifest["gloss"]["source"] == "contexts"
    assert manifest["n_tokens"] == 4572
    assert manifest["seconds"] > 0


def test_a_finished_site_is_not_read_again_and_another_gloss_reads_nothing(
    model: LocalModel, text: Path, saes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make_catalogue(new_job(model, text, saes, tmp_path), silent)
    codes = Catalogue(tmp_path).codes(LATE).toarray()
    monkeypatch.setattr(activations, "read", None)
    notes: list[str] = []
    assert make_catalogue(new_job(model, text, saes, tmp_path), notes.append) == first
    assert sum("read before, kept" in line for line in notes) == 2

    make_catalogue(new_job(model, text, saes, tmp_path, gloss=GlossPlan(kind="contexts")), silent)
    made = Catalogue(tmp_path)
    assert made.gloss_vectors(LATE).shape == (D_SAE, 3)
    np.testing.assert_array_equal(made.codes(LATE).toarray(), codes)

    monkeypatch.setattr(embedder, "Embedder", None)
    make_catalogue(new_job(model, text, saes, tmp_path, gloss=GlossPlan(kind="contexts")), silent)
    make_catalogue(new_job(model, text, saes, tmp_path), silent)
    assert Catalogue(tmp_path).table(LATE, "features")["gloss"].null_count == D_SAE
    with pytest.raises(UsageError, match="has no glosses"):
        Catalogue(tmp_path).gloss_vectors(LATE)


def test_other_options_are_another_reading(model: LocalModel, text: Path, saes: Path, tmp_path: Path) -> None:
    make_catalogue(new_job(model, text, saes, tmp_path), silent)
    make_catalogue(new_job(model, text, saes, tmp_path, options=Options(tokens=300, keep_tokens=50)), silent)
    made = Catalogue(tmp_path)
    assert made.manifest["n_tokens"] == 381
    assert (made.codes(LATE).shape[0], len(made.spans)) == (50, 50)


def test_an_interrupted_catalogue_goes_on_with_the_site_it_stood_at(
    model: LocalModel, text: Path, saes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_catalogue(new_job(model, text, saes, tmp_path), silent)  # its manifest must not speak of what comes half
    job = new_job(model, text, saes, tmp_path, options=Options(tokens=4500, at_once=1))
    add = SiteReader.add

    def breaking(self: SiteReader, *given: Any) -> None:
        if self.site == LATE and self.statistics.n_rows:
            raise KeyboardInterrupt
        add(self, *given)

    monkeypatch.setattr(SiteReader, "add", breaking)
    with pytest.raises(KeyboardInterrupt):
        make_catalogue(job, silent)
    assert not (tmp_path / "manifest.json").exists()
    seen = set[Site]()

    def watching(self: SiteReader, *given: Any) -> None:
        seen.add(self.site)
        add(self, *given)

    monkeypatch.setattr(SiteReader, "add", watching)
    make_catalogue(job, silent)
    assert seen == {LATE}
    assert Catalogue(tmp_path).sites == (EARLY, LATE)


def test_sites_read_at_once_and_one_by_one_are_the_same(model: LocalModel, text: Path, saes: Path, tmp_path: Path) -> None:
    made = []
    for at_once in (1, 2):
        out = tmp_path / str(at_once)
        make_catalogue(new_job(model, text, saes, out, options=Options(tokens=4500, at_once=at_once)), silent)
        made.append(Catalogue(out))
    for name in ("tokens", "contexts", "features"):
        assert made[0].table(LATE, name).equals(made[1].table(LATE, name))


def test_of_a_long_corpus_every_nth_document_is_read_whatever_the_tokenizer(model: LocalModel, text: Path) -> None:
    documents = corpus.from_files([text])
    (rows,) = read_rows(documents, model, 127)
    numbers = np.unique(rows.spans[:, 0])
    step = sum(map(len, documents.documents)) // (5 * 127)
    assert step > 1
    assert numbers.tolist() == [0, step, 2 * step, 3 * step]
    for token, (document, start, end) in zip(rows.ids.tolist(), rows.spans.tolist(), strict=True):
        assert documents.documents[document][start:end] == f"w{token}"


def test_a_bos_stands_before_every_context_and_is_not_read(model: LocalModel, text: Path) -> None:
    (rows,) = read_rows(corpus.from_files([text]), replace(model, bos=0), 127)
    assert rows.contexts[0][0] == 0
    assert rows.contexts[0][1:] == rows.ids.tolist()
    assert (rows.spans[:, 0] >= 0).all()
    (without,) = read_rows(corpus.from_files([text]), model, 127)
    assert without.ids.tolist() == without.contexts[0][1:]
    assert rows.ids.tolist() == without.contexts[0][:-1]


def test_a_full_disk_is_told_and_finished_sites_are_kept(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    write = SiteReader.write

    def full(self: SiteReader, *given: Any) -> Any:
        if self.site == LATE:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, *given)

    monkeypatch.setattr(SiteReader, "write", full)
    with pytest.raises(StorageError, match="No space left on device"):
        make_catalogue(job, silent)
    assert (job.out / "sites" / str(EARLY) / "site.json").is_file()
    assert not (job.out / "sites" / str(LATE)).exists()


def test_a_dictionary_of_another_width_is_told_before_any_text_is_read(
    model: LocalModel, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sae(tmp_path / "saes", LATE, d_in=WIDTH + 1)
    monkeypatch.setattr(cataloguing, "read_rows", None)
    with pytest.raises(FileFormatError, match=r"the dictionary of resid_post.2 has width 33, the model .* has 32"):
        make_catalogue(new_job(model, text, tmp_path / "saes", tmp_path / "out"), silent)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["W_dec", "W_enc"])
def test_a_dictionary_with_nan_is_told_before_any_text_is_read(
    model: LocalModel, text: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(write_sae(tmp_path / "saes", LATE), name)
    monkeypatch.setattr(cataloguing, "read_rows", None)
    with pytest.raises(FileFormatError, match="NaN or infinity"):
        make_catalogue(new_job(model, text, tmp_path / "saes", tmp_path / "out"), silent)


def test_activations_that_are_not_finite_are_told(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    read = activations.read

    def broken(*given: Any) -> Any:
        for found in read(*given):
            found[LATE][3, 1] = float("nan")
            yield found

    monkeypatch.setattr(activations, "read", broken)
    with pytest.raises(UsageError, match=r"resid_post.2: the model's activations are not finite"):
        make_catalogue(job, silent)


def test_a_text_that_fills_no_context_is_told(model: LocalModel, saes: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("w1 w2 w3 w4")
    with pytest.raises(UsageError, match=r"short.txt: too little text to fill one context"):
        make_catalogue(new_job(model, short, saes, tmp_path / "out"), silent)


def test_options_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UsageError, match="keep tokens: 0 is not above 0"):
        Options(keep_tokens=0)


@pytest.fixture
def line(model_dir: Path, text: Path, saes: Path, tmp_path: Path) -> list[str]:
    """A command line of the verb that writes tmp_path/out."""
    given = {"--model": model_dir, "--dictionary": saes, "--text": text, "--out": tmp_path / "out", "--tokens": 500}
    words = [str(part) for pair in given.items() for part in pair]
    return ["map", "catalogue", "--source", "tiny", "--keep-tokens", "100", "--dtype", "float32", *words]


def test_the_verb_prints_sites_and_writes_the_folder(
    line: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute([*line, "--site", "resid_post.2", "--json"]) in (0, None)
    told = capsys.readouterr()
    (row,) = json.loads(told.out)
    assert (row["site"], row["d_sae"], row["n_tokens"]) == ("resid_post.2", D_SAE, 508)
    assert row["n_glosses"] == D_SAE - row["n_silent"]
    assert f"written: {tmp_path / 'out'}" in told.err
    assert "peak memory" in told.err
    assert Catalogue(tmp_path / "out").sites == (LATE,)
    assert execute(line) in (0, None)
    assert "mlp_out.0" in capsys.readouterr().out


def test_a_target_glosses_the_most_frequent_features(
    line: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    llm = ["--site", "resid_post.2", "--gloss", "llm", "--gloss-target", "scripted", "--gloss-features", "3"]
    assert execute([*line, *llm, "--json"]) in (0, None)
    (row,) = json.loads(capsys.readouterr().out)
    assert row["n_glosses"] == 3
    made = Catalogue(tmp_path / "out")
    features = made.table(LATE, "features").to_pydict()
    glossed = [feature for feature, gloss in enumerate(features["gloss"]) if gloss]
    assert sorted(glossed) == sorted(np.argsort(-np.array(features["density"]), kind="stable")[:3].tolist())
    assert {features["gloss_source"][feature] for feature in glossed} == {"llm:scripted"}
    assert made.manifest["gloss"]["target"] == "scripted"
    assert execute([*line, *llm]) in (0, None)
    assert "asking scripted" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--site", "mlp_out.1"], "no dictionary for the site mlp_out.1"),
        (["--at-once", "0"], "at once: 0 is not above 0"),
        (["--gloss", "llm"], "which language model is to gloss?"),
        (["--gloss", "neuronpedia"], "where do Neuronpedia's exports lie?"),
        (["--gloss", "llm", "--gloss-target", "nobody"], "unknown target 'nobody'"),
        (["--from-exports"], "where do Neuronpedia's exports lie?"),
    ],
)
def test_what_cannot_be_done_is_told(
    line: list[str], tmp_path: Path, more: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute([*line, *more]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
