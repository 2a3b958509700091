"""Other directions than an SAE's, written as dictionaries in SAELens' layout: the same pipeline then runs on them unchanged.

    neurons       what each hidden neuron of the layer's MLP writes to the stream (behind the norm, where one follows the MLP)
    unembedding   the rows of the unembedding of some tokens, as they stand in the head, without the final norm's gain
    random        Gaussian directions, drawn anew for each site; `matched`: with the covariance of the site's activations

Rows are of unit length, and the encoder is their transpose: TopK of the projections of x - mean, like the control in
`sae_quality`. They are what a trained dictionary has to beat. Owns these dictionaries; topology and the rest read them like any
other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from harness.errors import UsageError
from harness.packs.sampling import generator
from harness.paths import make_dir, writing
from harness.whitebox.features.activation_statistics import Moments
from harness.whitebox.sources import activations, packing
from harness.whitebox.sources.architectures import decoder_of
from harness.whitebox.sources.corpus import Corpus
from harness.whitebox.sources.models import LocalModel
from harness.whitebox.sources.sites import Site
from harness.whitebox.stage import MANIFEST, NO_ROOM, Used, building, stopwatch, versions, write_json
from harness.whitebox.training.training import NORM_LIMIT, import_sae_lens

Kind = Literal["neurons", "unembedding", "random"]
Floats = NDArray[np.float32]

TOKEN_IDS = "token_ids.safetensors"
"""Beside an unembedding's dictionary: `token_ids` (d_sae,) int32, the token of each feature."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """Which directions, and how they are read. `d_sae`: how many, at most; the neurons of a layer are always taken all.

    `tokens`: the unembedding's rows, those of the `first` ids or of the ids most `frequent` in the sample. `sample`: tokens
    of text that mean, covariance and frequencies are taken from.
    """

    kind: Kind
    d_sae: int = 4096
    k: int = 32
    seed: int = 0
    matched: bool = False
    tokens: Literal["first", "frequent"] = "first"
    sample: int = 65_536

    def __post_init__(self) -> None:
        if not 0 < self.k < self.d_sae:
            raise UsageError(f"k is {self.k}, d_sae {self.d_sae}: k must lie between", hint="try k 32 and d_sae 4096")
        if self.matched and self.kind != "random":
            raise UsageError(f"basis {self.kind}: only random directions can be matched to the activations")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Directions:
    """Rows (n, d_model) of unit length or zero; `token_ids` (n,) where they are a vocabulary's."""

    rows: Floats
    token_ids: NDArray[np.int32] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Seen:
    """A site's activations in the sample: mean (d_model,), covariance (d_model, d_model), how many. Those of a norm above
    `norm_limit` are left out: they are attention sinks (see `training`)."""

    mean: Floats
    covariance: Floats
    n_tokens: int
    norm_limit: float


def basis_dictionaries(
    source: LocalModel, sites: Sequence[Site], basis: Basis, corpus: Corpus, out: Path, note: Callable[[str], None]
) -> Path:
    """Write a dictionary of `basis` for each site to `out`/<site>; `out`.

    A site that is there under the same key is kept, another one is replaced; each appears whole or not at all. Raises
    UsageError for a site that the model has not and for a text that is too short, MissingExtraError and StorageError.
    """
    import_sae_lens()
    activations.check_sites(source.model, sites)
    out = make_dir(out).absolute()
    keys = {site: _key(source, site, basis, corpus) for site in sites}
    missing = [site for site, key in keys.items() if not _kept(out / str(site), key)]
    for site in keys:
        if site not in missing:
            note(f"{source.name} {site}: basis {basis.kind}, kept from before")
    if not missing:
        return out
    contexts = _sample(source, corpus, basis.sample)
    seen = look(source.model, contexts, missing)
    for site in missing:
        clock = stopwatch()
        found = _directions(source.model, site, basis, contexts, seen[site])
        with writing(out, hint=NO_ROOM), building(out / str(site)) as scratch:
            _save(scratch, source, site, basis, found, seen[site])
            write_json(scratch / MANIFEST, _manifest(source, corpus, keys[site], found, seen[site], clock()))
        note(f"{source.name} {site}: basis {basis.kind}, {len(found.rows):,} directions, {clock()}")
    return out


