"""Numbers, names and the run's answer in words, the same on the terminal and on the page.

Owns how a value is rounded; knows no layout. The verdict's sentence comes with the summary. The minus sign is ASCII here.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from harness.evals import verdicts
from harness.evals.measures import ALL, MEASURES, NOT_AVAILABLE, Measure, interval, number

Row = Mapping[str, Any]
"""A cell, a contrast or an estimate of `summary.json`."""


def share(value: float | None) -> str:
    """A probability as a percentage with two significant digits; below a thousandth of a percent only that it is."""
    if value is None:
        return NOT_AVAILABLE
    percent = 100 * value
    if 0 < percent < 0.001:
        return "<0.001%"
    decimals = 0 if percent >= 9.95 or percent == 0 else 1 - math.floor(math.log10(percent))
    return f"{percent:.{min(decimals, 4)}f}%"


def p_value(p: float | None) -> str:
    """Three decimals, `<0.001` below them."""
    if p is None:
        return NOT_AVAILABLE
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def estimate(row: Row, measure: Measure, *, signed: bool = True) -> str:
    """The estimate of a row in the measure's scale, without its unit."""
    value = row["estimate"]
    return number(None if value is None else value * measure.scale, measure.decimals, signed=signed)


def concepts_of(summary: Row) -> list[str]:
    """The concepts that have a cell, in the run's order."""
    return list(dict.fromkeys(cell["concept"] for cell in summary["cells"] if cell["concept"] != ALL))


def scope(summary: Row) -> str:
    """The concept under which the headline results stand: all, or the run's only one, which then speaks for itself."""
    concepts = concepts_of(summary)
    return concepts[0] if len(concepts) == 1 else ALL


def primary_rows(summary: Row) -> list[Row]:
    """The primary contrast's row of each concept, then the one over all if there are several; none without a primary."""
    return [row for row in verdicts.primary_rows(summary) if scope(summary) in (ALL, row["concept"])]


def headline(summary: Row) -> Row | None:
    """The primary contrast's row that the answer is read from, None where there is none."""
    return next((row for row in primary_rows(summary) if row["concept"] == scope(summary)), None)


def verdict_word(row: Row, summary: Row) -> str:
    """A row's verdict in a word; one that a failed check took away is `withheld`."""
    if summary["verdict"]["withheld"] is not None and row["estimate"] is not None:
        return "withheld"
    return str(row["verdict"])


def calibration_lines(summary: Row) -> list[str]:
    """A line for each calibration check: what must or must not be found, and whether it was."""
    return [_check_line(check, summary) for check in summary["verdict"]["calibration"]]


def _check_line(check: Row, summary: Row) -> str:
    wanted = {"detected": "must be found", "silent": "must not be found"}[check["check"]]
    if check["arm"] is None:
        return f"check, what {wanted}: not possible: {check['reason']}"
    line = f"check, what {wanted}: {check['arm']} - {check['control']}"
    if check["status"] == "not possible":
        return f"{line}: not possible: {check['reason']}"
    measure = MEASURES[summary["primary"]["metric"]]
    counted = f"found in {check['n_found']} of {check['n_concepts']} concepts"
    chance = f" ({share(summary['verdict']['alpha'])} by chance)" if check["check"] == "silent" else ""
    shown = f"{estimate(check, measure)} {measure.difference} {interval(check, measure)}"
    return visible(f"{line}: {check['status']}: {shown}, {counted}{chance}")


def prediction_line(summary: Row) -> str | None:
    """Whether the sources' predictions rank the injections, all of them and those of one arm; None without predictions."""
    prediction = summary["prediction"]
    if prediction["spearman"] is None:
        return None
    parts = [
        f"over all arms {_rank(prediction)}",
        *(f"within {arm} {_rank(part)}" for arm, part in prediction["within"].items()),
    ]
    return visible(f"predictions of the sources against what was seen, rank correlation: {'; '.join(parts)}")


