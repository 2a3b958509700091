"""How a causal language model of transformers is taken apart: which attribute is a block's attention, which its MLP.

A decoder's block adds two things to the residual stream, what its attention and what its MLP gives:

    sequential   mid = x + attn_out(x)      out = mid + mlp_out(mid)       GPT-2, Llama, Gemma
    parallel                                out = x + attn_out(x) + mlp_out(x)     GPT-NeoX

`attn_out` and `mlp_out` are what is *added*: where a block has a norm after its attention or MLP (Gemma), they are read and
changed behind that norm, as TransformerLens does. So every site is one of two places of the stream, `mid` or the block's end.

Owns names and the arithmetic of a block. Knows nothing of interventions.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers.activations import NewGELUActivation

from harness.errors import UnknownNameError, UsageError
from harness.whitebox.sources.sites import Site, Submodule

Call = Mapping[str, Any]
"""What a model passes to one block's attention beside the hidden states: masks, positions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """Attribute names: `body` of the model, `blocks` and `final_norm` of the body, the rest of a block, `down` of its MLP.

    `down` is the projection of an MLP's hidden activations to the residual stream. `cache` is the argument in which the
    attention takes its cache.
    """

    body: str = "model"
    blocks: str = "layers"
    final_norm: str = "norm"
    attention_norm: str = "input_layernorm"
    attention: str = "self_attn"
    after_attention: str | None = None
    mlp_norm: str = "post_attention_layernorm"
    mlp: str = "mlp"
    down: str = "down_proj"
    after_mlp: str | None = None
    cache: str = "past_key_values"


LLAMA = Names()
GEMMA = Names(
    after_attention="post_attention_layernorm", mlp_norm="pre_feedforward_layernorm", after_mlp="post_feedforward_layernorm"
)
GPT2 = Names(
    body="transformer",
    blocks="h",
    final_norm="ln_f",
    attention_norm="ln_1",
    attention="attn",
    mlp_norm="ln_2",
    down="c_proj",
)
NEOX = Names(body="gpt_neox", final_norm="final_layer_norm", attention="attention", down="dense_4h_to_h", cache="layer_past")

ARCHITECTURES = {
    "GPT2LMHeadModel": GPT2,
    "GPTNeoXForCausalLM": NEOX,
    "LlamaForCausalLM": LLAMA,
    "MistralForCausalLM": LLAMA,
    "Qwen2ForCausalLM": LLAMA,
    "Gemma2ForCausalLM": GEMMA,
    "Gemma3ForCausalLM": GEMMA,
}


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Place:
    """A point of the residual stream: behind block `layer`, or (`mid`) between its attention and its MLP."""

    layer: int
    mid: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Block:
    """The parts of one block; hidden states are (B, T, d_model).

    `outputs`: the model's own modules that give what is read at a site.
    """

    attention_norm: nn.Module
    attention: nn.Module
    after_attention: nn.Module
    mlp_norm: nn.Module
    mlp: nn.Module
    after_mlp: nn.Module
    down: nn.Module
    outputs: Mapping[Submodule, nn.Module]
    parallel: bool

    def attn_out(self, x: Tensor, call: Call) -> Tensor:
        """What the attention adds to the stream."""
        return self.after_attention(self.attention(hidden_states=self.attention_norm(x), **call)[0])

    def mlp_out(self, x: Tensor) -> Tensor:
        """What the MLP adds to the stream."""
        return self.after_mlp(self.mlp(self.mlp_norm(x)))

    def run(self, x: Tensor, call: Call, *, last_only: bool) -> Tensor:
        """The stream behind the block; with `last_only` just its last position, for which most of the work falls away."""
        attn_out = self.attn_out(x, call)
        if last_only:
            x, attn_out = x[:, -1:], attn_out[:, -1:]
        if self.parallel:
            return x + attn_out + self.mlp_out(x)
        mid = x + attn_out
        return mid + self.mlp_out(mid)

    def write_directions(self, neurons: Tensor) -> Tensor:
        """What one unit of each hidden neuron's activation writes, before any norm, (n, d_model)."""
        if isinstance(self.down, nn.Linear):
            return self.down.weight[:, neurons].T
        return self.down.weight[neurons]  # GPT-2's Conv1D holds the transpose

    def d_mlp(self) -> int:
        """How many hidden neurons the MLP has."""
        return int(self.down.weight.shape[1 if isinstance(self.down, nn.Linear) else 0])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Decoder:
    """A model in parts: its blocks, and how the stream's last position becomes logits."""

    name: str
    d_model: int
    blocks: tuple[Block, ...]
    final_norm: nn.Module
    head: nn.Module
    softcap: float | None
    cache: str

    def place(self, site: Site) -> Place:
        """Where of the stream a change at `site` enters; raises UsageError for a site that the model has not."""
        n_layers = len(self.blocks)
        if not 0 <= site.layer < n_layers:
            raise UsageError(
                f"{site}: {self.name} has layers 0 to {n_layers - 1}", hint=f"the last site is resid_post.{n_layers - 1}"
            )
        parallel = self.blocks[site.layer].parallel
        if parallel and site.submodule == "resid_mid":
            raise UsageError(
                f"{site}: the blocks of {self.name} are parallel, nothing lies between attention and MLP",
                hint=f"attn_out.{site.layer}, mlp_out.{site.layer} and resid_post.{site.layer} are one and the same place",
            )
        return Place(layer=site.layer, mid=not parallel and site.submodule in ("attn_out", "resid_mid"))

    def logits(self, x: Tensor) -> Tensor:
        """The logits (B, V) of the stream's last position, `x` being (B, T, d_model)."""
        logits = self.head(self.final_norm(x[:, -1]))
        return logits if self.softcap is None else (logits / self.softcap).tanh() * self.softcap


