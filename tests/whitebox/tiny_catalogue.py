"""A small but complete catalogue written from arrays, for the tests of the stages that read one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors.numpy import save_file
from scipy import sparse

from harness.providers.weights import sha256
from harness.whitebox.features import catalogue
from harness.whitebox.features.catalogue import Catalogue
from harness.whitebox.sources.sites import Site
from harness.whitebox.stage import join, site_folder, write_json, write_table

N_TOKENS = 50
E = 8
"""Width of the made-up gloss vectors."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SiteData:
    """What is known of a site; what is left out is made up from a fixed seed.

    `tokens`: for each feature its (word, value), any order; default: `word<feature>` at 1. `codes` (n_tokens, d_sae);
    `gloss_vectors` (d_sae, e), default random unit rows; `glosses`: texts, default the words.
    """

    W_dec: np.ndarray
    tokens: Sequence[Sequence[tuple[str, float]]] | None = None
    codes: sparse.csr_matrix | None = None
    density: np.ndarray | None = None
    gloss_vectors: np.ndarray | None = None
    glosses: Sequence[str | None] | None = None
    mean: np.ndarray | None = None
    covariance: np.ndarray | None = None
    quality: Mapping[str, Any] | None = None


def write_catalogue(
    folder: Path,
    *,
    source: str = "tiny",
    sites: Mapping[Site, SiteData],
    spans: np.ndarray | None = None,
    model: Mapping[str, Any] | None = None,
) -> Catalogue:
    """Write `folder` whole, the dictionaries under `folder/dictionaries`, and open it.

    All sites must have codes of equally many rows; `spans` (n_tokens, 3), default ten tokens of four characters a document.
    """
    rows = [data.codes.shape[0] for data in sites.values() if data.codes is not None]
    n_tokens = rows[0] if rows else N_TOKENS if spans is None else len(spans)
    vectors, covariances, entries = {}, {}, {}
    for site, data in sites.items():
        made = _complete(data, n_tokens)
        vectors[str(site)] = np.ascontiguousarray(made.gloss_vectors, np.float32)
        covariances[str(site)] = np.ascontiguousarray(made.covariance, np.float32)
        dictionary = write_dictionary(folder / "dictionaries" / str(site), site, made.W_dec)
        entries[str(site)] = {
            "sha256": sha256(dictionary / "sae_weights.safetensors"),
            "folder": str(dictionary),
            "d_sae": len(made.W_dec),
            "quality": data.quality,
        }
        _write_site(site_folder(folder, site), source, site, made)
    for name, schema in (
        ("features", catalogue.FEATURES),
        ("tokens", catalogue.TOKENS),
        ("contexts", catalogue.CONTEXTS),
    ):
        join([site_folder(folder, site) / f"{name}.parquet" for site in sites], schema, folder / f"{name}.parquet")
    save_file(vectors, folder / "glosses.safetensors")
    save_file(covariances, folder / "covariances.safetensors")
    number = np.arange(n_tokens)
    made_up = np.stack((number // 10, number % 10 * 5, number % 10 * 5 + 4), axis=1)
    save_file({"spans": np.ascontiguousarray(made_up if spans is None else spans, np.int32)}, folder / "spans.safetensors")
    write_json(
        folder / "manifest.json",
        {
            "stage": "catalogue",
            "source": source,
            "model": {"name": source, "folder": str(folder / "model"), "sha256": "0" * 64, "bos": None} | dict(model or {}),
            "corpus": {"source": "made up", "licence": None, "sha256": "1" * 64, "documents": -(-n_tokens // 10)},
            "n_tokens": n_tokens,
            "sites": entries,
            "gloss": {"source": "contexts"},
            "versions": {},
            "seconds": 0.0,
            "peak_memory_gb": 0.0,
        },
    )
    return Catalogue(folder)


def write_dictionary(folder: Path, site: Site, W_dec: np.ndarray, *, k: int = 4) -> Path:
    """A TopK dictionary in SAELens' layout whose encoder is the transpose of its decoder; its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    d_sae, d_model = W_dec.shape
    weights = {"W_dec": W_dec, "W_enc": W_dec.T, "b_dec": np.zeros(d_model), "b_enc": np.zeros(d_sae)}
    save_file({name: np.ascontiguousarray(t, np.float32) for name, t in weights.items()}, folder / "sae_weights.safetensors")
    config = {
        "architecture": "topk",
        "d_in": d_model,
        "d_sae": d_sae,
        "k": min(k, d_sae),
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "rescale_acts_by_decoder_norm": False,
        "metadata": {"hook_name": site.hook_name, "prepend_bos": False, "context_size": 128},
    }
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder


def _complete(data: SiteData, n_tokens: int) -> SiteData:
    """`data` with everything that it leaves out made up."""
    d_sae, d_model = data.W_dec.shape
    rng = np.random.default_rng(d_sae)
    tokens = data.tokens
    if tokens is None:
        tokens = [[(f"word{feature}", 1.0)] for feature in range(d_sae)]
    tokens = [sorted(listed, key=lambda item: -item[1]) for listed in tokens]
    codes = data.codes
    if codes is None:
        codes = sparse.random(n_tokens, d_sae, density=0.1, format="csr", dtype=np.float32, random_state=d_sae)
    codes = sparse.csr_matrix(codes, dtype=np.float32)
    glosses = data.glosses
    if glosses is None:
        glosses = [", ".join(word for word, _ in listed[:8]) or None for listed in tokens]
    vectors = data.gloss_vectors
    if vectors is None:
        vectors = rng.standard_normal((d_sae, E))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors[[gloss is None for gloss in glosses]] = 0.0
    return SiteData(
        W_dec=data.W_dec,
        tokens=tokens,
        codes=codes,
        density=np.diff(codes.tocsc().indptr) / max(n_tokens, 1) if data.density is None else data.density,
        gloss_vectors=vectors,
        glosses=glosses,
        mean=np.zeros(d_model) if data.mean is None else data.mean,
        covariance=np.eye(d_model) if data.covariance is None else data.covariance,
    )


def _write_site(folder: Path, source: str, site: Site, data: SiteData) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, (rows, schema) in _tables(data).items():
        labelled = [{"source": source, "site": str(site), **row} for row in rows]
        write_table(folder / f"{name}.parquet", pa.Table.from_pylist(labelled, schema=schema))
    assert data.codes is not None
    codes = {
        "indptr": np.ascontiguousarray(data.codes.indptr, np.int64),
        "indices": np.ascontiguousarray(data.codes.indices, np.int32),
        "values": np.ascontiguousarray(data.codes.data, np.float32),
    }
    save_file(codes, folder / "codes.safetensors")
    moments = {"mean": data.mean, "covariance": data.covariance}
    save_file({name: np.ascontiguousarray(t, np.float32) for name, t in moments.items()}, folder / "moments.safetensors")
    write_json(folder / "site.json", {"key": {"site": str(site)}})


def _tables(data: SiteData) -> dict[str, tuple[list[dict[str, Any]], pa.Schema]]:
    """The rows of a site's tables, without source and site."""
    assert data.tokens is not None
    assert data.glosses is not None
    assert data.density is not None
    largest = [listed[0][1] if listed else 0.0 for listed in data.tokens]
    features = [
        {
            "feature": feature,
            "density": float(data.density[feature]),
            "max_act": largest[feature],
            "mean_act": largest[feature] / 2,
            "gloss": gloss,
            "gloss_source": None if gloss is None else "contexts",
            "gloss_score": None,
        }
        for feature, gloss in enumerate(data.glosses)
    ]
    vocabulary: dict[str, int] = {}
    tokens, contexts = [], []
    for feature, listed in enumerate(data.tokens):
        for rank, (word, value) in enumerate(listed):
            token_id = vocabulary.setdefault(word, len(vocabulary))
            row = {"feature": feature, "rank": rank, "value": value}
            if rank < catalogue.TOP_TOKENS:
                tokens.append({**row, "token_id": token_id, "token": f" {word}", "word": word})
            if rank < catalogue.TOP_CONTEXTS:
                text = f"here is {word} again"
                contexts.append({**row, "document": token_id, "start": 8, "end": 8 + len(word), "text": text})
    return {
        "features": (features, catalogue.FEATURES),
        "tokens": (tokens, catalogue.TOKENS),
        "contexts": (contexts, catalogue.CONTEXTS),
    }
