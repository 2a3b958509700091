"""The fault server for other tests: in a thread of this process, where its oracle is at hand, or as a command."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from harness.faults.call import Settings
from harness.faults.server import FaultServer

STARTS, ENDS = ("ab", "cor", "del", "fi", "gu", "hem", "jo", "kra"), ("ba", "ce", "di", "mo", "nu", "pa")
WORDS = tuple(start + middle + end for start in STARTS for middle in ENDS for end in ENDS)
FAULTLESS = Settings()


@contextmanager
def fault_server(settings: Settings = FAULTLESS, words: Iterable[str] = WORDS) -> Iterator[FaultServer]:
    """A server in a thread of its own; `base_url` is its address, `ledger` what it served, `model` what is true."""
    server = FaultServer(words, settings)
    loop = asyncio.new_event_loop()
    ready, stop = threading.Event(), asyncio.Event()

    async def serve() -> None:
        async with server.running():
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(30), "the fault server did not start"
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


@contextmanager
def fault_command(*argv: str) -> Iterator[str]:
    """`harness serve-faults ARGV` as a process of its own, so that client and server have a core each; its base URL."""
    with fault_process(*argv) as (base_url, _):
        yield base_url


@contextmanager
def fault_process(*argv: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The same with its process, to be killed early."""
    command = [sys.executable, "-m", "harness", "serve-faults", *argv]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        base_url = process.stdout.readline().strip()
        assert base_url, f"{' '.join(command)} did not start"
        yield base_url, process
    finally:
        process.kill()
        process.communicate()
