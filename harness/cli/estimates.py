"""The table of what runs would ask, for the verbs that say it before anything is sent."""

from __future__ import annotations

from collections.abc import Sequence

from harness.cli.console import note, print_table
from harness.reports.estimate import Estimate


def print_estimates(estimates: Sequence[Estimate]) -> None:
    """One row a target on stdout, and a note for each whose mode only opening it tells."""
    columns = ("target", "mode", "prompts", "requests", "tokens in", "tokens out", "time", "price")
    print_table(columns, [_row(item) for item in estimates])
    for item in estimates:
        if item.mode_assumed:
            note(f"{item.target}: its file does not say what it shows; opening it tells, and another mode costs otherwise")


def _row(item: Estimate) -> tuple[str, ...]:
    about = "" if item.exact else "about "
    if item.usd is None:
        price = "price not declared"
    else:
        price = f"{item.usd:.2f} USD" if item.usd >= 0.01 or item.usd == 0 else f"{item.usd:.4f} USD"
    return (
        item.target,
        f"{item.mode}, {item.n_draws} draws" if item.n_draws else str(item.mode),
        f"{item.prompts:,}",
        f"{item.requests:,}",
        f"{about}{item.input_tokens:,}",
        f"{about}{item.output_tokens:,}" if item.n_draws else f"{item.output_tokens:,}",
        "unknown before the first run" if item.seconds is None else f"about {item.seconds:,.0f} s",
        f"{price} as a batch" if item.batch else price,
    )
