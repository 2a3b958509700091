"""Glosses from top words, their vectors, and how they come into a site's folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from safetensors.numpy import load_file

from harness.whitebox.features.catalogue import FEATURES
from harness.whitebox.features.glosses import Gloss, embedded, from_words, is_glossed, write_glosses
from harness.whitebox.sources.sites import Site
from harness.whitebox.stage import site_folder

from ..tiny_catalogue import SiteData, write_catalogue

SITE = Site(layer=1, submodule="resid_post")
TOKENS = [
    [("Strong", 4.0), ("strong", 3.5), ("stronger", 2.0), ("weak", 1.9)],
    [(f"word{number}", 9.0 - number / 10) for number in range(12)],
    [],
    [("\n", 3.0), ("end", 2.0)],
    [("\n", 3.0)],
]


def site(folder: Path) -> Path:
    write_catalogue(folder, sites={SITE: SiteData(W_dec=np.eye(5, 6), tokens=TOKENS, glosses=[None] * 5)})
    return site_folder(folder, SITE)


def letters(texts: Sequence[str]) -> np.ndarray:
    """Each text once, as a vector of its length."""
    assert len(set(texts)) == len(texts)
    return np.array([[len(text), 1.0] for text in texts], np.float32).reshape(-1, 2)


def test_a_gloss_is_the_strongest_distinct_words(tmp_path: Path) -> None:
    found = from_words(site(tmp_path) / "tokens.parquet")
    assert {feature: gloss.text for feature, gloss in found.items()} == {
        0: "strong, stronger",  # `weak` is below half of the largest
        1: ", ".join(f"word{number}" for number in range(8)),
        3: "end",
    }
    assert {gloss.source for gloss in found.values()} == {"contexts"}


def test_features_without_a_gloss_have_a_vector_of_zeros_and_each_text_is_embedded_once() -> None:
    glosses = {3: Gloss(text="abc", source="x"), 1: Gloss(text="ab", source="x"), 4: Gloss(text="abc", source="y")}
    assert embedded(glosses, 6, letters).tolist() == [[0, 0], [2, 1], [0, 0], [3, 1], [3, 1], [0, 0]]
    assert embedded({}, 3, letters).tolist() == [[0, 0]] * 3


def test_glosses_come_into_the_table_and_replace_those_before(tmp_path: Path) -> None:
    folder = site(tmp_path)
    before = pq.read_table(folder / "features.parquet")
    glosses = {1: Gloss(text="strength", source="llm:x", score=0.75), 4: Gloss(text="the end", source="llm:x")}
    vectors = embedded(glosses, 5, letters)
    told = write_glosses(folder, glosses, vectors, {"key": {"kind": "llm"}})
    assert (told["n_glosses"], told["mean_score"]) == (2, 0.75)
    after = pq.read_table(folder / "features.parquet")
    assert after.schema == FEATURES
    assert after["gloss"].to_pylist() == [None, "strength", None, None, "the end"]
    assert after["gloss_score"].to_pylist() == [None, 0.75, None, None, None]
    assert after["density"].equals(before["density"])
    np.testing.assert_array_equal(load_file(folder / "glosses.safetensors")["vectors"], vectors)
    assert is_glossed(folder, {"kind": "llm"}) == told
    assert is_glossed(folder, {"kind": "none"}) is None

    write_glosses(folder, {}, None, {"key": {"kind": "none"}})
    assert pq.read_table(folder / "features.parquet")["gloss"].null_count == 5
    assert not (folder / "glosses.safetensors").exists()
