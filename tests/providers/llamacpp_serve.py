"""llama.cpp's own HTTP server for one GGUF file; run by an interpreter that has `xllamacpp`, which the harness never imports.

Prints its address when it is ready, and ends when its standard input closes: it cannot outlive whoever started it.
"""

from __future__ import annotations

import os
import sys

import xllamacpp

CONTEXT = 1024
"""Tokens that a slot holds."""


def main(gguf: str, alias: str, slots: str, api_key: str) -> None:
    params = xllamacpp.CommonParams()
    params.model.path = gguf
    params.model_alias = {alias}
    params.hostnames = ["127.0.0.1"]
    params.port = 0  # a free one
    params.n_parallel = int(slots)
    params.n_ctx = int(slots) * CONTEXT
    # Threads wait for each other spinning: on a busy machine two were up to eight times slower than one.
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_ram_mib = 64
    params.offline = True
    params.ui = False
    if api_key:
        params.api_keys = [api_key]
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.buffer.read()
    os._exit(0)  # without the server's own end, which waits for open connections


if __name__ == "__main__":
    main(*sys.argv[1:])
