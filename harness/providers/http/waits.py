"""How long an endpoint asks to wait, as the headers of its answers say it. Pure, but for the clock where no `Date` is given.

A date is compared with the answer's own `Date`, so that neither clock need be right.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_PAIRS = (
    *((f"x-ratelimit-remaining{what}", f"x-ratelimit-reset{what}") for what in ("-requests", "-tokens", "")),
    *(
        (f"anthropic-ratelimit-{what}-remaining", f"anthropic-ratelimit-{what}-reset")
        for what in ("requests", "tokens", "input-tokens", "output-tokens")
    ),
)
"""(what is left, when there is more) of each limit."""

_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")
_UNIT_S = (3600.0, 60.0, 1.0, 0.001)
_A_DATE = 1e9
"""A number of seconds above this is no span but a date, and one a thousand times as large counts milliseconds."""


def asked_wait_s(headers: Mapping[str, str]) -> float | None:
    """Seconds that a refusal asks to wait: `retry-after-ms`, `Retry-After`, or until the limit that is used up is reset."""
    milliseconds = _seconds(headers.get("retry-after-ms"), headers)
    if milliseconds is not None:
        return milliseconds / 1000
    seconds = _seconds(headers.get("Retry-After"), headers)
    return used_up_s(headers) if seconds is None else seconds


def used_up_s(headers: Mapping[str, str]) -> float | None:
    """Seconds until every limit of which nothing is left is reset; None where something is left of all of them."""
    waits = [
        _seconds(headers[reset], headers)
        for remaining, reset in _PAIRS
        if remaining in headers and reset in headers and headers[remaining].strip() == "0"
    ]
    return max((wait for wait in waits if wait is not None), default=None)


def _seconds(text: str | None, headers: Mapping[str, str]) -> float | None:
    """A span (`7`, `6m0.5s`, `20ms`) or a date (HTTP, ISO 8601, seconds or milliseconds since 1970) as seconds from now."""
    if text is None:
        return None
    text = text.strip()
    try:
        seconds = float(text)
    except ValueError:
        found = _DURATION.fullmatch(text)
        if found and any(found.groups()):
            return sum(float(part) * unit for part, unit in zip(found.groups(), _UNIT_S, strict=True) if part)
        at = _date(text)
        return None if at is None else max(at - _now(headers), 0.0)
    if not math.isfinite(seconds):
        return None
    if seconds >= _A_DATE:
        seconds = (seconds / 1000 if seconds >= 1000 * _A_DATE else seconds) - _now(headers)
    return max(seconds, 0.0)


def _now(headers: Mapping[str, str]) -> float:
    """The endpoint's time where it tells it, else ours."""
    told = _date(headers.get("Date", ""))
    return time.time() if told is None else told


def _date(text: str) -> float | None:
    for parse in (parsedate_to_datetime, datetime.fromisoformat):
        try:
            date = parse(text)
            return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            continue
    return None
