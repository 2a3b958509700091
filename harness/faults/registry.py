"""Every fault by name. The first line of its docstring says what it does on the wire."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from aiohttp import web

from harness.errors import UnknownNameError, UsageError
from harness.faults import refusals, spoiled
from harness.faults.call import Call
from harness.faults.protocol import Question

Fault = Callable[[Call], Awaitable[web.StreamResponse]]

FAULTS: dict[str, Fault] = {
    "429-seconds": refusals.limited_seconds,
    "429-date": refusals.limited_date,
    "429-bare": refusals.limited_bare,
    "429-reset": refusals.limited_reset,
    "500": refusals.failed_500,
    "502": refusals.failed_502,
    "503": refusals.failed_503,
    "529": refusals.failed_529,
    "echoed-key": refusals.echoed_key,
    "html-200": refusals.page_200,
    "html-502": refusals.page_502,
    "redirect-302": refusals.redirect_302,
    "redirect-307": refusals.redirect_307,
    "redirect-308": refusals.redirect_308,
    "hang": refusals.hang,
    "slow-drip": refusals.slow_drip,
    "dropped": refusals.dropped,
    "huge-body": refusals.huge_body,
    "truncated-json": spoiled.truncated_json,
    "invalid-json": spoiled.invalid_json,
    "fewer-choices": spoiled.fewer_choices,
    "more-choices": spoiled.more_choices,
    "duplicated-choices": spoiled.duplicated_choices,
    "reordered-choices": spoiled.reordered_choices,
    "nan": spoiled.nan_logprob,
    "minus-9999": spoiled.floor_logprob,
    "positive": spoiled.positive_logprob,
    "empty-lists": spoiled.empty_lists,
    "other-model": spoiled.other_model,
}

_NEED_LOGPROBS = frozenset({"nan", "minus-9999", "positive"})

HARMLESS = frozenset({"reordered-choices", "slow-drip"})
"""What a patient client takes for the true answer that it is."""


def parse_faults(text: str | None) -> tuple[str, ...]:
    """The faults in a list like `500,nan`, every one for None; raises UnknownNameError, UsageError for an empty list."""
    if text is None:
        return tuple(FAULTS)
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        if name not in FAULTS:
            raise UnknownNameError("fault", name, FAULTS)
    if not names:
        raise UsageError("no fault is named", hint="harness serve-faults --list")
    return names


def fitting(names: Iterable[str], question: Question) -> list[str]:
    """Those faults that can show in the answer to `question`."""
    return [name for name in names if question.logprobs is not None or name not in _NEED_LOGPROBS]


def told(name: str) -> str:
    """What the fault does, in a line."""
    return (FAULTS[name].__doc__ or "").split("\n")[0]
