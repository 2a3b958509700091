"""The sources that are known by name, read from `sources.toml` beside this file. Reads no dictionary: `dictionaries` does."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import model_validator

from harness.config import Strict, read_toml
from harness.errors import UnknownNameError
from harness.whitebox.sources.sites import Site, Submodule

DECLARED = Path(__file__).with_name("sources.toml")

Normalization = Literal["none", "layer_norm"]

NATURAL_DOSE: dict[str, str] = {"none": "c * W_dec[f]", "layer_norm": "c * std(x) * W_dec[f]"}
"""What feature f adds to the activation x when it fires at c, by how the dictionary normalises activations.

Under `layer_norm` the decoder's rows live in the space of (x - mean(x)) / std(x), so that equal doses of raw rows are no
equal doses at two layers.
"""


class Release(Strict):
    """The dictionaries of one sub-module, one a layer, under the name that SAELens gives them."""

    submodule: Submodule
    release: str
    repository: str
    path: str
    revision: str | None = None
    normalize_activations: Normalization
    prepend_bos: bool
    context_size: int

    def folder(self, layer: int) -> str:
        """The folder of a layer inside the repository."""
        return self.path.format(layer=layer)


class Source(Strict):
    """A small model and its dictionaries. `model` and `revision` are the hub's."""

    name: str
    model: str
    revision: str | None = None
    layers: int
    d_model: int
    d_sae: int
    releases: tuple[Release, ...]

    @model_validator(mode="after")
    def _one_release_a_submodule(self) -> Source:
        named = [release.submodule for release in self.releases]
        if len(set(named)) < len(named):
            raise ValueError("two releases name the same sub-module")
        return self

    def sites(self) -> tuple[Site, ...]:
        """All sites, by layer and then by sub-module."""
        return tuple(sorted(Site(layer=n, submodule=r.submodule) for r in self.releases for n in range(self.layers)))

    def release_of(self, site: Site) -> Release:
        """The release that holds the dictionary of `site`; raises UnknownNameError."""
        for release in self.releases:
            if release.submodule == site.submodule and site.layer < self.layers:
                return release
        raise UnknownNameError(f"site of {self.name}", str(site), [str(known) for known in self.sites()])


class Embedded(Strict):
    """A source that comes as a Python package. `sites`: whose dictionaries `harness train-sae` trains unless told others."""

    name: str
    sites: tuple[str, ...]


class _Sources(Strict):
    sources: tuple[Source, ...]
    embedded: tuple[Embedded, ...]


@cache
def _declared() -> _Sources:
    return read_toml(DECLARED, _Sources)


def sources() -> dict[str, Source]:
    """The sources whose dictionaries were published, by name."""
    return {source.name: source for source in _declared().sources}


def embedded_sites() -> dict[str, tuple[Site, ...]]:
    """The sources whose dictionaries are trained here, by name, with their sites."""
    return {source.name: tuple(map(Site.parse, source.sites)) for source in _declared().embedded}


def find_source(name: str) -> Source:
    """The source called `name`; raises UnknownNameError with the nearest known one."""
    if name not in sources():
        raise UnknownNameError("source", name, sources())
    return sources()[name]
