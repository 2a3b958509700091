"""The verb `harness train-sae` from a model's folder and a text file to dictionaries that SAELens loads."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tokenizers import Tokenizer  # noqa: E402
from tokenizers.models import WordLevel  # noqa: E402
from tokenizers.pre_tokenizers import WhitespaceSplit  # noqa: E402

from harness.cli.main import execute  # noqa: E402
from harness.whitebox.sources import activations  # noqa: E402

from .tiny_models import VOCABULARY, llama  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")
needs_sae_lens = pytest.mark.skipif(find_spec("sae_lens") is None, reason="needs sae_lens (the extra `whitebox`)")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    llama().save_pretrained(folder)
    tokenizer = Tokenizer(WordLevel({f"w{number}": number for number in range(VOCABULARY)}, unk_token="w0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    words = [[f"w{number}" for number in rng.integers(1, VOCABULARY, 40)] for _ in range(500)]
    path = tmp_path_factory.mktemp("text") / "own.txt"
    path.write_text("\n\n".join(" ".join(paragraph) for paragraph in words))
    return path


def command(model_dir: Path, text: Path, out: Path, *more: str) -> list[str]:
    sizes = ["--tokens", "16384", "--d-sae", "48"]
    return ["train-sae", "--source", str(model_dir), "--text", str(text), "--out", str(out), *sizes, *more]


@needs_sae_lens
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_dictionaries_are_trained_judged_saved_and_not_trained_twice(
    model_dir: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = command(model_dir, text, tmp_path, "--site", "resid_post.1", "--site", "mlp_out.0", "--k", "4", "--json")
    assert execute(line) == 0
    first = json.loads(capsys.readouterr().out)
    assert [manifest["key"]["site"] for manifest in first] == ["resid_post.1", "mlp_out.0"]
    assert first[0]["tokens_trained"] == 16384
    assert first[0]["quality"]["l0"] == pytest.approx(4, abs=0.5)
    assert first[0]["quality"]["n_tokens"] % 127 == 0
    assert first[0]["quality"]["explained_variance"] > first[0]["random_control"]["explained_variance"]
    config = json.loads((tmp_path / "resid_post.1" / "cfg.json").read_text())
    assert config["metadata"]["hook_name"] == "blocks.1.hook_resid_post"
    assert not config["metadata"]["prepend_bos"]

    monkeypatch.setattr(activations, "read", None)  # a site that is there is not read again
    assert execute(line) == 0
    told = capsys.readouterr()
    assert json.loads(told.out) == first
    assert "trained before, kept" in told.err
    assert execute([*line, "--seed", "7"]) == 2
    assert "was trained otherwise: corpus_sha256, recipe differ" in capsys.readouterr().err


@needs_sae_lens
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--site", "resid_post.9"], "resid_post.9: the model has layers 0 to 2"),
        (["--site", "resid_pre.1"], "'resid_pre.1' is no site"),
        (["--site", "resid_post.1", "--k", "99"], "k must lie between"),
    ],
)
def test_what_cannot_be_trained_is_told_before_a_token_is_read(
    model_dir: Path, text: Path, tmp_path: Path, more: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(command(model_dir, text, tmp_path / "out", *more)) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@needs_sae_lens
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_text_too_short_to_hold_any_out_is_told_before_training(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = tmp_path / "short.txt"
    short.write_text("w1 w2 w3 w4\n\nw5 w6 w7 w8")
    assert execute(command(model_dir, short, tmp_path / "out", "--site", "resid_post.1")) == 2
    told = capsys.readouterr().err
    assert "short.txt: too little text to hold any out" in told
    assert "resid_post.1 on" not in told


@pytest.mark.skipif(find_spec("sae_lens") is not None, reason="sae_lens is installed")
def test_without_sae_lens_the_extra_is_named(
    model_dir: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(command(model_dir, text, tmp_path / "out", "--site", "resid_post.1")) == 2
    assert "pip install 'transfer-harness[whitebox]'" in capsys.readouterr().err
