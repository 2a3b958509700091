"""Interventions on a model's residual stream, thousands a prompt: only what lies after the site is run again.

A prompt is run once and its stream kept. The blocks behind the changed place run on batches of changed streams, the last
block for the last position only, and so do norm and unembedding. A change at the last position alone meets the kept keys
and values of the others, so that one position a stream runs.

Owns execution and what is read of it. Which directions and doses make sense is the caller's matter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.errors import UsageError
from harness.whitebox.sources.architectures import Place, decoder_of
from harness.whitebox.sources.sites import Site
from harness.whitebox.steering.cached_prompt import CachedPrompt, cache_prompt, last_logits
from harness.whitebox.steering.interventions import Intervention, Positions, Steering

MAX_TOKENS = 1280
"""Positions of one batch: matrix products gain nothing from more, and memory stays flat."""

MAX_ROWS = 256
"""Interventions of one batch where each is a single position: their logits over the vocabulary are what takes memory."""

CHECK_LIMIT = 1e-4
"""Largest difference between suffix and hooked logits, as a share of the largest centred logit: right models are at 1e-6."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effects:
    """What interventions did to the last position's distribution; `shape` is the intervention's. NaN where it is not finite.

    `log_odds_shift` (n_targets, *shape), nats: log P(target) / (1 - P(target)) against the clean run, a target being a set of
    token ids. `total_variation` in [0, 1] and `top1_changed`: how far the model was moved at all. `expectation_shift`
    (n_vectors, *shape): the expected value of each vector over the vocabulary, against the clean run.
    """

    log_odds_shift: NDArray[np.float32]
    total_variation: NDArray[np.float32]
    top1_changed: NDArray[np.bool_]
    expectation_shift: NDArray[np.float32]


class Reading:
    """What is read of next-token distributions, against the clean one whose logits (V,) are given; see `Effects`.

    `targets`: sets of token ids; `vectors` (m, V): a number for each token, whose expected value is wanted.
    """

    def __init__(self, clean: Tensor, targets: Sequence[Sequence[int]], vectors: Tensor | None = None) -> None:
        clean = clean[None]
        self._masks = [target_mask(target, clean.shape[-1]).to(clean.device) for target in targets]
        self._probabilities, self._top = clean.softmax(-1), clean.argmax(-1)
        self._vectors = clean[:0] if vectors is None else vectors.to(clean)
        self.clean_log_odds = [float(log_odds(clean, mask)) for mask in self._masks]
        self.clean_expectations = self._expected(self._probabilities)[:, 0].tolist()

    def read(self, logits: Tensor) -> Effects:
        """The effects of each of `logits` (b, V); their shape is (b,)."""
        moved = logits.softmax(-1) - self._probabilities
        odds = [log_odds(logits, mask) - clean for mask, clean in zip(self._masks, self.clean_log_odds, strict=True)]
        return Effects(
            log_odds_shift=torch.stack(odds).cpu().numpy() if odds else np.empty((0, len(logits)), np.float32),
            total_variation=(moved.abs().sum(-1) / 2).cpu().numpy(),
            top1_changed=(logits.argmax(-1) != self._top).cpu().numpy(),
            expectation_shift=self._expected(moved).cpu().numpy(),
        )

    def _expected(self, weights: Tensor) -> Tensor:
        """Each vector's sum under `weights` (b, V): (m, b)."""
        return self._vectors @ weights.T


