"""Every stage at the shapes of the two published sources, GPT-2-small and Pythia-70M, with random weights.

    python reports/benchmarks/real_shapes.py [--sites 2] [--tokens 8000] [--out DIR]

Models of the real architectures and sizes, SAEs of 32,768 features in SAELens' layout, in folders named as the releases name
theirs; then the verbs, each in a process of its own, as on a machine that has fetched the real ones. Time and memory depend on
shapes alone. So that there is something to find, each dictionary has a feature for each of a few concepts (its words' mean
activation) and for a group of other words each, which leans on the concept's. Printed: the verbs' own lines,
and seconds and peak memory of each process.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM

from harness.packs.concepts import concept_names, find_concept
from harness.packs.lexical import common_words, overlaps
from harness.providers.embedded import quiet
from harness.whitebox.sources import activations, corpus, packing
from harness.whitebox.sources.models import LocalModel, load_model
from harness.whitebox.sources.sites import Site
from harness.whitebox.sources.sources import Source, find_source
from harness.whitebox.training.training import import_sae_lens

CONCEPTS = ("animal", "color", "food", "vehicle")
GROUP, DOCUMENTS, VOCABULARY = 16, 25, 12_000
SITES = {
    "gpt2-small": ("resid_post.1", "mlp_out.1", "resid_mid.1", "attn_out.1"),
    "pythia-70m": ("resid_post.1", "mlp_out.1", "attn_out.1"),
}
COSINE = 0.8
"""Above the matched null's threshold: the activations of random weights lie in few directions."""

FIRES_ABOVE = 4.5
"""Random features fire above so many standard deviations: one in some hundred thousand, as in a short text most are silent."""


def word_groups(rng: np.random.Generator) -> dict[str, list[str]]:
    """Words of each concept, and as many other words for each."""
    lexicons = {name: find_concept(name).words for name in concept_names()}
    every = frozenset().union(*lexicons.values())
    plain = [word for word in common_words()[500:6000] if not overlaps(word, every)]
    plain = [plain[i] for i in rng.permutation(len(plain))[: GROUP * len(CONCEPTS)]]
    groups = {}
    for n, name in enumerate(CONCEPTS):
        known = [word for word in common_words() if word in lexicons[name]]
        groups[name] = known[:GROUP]
        groups[f"beside {name}"] = plain[n * GROUP : (n + 1) * GROUP]
    return groups


def write_text(path: Path, groups: Mapping[str, Sequence[str]], rng: np.random.Generator) -> None:
    """Short documents of each group's words among definitions."""
    documents = [" ".join(rng.permutation(words)[:12]) for words in groups.values() for _ in range(DOCUMENTS)]
    documents += list(corpus.shipped(print).documents[:400])
    path.write_text("\n\n".join(documents[i] for i in rng.permutation(len(documents))) + "\n", encoding="utf-8")


def write_model(name: str, folder: Path, text: Path) -> None:
    """Random weights of the source's shape, with a small tokenizer."""
    torch.manual_seed(0)
    if name == "gpt2-small":
        model = GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=0))
        model.transformer.wpe.weight.data *= 0.1  # random positions as strong as words would hide the words
    else:
        shape = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6, "num_attention_heads": 8}
        model = GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=50304, **shape, bos_token_id=0, eos_token_id=0))
    with quiet():
        model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train([str(text)], vocab_size=VOCABULARY, min_frequency=2, special_tokens=["<|endoftext|>"], show_progress=False)
    tokenizer.save(str(folder / "tokenizer.json"))


