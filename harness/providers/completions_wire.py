"""The completions wire format: prompts to request bodies, answers to observations. Pure: no I/O and no clock."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.providers.vocabulary import Vocabulary
from harness.records import Float32s, Int32s, Mode, Observation

TOKEN_ID_PREFIX = "token_id:"

_FLOOR = -9999.0
"""vLLM writes this for minus infinity; other servers write the smallest float. Neither is a probability."""

_SLACK = 1e-3
"""How far rounding may lift a probability, or the sum of a list, above one."""

_TOKEN_ID_NAMES = re.compile(rf"{TOKEN_ID_PREFIX}[0-9]{{1,12}}(?:,{TOKEN_ID_PREFIX}[0-9]{{1,12}})*")
_STATED_LIMIT = re.compile(r"max(?:imum)? allowed:?\s*(\d+)", re.IGNORECASE)


class BadAnswerError(Exception):
    """An answer that does not say what was asked."""


def completion_request(
    model: str,
    prompts: Sequence[str | Sequence[int]],
    n_logprobs: int,
    *,
    token_id_keys: bool = False,
    has_bos: bool = False,
) -> dict[str, Any]:
    """The body that asks for the next-token distribution of each prompt (texts or token ids, not both).

    `token_id_keys`: name the listed tokens by id. `has_bos`: the texts hold their BOS, so the server must not add one.
    """
    body: dict[str, Any] = {
        "model": model,
        # A lone prompt goes bare: endpoints that refuse lists of prompts take it too.
        "prompt": prompts[0] if len(prompts) == 1 else list(prompts),
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": n_logprobs,
    }
    if token_id_keys:
        body["return_tokens_as_token_ids"] = True
    if has_bos:
        body["add_special_tokens"] = False
    return body


def read_completion(answer: object, n_prompts: int, n_logprobs: int, vocabulary: Vocabulary | None) -> list[Observation]:
    """One observation for each prompt of the request, in order.

    With a `vocabulary` the answer must name tokens by id, without one they are texts. A choice that cannot be used becomes
    an observation with `error`; raises BadAnswerError where the choices cannot be told apart.
    """
    observations = []
    for choice in _choices(answer, n_prompts):
        try:
            observations.append(_read_choice(choice, n_logprobs, vocabulary))
        except BadAnswerError as exc:
            observations.append(Observation(error=f"bad answer: {exc}"))
    return observations


def ranked_ids(
    ids: Sequence[int], logprobs: Iterable[object], sampled: int | None, n_logprobs: int, n_vocab: int
) -> Observation:
    """The observation of a list of token ids; raises BadAnswerError where the list is no part of a distribution."""
    values = _checked(logprobs)
    if len(ids) != len(values):
        raise BadAnswerError(f"{len(values)} log-probabilities for {len(ids)} tokens")
    if len(set(ids)) != len(ids):
        raise BadAnswerError("a token id is listed twice")
    if ids and not 0 <= min(ids) <= max(ids) < 2**31:
        raise BadAnswerError("a token id is out of range")
    array = np.asarray(ids, np.int32)
    order = np.lexsort((array, -values))
    order = order[_in_top_k(values[order], array[order] == (-1 if sampled is None else sampled), n_logprobs)]
    kept = array[order]
    return _observation(values[order], (), kept, Mode.EXACT if len(kept) >= n_vocab else Mode.TOPK)


def read_models(answer: object) -> dict[str, str | None]:
    """The name of each served model and what it was loaded from (None where the endpoint does not say)."""
    data = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(data, list):
        raise BadAnswerError("no list of models")
    cards = [card for card in data if isinstance(card, dict) and isinstance(card.get("id"), str)]
    return {card["id"]: card["root"] if isinstance(card.get("root"), str) else None for card in cards}


def read_text(answer: object, key: str) -> str | None:
    """The text under `key` of an answer, None where there is none."""
    value = answer.get(key) if isinstance(answer, dict) else None
    return value if isinstance(value, str) else None


def stated_limit(message: str) -> int | None:
    """The largest number of log-probabilities that a refusal says is allowed (vLLM does), None where it does not say."""
    found = _STATED_LIMIT.search(message)
    return int(found[1]) if found else None


def _choices(answer: object, n_prompts: int) -> list[dict[str, Any]]:
    """The choices in the order of the prompts."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise BadAnswerError("no list of choices")
    if len(choices) != n_prompts:
        raise BadAnswerError(f"{len(choices)} choices for {n_prompts} prompts")
    if n_prompts == 1:
        return choices
    by_index = {choice["index"]: choice for choice in choices if isinstance(choice.get("index"), int)}
    if by_index.keys() != set(range(n_prompts)):
        raise BadAnswerError(f"the choices are not numbered 0 to {n_prompts - 1}")
    return [by_index[index] for index in range(n_prompts)]


