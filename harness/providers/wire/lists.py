"""A list of log-probabilities as an answer holds it, made into an observation. Refuses what is no part of a distribution."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from harness.providers.wire.base import BadAnswerError
from harness.records import Float32s, Int32s, Lists, Mode, Observation

_FLOOR = -9999.0
"""vLLM writes this for minus infinity; other servers write the smallest float. Neither is taken for a probability of zero, also
where the id was asked for by name: no model gives a token of its own vocabulary none, so a sampler has cut it off, and what is
listed is no longer the model's distribution."""

_SLACK = 1e-3
"""How far rounding may lift a probability, or the sum of a list, above one."""

_FROM_START = np.zeros(1, np.intp)


def ranked_ids(
    ids: Sequence[int], logprobs: Iterable[object], sampled: int | None, n_logprobs: int, n_vocab: int
) -> Observation:
    """The observation of a list of token ids; raises BadAnswerError where the list is no part of a distribution."""
    raw = list(logprobs)
    n = len(raw)
    # Nearly every list comes ranked, with no token appended: then there is little to do.
    plain = n == len(ids) and 0 < n <= n_logprobs and (n == 1 or sampled != ids[-1]) and set(map(type, raw)) == {float}
    if plain and min(raw) > _FLOOR and max(raw) <= 0.0:  # type: ignore[type-var, operator]
        values = np.array(raw, np.float32)
        plain = bool((values[1:] < values[:-1]).all())  # False if one is NaN
    else:
        plain, values = False, checked(raw)
    if len(ids) != n:
        raise BadAnswerError(f"{n} log-probabilities for {len(ids)} tokens")
    if len(set(ids)) != n:
        raise BadAnswerError("a token id is listed twice")
    if not 0 <= min(ids) <= max(ids) < 2**31:
        raise BadAnswerError("a token id is out of range")
    array = np.array(ids, np.int32)
    if not plain:
        values = checked(raw)
        order = np.lexsort((array, -values))
        order = order[_in_top_k(values[order], array[order] == (-1 if sampled is None else sampled), n_logprobs)]
        values, array = values[order], array[order]
    return _observation(values, (), array, Mode.EXACT if len(array) >= n_vocab else Mode.TOPK)


def ranked_alike(ids: NDArray[np.int64], logprobs: Sequence[object], n_lists: int, n_vocab: int) -> Lists | None:
    """What `ranked_ids` makes of each of `n_lists` lists of one length that stand one after the other, all at once.

    None where one of them is not ranked as it should be, or no part of a distribution, and so has to be looked at by itself.
    """
    if set(map(type, logprobs)) != {float} or len(logprobs) != len(ids):
        return None
    raw = np.array(logprobs, np.float64)
    if not (raw.min() > _FLOOR and raw.max() <= 0.0 and ids.min() >= 0 and ids.max() < 2**31):
        return None
    values = raw.astype(np.float32).reshape(n_lists, -1)
    by_id = np.sort(ids.reshape(n_lists, -1), axis=1)
    if not ((values[:, 1:] < values[:, :-1]).all() and (by_id[:, 1:] > by_id[:, :-1]).all()):
        return None
    length = values.shape[1]
    covered = _sums(values.reshape(-1), np.arange(0, len(raw), length))
    if covered.max() > 1 + _SLACK:
        return None
    return Lists(
        token_ids=ids.astype(np.int32).reshape(n_lists, -1),
        logprobs=values,
        covered_mass=np.minimum(covered, 1.0).tolist(),
        mode=Mode.EXACT if length >= n_vocab else Mode.TOPK,
        attempts=[1] * n_lists,
        latency_s=[0.0] * n_lists,
    )


def ranked_texts(listed: Sequence[str], logprobs: Iterable[object], sampled: str | None, n_logprobs: int) -> Observation:
    """The observation of a list of token texts. Tokens that read alike become one, with the sum of their probabilities."""
    values = checked(logprobs)
    # Half of a pair of surrogates, which JSON can say and no file can hold, is the replacement mark.
    texts = tuple(
        text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in listed
    )
    if len(texts) != len(values):
        raise BadAnswerError(f"{len(values)} log-probabilities for {len(texts)} tokens")
    if len(set(texts)) != len(texts):
        merged: dict[str, float] = {}
        for text, value in zip(texts, values.tolist(), strict=True):
            merged[text] = float(np.logaddexp(merged[text], value)) if text in merged else value
        texts, values = tuple(merged), np.asarray(list(merged.values()), np.float32)
    order = np.asarray(sorted(range(len(texts)), key=lambda i: (-values[i], texts[i])))
    order = order[_in_top_k(values[order], np.asarray([texts[i] == sampled for i in order]), n_logprobs)]
    return _observation(values[order], tuple(texts[i] for i in order), None, Mode.TOPK)


def checked(logprobs: Iterable[object]) -> Float32s:
    """The log-probabilities as they came; raises BadAnswerError for what is none."""
    raw = list(logprobs)
    if not raw:
        raise BadAnswerError("an empty list of log-probabilities")
    if not set(map(type, raw)) <= {float, int}:
        raise BadAnswerError("a log-probability is no number")
    try:
        values = np.array(raw, np.float64)
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
    covered = float(_sums(logprobs, _FROM_START)[0])
    if covered > 1 + _SLACK:
        raise BadAnswerError(f"the listed probabilities sum to {covered:.4f}")
    return Observation(token_ids=ids, tokens=tokens, logprobs=logprobs, covered_mass=min(covered, 1.0), mode=mode)


def _sums(logprobs: Float32s, starts: NDArray[np.intp]) -> NDArray[np.float64]:
    """The probability of each list from its start to the next one's, to the last bit the same whatever stands beside it."""
    sums: NDArray[np.float64] = np.add.reduceat(np.exp(logprobs.astype(np.float64)), starts)
    return sums
