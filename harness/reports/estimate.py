"""What a run would ask, before anything is sent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.evals.expense import Expense, claimed_manner
from harness.evals.plan import Plan, batches, clean_prompts, injected_prompts, sentences_of
from harness.lexicon import resolve
from harness.packs.concepts import Concept
from harness.providers.targets import TargetSpec
from harness.providers.vocabulary import Vocabulary, about_tokens
from harness.records import Mode
from harness.reports.run import journal_path
from harness.store import Journal

_IDS_A_WORD = 2
"""Ids that spell a word, with a space or a capital letter, where the vocabulary is not at hand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a plan asks of one target if nothing fails. `exact`: counted with the target's own tokenizer, else from characters.

    `tokens`: of the prompts, each counted once; `input_tokens`: as they are sent. `mode_assumed`: the target's file leaves open
    what it shows. `seconds`: from the rate of this target's earlier runs here, no faster than the file's limits allow; None
    where neither is known. `usd`: by the target's prices, of batch jobs where `batch`; None where a service declares none.
    """

    target: str
    prompts: int
    tokens: int
    exact: bool
    seconds: float | None
    usd: float | None
    mode: Mode
    mode_assumed: bool
    n_draws: int
    requests: int
    input_tokens: int
    output_tokens: int
    batch: bool


def estimate(plan: Plan, spec: TargetSpec, *, batch: bool = False) -> Estimate:
    """Count the plan's prompts and tokens; nothing is sent and no model is loaded."""
    vocabulary = _local_vocabulary(spec)
    manner = claimed_manner(spec, plan.choice.mode, has_ids=bool(vocabulary or spec.target.tokenizer or spec.target.weights))
    manner = manner.asked(manner.mode, plan.draws if manner.mode.drawn else 0)
    size = 1 if batch else manner.prompts_per_request
    prompts = tokens = 0
    total = Expense()
    for name in plan.concepts:
        concept = plan.pack.concept(name)
        n_ids = _n_ids(plan, concept, vocabulary)
        for n_prompts, n_tokens in _counted(plan, concept, vocabulary, size):
            prompts += n_prompts
            tokens += n_tokens
            total += manner.expense(n_prompts, n_tokens, n_ids)
    return Estimate(
        target=spec.name,
        prompts=prompts,
        tokens=tokens,
        exact=vocabulary is not None,
        seconds=None if batch else _seconds(spec, prompts, total),
        usd=_usd(spec, total, batch=batch),
        mode=manner.mode,
        mode_assumed=plan.choice.mode is None and _is_open(spec),
        n_draws=manner.n_draws,
        requests=total.requests,
        input_tokens=total.input_tokens,
        output_tokens=total.output_tokens,
        batch=batch,
    )


def _counted(plan: Plan, concept: Concept, vocabulary: Vocabulary | None, size: int) -> Iterator[tuple[int, int]]:
    """(prompts, tokens) of each batch that is asked."""
    sentences = sentences_of(plan, concept)
    for source in (clean_prompts(plan, sentences), injected_prompts(plan, concept, sentences)):
        for batch in batches(source, size):
            texts = [prompt.text for prompt in batch]
            if vocabulary is None:
                yield len(batch), sum(map(about_tokens, texts))
            else:
                yield len(batch), sum(len(ids) for ids in vocabulary.encode(texts))


def _n_ids(plan: Plan, concept: Concept, vocabulary: Vocabulary | None) -> int:
    lexicon = resolve(concept, vocabulary, first_token=plan.eval.spec.scoring.first_token)
    return _IDS_A_WORD * len(lexicon.words) if lexicon.token_ids is None else len(lexicon.token_ids)


def _is_open(spec: TargetSpec) -> bool:
    """Whether only opening the target tells in which mode it is asked."""
    remote = spec.endpoint.base_url is not None or spec.endpoint.base_url_env is not None
    return remote and spec.claims.logprobs is None and spec.claims.chosen_ids is None


def _seconds(spec: TargetSpec, prompts: int, total: Expense) -> float | None:
    limits = spec.endpoint.limits
    known = []
    if journal_path(spec.name).exists():
        with Journal(journal_path(spec.name)) as journal:
            if rate := journal.rate():
                known.append(prompts / rate)
    if limits.requests_per_minute:
        known.append(60 * total.requests / limits.requests_per_minute)
    if limits.tokens_per_minute:
        known.append(60 * (total.input_tokens + total.output_tokens) / limits.tokens_per_minute)
    return max(known, default=None)


def _usd(spec: TargetSpec, total: Expense, *, batch: bool) -> float | None:
    if not spec.prices.declared and spec.endpoint.key_env is not None:
        return None
    return total.usd(spec.prices) * (spec.prices.batch_share if batch else 1.0)


def _local_vocabulary(spec: TargetSpec) -> Vocabulary | None:
    """The target's tokenizer where it already lies on this machine."""
    named = Path(spec.target.tokenizer) if spec.target.tokenizer else None
    for place in (spec.unpacked(), named):
        file = place / "tokenizer.json" if place is not None and place.is_dir() else place
        if file is not None and file.is_file():
            return Vocabulary.load(file)
    return None
