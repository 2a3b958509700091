"""Reading a finished run back from the journal: observations and trials, concept by concept, in the plan's order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from harness.evals.runner import Job, job_batches, journalled
from harness.evals.score import Columns, Scorer, View
from harness.providers.embedding import Embedding, Similarity
from harness.records import CLEAN, Observation, Prompt

_SCORED_AT_ONCE = 96


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoredBatch:
    """A batch of prompts with what was observed; `trials` is None for clean sentences."""

    prompts: list[Prompt]
    observations: list[Observation]
    view: View
    trials: Columns | None


def scored_batches(job: Job, concept: str, embedding: Embedding | None) -> Iterator[ScoredBatch]:
    """Every batch of `concept`: the clean sentences first, then the injected prompts with their trials."""
    lexicon = job.lexicons[concept]
    similarity = None
    if embedding is not None and lexicon.token_ids is not None:
        similarity = Similarity(embedding, lexicon.token_ids)
    vocabulary = job.provider.vocabulary
    scorer = Scorer(lexicon, k=job.k, n_vocab=len(vocabulary) if vocabulary else None, similarity=similarity)
    readout = job.readout(concept)
    clean_prompts: list[Prompt] = []
    clean_observations: list[Observation] = []
    clean: View | None = None
    row_of: dict[str, int] = {}
    for prompts in _in_bulk(job_batches(job, job.plan.pack.concept(concept))):
        observations = journalled(job, prompts, readout)
        view = scorer.view(observations)
        if prompts[0].arm == CLEAN:
            clean_prompts += prompts
            clean_observations += observations
            yield ScoredBatch(prompts=prompts, observations=observations, view=view, trials=None)
            continue
        if clean is None:
            clean = scorer.view(clean_observations)
            row_of = {prompt.sentence_id: row for row, prompt in enumerate(clean_prompts)}
        pairs = clean.take([row_of[prompt.sentence_id] for prompt in prompts])
        trials = scorer.trials(prompts, pairs, view)
        yield ScoredBatch(prompts=prompts, observations=observations, view=view, trials=trials)


def _in_bulk(batches: Iterator[list[Prompt]]) -> Iterator[list[Prompt]]:
    """The batches put together to `_SCORED_AT_ONCE` prompts and more, clean and injected ones apart: to score them one by one
    takes longer than to ask."""
    waiting: list[Prompt] = []
    for batch in batches:
        if waiting and (len(waiting) >= _SCORED_AT_ONCE or (waiting[0].arm == CLEAN) != (batch[0].arm == CLEAN)):
            yield waiting
            waiting = []
        waiting = waiting + batch if waiting else batch
    if waiting:
        yield waiting
