"""What a run would ask, before anything is sent."""

from __future__ import annotations

from dataclasses import dataclass

from harness.evals.plan import Plan, batches, clean_prompts, injected_prompts, sentences_of
from harness.providers.targets import TargetSpec
from harness.providers.vocabulary import Vocabulary
from harness.reports.run import journal_path
from harness.store import Journal

CHARACTERS_A_TOKEN = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Prompts and tokens of a plan on one target. `exact`: counted with the target's own tokenizer, else from characters.

    `seconds`: from the rate of this target's earlier runs here; None before the first. `usd`: by the target's prices.
    """

    target: str
    prompts: int
    tokens: int
    exact: bool
    seconds: float | None
    usd: float


def estimate(plan: Plan, spec: TargetSpec) -> Estimate:
    """Count the plan's prompts and tokens; nothing is sent and no model is loaded."""
    vocabulary = _local_vocabulary(spec)
    prompts = tokens = 0
    for name in plan.concepts:
        concept = plan.pack.concept(name)
        sentences = sentences_of(plan, concept)
        for source in (clean_prompts(plan, sentences), injected_prompts(plan, concept, sentences)):
            for batch in batches(source, 1024):
                prompts += len(batch)
                texts = [prompt.text for prompt in batch]
                if vocabulary is None:
                    tokens += sum(-(-len(text) // CHARACTERS_A_TOKEN) for text in texts)
                else:
                    tokens += sum(len(ids) for ids in vocabulary.encode(texts))
    rate = None
    if journal_path(spec.name).exists():
        with Journal(journal_path(spec.name)) as journal:
            rate = journal.rate()
    prices = spec.endpoint.prices
    return Estimate(
        target=spec.name,
        prompts=prompts,
        tokens=tokens,
        exact=vocabulary is not None,
        seconds=prompts / rate if rate else None,
        usd=(tokens * prices.input_per_million + prompts * prices.output_per_million) / 1e6,
    )


def _local_vocabulary(spec: TargetSpec) -> Vocabulary | None:
    """The target's tokenizer where it already lies on this machine."""
    folder = spec.unpacked()
    return Vocabulary.load(folder) if folder and (folder / "tokenizer.json").is_file() else None
