"""What can be changed in a residual stream: directions added, coordinates or neurons scaled; and doses in natural units.

Steering adds to *all* positions unless told otherwise; adding to the last position only is another intervention, not a
cheaper form of the same.

Owns the changed streams. Knows nothing of how they are run on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from harness.errors import UsageError
from harness.whitebox.sources.sites import Site
from harness.whitebox.steering.cached_prompt import CachedPrompt

Positions = Literal["all", "last"]


class Intervention(Protocol):
    """Changes of the stream at one site, one for each entry of `shape`, in row-major order."""

    @property
    def site(self) -> Site: ...

    @property
    def positions(self) -> Positions: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    def changed(self, prompt: CachedPrompt, rows: slice, span: slice) -> Tensor:
        """The changed streams (b, S, d_model) of the entries `rows`, at the positions `span`, where the site enters."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Steering:
    """Add dose * direction at `site`: `directions` (n, d_model) as they are, `doses` (n,) or (n, k).

    `positions`: `all` changes every position, `last` the last one only: two different interventions. `profile` (T,) weighs
    the dose at each position (1 everywhere if None), e.g. `token_std` for dictionaries in standardised space.
    """

    site: Site
    directions: Tensor
    doses: Tensor
    positions: Positions = "all"
    profile: Tensor | None = None

    def __post_init__(self) -> None:
        if self.directions.ndim != 2 or self.doses.ndim not in (1, 2) or len(self.doses) != len(self.directions):
            raise UsageError(
                f"directions {tuple(self.directions.shape)} and doses {tuple(self.doses.shape)} do not fit",
                hint="directions are (n, d_model), doses (n,) or (n, k)",
            )
        _refuse_not_finite("directions", self.directions)
        _refuse_not_finite("doses", self.doses)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.doses.shape)

    def changed(self, prompt: CachedPrompt, rows: slice, span: slice) -> Tensor:
        stream = prompt.residual(prompt.decoder.place(self.site))[:, span]
        which = torch.arange(rows.start, rows.stop) // _per_row(self.doses)
        if self.directions.shape[1] != stream.shape[-1]:
            raise UsageError(f"{self.site}: directions are {self.directions.shape[1]} wide, the stream {stream.shape[-1]}")
        directions = self.directions[which].to(stream)[:, None]  # (b, 1, d_model)
        doses = self.doses.flatten()[rows].to(stream)[:, None, None]
        if self.profile is not None:
            if self.profile.shape != (len(prompt.token_ids),):
                raise UsageError(f"a profile of shape {tuple(self.profile.shape)} for {len(prompt.token_ids)} tokens")
            doses = doses * self.profile[span].to(stream)[:, None]  # (b, S, 1)
        return torch.addcmul(stream, doses, directions)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CoordinateScaling:
    """Multiply coordinate n of what the model computes at `site` by a factor: `coordinates` (n,), `factors` (n,) or (n, k)."""

    site: Site
    coordinates: Tensor
    factors: Tensor
    positions: Positions = "all"

    def __post_init__(self) -> None:
        _check_factors(self.coordinates, self.factors)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.factors.shape)

    def changed(self, prompt: CachedPrompt, rows: slice, span: slice) -> Tensor:
        stream = prompt.residual(prompt.decoder.place(self.site))[:, span]
        which = self.coordinates[torch.arange(rows.start, rows.stop) // _per_row(self.factors)].to(stream.device)
        if len(which) and not 0 <= int(which.min()) <= int(which.max()) < stream.shape[-1]:
            raise UsageError(f"{self.site} has coordinates 0 to {stream.shape[-1] - 1}")
        gain = self.factors.flatten()[rows].to(stream)[:, None] - 1  # (b, 1)
        changed = stream.repeat(len(which), 1, 1)
        changed[torch.arange(len(which)), :, which] += gain * prompt.activation(self.site)[span, which].T
        return changed


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NeuronScaling:
    """Multiply hidden neuron n of the MLP of `layer` (behind its activation function) by a factor, at `positions`.

    `neurons` (n,), `factors` (n,) or (n, k).
    """

    layer: int
    neurons: Tensor
    factors: Tensor
    positions: Positions = "all"

    def __post_init__(self) -> None:
        _check_factors(self.neurons, self.factors)

    @property
    def site(self) -> Site:
        return Site(layer=self.layer, submodule="mlp_out")

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.factors.shape)

    def changed(self, prompt: CachedPrompt, rows: slice, span: slice) -> Tensor:
        block = prompt.decoder.blocks[self.layer]
        which = self.neurons[torch.arange(rows.start, rows.stop) // _per_row(self.factors)]
        if len(which) and not 0 <= int(which.min()) <= int(which.max()) < block.d_mlp():
            raise UsageError(f"the MLP of layer {self.layer} has neurons 0 to {block.d_mlp() - 1}")
        hidden, raw = (kept[span] for kept in prompt.hidden(self.layer))
        which = which.to(raw.device)
        gain = self.factors.flatten()[rows].to(raw)[:, None] - 1  # (b, 1)
        written = (gain * hidden[:, which].T)[..., None] * block.write_directions(which)[:, None]  # (b, S, d_model)
        rest = prompt.resid_post[self.layer][:, span] - prompt.mlp_out[self.layer][:, span]
        return rest + block.after_mlp(raw + written)


def token_std(activation: Tensor) -> Tensor:
    """The standard deviation over coordinates of each token's activation: (T, d_model) to (T,), with d_model - 1 as divisor.

    Dictionaries trained on layer-normalised activations decode into that space: feature f at activation c adds
    c * std(x_t) * W_dec[f] to token t. So steer with directions=W_dec, doses=c and profile=token_std(activation).
    """
    return activation.std(dim=-1)


def doses_in_std(directions: Tensor, multiples: Tensor, std: Tensor | float) -> Tensor:
    """Doses (n, k) that move the activation by `multiples` (k,) standard deviations along each direction.

    `std`: of the activation over a corpus at the site, one number, or (n,) along each direction (`std_along`).
    """
    unit = torch.as_tensor(std, dtype=directions.dtype, device=directions.device) / directions.norm(dim=-1)  # (n,)
    _refuse_not_finite("doses", unit)
    return unit[:, None] * multiples.to(directions)


def std_along(directions: Tensor, covariance: Tensor) -> Tensor:
    """The activation's standard deviation along each direction, (n,), from its covariance (d_model, d_model) over a corpus.

    Its mean square over all unit directions is trace / d_model: the square root of that is the site's one number.
    """
    unit = directions / directions.norm(dim=-1, keepdim=True)
    return ((unit @ covariance.to(unit)) * unit).sum(-1).clamp(min=0).sqrt()


def _per_row(values: Tensor) -> int:
    return int(values.shape[1]) if values.ndim == 2 else 1


def _check_factors(members: Tensor, factors: Tensor) -> None:
    if members.ndim != 1 or factors.ndim not in (1, 2) or len(factors) != len(members):
        raise UsageError(
            f"{tuple(members.shape)} neurons and factors {tuple(factors.shape)} do not fit",
            hint="neurons are (n,), factors (n,) or (n, k)",
        )
    _refuse_not_finite("factors", factors)


def _refuse_not_finite(what: str, values: Tensor) -> None:
    if not bool(values.isfinite().all()):
        raise UsageError(f"{what}: not all are finite numbers", hint="leave out features with NaN or infinite weights")
