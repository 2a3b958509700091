"""Copies of a model whose weights are a known way off: what a comparison or a gate is tried on. Loads no model.

What changes are the matrices inside the model's blocks (attention, MLP), as weight-only quantisation does it; embeddings, the
output matrix, norms and biases stay as they are.
"""

from __future__ import annotations

import json
import math
import mmap
import re
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tomli_w

from harness.errors import StorageError, UsageError
from harness.paths import writing
from harness.providers.targets import Dtype
from harness.providers.weights import RECORD, digest_of, sha256

Kind = Literal["copy", "noise", "int8", "int4"]
Array = np.ndarray[Any, np.dtype[Any]]

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
"""How numpy reads what safetensors stores; it has no bfloat16, whose bits are the upper half of a float32's."""

_IN_A_BLOCK = re.compile(r"\.\d+\..*\bweight$")
_LENGTH_BYTES = 8
"""Of the header's length, with which a safetensors file begins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One way to be off.

    `copy`: not at all. `noise`: Gaussian, its standard deviation `noise` times that of each matrix, drawn from `seed`.
    `int8`, `int4`: rounded to 255 or 15 levels that are symmetric about zero, and back; one scale for each output channel (a
    row) or, where `group` is given, for each run of `group` inputs of a row.
    """

    kind: Kind
    noise: float = 0.0
    seed: int = 0
    group: int | None = None


COPY = Variant(kind="copy")
INT8 = Variant(kind="int8")
INT4 = Variant(kind="int4", group=32)


def make_variant(source: Path, out: Path, variant: Variant) -> list[str]:
    """Write `variant` of the model folder `source` to the new folder `out`; the names of the matrices that changed.

    Config, tokenizer and chat template are copied, every tensor keeps its dtype, and one tensor at a time is in memory. The
    record of the weights (`weights.json`) says what was done to which weights. Raises UsageError and StorageError.
    """
    files = sorted(source.glob("*.safetensors"))
    if not files:
        raise UsageError(f"{source}: no safetensors file in it", hint="name the folder of a model that transformers can load")
    changed = []
    with writing(out, hint="name a new folder where there is room for a copy of the model"):
        out.mkdir(parents=True)
        for path in source.iterdir():
            if path.is_file() and path.name != RECORD:
                shutil.copyfile(path, out / path.name)
    for path in files:
        changed += _change(out / path.name, variant)
    digest = sha256(*(out / path.name for path in files))
    record = {"variant": asdict(variant), "of_sha256": digest_of(source), "changed": changed, "sha256": digest}
    (out / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return changed


def endpoint_file(models: Mapping[str, Path], dtype: Dtype = "float32") -> str:
    """A file of the room `providers/` that runs model folders in this process: target's name to folder."""
    targets = {
        name: {"model": str(folder), "tokenizer": str(folder), "dtype": dtype, "description": "a variant made for a trial"}
        for name, folder in models.items()
    }
    return tomli_w.dumps({"api": "embedded", "description": "variants of a model", "targets": targets})


def changed_by(variant: Variant, name: str) -> Callable[[Array], Array]:
    """What `variant` makes of the float32 matrix (n_outputs, n_inputs) called `name`."""
    match variant.kind:
        case "copy":
            return lambda W: W
        case "noise":
            rng = np.random.default_rng([variant.seed, zlib.crc32(name.encode())])
            return lambda W: W + np.float32(variant.noise) * W.std() * rng.standard_normal(W.shape, np.float32)
        case "int8":
            return lambda W: rounded(W, 127, variant.group)
        case "int4":
            return lambda W: rounded(W, 7, variant.group)


def rounded(W: Array, most: int, group: int | None) -> Array:
    """`W` (n_outputs, n_inputs) on the levels -most..most times a scale, which is the largest |weight| it holds for / most."""
    n_outputs, n_inputs = W.shape
    width = group or n_inputs
    padded = np.pad(W, ((0, 0), (0, -n_inputs % width)))
    grouped = padded.reshape(n_outputs, -1, width)  # (n_outputs, n_groups, width)
    scale = np.abs(grouped).max(-1, keepdims=True) / np.float32(most)
    levels = np.rint(grouped / np.where(scale > 0, scale, np.float32(1)))
    kept: Array = (levels * scale).reshape(n_outputs, -1)[:, :n_inputs]
    return kept


def _change(file: Path, variant: Variant) -> list[str]:
    """Overwrite the matrices of a safetensors file, whose shapes and dtypes stay: only their bytes change."""
    if variant.kind == "copy":
        return []
    changed = []
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as memory:
        for name, entry, start in _matrices(memory, file):
            kind = _DTYPES.get(entry["dtype"])
            if kind is None:
                raise UsageError(f"{file}: {name} is {entry['dtype']}: only weights in {', '.join(_DTYPES)} can be changed")
            stored = np.frombuffer(memory, kind, math.prod(entry["shape"]), start)
            before = _widened(stored).reshape(entry["shape"])
            after = _narrowed(changed_by(variant, name)(before), stored.dtype)
            memory[start : start + after.nbytes] = after.tobytes()
            del stored  # a memory map that is looked at cannot be closed
            changed.append(name)
    return changed


def _matrices(memory: mmap.mmap, file: Path) -> Iterator[tuple[str, dict[str, Any], int]]:
    """Name, header entry and first byte of each matrix inside a block."""
    length = int.from_bytes(memory[:_LENGTH_BYTES], "little")
    try:
        header = json.loads(memory[_LENGTH_BYTES : _LENGTH_BYTES + length])
    except ValueError as exc:
        raise StorageError(f"{file}: its header is no JSON: it is not a safetensors file") from exc
    for name, entry in header.items():
        if _IN_A_BLOCK.search(name) and len(entry["shape"]) == 2:
            yield name, entry, _LENGTH_BYTES + length + entry["data_offsets"][0]


def _widened(stored: Array) -> Array:
    """As float32; what is stored as unsigned is bfloat16."""
    if stored.dtype == np.uint16:
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32)


def _narrowed(values: Array, dtype: np.dtype[Any]) -> Array:
    """As `dtype`; bfloat16 is rounded to the nearest, ties to even."""
    if dtype == np.uint16:
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return values.astype(dtype)
