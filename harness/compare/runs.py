"""Two finished runs instead of two targets: what they have in common is compared, and nothing is asked.

Each prompt was asked once, so that no side's noise is known; the clean sentences take the place of the sentinels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from harness.compare.contracts import check, short
from harness.compare.identity import Rule
from harness.compare.judging import Material, conclude
from harness.compare.naming import Told
from harness.compare.result import Check, CompareResult, ScoreDifference
from harness.compare.score import UNITS, Key, Scored, bounds_of, difference, refused
from harness.compare.sentinels import Sentinel
from harness.compare.weighing import weigh
from harness.errors import UsageError
from harness.evals.spec import Primary
from harness.records import CLEAN, Mode, Observation
from harness.reports.reading import FinishedRun

_COLUMNS = ("prompt", "arm", "prompt_token_ids", "token_ids", "tokens", "logprobs", "n_draws", "error")
_DIGESTS = (("revision", "revision"), ("tokenizer", "tokenizer_digest"))
_ONCE = "the endpoints' own noise: a run asks each prompt once, so that noise counts as distance"


def compare_runs(a: FinishedRun, b: FinishedRun, rule: Rule) -> CompareResult:
    """Judge the prompts and trials that both have; raises UsageError where no clean prompt is common to both."""
    seen = _clean(a), _clean(b)
    texts = [text for text in seen[0] if text in seen[1]]
    if not texts:
        raise UsageError(f"{a.folder} and {b.folder} have no clean prompt in common", hint="compare runs of one eval and pack")
    sentinels = [Sentinel(prompt_id=text, text=text, kind="plain") for text in texts]
    told = [_told(run, [own[text][0] for text in texts]) for run, own in zip((a, b), seen, strict=True)]
    counts = [_token_count([own[text][1] for text in texts]) for own in seen]
    return conclude(
        Material(
            a=_described(a),
            b=_described(b),
            checks=[*_checks(a, b), check("prompt tokens", *counts, weighs=True)],
            score=_score(a, b, rule),
            sentinels=sentinels,
            weighed=weigh(told[0], told[1], sentinels, rule),
            n_requests=0,
            failed_share=max(_failed_share(run) for run in (a, b)),
            unseen=[_ONCE],
        )
    )


def _clean(run: FinishedRun) -> dict[str, tuple[Observation, Sequence[int] | None]]:
    """What was observed after each clean prompt, and the ids that were sent, by text."""
    columns = run.observations(_COLUMNS)
    rows = np.flatnonzero(np.asarray(columns["arm"]) == CLEAN)
    return {str(columns["prompt"][row]): (_observation(columns, int(row)), columns["prompt_token_ids"][row]) for row in rows}


def _observation(columns: dict[str, Any], row: int) -> Observation:
    if error := str(columns["error"][row]):
        return Observation(error=error)
    n_draws, ids = columns["n_draws"][row], columns["token_ids"][row]
    return Observation(
        token_ids=None if ids is None else np.asarray(ids, np.int32),
        tokens=tuple(columns["tokens"][row]),
        logprobs=np.asarray(columns["logprobs"][row], np.float32),
        n_draws=None if np.isnan(n_draws) else int(n_draws),
    )


def _told(run: FinishedRun, seen: Sequence[Observation]) -> Told:
    spelled = {
        number: text
        for one in seen
        if one.token_ids is not None
        for number, text in zip(one.token_ids.tolist(), one.tokens, strict=True)
    }
    return Told(
        rounds=[seen],
        shows_lists=not Mode(run.manifest["eval"]["mode"]).drawn,
        tokenizer=run.manifest.get("tokenizer_digest"),
        spell=lambda number: spelled.get(number, f"#{number}"),
    )


def _failed_share(run: FinishedRun) -> float:
    counts = run.manifest["counts"]
    return float(counts["failed"] / max(counts["planned"], 1))


def _token_count(sent: Sequence[Sequence[int] | None]) -> str:
    return "not known" if any(ids is None for ids in sent) else f"{sum(len(ids) for ids in sent if ids is not None):,}"


def _checks(a: FinishedRun, b: FinishedRun) -> list[Check]:
    """What the manifests say of both."""
    one, other = a.manifest, b.manifest
    return [
        check("model", one["model"], other["model"]),
        *(check(name, short(one.get(key)), short(other.get(key))) for name, key in _DIGESTS),
        check("observed", one["eval"]["mode"], other["eval"]["mode"]),
        check("template", *(_finding(m, "template") for m in (one, other)), weighs=True),
        check("list", *(_finding(m, "list").split(":")[0] for m in (one, other)), weighs=True),
    ]


def _finding(manifest: dict[str, Any], question: str) -> str:
    return str(manifest.get("capabilities", {}).get("findings", {}).get(question, "not known"))


def _score(a: FinishedRun, b: FinishedRun, rule: Rule) -> ScoreDifference | None:
    """The difference of the primary contrast over the trials of both; None where a run has none."""
    declared = a.summary["primary"], b.summary["primary"]
    if declared[0] is None or declared[1] is None:
        return None
    primary = Primary.model_validate(declared[0])
    for key in ("eval", "pack"):
        if a.manifest[key]["digest"] != b.manifest[key]["digest"]:
            return refused(primary, f"the runs are of different {key}s")
    if declared[0] != declared[1]:
        return refused(primary, "the runs have different primary contrasts")
    return difference(_scored(a, primary), _scored(b, primary), primary, alpha=rule.alpha)


def _scored(run: FinishedRun, primary: Primary) -> Scored:
    names = ("concept", "arm", "sentence_id", "injection_id")
    columns = run.trials(list(dict.fromkeys([*names, *UNITS, *(name for metric in UNITS for name in bounds_of(metric))])))
    keys: list[Key] = list(zip(*(columns[name].tolist() for name in names), strict=True))
    ends = {metric: zip(*(columns[name] for name in bounds_of(metric)), strict=True) for metric in UNITS}
    return Scored(
        bounds={metric: dict(zip(keys, ends[metric], strict=True)) for metric in UNITS},
        values={metric: dict(zip(keys, columns[metric], strict=True)) for metric in UNITS},
        comparable=(run.manifest["eval"]["mode"], run.manifest["eval"]["logprobs"]),
        primary=primary,
        failed_share=_failed_share(run),
    )


def _described(run: FinishedRun) -> dict[str, Any]:
    manifest = run.manifest
    told = {name: manifest[name] for name in ("endpoint", "model", "revision", "settings", "run_id")}
    return {"name": manifest["target"], "mode": manifest["eval"]["mode"], **told}
