"""`harness evals`: list, show, check."""

from __future__ import annotations

from cyclopts import App

from harness import paths
from harness.cli.console import note, print_json, print_table
from harness.evals.spec import find_eval
from harness.packs.templates import find_template

app = App(name="evals", help="What a run measures: the room evals/.", help_format="plaintext")


@app.command(name="list")
def list_evals() -> None:
    """Every eval, where it comes from and what it asks."""
    evals = [find_eval(name) for name in paths.entries("evals")]
    rows = [(e.name, e.found.origin, e.spec.design, e.spec.pack, e.spec.description) for e in evals]
    print_table(("eval", "from", "design", "pack", "description"), rows)


@app.command
def show(name: str) -> None:
    """One eval as it was read, defaults filled in."""
    found = find_eval(name)
    print_json({"name": found.name, "path": str(found.found.path), "digest": found.digest, **found.spec.model_dump()})


@app.command
def check(name: str) -> None:
    """Read one eval and its template with every check."""
    found = find_eval(name)
    find_template(found.spec.template)
    note(f"{found.found.path}: ok")
