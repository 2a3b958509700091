"""A real vLLM server for tests: its interpreter, its start, and its certain end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from harness.providers.targets import TargetSpec, find_target
from harness.providers.vllm_command import missing_weights, serve_command

ROOT = Path(__file__).parents[2]
START_LIMIT_S = 300
STOP_LIMIT_S = 20


def vllm_python() -> str:
    """The interpreter that has vLLM; fails the test where there is none."""
    chosen = os.environ.get("HARNESS_VLLM_PYTHON") or str(ROOT / ".venv-vllm" / "bin" / "python")
    if not Path(chosen).exists():
        pytest.fail(f"no interpreter with vLLM at {chosen}: run `make test-vllm`, or set HARNESS_VLLM_PYTHON")
    return chosen


def vllm_environment() -> dict[str, str]:
    """The environment for vLLM: little memory, this machine's files only, and no statistics sent anywhere."""
    quiet = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    return os.environ | {"VLLM_CPU_KVCACHE_SPACE": "2"} | quiet


def present_target(name: str) -> TargetSpec:
    """The shipped target called `name`; fails the test where its weights were not fetched."""
    spec = find_target(name)
    if missing := missing_weights(spec):
        pytest.fail(f"{missing.message}: run `{missing.hint}`")
    return spec


def at_address(spec: TargetSpec, base_url: str) -> TargetSpec:
    """`spec` with its endpoint at `base_url`, whatever the environment says."""
    endpoint = spec.endpoint.model_copy(update={"base_url": base_url, "base_url_env": None})
    return replace(spec, endpoint=endpoint)


@contextlib.contextmanager
def running_vllm(target: str, log: Path) -> Iterator[str]:
    """The base URL of a server for `target` on a free port; the server and all its children are gone afterwards."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    base_url = f"http://127.0.0.1:{port}/v1"
    command = serve_command(at_address(present_target(target), base_url), vllm_python())
    with log.open("wb") as out:
        server = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=vllm_environment(), start_new_session=True)
    try:
        _wait_until_healthy(server, f"http://127.0.0.1:{port}/health", log)
        yield base_url
    finally:
        _end(server)


def _wait_until_healthy(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(urllib.error.URLError, ConnectionError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.5)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
    pytest.fail(f"vLLM's server is not healthy (exit code {server.poll()}); its log ends with\n{tail}")


def _end(server: subprocess.Popen[bytes]) -> None:
    """End the whole process group: vLLM's workers outlive a server that is killed alone."""
    for stop in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, stop)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(STOP_LIMIT_S)
