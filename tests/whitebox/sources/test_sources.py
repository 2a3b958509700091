"""The declared sources: complete, and the same as SAELens' own directory of releases where that is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

import pytest

from harness.errors import UnknownNameError
from harness.whitebox.sources.dictionaries import hub_dictionaries
from harness.whitebox.sources.sites import Site
from harness.whitebox.sources.sources import NATURAL_DOSE, find_source, sources
from harness.whitebox.training.training import import_sae_lens


def differences(directory: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Where the declared sources and a directory of releases (repo_id, saes with id and path) disagree."""
    found = []
    for source in sources().values():
        for dictionary in hub_dictionaries(source):
            release = source.release_of(dictionary.site)
            listed = directory.get(release.release, {})
            paths = {sae["id"]: sae["path"] for sae in listed.get("saes", ())}
            ours = (release.repository, release.folder(dictionary.site.layer))
            theirs = (listed.get("repo_id"), paths.get(dictionary.sae_id))
            if ours != theirs:
                found.append(f"{release.release} {dictionary.sae_id}: {ours} is listed as {theirs}")
    return found


def test_the_two_sources_have_all_their_sites() -> None:
    assert {name: len(source.sites()) for name, source in sources().items()} == {"pythia-70m": 18, "gpt2-small": 48}
    assert [(source.d_model, source.d_sae) for source in sources().values()] == [(512, 32768), (768, 32768)]
    places = [
        (d.release.repository, d.release.folder(d.site.layer))
        for s in sources().values()
        for d in hub_dictionaries(s)
        if d.release
    ]
    assert len(set(places)) == 66


@pytest.mark.skipif(
    importlib.util.find_spec("sae_lens") is None, reason="sae_lens is not installed: its directory cannot be read"
)
def test_ids_repositories_and_paths_are_those_of_saelens_directory() -> None:
    from importlib.resources import files

    import yaml

    import_sae_lens()
    data = yaml.safe_load(files("sae_lens").joinpath("pretrained_saes.yaml").read_text())
    assert differences(data.get("releases", data)) == []


def test_the_comparison_with_a_directory_feels_a_wrong_path() -> None:
    release = find_source("gpt2-small").release_of(Site(layer=8, submodule="resid_post"))
    listed = [{"id": f"blocks.{layer}.hook_resid_post", "path": f"v5_32k_layer_{layer}"} for layer in range(12)]
    found = differences({release.release: {"repo_id": release.repository, "saes": listed}})
    assert sum("v5_32k_layer_8.pt" in line and "resid-post" in line for line in found) == 1


@pytest.mark.parametrize(
    ("source", "site", "folder"),
    [
        ("gpt2-small", "resid_post.8", "v5_32k_layer_8.pt"),
        ("gpt2-small", "resid_mid.8", "v5_32k_layer_8"),
        ("gpt2-small", "attn_out.11", "v5_32k_layer_11"),
        ("pythia-70m", "resid_post.0", "0-res-sm"),
        ("pythia-70m", "attn_out.5", "5-att-sm"),
    ],
)
def test_only_the_folders_of_gpt2s_resid_post_end_in_pt(source: str, site: str, folder: str) -> None:
    place = Site.parse(site)
    assert find_source(source).release_of(place).folder(place.layer) == folder


def test_the_dictionary_of_pythias_embeddings_is_no_site_and_never_stands_for_layer_0() -> None:
    folders = [d.release.folder(d.site.layer) for d in hub_dictionaries(find_source("pythia-70m")) if d.release]
    assert "e-res-sm" not in folders
    assert "e-att-sm" not in folders
    assert Site.of_hook_name("blocks.0.hook_resid_pre") is None


def test_a_hook_name_and_a_site_name_each_other() -> None:
    for source in sources().values():
        for site in source.sites():
            assert Site.of_hook_name(site.hook_name) == site
            assert Site.parse(str(site)) == site


def test_doses_under_layer_norm_are_in_units_of_the_activations_spread() -> None:
    release = find_source("gpt2-small").release_of(Site(layer=3, submodule="mlp_out"))
    assert "std(x)" in NATURAL_DOSE[release.normalize_activations]


def test_an_unknown_source_or_site_is_an_error_that_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError) as error:
        find_source("gpt-small")
    assert error.value.hint == "did you mean 'gpt2-small'?"
    with pytest.raises(UnknownNameError, match=r"unknown site of pythia-70m 'resid_post\.6'"):
        find_source("pythia-70m").release_of(Site(layer=6, submodule="resid_post"))
