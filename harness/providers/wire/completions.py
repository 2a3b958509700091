"""The completions wire format, vLLM's extensions included: token ids as prompts, chosen ids, tokens named by id."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.providers.wire.base import BadAnswerError, Question, TextOrIds, choices_of
from harness.providers.wire.lists import ranked_alike, ranked_ids, ranked_texts
from harness.records import Lists, Observation

TOKEN_ID_PREFIX = "token_id:"

_PREFIX = TOKEN_ID_PREFIX.encode()
_MANY = 3
_STATED_LIMIT = re.compile(r"max(?:imum)? allowed:?\s*(\d+)", re.IGNORECASE)


class Completions:
    """`POST /completions`."""

    path = "/completions"
    takes_many = True
    takes_draws = True
    gives_lists = True

    def request(self, model: str, prompts: Sequence[TextOrIds], question: Question) -> dict[str, Any]:
        """The body that puts `question` to each prompt (texts or token ids, not both)."""
        body: dict[str, Any] = {
            "model": model,
            # A lone prompt goes bare: endpoints that refuse lists of prompts take it too.
            "prompt": prompts[0] if len(prompts) == 1 else list(prompts),
            "max_tokens": question.max_tokens,
        }
        if question.n_draws:
            body["n"] = question.n_draws
        else:
            body["logprobs"] = 1 if question.wanted else question.n_logprobs
        if question.wanted:
            body["logprob_token_ids"] = list(question.wanted)
        if question.vocabulary is not None and not question.n_draws:
            body["return_tokens_as_token_ids"] = True
        return body | shared_keys(question)

    def lists(self, answer: object, n_prompts: int, question: Question) -> list[Observation]:
        """One observation for each prompt of the request, in order.

        With a vocabulary the answer must name tokens by id, without one they are texts.
        """
        read = self.read_choices(choices_of(answer, n_prompts), question)
        return read.observations() if isinstance(read, Lists) else read

    def read_choices(self, choices: Sequence[dict[str, Any]], question: Question) -> Lists | list[Observation]:
        """What each choice says, of whichever answer it was: as arrays where they are alike."""
        return _read_alike(choices, question) or [_read(choice, question) for choice in choices]

    def draws(self, answer: object, n_prompts: int, question: Question) -> list[list[str]]:
        """The drawn continuations of each prompt: the choices of one prompt stand together."""
        texts = [choice.get("text") for choice in choices_of(answer, n_prompts * question.n_draws)]
        if not all(isinstance(text, str) for text in texts):
            raise BadAnswerError("a choice without text")
        return [texts[start : start + question.n_draws] for start in range(0, len(texts), question.n_draws)]  # type: ignore[misc]


def shared_keys(question: Question) -> dict[str, Any]:
    """The keys that completions and chat spell alike, where the question needs them."""
    body: dict[str, Any] = {}
    if question.temperature is not None:
        body["temperature"] = question.temperature
        if question.n_draws:
            body["top_p"] = 1.0  # some servers take the model's own defaults, which cut the tail off
    if question.bias:
        body["logit_bias"] = {str(token_id): value for token_id, value in question.bias.items()}
    if question.has_bos:
        body["add_special_tokens"] = False
    return body


def read_list(names: list[str], logprobs: list[object], sampled: str | None, question: Question) -> Observation:
    """The observation of a listed distribution whose tokens are named as `question` asked."""
    if question.vocabulary is None:
        return ranked_texts(names, logprobs, sampled, question.n_logprobs)
    ids = token_ids(names)
    if question.wanted:
        return _wanted_only(ids, logprobs, question)
    sampled_id = None
    if sampled is not None:
        sampled_id = ids[names.index(sampled)] if sampled in names else token_ids([sampled])[0]
    return ranked_ids(ids, logprobs, sampled_id, question.n_logprobs, len(question.vocabulary))


def _wanted_only(ids: list[int], logprobs: list[object], question: Question) -> Observation:
    """The wanted ids alone: the server adds the sampled token to them."""
    wanted = set(question.wanted)
    if missing := wanted - set(ids):
        raise BadAnswerError(f"{len(missing)} of the {len(wanted)} wanted token ids are missing")
    chosen = [(token_id, value) for token_id, value in zip(ids, logprobs, strict=True) if token_id in wanted]
    seen = ranked_ids([i for i, _ in chosen], [value for _, value in chosen], None, len(wanted), 2**31)
    return replace(seen, mode=None)


def token_ids(names: Sequence[str]) -> list[int]:
    """The ids in names like `token_id:17`; raises BadAnswerError."""
    return _ids(names).tolist() if names else []


def _ids(names: Sequence[str]) -> NDArray[np.int64]:
    """Joined, because a look at each name by itself would be a third of the client's time."""
    joined = ",".join(names).encode(errors="replace")
    n = len(names)
    if (
        # Beside digits and commas there is nothing but one prefix for each name, and each name begins with it ...
        joined.translate(None, b"0123456789,") != _PREFIX * n
        or not joined.startswith(_PREFIX)
        or not joined.count(b"," + _PREFIX) == joined.count(b",") == n - 1
        # ... and goes on with a digit.
        or b":," in joined
        or joined.endswith(b":")
    ):
        raise BadAnswerError("a token is not named by its id")
    return np.fromstring(joined[len(_PREFIX) :], np.int64, sep="," + TOKEN_ID_PREFIX)