class Steerer:
    """Runs interventions on a causal model of transformers in float32, which stays as it is (but in evaluation mode).

    Raises UsageError for an architecture without an entry in `architectures`, for shorter numbers, and for a model whose
    answers differ from those of a hooked full forward pass: each model is asked both ways before it is believed.
    """

    def __init__(self, model: Any, *, max_tokens: int = MAX_TOKENS) -> None:
        self.decoder = decoder_of(model)
        if model.dtype not in (torch.float32, torch.float64):
            raise UsageError(
                f"steering needs float32, the model's numbers are {model.dtype}", hint="load it with dtype=torch.float32"
            )
        self._model = model.eval()
        self._max_tokens = max_tokens
        self._check()

    def cache(self, token_ids: Sequence[int]) -> CachedPrompt:
        """Run a prompt once and keep its stream; raises UsageError for a prompt that cannot be run."""
        ids = tuple(int(token) for token in token_ids)
        self._refuse(ids)
        return cache_prompt(self._model, self.decoder, ids)

    def logits(self, prompt: CachedPrompt, intervention: Intervention) -> Iterator[Tensor]:
        """The last position's logits of each entry of `intervention`, in row-major order, in batches of (b, V)."""
        place = self.decoder.place(intervention.site)
        n = math.prod(intervention.shape)
        one = intervention.positions == "last" or place.layer == len(self.decoder.blocks) - 1
        length = 1 if one else len(prompt.token_ids)
        size = min(max(self._max_tokens // length, 1), MAX_ROWS)
        span = slice(len(prompt.token_ids) - length, None)
        for start in range(0, n, size):
            with torch.no_grad():
                changed = intervention.changed(prompt, slice(start, min(start + size, n)), span)
                logits = self.run_from(prompt, place, changed)
            yield logits

    def effects(
        self,
        prompt: CachedPrompt,
        intervention: Intervention,
        targets: Sequence[Sequence[int]],
        vectors: Tensor | None = None,
    ) -> Effects:
        """What each entry of `intervention` does, reduced as it is computed: memory does not grow with the number of entries
        times the vocabulary. `targets` and `vectors` as in `Reading`."""
        return self.read(prompt, intervention, Reading(prompt.clean_logits, targets, vectors))

    def read(self, prompt: CachedPrompt, intervention: Intervention, reading: Reading) -> Effects:
        """The same for a reading that is made already."""
        parts = [reading.read(logits) for logits in self.logits(prompt, intervention)]
        parts = parts or [reading.read(prompt.clean_logits[None][:0])]
        shape = intervention.shape

        def joined(name: str) -> NDArray[Any]:
            whole = np.concatenate([getattr(part, name) for part in parts], axis=-1)
            return whole.reshape(*whole.shape[:-1], *shape)

        return Effects(**{name: joined(name) for name in Effects.__slots__})

    def run_from(self, prompt: CachedPrompt, place: Place, x: Tensor) -> Tensor:
        """The logits (b, V) that follow when the stream at `place` is `x`, (b, T, d_model). Differentiable.

        Given (b, 1, d_model), `x` is the last position, and the others stay clean.
        """
        blocks = self.decoder.blocks
        whole = x.shape[1] == len(prompt.token_ids)
        calls = prompt.calls if whole else prompt.last_calls
        last = len(blocks) - 1
        if place.mid:
            if place.layer == last:
                x = x[:, -1:]
            x = x + blocks[place.layer].mlp_out(x)
        for layer in range(place.layer + 1, len(blocks)):
            x = blocks[layer].run(x, calls[layer], last_only=layer == last)
        return self.decoder.logits(x)

    def _refuse(self, ids: tuple[int, ...]) -> None:
        vocabulary = int(self._model.get_input_embeddings().num_embeddings)
        longest = getattr(self._model.config, "max_position_embeddings", None)
        if not ids:
            raise UsageError("the prompt has no token")
        if longest is not None and len(ids) > longest:
            raise UsageError(f"the prompt has {len(ids)} tokens; the model takes at most {longest}")
        if min(ids) < 0 or max(ids) >= vocabulary:
            raise UsageError(f"the prompt has a token id outside 0..{vocabulary - 1}")

    def _check(self) -> None:
        """Compare with hooked forward passes at the first and the last layer, or raise UsageError."""
        generator = np.random.default_rng(0)
        prompt = self.cache(generator.integers(0, self._model.get_input_embeddings().num_embeddings, 9).tolist())
        for layer in sorted({0, len(self.decoder.blocks) - 1}):
            for submodule, module in self.decoder.blocks[layer].outputs.items():
                site = Site(layer=layer, submodule=submodule)
                length = float(prompt.residual(self.decoder.place(site)).norm(dim=-1).mean())
                direction = torch.from_numpy(generator.standard_normal((1, self.decoder.d_model)))
                doses = torch.tensor([[0.0, length / float(direction.norm())]])
                both: tuple[Positions, ...] = ("all", "last")
                for positions in both:
                    steering = Steering(site=site, directions=direction, doses=doses, positions=positions)
                    found = torch.cat(list(self.logits(prompt, steering)))
                    delta = (direction * doses[0, 1]).to(found)
                    hooked = _hooked(self._model, module, prompt.token_ids, delta, positions)
                    self._compare(site, found, torch.stack([prompt.clean_logits, hooked]))

    def _compare(self, site: Site, found: Tensor, expected: Tensor) -> None:
        size = (expected - expected.mean(-1, keepdim=True)).abs().max()
        difference = float((found - expected).abs().max() / size)
        if not difference <= CHECK_LIMIT:
            raise UsageError(
                f"{self.decoder.name} cannot be steered: at {site} logits differ from a hooked forward pass by "
                f"{difference:.2g} of their size (limit {CHECK_LIMIT:g})",
                hint="load it with attn_implementation='sdpa' or 'eager'",
            )


def target_mask(token_ids: Sequence[int], size: int) -> Tensor:
    """Which of a vocabulary of `size` belongs to a target, (V,); raises UsageError for a target that has no odds."""
    ids = torch.as_tensor(list(token_ids), dtype=torch.long)
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < size:
        raise UsageError(f"a target has a token id outside 0..{size - 1}")
    mask = torch.zeros(size, dtype=torch.bool)
    mask[ids] = True
    if not mask.any() or mask.all():
        raise UsageError("a target is empty or the whole vocabulary, so it has no odds")
    return mask


def log_odds(logits: Tensor, mask: Tensor) -> Tensor:
    """Log-odds in nats of the masked ids' mass, (b,); exact also where the mass is near 0 or 1."""
    return logits[:, mask].logsumexp(-1) - logits.masked_fill(mask, float("-inf")).logsumexp(-1)


def _hooked(model: Any, module: Any, ids: tuple[int, ...], delta: Tensor, positions: Positions) -> Tensor:
    """The last logits (V,) of a plain forward pass in which `delta` (1, d_model) is added to what `module` gives."""

    def add(_module: Any, _inputs: Any, output: Any) -> Any:
        tensor = output[0] if isinstance(output, tuple) else output
        changed = tensor + delta
        if positions == "last":
            changed = torch.cat([tensor[:, :-1], changed[:, -1:]], dim=1)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    hook = module.register_forward_hook(add)
    try:
        with torch.no_grad():
            return last_logits(model, ids)
    finally:
        hook.remove()