def _kept(folder: Path, key: Mapping[str, Any]) -> bool:
    """Whether the dictionary in `folder` was made under `key`."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(manifest.get("key") == json.loads(json.dumps(key)))


def _key(source: LocalModel, site: Site, basis: Basis, corpus: Corpus) -> dict[str, Any]:
    """Everything that a dictionary depends on."""
    return {
        "basis": asdict(basis),
        "model_sha256": source.digest,
        "dtype": str(source.model.dtype).removeprefix("torch."),
        "site": str(site),
        "corpus_sha256": corpus.digest,
        "context": activations.CONTEXT,
    }


def _sample(source: LocalModel, corpus: Corpus, tokens: int) -> list[list[int]]:
    """Contexts of about `tokens` tokens in all; raises UsageError where the text fills none."""
    n = max(1, tokens // activations.CONTEXT)
    found = list(islice(packing.contexts(corpus.documents, source.tokenizer, bos=source.bos), n))
    if not found:
        raise UsageError(
            f"{corpus.source}: too little text, it fills no context of {activations.CONTEXT} tokens",
            hint="give more with --text FILE",
        )
    return found


def look(model: Any, contexts: Sequence[list[int]], sites: Sequence[Site]) -> dict[Site, Seen]:
    """One pass over the model for all sites; the first batch sets the norm limits."""
    moments: dict[Site, Moments] = {}
    limits: dict[Site, float] = {}
    for part in activations.read(model, activations.batched(contexts), sites):
        for site, rows in part.items():
            norms = rows.norm(dim=1)
            limit = limits.setdefault(site, NORM_LIMIT * float(norms.median()))
            moments.setdefault(site, Moments(rows.shape[1])).add(rows[norms <= limit])
    return {site: Seen(**m.tensors(), n_tokens=m.n_rows, norm_limit=limits[site]) for site, m in moments.items()}


def _directions(model: Any, site: Site, basis: Basis, contexts: Sequence[list[int]], seen: Seen) -> Directions:
    """The unit rows; raises UsageError where there are not more of them than may be active."""
    ids = None
    if basis.kind == "neurons":
        rows = neuron_rows(model, site)
    elif basis.kind == "random":
        rng = generator(basis.seed, "basis", "random", str(site))
        rows = random_rows(basis.d_sae, seen.covariance if basis.matched else np.eye(len(seen.mean)), rng)
    else:
        ids = first_ids(model, basis.d_sae) if basis.tokens == "first" else frequent_ids(contexts, basis.d_sae)
        rows = model.get_output_embeddings().weight.detach()[torch.from_numpy(ids).long()].float().cpu().numpy()
    if len(rows) <= basis.k:
        raise UsageError(f"{site}: only {len(rows)} directions, k is {basis.k}", hint="give more text, or a smaller k")
    return Directions(rows=unit(rows), token_ids=ids)


def neuron_rows(model: Any, site: Site) -> Floats:
    """What the hidden neurons of the site's layer add to the stream, up to their length, (d_mlp, d_model)."""
    block = decoder_of(model).blocks[site.layer]
    with torch.no_grad():
        written = block.write_directions(torch.arange(block.d_mlp(), device=model.device))
        rows: Floats = block.after_mlp(written).float().cpu().numpy()
    return rows


def random_rows(n: int, covariance: NDArray[np.floating], rng: np.random.Generator) -> Floats:
    """`n` Gaussian rows of that covariance."""
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    rows: Floats = rng.standard_normal((n, len(root)), dtype=np.float32) @ root.astype(np.float32)
    return rows


def first_ids(model: Any, n: int) -> NDArray[np.int32]:
    """The first `n` ids, or all."""
    return np.arange(min(n, model.get_output_embeddings().weight.shape[0]), dtype=np.int32)


def frequent_ids(contexts: Sequence[Sequence[int]], n: int) -> NDArray[np.int32]:
    """The `n` ids most frequent in `contexts`, or all that occur; of equals the smaller id first."""
    counts = np.bincount(np.concatenate([np.asarray(context) for context in contexts]))
    order = np.argsort(-counts, kind="stable")[:n]
    return order[counts[order] > 0].astype(np.int32)


def unit(rows: Floats) -> Floats:
    """Rows at unit length; those of zeros stay."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    found: Floats = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    return found


def _save(folder: Path, source: LocalModel, site: Site, basis: Basis, found: Directions, seen: Seen) -> None:
    """SAELens' own writing of a TopK dictionary: encode(x) = the k largest positive projections of x - mean."""
    sae_lens = import_sae_lens()
    d_sae, d_model = found.rows.shape
    metadata = {
        "model_name": source.name,
        "hook_name": site.hook_name,
        "prepend_bos": source.bos is not None,
        "context_size": activations.CONTEXT,
    }
    cfg = sae_lens.TopKSAEConfig(d_in=d_model, d_sae=d_sae, k=basis.k)
    cfg.metadata = type(cfg.metadata)(**metadata)
    sae = sae_lens.TopKSAE(cfg)
    rows = torch.from_numpy(found.rows)
    with torch.no_grad():
        sae.W_dec.copy_(rows)
        sae.W_enc.copy_(rows.T)
        sae.b_enc.zero_()
        sae.b_dec.copy_(torch.from_numpy(seen.mean))
    sae.save_model(folder)
    if found.token_ids is not None:
        save_file({"token_ids": found.token_ids}, folder / TOKEN_IDS)


def _manifest(
    source: LocalModel, corpus: Corpus, key: Mapping[str, Any], found: Directions, seen: Seen, used: Used
) -> dict[str, Any]:
    return {
        "key": dict(key),
        "source": source.name,
        "corpus": {"source": corpus.source, "licence": corpus.licence, "documents": len(corpus.documents)},
        "d_sae": len(found.rows),
        "n_tokens": seen.n_tokens,
        "norm_limit": seen.norm_limit,
        "quality": None,
        "versions": versions("sae-lens", "torch", "transformers"),
        **asdict(used),
    }
