"""Tiny models with random weights of every architecture that can be steered, and forward hooks on them as an oracle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers

from harness.whitebox.sources.sites import Site

VOCABULARY = 61
WIDTH = 32
WINDOW = 5
LAYERS = 3
PROMPT = [7, 3, 56, 20, 20, 41, 9, 2, 33]  # longer than the sliding window
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]
NEOX = {key: value for key, value in SHAPE.items() if key not in ("num_key_value_heads", "head_dim")}
Build = Callable[[], Any]


def strong(model: Any) -> Any:
    """Fixed random weights, large enough that every site matters."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


def gpt2() -> Any:
    config = transformers.GPT2Config(vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=LAYERS, n_head=4, n_positions=64)
    return strong(transformers.GPT2LMHeadModel(config))


def neox() -> Any:
    return strong(transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**NEOX)))


def neox_sequential() -> Any:
    return strong(transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**NEOX, use_parallel_residual=False)))


def llama() -> Any:
    return strong(transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE)))


def qwen2() -> Any:
    return strong(transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SHAPE)))


def mistral() -> Any:
    return strong(transformers.MistralForCausalLM(transformers.MistralConfig(**SHAPE, sliding_window=WINDOW)))


def gemma2() -> Any:
    config = transformers.Gemma2Config(**SHAPE, sliding_window=WINDOW, query_pre_attn_scalar=8, layer_types=SLIDING)
    model = strong(transformers.Gemma2ForCausalLM(config))
    model.set_attn_implementation("eager")
    return model


def gemma3() -> Any:
    config = transformers.Gemma3TextConfig(**SHAPE, sliding_window=WINDOW, query_pre_attn_scalar=8, layer_types=SLIDING)
    return strong(transformers.Gemma3ForCausalLM(config))


def gemma3_eager() -> Any:
    model = gemma3()
    model.set_attn_implementation("eager")
    return model


MAIN = [gpt2, neox, llama, gemma3]
BUILDS = [*MAIN, neox_sequential, qwen2, mistral, gemma2, gemma3_eager]
SUBMODULES = ["attn_out", "mlp_out", "resid_mid", "resid_post"]


def part(model: Any, layer: int, name: str) -> Any:
    """The module that gives what is added at a site of `model`, or reads it (`mlp_norm`), or ends its MLP (`down`)."""
    kind = type(model).__name__
    if kind.startswith("GPT2"):
        block = model.transformer.h[layer]
        names = {"attn_out": "attn", "mlp_out": "mlp", "mlp_norm": "ln_2", "down": "mlp.c_proj"}
    elif kind.startswith("GPTNeoX"):
        block = model.gpt_neox.layers[layer]
        names = {"attn_out": "attention", "mlp_out": "mlp", "mlp_norm": "post_attention_layernorm", "down": "mlp.dense_4h_to_h"}
    elif kind.startswith("Gemma"):
        block = model.model.layers[layer]
        names = {"attn_out": "post_attention_layernorm", "mlp_out": "post_feedforward_layernorm"}
        names |= {"mlp_norm": "pre_feedforward_layernorm", "down": "mlp.down_proj"}
    else:
        block = model.model.layers[layer]
        names = {"attn_out": "self_attn", "mlp_out": "mlp", "mlp_norm": "post_attention_layernorm", "down": "mlp.down_proj"}
    return block if name == "resid_post" else block.get_submodule(names[name])


@contextmanager
def changing(model: Any, site: Site, change: Callable[[Any], Any]) -> Iterator[None]:
    """Hooks that replace what is computed at `site`, (1, T, d_model), by `change` of it."""

    def after(_module: Any, _inputs: Any, output: Any) -> Any:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    hooks = []
    if site.submodule == "resid_mid":  # no module gives it: the MLP's norm reads it, and the block's end still holds it
        delta: list[Any] = []

        def before(_module: Any, inputs: Any) -> Any:
            delta.append(change(inputs[0]) - inputs[0])
            return (inputs[0] + delta[0],)

        hooks.append(part(model, site.layer, "mlp_norm").register_forward_pre_hook(before))
        block = part(model, site.layer, "resid_post")
        hooks.append(block.register_forward_hook(lambda _module, _inputs, output: output + delta[0]))
    else:
        hooks.append(part(model, site.layer, site.submodule).register_forward_hook(after))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def plain(model: Any, prompt: list[int] = PROMPT) -> Any:
    with torch.no_grad():
        return model(torch.tensor([prompt])).logits[0, -1]


def hooked(model: Any, site: Site, delta: Any, positions: str = "all") -> Any:
    """The last logits with `delta`, (d_model) or (T, d_model), added at `site`."""
    kept = torch.ones(len(PROMPT), 1) if positions == "all" else torch.eye(len(PROMPT))[-1][:, None]
    with changing(model, site, lambda x: x + kept * delta):
        return plain(model)


def directions(n: int, seed: int = 1) -> Any:
    return torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(seed))


def sites(model: Any) -> list[Site]:
    parallel = type(model).__name__ == "GPTNeoXForCausalLM" and model.config.use_parallel_residual
    return [Site(layer=i, submodule=s) for i in range(LAYERS) for s in SUBMODULES if not (parallel and s == "resid_mid")]
