"""How well a dictionary describes its site, on text that it was not trained on, beside a dictionary of random directions.

Explained variance is 1 - sum |x - x_hat|^2 / sum |x - mean|^2 over tokens. Cross-entropy recovered is

    (CE_mean - CE_sae) / (CE_mean - CE_clean)

with the reconstruction (CE_sae) or the site's mean activation (CE_mean) put in the place of every activation but those that
training leaves out too: each context's first position, and tokens of a norm above the limit. SAELens' own evaluation
ablates to zero; zero is far from anything a model with a large mean activation ever sees, so that CE_zero flatters every
dictionary. Both are reported. Cross-entropies are in nats a token.

Sources of the measures: Gao et al. 2024 (arXiv 2406.04093), Bricken et al. 2023.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from harness.errors import UsageError
from harness.whitebox.sources import activations
from harness.whitebox.sources.activations import Edit
from harness.whitebox.sources.sites import Site

CE_BATCH = 4
"""Contexts of one forward pass with logits: 4 x 128 tokens of a vocabulary of 262,144 are half a gigabyte."""


class Dictionary(Protocol):
    """What is judged: SAELens' SAE, or anything that encodes and decodes."""

    def encode(self, x: Any) -> Any:
        """Feature activations (n, d_sae) of activations (n, d_model)."""
        ...

    def decode(self, feature_acts: Any) -> Any:
        """Activations (n, d_model) of feature activations (n, d_sae)."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """`l0`: features active on a token, on average; `alive_share`: of all features, those active on some held-out token.

    The recovered shares are None where ablating the site costs the model nothing.
    """

    explained_variance: float
    l0: float
    alive_share: float
    ce_clean: float
    ce_sae: float
    ce_mean: float
    ce_zero: float
    ce_recovered: float | None
    ce_recovered_zero: float | None
    n_tokens: int


class RandomDictionary:
    """The control: `d_sae` random unit directions, encoded like a TopK dictionary with the transpose as encoder.

    `scale` is fitted, the one number that makes its reconstructions of `fit` best in squares, so that it is not punished
    for the overlap of its directions.
    """

    def __init__(self, fit: Any, *, d_sae: int, k: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        W_dec = torch.randn(d_sae, fit.shape[1], generator=generator)
        self.W_dec = W_dec / W_dec.norm(dim=1, keepdim=True)
        self.b_dec = fit.mean(0)
        self._k = k
        raw = self.encode(fit) @ self.W_dec
        self._scale = float(((fit - self.b_dec) * raw).sum() / raw.square().sum())

    def encode(self, x: Any) -> Any:
        """The k largest projections, where they are positive."""
        projections = (x - self.b_dec) @ self.W_dec.T
        top = projections.topk(self._k, dim=-1)
        return torch.zeros_like(projections).scatter_(-1, top.indices, top.values.relu())

    def decode(self, feature_acts: Any) -> Any:
        """The scaled sum of directions, and the mean."""
        return feature_acts @ self.W_dec * self._scale + self.b_dec


def beside_random(
    model: Any, contexts: Sequence[Sequence[int]], site: Site, sae: Any, *, norm_limit: float, seed: int
) -> tuple[Quality, Quality]:
    """The quality of SAELens' TopK dictionary `sae`, and that of random directions with its d_sae and k."""
    test = SiteTest(model, contexts, site, norm_limit)
    control = RandomDictionary(test.x, d_sae=sae.cfg.d_sae, k=sae.cfg.k, seed=seed)
    return test.judge(sae), test.judge(control)


class SiteTest:
    """A site's held-out activations `x` (n, d_model), and what the model loses without them.

    `contexts` are of equal length; raises UsageError where there are none.
    """

    def __init__(self, model: Any, contexts: Sequence[Sequence[int]], site: Site, norm_limit: float) -> None:
        if not contexts:
            raise UsageError("no held-out text to judge a dictionary on", hint="give more with --text FILE")
        self._place = (model, contexts, site)
        self._norm_limit = norm_limit
        parts = [part[site] for part in activations.read(model, _batches(contexts, activations.BATCH), [site])]
        x = torch.cat(parts)
        self.x = x[x.norm(dim=1) <= norm_limit]  # (n, d_model)
        self._mean = self.x.mean(0)
        self._clean = cross_entropy(model, contexts)
        self._ce_mean = self._entropy(self._mean.expand_as)
        self._ce_zero = self._entropy(torch.zeros_like)

    def _entropy(self, replacement: Callable[[Any], Any]) -> float:
        model, contexts, site = self._place
        return cross_entropy(model, contexts, site, splice(replacement, self._norm_limit))

    def judge(self, dictionary: Dictionary) -> Quality:
        """How well `dictionary` does in the place of the activations."""
        missed, n_active, alive = _reconstruct(self.x, dictionary)
        ce_sae = self._entropy(lambda rows: dictionary.decode(dictionary.encode(rows)))
        return Quality(
            explained_variance=1 - missed / float((self.x - self._mean).square().sum()),
            l0=n_active / len(self.x),
            alive_share=float(alive.float().mean()),
            ce_clean=self._clean,
            ce_sae=ce_sae,
            ce_mean=self._ce_mean,
            ce_zero=self._ce_zero,
            ce_recovered=recovered(self._clean, ce_sae, self._ce_mean),
            ce_recovered_zero=recovered(self._clean, ce_sae, self._ce_zero),
            n_tokens=len(self.x),
        )


def recovered(clean: float, spliced: float, ablated: float) -> float | None:
    """(CE_ablated - CE_spliced) / (CE_ablated - CE_clean); None where the ablation does no harm."""
    return (ablated - spliced) / (ablated - clean) if ablated > clean else None


def splice(replacement: Callable[[Any], Any], norm_limit: float) -> Edit:
    """`replacement` (rows to rows, float32) at every position but the first and those of a norm above `norm_limit`."""

    def edit(x: Any) -> Any:
        rows = x.flatten(0, 1).float()
        put = rows.norm(dim=1) <= norm_limit
        put.view(x.shape[:2])[:, 0] = False
        out = rows.clone()
        out[put] = replacement(rows[put])
        return out.view(x.shape).to(x.dtype)

    return edit


def cross_entropy(model: Any, contexts: Sequence[Sequence[int]], site: Site | None = None, edit: Edit | None = None) -> float:
    """Mean cross-entropy of the next token in nats, with `edit` applied at `site` where both are given."""
    if site is not None and edit is not None:
        with activations.replaced(model, site, edit):
            return cross_entropy(model, contexts)
    total, n = 0.0, 0
    with torch.inference_mode():
        for batch in _batches(contexts, CE_BATCH):
            ids = torch.tensor(batch, device=model.device)
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1).float()
            total += float(torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten(), reduction="sum"))
            n += len(logits)
    return total / n


def _reconstruct(x: Any, dictionary: Dictionary) -> tuple[float, int, Any]:
    """The squared error over `x`, how many features fired in all, which of them ever did (d_sae,)."""
    missed, n_active, alive = 0.0, 0, None
    with torch.inference_mode():
        for rows in x.split(1024):
            feature_acts = dictionary.encode(rows)
            missed += float((rows - dictionary.decode(feature_acts)).square().sum())
            active = feature_acts > 0
            n_active += int(active.sum())
            alive = active.any(0) if alive is None else alive | active.any(0)
    return missed, n_active, alive


def _batches(contexts: Sequence[Sequence[int]], size: int) -> list[Sequence[Sequence[int]]]:
    return [contexts[start : start + size] for start in range(0, len(contexts), size)]
