"""Reading and replacing activations, against transformers' own hidden states and the arithmetic of a block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tokenizers import Tokenizer  # noqa: E402
from tokenizers.models import WordLevel  # noqa: E402
from tokenizers.pre_tokenizers import WhitespaceSplit  # noqa: E402

from harness.errors import UnknownNameError, UsageError  # noqa: E402
from harness.whitebox.sources.activations import batched, blocks_of, check_sites, read, replaced  # noqa: E402
from harness.whitebox.sources.packing import contexts, packed  # noqa: E402
from harness.whitebox.sources.sites import Site  # noqa: E402

from ..tiny_models import LAYERS, PROMPT, WIDTH, Build, gemma3, gpt2, llama, neox  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

BATCH = [PROMPT, PROMPT[::-1]]
SEQUENTIAL = [gpt2, llama, gemma3]


def site(submodule: Any, layer: int) -> Site:
    return Site(layer=layer, submodule=submodule)


def stream(model: Any) -> Sequence[Any]:
    """(2, T, d) each: before the first block, then behind every block but the last, whose state is normed."""
    with torch.no_grad():
        hidden: Sequence[Any] = model(torch.tensor(BATCH), output_hidden_states=True).hidden_states
    return hidden


def behind_block_1(model: Any) -> Any:
    """(2, T, d): what block 2 is given. transformers' own hidden states are kept before hooks change them."""
    given = []

    def keep(_module: Any, args: Any, kwargs: Any) -> None:
        given.append(args[0] if args else kwargs["hidden_states"])

    handle = blocks_of(model)[2].register_forward_pre_hook(keep, with_kwargs=True)
    with torch.no_grad():
        model(torch.tensor(BATCH))
    handle.remove()
    return given[0]


def read_all(model: Any, sites: Sequence[Site]) -> dict[Site, Any]:
    (found,) = read(model, [BATCH], sites, first=0)
    return {key: value.view(2, len(PROMPT), WIDTH) for key, value in found.items()}


@pytest.mark.parametrize("build", [*SEQUENTIAL, neox])
def test_resid_post_is_the_stream_behind_the_block(build: Build) -> None:
    model = build()
    hidden = stream(model)
    found = read_all(model, [site("resid_post", layer) for layer in range(LAYERS - 1)])
    for layer in range(LAYERS - 1):
        torch.testing.assert_close(found[site("resid_post", layer)], hidden[layer + 1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("build", [*SEQUENTIAL, neox])
def test_what_attention_and_mlp_add_makes_up_the_stream(build: Build) -> None:
    model = build()
    hidden = stream(model)
    found = read_all(model, [site("attn_out", 1), site("mlp_out", 1)])
    added = found[site("attn_out", 1)] + found[site("mlp_out", 1)]
    torch.testing.assert_close(hidden[1] + added, hidden[2], atol=1e-4, rtol=1e-4)
    assert float(found[site("mlp_out", 1)].norm()) > 1e-3


@pytest.mark.parametrize("build", SEQUENTIAL)
def test_resid_mid_lies_between_attention_and_mlp(build: Build) -> None:
    model = build()
    found = read_all(model, [site("attn_out", 1), site("resid_mid", 1)])
    torch.testing.assert_close(found[site("resid_mid", 1)], stream(model)[1] + found[site("attn_out", 1)], atol=1e-4, rtol=1e-4)


def test_the_first_position_is_left_out_and_rows_follow_the_contexts() -> None:
    model = llama()
    (found,) = read(model, [BATCH], [site("resid_post", 0)])
    torch.testing.assert_close(found[site("resid_post", 0)], stream(model)[1][:, 1:].flatten(0, 1), atol=1e-5, rtol=1e-5)


def test_no_block_behind_the_deepest_site_is_run_and_no_hook_stays() -> None:
    model = llama()
    ran = []
    for number, layer in enumerate(model.model.layers):
        layer.register_forward_pre_hook(lambda *_, number=number: ran.append(number))
    reading = read(model, [BATCH, BATCH], [site("resid_post", 1), site("mlp_out", 0)])
    next(reading)
    assert ran == [0, 1]
    assert torch.is_grad_enabled()
    model(torch.tensor(BATCH))  # while the reading is suspended
    assert ran == [0, 1, 0, 1, 2]


@pytest.mark.parametrize("build", [*SEQUENTIAL, neox])
@pytest.mark.parametrize("submodule", ["attn_out", "mlp_out", "resid_post"])
def test_a_replaced_activation_is_what_the_model_goes_on_from(build: Build, submodule: str) -> None:
    model = build()
    before = behind_block_1(model)
    rest = before - read_all(model, [site(submodule, 1)])[site(submodule, 1)]
    with replaced(model, site(submodule, 1), lambda x: x * 0 + 3.0):
        changed = behind_block_1(model)
    if build is neox or submodule != "attn_out":  # else the MLP answers to the change
        torch.testing.assert_close(changed, rest + 3.0, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(changed, before, atol=1e-2)
    torch.testing.assert_close(behind_block_1(model), before)


@pytest.mark.parametrize("build", SEQUENTIAL)
def test_a_replaced_resid_mid_reaches_the_mlp_and_the_stream(build: Build) -> None:
    model = build()
    value = torch.randn(WIDTH, generator=torch.Generator().manual_seed(2))
    with replaced(model, site("resid_mid", 1), lambda x: value.expand_as(x)):
        found = read_all(model, [site("mlp_out", 1), site("resid_mid", 1)])
        behind = behind_block_1(model)
    torch.testing.assert_close(found[site("resid_mid", 1)], value.expand(2, len(PROMPT), WIDTH), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(behind, value + found[site("mlp_out", 1)], atol=1e-4, rtol=1e-4)


def test_sites_that_a_model_has_not_are_refused() -> None:
    with pytest.raises(UsageError, match="the model has layers 0 to 2"):
        check_sites(llama(), [site("resid_post", LAYERS)])
    with pytest.raises(UsageError, match="side by side"):
        check_sites(neox(), [site("resid_mid", 0)])
    with pytest.raises(UnknownNameError, match="unknown architecture"):
        check_sites(torch.nn.Linear(1, 1), [site("resid_post", 0)])


def test_contexts_are_full_follow_the_text_and_begin_with_bos() -> None:
    words = {word: number for number, word in enumerate("abcdefgh")}
    tokenizer = Tokenizer(WordLevel(words, unk_token="a"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    texts = ["b c d", "e", "f g h b", "c"] * 400
    flat = [words[word] for text in texts for word in text.split()]
    plain = list(contexts(texts, tokenizer, length=7))
    assert plain == [flat[start : start + 7] for start in range(0, len(flat) - 6, 7)]
    headed = list(contexts(texts, tokenizer, length=8, bos=0))
    assert headed == [[0, *context] for context in plain]
    assert [len(part) for part in batched(iter(headed), 100)] == [100] * (len(headed) // 100) + [len(headed) % 100]


def test_spans_name_the_characters_of_each_token() -> None:
    tokenizer = Tokenizer(WordLevel({"a": 0, "bb": 1, "ccc": 2}, unk_token="a"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    texts = ["bb ccc a", "ccc bb", "a a bb"]
    found = [context.spans for context in packed(texts, tokenizer, length=5, bos=0)]
    assert [spans[0].tolist() for spans in found] == [[-1, 0, 0]] * 2
    words = [texts[document][start:end] for spans in found for document, start, end in spans[1:]]
    assert words == " ".join(texts).split()
