"""The OpenAI-compatible protocol as vLLM speaks it: bodies to questions, questions to the text of true answers. No I/O."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.faults.distribution import Model, NextToken
from harness.faults.tokens import EOS_ID, Tokens

MAX_CHOSEN_IDS = 128
MAX_PROMPTS = 1024
MAX_MODEL_LEN = 32768


class RefusedError(Exception):
    """A request that is answered with an error `status` and a message."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


class _Body(BaseModel):
    """Fields that are not named here are ignored, as vLLM does; those with one allowed value are refused with any other."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class _Generation(_Body):
    model: str
    n: int = Field(1, ge=1, le=10_000)
    temperature: float = Field(1.0, ge=0)
    logit_bias: dict[int, Annotated[float, Field(ge=-100, le=100)]] | None = None
    logprob_token_ids: list[int] | None = None
    return_tokens_as_token_ids: bool = False
    seed: int | None = None
    stream: Literal[False] | None = None
    top_p: Literal[1] | None = None


class _Completion(_Generation):
    prompt: str | list[int] | list[str] | list[list[int]]
    max_tokens: int = Field(16, ge=1, le=256)
    logprobs: int | None = Field(None, ge=0)
    add_special_tokens: bool = True
    echo: Literal[False] | None = None


class _Part(_Body):
    type: Literal["text"]
    text: str


class _Message(_Body):
    role: Literal["system", "user", "assistant"]
    content: str | list[_Part]


class _Conversation(_Body):
    messages: list[_Message] = Field(min_length=1)
    add_generation_prompt: bool = True
    continue_final_message: bool = False


class _Chat(_Conversation, _Generation):
    max_tokens: int | None = Field(None, ge=1, le=256)
    max_completion_tokens: int | None = Field(None, ge=1, le=256)
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0)


class _Tokenize(_Body):
    prompt: str
    add_special_tokens: bool = True
    return_token_strs: bool | None = False


class _TokenizeChat(_Conversation):
    return_token_strs: bool | None = False


class _Detokenize(_Body):
    tokens: list[int]


Body = TypeVar("Body", bound=_Body)


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What there is to ask: the name of the model, and the most log-probabilities it lists."""

    model: str
    max_logprobs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a generation request asks of each of its `prompts`.

    `logprobs`: how many of the likeliest tokens to list, None for no log-probabilities; `chosen`: the ids to list instead.
    """

    chat: bool
    prompts: tuple[tuple[int, ...], ...]
    n: int
    max_tokens: int
    temperature: float
    bias: Mapping[int, float]
    seed: int | None
    logprobs: int | None
    chosen: tuple[int, ...] | None
    by_id: bool


def read_completion(body: bytes, tokens: Tokens, served: Served) -> Question:
    """A body of /v1/completions; raises RefusedError."""
    asked = _validated(body, _Completion)
    many: list[Any] = [asked.prompt] if isinstance(asked.prompt, str) else list(asked.prompt)
    if many and isinstance(many[0], int):
        many = [many]
    if len(many) > MAX_PROMPTS:
        raise RefusedError(f"at most {MAX_PROMPTS} prompts a request, got {len(many)}")
    special = asked.add_special_tokens
    prompts = tuple(tokens.encode(one, add_special_tokens=special) if isinstance(one, str) else tuple(one) for one in many)
    return _question(asked, prompts, asked.logprobs, tokens, served)


def read_chat(body: bytes, tokens: Tokens, served: Served) -> Question:
    """A body of /v1/chat/completions; raises RefusedError."""
    asked = _validated(body, _Chat)
    if asked.top_logprobs is not None and not asked.logprobs:
        raise RefusedError("top_logprobs needs logprobs to be true")
    logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
    return _question(asked, (_chat_ids(asked, tokens),), logprobs, tokens, served)


def tokenize(body: bytes, tokens: Tokens) -> dict[str, Any]:
    """The answer of /tokenize; raises RefusedError."""
    try:
        text = _validated(body, _Tokenize)
        ids = tokens.encode(text.prompt, add_special_tokens=text.add_special_tokens)
        as_texts = text.return_token_strs
    except RefusedError:
        chat = _validated(body, _TokenizeChat)
        ids, as_texts = _chat_ids(chat, tokens), chat.return_token_strs
    found: dict[str, Any] = {"count": len(ids), "max_model_len": MAX_MODEL_LEN, "tokens": ids}
    return found | ({"token_strs": [tokens.texts[i] for i in ids]} if as_texts else {})


def detokenize(body: bytes, tokens: Tokens) -> dict[str, Any]:
    """The answer of /detokenize; raises RefusedError."""
    ids = _validated(body, _Detokenize).tokens
    _require_known(ids, tokens)
    return {"prompt": tokens.decode(ids)}


def write_answer(question: Question, model: Model, tokens: Tokens, *, times: Callable[[tuple[int, ...]], int]) -> str:
    """The true answer as JSON. `times`: how often a prompt was answered before, so that its draws go on where they stood."""
    choices: list[str] = []
    spoken = 0
    before: dict[tuple[int, ...], int] = {}
    for prompt in question.prompts:
        before[prompt] = nth = before.get(prompt, times(prompt) - 1) + 1
        for steps in _texts(question, model, prompt, nth):
            spoken += len(steps)
            choices.append((_chat_choice if question.chat else _choice)(question, tokens, len(choices), steps))
    heard = sum(len(prompt) for prompt in question.prompts)
    usage = f'{{"prompt_tokens": {heard}, "completion_tokens": {spoken}, "total_tokens": {heard + spoken}}}'
    kind, name = ("chat.completion", "chatcmpl-1") if question.chat else ("text_completion", "cmpl-1")
    return (
        f'{{"id": "{name}", "object": "{kind}", "created": 1, "model": {json.dumps(model.name)}, '
        f'"choices": [{", ".join(choices)}], "usage": {usage}, "system_fingerprint": "fp_faults"}}'
    )


_Steps = list[tuple[NextToken, int]]
"""The distribution at each place of a text, and the id that was drawn from it."""


def _texts(question: Question, model: Model, prompt: tuple[int, ...], nth: int) -> Iterator[_Steps]:
    """`n` texts after a prompt; an end-of-text ends one early."""
    seeds = [nth] if question.seed is None else [0, question.seed & 0xFFFFFFFFFFFFFFFF]
    rng = np.random.default_rng([model.number(prompt), *seeds]) if question.temperature > 0 else _UNUSED
    first = model.after(prompt)
    for drawn in first.draw(rng, question.n, temperature=question.temperature, bias=question.bias):
        steps = [(first, drawn)]
        while len(steps) < question.max_tokens and steps[-1][1] != EOS_ID:
            following = model.after((*prompt, *(token for _, token in steps)))
            (token,) = following.draw(rng, 1, temperature=question.temperature, bias=question.bias)
            steps.append((following, token))
        yield steps


_UNUSED = np.random.default_rng(0)
"""Given to draws at temperature 0, which take nothing from it: seeding one for each request costs as much as an answer."""


def _choice(question: Question, tokens: Tokens, index: int, steps: _Steps) -> str:
    """A choice of /v1/completions; the listed tokens are the keys of an object."""
    names = tokens.quoted_ids if question.by_id else tokens.quoted
    logprobs = "null"
    if question.logprobs is not None:
        spoken = ", ".join(names[token] for _, token in steps)
        told = ", ".join(_written(here, token) for here, token in steps)
        listed = ", ".join(
            f"{{{', '.join([f'{names[i]}: {value}' for i, value in _listed(question, here, token)])}}}" for here, token in steps
        )
        offsets = [0]
        for _, token in steps[:-1]:
            offsets.append(offsets[-1] + len(tokens.texts[token]))
        logprobs = f'{{"tokens": [{spoken}], "token_logprobs": [{told}], "top_logprobs": [{listed}], "text_offset": {offsets}}}'
    text, reason = _text(tokens, steps)
    return f'{{"index": {index}, "text": {json.dumps(text)}, "logprobs": {logprobs}, "finish_reason": "{reason}"}}'


def _chat_choice(question: Question, tokens: Tokens, index: int, steps: _Steps) -> str:
    """A choice of /v1/chat/completions; the listed tokens are objects."""
    names = tokens.quoted_ids if question.by_id else tokens.quoted

    def entry(token: int, logprob: str) -> str:
        return f'"token": {names[token]}, "logprob": {logprob}, "bytes": {tokens.quoted_bytes[token]}'

    logprobs = "null"
    if question.logprobs is not None:
        content = []
        for here, token in steps:
            asked = question.logprobs > 0 or question.chosen is not None
            top = ", ".join([f"{{{entry(i, value)}}}" for i, value in (_listed(question, here, token) if asked else ())])
            content.append(f'{{{entry(token, _written(here, token))}, "top_logprobs": [{top}]}}')
        logprobs = f'{{"content": [{", ".join(content)}]}}'
    text, reason = _text(tokens, steps)
    message = f'{{"role": "assistant", "content": {json.dumps(text)}}}'
    return f'{{"index": {index}, "message": {message}, "logprobs": {logprobs}, "finish_reason": "{reason}"}}'


def _text(tokens: Tokens, steps: _Steps) -> tuple[str, str]:
    ids = [token for _, token in steps]
    ended = ids[-1] == EOS_ID
    return tokens.decode(ids[:-1] if ended else ids), "stop" if ended else "length"


def _listed(question: Question, here: NextToken, drawn: int) -> list[tuple[int, str]]:
    """What to list, with its log-probability: the chosen or the likeliest ids, and the drawn one wherever it stands."""
    if question.chosen is None:
        ids: Sequence[int] = here.likeliest(question.logprobs or 0)
        pairs = list(zip(ids, here.shape.written, strict=False))
    else:
        ids = question.chosen
        pairs = [(i, _written(here, i)) for i in ids]
    return pairs if drawn in ids else [*pairs, (drawn, _written(here, drawn))]


def _written(here: NextToken, token: int) -> str:
    return here.shape.written[here.rank(token)]


def _chat_ids(asked: _Conversation, tokens: Tokens) -> tuple[int, ...]:
    if asked.continue_final_message and asked.add_generation_prompt:
        raise RefusedError("Cannot set both `continue_final_message` and `add_generation_prompt` to True.")
    messages = [
        {
            "role": message.role,
            "content": message.content if isinstance(message.content, str) else "".join(part.text for part in message.content),
        }
        for message in asked.messages
    ]
    return tokens.encode_chat(messages, generation_prompt=asked.add_generation_prompt, open_end=asked.continue_final_message)


def _question(
    asked: _Completion | _Chat,
    prompts: tuple[tuple[int, ...], ...],
    logprobs: int | None,
    tokens: Tokens,
    served: Served,
) -> Question:
    chosen = asked.logprob_token_ids
    bias = asked.logit_bias or {}
    if asked.model != served.model:
        raise RefusedError(f"The model `{asked.model}` does not exist.", 404)
    if logprobs is not None and logprobs > served.max_logprobs:
        text = f"Requested sample logprobs of {logprobs}, which is greater than max allowed: {served.max_logprobs}"
        raise RefusedError(text)
    if chosen is not None and logprobs is None:
        raise RefusedError("logprob_token_ids needs logprobs to be set")
    if chosen is not None and len(chosen) > MAX_CHOSEN_IDS:
        raise RefusedError(f"logprob_token_ids takes at most {MAX_CHOSEN_IDS} ids, got {len(chosen)}")
    if not prompts or not all(prompts):
        raise RefusedError("an empty prompt")
    for ids in (*prompts, chosen or (), tuple(bias)):
        _require_known(ids, tokens)
    max_tokens = asked.max_tokens if isinstance(asked, _Completion) else asked.max_completion_tokens or asked.max_tokens or 16
    return Question(
        chat=isinstance(asked, _Chat),
        prompts=prompts,
        n=asked.n,
        max_tokens=max_tokens,
        temperature=asked.temperature,
        bias=bias,
        seed=asked.seed,
        logprobs=logprobs,
        chosen=None if chosen is None else tuple(dict.fromkeys(chosen)),
        by_id=asked.return_tokens_as_token_ids,
    )


def _require_known(ids: Sequence[int], tokens: Tokens) -> None:
    if ids and not 0 <= min(ids) <= max(ids) < len(tokens):
        worst = min(ids) if min(ids) < 0 else max(ids)
        raise RefusedError(f"Token id {worst} is out of vocabulary")


def _validated(body: bytes, record: type[Body]) -> Body:
    try:
        return record.model_validate_json(body)
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RefusedError(f"{where}: {first['msg']}" if where else first["msg"]) from exc
