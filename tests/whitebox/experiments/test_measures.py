"""Weighted cosine and overlap against the sums over the whole vocabulary, with plain hooks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tokenizers import Tokenizer  # noqa: E402
from tokenizers.models import WordLevel  # noqa: E402

from harness.providers.vocabulary import Vocabulary  # noqa: E402
from harness.whitebox.experiments import measures  # noqa: E402
from harness.whitebox.experiments.measures import Yardstick, top_ids_by_text, top_token_ids  # noqa: E402
from harness.whitebox.features.catalogue import UNKNOWN_ID, TopToken  # noqa: E402
from harness.whitebox.sources.sites import Site  # noqa: E402
from harness.whitebox.steering.interventions import Steering  # noqa: E402
from harness.whitebox.steering.steering import Steerer  # noqa: E402

from ..tiny_models import MAIN, PROMPT, Build, directions, gpt2, hooked, plain  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")
SETS = [(3, 9, 50), (11,)]


def measured(model: Any, logits: Any, ids: tuple[int, ...]) -> tuple[float, float]:
    """Weighted cosine and overlap, token by token, in float64."""
    p = logits.double().softmax(-1).numpy()
    E = model.get_input_embeddings().weight.detach().double().numpy()
    cosine = [max(float(e @ E[u] / (np.linalg.norm(e) * np.linalg.norm(E[u]))) for u in ids) for e in E]
    return float(p @ np.array(cosine)), float(p[list(ids)].sum())


@pytest.mark.parametrize("build", MAIN)
def test_changes_are_those_of_the_whole_vocabulary_under_plain_hooks(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "ROWS", 7)
    model, site = build(), Site(layer=1, submodule="resid_post")
    steerer, vectors, doses = Steerer(model, max_tokens=2 * len(PROMPT)), directions(3), torch.tensor([[1.0, -4.0]] * 3)
    steering = Steering(site=site, directions=vectors, doses=doses)
    effects = steerer.effects(steerer.cache(PROMPT), steering, [[3]], Yardstick(model).vectors(SETS))
    assert effects.expectation_shift.shape == (4, 3, 2)
    for row, ids in enumerate(SETS):
        before = measured(model, plain(model), ids)
        for i, k in np.ndindex(3, 2):
            after = measured(model, hooked(model, site, doses[i, k] * vectors[i]), ids)
            found = effects.expectation_shift[[row, len(SETS) + row], i, k]
            np.testing.assert_allclose(found, np.subtract(after, before), atol=2e-5)
    assert np.abs(effects.expectation_shift).max() > 0.01


def test_a_row_of_zeros_has_no_cosine_and_a_head_longer_than_the_embeddings_is_filled_up() -> None:
    model = gpt2()
    with torch.no_grad():
        model.get_input_embeddings().weight[5] = 0
    assert Yardstick(model).vectors([(5,)])[0].abs().max() == 0
    assert Yardstick(model).vectors([(6,)])[0, 5] == 0
    model.set_output_embeddings(torch.nn.Linear(4, 70))
    vectors = Yardstick(model).vectors([(6,)])
    assert vectors.shape == (2, 70)
    assert vectors[0, 61:].abs().max() == 0
    assert vectors[0, 6] == pytest.approx(1)


def top(*tokens: tuple[int, str, float]) -> list[TopToken]:
    return [TopToken(token_id=number, token=text, word=text.strip(), value=value) for number, text, value in tokens]


def test_top_tokens_reach_half_the_maximum_and_are_found_by_text_elsewhere() -> None:
    tokens = top((4, "red", 10.0), (9, "blue", 5.0), (1, "grey", 4.9))
    assert top_token_ids(tokens) == (4, 9)
    assert top_token_ids(top((4, "red", 1.0), (UNKNOWN_ID, "blue", 0.9))) is None
    vocabulary = Vocabulary(Tokenizer(WordLevel({"unk": 0, "Red": 1, "blue": 2, "red": 3}, unk_token="unk")))
    assert top_ids_by_text(tokens, vocabulary) == (3, 2)
    assert top_ids_by_text(top((0, "never seen", 1.0), (1, "blue", 1.0)), vocabulary) == (0, 2)  # the first id of its text
