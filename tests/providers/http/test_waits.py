"""What an endpoint's headers ask for, in seconds, whatever its clock and ours say."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from multidict import CIMultiDict

from harness.providers.http.waits import asked_wait_s, used_up_s

THEN = datetime(2031, 5, 4, 3, 2, 1, tzinfo=UTC)
"""The endpoint's time, far from ours."""


def headers(**named: str) -> CIMultiDict[str]:
    told = CIMultiDict({"Date": format_datetime(THEN, usegmt=True)})
    told.update({name.replace("_", "-"): value for name, value in named.items()})
    return told


def http_date(seconds: float) -> str:
    return format_datetime(THEN + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        ({}, None),
        ({"retry_after": "7"}, 7.0),
        ({"Retry_After": "0.25"}, 0.25),
        ({"retry_after": "-3"}, 0.0),
        ({"retry_after": "soon"}, None),
        ({"retry_after": "nan"}, None),
        ({"retry_after": http_date(40)}, 40.0),
        ({"retry_after": http_date(-40)}, 0.0),
        ({"retry_after_ms": "1500", "retry_after": "9"}, 1.5),
        ({"x_ratelimit_remaining_requests": "0", "x_ratelimit_reset_requests": "6m0.5s"}, 360.5),
        ({"x_ratelimit_remaining_requests": "0", "x_ratelimit_reset_requests": "20ms", "retry_after": "3"}, 3.0),
    ],
)
def test_a_refusal_says_how_long_to_wait(told: dict[str, str], seconds: float | None) -> None:
    assert asked_wait_s(headers(**told)) == seconds


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        ({"x_ratelimit_remaining_tokens": "0", "x_ratelimit_reset_tokens": "1s"}, 1.0),
        ({"X_RateLimit_Remaining": "0", "X_RateLimit_Reset": "12"}, 12.0),
        ({"x_ratelimit_remaining": "0", "x_ratelimit_reset": str(int(THEN.timestamp()) + 8)}, 8.0),
        ({"x_ratelimit_remaining": "0", "x_ratelimit_reset": str(int(THEN.timestamp() * 1000) + 2500)}, 2.5),
        ({"x_ratelimit_remaining_requests": "1", "x_ratelimit_reset_requests": "1h"}, None),
        ({"x_ratelimit_remaining_requests": "0"}, None),
        ({"anthropic_ratelimit_tokens_remaining": "0", "anthropic_ratelimit_tokens_reset": "2031-05-04T03:02:11Z"}, 10.0),
        ({"anthropic_ratelimit_requests_remaining": "3", "anthropic_ratelimit_requests_reset": "2031-05-04T03:02:11Z"}, None),
        (
            {
                "anthropic_ratelimit_input_tokens_remaining": "0",
                "anthropic_ratelimit_input_tokens_reset": "2031-05-04T03:02:05Z",
                "anthropic_ratelimit_output_tokens_remaining": "0",
                "anthropic_ratelimit_output_tokens_reset": "2031-05-04T03:02:31Z",
            },
            30.0,
        ),
    ],
)
def test_a_limit_that_is_used_up_says_when_it_is_reset(told: dict[str, str], seconds: float | None) -> None:
    assert used_up_s(headers(**told)) == seconds


def test_without_the_endpoints_date_ours_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: THEN.timestamp() - 5)
    assert asked_wait_s(CIMultiDict({"Retry-After": http_date(0)})) == 5.0
    monkeypatch.setattr(time, "time", lambda: THEN.timestamp() + 10**8)
    assert asked_wait_s(CIMultiDict({"Retry-After": http_date(0)})) == 0.0
