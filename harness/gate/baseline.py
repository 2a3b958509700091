"""Accepted baselines: small JSON files under `reports/baselines/`. Owns their format and whether a run may be compared.

A baseline keeps, of each prompt that the gate looks at, its likeliest next tokens (for the metric `agreement`) or the metric's
value, so that it is read without the run it was made from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, StrictInt

from harness.config import Strict, read_text, validate
from harness.errors import FileFormatError, UsageError
from harness.evals.spec import GateSpec
from harness.gate.result import Difference
from harness.paths import make_dir, reports_dir, writing

LISTED = 16
"""Likeliest tokens kept of each prompt."""

UNIT = 1e-4
"""Log-probabilities are kept as whole numbers of so many nats below 0: nobody's arithmetic agrees on more."""

MUST_AGREE: dict[str, str] = {
    "eval": "judge a run of the baseline's eval",
    "eval_digest": "the eval was edited since the baseline was accepted: accept a new one with --accept",
    "pack_digest": "run the baseline's pack, or accept a new baseline with --accept",
    "scoring_version": "scores are worked out otherwise than then: accept a new baseline with --accept",
    "template": "run with the baseline's template, or accept a new baseline with --accept",
    "mode": "ask in the baseline's mode with --mode, or accept a new baseline with --accept",
    "k": "the target lists fewer tokens than before: accept a new baseline with --accept",
    "seed": "run with the baseline's --seed: other seeds draw other prompts",
    "tokenizer_digest": "the target's tokenizer is another one, and so are its tokens: accept a new baseline with --accept",
}
"""What run and baseline must have in common, each with what to do where they do not."""

_ANEW = "accept it anew with --accept"


class Source(Strict):
    """What was asked of whom, by which version: taken from a run's manifest."""

    eval: str
    eval_digest: str
    pack: str
    pack_digest: str
    scoring_version: int
    template: str
    mode: str
    k: int
    seed: int
    sizes: dict[str, int]
    run_id: str
    target: str
    endpoint: str
    model: str
    revision: str | None
    tokenizer_digest: str | None
    settings: dict[str, Any]
    harness_version: str
    created: str

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> Source:
        """What a manifest says; raises FileFormatError where an earlier version wrote it."""
        of_eval, of_pack = manifest["eval"], manifest["pack"]
        inner = {key: of_eval.get(key) for key in ("template", "mode", "k")} | {
            "eval": of_eval["name"],
            "eval_digest": of_eval["digest"],
            "pack": of_pack["name"],
            "pack_digest": of_pack["digest"],
            "created": manifest.get("started"),
        }
        outer = {key: manifest.get(key) for key in cls.model_fields if key not in inner}
        return validate(inner | outer, cls, where=f"manifest of run {manifest['run_id']}")


class Entry(Strict):
    """One prompt. `tokens`: the likeliest, as ids or, where no vocabulary is known, as texts; `lacking`: how far their
    log-probabilities lie below 0, in `UNIT`s. `value`: bounds of the metric, where it is not `agreement`."""

    prompt: str
    tokens: tuple[StrictInt, ...] | tuple[str, ...] = ()
    lacking: tuple[int, ...] = ()
    value: tuple[float, float] | None = None


class Cluster(Strict):
    """Prompts that share a sentence or an injection, and so are no independent evidence."""

    concept: str
    prompts: tuple[Entry, ...] = Field(min_length=1)


class Baseline(Strict):
    """The file. `gate`: as the eval declared it. `clusters` in the random order in which a gate asks them."""

    format: Literal[1]
    gate: GateSpec
    source: Source
    clusters: tuple[Cluster, ...] = Field(min_length=1)


def default_path(eval_name: str, target: str) -> Path:
    """Where the baseline of an eval and a target lies unless a path is given."""
    return reports_dir() / "baselines" / f"{eval_name}-{target}.json"


def read_baseline(path: Path) -> Baseline:
    """The baseline at `path`; raises UsageError where there is none, FileFormatError where it does not fit."""
    if not path.is_file():
        raise UsageError(f"{path}: no such baseline", hint="make one with --accept, or name another with --baseline")
    try:
        data = json.loads(read_text(path))
    except json.JSONDecodeError as exc:
        raise FileFormatError(f"{path}:{exc.lineno}", f"not valid JSON: {exc.msg}", hint=_ANEW) from exc
    if isinstance(data, dict) and data.get("format") != 1:
        raise FileFormatError(str(path), f"key 'format': this version reads 1, not {data.get('format')!r}", hint=_ANEW)
    return validate(data, Baseline, where=str(path))


def write_baseline(baseline: Baseline, path: Path) -> None:
    """One line a cluster, so that a renewed baseline differs where answers do."""
    head = json.dumps(baseline.model_dump(mode="json", exclude={"clusters"}), indent=1, ensure_ascii=False)[:-2]
    clusters = ",\n".join(
        json.dumps(cluster.model_dump(exclude_defaults=True), ensure_ascii=False, separators=(",", ":"))
        for cluster in baseline.clusters
    )
    make_dir(path.parent)
    with writing(path, hint="name another file with --baseline"):
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(f'{head},\n "clusters": [\n{clusters}\n]}}\n', encoding="utf-8")
        partial.replace(path)


def require_comparable(baseline: Baseline, now: Mapping[str, Any]) -> None:
    """Raises UsageError that names every key in which baseline and run must agree and do not, both values and what to do.

    `now`: a run's `Source`, or those of its keys that are known already.
    """
    then = baseline.source.model_dump()
    counted = baseline.gate.metric == "count_success"
    unlike = [key for key in MUST_AGREE if key in now and then[key] != now[key] and (key != "k" or counted)]
    if unlike:
        told = "; ".join(f"{key} is {_short(now[key])} and was {_short(then[key])}" for key in unlike)
        raise UsageError(f"run and baseline cannot be compared: {told}", hint=MUST_AGREE[unlike[0]])


def differences(baseline: Source, run: Source) -> list[Difference]:
    """Where else the two are not alike; it decides nothing, and may explain much."""
    then, now = _flat(baseline), _flat(run)
    return [
        Difference(key=key, baseline=_short(then.get(key)), run=_short(now.get(key)))
        for key in sorted({*then, *now})
        if then.get(key) != now.get(key)
    ]


def _flat(source: Source) -> dict[str, Any]:
    found = source.model_dump(include={"target", "endpoint", "model", "revision", "harness_version"})
    return found | {f"settings.{key}": value for key, value in source.settings.items()}


def _short(value: Any) -> str:
    """Digests by their beginning."""
    text = "unknown" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
