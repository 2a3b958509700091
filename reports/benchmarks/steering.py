"""Interventions a second of the steering engine against hooked full forward passes, at two small models' shapes.

    python reports/benchmarks/steering.py [--shape gpt2-small --shape pythia-70m] [--tokens 20] [--rounds 3] [--threads 2]

The shapes of GPT-2-small and Pythia-70M with random weights: time depends on shape alone. Float32, one prompt. Both sides run
in turn in one process on the same model. The naive side adds a direction by a forward hook and runs the whole model, one
prompt and one intervention at a time, as one calls it; it is also timed with `logits_to_keep=1`, which spares it the
unembedding of all positions but the last. Both read the last position's logits, and these are compared.

A site's line has the best round of each side. What a full pass takes does not depend on the site, so the summary holds ours
against the fastest naive time at *any* site: on a shared machine that is the ratio least in our favour. It is given twice:
in total time for equally many interventions at every site (harmonic mean of the speeds), and as the mean of the sites' ratios.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM

from harness.whitebox.sources.sites import SUBMODULES, Site, Submodule
from harness.whitebox.steering.cached_prompt import CachedPrompt
from harness.whitebox.steering.interventions import Steering
from harness.whitebox.steering.screen import first_order_effects, target_gradient
from harness.whitebox.steering.steering import Steerer

N_FEATURES = 32_768
DOSES = torch.tensor([-2.0, -1.0, 1.0, 2.0])


class Shape(NamedTuple):
    build: Callable[[], Any]
    blocks: str
    hooked: dict[Submodule, str]
    """The submodule of a block whose output is changed; "" is the block itself."""


SHAPES = {
    "gpt2-small": Shape(
        lambda: GPT2LMHeadModel(GPT2Config()),
        "transformer.h",
        {"attn_out": "attn", "mlp_out": "mlp", "resid_mid": "attn", "resid_post": ""},
    ),
    "pythia-70m": Shape(
        lambda: GPTNeoXForCausalLM(
            GPTNeoXConfig(
                vocab_size=50_304,
                hidden_size=512,
                num_hidden_layers=6,
                num_attention_heads=8,
                intermediate_size=2048,
                max_position_embeddings=2048,
            )
        ),
        "gpt_neox.layers",
        {"attn_out": "attention", "mlp_out": "mlp", "resid_post": ""},
    ),
}


class Timed(NamedTuple):
    """Milliseconds an intervention, the best of the rounds; the largest difference of logits and their spread."""

    naive_ms: float
    naive_keep_ms: float
    ours_ms: float
    difference: float
    spread: float


@contextmanager
def adding(module: Any, vector: torch.Tensor) -> Iterator[None]:
    def add(_module: Any, _inputs: Any, output: Any) -> Any:
        return (output[0] + vector, *output[1:]) if isinstance(output, tuple) else output + vector

    hook = module.register_forward_hook(add)
    try:
        yield
    finally:
        hook.remove()


def naive(model: Any, module: Any, ids: torch.Tensor, vectors: torch.Tensor, **options: int) -> torch.Tensor:
    """The last logits (n, V), one hooked pass a vector."""
    rows = []
    for vector in vectors:
        with adding(module, vector), torch.inference_mode():
            rows.append(model(ids, use_cache=False, **options).logits[0, -1])
    return torch.stack(rows)


def milliseconds(call: Callable[[], torch.Tensor], n: int) -> tuple[float, torch.Tensor]:
    started = time.perf_counter()
    found = call()
    return (time.perf_counter() - started) * 1000 / n, found


def time_site(model: Any, module: Any, steerer: Steerer, prompt: CachedPrompt, site: Site, args: argparse.Namespace) -> Timed:
    """Both sides in turn; the naive side runs the first few of the interventions, whose logits are compared."""
    length = float(prompt.activation(site).norm(dim=-1).mean())
    directions = torch.randn(args.directions, steerer.decoder.d_model)
    directions *= length / directions.norm(dim=-1, keepdim=True)
    doses = DOSES.expand(len(directions), -1)
    steering = Steering(site=site, directions=directions, doses=doses)
    vectors = (doses[..., None] * directions[:, None]).flatten(0, 1)[: args.naive]
    ids = torch.tensor([prompt.token_ids])
    times: list[tuple[float, float, float]] = []
    for _ in range(args.rounds):
        full_ms, expected = milliseconds(lambda: naive(model, module, ids, vectors), len(vectors))
        keep_ms, _ = milliseconds(lambda: naive(model, module, ids, vectors, logits_to_keep=1), len(vectors))
        found: list[torch.Tensor] = []

        def ours(found: list[torch.Tensor] = found) -> torch.Tensor:
            for logits in steerer.logits(prompt, steering):
                found.append(logits[: max(len(vectors) - sum(map(len, found)), 0)].clone())
            return found[0]

        ours_ms, _ = milliseconds(ours, doses.numel())
        times.append((full_ms, keep_ms, ours_ms))
    full, keep, our = (min(column) for column in zip(*times, strict=True))
    difference = float((torch.cat(found)[: len(vectors)] - expected).abs().max())
    return Timed(full, keep, our, difference, float(expected.std()))


def time_screen(steerer: Steerer, token_ids: list[int], layer: int) -> tuple[float, float]:
    """Seconds to rank all features of a site for one prompt, its clean run included; and the share of that spent on it."""
    W_dec = torch.randn(N_FEATURES, steerer.decoder.d_model)
    target = list(range(100, 150))
    best = (float("inf"), 0.0)
    for _ in range(3):
        started = time.perf_counter()
        prompt = steerer.cache(token_ids)
        cached = time.perf_counter()
        gradient = target_gradient(steerer, prompt, Site(layer=layer, submodule="resid_post"), target)
        first_order_effects(gradient, W_dec).argsort(descending=True)
        best = min(best, (time.perf_counter() - started, cached - started))
    return best


def benchmark(name: str, args: argparse.Namespace) -> None:
    torch.manual_seed(0)
    shape = SHAPES[name]
    model = shape.build().eval()
    steerer = Steerer(model)
    token_ids = torch.randint(0, model.config.vocab_size, (args.tokens,)).tolist()
    prompt = steerer.cache(token_ids)
    n_layers = len(steerer.decoder.blocks)
    print(f"{name}: {n_layers} layers, {steerer.decoder.d_model} wide, prompt of {args.tokens} tokens, float32")
    print("  site             naive   keep=1     ours, ms     times  (keep=1)   logits differ by")
    results = []
    sites = [Site(layer=layer, submodule=part) for layer in range(n_layers) for part in SUBMODULES if part in shape.hooked]
    for site in sites:
        path = ".".join(part for part in (shape.blocks, str(site.layer), shape.hooked[site.submodule]) if part)
        timed = time_site(model, model.get_submodule(path), steerer, prompt, site, args)
        results.append(timed)
        print(
            f"  {site!s:14} {timed.naive_ms:7.1f}  {timed.naive_keep_ms:7.1f}  {timed.ours_ms:7.2f}   "
            f"{timed.naive_ms / timed.ours_ms:7.1f}   {timed.naive_keep_ms / timed.ours_ms:7.1f}   {timed.difference:.1e}",
            flush=True,
        )
    summarise(results)
    for layer in (0, n_layers - 1):
        total, cached = time_screen(steerer, token_ids, layer)
        print(
            f"  screen of {N_FEATURES:,} features at resid_post.{layer}: {total:.3f} s, of which the clean run {cached:.3f} s"
        )


def summarise(results: list[Timed]) -> None:
    full, keep = min(one.naive_ms for one in results), min(one.naive_keep_ms for one in results)
    ours = statistics.mean(one.ours_ms for one in results)
    print(f"  {len(results)} sites, interventions a second: naive at its fastest {1000 / full:.1f}", end=", ")
    print(f"with logits_to_keep=1 {1000 / keep:.1f}; ours, harmonic mean over sites, {1000 / ours:.1f}")
    ratios = statistics.mean(full / one.ours_ms for one in results)
    keep_ratios = statistics.mean(keep / one.ours_ms for one in results)
    print(f"  times as many: {full / ours:.1f} in total time (keep=1: {keep / ours:.1f}); ", end="")
    print(f"{ratios:.1f} as the mean of the sites' ratios (keep=1: {keep_ratios:.1f})")
    worst = max(results, key=lambda one: one.difference)
    print(f"  largest logit difference {worst.difference:.1e} (logits' standard deviation there {worst.spread:.2g})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", action="append", choices=sorted(SHAPES))
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--directions", type=int, default=32, help="directions a site, each with 4 doses")
    parser.add_argument("--naive", type=int, default=4, help="interventions a site that the naive side runs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, Python {sys.version.split()[0]}")
    for name in args.shape or SHAPES:
        benchmark(name, args)


if __name__ == "__main__":
    main()
