"""Refusals in the words of the services, as public bug reports quote them."""

from __future__ import annotations

import pytest

from harness.providers.wire.refusals import Refusal, why_refused

SAID = {
    Refusal.MAX_TOKENS_KEY: [
        (400, "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."),
    ],
    Refusal.MAX_TOKENS_LOW: [
        (400, "Invalid 'max_output_tokens': integer below minimum value. Expected a value >= 16, but got 1 instead."),
    ],
    Refusal.TEMPERATURE: [
        (400, "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value is supported."),
        (400, "Unsupported parameter: 'temperature' is not supported with this model."),
        (400, "Unsupported parameter: 'top_p' is not supported with this model."),
        (400, "`temperature` is deprecated for this model."),
        (400, "`temperature` and `top_p` cannot both be specified for this model. Please use only one."),
        (400, "`temperature` may only be set to 1 when thinking is enabled."),
    ],
    Refusal.LOGPROBS: [
        (403, "You are not allowed to request logprobs from this model."),
        (400, "logprobs are not supported with reasoning models."),
        (400, "Unsupported parameter: 'logprobs' is not supported with this model."),
        (400, "Unsupported parameter: 'top_logprobs' is not supported with this model."),
        (400, "Logprobs is not enabled for models/gemini-2.5-pro"),
    ],
    Refusal.LOGPROBS_LIMIT: [
        (400, "Invalid value for 'top_logprobs': must be less than or equal to 5."),
        (400, "Invalid 'top_logprobs': integer above maximum value. Expected a value <= 20, but got 50 instead."),
        (400, "Requested sample logprobs of 50, which is greater than max allowed: 20"),
    ],
    Refusal.PREFILL: [
        (400, "This model does not support assistant message prefill. The conversation must end with a user message."),
        (400, "Prefilling assistant messages is not supported for this model."),
    ],
    Refusal.LOGIT_BIAS: [
        (400, "Unsupported parameter: 'logit_bias' is not supported with this model."),
    ],
    Refusal.N: [
        (400, "Unsupported value: 'n' does not support 8 with this model. Only the default (1) value is supported."),
    ],
}


@pytest.mark.parametrize(("part", "status", "message"), [(part, *one) for part, said in SAID.items() for one in said])
def test_a_known_refusal_is_recognised(part: Refusal, status: int, message: str) -> None:
    assert why_refused(status, f"HTTP {status}: {message}") is part


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "messages: final assistant content cannot end with trailing whitespace"),
        (400, "max_tokens: 99999 > 8192, which is the maximum allowed number of output tokens"),
        (400, "Your credit balance is too low to access the Anthropic API."),
        (404, "The model `gpt-9` does not exist or you do not have access to it."),
        (403, "Country, region, or territory not supported"),
        (429, "Rate limit reached for gpt-4o: logprobs are not supported right now"),
        (500, "The server had an error while processing your request with temperature 1, not supported"),
        (None, "logprobs are not supported with reasoning models."),
    ],
)
def test_what_is_no_refusal_of_a_part_is_none(status: int | None, message: str) -> None:
    assert why_refused(status, message) is None
