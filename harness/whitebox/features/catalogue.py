"""What a catalogue of a source's features holds, and how it is read. `cataloguing` makes one.

The folder (a stage's, see `stage`) holds, joined over sites and for each site apart,

- `features.parquet`: source, site, feature, density (share of tokens it fires on), max_act, mean_act (there), gloss,
  gloss_source, gloss_score; a row for every feature, null gloss where none speaks for it;
- `tokens.parquet`: source, site, feature, rank, token_id, token (its text), word (the whole word it lies in), value: the
  distinct tokens on which a feature fires most, at most TOP_TOKENS, highest first, with the largest activation on each;
- `contexts.parquet`: source, site, feature, rank, value, document, start, end, text: where it fires most, at most TOP_CONTEXTS,
  highest first, from different documents; characters start:end of `text` are the token;

for each site apart,

- `codes.safetensors`: indptr, indices, values: the feature activations on the first tokens of the text, a sparse matrix
  (n_tokens, d_sae) whose rows are those of `spans.safetensors`;
- `moments.safetensors`: mean (d_model), covariance (d_model, d_model) of the activations;

and for all sites `spans.safetensors` (spans (n_tokens, 3) int32: document, first character, character after the last), and in
the form that `topology` takes `covariances.safetensors` and, with glosses, `glosses.safetensors`.

`manifest.json`: stage, source, model {name, folder, sha256, bos}, corpus {source, licence, sha256, documents}, n_tokens, sites
{site: {sha256, folder, d_sae, quality}}, gloss {source, ...}, versions, seconds, peak_memory_gb. `quality` is what `train-sae`
found, null where it did not train the dictionary.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors.numpy import load_file
from scipy import sparse

from harness.errors import FileFormatError, UsageError
from harness.whitebox.sources.dictionaries import CONFIG, WEIGHTS, Dictionary, Directions, Located, load, opened, read_config
from harness.whitebox.sources.sites import Site
from harness.whitebox.stage import read_manifest, site_folder

TOP_TOKENS = 100
TOP_CONTEXTS = 16

UNKNOWN_ID = -1
"""The `token_id` of a token whose model was not at hand (a catalogue made from exports)."""

_LABELS = [pa.field(name, pa.dictionary(pa.int8(), pa.string())) for name in ("source", "site")]
FEATURES = pa.schema(
    [
        *_LABELS,
        pa.field("feature", pa.int32()),
        *(pa.field(name, pa.float32()) for name in ("density", "max_act", "mean_act")),
        *(pa.field(name, pa.string()) for name in ("gloss", "gloss_source")),
        pa.field("gloss_score", pa.float32()),
    ]
)
TOKENS = pa.schema(
    [
        *_LABELS,
        pa.field("feature", pa.int32()),
        pa.field("rank", pa.int16()),
        pa.field("token_id", pa.int32()),
        *(pa.field(name, pa.string()) for name in ("token", "word")),
        pa.field("value", pa.float32()),
    ]
)
CONTEXTS = pa.schema(
    [
        *_LABELS,
        pa.field("feature", pa.int32()),
        pa.field("rank", pa.int16()),
        pa.field("value", pa.float32()),
        *(pa.field(name, pa.int32()) for name in ("document", "start", "end")),
        pa.field("text", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TopToken:
    """A token on which a feature fires, the word it lies in, and the largest activation there."""

    token_id: int
    token: str
    word: str
    value: float


class Catalogue:
    """The catalogue in `folder`; raises FileFormatError where it is not finished or does not fit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder, made_by="harness map catalogue --source NAME")
        try:
            self.source: str = self.manifest["source"]
            self.sites = tuple(Site.parse(name) for name in self.manifest["sites"])
        except (KeyError, TypeError) as exc:
            raise FileFormatError(
                str(folder), f"its manifest has no {exc}", hint="make it again: harness map catalogue"
            ) from exc

    def table(self, site: Site, name: str) -> pa.Table:
        """`features`, `tokens` or `contexts` of one site; raises UsageError for a site that is not in the catalogue."""
        return pq.read_table(self._folder(site) / f"{name}.parquet")

    def top_tokens(self, site: Site, features: Collection[int] | None = None) -> dict[int, list[TopToken]]:
        """The top tokens of each feature of `site`, or of those among `features`, that has any; highest first."""
        found: dict[int, list[TopToken]] = {}
        table = self.table(site, "tokens")
        if features is not None:
            table = table.filter(pa.array(np.isin(table["feature"].to_numpy(), list(features))))
        columns = (table[name].to_pylist() for name in ("feature", "token_id", "token", "word", "value"))
        for feature, token_id, token, word, value in zip(*columns, strict=True):
            found.setdefault(feature, []).append(TopToken(token_id=token_id, token=token, word=word, value=value))
        return found

    def density(self, site: Site) -> NDArray[np.float32]:
        """The share of tokens on which each feature fires, (d_sae,)."""
        values: NDArray[np.float32] = self.table(site, "features")["density"].to_numpy()
        return values

    def codes(self, site: Site) -> sparse.csr_matrix:
        """Feature activations on the text of `spans`, (n_tokens, d_sae)."""
        kept = load_file(self._folder(site) / "codes.safetensors")
        shape = (len(kept["indptr"]) - 1, int(self.manifest["sites"][str(site)]["d_sae"]))
        return sparse.csr_matrix((kept["values"], kept["indices"], kept["indptr"]), shape=shape)

    def moments(self, site: Site) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Mean (d_model,) and covariance (d_model, d_model) of the site's activations."""
        kept = load_file(self._folder(site) / "moments.safetensors")
        return kept["mean"], kept["covariance"]

    @cached_property
    def spans(self) -> NDArray[np.int32]:
        """Document, first character and character after the last of each row of `codes`, (n_tokens, 3)."""
        spans: NDArray[np.int32] = load_file(self.folder / "spans.safetensors")["spans"]
        return spans

    def gloss_vectors(self, site: Site) -> NDArray[np.float32]:
        """Unit gloss vectors (d_sae, n), zeros where a feature has no gloss; raises UsageError without glosses."""
        path = self.folder / "glosses.safetensors"
        if not path.is_file():
            raise UsageError(f"{self.folder}: has no glosses", hint="harness map catalogue --gloss contexts")
        self._folder(site)
        with opened(path, "np") as file:
            vectors: NDArray[np.float32] = file.get_tensor(str(site))
        return vectors

    def dictionary(self, site: Site) -> Located:
        """Where the dictionary of `site` lies."""
        self._folder(site)
        folder = Path(self.manifest["sites"][str(site)]["folder"])
        found = Dictionary(source=self.source, site=site, folder=folder)
        return Located(dictionary=found, weights=folder / WEIGHTS, config=read_config(folder / CONFIG))

    def directions(self, site: Site) -> Directions:
        """The unit decoder rows of `site`; raises FileFormatError where the dictionary is gone or damaged."""
        return load(self.dictionary(site))

    def model_reference(self) -> dict[str, Any]:
        """Of the model that was read: name, folder, sha256, bos."""
        return dict(self.manifest["model"])

    def _folder(self, site: Site) -> Path:
        if site not in self.sites:
            raise UsageError(f"{self.folder}: has no site {site}", hint=f"there are: {', '.join(map(str, self.sites))}")
        return site_folder(self.folder, site)
