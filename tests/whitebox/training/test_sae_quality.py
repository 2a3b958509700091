"""Quality of dictionaries against what is known of them: one that changes nothing, one that knows nothing."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from harness.errors import UsageError  # noqa: E402
from harness.whitebox.sources.sites import Site  # noqa: E402
from harness.whitebox.training.sae_quality import (  # noqa: E402
    Quality,
    RandomDictionary,
    SiteTest,
    cross_entropy,
    recovered,
    splice,
)

from ..tiny_models import VOCABULARY, WIDTH, gemma3, llama  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

CONTEXTS = torch.randint(0, VOCABULARY, (11, 12), generator=torch.Generator().manual_seed(0)).tolist()
SITE = Site(layer=1, submodule="resid_post")
NO_LIMIT = 1e9


class Perfect:
    """Features +x and -x: its reconstruction is x."""

    def encode(self, x: Any) -> Any:
        return torch.cat([x, -x], dim=-1).relu()

    def decode(self, feature_acts: Any) -> Any:
        return feature_acts[..., :WIDTH] - feature_acts[..., WIDTH:]


class Mean:
    """Knows the mean of what it is shown and nothing else."""

    def __init__(self, mean: Any) -> None:
        self.mean = mean

    def encode(self, x: Any) -> Any:
        return torch.zeros(len(x), 4)

    def decode(self, feature_acts: Any) -> Any:
        return self.mean.expand(len(feature_acts), -1)


def own_words(model: Any) -> list[list[int]]:
    """What the model itself finds likeliest, so that to disturb it costs it something."""
    ids = torch.tensor(CONTEXTS)[:, :1]
    with torch.no_grad():
        while ids.shape[1] < len(CONTEXTS[0]):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    return ids.tolist()


def judge(model: Any, dictionary: Any, contexts: Any = CONTEXTS) -> Quality:
    return SiteTest(model, contexts, SITE, NO_LIMIT).judge(dictionary)


@pytest.mark.parametrize("build", [llama, gemma3])
def test_a_dictionary_that_loses_nothing_recovers_all(build: Any) -> None:
    model = build()
    found = judge(model, Perfect(), own_words(model))
    assert found.explained_variance == pytest.approx(1, abs=1e-6)
    assert found.ce_recovered == pytest.approx(1, abs=1e-4)
    assert found.ce_recovered_zero == pytest.approx(1, abs=1e-4)
    assert found.l0 == pytest.approx(WIDTH, abs=0.01)
    assert found.alive_share == 1
    assert found.n_tokens == 11 * 11


def test_a_dictionary_that_knows_the_mean_alone_recovers_nothing() -> None:
    model = llama()
    test = SiteTest(model, CONTEXTS, SITE, NO_LIMIT)
    found = test.judge(Mean(test.x.mean(0)))
    assert found.explained_variance == pytest.approx(0, abs=1e-6)
    assert found.ce_sae == pytest.approx(found.ce_mean, abs=1e-6)
    assert (found.l0, found.alive_share) == (0, 0)


def test_cross_entropy_is_that_of_transformers_own_loss() -> None:
    model = llama()
    ids = torch.tensor(CONTEXTS)
    with torch.no_grad():
        loss = float(model(ids, labels=ids).loss)
    assert cross_entropy(model, CONTEXTS) == pytest.approx(loss, abs=1e-5)


def test_ablation_to_zero_is_what_a_block_of_zeros_gives() -> None:
    model = llama()
    found = judge(model, Perfect())

    def zero(_module: Any, _inputs: Any, output: Any) -> Any:
        return torch.cat([output[:, :1], torch.zeros_like(output[:, 1:])], dim=1)

    handle = model.model.layers[SITE.layer].register_forward_hook(zero)
    zeroed = cross_entropy(model, CONTEXTS)
    handle.remove()
    assert found.ce_zero == pytest.approx(zeroed, abs=1e-5)
    assert found.ce_clean == pytest.approx(cross_entropy(model, CONTEXTS))


def test_the_first_position_and_outsized_tokens_stay_as_they_are() -> None:
    x = torch.ones(2, 3, 4)
    x[1, 2] = 100
    put = splice(torch.zeros_like, norm_limit=10)(x)
    expected = x.clone()
    expected[:, 1:] = 0
    expected[1, 2] = 100
    torch.testing.assert_close(put, expected)


def test_the_share_recovered_is_none_where_the_ablation_does_no_harm() -> None:
    assert recovered(2.0, 3.0, 6.0) == pytest.approx(0.75)
    assert recovered(2.0, 3.0, 2.0) is None


def test_random_directions_have_k_active_features_and_their_best_scale() -> None:
    x = torch.randn(500, WIDTH, generator=torch.Generator().manual_seed(4)) + 2
    control = RandomDictionary(x, d_sae=64, k=5, seed=0)
    features = control.encode(x)
    assert int((features > 0).sum(1).max()) <= 5
    torch.testing.assert_close(control.W_dec.norm(dim=1), torch.ones(64))
    raw = features @ control.W_dec
    errors = [float((x - x.mean(0) - scale * raw).square().sum()) for scale in torch.linspace(0, 2, 401)]
    assert float((x - control.decode(features)).square().sum()) <= min(errors) + 1e-2


def test_no_held_out_text_is_refused() -> None:
    with pytest.raises(UsageError, match="no held-out text"):
        SiteTest(llama(), [], SITE, NO_LIMIT)
