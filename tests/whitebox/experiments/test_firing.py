"""Contexts cut where a feature fires, and differences in means against plain hooks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from harness.errors import UsageError  # noqa: E402
from harness.whitebox.experiments.firing import elsewhere, firings  # noqa: E402
from harness.whitebox.sources.activations import CONTEXT  # noqa: E402
from harness.whitebox.sources.models import LocalModel, load_model  # noqa: E402
from harness.whitebox.sources.sites import Site  # noqa: E402

from ..tiny_models import changing, plain  # noqa: E402
from ..tiny_world import gpt2, save_model, vocabulary  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LocalModel:
    return load_model(str(save_model(tmp_path_factory.mktemp("model"), gpt2())), lambda _: None, dtype="float32")


def contexts(*rows: tuple[int, int, str, int, int]) -> pa.Table:
    return pa.Table.from_pylist([dict(zip(("feature", "rank", "text", "start", "end"), row, strict=True)) for row in rows])


def ids_of(text: str) -> tuple[int, ...]:
    return tuple(vocabulary().index(word) for word in text.split())


def test_a_context_ends_with_the_last_token_that_the_firing_characters_touch(model: LocalModel) -> None:
    table = contexts(
        (5, 1, "here is a2 again", 8, 10),  # the token alone
        (5, 0, "the sky is a3", 7, 10),  # with the space before it, and across " is"
        (5, 2, "red again", 0, 3),  # the first token of all: an attention sink
        (6, 0, "a2 b3", 5, 5),  # touches nothing
        (7, 0, "a2 b3", 0, 5),
    )
    found = firings(table, [5, 6, 8], model)
    assert found == {5: [ids_of("the sky is"), ids_of("here is a2")], 6: [], 8: []}


def test_a_token_put_before_every_text_is_put_before_a_context_and_long_ones_are_cut_in_front(model: LocalModel) -> None:
    with_bos = LocalModel(
        name="m", folder=Path(), digest="", model=model.model, tokenizer=model.tokenizer, bos=len(vocabulary()) - 1
    )
    text = " ".join(["sky"] * 300 + ["red"])
    found = firings(contexts((5, 0, "red again", 0, 3), (5, 1, text, len(text) - 3, len(text))), [5], with_bos)[5]
    assert found[0] == (with_bos.bos, *ids_of("red"))
    assert (found[1][0], found[1][-1], len(found[1])) == (with_bos.bos, *ids_of("red"), CONTEXT)


@pytest.mark.parametrize("site", [Site(layer=1, submodule="resid_post"), Site(layer=2, submodule="mlp_out")])
def test_directions_elsewhere_are_differences_in_means(site: Site, model: LocalModel) -> None:
    rng = np.random.default_rng(0)
    texts = {
        f: [tuple(rng.integers(0, 90, n).tolist()) for n in lengths] for f, lengths in ((3, (4, 7, 20)), (4, (9,)), (5, ()))
    }
    texts[4].append(texts[3][0])  # a context of two features is read once
    found = elsewhere(model.model, site, texts)

    def activation(ids: tuple[int, ...]) -> Any:
        kept: list[Any] = []
        with changing(model.model, site, lambda x: kept.append(x) or x):
            plain(model.model, list(ids))
        return kept[0][0, 1:].double().numpy()

    every = np.concatenate([activation(ids) for ids in {ids for listed in texts.values() for ids in listed}])
    for feature in (3, 4):
        raw = np.mean([activation(ids)[-1] for ids in texts[feature]], axis=0) - every.mean(axis=0)
        np.testing.assert_allclose(found.directions[feature], raw / np.linalg.norm(raw), atol=1e-4)
    assert set(found.directions) == {3, 4}
    assert found.std == pytest.approx(np.sqrt(np.trace(np.cov(every.T, bias=True)) / every.shape[1]), rel=1e-4)


def test_without_any_context_there_is_no_direction(model: LocalModel) -> None:
    with pytest.raises(UsageError, match="no feature has a context to read"):
        elsewhere(model.model, Site(layer=1, submodule="resid_post"), {3: []})
