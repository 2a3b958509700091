"""A real llama.cpp server for tests: its interpreter, its weights, its start, and its certain end."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.providers import weights
from harness.providers.targets import Package, find_target

ROOT = Path(__file__).parents[2]
SERVED_NAME = "smollm2-135m"
START_LIMIT_S = 120
STOP_LIMIT_S = 10


def servers_python() -> Path:
    """The interpreter that has the servers; fails the test where there is none."""
    chosen = Path(os.environ.get("HARNESS_SERVERS_PYTHON") or ROOT / ".venv-servers" / "bin" / "python")
    if not chosen.exists():
        pytest.fail(f"no interpreter with llama.cpp at {chosen}: run `make test-servers`, or set HARNESS_SERVERS_PYTHON")
    return chosen


def package() -> Package:
    """Where the weights come from: the embedded engine's target has the same ones."""
    found = find_target(SERVED_NAME).target.package
    assert found is not None
    return found


def quantised_gguf() -> Path:
    """The weights as published; fails the test where they are not those of the embedded target."""
    (member,) = package().members
    found = sorted(servers_python().parents[1].glob(f"lib/python*/site-packages/{member}"))
    if len(found) != 1 or weights.sha256(found[0]) != package().sha256:
        pytest.fail(f"{member}: not in the environment of {servers_python()}, or another file: run `make test-servers`")
    return found[0]


def write_float32_gguf(folder: Path) -> Path:
    """The very weights that the embedded engine runs, unrounded: llama.cpp then rounds no activations to 8 bits either."""
    import gguf

    reader = gguf.GGUFReader(quantised_gguf())
    out = folder / "float32.gguf"
    writer = gguf.GGUFWriter(out, "llama")
    for key, value in reader.fields.items():
        if not key.startswith("GGUF.") and key not in ("general.architecture", "general.file_type"):
            kind, *inner = value.types
            writer.add_key_value(key, value.contents(), kind, sub_type=inner[-1] if inner else None)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


@contextlib.contextmanager
def running_llamacpp(gguf: Path, log: Path, *, api_key: str = "", slots: int = 4) -> Iterator[str]:
    """The address (no `/v1`) of a server for the file `gguf`, ready to answer; the server is gone afterwards.

    `slots`: how many prompts or draws it works on at once.
    """
    script = Path(__file__).with_name("llamacpp_serve.py")
    command = [str(servers_python()), str(script), str(gguf), SERVED_NAME, str(slots), api_key]
    with log.open("wb") as err:
        server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=err, start_new_session=True, bufsize=0
        )
    try:
        yield _address(server, log)
    finally:
        _end(server)


def _address(server: subprocess.Popen[bytes], log: Path) -> str:
    assert server.stdout is not None
    said = b""
    deadline = time.monotonic() + START_LIMIT_S
    while not said.endswith(b"\n") and select.select([server.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
        if not (part := os.read(server.stdout.fileno(), 4096)):
            break
        said += part
    address = said.decode(errors="replace").strip()
    if not address.startswith("http://127.0.0.1:"):
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
        pytest.fail(f"llama.cpp's server does not run (it said {address!r}); its log ends with\n{tail}")
    return address


def _end(server: subprocess.Popen[bytes]) -> None:
    """Close its input, at which it ends; kill it where it does not."""
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.close()
    try:
        server.wait(STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait(STOP_LIMIT_S)
    finally:
        server.stdout.close()
