"""Hard checks before any statistics: do both sides read the same prompt, and tell of it in the same way?

What an endpoint was found to do when it was opened is compared as it stands; an engine in this process, of which nothing had to
be found out, answers the same questions here. Checks that `weigh` keep a comparison from being called equivalent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from harness.compare.asking import Answers, Side
from harness.compare.result import Agreement, Check
from harness.stats.distances import Repeats

_SUMS_TO_ONE = 1e-4
_ABOVE_ONE = 1e-3
_SHORT = 100
"""A list no longer than this whose probabilities sum to one after every prompt was made to."""

RENORMALISED = "renormalised to one"

_UNKNOWN = ("not known", "not asked", "could not be asked", "not told")


def checks(a: Side, b: Side) -> list[Check]:
    """What is known before the sentinels are asked."""
    info_a, info_b = a.provider.info, b.provider.info
    able_a, able_b = info_a.capabilities, info_b.capabilities
    return [
        check("model", _model(a), _model(b), note="names may differ for one model"),
        check("revision", short(info_a.revision), short(info_b.revision)),
        check("tokenizer", short(info_a.tokenizer_digest), short(info_b.tokenizer_digest), note=_TOKENIZER),
        *_settings(info_a.settings, info_b.settings),
        check("prompts sent as", _sent(able_a.token_ids), _sent(able_b.token_ids), note="text may be split otherwise"),
        check("BOS", _bos(a), _bos(b), weighs=True, note="one side reads another number of tokens that start a text"),
        check("template", _found(a, "template"), _found(b, "template"), weighs=True, note=_TEMPLATE),
        check("list", _regime(a), _regime(b), weighs=True, note="one list changes with the temperature"),
        check("longest list", _limit(able_a.max_logprobs), _limit(able_b.max_logprobs)),
        check("observed", able_a.mode, able_b.mode),
    ]


_TOKENIZER = "another tokenizer is another model, unless the files differ in form alone"
_TEMPLATE = "the text is put into another conversation, so the model reads another prompt"
_COUNTS = "the endpoints count other tokens for the same prompts: another template, a system prompt, or another tokenizer"


def answer_checks(a: tuple[Side, Answers], b: tuple[Side, Answers]) -> list[Check]:
    """What the answers to the sentinels show."""
    counts = [_count(answers) for _, answers in (a, b)]
    rows = [check("prompt tokens", *counts, weighs=True, note=_COUNTS)]
    rows.append(check("answers that failed", *(f"{answers.n_failed} of {answers.n_asked}" for _, answers in (a, b))))
    return rows


def list_checks(a: Repeats, b: Repeats) -> list[Check]:
    """What the lists show: their sums, and whether they repeat to the bit."""
    note = "a list that was renormalised, or processed otherwise, is not the model's own"
    repeats = [check("repeats", _repeats(a), _repeats(b), note="equal to the bit: a deterministic server, or a cache")]
    return [check("sum of the list", regime(a), regime(b), weighs=True, note=note), *(repeats if len(a.ids) > 1 else [])]


def regime(lists: Repeats) -> str:
    """What the sums of probabilities say of the lists: `partial` ones are as the model gives them."""
    answered = lists.answered
    if not answered.any():
        return "not known: no list came"
    sums = np.exp(np.where(lists.ids >= 0, lists.logprobs, -np.inf)).sum(axis=2)[answered]
    if sums.max() > 1 + _ABOVE_ONE:
        return "above one"
    if lists.ids.shape[2] <= _SHORT and sums.min() > 1 - _SUMS_TO_ONE and len(sums) > 1:
        return RENORMALISED
    return "partial"


def _repeats(lists: Repeats) -> str:
    """Whether the prompts' lists are the same to the bit, each time."""
    same = (lists.ids == lists.ids[:1]).all(axis=(0, 2)) & (lists.logprobs == lists.logprobs[:1]).all(axis=(0, 2))
    if same.all():
        return "equal to the bit"
    return "vary" if not same.any() else "partly equal to the bit"


def check(name: str, a: str, b: str, *, weighs: bool = False, note: str = "") -> Check:
    """A row: two texts that are the same, differ, or say that nothing is known."""
    unknown = a.startswith(_UNKNOWN) or b.startswith(_UNKNOWN)
    agreement: Agreement = "unknown" if unknown else "same" if a == b else "differs"
    return Check(name=name, a=a, b=b, agreement=agreement, weighs=weighs, note=note if agreement != "same" else "")


def _found(side: Side, question: str) -> str:
    """The finding, or what it would be for an engine that reads ids as they are."""
    found = side.provider.info.capabilities.findings
    return found.get(question, "not known" if found else "none: a completion")


def _model(side: Side) -> str:
    named = side.provider.info.capabilities.findings.get("model", side.provider.info.model)
    return named.split(", asked for as ")[0]


def _bos(side: Side) -> str:
    """How many tokens that start a text stand there, by every route: `1`, or `0, 1` where routes differ."""
    found = side.provider.info.capabilities.findings.get("BOS")
    if found is not None:
        numbers = sorted({int(number) for number in re.findall(r"(-?\d+) by ", found)})
        return ", ".join(map(str, numbers)) if numbers else found
    vocabulary = side.provider.vocabulary
    return "not known" if vocabulary is None else str(len(vocabulary.encode([""])[0]))


def _regime(side: Side) -> str:
    """`raw` or `processed`; an engine in this process shows the model's own."""
    found = side.provider.info.capabilities.findings.get("list", "raw")
    return found.split(":")[0] if found.startswith(("raw", "processed")) else found


def _settings(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Check]:
    """What both sides tell of how they compute; a server seldom tells more than its version."""
    told = [name for name in ("dtype", "device", "server_version") if name in a and name in b]
    return [check(name.replace("_", " "), str(a[name]), str(b[name]), note="other arithmetic, the same model") for name in told]


def _sent(as_ids: bool) -> str:
    return "token ids" if as_ids else "text"


def _limit(longest: int | None) -> str:
    return "the whole vocabulary" if longest is None else str(longest)


def short(digest: str | None) -> str:
    """The beginning of a digest, which is enough to tell two apart."""
    return "not known" if digest is None else digest[:12]


def _count(answers: Answers) -> str:
    """The prompt tokens of a round; the least of all rounds, since a retry adds some."""
    counted = [tokens for tokens in answers.tokens if tokens is not None]
    return f"{min(counted):,}" if counted else "not known: none are counted"