def stated_limit(message: str) -> int | None:
    """The largest number of log-probabilities that a refusal says is allowed (vLLM does), None where it does not say."""
    found = _STATED_LIMIT.search(message)
    return int(found[1]) if found else None


def read_models(answer: object) -> dict[str, str | None]:
    """The name of each served model and what it was loaded from (None where the endpoint does not say)."""
    data = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(data, list):
        raise BadAnswerError("no list of models")
    cards = [card for card in data if isinstance(card, dict) and isinstance(card.get("id"), str)]
    return {card["id"]: card["root"] if isinstance(card.get("root"), str) else None for card in cards}


def read_step(step: object, question: Question) -> Observation:
    """The observation of one generated token as chat completions and responses list it, and llama.cpp in completions too.

    Entries may carry the token's `id` (llama.cpp), which says more than its text: many ids read alike.
    """
    listed = step.get("top_logprobs") if isinstance(step, dict) else None
    if not isinstance(step, dict) or not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        raise BadAnswerError("no log-probabilities")
    logprobs = [entry.get("logprob") for entry in listed]
    sampled = step.get("token")
    ids = [entry.get("id") for entry in listed]
    if question.vocabulary is not None and ids and all(type(token_id) is int for token_id in ids):
        if question.wanted:
            return _wanted_only(ids, logprobs, question)
        return ranked_ids(ids, logprobs, step.get("id"), question.n_logprobs, len(question.vocabulary))
    names = [entry.get("token") for entry in listed]
    if not all(isinstance(name, str) for name in names):
        raise BadAnswerError("a listed token without its text")
    return read_list(names, logprobs, sampled if isinstance(sampled, str) else None, question)


def _read(choice: dict[str, Any], question: Question) -> Observation:
    try:
        return _read_choice(choice, question)
    except BadAnswerError as exc:
        return Observation(error=f"bad answer: {exc}")


def _read_alike(choices: Sequence[dict[str, Any]], question: Question) -> Lists | None:
    """All choices at once, where there are several and each holds as many ids as were asked for, the sampled one first.

    What is read list by list costs four times as much. None where one of them has to be looked at by itself.
    """
    if len(choices) < _MANY or question.vocabulary is None or question.wanted:
        return None
    names: list[str] = []
    values: list[object] = []
    try:
        for choice in choices:
            logprobs = choice["logprobs"]
            listed = logprobs["top_logprobs"][0]
            if len(listed) != question.n_logprobs or logprobs["tokens"][0] != next(iter(listed)):
                return None
            names.extend(listed)
            values.extend(listed.values())
        ids = _ids(names)
    except (AttributeError, BadAnswerError, IndexError, KeyError, StopIteration, TypeError):
        return None
    return ranked_alike(ids, values, len(choices), len(question.vocabulary))


def _read_choice(choice: dict[str, Any], question: Question) -> Observation:
    logprobs = choice.get("logprobs")
    if isinstance(logprobs, dict) and isinstance(content := logprobs.get("content"), list) and content:
        return read_step(content[0], question)
    steps = logprobs.get("top_logprobs") if isinstance(logprobs, dict) else None
    if not isinstance(steps, list) or not steps or not isinstance(steps[0], dict):
        raise BadAnswerError("no log-probabilities")
    listed: dict[str, Any] = steps[0]
    tokens = logprobs.get("tokens") if isinstance(logprobs, dict) else None
    sampled = tokens[0] if isinstance(tokens, list) and tokens and isinstance(tokens[0], str) else None
    return read_list(list(listed), list(listed.values()), sampled, question)
