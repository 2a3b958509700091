"""Finding out what an endpoint can do, by asking: tiny requests, each adding one thing to what is known to work.

Facts about endpoints move, so a claim of the target's file is a question here, never an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness.errors import CapabilityError
from harness.providers.http.line import Line
from harness.providers.http.provider import is_refusal
from harness.providers.http.transport import RequestFailedError
from harness.providers.targets import TargetSpec
from harness.providers.vocabulary import Vocabulary
from harness.providers.wire.base import Question, TextOrIds, read_text
from harness.providers.wire.completions import stated_limit
from harness.records import Mode, Observation

PROBE_TEXT = "The capital of France is"
_RUNGS = (1000, 100, 50, 20, 5)
"""Numbers of log-probabilities to try, high to low: our vLLM's limit, round numbers, vLLM's default, OpenAI's."""

_SAME_NAT = 0.5
"""Log-probabilities of one prompt sent as text and as ids differ by less: noise is under 0.1, another prompt's many nats."""

CHOSEN_IDS = 128
"""Token ids that vLLM's `logprob_token_ids` takes at the most (vLLM 0.33, `sampling_params.py`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What the endpoint was found to do. `names`: the vocabulary, if tokens come named by id; `named`: the model that answers
    name; `modes`: what is possible, the best first."""

    max_logprobs: int
    token_ids: bool
    many_prompts: bool
    chosen_ids: int
    modes: tuple[Mode, ...]
    vocabulary: Vocabulary | None
    names: Vocabulary | None
    named: str | None
    fingerprint: str | None
    notes: tuple[str, ...]


async def probe(line: Line, spec: TargetSpec, vocabulary: Vocabulary | None, notes: list[str]) -> Findings:
    """Ask; raises CapabilityError where nothing usable is shown, RequestFailedError where the endpoint fails."""
    asked, clear, answer = await _find_limit(line, spec)
    limit = len(clear.tokens)
    if clear.covered_mass is not None and len(clear.tokens) <= 100 and abs(clear.covered_mass - 1) < 1e-6:
        notes.append("the listed log-probabilities sum to one: this endpoint seems to renormalise them over its list")
    prompt: TextOrIds = PROBE_TEXT
    token_ids = False
    names = None
    if vocabulary is not None and line.dialect.takes_many:
        ids = vocabulary.encode([PROBE_TEXT])[0]
        seen = await attempt(line, [ids], Question(n_logprobs=asked))
        if isinstance(seen, str):
            notes.append(f"token ids are refused, prompts go as text: {seen}")
        elif not alike(seen[0], clear):
            notes.append("token ids are read as another prompt: not the served model's tokenizer, so prompts go as text")
            vocabulary = None
        else:
            prompt, token_ids = ids, True
    if vocabulary is not None:
        seen = await attempt(line, [prompt], Question(n_logprobs=asked, vocabulary=vocabulary))
        if isinstance(seen, str):
            notes.append(f"tokens are not named by id, they are matched by text: {seen}")
        else:
            names = vocabulary
            limit = len(seen[0].logprobs)  # among texts, tokens that read alike were counted once
    many: list[Observation] | str = "a conversation a request"
    if line.dialect.takes_many:
        many = await attempt(line, [prompt, prompt], Question(n_logprobs=asked, vocabulary=names))
        if isinstance(many, str):
            notes.append(f"one prompt a request, more are refused: {many}")
    chosen = await _chosen_ids(line, prompt, names) if names is not None else 0
    return Findings(
        max_logprobs=limit,
        token_ids=token_ids,
        many_prompts=not isinstance(many, str),
        chosen_ids=chosen,
        modes=(Mode.EXACT, Mode.TOPK) if chosen else (Mode.TOPK,),
        vocabulary=vocabulary,
        names=names,
        named=read_text(answer, "model"),
        fingerprint=read_text(answer, "system_fingerprint"),
        notes=tuple(notes),
    )


async def _find_limit(line: Line, spec: TargetSpec) -> tuple[int, Observation, object]:
    """(the most log-probabilities that may be asked for, the probe's observation, the answer)."""
    wanted = spec.endpoint.limits.max_logprobs or spec.claims.logprobs or _RUNGS[0]
    rungs = [wanted, *(rung for rung in _RUNGS if rung < wanted)]
    reason = ""
    while rungs:
        rung = rungs.pop(0)
        try:
            (seen,), answer = await line.ask([PROBE_TEXT], Question(n_logprobs=rung))
        except RequestFailedError as exc:
            if not is_refusal(exc):
                raise
            reason = exc.reason
            stated = stated_limit(reason)
            if stated is not None and 0 < stated < rung:
                rungs = [stated, *(lower for lower in rungs if lower < stated)]
            continue
        if seen.error is None:
            return rung, seen, answer.value
        reason = line.transport.clean(seen.error)
    raise CapabilityError(f"target {spec.name!r}: {line.url} gives no log-probabilities: {reason}")


async def _chosen_ids(line: Line, prompt: TextOrIds, names: Vocabulary) -> int:
    """How many ids of one's own choice a request may ask for: `CHOSEN_IDS` or none."""
    wanted = tuple(range(min(CHOSEN_IDS, len(names))))
    seen = await attempt(line, [prompt], Question(wanted=wanted, vocabulary=names))
    return 0 if isinstance(seen, str) else len(wanted)


async def attempt(line: Line, prompts: Sequence[TextOrIds], question: Question) -> list[Observation] | str:
    """The observations, or why the endpoint will not do this."""
    try:
        seen, _ = await line.ask(prompts, question)
    except RequestFailedError as exc:
        if not is_refusal(exc):
            raise
        return exc.reason
    errors = [observation.error for observation in seen if observation.error is not None]
    return line.transport.clean(errors[0]) if errors else seen


def alike(one: Observation, other: Observation) -> bool:
    """Whether two answers can be about the same prompt."""
    n = min(len(one.logprobs), len(other.logprobs), 5)
    return bool(np.abs(one.logprobs[:n] - other.logprobs[:n]).max() < _SAME_NAT)
