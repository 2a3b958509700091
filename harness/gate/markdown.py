"""The gate's result as Markdown, for a pull request's page: the answer first, then the figures, then what moved."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from harness.evals.measures import number
from harness.gate.presentable import DECIMALS, details, interval, title
from harness.gate.result import GateResult, Score

MOST_ROWS = 10
"""Of a table of prompts or failures: a page of a pull request is read, not searched."""

LONGEST = 160
"""Characters of a prompt that are shown."""

_SYNTAX = re.compile(r"[\\`*{}<>&|~$@#]|(?<![^\W_])_|_(?![^\W_])|\](?=[(\[:])|:(?=//)|(?<=www)\.")
"""What Markdown, HTML or GitHub gives a meaning to inside a line: of `_` what is not inside a word, of `]` what could end a
link's text, of `:` and `.` what makes a link of an address."""


def markdown(result: GateResult) -> str:
    """The whole summary; texts from elsewhere cannot change its layout."""
    decided, *further = details(result)
    parts = [f"### {escaped(title(result))}", f"**{escaped(result.reason)}**", escaped(decided)]
    parts.append(_table(("", "run minus baseline", "interval", "pairs", "groups"), _scores(result)))
    parts += [f"- {escaped(line)}" for line in further]
    if result.differences:
        unlike = [(escaped(one.key), _code(one.baseline), _code(one.run)) for one in result.differences]
        parts += ["What is not alike (it decides nothing)", _table(("", "baseline", "run"), unlike)]
    if result.units:
        moved = [
            (
                escaped(one.concept),
                escaped(one.arm),
                _code(one.prompt),
                number(one.baseline, DECIMALS),
                number(one.run, DECIMALS),
            )
            for one in result.units[:MOST_ROWS]
        ]
        parts += ["Prompts that moved most", _table(("concept", "arm", "prompt", "baseline", "run"), moved)]
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """`text`, one line, as literal text in Markdown."""
    return _SYNTAX.sub(lambda found: f"&#{ord(found[0])};", text)


def _code(text: str) -> str:
    """`text` as literal text in a cell, cut where it is long; code, because nothing is looked up in it (names, emoji)."""
    cut = text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
    return f"<code>{escaped(cut)}</code>"


def _scores(result: GateResult) -> Iterable[Sequence[str]]:
    yield _row("**all**", result.score)
    for concept, score in result.concepts.items():
        yield _row(escaped(concept), score)


def _row(name: str, score: Score) -> Sequence[str]:
    shown = number(score.estimate, DECIMALS, signed=True) if score.estimate is not None else escaped(score.reason or "n/a")
    return name, shown, escaped(interval(score).strip()), str(score.n_units), str(score.n_clusters)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
