"""Where things lie: the rooms a user reads and edits, the cache, the reports. Reads no file's content.

A room is looked up as: an explicit path, else the nearest ancestor of the working directory that has the room, else the
copy shipped in the package.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import platformdirs

from harness.errors import StorageError, UnknownNameError, UsageError

Room = Literal["prompts/concepts", "prompts/templates", "prompts/packs", "providers", "evals"]

CACHE_VARIABLE = "HARNESS_CACHE"
_PACKAGE = Path(__file__).parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A named entry of a room and where it came from (`project` or `shipped`)."""

    name: str
    path: Path
    origin: Literal["project", "shipped"]


def shipped_root() -> Path:
    """The folder that holds the shipped rooms: inside an installed wheel, or the source tree of an editable install."""
    installed = _PACKAGE / "_shipped"
    return installed if installed.is_dir() else _PACKAGE.parent


def project_root(room: Room, start: Path | None = None) -> Path | None:
    """The nearest ancestor of `start` (default: the working directory) that has `room`, or None."""
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if _is_room(folder / room):
            return folder
    return None


def _is_room(path: Path) -> bool:
    """A folder that holds TOML files, or folders that do: `tests/evals` is none."""
    return any(path.glob("*.toml")) or any(path.glob("*/*.toml"))


def entries(room: Room) -> dict[str, Found]:
    """All entries of `room` by name; the project's own stand before shipped ones of the same name."""
    found: dict[str, Found] = {}
    shipped = shipped_root() / room
    project = project_root(room)
    roots: list[tuple[Path, Literal["project", "shipped"]]] = [(shipped, "shipped")]
    if project is not None and (project / room).resolve() != shipped.resolve():
        roots.append((project / room, "project"))
    elif project is not None:
        roots = [(shipped, "project")]
    for root, origin in roots:
        if not root.is_dir():
            continue
        for path in sorted(root.iterdir()):
            if path.name.startswith((".", "_")) or path.name == "README.md":
                continue
            if path.is_dir() or path.suffix == ".toml":
                name = path.name.removesuffix(".toml").removesuffix(".local")
                found[name] = Found(name=name, path=path, origin=origin)
    return found


def find(room: Room, kind: str, name: str) -> Found:
    """The entry `name` of `room`, or the file or folder that `name` is a path to.

    A path is what contains a separator or starts with a dot; everything else is a name.
    Raises UnknownNameError with the nearest known name, UsageError where the path leads nowhere.
    """
    if os.sep in name or name.startswith("."):
        path = Path(name).expanduser()
        if path.exists():
            return Found(name=path.name.removesuffix(".toml"), path=path, origin="project")
        raise UsageError(f"no {kind} at {name}", hint=f"check the path; by name there are: {', '.join(sorted(entries(room)))}")
    known = entries(room)
    if name not in known:
        raise UnknownNameError(kind, name, known)
    return known[name]


def cache_dir() -> Path:
    """The user's cache for models and journals: `$HARNESS_CACHE`, else the platform's place."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("transfer-harness", appauthor=False))


def model_dir(name: str) -> Path:
    """Where the weights and the tokenizer of a packaged model lie once they are fetched."""
    return cache_dir() / "models" / name


def reports_dir() -> Path:
    """Where runs are written by default: `reports/` of the project around the working directory, else under it."""
    root = project_root("evals") or project_root("providers")
    return (root or Path.cwd()) / "reports"


@contextmanager
def writing(path: Path, *, hint: str) -> Iterator[None]:
    """What the system says against writing to `path` (no room, no permission) as StorageError with `hint`."""
    try:
        yield
    except OSError as exc:
        raise StorageError(f"{path}: cannot be written: {exc.strerror or exc}", hint=hint) from exc


def make_dir(path: Path) -> Path:
    """Create `path` and its parents; raises StorageError with what to do."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise StorageError(f"{path}: cannot be created: {exc.strerror or exc}", hint="name another folder with --out") from exc
    if not os.access(path, os.W_OK):
        raise StorageError(f"{path}: no permission to write there", hint="name another folder with --out")
    return path
