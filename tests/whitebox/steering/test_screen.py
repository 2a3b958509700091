"""Gradients against true doses by hooks, and on a model whose weights are centred."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
from scipy.stats import spearmanr  # noqa: E402

from harness.errors import UsageError  # noqa: E402
from harness.whitebox.sources.sites import Site  # noqa: E402
from harness.whitebox.steering.interventions import Steering, token_std  # noqa: E402
from harness.whitebox.steering.screen import first_order_effects, target_gradient, token_gradient  # noqa: E402
from harness.whitebox.steering.steering import Steerer  # noqa: E402

from ..tiny_models import (  # noqa: E402
    LAYERS,
    MAIN,
    PROMPT,
    WIDTH,
    Build,
    changing,
    directions,
    gpt2,
    hooked,
    neox,
    plain,
    sites,
)

TARGET = [3, 5, 40]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Operations this small only wait for each other on more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def odds(logits: Any) -> float:
    """Log-odds of the target, from logits of double precision."""
    p = logits.softmax(-1)[TARGET].sum()
    return float(p.log() - (1 - p).log())


def slope(model: Any, site: Site, vector: Any, positions: str) -> float:
    """The effect of a unit of dose on the log-odds, by a central difference of hooked forward passes."""
    step = 1e-3  # transformers' RMS norms compute in float32 whatever the model is in
    up, down = (odds(hooked(model, site, sign * step * vector, positions)) for sign in (1, -1))
    return (up - down) / (2 * step)


@pytest.mark.parametrize("positions", ["all", "last"])
@pytest.mark.parametrize("build", MAIN)
def test_first_order_effects_are_the_slopes_of_true_doses_at_every_site(build: Build, positions: Any) -> None:
    model = build().double()
    steerer, vectors = Steerer(model), directions(3).double()
    prompt = steerer.cache(PROMPT)
    for site in sites(model):
        found = first_order_effects(target_gradient(steerer, prompt, site, TARGET), vectors, positions=positions)
        np.testing.assert_allclose(found, [slope(model, site, v, positions) for v in vectors], rtol=0.01, atol=1e-3)


@pytest.mark.parametrize("build", MAIN)
def test_a_screen_in_float32_ranks_and_signs_features_as_small_true_doses_do(build: Build) -> None:
    model, site = build(), Site(layer=1, submodule="resid_post")
    steerer, W_dec = Steerer(model), directions(400, seed=9)
    prompt = steerer.cache(PROMPT)
    screened = first_order_effects(target_gradient(steerer, prompt, site, TARGET), W_dec).numpy()
    dose = 0.01
    true = steerer.effects(prompt, Steering(site=site, directions=W_dec, doses=torch.full((400,), dose)), [TARGET])
    shift = true.log_odds_shift[0] / dose
    assert np.median(np.abs(screened - shift) / np.abs(shift)) < 0.05
    assert (np.sign(screened) == np.sign(shift)).mean() > 0.97
    assert spearmanr(screened, shift).statistic > 0.99


def test_a_profile_weighs_each_position_in_the_screen_as_in_steering() -> None:
    model = gpt2().double()
    site, steerer, vectors = Site(layer=1, submodule="attn_out"), Steerer(model), directions(2).double()
    prompt = steerer.cache(PROMPT)
    profile = token_std(prompt.activation(site))
    found = first_order_effects(target_gradient(steerer, prompt, site, TARGET), vectors, profile=profile)
    expected = [slope(model, site, profile[:, None] * vector, "all") for vector in vectors]
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_the_log_probability_has_the_log_odds_gradient_times_the_mass_that_is_missing() -> None:
    model, site = gpt2().double(), Site(layer=0, submodule="resid_post")
    steerer = Steerer(model)
    prompt = steerer.cache(PROMPT)
    both = [target_gradient(steerer, prompt, site, TARGET, objective=name) for name in ("log_odds", "log_probability")]
    missing = 1 - prompt.clean_logits.softmax(-1)[TARGET].sum()
    np.testing.assert_allclose(both[1], missing * both[0], rtol=1e-9)


@pytest.mark.parametrize("build", MAIN)
@pytest.mark.parametrize("submodule", ["attn_out", "mlp_out", "resid_post"])
def test_a_token_gradient_is_the_way_in_which_the_embedding_fires_the_direction_most(build: Build, submodule: Any) -> None:
    model, site, vector = build().double(), Site(layer=1, submodule=submodule), directions(1)[0].double()
    at, step = [2, 6], 1e-3
    prompt = Steerer(model).cache(PROMPT)
    found = token_gradient(prompt, site, vector, at)
    expected = np.zeros(WIDTH)
    for coordinate in range(WIDTH):
        for position in at:
            ends = []
            for sign in (1, -1):
                delta = torch.zeros(len(PROMPT), WIDTH, dtype=torch.double)
                delta[position, coordinate] = sign * step
                ends.append(float(fired(model, site, delta, vector)[position]))
            expected[coordinate] += (ends[0] - ends[1]) / (2 * step)
    assert float(found.norm()) == pytest.approx(1)
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected), atol=2e-3)


def fired(model: Any, site: Site, delta: Any, vector: Any) -> Any:
    """The site's activation along `vector` at each position, `delta` being added to what enters the first block."""
    blocks = {"GPT2LMHeadModel": "transformer.h", "GPTNeoXForCausalLM": "gpt_neox.layers"}.get(
        type(model).__name__, "model.layers"
    )
    hook = model.get_submodule(f"{blocks}.0").register_forward_pre_hook(lambda _, inputs: (inputs[0] + delta, *inputs[1:]))
    seen: list[Any] = []
    with changing(model, site, lambda x: seen.append(x) or x):
        plain(model)
    hook.remove()
    return seen[0][0] @ vector


