"""What the two sources of a shared map are, and what is read of each: pairs, and what features are matched by.

Owns the reading, and the checks that catalogue and topology of a source belong together. What becomes of them is `shared`'s
matter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy import sparse

from harness.errors import FileFormatError, UsageError
from harness.providers.weights import sha256
from harness.whitebox.features.catalogue import Catalogue
from harness.whitebox.sharing.alignment import pooled
from harness.whitebox.sharing.matching import Mask, active
from harness.whitebox.sharing.pairing import Pairs
from harness.whitebox.sources.dictionaries import decoder_rows
from harness.whitebox.sources.sites import Site
from harness.whitebox.stage import read_manifest, site_folder

Method = Literal["correlation", "gloss", "affine"]
MIN_MATCH: dict[Method, float] = {"correlation": 0.3, "gloss": 0.5, "affine": 0.4}
"""The default of the least score of a match. Two features that fire on 10 of 100,000 segments each must meet on three of them
for a correlation of 0.3; 0.5 is the published similarity of glosses; unrelated directions in 512 dimensions seldom reach 0.25.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """`min_active`: segments that a feature must fire on (no matter to `gloss`); `min_match`: least score of a match, None for
    the method's own (MIN_MATCH); `candidates`: matches kept of a feature at each site of the other source; `max_similarity`:
    glosses of a pair must be less alike; `margin`: by how much a shared pair must beat the next one; `permutations`: draws of
    each null."""

    method: Method = "correlation"
    min_active: int = 10
    min_match: float | None = None
    candidates: int = 5
    max_similarity: float = 0.3
    margin: float = 0.05
    permutations: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in MIN_MATCH:
            raise UsageError(f"unknown method {self.method!r}", hint=f"there are: {', '.join(MIN_MATCH)}")
        if self.min_match is not None and not 0 < self.min_match < 1:
            raise UsageError(f"least match: {self.min_match} is not in (0, 1)")
        if not 0 <= self.margin < 1:
            raise UsageError(f"margin: {self.margin} is not in [0, 1)")
        for name in ("min_active", "candidates", "permutations"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}: {getattr(self, name)} is not above 0")

    @property
    def at_least(self) -> float:
        """The least score of a match."""
        return MIN_MATCH[self.method] if self.min_match is None else self.min_match


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """One of the two sources: folders of its catalogue and its topology; `sites`: those to match, all that it has if empty."""

    source: str
    catalogue: Path
    topology: Path
    sites: tuple[Site, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SeenSite:
    """What a site holds for one method.

    `codes` (n_segments, d_sae): None for `gloss`; `vectors` (d_sae, d): gloss vectors, or the decoder's rows for `affine`;
    `usable` (d_sae,): the features that can match at all; `n_unknown`: pairs left out because a gloss is missing.
    """

    source: str
    site: Site
    pairs: Pairs
    n_unknown: int
    density: NDArray[np.float32]
    usable: Mask
    codes: sparse.csr_matrix | None
    vectors: NDArray[np.float32] | None
    catalogue: Catalogue

    def directions(self) -> NDArray[np.float32]:
        """Unit decoder rows (d_sae, d_model), zeros where a feature has no direction."""
        found = self.catalogue.directions(self.site)
        rows = np.zeros((found.d_sae, found.unit.shape[1]), np.float32)
        rows[found.features] = found.unit
        return rows


class OpenedEnd:
    """A source's catalogue and topology; the tokens' segments once they are aligned."""

    def __init__(self, end: End, options: Options) -> None:
        self.end, self._options = end, options
        self.catalogue = Catalogue(end.catalogue)
        self.sites = end.sites or self.catalogue.sites
        self.segment: NDArray[np.int64] | None = None
        self.n_segments = 0
        self._told: set[Site] = set()
        made_by = f"harness map topology --source {end.source} --glosses {end.catalogue / 'glosses.safetensors'}"
        topology = read_manifest(end.topology, made_by=made_by)
        for folder, found in ((end.catalogue, self.catalogue.source), (end.topology, topology.get("source"))):
            if found != end.source:
                raise UsageError(f"{folder}: is of {found}, not of {end.source}", hint="give --sources in the folders' order")
        for site in self.sites:
            mapped = topology.get("sites", {}).get(str(site))
            if mapped is None:
                raise UsageError(f"{end.topology}: has no site {site}", hint=f"{made_by}, or choose sites")
            if mapped.get("sha256") != self._dictionary_digest(site):
                raise UsageError(
                    f"{site}: catalogue and topology of {end.source} were made from different dictionaries", hint=made_by
                )

    def digests(self, site: Site) -> dict[str, str]:
        """Of everything that the numbers of `site` depend on."""
        folder = self.end.catalogue
        own = site_folder(folder, site)
        files = {"pairs": self._pairs(site), "features": own / "features.parquet"}
        if self._options.method == "gloss":
            files["glosses"] = folder / "glosses.safetensors"
        else:
            files |= {"codes": own / "codes.safetensors", "spans": folder / "spans.safetensors"}
        found = {"source": self.end.source, "site": str(site), "dictionary": self._dictionary_digest(site)}
        for name, path in files.items():
            try:
                found[name] = sha256(path)
            except OSError as exc:
                stage = "topology" if name == "pairs" else "catalogue"
                raise FileFormatError(
                    str(path), f"cannot be read: {exc.strerror}", hint=f"harness map {stage} --source {self.end.source}"
                ) from exc
        return found

    def see(self, site: Site, note: Callable[[str], None]) -> SeenSite:
        """Read what the method needs of `site`."""
        catalogue, options = self.catalogue, self._options
        pairs, n_unknown = self._read_pairs(site, note)
        codes = vectors = None
        if options.method == "gloss":
            vectors = catalogue.gloss_vectors(site)
            usable = np.any(vectors != 0, axis=1)
        else:
            codes = self._pooled(site)
            usable = active(codes, options.min_active)
        if options.method == "affine":
            vectors = np.concatenate(list(decoder_rows(catalogue.dictionary(site).weights)))
        return SeenSite(
            source=self.end.source,
            site=site,
            pairs=pairs,
            n_unknown=n_unknown,
            density=catalogue.density(site),
            usable=usable,
            codes=codes,
            vectors=vectors,
            catalogue=catalogue,
        )

    def _pooled(self, site: Site) -> sparse.csr_matrix:
        assert self.segment is not None, "align first"
        codes = self.catalogue.codes(site)
        if codes.shape[0] != len(self.segment):
            raise FileFormatError(
                str(self.end.catalogue),
                f"{site} has codes of {codes.shape[0]:,} tokens, spans.safetensors has {len(self.segment):,}",
                hint=f"make it again: harness map catalogue --source {self.end.source}",
            )
        return pooled(codes, self.segment, self.n_segments)

    def _dictionary_digest(self, site: Site) -> str:
        if site not in self.catalogue.sites:
            known = ", ".join(map(str, self.catalogue.sites))
            raise UsageError(f"{self.end.catalogue}: has no site {site}", hint=f"there are: {known}")
        return str(self.catalogue.manifest["sites"][str(site)]["sha256"])

    def _pairs(self, site: Site) -> Path:
        return site_folder(self.end.topology, site) / "pairs.parquet"

    def _read_pairs(self, site: Site, note: Callable[[str], None]) -> tuple[Pairs, int]:
        """The pairs of `site` whose glosses are unlike, and how many were left out because a gloss is missing."""
        table = pq.read_table(self._pairs(site), columns=["i", "j", "cosine", "gloss_similarity"])
        similarity = table["gloss_similarity"].to_numpy().astype(np.float32)  # null is NaN
        unknown = int(np.isnan(similarity).sum())
        if unknown and unknown == len(similarity):
            raise UsageError(
                f"{self.end.source} {site}: no pair has a similarity of glosses, so that none is known to be unlike",
                hint=f"harness map topology --source {self.end.source} --glosses {self.end.catalogue / 'glosses.safetensors'}",
            )
        if unknown and site not in self._told:
            self._told.add(site)
            note(f"{self.end.source} {site}: {unknown:,} of {len(similarity):,} pairs left out, a gloss is missing")
        kept = similarity < self._options.max_similarity
        i, j, cosine = (table[name].to_numpy()[kept] for name in ("i", "j", "cosine"))
        return Pairs(i=i, j=j, cosine=cosine, similarity=similarity[kept]), unknown
