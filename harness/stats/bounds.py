"""What a truncated list of log-probabilities says and does not say: sharp bounds of masses, shifts and total variation.

Throughout, a list holds the likeliest tokens of one distribution with their exact probabilities. What is left,
r = 1 - (sum of the listed), lies on unlisted tokens, none of them above tau, the smallest listed probability. A token
that a server appends to its list from outside the top k (the sampled one) must be taken off first: it would make tau too
small. Bounds hold to the rounding of the log-probabilities.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logit

Floats = NDArray[np.float64]
Ints = NDArray[np.integer]

_BLOCK_ENTRIES = 1 << 18
"""Listed tokens that `tv_bounds` works on at a time, so that its temporaries stay in a few tens of MB."""


def mass_bounds(
    listed_mass: ArrayLike,
    n_unlisted_members: ArrayLike | None,
    covered: ArrayLike,
    smallest_listed: ArrayLike,
    n_vocab: int | None = None,
    n_listed: ArrayLike = 0,
) -> tuple[Floats, Floats]:
    """Sharp (low, high) of the mass of a set A of tokens, given a top-k list; scalars or arrays that broadcast.

        low  = m + max(0, r - w tau)        high = m + min(r, u tau)

    m: `listed_mass`, the mass of A's listed tokens; r = 1 - `covered`; tau: `smallest_listed`; u: `n_unlisted_members`,
    how many of A's tokens are not listed; w = `n_vocab` - `n_listed` - u, the unlisted tokens outside A.
    Where the vocabulary is not known, u and `n_vocab` are None: then high = m + r and low = m. Leaving out `n_listed`
    makes low slightly too low, never too high. NaN in, NaN out.
    """
    m = np.asarray(listed_mass, np.float64)
    tau = np.asarray(smallest_listed, np.float64)
    rest = np.maximum(1.0 - np.asarray(covered, np.float64), 0.0)
    room = rest if n_unlisted_members is None else np.minimum(rest, np.asarray(n_unlisted_members) * tau)
    forced = np.zeros_like(rest)
    if n_vocab is not None and n_unlisted_members is not None:
        n_others = n_vocab - np.asarray(n_listed) - np.asarray(n_unlisted_members)
        forced = np.maximum(rest - n_others * tau, 0.0)
    high = np.clip(m + room, 0.0, 1.0)
    # A list of the whole vocabulary leaves a rest of rounding errors that no token can take.
    return np.minimum(np.clip(m + forced, 0.0, 1.0), high), high


def tv_bounds(ids_p: Ints, logp: NDArray[np.floating], ids_q: Ints, logq: NDArray[np.floating]) -> tuple[Floats, Floats]:
    """Sharp (low, high), each (B,), of the total variation between P and Q, row by row, from their top-k lists.

    `ids_p`, `logp`: (B, n) token ids, distinct within a row, and log-probabilities in nats, in any order; `ids_q`,
    `logq`: (B, m). Shorter lists are padded with id -1, and the log-probability beside it is not read. A row in which
    either list is empty gives NaN. With C the tokens listed in both, Omega their sum of min(p, q), and

        a = min(r_Q, sum over P's other tokens of min(p, tau_Q))      (overlap that may hide in Q's tail)
        b = min(r_P, sum over Q's other tokens of min(q, tau_P))      (overlap that may hide in P's tail)

        low = 1 - Omega - a - b - min(r_P - b, r_Q - a)     high = 1 - Omega

    Both ends are attained where enough tokens are unlisted in both (any real vocabulary); in a smaller one they still
    hold.
    """
    n_rows = len(ids_p)
    low, high = np.empty(n_rows), np.empty(n_rows)
    step = max(1, _BLOCK_ENTRIES // max(1, ids_p.shape[1] + ids_q.shape[1]))
    for start in range(0, n_rows, step):
        rows = slice(start, start + step)
        low[rows], high[rows] = _tv_block(ids_p[rows], logp[rows], ids_q[rows], logq[rows])
    return low, high


def _tv_block(ids_p: Ints, logp: NDArray[np.floating], ids_q: Ints, logq: NDArray[np.floating]) -> tuple[Floats, Floats]:
    """`tv_bounds` of a block of rows."""
    prob_p, rest_p, tau_p = _list_parts(ids_p, logp)
    prob_q, rest_q, tau_q = _list_parts(ids_q, logq)
    n_p, n_both = ids_p.shape[1], ids_p.shape[1] + ids_q.shape[1]
    # One sort finds the common ids: the column rides in the low bits of its id, and equal ids end up side by side.
    shift = n_both.bit_length()
    columns = np.arange(n_both, dtype=np.int64)
    keys = np.concatenate((ids_p, ids_q), axis=1).astype(np.int64) << shift | columns  # (rows, n_both)
    keys.sort(axis=1)
    order = keys & ((1 << shift) - 1)
    prob = np.take_along_axis(np.concatenate((prob_p, prob_q), axis=1), order, axis=1)
    twins = (keys[:, 1:] >> shift) == (keys[:, :-1] >> shift)
    overlap = np.minimum(prob[:, 1:], prob[:, :-1]).sum(axis=1, where=twins)

    alone = np.ones(prob.shape, np.bool_)
    alone[:, 1:] &= ~twins
    alone[:, :-1] &= ~twins
    from_p = order < n_p
    hidden = np.minimum(prob, np.where(from_p, tau_q[:, None], tau_p[:, None]))
    a = np.minimum(rest_q, hidden.sum(axis=1, where=alone & from_p))
    b = np.minimum(rest_p, hidden.sum(axis=1, where=alone & ~from_p))
    high = np.where(np.isnan(rest_p + rest_q), np.nan, 1.0 - overlap)
    low = high - a - b - np.minimum(rest_p - b, rest_q - a)
    return np.clip(low, 0.0, 1.0), np.clip(high, 0.0, 1.0)


def _list_parts(ids: Ints, logprobs: NDArray[np.floating]) -> tuple[Floats, Floats, Floats]:
    """Probabilities (rows, n), 0 at padding; r (rows,) and tau (rows,), NaN where the list is empty."""
    listed = ids >= 0
    prob = np.exp(np.where(listed, logprobs, -np.inf), dtype=np.float64)
    nothing = ~listed.any(axis=1)
    rest = np.where(nothing, np.nan, np.maximum(1.0 - prob.sum(axis=1), 0.0))
    tau = np.where(nothing, np.nan, prob.min(axis=1, where=listed, initial=np.inf))
    return prob, rest, tau


def difference_bounds(low1: ArrayLike, high1: ArrayLike, low0: ArrayLike, high0: ArrayLike) -> tuple[Floats, Floats]:
    """Sharp (low, high) of x1 - x0 for x1 in [low1, high1] and x0 in [low0, high0]: (low1 - high0, high1 - low0).

    Where both ends are the same infinity (log-odds of two masses of zero) nothing is known: -inf below, inf above.
    """
    return _subtract(low1, high0, unknown=-np.inf), _subtract(high1, low0, unknown=np.inf)


def _subtract(x: ArrayLike, y: ArrayLike, *, unknown: float) -> Floats:
    """x - y, and `unknown` where it is inf - inf."""
    left, right = np.asarray(x, np.float64), np.asarray(y, np.float64)
    with np.errstate(invalid="ignore"):
        difference = left - right
    return np.where(np.isinf(left) & (left == right), unknown, difference)


def log_odds(p: ArrayLike) -> Floats:
    """log(p / (1 - p)) in nats: -inf at 0, inf at 1, NaN outside [0, 1].

    Increasing in p, so that the log-odds of a mass's bounds bound its log-odds.
    """
    odds: Floats = logit(np.asarray(p, np.float64))
    return odds