def write_dictionaries(source: Source, model: LocalModel, text: Path, groups: Mapping[str, Sequence[str]], args: Any) -> None:
    """A dictionary for each site, under the release's folder names."""
    sites = [Site.parse(site) for site in SITES[source.name][: args.sites]]
    documents = corpus.from_files([text]).documents
    contexts = list(packing.contexts(documents, model.tokenizer))[: max(8, args.tokens // activations.CONTEXT)]
    parts = list(activations.read(model.model, activations.batched(contexts), sites))
    ids = np.concatenate([context[1:] for context in contexts])
    places = {group: torch.from_numpy(np.isin(ids, ids_of(model, words))) for group, words in groups.items()}
    for number, site in enumerate(sites):
        release = source.release_of(site)
        x = torch.cat([part[site] for part in parts])
        if release.normalize_activations == "layer_norm":
            x = (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)
        folder = args.out / "saes" / source.name / release.release / release.folder(site.layer)
        dictionary(source, site, x, places, seed=number).save_model(folder)


def ids_of(model: LocalModel, words: Sequence[str]) -> list[int]:
    """The words that are one token."""
    encoded = [model.tokenizer.encode(f" {word}", add_special_tokens=False).ids for word in words]
    return [ids[0] for ids in encoded if len(ids) == 1]


def dictionary(source: Source, site: Site, x: torch.Tensor, places: Mapping[str, torch.Tensor], *, seed: int) -> Any:
    """Random unit rows, but for a feature for each group, at the places where the text has its words."""
    sae_lens = import_sae_lens()
    shape = {"d_in": source.d_model, "d_sae": source.d_sae}
    if source.name == "gpt2-small":
        sae = sae_lens.TopKSAE(sae_lens.TopKSAEConfig(**shape, k=32, normalize_activations="layer_norm"))
    else:
        sae = sae_lens.StandardSAE(sae_lens.StandardSAEConfig(**shape))
    sae.cfg.metadata = type(sae.cfg.metadata)(model_name=source.name, hook_name=site.hook_name, prepend_bos=False)
    generator = torch.Generator().manual_seed(seed)
    rows = torch.nn.functional.normalize(torch.randn(source.d_sae, source.d_model, generator=generator), dim=1)
    mean = x.mean(0)
    centred = x - mean
    threshold = torch.full((source.d_sae,), FIRES_ABOVE * float(centred.norm(dim=1).median()) / source.d_model**0.5)
    W_enc = rows.clone()
    chosen = dict(zip(places, torch.randperm(source.d_sae, generator=generator).tolist(), strict=False))
    for group, feature in chosen.items():
        own = torch.nn.functional.normalize(centred[places[group]].mean(0), dim=0)
        W_enc[feature] = rows[feature] = own
        threshold[feature] = 0.5 * (centred[places[group]] @ own).median()
    for concept in CONCEPTS:
        rows[chosen[f"beside {concept}"]] = leaning(rows[chosen[f"beside {concept}"]], rows[chosen[concept]])
    with torch.no_grad():
        for parameter, value in ((sae.W_dec, rows), (sae.W_enc, W_enc.T), (sae.b_enc, -threshold), (sae.b_dec, mean)):
            parameter.copy_(value)
    return sae


def leaning(row: torch.Tensor, towards: torch.Tensor) -> torch.Tensor:
    """The unit row nearest to `row` whose cosine with `towards` is COSINE."""
    apart = torch.nn.functional.normalize(row - (row @ towards) * towards, dim=0)
    return COSINE * towards + (1 - COSINE**2) ** 0.5 * apart


def commands(out: Path, tokens: int) -> list[list[str]]:
    """The verbs in order. Stages find each other's folders in reports/ of the folder they run in."""
    names = tuple(SITES)
    concepts = [word for name in CONCEPTS for word in ("--concept", name)]
    small = ["--targets", "1", "--candidates", "2", "--sentences", "3", "--band", "0.05-0.2", "--band", "0.4-1"]
    made = []
    for name in names:
        where = ["--source", name, "--dictionary", str(out / "saes" / name)]
        own = Path("reports") / f"catalogue-{name}"
        read = ["--model", str(out / "models" / name), "--text", str(out / "text.txt"), "--tokens", str(tokens)]
        maps = ["--glosses", str(own / "glosses.safetensors"), "--covariance", str(own / "covariances.safetensors")]
        made += [["map", "catalogue", *where, *read, "--keep-tokens", str(tokens)], ["map", "topology", *where, *maps]]
        made += [["map", "clusters", "--source", name, "--method", "graph"]]
        made += [["intervene", "--source", name, "--focus", "feature", *concepts, *small]]
    both = ",".join(names)
    made += [
        ["map", "shared", "--sources", both],
        ["distill", "--sources", both, *concepts, "--injections", "10", "--fewest", "4"],
    ]
    return made


def run(command: Sequence[str], out: Path) -> tuple[float, float, int]:
    """Seconds, peak memory (10^9 bytes) and exit status of a verb in a process of its own."""
    print(f"\n$ harness {shlex.join(command)}", flush=True)
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "harness", *command], cwd=out)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return time.perf_counter() - started, usage.ru_maxrss * 1024 / 1e9, process.returncode


def prepare(args: argparse.Namespace) -> None:
    """Text, models and dictionaries."""
    rng = np.random.default_rng(0)
    groups = word_groups(rng)
    text = args.out / "text.txt"
    write_text(text, groups, rng)
    for name in SITES:
        folder = args.out / "models" / name
        write_model(name, folder, text)
        model = load_model(name, print, dtype="bfloat16", folder=folder)
        write_dictionaries(find_source(name), model, text, groups, args)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=2, help="sites of each source")
    parser.add_argument("--tokens", type=int, default=8_000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        args.out = (args.out or Path(scratch)).absolute()
        args.out.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        prepare(args)
        print(f"models and dictionaries: {time.perf_counter() - started:.0f} s")
        lines = []
        for command in commands(args.out, args.tokens):
            seconds, memory_gb, status = run(command, args.out)
            failed = f"   exit {status}" if status else ""
            lines.append(f"  {' '.join(command[:4]):40} {seconds:7.1f} s {memory_gb:6.2f} GB{failed}")
    print(f"\n{args.sites} sites a source, 32,768 features each, {args.tokens:,} tokens, torch {torch.__version__}")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
