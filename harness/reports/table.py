"""The run's result on the terminal: the arms, the primary contrast concept by concept, and the answer in one line."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.evals.measures import ALL, MEASURES, interval
from harness.reports.wording import (
    Row,
    calibration_lines,
    concepts_of,
    estimate,
    mode_line,
    p_value,
    prediction_line,
    primary_rows,
    scope,
    sight_line,
    source_line,
    verdict_word,
    visible,
)

MAX_NAME = 24
UNLIMITED = 10_000
"""A width, in characters, at which no table is squeezed."""

ARM_METRICS = ("count_success", "mass_success", "delta_log_odds")


def print_summary(summary: dict[str, Any], console: Console, *, claims: str = "") -> None:
    """Print `summary` (as in `summary.json`) to `console`; `claims`: what the pack says that its probes show."""
    place = scope(summary)
    over = f"over {len(concepts_of(summary))} concepts" if place == ALL else f"on {visible(place)} alone"
    cells = [cell for cell in summary["cells"] if cell["concept"] == place]
    for off_type in (False, True):
        rows = [cell for cell in cells if cell["off_type"] == off_type]
        if rows:
            kind = " (off-type sentences)" if off_type else ""
            table = _arms(rows)
            if console.measure(table, options=console.options.update(width=UNLIMITED)).maximum > console.width:
                table = _arms(rows, interval_below=True)
            _print(console, f"{visible(summary['target'])}: arms {over}{kind}, with 95% intervals", table)
    contrast = primary_rows(summary)
    if contrast:
        measure = MEASURES[contrast[0]["metric"]]
        title = f"{contrast[0]['arm']} - {contrast[0]['control']}: {measure.name} in {measure.difference}, by concept"
        _print(console, visible(title), _contrast(contrast, summary))
    for reason, names in _missing(cells, contrast).items():
        console.print(Text(f"n/a for {', '.join(names)}: {reason}"))
    failed, trials = (sum(cell[key] for cell in cells) for key in ("n_failed", "n_trials"))
    if failed:
        console.print(Text(f"failed: {failed:,} of {trials:,} trials, left out"))
    console.print(Text(mode_line(summary)))
    if claims:
        console.print(Text(f"the pack claims {visible(claims)}"))
    for line in (source_line(summary), prediction_line(summary), *calibration_lines(summary), sight_line(summary)):
        if line is not None:
            console.print(Text(line))
    console.print(Text(visible(summary["verdict"]["sentence"]), style="bold"))


def _print(console: Console, title: str, table: Table) -> None:
    console.print(Text(title, style="bold"))
    console.print(table)
    console.print()


def _table(*headers: str) -> Table:
    """A table whose first column is text and whose other columns are numbers that never wrap."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column(headers[0], overflow="ellipsis", no_wrap=True, max_width=MAX_NAME)
    for header in headers[1:]:
        table.add_column(header, justify="right", no_wrap=True, min_width=len(header))
    return table


def _arms(cells: list[Row], *, interval_below: bool = False) -> Table:
    """An arm a row; `interval_below` puts each interval under its estimate, for a narrow console."""
    table = _table("arm", "trials", "count success %", "mass success %", "log-odds shift, nat")
    for cell in cells:
        shown = []
        for metric in ARM_METRICS:
            measure = MEASURES[metric]
            parts = [estimate(cell[metric], measure, signed=measure.unit != "%"), interval(cell[metric], measure)]
            shown.append(("\n" if interval_below else " ").join(part for part in parts if part))
        table.add_row(Text(visible(cell["arm"])), f"{cell['n_trials']:,}", *(Text(text) for text in shown))
    return table


def _contrast(rows: list[Row], summary: dict[str, Any]) -> Table:
    """A concept a row; p is corrected for the number of concepts, of the row over all for that of targets."""
    table = _table("concept", "estimate", "95% interval", "p", "verdict")
    for row in rows:
        measure = MEASURES[row["metric"]]
        overall = row["concept"] == ALL
        if overall:
            table.add_section()
        p = p_value(row["p_holm"] if overall else row["p_by"])
        numbers = (estimate(row, measure), interval(row, measure), p, verdict_word(row, summary))
        name = Text("all concepts" if overall else visible(row["concept"]))
        table.add_row(name, *(Text(text) for text in numbers), style="bold" if overall else None)
    return table


def _missing(cells: list[Row], contrast: list[Row]) -> dict[str, list[str]]:
    """By reason, the arms and concepts of which a number is missing."""
    named = [(cell["arm"], cell[metric]["reason"]) for cell in cells for metric in ARM_METRICS]
    named += [("all concepts" if row["concept"] == ALL else row["concept"], row["reason"]) for row in contrast]
    missing: dict[str, list[str]] = {}
    for name, reason in named:
        if reason and visible(name) not in missing.setdefault(reason, []):
            missing[reason].append(visible(name))
    return missing
