"""Gradients instead of runs: the first-order effect of every feature of a site from one backward pass, and token gradients.

A screen ranks; what it ranks high is then confirmed with true doses. Gradients are taken on the model's weights as they are.

`token_gradient` needs a direction, and not a sum over the site's coordinates: where the weights that write to the stream
are centred over d_model (TransformerLens does so by default), that sum is zero for any input, and its gradient rounding noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from harness.errors import UsageError
from harness.whitebox.sources.sites import Site
from harness.whitebox.steering.cached_prompt import CachedPrompt
from harness.whitebox.steering.interventions import Positions
from harness.whitebox.steering.steering import Steerer, log_odds, target_mask

Objective = Literal["log_odds", "log_probability"]

VANISHING = 1e-5
"""A gradient below this share of a random direction's is rounding noise: sums that cancel leave about 1e-7 in float32."""


def target_gradient(
    steerer: Steerer, prompt: CachedPrompt, site: Site, target: Sequence[int], *, objective: Objective = "log_odds"
) -> Tensor:
    """The gradient of a target's log-odds, or of its log-probability, at the last position: (T, d_model), nats.

    With respect to what is computed at `site`; a target is a set of token ids.
    """
    place = prompt.decoder.place(site)
    mask = target_mask(target, prompt.clean_logits.shape[-1]).to(prompt.clean_logits.device)
    with torch.enable_grad():
        stream = prompt.residual(place).detach().clone().requires_grad_()
        logits = steerer.run_from(prompt, place, stream)
        odds = log_odds(logits, mask)
        value = odds if objective == "log_odds" else logsigmoid(odds)
        (gradient,) = torch.autograd.grad(value.sum(), stream)
    return gradient[0]


def first_order_effects(
    gradient: Tensor, directions: Tensor, *, positions: Positions = "all", profile: Tensor | None = None
) -> Tensor:
    """The effect of one unit of dose along each of `directions` (n, d_model), (n,), as far as the gradient (T, d_model) tells.

    `positions` and `profile` (T,) as in `Steering`; multiply by a dose to have its effect.
    """
    weighted = gradient if profile is None else gradient * profile.to(gradient)[:, None]
    total = weighted.sum(0) if positions == "all" else weighted[-1]
    return directions @ total.to(directions)


def token_gradient(prompt: CachedPrompt, site: Site, direction: Tensor, positions: Sequence[int]) -> Tensor:
    """How to change a token so that `direction` (d_model) fires more at `site`: (d_model,), of unit length.

    The gradient of the site's activation along `direction` at a position with respect to what enters the first block at the
    same position, summed over `positions`. Raises UsageError where it vanishes.
    """
    n_tokens = len(prompt.token_ids)
    if not positions or not all(0 <= position < n_tokens for position in positions):
        raise UsageError(f"positions {list(positions)} of a prompt of {n_tokens} tokens", hint="name positions from 0 on")
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(len(direction), generator=generator).to(direction)
    reference *= direction.norm() / reference.norm()
    with torch.enable_grad():
        start = prompt.resid_pre[0].detach().clone().requires_grad_()
        activation = _activation(prompt, site, start)  # (T, d_model)
        gradient, ordinary = (_pulled(activation @ vector.to(start), start, positions) for vector in (direction, reference))
    length = float(gradient.norm())
    if not length > VANISHING * float(ordinary.norm()):
        raise UsageError(f"{site}: the token gradient vanishes", hint="give the decoder direction of a feature")
    return gradient / length


def _pulled(fired: Tensor, start: Tensor, positions: Sequence[int]) -> Tensor:
    """The gradient of `fired` (T,) at each of `positions` with respect to `start` (1, T, d_model) there, summed: (d_model,)."""
    gradients = [torch.autograd.grad(fired[at], start, retain_graph=True)[0][0, at] for at in positions]
    return torch.stack(gradients).sum(0)


def _activation(prompt: CachedPrompt, site: Site, x: Tensor) -> Tensor:
    """What the model computes at `site` when `x` (1, T, d_model) enters its first block, (T, d_model)."""
    prompt.decoder.place(site)  # refuses a site that the model has not
    for layer in range(site.layer):
        x = prompt.decoder.blocks[layer].run(x, prompt.calls[layer], last_only=False)
    block, call = prompt.decoder.blocks[site.layer], prompt.calls[site.layer]
    if site.submodule == "resid_post":
        return block.run(x, call, last_only=False)[0]
    if site.submodule == "mlp_out" and block.parallel:
        return block.mlp_out(x)[0]
    attn_out = block.attn_out(x, call)
    if site.submodule == "attn_out":
        return attn_out[0]
    mid = x + attn_out
    return (mid if site.submodule == "resid_mid" else block.mlp_out(mid))[0]
