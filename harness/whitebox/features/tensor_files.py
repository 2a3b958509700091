"""Safetensors files with one tensor for each site, put together from the sites' own without holding more than one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from harness.whitebox.sources.dictionaries import opened
from harness.whitebox.stage import whole

_BLOCK_ROWS = 1 << 12


def join_tensors(parts: Mapping[str, Path], tensor: str, out: Path) -> None:
    """The float32 matrix `tensor` of each file in `parts` as `out`, under the part's name.

    The format (https://github.com/huggingface/safetensors): eight bytes with the length of a JSON header, the header, the data.
    """
    header: dict[str, Any] = {}
    at = 0
    for name, path in parts.items():
        with opened(path, "np") as file:
            shape = file.get_slice(tensor).get_shape()
        size = 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with whole(out) as scratch, scratch.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for path in parts.values():
            with opened(path, "np") as part:
                rows = part.get_slice(tensor)
                n = rows.get_shape()[0]
                for start in range(0, n, _BLOCK_ROWS):
                    file.write(np.ascontiguousarray(rows[start : min(start + _BLOCK_ROWS, n)], "<f4").tobytes())
