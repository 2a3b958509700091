"""Predicted shifts against plain forward passes of the same model."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tokenizers import Tokenizer, decoders  # noqa: E402
from tokenizers.models import WordLevel  # noqa: E402
from tokenizers.pre_tokenizers import WhitespaceSplit  # noqa: E402

from harness.packs.concepts import Concept, ConceptManifest  # noqa: E402
from harness.packs.templates import Template  # noqa: E402
from harness.whitebox.distilling.predicting import Predictor  # noqa: E402
from harness.whitebox.sources.models import load_model  # noqa: E402

from ..tiny_models import VOCABULARY, llama  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")
TEMPLATE = Template(
    description="",
    before="w1 ",
    after=" w2 ",
)
SENTENCES = ("w5 w9 w33", "w8 w8", "w40")
INJECTIONS = [("w10 ", "w11"), ("w12 w13 w14",), ("w10 ", "w11")]


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    folder = tmp_path_factory.mktemp("tiny")
    llama().save_pretrained(folder)
    tokenizer = Tokenizer(WordLevel({f"w{number}": number for number in range(VOCABULARY)}, unk_token="w0"))
    tokenizer.pre_tokenizer, tokenizer.decoder = WhitespaceSplit(), decoders.Fuse()
    tokenizer.save(str(folder / "tokenizer.json"))
    return Predictor.of(load_model("tiny", [].append, dtype="float32", folder=folder))


def concept(*words: str) -> Concept:
    manifest = ConceptManifest(name="made-up", gloss="", lexicon_source="", licence="")
    return Concept(name="made-up", manifest=manifest, words=frozenset(words), sentences=(), off_type=(), digest="")


def log_odds(text: str, wanted: list[int]) -> float:
    with torch.no_grad():
        probabilities = llama()(torch.tensor([[int(word[1:]) for word in text.split()]])).logits[0, -1].double().softmax(-1)
    mass = float(probabilities[wanted].sum())
    return float(torch.logit(torch.tensor(mass, dtype=torch.float64)))


def test_a_shift_is_the_mean_over_sentences_of_the_change_in_log_odds(predictor: Predictor) -> None:
    found = predictor.shifts(concept("w20", "w21", "nowhere"), SENTENCES, INJECTIONS, TEMPLATE)
    for shift, injection in zip(found, INJECTIONS, strict=True):
        changes = [
            log_odds(f"w1 {''.join(injection)} w2 {sentence}", [20, 21]) - log_odds(sentence, [20, 21])
            for sentence in SENTENCES
        ]
        assert shift == pytest.approx(sum(changes) / len(changes), abs=1e-4)
    assert found[0] == found[2]


def test_a_concept_that_the_vocabulary_cannot_say_has_no_prediction(predictor: Predictor) -> None:
    assert all(torch.tensor(predictor.shifts(concept("nowhere"), SENTENCES, INJECTIONS, TEMPLATE)).isnan())
