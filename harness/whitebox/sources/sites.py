"""Where a source model is looked into: a layer and a sub-module."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, Self

from harness.errors import UsageError

Submodule = Literal["attn_out", "mlp_out", "resid_mid", "resid_post"]
SUBMODULES: tuple[Submodule, ...] = ("attn_out", "mlp_out", "resid_mid", "resid_post")
_HOOK_NAME = re.compile(rf"blocks\.(\d+)\.hook_({'|'.join(SUBMODULES)})")


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Site:
    """One hook point of a source, named after TransformerLens: `resid_post` of layer 3 is the residual stream after block 3."""

    layer: int
    submodule: Submodule

    def __str__(self) -> str:
        return f"{self.submodule}.{self.layer}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """`resid_post.3` as a site; raises UsageError."""
        submodule, _, layer = text.partition(".")
        if submodule not in SUBMODULES or not layer.isdecimal():
            raise UsageError(f"{text!r} is no site", hint=f"write SUBMODULE.LAYER, with one of {', '.join(SUBMODULES)}")
        return cls(layer=int(layer), submodule=submodule)

    @property
    def hook_name(self) -> str:
        """What TransformerLens and SAELens call it: `blocks.3.hook_resid_post`."""
        return f"blocks.{self.layer}.hook_{self.submodule}"

    @classmethod
    def of_hook_name(cls, name: str) -> Self | None:
        """The site that TransformerLens calls `name`; None for a hook point that is none of ours."""
        found = _HOOK_NAME.fullmatch(name)
        return cls(layer=int(found[1]), submodule=_submodule(found[2])) if found else None


def _submodule(name: str) -> Submodule:
    return next(known for known in SUBMODULES if known == name)
