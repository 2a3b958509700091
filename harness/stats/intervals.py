"""Intervals and p-values of a mean that is known within bounds only, and the smallest effect that a test can see."""

from __future__ import annotations

from scipy.optimize import brentq
from scipy.special import stdtr, stdtrit


def identified_interval(
    low: float, high: float, se_low: float, se_high: float, df: float, confidence: float = 0.95
) -> tuple[float, float]:
    """(low - c se_low, high + c se_high), which covers a mean between the bounds with `confidence`, wherever it lies there.

    `low` <= `high`: estimates of the two bounds, `se_low`, `se_high` > 0 their standard errors, all in one unit. With F
    Student's t with `df` degrees of freedom, c >= 0 solves

        F(c + (high - low) / max(se_low, se_high)) - F(-c) = confidence

    (Imbens and Manski 2004). Where the bounds meet this is the usual t interval; where they are far apart
    the mean can be near one of them only, and c is the one-sided quantile. Stoye (2009) shows it uniformly
    valid where the estimated bounds cannot cross, as means of trials with low <= high cannot. Our deviation: t in place
    of the normal distribution, for few clusters.
    """
    spread = max(se_low, se_high)
    c = _quantile((high - low) / spread, df, confidence)
    return low - c * se_low, high + c * se_high


def _quantile(width: float, df: float, confidence: float) -> float:
    """c >= 0 with F(c + width) - F(-c) = confidence: between the one-sided quantile and the two-sided one."""
    least, most = max(float(stdtrit(df, confidence)), 0.0), float(stdtrit(df, (1 + confidence) / 2))

    def excess(c: float) -> float:
        return float(stdtr(df, c + width) - stdtr(df, -c) - confidence)

    if excess(most) <= 0:  # no width, to rounding
        return most
    return least if excess(least) >= 0 else float(brentq(excess, least, most, xtol=1e-12))


def identified_p(low: float, high: float, se_low: float, se_high: float, df: float) -> float:
    """Two-sided p of the mean being zero: the smallest alpha whose `identified_interval` leaves zero out.

    With t = low / se_low above zero (-high / se_high below) it is F(-t) + F(-t - (high - low) / max(se_low, se_high)),
    the inversion of Imbens and Manski's interval: the two-sided p of Student's t where the bounds meet, close to the
    one-sided p of the nearer bound where they are far apart, and 1 where zero lies between them.
    """
    nearest = max(low / se_low, -high / se_high)
    if nearest <= 0:
        return 1.0
    return float(stdtr(df, -nearest) + stdtr(df, -nearest - (high - low) / max(se_low, se_high)))


def smallest_effect(se: float, df: float, alpha: float = 0.05, power: float = 0.8) -> float:
    """The effect that a two-sided t test at `alpha` finds with `power`: (t_{1 - alpha/2} + t_{power}) se, in the unit of `se`.

    Miller (2024), section 5, with quantiles of t (`df` degrees of freedom) for those of the normal distribution, so that
    few clusters promise less. The exact answer takes the non-central t; at alpha .05 and power .8 this one delivers .78
    with 3 degrees of freedom and .80 with 5 or more.
    """
    return float(stdtrit(df, 1 - alpha / 2) + stdtrit(df, power)) * se
