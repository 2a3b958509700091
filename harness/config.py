"""Reading TOML and JSONL into strict records: an unknown key is an error that names file, key and the nearest known one.

Owns parsing and its errors; the records themselves stand with what obeys them (`packs`, `providers`, `evals`).
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from harness.errors import FileFormatError


class Strict(BaseModel):
    """Base of every record read from a file: frozen, and unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Record = TypeVar("Record", bound=Strict)


def read_text(path: Path) -> str:
    """The UTF-8 text of `path`; raises FileFormatError where it is missing or no text."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as exc:
        raise FileFormatError(str(path), f"not UTF-8 text ({exc.reason} at byte {exc.start})") from exc
    except OSError as exc:
        raise FileFormatError(str(path), f"cannot be read: {exc.strerror or exc}") from exc


def read_toml(path: Path, record: type[Record]) -> Record:
    """`path` as a `record`; raises FileFormatError naming line (syntax) or key (content)."""
    try:
        data = tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as exc:
        raise FileFormatError(str(path), f"not valid TOML: {exc}") from exc
    return validate(data, record, where=str(path))


def read_lines(path: Path) -> list[str]:
    """The lines of a list file: stripped, without empty lines and `#` comments."""
    stripped = (line.strip() for line in read_text(path).splitlines())
    return [line for line in stripped if line and not line.startswith("#")]


def iter_jsonl(path: Path, record: type[Record]) -> Iterator[tuple[int, Record]]:
    """(line number, record) of each line of `path`; raises FileFormatError naming file, line and field."""
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            data = json.loads(line)
        except json.JSONDecodeError as exc:
            raise FileFormatError(where, f"not valid JSON: {exc.msg} at column {exc.colno}") from exc
        yield number, validate(data, record, where=where)


def validate(data: Any, record: type[Record], *, where: str) -> Record:
    """`data` as a `record`; raises FileFormatError that names `where` and one wrong field."""
    try:
        return record.model_validate(data)
    except ValidationError as exc:
        # A misspelt key is also a missing one: the unknown key says more.
        first = min(exc.errors(), key=lambda error: error["type"] != "extra_forbidden")
        key = ".".join(str(part) for part in first["loc"]) or "(top level)"
        if first["type"] == "extra_forbidden":
            raise FileFormatError(where, f"unknown key {key!r}", hint=_nearest_key(record, first["loc"])) from exc
        problem = first["msg"].removeprefix("Value error, ")
        raise FileFormatError(where, f"key {key!r}: {problem}") from exc


def _nearest_key(record: type[BaseModel], loc: tuple[int | str, ...]) -> str:
    """A hint with the nearest key that the record, or the nested record at `loc`, knows."""
    model: Any = record
    for part in loc[:-1]:
        annotation = model.model_fields[part].annotation if isinstance(part, str) and part in model.model_fields else None
        nested = _nested_model(annotation)
        if nested is not None:
            model = nested
    known = sorted(model.model_fields)
    near = difflib.get_close_matches(str(loc[-1]), known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"


def _nested_model(annotation: Any) -> type[BaseModel] | None:
    """The pydantic model inside an annotation such as `X`, `X | None`, `dict[str, X]` or `list[X]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        nested = _nested_model(inner)
        if nested is not None:
            return nested
    return None