def _rank(part: Row) -> str:
    if part["spearman"] is None:
        return f"{NOT_AVAILABLE} ({part['reason']})"
    alone = number(part["spearman"], 2, signed=True)
    if part["partial"] is None:
        return f"{alone}, p {p_value(part['p'])}"
    beyond = f"{number(part['partial'], 2, signed=True)}, p {p_value(part['partial_p'])}"
    return f"{alone}, beyond concept, length, frequency and form {beyond}"


def source_line(summary: Row) -> str | None:
    """That nothing is transferred where the target is one of the models that the pack was made from."""
    if not summary["verdict"]["target_is_source"]:
        return None
    return f"{visible(summary['target'])} is a source of the pack: what holds on it holds where it was looked for"


def sight_line(summary: Row) -> str | None:
    """The smallest shift that the run could have seen, beside the one that would matter; None where neither is known."""
    verdict = summary["verdict"]
    if verdict["mde"] is None or verdict["margin"] is None:
        return None
    measure = MEASURES[summary["primary"]["metric"]]
    seen, margin = (number(verdict[key] * measure.scale, measure.decimals) for key in ("mde", "margin"))
    line = f"this run could have seen {seen} {measure.difference} with {share(verdict['power'])} power; {margin} would matter"
    return line if verdict["n_targets"] == 1 else f"{line}; p is corrected for {verdict['n_targets']} targets"


_MODES = {
    "exact": "the probability of the concept's words itself was seen",
    "topk": "the likeliest tokens were listed, which leaves the rest within bounds",
    "amplified": "continuations were drawn with the logits of the concept's words raised by a known bias",
    "sampled": "continuations were drawn, no log-probabilities were seen",
}


def mode_line(summary: Row) -> str:
    """How the target was observed, and how many shifts that decides."""
    modes: Mapping[str, str] = summary["modes"]
    if summary["mode"] in _MODES:
        line = f"mode {summary['mode']}: {_MODES[summary['mode']]}"
    else:
        counts = {mode: sum(one == mode for one in modes.values()) for mode in _MODES}
        line = "modes differ: " + ", ".join(f"{mode} on {n} concepts" for mode, n in counts.items() if n)
    cells = [c for c in summary["cells"] if c["concept"] == scope(summary) and not c["off_type"]]
    answered = sum(c["n_trials"] - c["n_failed"] for c in cells)
    if summary["mode"] == "exact" or not answered:
        return line
    up, down = (sum(c[name] for c in cells) for name in ("n_up", "n_down"))
    at = " at 95%" if any(mode in ("amplified", "sampled") for mode in modes.values()) else ""
    return f"{line}; identified{at}: {100 * up / answered:.0f}% of shifts up, {100 * down / answered:.0f}% down"


_NAMED = {"\n": "↵", "\r": "␍", "\t": "⇥"}
_UNSEEN_CATEGORIES = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
# Letters, marks and symbols that show nothing: joiners, Hangul fillers, Khmer and Mongolian signs, variation selectors, blank.
_UNSEEN = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
_MAX_MARKS = 3
"""Combining marks on one letter that are shown: more than any orthography needs would paint over the lines around."""


def visible(text: str) -> str:
    """`text` with whatever would not be seen or would reorder its neighbours written out: newline as ↵, U+202E as \\u{202e}."""
    shown: list[str] = []
    marks = 0
    for char in text:
        category = unicodedata.category(char)
        marks = marks + 1 if category in ("Mn", "Me") else 0
        if marks and not shown:
            shown.append("◌")  # else it would sit on whatever stands before the text
        if char in _NAMED:
            shown.append(_NAMED[char])
        elif category in _UNSEEN_CATEGORIES or (category == "Zs" and char != " ") or _UNSEEN.match(char) or marks > _MAX_MARKS:
            shown.append(f"\\u{{{ord(char):x}}}")
        else:
            shown.append(char)
    return "".join(shown)