def decoder_of(model: Any) -> Decoder:
    """The parts of `model`, which stays as it is; raises UnknownNameError for an architecture without an entry here."""
    name = type(model).__name__
    if name not in ARCHITECTURES:
        raise UnknownNameError("architecture", name, ARCHITECTURES)
    names = ARCHITECTURES[name]
    body = getattr(model, names.body)
    parallel = bool(names is NEOX and model.config.use_parallel_residual)
    return Decoder(
        name=name,
        d_model=int(model.config.hidden_size),
        blocks=tuple(_block(module, names, parallel) for module in getattr(body, names.blocks)),
        final_norm=getattr(body, names.final_norm),
        head=model.get_output_embeddings(),
        softcap=getattr(model.config, "final_logit_softcapping", None),
        cache=names.cache,
    )


def _block(module: Any, names: Names, parallel: bool) -> Block:
    def part(name: str | None) -> nn.Module:
        return nn.Identity() if name is None else getattr(module, name)

    mlp = part(names.mlp)
    outputs: dict[Submodule, nn.Module] = {
        "attn_out": part(names.after_attention or names.attention),
        "mlp_out": part(names.after_mlp or names.mlp),
        "resid_post": module,
    }
    return Block(
        attention_norm=part(names.attention_norm),
        attention=part(names.attention),
        after_attention=part(names.after_attention),
        mlp_norm=part(names.mlp_norm),
        mlp=_with_fused_gelu(mlp),
        after_mlp=part(names.after_mlp),
        down=getattr(mlp, names.down),
        outputs=outputs,
        parallel=parallel,
    )


def _with_fused_gelu(mlp: Any) -> nn.Module:
    """`mlp`, or a twin of the same weights whose GELU is one kernel: GPT-2's, in eight steps, takes as long as its matrices."""
    if not isinstance(getattr(mlp, "act", None), NewGELUActivation):
        return mlp
    twin = copy.copy(mlp)
    twin._modules = {**mlp._modules, "act": nn.GELU(approximate="tanh")}
    return twin
