"""A comparison on the terminal: the sentence, then figures, checks and causes."""

from __future__ import annotations

import sys

from harness.cli.console import print_table
from harness.compare.result import Check, CompareResult, Identity, Noise, ScoreDifference

_SHOWN = 3
"""Prompts named: those that lie farthest apart."""


def show(result: CompareResult) -> None:
    """Everything that decided, on stdout."""
    _line(f"{result.decision}: {result.reason}\n")
    print_table(("", "difference", "interval", "margin", "says"), _rows(result))
    _line("")
    print_table(("check", "A", "B", ""), [_check_row(check) for check in result.checks])
    _line("")
    for cause in result.diagnoses:
        _line(f"fits: {cause.cause} ({cause.evidence})")
    if not result.diagnoses and result.decision != "equivalent":
        _line("causes: nothing found that fits")
    for line in result.unseen:
        _line(f"not seen: {line}")
    if result.identity is not None and result.identity.decision == "different":
        for one in result.prompts[:_SHOWN]:
            _line(f"{one.distance:.2g} apart, {one.top_a!r} at A and {one.top_b!r} at B, after ...{one.prompt[-60:]!r}")
    if result.n_requests:
        _line(f"{result.n_requests:,} requests")


def _rows(result: CompareResult) -> list[tuple[str, ...]]:
    rows = [_score_row(result.score)] if result.score is not None else []
    if result.identity is not None:
        rows += _identity_rows(result.identity)
    rows += [_noise_row(name, own) for name, own in (("A", result.noise_a), ("B", result.noise_b))]
    return rows


def _score_row(score: ScoreDifference) -> tuple[str, ...]:
    name = f"score, {score.metric} of {score.arm} less {score.control}"
    says = score.decision if score.reason is None else f"{score.decision}: {score.reason}"
    return (name, _signed(score.estimate, score.unit), _interval(score.ci_low, score.ci_high), f"{score.margin:g}", says)


def _identity_rows(identity: Identity) -> list[tuple[str, ...]]:
    says = identity.decision if identity.reason is None else f"{identity.decision}: {identity.reason}"
    interval = _interval(identity.ci_low, identity.ci_high)
    margin = f"{identity.margin:.3g} ({identity.margin_from})"
    rows: list[tuple[str, ...]] = [(identity.statistic, _amount(identity.estimate, identity.unit), interval, margin, says)]
    if identity.tv_low is not None and identity.tv_high is not None:
        rows.append(("total variation", f"{identity.tv_low:.3f} to {identity.tv_high:.3f}", "", "", ""))
    if identity.flip_share is not None:
        ties = "" if identity.near_tie_flip_share is None else f", {identity.near_tie_flip_share:.0%} of near ties"
        rows.append(("likeliest token differs", f"{identity.flip_share:.0%}{ties}", "", "", ""))
    return rows


def _noise_row(name: str, noise: Noise) -> tuple[str, ...]:
    if noise.mean is None:
        return (f"noise of {name}", "n/a", "", "", noise.reason or "")
    return (
        f"noise of {name}",
        _amount(noise.mean, "nat"),
        f"at most {noise.highest:.3g}",
        "",
        f"over {noise.n_repeats} repeats",
    )


def _check_row(check: Check) -> tuple[str, ...]:
    says = {"same": "same", "differs": "DIFFERS" if check.weighs else "differs", "unknown": "not known"}[check.agreement]
    return (check.name, check.a, check.b, f"{says}: {check.note}" if check.note and check.agreement == "differs" else says)


def _amount(value: float | None, unit: str) -> str:
    return "n/a" if value is None else f"{value:.3g} {unit}"


def _signed(value: float | None, unit: str) -> str:
    return "n/a" if value is None else f"{value:+.3g} {unit}"


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:.3g} to {high:.3g}"


def _line(text: str) -> None:
    sys.stdout.write(text + "\n")
