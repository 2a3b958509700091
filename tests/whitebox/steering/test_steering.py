"""The steering engine against forward hooks on transformers' own models, tiny and with random weights."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from harness.errors import UnknownNameError, UsageError  # noqa: E402
from harness.whitebox.sources.sites import Site  # noqa: E402
from harness.whitebox.steering.interventions import (  # noqa: E402
    CoordinateScaling,
    NeuronScaling,
    Steering,
    doses_in_std,
    std_along,
    token_std,
)
from harness.whitebox.steering.steering import Steerer, log_odds, target_mask  # noqa: E402

from ..tiny_models import (  # noqa: E402
    BUILDS,
    LAYERS,
    MAIN,
    PROMPT,
    VOCABULARY,
    WIDTH,
    Build,
    changing,
    directions,
    gemma3,
    gpt2,
    hooked,
    llama,
    mistral,
    neox,
    part,
    plain,
    sites,
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Operations this small only wait for each other on more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=1e-4, rtol=1e-5)


def everything(steerer: Steerer, intervention: Any, prompt: list[int] = PROMPT) -> Any:
    return torch.cat(list(steerer.logits(steerer.cache(prompt), intervention)))


@pytest.mark.parametrize("positions", ["all", "last"])
@pytest.mark.parametrize("build", BUILDS)
def test_logits_equal_a_hooked_forward_pass_at_every_site(build: Build, positions: Any) -> None:
    model = build()
    steerer, clean = Steerer(model), plain(model)
    vectors, doses = directions(2), torch.tensor([[0.0, 1.5], [-0.7, 3.0]])
    for site in sites(model):
        found = everything(steerer, Steering(site=site, directions=vectors, doses=doses, positions=positions))
        expected = [hooked(model, site, doses[i, j] * vectors[i], positions) for i in range(2) for j in range(2)]
        close(found, torch.stack(expected))
        assert (expected[1] - clean).abs().max() > 0.05, f"{site} does not matter, so agreeing there means nothing"


@pytest.mark.parametrize("build", [llama, mistral, gemma3])
def test_the_oracle_tells_all_positions_from_the_last(build: Build) -> None:
    model, site = build(), Site(layer=0, submodule="resid_post")
    both = [hooked(model, site, 2 * directions(1)[0], positions) for positions in ("all", "last")]
    assert (both[0] - both[1]).abs().max() > 0.05


def test_in_a_parallel_block_three_sites_are_one_intervention_and_the_middle_does_not_exist() -> None:
    model = neox()
    steerer = Steerer(model)
    doses = torch.tensor([2.0, 2.0])
    for layer in range(LAYERS):
        same = [
            everything(steerer, Steering(site=Site(layer=layer, submodule=name), directions=directions(2), doses=doses))
            for name in ("attn_out", "mlp_out", "resid_post")
        ]
        for one, other in pairwise(same):
            assert torch.equal(one, other)
        oracle = [hooked(model, Site(layer=layer, submodule=name), 2 * directions(2)[0]) for name in ("attn_out", "mlp_out")]
        close(oracle[0], oracle[1])
    with pytest.raises(UsageError, match=r"resid_mid\.1: the blocks of GPTNeoXForCausalLM are parallel"):
        steerer.cache(PROMPT).activation(Site(layer=1, submodule="resid_mid"))


@pytest.mark.parametrize("build", BUILDS)
def test_what_is_read_at_a_site_is_what_the_model_computes_there(build: Build) -> None:
    model = build()
    prompt = Steerer(model).cache(PROMPT)
    for site in sites(model):
        seen: list[Any] = []
        with changing(model, site, lambda x, seen=seen: seen.append(x) or x):
            close(plain(model), prompt.clean_logits)
        close(prompt.activation(site), seen[0][0])


@pytest.mark.parametrize("build", MAIN)
def test_how_a_request_is_cut_into_batches_does_not_change_the_answers(build: Build) -> None:
    model, site = build(), Site(layer=1, submodule="attn_out")
    steering = Steering(site=site, directions=directions(7), doses=torch.linspace(-2, 2, 21).reshape(7, 3))
    small = Steerer(model, max_tokens=2 * len(PROMPT))
    batches = list(small.logits(small.cache(PROMPT), steering))
    assert [len(batch) for batch in batches] == [2] * 10 + [1]
    close(torch.cat(batches), everything(Steerer(model), steering))


@pytest.mark.parametrize("build", MAIN)
def test_effects_are_those_of_the_hooked_distributions(build: Build) -> None:
    model, site = build(), Site(layer=1, submodule="mlp_out")
    vectors, doses = directions(3), torch.tensor([[0.0, 1.0], [5.0, -5.0], [-1.0, 0.2]])
    targets = [[3, 5, 40], [11]]
    steerer = Steerer(model, max_tokens=2 * len(PROMPT))
    effects = steerer.effects(steerer.cache(PROMPT), Steering(site=site, directions=vectors, doses=doses), targets)
    clean = plain(model).double().softmax(-1).numpy()
    assert effects.log_odds_shift.shape == (2, 3, 2)
    for i, j in np.ndindex(3, 2):
        moved = hooked(model, site, doses[i, j] * vectors[i]).double().softmax(-1).numpy()
        for row, ids in enumerate(targets):
            odds = [np.log(p[ids].sum()) - np.log1p(-p[ids].sum()) for p in (moved, clean)]
            assert effects.log_odds_shift[row, i, j] == pytest.approx(odds[0] - odds[1], abs=1e-4)
        assert effects.total_variation[i, j] == pytest.approx(np.abs(moved - clean).sum() / 2, abs=1e-5)
        assert effects.top1_changed[i, j] == (moved.argmax() != clean.argmax())
    assert effects.total_variation[0, 0] < 1e-5 < effects.total_variation[1, 0]
    assert effects.top1_changed.any()


@pytest.mark.parametrize("height", [-40.0, 0.0, 40.0])
def test_log_odds_stay_exact_where_a_target_has_almost_no_or_almost_all_mass(height: float) -> None:
    logits = torch.zeros(1, 10)
    logits[0, :2] = height
    odds = float(log_odds(logits, target_mask([0, 1], 10)))
    assert odds == pytest.approx(height + np.log(2 / 8), rel=1e-6)  # in float32, 1 - P would be 0 at 40


def test_no_interventions_give_empty_effects() -> None:
    steerer = Steerer(gpt2())
    steering = Steering(site=Site(layer=0, submodule="resid_post"), directions=torch.empty(0, WIDTH), doses=torch.empty(0, 4))
    effects = steerer.effects(steerer.cache(PROMPT), steering, [[1]])
    assert (effects.log_odds_shift.shape, effects.total_variation.shape) == ((1, 0, 4), (0, 4))


@pytest.mark.parametrize("build", MAIN)
def test_a_prompt_of_one_token_is_steered_too(build: Build) -> None:
    model, site = build(), Site(layer=0, submodule="resid_post")
    steerer = Steerer(model)
    vector = directions(1)
    both = [
        everything(steerer, Steering(site=site, directions=vector, doses=torch.ones(1), positions=positions), [9])
        for positions in ("all", "last")
    ]
    with changing(model, site, lambda x: x + vector[0]):
        expected = plain(model, [9])
    close(both[0][0], expected)
    close(both[1][0], expected)


@pytest.mark.parametrize("build", MAIN)
def test_a_profile_weighs_the_dose_at_each_position(build: Build) -> None:
    model, site = build(), Site(layer=0, submodule="attn_out")
    profile = torch.linspace(0.2, 3, len(PROMPT))
    steering = Steering(site=site, directions=directions(1), doses=torch.ones(1), profile=profile)
    close(everything(Steerer(model), steering)[0], hooked(model, site, profile[:, None] * directions(1)[0]))


def test_a_dose_in_standardised_space_is_what_a_layer_normalised_dictionary_decodes() -> None:
    x, direction, act = directions(9, seed=4) * 7 + 3, directions(1)[0], 2.5
    mean, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
    decoded = ((x - mean) / std + act * direction) * std + mean
    close(x + act * token_std(x)[:, None] * direction, decoded)


def test_natural_doses_move_the_activation_by_as_many_of_its_own_standard_deviations() -> None:
    generator = np.random.default_rng(3)
    corpus = generator.standard_normal((4000, WIDTH)) @ generator.standard_normal((WIDTH, WIDTH))
    covariance = torch.from_numpy(np.cov(corpus.T))
    vectors = directions(5).double() * 3
    doses = doses_in_std(vectors, torch.tensor([1.0, -2.0]), std_along(vectors, covariance))
    for vector, (one, minus_two) in zip(vectors.numpy(), doses.numpy(), strict=True):
        unit = vector / np.linalg.norm(vector)
        sd = (corpus @ unit).std(ddof=1)
        assert one * np.linalg.norm(vector) == pytest.approx(sd, rel=1e-6)
        assert minus_two == pytest.approx(-2 * one)
    assert doses_in_std(vectors, torch.tensor([1.0]), 4.0)[2, 0] == pytest.approx(4 / float(vectors[2].norm()))


def test_a_direction_of_length_zero_has_no_natural_dose() -> None:
    with pytest.raises(UsageError, match="doses: not all are finite"):
        doses_in_std(torch.zeros(1, WIDTH), torch.ones(1), 1.0)


@pytest.mark.parametrize("positions", ["all", "last"])
@pytest.mark.parametrize("build", BUILDS)
def test_scaling_a_neuron_equals_a_hook_on_the_hidden_activations(build: Build, positions: Any) -> None:
    model = build()
    steerer, clean = Steerer(model), plain(model)
    neurons, factors = torch.tensor([0, 31, 47]), torch.tensor([[0.0, 1.0, 20.0]] * 3)
    span = slice(None) if positions == "all" else slice(-1, None)
    for layer in (0, LAYERS - 1):
        scaling = NeuronScaling(layer=layer, neurons=neurons, factors=factors, positions=positions)
        found = everything(steerer, scaling).reshape(3, 3, -1)
        close(found[:, 1], clean.expand(3, -1))
        for i, j in np.ndindex(3, 3):

            def scale(_module: Any, inputs: Any, i: int = i, j: int = j) -> Any:
                hidden = inputs[0].clone()
                hidden[:, span, neurons[i]] *= factors[i, j]
                return (hidden,)

            hook = part(model, layer, "down").register_forward_pre_hook(scale)
            expected = plain(model)
            hook.remove()
            close(found[i, j], expected)
        assert (found[:, 2] - clean).abs().max() > 0.05


@pytest.mark.parametrize("positions", ["all", "last"])
@pytest.mark.parametrize("build", MAIN)
def test_scaling_a_coordinate_equals_a_hook_on_the_site(build: Build, positions: Any) -> None:
    model = build()
    steerer = Steerer(model)
    members, factors = torch.tensor([0, 31]), torch.tensor([[0.0, 12.0]] * 2)
    span = slice(None) if positions == "all" else slice(-1, None)
    for site in sites(model):
        found = everything(
            steerer, CoordinateScaling(site=site, coordinates=members, factors=factors, positions=positions)
        ).reshape(2, 2, -1)
        for i, j in np.ndindex(2, 2):

            def scale(x: Any, i: int = i, j: int = j) -> Any:
                changed = x.clone()
                changed[:, span, members[i]] *= factors[i, j]
                return changed

            with changing(model, site, scale):
                close(found[i, j], plain(model))


@pytest.mark.parametrize("build", MAIN)
def test_the_model_stays_as_it_was(build: Build) -> None:
    model = build()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    activations = [type(module) for module in model.modules()]
    steerer = Steerer(model)
    everything(steerer, Steering(site=Site(layer=0, submodule="attn_out"), directions=directions(2), doses=torch.ones(2)))
    everything(steerer, NeuronScaling(layer=0, neurons=torch.tensor([1]), factors=torch.tensor([3.0])))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [type(module) for module in model.modules()] == activations
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_an_unknown_architecture_is_refused_with_the_known_ones() -> None:
    config = transformers.OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        ffn_dim=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        word_embed_proj_dim=WIDTH,
    )
    with pytest.raises(UnknownNameError, match="unknown architecture 'OPTForCausalLM'") as caught:
        Steerer(transformers.OPTForCausalLM(config))
    assert caught.value.hint


def test_shorter_numbers_are_refused() -> None:
    with pytest.raises(UsageError, match=r"steering needs float32, the model's numbers are torch\.bfloat16"):
        Steerer(gpt2().to(torch.bfloat16))


def test_a_model_that_computes_something_else_between_its_parts_is_refused() -> None:
    model = llama()
    model.model.layers[1].register_forward_hook(lambda _module, _inputs, output: output * 1.01)
    with pytest.raises(UsageError, match=r"LlamaForCausalLM cannot be steered: at .* logits differ from a hooked"):
        Steerer(model)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "the prompt has no token"),
        ([1] * 65, "the prompt has 65 tokens; the model takes at most 64"),
        ([1, VOCABULARY], r"a token id outside 0\.\.60"),
        ([-1], r"a token id outside 0\.\.60"),
    ],
)
def test_a_prompt_that_cannot_be_run_is_refused(ids: list[int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Steerer(gpt2()).cache(ids)


def test_bad_requests_are_refused_in_words() -> None:
    steerer = Steerer(gpt2())
    prompt = steerer.cache(PROMPT)
    site = Site(layer=0, submodule="resid_post")
    short = Steering(site=site, directions=directions(1), doses=torch.ones(1), profile=torch.ones(4))
    with pytest.raises(UsageError, match=r"directions \(2, 32\) and doses \(3,\) do not fit"):
        Steering(site=site, directions=directions(2), doses=torch.ones(3))
    with pytest.raises(UsageError, match="directions: not all are finite numbers"):
        Steering(site=site, directions=torch.full((1, WIDTH), float("nan")), doses=torch.ones(1))
    with pytest.raises(UsageError, match=r"resid_post\.3: GPT2LMHeadModel has layers 0 to 2"):
        prompt.activation(Site(layer=3, submodule="resid_post"))
    with pytest.raises(UsageError, match="16 wide, the stream 32"):
        list(steerer.logits(prompt, Steering(site=site, directions=torch.ones(1, 16), doses=torch.ones(1))))
    with pytest.raises(UsageError, match=r"a profile of shape \(4,\) for 9 tokens"):
        list(steerer.logits(prompt, short))
    with pytest.raises(UsageError, match="the MLP of layer 0 has neurons 0 to 127"):
        list(steerer.logits(prompt, NeuronScaling(layer=0, neurons=torch.tensor([128]), factors=torch.ones(1))))
    fine = Steering(site=site, directions=directions(1), doses=torch.ones(1))
    for target in ([], range(VOCABULARY)):
        with pytest.raises(UsageError, match="empty or the whole vocabulary"):
            steerer.effects(prompt, fine, [list(target)])
    with pytest.raises(UsageError, match=r"a target has a token id outside 0\.\.60"):
        steerer.effects(prompt, fine, [[VOCABULARY]])