def centred(model: Any) -> Any:
    """GPT-2 or NeoX with everything that writes to the stream centred over d_model, and the unembedding over the vocabulary.

    The model says the same: its norms take the mean away, and a softmax ignores what all logits share.
    """
    gpt2_like = type(model).__name__ == "GPT2LMHeadModel"
    blocks = model.transformer.h if gpt2_like else model.gpt_neox.layers
    with torch.no_grad():
        if gpt2_like:
            model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())  # tied: the copy is centred by its own
            embeddings = [model.transformer.wte.weight, model.transformer.wpe.weight]
            writers = [layer for block in blocks for layer in (block.attn.c_proj, block.mlp.c_proj)]
        else:
            embeddings = [model.gpt_neox.embed_in.weight]
            writers = [layer for block in blocks for layer in (block.attention.dense, block.mlp.dense_4h_to_h)]
        for weight in embeddings:
            weight -= weight.mean(-1, keepdim=True)
        for layer in writers:
            layer.weight -= layer.weight.mean(-1 if gpt2_like else 0, keepdim=True)
            layer.bias -= layer.bias.mean()
        model.lm_head.weight -= model.lm_head.weight.mean(0, keepdim=True)
    return model


@pytest.mark.parametrize("build", [gpt2, neox])
@pytest.mark.parametrize("submodule", ["attn_out", "mlp_out"])
def test_our_token_gradient_does_not_vanish_on_a_centred_model_where_the_gradient_of_a_sum_does(
    build: Build, submodule: Any
) -> None:
    site, feature, ones = Site(layer=1, submodule=submodule), directions(1)[0], torch.ones(WIDTH)
    raw, bare = Steerer(build()).cache(PROMPT), Steerer(centred(build())).cache(PROMPT)
    np.testing.assert_allclose(bare.clean_logits.softmax(-1), raw.clean_logits.softmax(-1), atol=1e-5)
    token_gradient(raw, site, ones, [2, 6])  # there the sum does have one
    with pytest.raises(UsageError, match=f"{submodule}.1: the token gradient vanishes"):
        token_gradient(bare, site, ones, [2, 6])
    # On the centred model a direction acts as its part without the mean does on the other.
    expected = token_gradient(raw, site, feature - feature.mean(), [2, 6])
    np.testing.assert_allclose(token_gradient(bare, site, feature, [2, 6]), expected, atol=1e-4)


@pytest.mark.parametrize("build", [gpt2, neox])
def test_centring_leaves_the_screen_of_zero_mean_features_as_it_was(build: Build) -> None:
    vectors = directions(50)
    vectors -= vectors.mean(-1, keepdim=True)
    found = []
    for model in (build(), centred(build())):
        steerer = Steerer(model)
        prompt = steerer.cache(PROMPT)
        gradients = [target_gradient(steerer, prompt, Site(layer=i, submodule="mlp_out"), TARGET) for i in range(LAYERS)]
        found.append(torch.stack([first_order_effects(gradient, vectors) for gradient in gradients]))
    assert found[0].abs().mean() > 0.01
    np.testing.assert_allclose(found[1], found[0], rtol=1e-3, atol=1e-4)


def test_positions_outside_the_prompt_are_refused() -> None:
    prompt = Steerer(gpt2()).cache(PROMPT)
    for positions in ([], [9], [-1]):
        with pytest.raises(UsageError, match="of a prompt of 9 tokens"):
            token_gradient(prompt, Site(layer=0, submodule="mlp_out"), directions(1)[0], positions)
