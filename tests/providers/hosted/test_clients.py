"""The wire formats against the vendors' own clients: what they send for a question is our body, what they parse we read."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import anthropic
import numpy as np
import openai
import pytest
from anthropic.types import Message, MessageCreateParams
from openai.types import Completion
from openai.types.chat import ChatCompletion
from openai.types.chat import CompletionCreateParams as ChatParams
from openai.types.completion_create_params import CompletionCreateParams as LegacyParams
from openai.types.responses import Response
from openai.types.responses import ResponseCreateParams as ResponsesParams
from pydantic import ConfigDict, TypeAdapter

from harness.providers.targets import Chat
from harness.providers.wire.base import Dialect, Question, read_usage
from harness.providers.wire.chat import ChatCompletions
from harness.providers.wire.completions import Completions
from harness.providers.wire.messages import Messages
from harness.providers.wire.responses import Responses

from .hosted_answers import Body, drawn, said, top
from .hosted_server import HostedServer

TEXT = "The dog chased the"
PREFILLED = Chat(prefill="assistant", system="Go on.")
TOLD = Chat()
Call = Callable[[HostedServer, Body], Awaitable[Any]]


def open_ai(server: HostedServer) -> openai.AsyncOpenAI:
    """OpenAI's client; it raises for an answer that lacks a field of its types."""
    return openai.AsyncOpenAI(api_key="k", base_url=server.base_url, max_retries=0, _strict_response_validation=True)


async def chat(server: HostedServer, body: Body) -> ChatCompletion:
    async with open_ai(server) as client:
        return await client.chat.completions.create(**body)


async def completions(server: HostedServer, body: Body) -> Completion:
    async with open_ai(server) as client:
        return await client.completions.create(**body)


async def responses(server: HostedServer, body: Body) -> Response:
    async with open_ai(server) as client:
        return await client.responses.create(**body)


async def messages(server: HostedServer, body: Body) -> Message:
    typed = {name: value for name, value in body.items() if name != "temperature"}  # no longer among its parameters
    beside = {"temperature": body["temperature"]} if "temperature" in body else None
    base_url = server.base_url.removesuffix("/v1")
    async with anthropic.AsyncAnthropic(
        api_key="k", base_url=base_url, max_retries=0, _strict_response_validation=True
    ) as client:
        answer: Message = await client.messages.create(**typed, extra_body=beside)
        return answer


LISTS = Question(n_logprobs=20)
DRAWS = Question(n_draws=3, temperature=1.0, max_tokens=6)
ONE_DRAW = Question(n_draws=1, temperature=1.0, max_tokens=6)
BIASED = Question(n_draws=2, temperature=1.0, bias={17: 6.0, 4: 6.0})
OWN_TEMPERATURE = Question(n_draws=1, temperature=None, max_tokens=6)
CASES = [
    pytest.param(ChatCompletions(TOLD), LISTS, chat, id="chat-list"),
    pytest.param(ChatCompletions(PREFILLED), DRAWS, chat, id="chat-draws"),
    pytest.param(ChatCompletions(TOLD), BIASED, chat, id="chat-bias"),
    pytest.param(ChatCompletions(Chat(max_tokens_key="max_completion_tokens")), OWN_TEMPERATURE, chat, id="chat-reasoning"),
    pytest.param(Completions(), Question(n_logprobs=5), completions, id="completions-list"),
    pytest.param(Completions(), DRAWS, completions, id="completions-draws"),
    pytest.param(Completions(), BIASED, completions, id="completions-bias"),
    pytest.param(Responses(TOLD), LISTS, responses, id="responses-list"),
    pytest.param(Responses(TOLD), ONE_DRAW, responses, id="responses-draw"),
    pytest.param(Messages(TOLD), ONE_DRAW, messages, id="messages-told"),
    pytest.param(Messages(PREFILLED), OWN_TEMPERATURE, messages, id="messages-prefilled"),
]
PARAMETERS: dict[Call, Any] = {
    chat: ChatParams,
    completions: LegacyParams,
    responses: ResponsesParams,
    messages: MessageCreateParams,
}


@pytest.mark.parametrize(("dialect", "question", "call"), CASES)
def test_the_clients_send_our_body_key_for_key_and_parse_the_answer_that_we_read(
    hosted: HostedServer, dialect: Dialect, question: Question, call: Call
) -> None:
    body = dialect.request("gpt-test", [TEXT], question)
    parsed = asyncio.run(call(hosted, body))
    ((sent,),) = hosted.bodies.values()
    assert sent == body
    assert type(parsed) in (ChatCompletion, Completion, Response, Message)
    raw = parsed.to_dict(mode="json")
    if question.n_draws:
        (texts,) = dialect.draws(raw, 1, question)
        asked = said(body.get("messages") or body.get("input") or [{"content": TEXT}])
        assert [text.split()[0] for text in texts] == [drawn(asked, number).strip() for number in range(question.n_draws)]
    else:
        (seen,) = dialect.lists(raw, 1, question)
        asked = said(body.get("messages") or body.get("input") or [{"content": TEXT}])
        expected = top(asked, question.n_logprobs)
        assert seen.tokens == tuple(token for token, _ in expected)
        np.testing.assert_allclose(seen.logprobs, [value for _, value in expected], rtol=1e-6)
    usage = parsed.usage.to_dict()
    counted = [usage.get(name) for name in ("prompt_tokens", "input_tokens", "completion_tokens", "output_tokens")]
    assert read_usage(raw) == tuple(count for count in counted if count is not None)


@pytest.mark.parametrize(("dialect", "question", "call"), CASES)
def test_our_bodies_fit_the_types_of_the_clients_parameters(dialect: Dialect, question: Question, call: Call) -> None:
    params = PARAMETERS[call]
    body = dialect.request("gpt-test", [TEXT], question)
    if params is MessageCreateParams:
        body.pop("temperature", None)  # sent beside the typed ones
    known = set().union(*(kind.__annotations__ for kind in _bases(params)))
    assert set(body) <= known
    TypeAdapter(params, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(body)


def _bases(params: Any) -> list[type]:
    """The typed dictionaries of a union of them, with those they extend."""
    kinds = list(params.__args__)
    for kind in kinds:
        kinds.extend(base for base in getattr(kind, "__orig_bases__", ()) if hasattr(base, "__annotations__"))
    return kinds


def test_the_clients_read_our_servers_errors_as_the_services_own(hosted: HostedServer) -> None:
    hosted.refuse = lambda _path, _body: (400, "`temperature` is deprecated for this model.")
    with pytest.raises(anthropic.BadRequestError, match="deprecated for this model") as caught:
        asyncio.run(messages(hosted, Messages(TOLD).request("claude-test", [TEXT], ONE_DRAW)))
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["error"]["type"] == "invalid_request_error"
    with pytest.raises(openai.BadRequestError, match="deprecated for this model"):
        asyncio.run(chat(hosted, ChatCompletions(TOLD).request("gpt-test", [TEXT], LISTS)))
