"""Training against planted truth: activations that are sums of a few known directions."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from harness.errors import StorageError, UsageError  # noqa: E402
from harness.whitebox.sources.sites import Site  # noqa: E402
from harness.whitebox.training import training  # noqa: E402
from harness.whitebox.training.training import Recipe, SiteTrainer  # noqa: E402

needs_sae_lens = pytest.mark.skipif(find_spec("sae_lens") is None, reason="needs sae_lens (the extra `whitebox`)")
sae_lens_warnings = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTH, PLANTED, ACTIVE = 24, 48, 3
MEAN = 5.0
RECIPE = Recipe(tokens=49_152, d_sae=96, k=ACTIVE, batch=64, lr=1e-2)
SITE = Site(layer=2, submodule="resid_post")


def planted() -> Any:
    """(PLANTED, WIDTH) unit directions."""
    W = torch.randn(PLANTED, WIDTH, generator=torch.Generator().manual_seed(3))
    return W / W.norm(dim=1, keepdim=True)


def activations(n: int, seed: int = 0) -> Any:
    """(n, WIDTH): ACTIVE planted directions each, with strengths from 1 to 2, far from zero."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(n, PLANTED, generator=generator).topk(ACTIVE).indices
    strengths = torch.zeros(n, PLANTED).scatter_(1, chosen, 1 + torch.rand(n, ACTIVE, generator=generator))
    return strengths @ planted() + MEAN


def trained(recipe: Recipe = RECIPE, x: Any = None) -> tuple[Any, SiteTrainer]:
    trainer = SiteTrainer(WIDTH, recipe, {"hook_name": SITE.hook_name, "model_name": "tiny"})
    for part in (activations(recipe.tokens) if x is None else x).split(2000):
        trainer.feed(part)
    return trainer.finish(), trainer


@pytest.fixture(scope="module")
def dictionary() -> Any:
    return trained()[0]


@needs_sae_lens
@sae_lens_warnings
def test_planted_directions_are_recovered(dictionary: Any) -> None:
    W_dec = dictionary.W_dec.detach() / dictionary.W_dec.detach().norm(dim=1, keepdim=True)
    best = (planted() @ W_dec.T).max(1).values
    untrained = torch.randn(RECIPE.d_sae, WIDTH, generator=torch.Generator().manual_seed(1))
    by_chance = (planted() @ (untrained / untrained.norm(dim=1, keepdim=True)).T).max(1).values
    assert by_chance.mean() < 0.7
    assert best.mean() > 0.95


@needs_sae_lens
@sae_lens_warnings
def test_reconstructions_are_in_the_space_of_the_activations(dictionary: Any) -> None:
    x = activations(2000, seed=9)
    with torch.no_grad():
        missed = (x - dictionary(x)).square().sum() / (x - x.mean(0)).square().sum()
    assert missed < 0.1
    assert dictionary.cfg.normalize_activations == "none"


@needs_sae_lens
@sae_lens_warnings
def test_a_saved_dictionary_is_loaded_by_sae_lens_with_equal_features_and_reconstructions(
    dictionary: Any, tmp_path: Path
) -> None:
    folder = training.save(tmp_path / "out", SITE, dictionary, {"key": {"site": str(SITE)}})
    loaded = training.import_sae_lens().SAE.load_from_disk(folder)
    x = activations(100, seed=5)
    with torch.no_grad():
        features = dictionary.encode(x)
        torch.testing.assert_close(loaded.encode(x), features, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(loaded.decode(loaded.encode(x)), dictionary.decode(features), atol=1e-4, rtol=1e-4)
    assert loaded.cfg.metadata.hook_name == "blocks.2.hook_resid_post"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["resid_post.2"]


@needs_sae_lens
@sae_lens_warnings
def test_equal_seeds_give_equal_dictionaries_whatever_random_state_there_is() -> None:
    recipe = Recipe(tokens=training.CHUNK, d_sae=48, k=ACTIVE, seed=4)
    torch.manual_seed(0)
    one = trained(recipe)[0]
    torch.manual_seed(1)
    other = trained(recipe)[0]
    torch.testing.assert_close(one.W_dec, other.W_dec, atol=0, rtol=0)


@needs_sae_lens
@sae_lens_warnings
def test_tokens_of_outsized_norm_are_left_out() -> None:
    x = activations(18_000)
    x[::1000] *= 500
    _, trainer = trained(Recipe(tokens=training.CHUNK, d_sae=48, k=ACTIVE), x)
    assert trainer.left_out == 18
    assert trainer.norm_limit < 500 * float(activations(10).norm(dim=1).min())


@needs_sae_lens
@sae_lens_warnings
def test_training_ends_with_the_tokens_asked_for_and_reads_no_further() -> None:
    read = 0

    def batches() -> Any:
        nonlocal read
        while True:
            read += 2000
            yield {SITE: activations(2000, seed=read)}

    recipe = Recipe(tokens=20_480, d_sae=48, k=ACTIVE)
    trainer = SiteTrainer(WIDTH, recipe, {})
    seen = []
    training.train(batches(), {SITE: trainer}, seen.append)
    assert trainer.rows == 20_480
    assert read <= 20_480 + training.CHUNK + 2000
    assert seen[-1].done == seen[-1].planned == 20_480


@needs_sae_lens
@sae_lens_warnings
@pytest.mark.parametrize("value", [1.0, float("nan")])
def test_activations_without_content_are_refused(value: float) -> None:
    with pytest.raises(UsageError, match="all alike or not finite"):
        trained(Recipe(tokens=training.CHUNK), torch.full((training.CHUNK, WIDTH), value))


def test_too_little_text_is_refused() -> None:
    with pytest.raises(UsageError, match="too few tokens"):
        SiteTrainer(WIDTH, RECIPE, {}).finish()


@pytest.mark.parametrize(
    ("recipe", "told"), [(Recipe(k=0), "k must lie"), (Recipe(k=4096), "k must lie"), (Recipe(tokens=9), "too few")]
)
def test_a_recipe_that_makes_no_dictionary_is_refused(recipe: Recipe, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        recipe.check()


def test_a_trained_site_is_known_again_and_one_trained_otherwise_is_refused(tmp_path: Path) -> None:
    key = {"site": str(SITE), "recipe": {"k": 32}}
    assert not training.is_trained(tmp_path, SITE, key)
    training.site_dir(tmp_path, SITE).mkdir()
    assert not training.is_trained(tmp_path, SITE, key), "a folder without a manifest is not finished"
    (training.site_dir(tmp_path, SITE) / training.MANIFEST).write_text(json.dumps({"key": key}))
    assert training.is_trained(tmp_path, SITE, key)
    with pytest.raises(UsageError, match="recipe differ"):
        training.is_trained(tmp_path, SITE, {**key, "recipe": {"k": 16}})


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    class FullDisk:
        def save_inference_model(self, path: Path) -> None:
            path.mkdir()
            (path / "sae_weights.safetensors").write_bytes(b"half")
            raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match="No space left"):
        training.save(tmp_path / "out", SITE, FullDisk(), {})
    assert list((tmp_path / "out").iterdir()) == []


def test_sites_are_grouped_by_depth() -> None:
    sites = [Site.parse(text) for text in ("resid_post.9", "mlp_out.1", "resid_post.1", "mlp_out.5")]
    groups = [[str(site) for site in group] for group in training.pass_groups(sites, 2)]
    assert groups == [["mlp_out.1", "resid_post.1"], ["mlp_out.5", "resid_post.9"]]
