"""One prompt's clean run, kept: the residual stream at every site, and how the model calls each block's attention.

Masks and positions are taken from the model's own forward pass, so that none of them is built here.

Owns what is kept and how it is read. Knows nothing of interventions.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.whitebox.sources.architectures import Call, Decoder, Place
from harness.whitebox.sources.sites import Site


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CachedPrompt:
    """One prompt's clean run. Streams are (1, T, d_model) a layer; `clean_logits` (V,) are those of the last position.

    `calls`: how the model calls each block's attention on the whole prompt; `last_calls`: the same for the last position
    alone, in front of the kept keys and values of the others.
    """

    token_ids: tuple[int, ...]
    decoder: Decoder
    calls: tuple[Call, ...]
    last_calls: tuple[Call, ...]
    resid_pre: tuple[Tensor, ...]
    attn_out: tuple[Tensor, ...]
    mlp_out: tuple[Tensor, ...]
    resid_post: tuple[Tensor, ...]
    clean_logits: Tensor

    def residual(self, place: Place) -> Tensor:
        """The stream at `place`, (1, T, d_model)."""
        if place.mid:
            return self.resid_pre[place.layer] + self.attn_out[place.layer]
        return self.resid_post[place.layer]

    def activation(self, site: Site) -> Tensor:
        """What the model computes at `site`, (T, d_model); raises UsageError for a site that the model has not."""
        place = self.decoder.place(site)
        if site.submodule in ("attn_out", "mlp_out"):
            return (self.attn_out if site.submodule == "attn_out" else self.mlp_out)[site.layer][0]
        return self.residual(place)[0]

    def hidden(self, layer: int) -> tuple[Tensor, Tensor]:
        """The MLP's hidden activations (T, d_mlp), and what it makes of them before any norm, (T, d_model)."""
        block = self.decoder.blocks[layer]
        kept: list[Tensor] = []
        hook = block.down.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
        try:
            x = self.resid_pre[layer] if block.parallel else self.residual(Place(layer=layer, mid=True))
            with torch.no_grad():
                raw = block.mlp(block.mlp_norm(x))
        finally:
            hook.remove()
        return kept[0][0], raw[0]


def cache_prompt(model: Any, decoder: Decoder, token_ids: tuple[int, ...]) -> CachedPrompt:
    """Run a prompt that the model can take, once plainly and once in parts, and keep what the parts gave."""
    with torch.no_grad():
        x, calls, logits = _observe(model, decoder, token_ids)
        streams: list[tuple[Tensor, ...]] = []
        last_calls: list[Call] = []
        for block, call in zip(decoder.blocks, calls, strict=True):
            keys = _Keys()
            attn_out = block.attn_out(x, {**call, decoder.cache: keys})
            mid = x + attn_out
            mlp_out = block.mlp_out(x if block.parallel else mid)
            streams.append((x, attn_out, mlp_out, mid + mlp_out))
            last_calls.append({**_last_position(call), decoder.cache: keys.prefix()})
            x = mid + mlp_out
    resid_pre, attn, mlp, resid_post = zip(*streams, strict=True)
    return CachedPrompt(
        token_ids=token_ids,
        decoder=decoder,
        calls=calls,
        last_calls=tuple(last_calls),
        resid_pre=resid_pre,
        attn_out=attn,
        mlp_out=mlp,
        resid_post=resid_post,
        clean_logits=logits,
    )


class _Keys:
    """Stands where a block's attention expects a cache, and keeps the keys and values of the whole prompt, (1, H, T, D)."""

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self._kept = keys, values
        return keys, values

    def prefix(self) -> _Prefix:
        """What the last position finds before it."""
        return _Prefix(*(states[..., :-1, :] for states in self._kept))


class _Prefix:
    """Stands where a block's attention expects a cache: the keys and values of all positions but the last."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self._prefix = keys, values

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        before = (states.expand(len(keys), -1, -1, -1) for states in self._prefix)
        joined = (torch.cat(pair, dim=-2) for pair in zip(before, (keys, values), strict=True))
        return next(joined), next(joined)


def _observe(model: Any, decoder: Decoder, ids: tuple[int, ...]) -> tuple[Tensor, tuple[Call, ...], Tensor]:
    """The stream before the first block, how each attention is called, and the last logits (V,), of one plain forward pass."""
    calls: dict[int, Call] = {}
    start: list[Tensor] = []
    left_out = {"hidden_states", "use_cache", decoder.cache}

    def keep_call(layer: int) -> Callable[[Any, Any, Call], None]:
        def hook(_module: Any, _args: Any, kwargs: Call) -> None:
            calls[layer] = {name: value for name, value in kwargs.items() if name not in left_out}

        return hook

    with ExitStack() as hooks:
        first = decoder.blocks[0].outputs["resid_post"]
        hook = first.register_forward_pre_hook(lambda _, args: start.append(args[0]))
        hooks.callback(hook.remove)
        for layer, block in enumerate(decoder.blocks):
            hook = block.attention.register_forward_pre_hook(keep_call(layer), with_kwargs=True)
            hooks.callback(hook.remove)
        logits = last_logits(model, ids)
    return start[0], tuple(calls[layer] for layer in range(len(decoder.blocks))), logits


def last_logits(model: Any, ids: tuple[int, ...]) -> Tensor:
    """The last position's logits (V,) of the model's own forward pass."""
    tokens = torch.tensor([ids], device=model.device)
    return model(input_ids=tokens, use_cache=False, logits_to_keep=1).logits[0, -1]


def _last_position(call: Call) -> dict[str, Any]:
    """A block's call on the whole prompt, cut to its last position."""
    cut = dict(call)
    if isinstance(mask := call.get("attention_mask"), Tensor):
        cut["attention_mask"] = mask[..., -1:, :]
    if (positions := call.get("position_ids")) is not None:
        cut["position_ids"] = positions[..., -1:]
    if (embeddings := call.get("position_embeddings")) is not None:
        cut["position_embeddings"] = tuple(part[..., -1:, :] for part in embeddings)
    return cut
