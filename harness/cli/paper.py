"""`harness paper`: the published tables beside runs of ours, and what either says of concepts in general."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from harness.cli.console import print_json, print_table
from harness.errors import UsageError
from harness.evals.measures import number
from harness.reports.paper import SETS, SOURCE, Column, Comparison, Rate, compare, of_run, published, sentence
from harness.reports.reading import read_run
from harness.reports.wording import p_value


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperOptions:
    """The options of `harness paper`."""

    json: Annotated[bool, Parameter(negative="", show_default=False, help="Print everything as one JSON document")] = False
    markdown: Annotated[bool, Parameter(negative="", show_default=False, help="Print the tables as Markdown")] = False


DEFAULTS = PaperOptions()


def paper(
    runs: Annotated[tuple[Path, ...], Parameter(help="Finished run, by folder; repeat for several")] = (),
    /,
    *,
    options: Annotated[PaperOptions, Parameter(name="*")] = DEFAULTS,
) -> int:
    """Print Tables 1 and 5 of the paper beside finished runs, with honest tests next to the published stars.

    Count success in percent, by concept and set of injected strings: the paper's with its stars, ours with 95% intervals.
    """
    if options.json and options.markdown:
        raise UsageError("--json and --markdown: one of them")
    columns = [*published(), *(of_run(read_run(folder)) for folder in runs)]
    comparisons = compare(columns)
    if options.json:
        print_json(_record(columns, comparisons))
        return 0
    show = _print_markdown if options.markdown else _print_titled
    show(f"count success %: {SOURCE}, as printed{'; ours with 95% intervals' if runs else ''}", *_rates(columns))
    show("high less each control, in points, one difference a concept", *_tests(comparisons))
    sys.stdout.write("".join(f"{'- ' if options.markdown else ''}{sentence(one)}\n" for one in comparisons))
    return 0


def _rates(columns: Sequence[Column]) -> tuple[list[str], list[list[str]]]:
    """(headers, rows) in the paper's layout: sets within concepts, a column a target."""
    concepts = dict.fromkeys(concept for column in columns for concept in column.concepts)
    rows = [
        [concept if name == next(iter(SETS)) else "", name, *(_rate(column.rates.get((concept, name))) for column in columns)]
        for concept in concepts
        for name in SETS
    ]
    return ["concept", "set", *(_name(column) for column in columns)], rows


def _name(column: Column | Comparison) -> str:
    return f"{column.target} ({column.run})" if column.run else column.target


def _rate(rate: Rate | None) -> str:
    if rate is None:
        return ""
    if rate.ci_low is None or rate.ci_high is None:
        return f"{rate.percent:.2f}{rate.stars}"
    return f"{rate.percent:.1f} [{rate.ci_low:.1f}, {rate.ci_high:.1f}]"


def _tests(comparisons: Sequence[Comparison]) -> tuple[list[str], list[list[str]]]:
    """(headers, rows) of the tests over concepts, a control after the other."""
    headers = ["target", "contrast", "concepts", "mean", "95% interval", "p", "p (Holm)", "p (sign flips)", "starred"]
    return headers, [
        [
            _name(one),
            f"high - {one.control}",
            str(one.n_concepts),
            number(one.estimate, 2, signed=True),
            "" if one.ci_low is None else f"[{number(one.ci_low, 2)}, {number(one.ci_high, 2)}]",
            p_value(one.p),
            "" if one.p_holm is None else p_value(one.p_holm),
            p_value(one.p_flip),
            "" if one.n_starred is None else f"{one.n_starred} up, {one.n_below} down unmarked",
        ]
        for one in comparisons
    ]


def _print_titled(title: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    sys.stdout.write(f"{title}\n")
    print_table(headers, rows)
    sys.stdout.write("\n")


def _print_markdown(title: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    lines = [f"**{title}**", "", _line(headers), _line(["---"] * len(headers)), *map(_line, rows), "", ""]
    sys.stdout.write("\n".join(lines))


def _line(cells: Sequence[str]) -> str:
    escaped = [cell.replace("|", r"\|").replace("*", r"\*") for cell in cells]
    return f"| {' | '.join(escaped)} |"


def _record(columns: Sequence[Column], comparisons: Sequence[Comparison]) -> dict[str, Any]:
    rates = [
        {"target": column.target, "run": column.run, "concept": concept, "set": name, **asdict(rate)}
        for column in columns
        for (concept, name), rate in column.rates.items()
    ]
    tests = [{**asdict(one), "sentence": sentence(one)} for one in comparisons]
    return {"source": SOURCE, "rates": rates, "tests": tests}
