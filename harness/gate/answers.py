"""What a run answered, prompt by prompt, as far as a gate looks at it; and the clusters that a baseline keeps of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.evals.contrasts import BOUNDED
from harness.evals.score import Columns
from harness.evals.spec import METRICS, GateSpec
from harness.gate.baseline import LISTED, UNIT, Cluster, Entry
from harness.packs.sampling import generator
from harness.records import CLEAN
from harness.reports.reading import FinishedRun
from harness.stats.bounds import log_odds

OBSERVED = (
    *("prompt_id", "concept", "arm", "sentence_id", "injection_id", "prompt", "token_ids", "tokens", "logprobs"),
    *("mass_low", "mass_high", "error"),
)
"""Columns of `observations.parquet` that are read."""

_FARTHEST = 100.0
"""Log-odds, in nats, beyond which nothing is told apart: far below the least probability of a 32-bit float."""

_CELL = ("concept", "arm", "sentence_id", "injection_id")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answer:
    """What came back for one prompt. `tokens`, the likeliest first: ids, or texts where no vocabulary is known.

    `value`: bounds of the metric; None where it has none of this prompt, and where the prompt or its clean one failed.
    """

    prompt: str
    concept: str
    arm: str
    sentence: str
    injection: str
    text: str
    tokens: tuple[int, ...] | tuple[str, ...]
    logprobs: NDArray[np.floating]
    value: tuple[float, float] | None
    error: str | None


def trial_columns(metric: str) -> tuple[str, ...]:
    """The columns of `trials.parquet` that hold the lower and the upper end of a metric of trials."""
    return (f"{metric}_low", f"{metric}_high") if metric in BOUNDED else (metric, metric)


def is_looked_at(gate: GateSpec, arm: str) -> bool:
    """Whether prompts of an arm count."""
    if gate.metric == "clean_log_odds":
        return arm == CLEAN
    return arm == CLEAN or gate.arm is None or arm in (gate.arm, gate.control)


def answers_of(observations: Columns, trials: Columns | None, gate: GateSpec) -> list[Answer]:
    """The answers that `gate` looks at, from the columns of both tables (`trials` None: clean sentences only)."""
    values = _trial_values(trials, gate.metric) if trials is not None and gate.metric in METRICS else {}
    answers = []
    for row in range(len(observations["prompt_id"])):
        one = {name: observations[name][row] for name in OBSERVED}
        if not is_looked_at(gate, one["arm"]):
            continue
        value = values.get(tuple(one[name] for name in _CELL))
        if gate.metric == "clean_log_odds":
            value = _known(*log_odds([one["mass_low"], one["mass_high"]]))
        answers.append(_answer(one, value))
    return answers


def run_answers(run: FinishedRun, gate: GateSpec) -> list[Answer]:
    """The answers of a finished run that `gate` looks at; raises FileFormatError where a table does not fit."""
    trials = None
    if gate.metric in METRICS:
        trials = run.trials(list(dict.fromkeys((*_CELL, *trial_columns(gate.metric)))))
    return answers_of(run.observations(OBSERVED), trials, gate)


def _trial_values(trials: Columns, metric: str) -> dict[tuple[str, ...], tuple[float, float] | None]:
    cells = zip(*(trials[name] for name in _CELL), strict=True)
    low, high = (np.asarray(trials[name], np.float64) for name in trial_columns(metric))
    return {tuple(map(str, cell)): _known(*ends) for cell, *ends in zip(cells, low, high, strict=True)}


def _known(low: float, high: float) -> tuple[float, float] | None:
    """The bounds with what is infinite cut, since JSON has no infinity."""
    low, high = np.clip((low, high), -_FARTHEST, _FARTHEST).tolist()
    return None if np.isnan(low) or np.isnan(high) else (low, high)


def _answer(one: Mapping[str, Any], value: tuple[float, float] | None) -> Answer:
    error = str(one["error"]) if one["error"] else None
    tokens: tuple[Any, ...] = ()
    if error is None:
        named = one["tokens"] if one["token_ids"] is None else one["token_ids"]
        tokens = tuple(named.tolist() if isinstance(named, np.ndarray) else named)
    return Answer(
        prompt=str(one["prompt_id"]),
        concept=str(one["concept"]),
        arm=str(one["arm"]),
        sentence=f"{one['concept']}/{one['sentence_id']}",
        injection=f"{one['concept']}/{one['arm']}/{one['injection_id'] or one['sentence_id']}",
        text=str(one["prompt"]),
        tokens=tokens,
        logprobs=np.asarray(one["logprobs"] if tokens else (), np.float64),
        value=None if error else value,
        error=error,
    )


def clusters_of(answers: Sequence[Answer], gate: GateSpec, seed: int) -> tuple[Cluster, ...]:
    """What a baseline keeps: answers that hang together by a sentence or an injection are one cluster, in a random order.

    Prompts that failed are left out.
    """
    groups = _connected([(answer.sentence, answer.injection) for answer in answers])
    order = generator(seed, "gate", "clusters").permutation(len(groups))
    kept = [[answers[i] for i in groups[place] if _is_usable(answers[i], gate)] for place in order]
    return tuple(
        Cluster(concept=group[0].concept, prompts=tuple(_entry(one, gate) for one in group)) for group in kept if group
    )


def _is_usable(answer: Answer, gate: GateSpec) -> bool:
    if answer.error is not None:
        return False
    return gate.metric == "agreement" or answer.value is not None or (answer.arm == CLEAN and gate.metric in METRICS)


def _entry(answer: Answer, gate: GateSpec) -> Entry:
    if gate.metric != "agreement":
        return Entry(prompt=answer.prompt, value=answer.value)
    lacking = tuple(int(n) for n in np.rint(-answer.logprobs[:LISTED] / UNIT))
    return Entry(prompt=answer.prompt, tokens=answer.tokens[:LISTED], lacking=lacking)


def _connected(links: Sequence[tuple[str, str]]) -> list[list[int]]:
    """Places of `links` by connected component, in order of first appearance."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        parent.setdefault(name, name)
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for sentence, injection in links:
        parent[root(injection)] = root(sentence)
    groups: dict[str, list[int]] = {}
    for place, (sentence, _) in enumerate(links):
        groups.setdefault(root(sentence), []).append(place)
    return list(groups.values())