def _read_choice(choice: dict[str, Any], n_logprobs: int, vocabulary: Vocabulary | None) -> Observation:
    logprobs = choice.get("logprobs")
    steps = logprobs.get("top_logprobs") if isinstance(logprobs, dict) else None
    if not isinstance(steps, list) or not steps or not isinstance(steps[0], dict):
        raise BadAnswerError("no log-probabilities")
    listed: dict[str, Any] = steps[0]
    tokens = logprobs.get("tokens") if isinstance(logprobs, dict) else None
    sampled = tokens[0] if isinstance(tokens, list) and tokens and isinstance(tokens[0], str) else None
    if vocabulary is None:
        return _ranked_texts(listed, sampled, n_logprobs)
    sampled_id = None if sampled is None else _token_ids([sampled])[0]
    return ranked_ids(_token_ids(list(listed)), listed.values(), sampled_id, n_logprobs, len(vocabulary))


def _token_ids(names: list[str]) -> list[int]:
    """The ids in names like `token_id:17`. Joined, because a call for each token is a third of the client's time."""
    joined = ",".join(names)
    if names and not _TOKEN_ID_NAMES.fullmatch(joined):
        raise BadAnswerError("a token is not named by its id")
    return [int(digits) for digits in joined.replace(TOKEN_ID_PREFIX, "").split(",") if digits]


def _ranked_texts(listed: dict[str, Any], sampled: str | None, n_logprobs: int) -> Observation:
    """The observation of a list of token texts. Ids that decode alike share one entry, the server's last."""
    values = _checked(listed.values())
    texts = tuple(listed)
    order = np.asarray(sorted(range(len(texts)), key=lambda i: (-values[i], texts[i])))
    order = order[_in_top_k(values[order], np.asarray([texts[i] == sampled for i in order]), n_logprobs)]
    return _observation(values[order], tuple(texts[i] for i in order), None, Mode.TOPK)


def _checked(logprobs: Iterable[object]) -> Float32s:
    """The log-probabilities as they came; raises BadAnswerError for what is none."""
    raw = list(logprobs)
    if not raw:
        raise BadAnswerError("an empty list of log-probabilities")
    if not set(map(type, raw)) <= {float, int}:
        raise BadAnswerError("a log-probability is no number")
    try:
        values = np.asarray(raw, np.float64)
    except OverflowError as exc:
        raise BadAnswerError("a log-probability is not finite") from exc
    lowest, highest = float(values.min()), float(values.max())  # NaN if any is
    if not math.isfinite(lowest + highest):
        raise BadAnswerError("a log-probability is not finite")
    if lowest <= _FLOOR:
        raise BadAnswerError(f"a log-probability is a stand-in for minus infinity ({lowest:g})")
    if highest > _SLACK:
        raise BadAnswerError(f"a log-probability is positive ({highest:g})")
    return np.minimum(values, 0.0).astype(np.float32)


def _in_top_k(ordered: Float32s, is_sampled: NDArray[np.bool_], n_logprobs: int) -> NDArray[np.intp]:
    """The positions of those ranked entries that count as the top k.

    Servers append the sampled token when it is outside the top k. Such a token is the lowest of its list; kept, it would
    make the smallest listed probability too small and the bounds of unlisted tokens wrong. Where it was inside after all,
    leaving it out only widens them.
    """
    appended = is_sampled & (ordered == ordered[-1]) & (ordered < ordered[0])
    return np.flatnonzero(~appended)[:n_logprobs]


def _observation(logprobs: Float32s, tokens: tuple[str, ...], ids: Int32s | None, mode: Mode) -> Observation:
    covered = float(np.exp(logprobs.astype(np.float64)).sum())
    if covered > 1 + _SLACK:
        raise BadAnswerError(f"the listed probabilities sum to {covered:.4f}")
    return Observation(token_ids=ids, tokens=tokens, logprobs=logprobs, covered_mass=min(covered, 1.0), mode=mode)
