"""Made-up exports in the layout of the public bucket: glosses of one explainer, tables without a model, bad files."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from harness.cli.main import execute
from harness.errors import FileFormatError, UsageError
from harness.packs import embedder
from harness.whitebox.features import neuronpedia
from harness.whitebox.features.catalogue import Catalogue
from harness.whitebox.features.export_catalogue import ExportJob, catalogue_from_exports
from harness.whitebox.features.glossing import GlossPlan
from harness.whitebox.features.neuronpedia import Export, activation_batches, explanations, find_export
from harness.whitebox.sources.dictionaries import Located, local_dictionaries, locate
from harness.whitebox.sources.sites import Site

from ..tiny_catalogue import write_dictionary

SITE = Site(layer=3, submodule="mlp_out")
D_SAE = 6
GPT, CLAUDE = "gpt-4o-mini", "claude"

EXPLANATIONS = [
    {"index": "0", "description": " strength ", "explanationModelName": GPT, "embedding": "[3.0, 4.0]"},
    {"index": "0", "description": "a second one", "explanationModelName": GPT, "embedding": [1.0, 0.0]},
    {"index": 0, "description": "power", "explanationModelName": CLAUDE},
    {"index": "1", "description": "", "explanationModelName": GPT},
    {"index": "1", "description": "animals", "explanationModelName": GPT, "embedding": [0.0, 2.0]},
    {"index": "4", "description": "birds", "explanationModelName": CLAUDE},
    {"index": "5", "description": "rivers", "explanationModelName": GPT, "embedding": "[1, 0]"},
]
ACTIVATIONS = [
    {"index": "0", "tokens": ["the", " strong", "est", " man"], "values": [0, 5.0, 2.0, 0], "maxValueTokenIndex": 1},
    {"index": "0", "tokens": ["so", " strong"], "values": [0, 3.0], "maxValue": 3.0, "maxValueTokenIndex": 1},
    {"index": "0", "tokens": ["a", " b"], "values": [9.0], "maxValueTokenIndex": 0},
    {"index": "1", "tokens": ["it", "âĢĻ", "s", " Ã©", "ĠcafÃ©"], "values": [0, 1.5, 0, 0, 2.5], "maxValueTokenIndex": 4},
    {"index": "1", "tokens": ["Ã", "x"], "values": [4.0, 1.0]},
    {"index": "2", "tokens": ["nothing", " here"], "values": [0, 0]},
]
FEATURES = [{"index": str(i), "frac_nonzero": 0.01 * i, "maxActApprox": 5.0 if i < 2 else None} for i in range(D_SAE)]


def write(folder: Path, kind: str, batches: Sequence[Sequence[Any]]) -> None:
    (folder / kind).mkdir(parents=True, exist_ok=True)
    for number, rows in enumerate(batches):
        with gzip.open(folder / kind / f"batch-{number}.jsonl.gz", "wt", encoding="utf-8") as lines:
            lines.writelines((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows)


@pytest.fixture
def exports(tmp_path: Path) -> Path:
    folder = tmp_path / "exports" / "v1" / "tiny-model" / "3-mlp"
    write(folder, "explanations", [EXPLANATIONS[:4], EXPLANATIONS[4:]])
    write(folder, "activations", [ACTIVATIONS[:3], ACTIVATIONS[3:]])
    write(folder, "features", [FEATURES])
    return tmp_path / "exports"


@pytest.fixture
def saes(tmp_path: Path) -> Path:
    sae = write_dictionary(tmp_path / "saes" / str(SITE), SITE, np.eye(D_SAE, 8))
    config = json.loads((sae / "cfg.json").read_text())
    config["metadata"]["neuronpedia_id"] = "tiny-model/3-mlp"
    (sae / "cfg.json").write_text(json.dumps(config))
    return tmp_path / "saes"


def located(saes: Path, source: str = "tiny") -> Located:
    (dictionary,) = local_dictionaries(source, saes, lambda _line: None)
    return locate(dictionary)


@pytest.fixture
def export(exports: Path, saes: Path) -> Export:
    return find_export(exports, located(saes))


class StubEmbedder:
    def __init__(self, _note: Any = None) -> None: ...

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([[1.0, 0.0, 0.0]] * len(texts), np.float32).reshape(-1, 3)


@pytest.fixture(autouse=True)
def stub_embedder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedder, "Embedder", StubEmbedder)


def test_one_explainer_is_kept_and_only_the_first_explanation_of_each_feature(export: Export) -> None:
    glosses, embeddings = explanations(export, D_SAE)
    assert {f: (g.text, g.source) for f, g in glosses.items()} == {
        0: ("strength", f"neuronpedia:{GPT}"),
        1: ("animals", f"neuronpedia:{GPT}"),
        5: ("rivers", f"neuronpedia:{GPT}"),
    }
    assert {f: vector.tolist() for f, vector in embeddings.items()} == {0: [3.0, 4.0], 1: [0.0, 2.0], 5: [1.0, 0.0]}
    by_name, without = explanations(export, D_SAE, CLAUDE)
    assert {f: g.text for f, g in by_name.items()} == {0: "power", 4: "birds"}
    assert without == {}
    with pytest.raises(UsageError, match="no explanation by 'llama'") as raised:
        explanations(export, D_SAE, "llama")
    assert CLAUDE in (raised.value.hint or "")


def test_the_exports_own_vectors_need_one_for_every_gloss(export: Export) -> None:
    glosses, embeddings = explanations(export, D_SAE)
    found = neuronpedia.vectors(export, embeddings, glosses, D_SAE)
    np.testing.assert_allclose(found[:3], [[0.6, 0.8], [0, 1], [0, 0]], rtol=1e-6)
    with pytest.raises(UsageError, match="1 of 3 glosses have an embedding"):
        neuronpedia.vectors(export, {0: embeddings[0]}, glosses, D_SAE)


def test_batches_of_activations_are_decoded_and_bad_rows_skipped(export: Export) -> None:
    first, second = activation_batches(export, D_SAE)
    assert (first.n_skipped, second.n_skipped) == (1, 0)
    assert first.text.documents == ("the strongest man", "so strong")
    assert second.text.documents[0] == "it’s é café"
    assert second.text.documents[1] == "\ufffdx"
    named = [second.text.token_texts[label] for label in second.tokens.labels]
    assert dict(zip(named, second.tokens.values.tolist(), strict=True)) == {" café": 2.5, "’": 1.5, "x": 1.0}


def test_a_catalogue_is_made_from_exports_alone(exports: Path, saes: Path, tmp_path: Path) -> None:
    found = local_dictionaries("tiny", saes, lambda _line: None)
    gloss = GlossPlan(kind="neuronpedia", exports=exports)
    job = ExportJob(dictionaries=found, exports=exports, out=tmp_path / "out", gloss=gloss)
    notes: list[str] = []
    (row,) = catalogue_from_exports(job, notes.append)
    assert (row["n_silent"], row["n_skipped"], row["n_glosses"]) == (4, 1, 3)
    made = Catalogue(tmp_path / "out")
    top = made.top_tokens(SITE)
    assert [(t.token, t.word, t.value, t.token_id) for t in top[0]] == [
        (" strong", "strongest", 5.0, -1),
        ("est", "strongest", 2.0, -1),
    ]
    contexts = made.table(SITE, "contexts").to_pylist()
    assert [(c["feature"], c["value"], c["text"][c["start"] : c["end"]]) for c in contexts] == [
        (0, 5.0, " strong"),
        (0, 3.0, " strong"),
        (1, 4.0, "\ufffd"),
        (1, 2.5, " café"),
    ]
    assert len({c["document"] for c in contexts}) == 4
    features = made.table(SITE, "features").to_pydict()
    np.testing.assert_allclose(features["density"], [0.01 * i for i in range(D_SAE)], rtol=1e-6)
    assert features["max_act"][:3] == [5.0, 5.0, None]
    assert features["gloss"] == ["strength", "animals", None, None, None, "rivers"]
    assert made.gloss_vectors(SITE).any(axis=1).tolist() == [True, True, False, False, False, True]
    assert made.manifest["gloss"]["source"] == "neuronpedia"

    assert catalogue_from_exports(job, notes.append) == [row]
    assert any("read before, kept" in line for line in notes)


def test_the_verb_reads_exports(exports: Path, saes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["map", "catalogue", "--source", "tiny", "--dictionary", str(saes), "--from-exports", "--exports", str(exports)]
    assert execute([*line, "--gloss", "neuronpedia", "--gloss-vectors", "export", "--out", str(tmp_path / "out")]) in (0, None)
    assert "mlp_out.3" in capsys.readouterr().out
    assert Catalogue(tmp_path / "out").gloss_vectors(SITE).shape == (D_SAE, 2)


def test_names_are_made_from_layer_and_submodule(tmp_path: Path) -> None:
    sae = write_dictionary(tmp_path / "3-mlp-sm", SITE, np.eye(D_SAE, 8))
    dictionary = locate(local_dictionaries("other", tmp_path, lambda _line: None)[0])
    named = Located(
        dictionary=dictionary.dictionary.__class__(source="pythia-70m", site=SITE, folder=sae),
        weights=dictionary.weights,
        config=dictionary.config,
    )
    assert find_export(tmp_path, named).folder == tmp_path / "pythia-70m-deduped" / "3-mlp-sm"
    with pytest.raises(UsageError, match="Neuronpedia's name of it is not known"):
        find_export(tmp_path, dictionary)


def test_missing_files_come_with_the_command_that_fetches_them(exports: Path, saes: Path) -> None:
    export = find_export(exports, located(saes))
    (export.folder / "features" / "batch-0.jsonl.gz").unlink()
    with pytest.raises(UsageError, match=r"has no features/batch") as raised:
        neuronpedia.feature_numbers(export, D_SAE)
    assert "s3://neuronpedia-datasets/v1/tiny-model/3-mlp/features" in (raised.value.hint or "")


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("{broken", r"batch-0.jsonl.gz:1: not valid JSON"),
        ("[1]", r"batch-0.jsonl.gz:1: expected one JSON object a line"),
        ({"index": "six"}, r"batch-0.jsonl.gz:1: index is 'six'"),
        ({"index": 6}, r"batch-0.jsonl.gz:1: index 6: the dictionary has 6 features"),
    ],
)
def test_a_bad_line_is_told_with_file_and_number(export: Export, row: Any, told: str) -> None:
    write(export.folder, "features", [[row]])
    with pytest.raises(FileFormatError, match=told):
        neuronpedia.feature_numbers(export, D_SAE)


def test_a_file_that_is_cut_off_is_told(export: Export) -> None:
    path = export.folder / "features" / "batch-0.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(FileFormatError, match="cannot be read"):
        neuronpedia.feature_numbers(export, D_SAE)


def test_a_feature_in_two_batches_is_told(export: Export) -> None:
    write(export.folder, "activations", [ACTIVATIONS[:2], ACTIVATIONS[:1]])
    with pytest.raises(FileFormatError, match="feature 0 stood in an earlier batch"):
        list(activation_batches(export, D_SAE))


def test_batches_come_in_the_order_of_their_numbers(export: Export) -> None:
    write(export.folder, "features", [[FEATURES[0]]] * 12)
    assert [int(p.name.split("-")[1].split(".")[0]) for p in export.batches("features")] == list(range(12))
