"""`harness serve-faults`: an endpoint that misbehaves on demand, to try a client on."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from harness.cli.console import note, print_table
from harness.errors import UsageError
from harness.faults.call import Settings
from harness.faults.registry import FAULTS, parse_faults, told
from harness.faults.server import FaultServer
from harness.packs.concepts import concept_names, find_concept


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultOptions:
    """The options of `harness serve-faults`."""

    rate: Annotated[float, Parameter(help="Share of generation requests that meet a fault, from 0 to 1")] = 0.3
    seed: Annotated[int, Parameter(help="Seed of the faults: equal seeds and orders of requests give equal faults")] = 0
    faults: Annotated[str | None, Parameter(help="Faults to draw from, such as 500,nan,dropped; default: all")] = None
    after: Annotated[int, Parameter(help="Generation requests that are answered well before the faults begin")] = 0
    port: Annotated[int, Parameter(help="Port on loopback; 0: a free one")] = 0
    model: Annotated[str, Parameter(help="Name of the served model")] = "fault-model"
    model_changes_after: Annotated[
        int | None, Parameter(help="Generation requests after which another model answers, by its own name")
    ] = None
    max_logprobs: Annotated[int, Parameter(help="Most log-probabilities that may be asked for")] = 1000
    vllm_version: Annotated[str | None, Parameter(help="What GET /version says; default: there is no such page")] = None
    tokenizer: Annotated[Path | None, Parameter(help="Folder to write the vocabulary's tokenizer.json to")] = None
    reset_ms: Annotated[float, Parameter(help="Longest wait that a rate limit asks for; a date means up to a second more")] = (
        50.0
    )
    hang_s: Annotated[float, Parameter(help="How long a request that hangs does so")] = 600.0
    drip_s: Annotated[float, Parameter(help="How long an answer takes that comes in drips")] = 1.0
    huge_mb: Annotated[float, Parameter(help="Size of a huge answer")] = 100.0
    list: Annotated[
        bool, Parameter(negative="", show_default=False, help="Print every fault and what it does; serve nothing")
    ] = False


def serve_faults(options: Annotated[FaultOptions, Parameter(name="*")] = FaultOptions()) -> int:
    """Serve an OpenAI-compatible endpoint on loopback that mixes faults into its answers, by seed; Ctrl-C stops it.

    The first line on stdout is its base URL. Answers are a function of the prompt alone, over the lexicons' words.
    GET /faults tells what was served.
    """
    if options.list:
        print_table(("fault", "on the wire"), [(name, told(name)) for name in FAULTS])
        return 0
    server = FaultServer({word for name in concept_names() for word in find_concept(name).words}, _settings(options))
    if options.tokenizer is not None:
        server.tokens.write(options.tokenizer)
        note(f"tokenizer: {options.tokenizer}")
    try:
        asyncio.run(_serve(server, options.port))
    except KeyboardInterrupt:  # how it is meant to end
        ledger = server.ledger.as_dict()
        note(f"{ledger['requests']} generation requests, {sum(ledger['served'].values())} met a fault")
    return 0


async def _serve(server: FaultServer, port: int) -> None:
    async with server.running(port):
        print(server.base_url, flush=True)
        note(f"what was served: {server.base_url.removesuffix('/v1')}/faults; Ctrl-C stops")
        await asyncio.Event().wait()


def _settings(options: FaultOptions) -> Settings:
    if not 0 <= options.rate <= 1:
        raise UsageError(f"--rate {options.rate:g}: must be from 0 to 1")
    least = {"port": 0, "after": 0, "max-logprobs": 1, "reset-ms": 0, "hang-s": 0, "drip-s": 0, "huge-mb": 0, "seed": 0}
    for name, lowest in least.items():
        if (value := getattr(options, name.replace("-", "_"))) < lowest:
            raise UsageError(f"--{name} {value:g}: must be at least {lowest}")
    return Settings(
        model=options.model,
        seed=options.seed,
        rate=options.rate,
        faults=parse_faults(options.faults),
        after=options.after,
        model_changes_after=options.model_changes_after,
        max_logprobs=options.max_logprobs,
        version=options.vllm_version,
        reset_s=(options.reset_ms / 5000, options.reset_ms / 1000),
        hang_s=options.hang_s,
        drip_s=options.drip_s,
        huge_bytes=int(options.huge_mb * 1e6),
    )
