"""What an endpoint refuses when it refuses a request: recognised from the words that OpenAI, Anthropic and vLLM use.

A reason that is not recognised is no reason to guess: the request failed, and that is what is said.
"""

from __future__ import annotations

import re
from enum import StrEnum

_STATUSES = frozenset({400, 403, 404, 422, 501})
"""Refusals of what was asked; OpenAI answers 403 to log-probabilities that a model does not give."""


class Refusal(StrEnum):
    """The part of a request that a model will not take."""

    MAX_TOKENS_KEY = "max_tokens"  # wants max_completion_tokens
    MAX_TOKENS_LOW = "max_tokens minimum"  # wants a larger number
    PREFILL = "prefill"
    TEMPERATURE = "temperature"  # or top_p, which goes with it
    LOGPROBS = "logprobs"
    LOGPROBS_LIMIT = "logprobs limit"  # gives them, but fewer
    LOGIT_BIAS = "logit_bias"
    N = "n"


_LIMIT = r"max(?:imum)? allowed|less than or equal|maximum value|must be (?:between|at most)|at most \d|<= ?\d"
_NOT = (
    r"not supported|unsupported|does not support|doesn't support|do not support|not allowed|not enabled|not permitted|"
    r"deprecated|unrecognized|unknown|not available|not implemented|extra_forbidden|unexpected"
)
# In this order: a text that says what to use instead names two keys, and one about a limit also says "not allowed".
_SAID: tuple[tuple[Refusal, re.Pattern[str]], ...] = tuple(
    (refusal, re.compile(pattern, re.IGNORECASE | re.DOTALL))
    for refusal, pattern in (
        (Refusal.MAX_TOKENS_KEY, r"max_tokens.*\buse\b.*max_completion_tokens"),
        (Refusal.MAX_TOKENS_LOW, r"max_(?:output_|completion_)?tokens.*below minimum"),
        (Refusal.PREFILL, rf"prefill.*(?:{_NOT})|(?:{_NOT}).*prefill|conversation must end with a user message"),
        (Refusal.LOGPROBS_LIMIT, rf"logprobs.*(?:{_LIMIT})"),
        (Refusal.LOGPROBS, rf"(?:{_NOT}).*logprobs|logprobs.*(?:{_NOT})"),
        (Refusal.LOGIT_BIAS, rf"(?:{_NOT}).*logit_bias|logit_bias.*(?:{_NOT})"),
        (
            Refusal.TEMPERATURE,
            rf"(?:{_NOT}).*(?:temperature|top_p)|(?:temperature|top_p).*(?:{_NOT}|may only be set|cannot both)",
        ),
        (Refusal.N, rf"(?:{_NOT}).*(?:'n'|`n`|\bn > 1)|(?:'n'|`n`|\bn > 1).*(?:{_NOT}|{_LIMIT})"),
    )
)


def why_refused(status: int | None, message: str) -> Refusal | None:
    """What of the request an answer with `status` and `message` refuses; None where that cannot be told."""
    if status not in _STATUSES:
        return None
    return next((refusal for refusal, said in _SAID if said.search(message)), None)
