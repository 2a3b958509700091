"""Activations at sites of a causal language model of transformers, read by hooks, and replaced in a forward pass.

`attn_out` and `mlp_out` are what is added to the residual stream: in Gemma 3 that is the output of the norm that follows
the attention or the MLP (TransformerLens' hook_attn_out and hook_mlp_out stand there too), elsewhere the output itself.

The first position of every context (see `packing`) is left out of what is read: whatever token stands there becomes the model's
attention sink, with a norm tens of times that of any other and nothing to say about the text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import torch

from harness.errors import UsageError
from harness.whitebox.sources.architectures import decoder_of
from harness.whitebox.sources.sites import Site

CONTEXT = 128
"""Tokens of a context."""

BATCH = 16
"""Contexts of one forward pass: on two cores matrix products gain nothing from more."""

Item = TypeVar("Item")

Edit = Callable[[Any], Any]
"""Activations (B, T, d_model) to what stands in their place, of the same shape."""


class _DeepEnough(Exception):  # noqa: N818  no error: it ends a forward pass behind the deepest site
    pass


def blocks_of(model: Any) -> Sequence[Any]:
    """The decoder blocks of `model`; raises UnknownNameError for an architecture that is not known."""
    return [block.outputs["resid_post"] for block in decoder_of(model).blocks]


def check_sites(model: Any, sites: Sequence[Site]) -> None:
    """Raises UsageError for a site that `model` does not have."""
    blocks = decoder_of(model).blocks
    n_layers = len(blocks)
    for site in sites:
        if site.layer >= n_layers:
            raise UsageError(
                f"{site}: the model has layers 0 to {n_layers - 1}", hint=f"the last one: resid_post.{n_layers - 1}"
            )
        if site.submodule == "resid_mid" and blocks[site.layer].parallel:
            raise UsageError(
                f"{site}: attention and MLP of this model run side by side, nothing lies between them",
                hint=f"read attn_out.{site.layer} or resid_post.{site.layer} instead",
            )


def read(
    model: Any, batches: Iterable[Sequence[Sequence[int]]], sites: Sequence[Site], *, first: int = 1
) -> Iterator[dict[Site, Any]]:
    """Activations of each batch of contexts, (n_contexts * (length - first), d_model) float32 a site.

    The positions before `first` are left out. No block behind the deepest site is run.
    """
    found: dict[Site, Any] = {}
    for batch in batches:
        ids = torch.tensor(batch, device=model.device)
        # Neither hooks nor torch.no_grad last across the yield: the caller may run the model, and trains on what it gets.
        with _readers(model, sites, found), torch.no_grad(), suppress(_DeepEnough):
            model.base_model(input_ids=ids, use_cache=False)
        yield {site: found[site][:, first:].flatten(0, 1).float() for site in sites}


def batched(items: Iterable[Item], size: int = BATCH) -> Iterator[list[Item]]:
    """`items` in lists of `size`; the last may be shorter."""
    part: list[Item] = []
    for item in items:
        part.append(item)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part


@contextmanager
def replaced(model: Any, site: Site, edit: Edit) -> Iterator[None]:
    """Within it, every forward pass of `model` goes on from `edit` of the activations at `site`."""
    block = decoder_of(model).blocks[site.layer]
    if site.submodule == "resid_mid":  # the stream itself is at no module's output: the attention makes up the difference
        before: list[Any] = []

        def remember(_: Any, args: Any, kwargs: Any) -> None:
            before[:] = [args[0] if args else kwargs["hidden_states"]]

        def put(stream: Any) -> Any:
            return edit(before[0] + stream) - before[0]

        handles = [
            block.outputs["resid_post"].register_forward_pre_hook(remember, with_kwargs=True),
            block.outputs["attn_out"].register_forward_hook(_editing(put)),
        ]
    else:
        handles = [block.outputs[site.submodule].register_forward_hook(_editing(edit))]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _readers(model: Any, sites: Sequence[Site], found: dict[Site, Any]) -> Iterator[None]:
    check_sites(model, sites)
    blocks = decoder_of(model).blocks
    handles = []
    for site in dict.fromkeys(sites):
        if site.submodule == "resid_mid":
            handles.append(blocks[site.layer].mlp_norm.register_forward_pre_hook(_keeping_input(found, site)))
        else:
            handles.append(blocks[site.layer].outputs[site.submodule].register_forward_hook(_keeping_output(found, site)))
    deepest = blocks[max(site.layer for site in sites)].outputs["resid_post"]
    handles.append(deepest.register_forward_hook(_stop))  # hooks run in this order
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _keeping_output(found: dict[Site, Any], site: Site) -> Callable[..., None]:
    def keep(_: Any, __: Any, output: Any) -> None:
        found[site] = output[0] if isinstance(output, tuple) else output

    return keep


def _keeping_input(found: dict[Site, Any], site: Site) -> Callable[..., None]:
    def keep(_: Any, args: Any) -> None:
        found[site] = args[0]

    return keep


def _stop(*_: Any) -> None:
    raise _DeepEnough


def _editing(edit: Edit) -> Callable[..., Any]:
    def change(_: Any, __: Any, output: Any) -> Any:
        return (edit(output[0]), *output[1:]) if isinstance(output, tuple) else edit(output)

    return change
