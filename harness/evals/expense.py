"""What prompts cost an endpoint to answer: requests, tokens in, tokens out, by the mode in which they are asked.

Counts what will be sent if nothing fails; what a retry or an endpoint's own accounting adds, only the answers tell.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from harness.providers.http.drawing import PILOT_DRAWS, WORD_TOKENS, draws_per_request
from harness.providers.targets import Prices, TargetSpec
from harness.providers.vocabulary import about_tokens
from harness.providers.wire.base import Dialect
from harness.providers.wire.chat import ChatCompletions, messages
from harness.providers.wire.completions import Completions
from harness.providers.wire.messages import Messages
from harness.providers.wire.responses import Responses
from harness.records import Capabilities, Mode

DIALECTS: dict[str, type[Dialect]] = {
    "anthropic": Messages,
    "chat": ChatCompletions,
    "completions": Completions,
    "responses": Responses,
}

_PILOTS = 2
"""Pilots that an amplified prompt takes: the first bias is right for masses around 1 in 400, others need one or two more."""

_MESSAGE_TOKENS = 4
"""What a chat template adds to a message: its role and the marks around it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expense:
    """What is asked of an endpoint that bills."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def __add__(self, other: Expense) -> Expense:
        return Expense(
            requests=self.requests + other.requests,
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
        )

    def __sub__(self, other: Expense) -> Expense:
        return Expense(
            requests=self.requests - other.requests,
            input_tokens=self.input_tokens - other.input_tokens,
            output_tokens=self.output_tokens - other.output_tokens,
        )

    def usd(self, prices: Prices) -> float:
        """By the target's prices."""
        return (self.input_tokens * prices.input_per_million + self.output_tokens * prices.output_per_million) / 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How a target is asked.

    `n_draws`: how many continuations a prompt, in the modes that draw. `chosen_ids`: how many ids of the lexicon a request can
    ask for in mode `exact`, 0 where their mass costs no further request. `frame_tokens`: of the conversation around a prompt.
    """

    mode: Mode
    prompts_per_request: int = 1
    draws_per_request: int = 1
    n_draws: int = 0
    chosen_ids: int = 0
    frame_tokens: int = 0

    def asked(self, mode: Mode, n_draws: int) -> Manner:
        """The same endpoint, asked in another mode."""
        return replace(self, mode=mode, n_draws=n_draws)

    def expense(self, n_prompts: int, n_tokens: int, n_ids: int) -> Expense:
        """Of `n_prompts` of one kind with `n_tokens` together, about a lexicon of `n_ids` ids."""
        n_tokens += n_prompts * self.frame_tokens
        if self.mode.drawn:
            requests, draws = self._draws()
            length = 1 if self.mode is Mode.AMPLIFIED else WORD_TOKENS
            return Expense(
                requests=n_prompts * requests, input_tokens=n_tokens * requests, output_tokens=n_prompts * draws * length
            )
        passes = 1
        if self.mode is Mode.EXACT and self.chosen_ids:
            passes += -(-n_ids // self.chosen_ids)
        return Expense(
            requests=passes * -(-n_prompts // self.prompts_per_request),
            input_tokens=passes * n_tokens,
            output_tokens=passes * n_prompts,
        )

    def _draws(self) -> tuple[int, int]:
        """(requests, draws) of one prompt."""
        requests, draws = -(-self.n_draws // self.draws_per_request), self.n_draws
        if self.mode is Mode.AMPLIFIED:
            requests += _PILOTS * -(-PILOT_DRAWS // self.draws_per_request)
            draws += _PILOTS * PILOT_DRAWS
        return requests, draws


def found_manner(spec: TargetSpec, able: Capabilities) -> Manner:
    """How an opened target is asked, in its best mode."""
    return Manner(
        mode=able.mode,
        prompts_per_request=able.max_prompts_per_request,
        draws_per_request=draws_per_request(spec, DIALECTS.get(spec.api)),
        chosen_ids=able.chosen_ids,
        frame_tokens=_frame_tokens(spec),
    )


def claimed_manner(spec: TargetSpec, mode: Mode | None, *, has_ids: bool) -> Manner:
    """How a target will be asked, going by what its file says; `mode` None: in the best mode that it claims.

    `has_ids`: whether its tokenizer is at hand.
    """
    claims, dialect = spec.claims, DIALECTS.get(spec.api)
    chosen_ids = claims.chosen_ids or 0
    if mode is None and dialect is None:
        mode = Mode.TOPK if spec.api == "scripted" else Mode.EXACT
    elif mode is None and (claims.logprobs == 0 or (dialect is not None and not dialect.gives_lists)):
        mode = Mode.AMPLIFIED if claims.bias_ids and has_ids else Mode.SAMPLED
    elif mode is None:
        mode = Mode.EXACT if chosen_ids and has_ids else Mode.TOPK
    many = dialect is None or dialect.takes_many
    return Manner(
        mode=mode,
        prompts_per_request=(claims.prompts_per_request or spec.endpoint.limits.prompts_per_request) if many else 1,
        draws_per_request=draws_per_request(spec, DIALECTS.get(spec.api)),
        chosen_ids=chosen_ids,
        frame_tokens=_frame_tokens(spec),
    )


def _frame_tokens(spec: TargetSpec) -> int:
    """The tokens of a conversation without its prompt, about."""
    dialect = DIALECTS.get(spec.api)
    if dialect is None or dialect.takes_many:
        return 0
    said = messages("", spec.chat)
    return sum(about_tokens(one["content"]) + _MESSAGE_TOKENS for one in said)
