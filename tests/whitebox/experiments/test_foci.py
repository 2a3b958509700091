"""What each focus does to a model, against plain hooks and plain forward passes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from harness.errors import UsageError  # noqa: E402
from harness.providers.vocabulary import Vocabulary  # noqa: E402
from harness.whitebox.experiments import foci  # noqa: E402
from harness.whitebox.experiments.candidates import RANDOM, SELF, Candidate  # noqa: E402
from harness.whitebox.experiments.foci import (  # noqa: E402
    WORDS,
    Answers,
    Compass,
    FeatureRunner,
    NeuronRunner,
    Outcome,
    PromptRunner,
    TokenRunner,
)
from harness.whitebox.sources.sites import Site  # noqa: E402
from harness.whitebox.steering.screen import token_gradient  # noqa: E402
from harness.whitebox.steering.steering import Reading, Steerer  # noqa: E402

from ..tiny_models import WIDTH, changing, directions, plain  # noqa: E402
from ..tiny_world import SITE, gpt2, save_model  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")
SENTENCES = ["the a2 b3 sky", "here is a9 again the"]
LEXICON = [3, 5, 40]
OWN, OTHER = Candidate(target=0, arm=SELF, draw=0, feature=0), Candidate(target=0, arm="0.1-0.2", draw=0, feature=7)
GAUSS = [Candidate(target=0, arm=RANDOM, draw=draw) for draw in range(3)]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    return Vocabulary.load(save_model(tmp_path_factory.mktemp("model"), gpt2()))


def read(clean: Any) -> Reading:
    return Reading(clean, [LEXICON])


def compass(site: Site = SITE, std: float = 1.7, seed: int = 0) -> Compass:
    unit = torch.nn.functional.normalize(directions(2), dim=-1).numpy()
    return Compass(site=site, directions={0: unit[0], 7: unit[1]}, d_model=WIDTH, std=std, seed=seed)


def odds(logits: Any) -> float:
    p = logits.double().softmax(-1)[LEXICON].sum()
    return float(torch.log(p) - torch.log1p(-p))


def check(found: Iterator[Outcome], expected: Any, model: Any, vocabulary: Vocabulary) -> None:
    """`expected(i, k, ids)`: the logits of case i at dose k, by other means."""
    outcomes = list(found)
    assert len(outcomes) == len(SENTENCES)
    for (reading, effects), ids in zip(outcomes, vocabulary.encode(SENTENCES), strict=True):
        clean = plain(model, list(ids))
        assert reading.clean_log_odds[0] == pytest.approx(odds(clean), abs=1e-4)
        for i, k in np.ndindex(effects.total_variation.shape):
            logits = expected(i, k, list(ids))
            assert effects.log_odds_shift[0, i, k] == pytest.approx(odds(logits) - odds(clean), abs=2e-4)
            moved = float((logits.softmax(-1) - clean.softmax(-1)).abs().sum() / 2)
            assert effects.total_variation[i, k] == pytest.approx(moved, abs=1e-5)
        assert effects.total_variation.max() > 0.01


def test_a_dose_is_so_many_standard_deviations_along_a_unit_direction(vocabulary: Vocabulary) -> None:
    model = gpt2()
    cases, doses = [OWN, OTHER, *GAUSS], np.array([[1.0, -3.0]] * 5)
    runner = FeatureRunner(Steerer(model), vocabulary, compass())

    def expected(i: int, k: int, ids: list[int]) -> Any:
        delta = torch.from_numpy(doses[i, k] * 1.7 * compass()(cases[i])).float()
        with changing(model, SITE, lambda x: x + delta):
            return plain(model, ids)

    check(runner.run(SENTENCES, cases, doses, read), expected, model, vocabulary)
    assert runner.able(OWN)
    assert not runner.able(Candidate(target=0, arm="x", draw=0, feature=5))


def test_doses_may_differ_between_cases(vocabulary: Vocabulary) -> None:
    model, doses = gpt2(), np.array([[0.5], [4.0]])

    def expected(i: int, k: int, ids: list[int]) -> Any:
        delta = torch.from_numpy(doses[i, k] * 1.7 * compass()([OWN, OTHER][i])).float()
        with changing(model, SITE, lambda x: x + delta):
            return plain(model, ids)

    check(
        FeatureRunner(Steerer(model), vocabulary, compass()).run(SENTENCES, [OWN, OTHER], doses, read),
        expected,
        model,
        vocabulary,
    )


def test_a_neuron_is_scaled_at_every_position(vocabulary: Vocabulary) -> None:
    model, site = gpt2(), Site(layer=0, submodule="mlp_out")
    doses = np.array([[0.0, 5.0]] * 2)

    def expected(i: int, k: int, ids: list[int]) -> Any:
        gain = torch.ones(WIDTH)
        gain[[0, 7][i]] = doses[i, k]
        with changing(model, site, lambda x: x * gain):
            return plain(model, ids)

    check(NeuronRunner(Steerer(model), vocabulary, site).run(SENTENCES, [OWN, OTHER], doses, read), expected, model, vocabulary)


@pytest.mark.parametrize("engine", [True, False])
def test_an_injection_is_compared_with_the_clean_sentence(
    engine: bool, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_model: Any) -> Any:
        raise UsageError("cannot share prefixes")

    if not engine:
        monkeypatch.setattr(foci, "PrefixEngine", refuse)
    words = {0: ["red", "blue"], 7: [f"a{n}" for n in range(2, 30)]}
    runner = PromptRunner(Answers(gpt2()), vocabulary, words, seed=3)
    model = gpt2()

    def expected(i: int, _k: int, ids: list[int]) -> Any:
        injected = "(" + "".join(runner.injection([OWN, OTHER][i])) + ")"
        (before,) = vocabulary.encode([injected])
        return plain(model, [*before, *ids])

    found = runner.run(SENTENCES, [OWN, OTHER], np.full((2, 1), np.nan), read)
    check(found, expected, model, vocabulary)
    assert [len(runner.injection(case)) for case in (OWN, OTHER)] == [WORDS, WORDS]
    assert set(runner.injection(OWN)) == {" red", " blue"}
    assert len(set(runner.injection(OTHER))) == WORDS  # no word twice while there are others
    assert not runner.able(GAUSS[0])


def test_random_directions_are_unit_and_fresh_for_each_draw_target_site_and_seed() -> None:
    other_target = Candidate(target=1, arm=RANDOM, draw=0)
    last = Site(layer=2, submodule="resid_post")
    drawn = [compass()(case) for case in GAUSS] + [compass()(other_target), compass(last)(GAUSS[0]), compass(seed=1)(GAUSS[0])]
    gram = np.stack(drawn) @ np.stack(drawn).T
    np.testing.assert_allclose(np.diag(gram), 1, atol=1e-6)
    assert np.abs(gram - np.eye(6)).max() < 0.7
    assert np.array_equal(compass()(GAUSS[2]), drawn[2])


def centred() -> Any:
    """A model whose weights that write to the stream have no mean over d_model, as TransformerLens makes them."""
    model = gpt2().double()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("wte.weight", "wpe.weight", "c_proj.weight", "c_proj.bias")):
                weight -= weight.mean(-1, keepdim=True)
    return model.float()


@pytest.mark.parametrize("submodule", ["attn_out", "mlp_out"])
def test_the_token_gradient_of_a_feature_does_not_vanish_on_a_centred_model_where_that_of_the_sum_does(
    submodule: Any, vocabulary: Vocabulary
) -> None:
    site, steerer, ids = Site(layer=1, submodule=submodule), Steerer(centred()), (4, 9, 30, 12)
    with pytest.raises(UsageError, match="the token gradient vanishes"):
        token_gradient(steerer.cache(ids), site, torch.ones(WIDTH), [3])
    runner = TokenRunner(steerer, vocabulary, compass(site), {0: [ids], 7: [(5, 8)]})
    for case in (OWN, OTHER, *GAUSS):
        gradient = runner.gradient(case)
        assert float(gradient.norm()) == pytest.approx(1, abs=1e-5)
        again = TokenRunner(Steerer(centred()), vocabulary, compass(site), {0: [ids], 7: [(5, 8)]}).gradient(case)
        assert float(gradient @ again) == pytest.approx(1, abs=1e-4)  # no rounding noise


def test_the_token_gradient_is_the_slope_of_the_features_activation_where_it_fires(vocabulary: Vocabulary) -> None:
    model, ids = centred(), (4, 9, 30, 12)
    gradient = TokenRunner(Steerer(model), vocabulary, compass(), {0: [ids]}).gradient(OWN).double()
    exact, direction = model.double(), torch.from_numpy(compass()(OWN)).double()

    def activation(change: Any) -> float:
        kept: list[Any] = []
        with torch.no_grad():
            embeddings = exact.get_input_embeddings()(torch.tensor([ids])).clone()
            embeddings[0, 3] += change
            with changing(exact, SITE, lambda x: kept.append(x) or x):
                exact(inputs_embeds=embeddings)
        return float(kept[0][0, 3] @ direction)

    slopes = [(activation(1e-4 * u) - activation(-1e-4 * u)) / 2e-4 for u in directions(6).double()]
    length = (activation(1e-4 * gradient) - activation(-1e-4 * gradient)) / 2e-4
    assert length > 0.01
    np.testing.assert_allclose(slopes, [length * float(u @ gradient) for u in directions(6).double()], rtol=1e-3, atol=1e-4)


def test_token_gradients_are_steered_along_like_directions(vocabulary: Vocabulary) -> None:
    model, doses = gpt2(), np.array([[2.0]] * 3)
    cases = [OWN, OTHER, GAUSS[1]]
    runner = TokenRunner(Steerer(model), vocabulary, compass(), {0: [(4, 9, 30)], 7: [(5, 8)]})

    def expected(i: int, k: int, ids: list[int]) -> Any:
        delta = doses[i, k] * 1.7 * runner.gradient(cases[i])
        with changing(model, SITE, lambda x: x + delta):
            return plain(model, ids)

    check(runner.run(SENTENCES, cases, doses, read), expected, model, vocabulary)
    assert not TokenRunner(Steerer(model), vocabulary, compass(), {7: [(5, 8)]}).able(GAUSS[0])
