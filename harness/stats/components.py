"""Where the spread of differences comes from, and how sure a run of another size would be.

The model of a concept's differences (`crossed.paired_differences`) in sentence s and pair k is

    D_sk = mu + a_s + b_k + e_sk,   mu drawn anew for each concept, all parts independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.stats.crossed import Trials, paired_differences

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Components:
    """Variances, in the squared unit of the differences, none below 0.

    `sentences`, `injections`: of a_s and b_k, within a concept; `rest`: of e_sk, what neither explains; `concepts`: of mu,
    None where only one concept was tried.
    """

    sentences: float
    injections: float
    rest: float
    concepts: float | None = None


class PlannedError(NamedTuple):
    """The standard error of a mean and the degrees of freedom of its t."""

    se: float
    df: int


class PlannedErrors(NamedTuple):
    """Of the mean over concepts (None with one concept, or no estimate of their spread), and of one concept's mean."""

    overall: PlannedError | None
    concept: PlannedError


def differences_for_planning(arm: Trials, control: Trials) -> Trials:
    """D_sk of an arm and its control; where they share no injection, the first of one is paired with the first of the other.

    Pairing what was not matched leaves the components unbiased: the variance of a difference of two independent injections is
    the sum of theirs, whichever they are. It cannot be used for tests.
    """
    if len(np.intersect1d(arm.injections, control.injections)):
        return paired_differences(arm, control)
    return paired_differences(_numbered(arm), _numbered(control))


def _numbered(trials: Trials) -> Trials:
    _, injections = np.unique(trials.injections, return_inverse=True)
    return Trials(low=trials.low, high=trials.high, sentences=trials.sentences, injections=injections)


def components(differences: Sequence[Trials]) -> Components | None:
    """Variance components by the method of moments, from one `Trials` of differences a concept; midpoints of bounds.

    Henderson (1953), method 1, which bears missing cells. With N cells of sum T in a concept, n_s of them of sum T_s in
    sentence s, n_k of sum T_k in pair k, the three quadratic forms

        sum D^2 - T^2/N,   sum_s T_s^2/n_s - T^2/N,   sum_k T_k^2/n_k - T^2/N

    have expectations linear in the three variances; both sides are summed over concepts and solved. In a full table these are
    the estimates from mean squares, (MS_s - MS_e)/K, (MS_k - MS_e)/S and MS_e. The concepts' variance is that of their means
    less what the other parts give a mean, averaged. Our deviation: all are cut at 0, after solving. None where no concept has
    a table that tells the three apart (two sentences, two pairs and three cells at the least).
    """
    tables = [_moments(concept) for concept in differences]
    known = [table for table in tables if table is not None]
    if not known:
        return None
    expected = np.sum([table.expected for table in known], axis=0)
    if np.linalg.matrix_rank(expected) < 3:
        return None
    variances = np.linalg.solve(expected, np.sum([table.forms for table in known], axis=0))
    sentences, injections, rest = (max(float(v), 0.0) for v in variances)
    concepts = None
    if len(known) > 1:
        noise = float(np.mean([table.of_mean @ (sentences, injections, rest) for table in known]))
        concepts = max(float(np.var([table.mean for table in known], ddof=1)) - noise, 0.0)
    return Components(sentences=sentences, injections=injections, rest=rest, concepts=concepts)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Moments:
    """A concept's quadratic forms (3,), their expectations' coefficients (3, 3), its mean and that mean's (3,)."""

    forms: Floats
    expected: Floats
    mean: float
    of_mean: Floats


def _moments(concept: Trials) -> _Moments | None:
    """None where there is no trial, or none with finite bounds."""
    known = concept.complete()
    known = known.take(np.isfinite(known.low) & np.isfinite(known.high))
    n = len(known)
    if not n:
        return None
    values = (known.low + known.high) / 2
    mean = float(values.mean())
    values = values - mean  # the forms do not depend on it, and keep their digits
    _, sentences = np.unique(known.sentences, return_inverse=True)
    _, injections = np.unique(known.injections, return_inverse=True)
    n_s, n_k = np.bincount(sentences), np.bincount(injections)
    forms = [
        values @ values,
        *((np.bincount(by, values) ** 2 / size).sum() for by, size in ((sentences, n_s), (injections, n_k))),
    ]
    # Coefficients of the variances (sentences, injections, rest) in the expectation of each form, and of T^2/N.
    spread_s, spread_k = (1.0 / n_s)[sentences].sum(), (1.0 / n_k)[injections].sum()
    whole = np.array([(n_s**2).sum() / n, (n_k**2).sum() / n, 1.0])
    expected = np.array([[n, n, n], [n, spread_s, spread_s], [spread_k, n, spread_k]], np.float64)
    return _Moments(forms=np.array(forms), expected=expected - whole, mean=mean, of_mean=whole / n)


def planned_se(
    parts: Components, *, concepts: int, sentences: int, injections: int, trials: int | None = None
) -> PlannedErrors:
    """What a run of so many concepts, and sentences and injections (pairs) for each, would have for standard errors.

        one concept:  se^2 = v_sentences / S + v_injections / K + v_rest / trials,   df = min(S, K) - 1
        over all:     se^2 = (v_concepts + that) / C,                                df = C - 1

    (the variance of a mean in the crossed model; df are those of the tests in `harness.stats.crossed`). `trials`: the cells
    tried in a concept, S K unless said otherwise. `intervals.smallest_effect` makes of each the effect that can be seen.
    """
    cells = sentences * injections if trials is None else trials
    variance = parts.sentences / sentences + parts.injections / injections + parts.rest / cells
    one = PlannedError(variance**0.5, min(sentences, injections) - 1)
    if concepts < 2 or parts.concepts is None:
        return PlannedErrors(None, one)
    return PlannedErrors(PlannedError(((parts.concepts + variance) / concepts) ** 0.5, concepts - 1), one)
