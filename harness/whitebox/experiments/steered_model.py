"""Which model a catalogue's features are tried on: the source that it was made from, or another one at the same depth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from harness.errors import UsageError
from harness.whitebox.features.catalogue import Catalogue
from harness.whitebox.sources.architectures import decoder_of
from harness.whitebox.sources.models import LocalModel, load_model
from harness.whitebox.sources.sites import Site


def source_model(catalogue: Catalogue, note: Callable[[str], None]) -> LocalModel:
    """The catalogue's own model in float32; raises UsageError where its weights are no longer those that were read."""
    reference = catalogue.model_reference()
    folder = Path(reference["folder"]) if reference.get("folder") else None
    known = folder is not None and folder.is_dir()
    model = load_model(reference.get("name") or catalogue.source, note, dtype="float32", folder=folder if known else None)
    if reference.get("sha256") not in (None, model.digest):
        raise UsageError(
            f"{model.folder}: its weights are not those that the catalogue {catalogue.folder} was made from",
            hint="make the catalogue again: harness map catalogue",
        )
    return model


def same_depth(sites: Sequence[Site], catalogue: Catalogue, model: LocalModel) -> dict[Site, Site]:
    """For each site of the catalogue's model the same sub-module of `model` at the same share of its depth.

    Raises UsageError where the folder of the catalogue's model is gone, so that its depth is not known.
    """
    from transformers import AutoConfig

    folder = catalogue.model_reference().get("folder")
    if not folder or not (Path(folder) / "config.json").is_file():
        raise UsageError(
            f"how deep {catalogue.source} is cannot be told: its folder {folder} is gone", hint="name a site with --model-site"
        )
    deepest = int(AutoConfig.from_pretrained(folder).get_text_config().num_hidden_layers) - 1
    layers = len(decoder_of(model.model).blocks) - 1
    return {
        site: Site(layer=round(site.layer / max(deepest, 1) * layers), submodule=site.submodule)
        for site in dict.fromkeys(sites)
    }
