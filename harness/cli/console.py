"""What verbs print: data on stdout, everything else on stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from harness.evals.runner import Tally

QUIET_EVERY_S = 10.0


def err() -> Console:
    """Console for people, on stderr; honours NO_COLOR."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def note(line: str) -> None:
    """A line for the user, on stderr."""
    err().print(line, markup=False)


def print_error(message: str, *, hint: str | None) -> None:
    """An error on stderr, the hint on a line of its own."""
    console = err()
    console.print("[bold red]error:[/] ", end="")
    console.print(message, markup=False)
    if hint:
        console.print("[bold]hint:[/] ", end="")
        console.print(hint, markup=False)


def print_json(data: Any) -> None:
    """Data on stdout, one JSON document."""
    sys.stdout.write(json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A plain table on stdout; cells are text, never markup."""
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(cell.replace("[", r"\[") for cell in row))
    Console(highlight=False, width=None if sys.stdout.isatty() else 200).print(table)


@contextmanager
def progress(title: str) -> Iterator[Callable[[Tally], None]]:
    """A bar with rate and time left on a terminal, else a line every ten seconds; both on stderr."""
    console = err()
    if not console.is_terminal:
        yield _line_progress(title)
        return
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=False),
        console=console,
    )
    start = time.perf_counter()
    with bar:
        task = bar.add_task(title, total=None, rate="")

        def show(tally: Tally) -> None:
            asked = tally.done + tally.failed - tally.from_cache
            rate = asked / max(time.perf_counter() - start, 1e-9)
            failed = f", {tally.failed} failed" if tally.failed else ""
            bar.update(task, total=tally.planned, completed=tally.done + tally.failed, rate=f"{rate:.0f}/s{failed}")

        yield show


def _line_progress(title: str) -> Callable[[Tally], None]:
    start = last = time.perf_counter()

    def show(tally: Tally) -> None:
        nonlocal last
        now = time.perf_counter()
        reached = tally.done + tally.failed
        if now - last < QUIET_EVERY_S and reached < tally.planned:
            return
        last = now
        rate = (reached - tally.from_cache) / max(now - start, 1e-9)
        left = f", {(tally.planned - reached) / rate:.0f} s left" if rate > 0 and reached < tally.planned else ""
        failed = f", {tally.failed} failed" if tally.failed else ""
        note(f"{title}: {reached}/{tally.planned} prompts, {rate:.0f}/s{failed}{left}")

    return show
