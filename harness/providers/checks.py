"""What a target's file claims beside what its endpoint was found to do: the rows of `harness targets check`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from harness.providers.targets import Claims, TargetSpec
from harness.records import TargetInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One question. `declared` is empty where the file claims nothing; `holds` is None where there is nothing to compare."""

    question: str
    declared: str
    found: str
    holds: bool | None = None


def checks(spec: TargetSpec, info: TargetInfo) -> list[Check]:
    """Every question that was answered, in the order it is read."""
    able = info.capabilities
    found = {
        "reachable": "yes",
        "model": info.model,
        "revision": info.revision or "not told",
        "token ids in": "yes" if able.token_ids else "no",
        "top-k limit": "the whole vocabulary" if able.max_logprobs is None else str(able.max_logprobs),
        "prompts a request": str(able.max_prompts_per_request),
        **able.findings,
        "modes": ", ".join(able.able()),
    }
    declared = _declared(spec) if able.findings else {}
    return [
        Check(question=name, declared=declared.get(name, ""), found=text, holds=_holds(declared.get(name, ""), text))
        for name, text in found.items()
    ]


def _declared(spec: TargetSpec) -> dict[str, str]:
    """The claims, by the question that checks them."""
    claims: Claims = spec.claims
    said = {
        "token ids in": claims.token_ids,
        "top-k limit": claims.logprobs,
        "chosen ids": claims.chosen_ids,
        "prompts a request": claims.prompts_per_request,
        "draws a request": claims.draws_per_request,
        "logit_bias": claims.bias_ids,
        "temperature": claims.temperature,
    }
    texts = {name: _text(value) for name, value in said.items() if value is not None}
    if spec.api not in ("completions", "vllm"):
        texts["prefill"] = "no" if spec.chat.prefill == "none" else f"yes, by {spec.chat.prefill}"
    if spec.target.revision:
        texts["revision"] = spec.target.revision
    return texts


def _text(value: bool | int) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def _holds(declared: str, found: str) -> bool | None:
    """Whether what was found is at least what was declared; None where either is no answer."""
    claimed, seen = _amount(declared), _amount(found)
    return None if claimed is None or seen is None else seen >= claimed


def _amount(text: str) -> int | None:
    """`yes`, `no` and numbers at the beginning of a text, to be compared."""
    word = re.match(r"yes\b|no\b|none\b|\d+\b", text)
    if word is None:
        return None
    return {"yes": 1, "no": 0, "none": 0}[word[0]] if word[0].isalpha() else int(word[0])
