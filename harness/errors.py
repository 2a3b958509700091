"""Every error that a user can meet, and the exit code it ends in.

    HarnessError
    ├── UsageError              exit 2: something asked for is wrong; nothing was written
    │   ├── UnknownNameError    no target, eval, pack, concept or template of that name
    │   ├── FileFormatError     a TOML, JSONL or text file that does not fit; names file, line and field
    │   ├── MissingExtraError   an optional dependency that is not installed
    │   └── CapabilityError     the target cannot do what the eval needs
    ├── EndpointError           exit 3: the endpoint does not answer, or answers what cannot be used
    │   └── UnreachableError    nothing listens at the address
    ├── BudgetSpentError        exit 3: a limit on cost, requests or time is reached; what came back is kept
    └── StorageError            exit 2: a folder or journal that cannot be written or read

A failed *prompt* is no error but a record (`records.Observation.error`).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HarnessError(Exception):
    """An expected failure, told in one message and an optional hint.

    `hint` is a command or an action that helps; it is printed on a line of its own.
    """

    exit_code = 2

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(HarnessError):
    """Something that was asked for is wrong."""


class UnknownNameError(UsageError):
    """No `kind` is called `name`; the hint suggests the nearest known one."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        listed = ", ".join(names[:30]) + (", ..." if len(names) > 30 else "")
        hint = f"did you mean {near[0]!r}?" if near else f"known: {listed or 'none'}"
        super().__init__(f"unknown {kind} {name!r}", hint=hint)


class FileFormatError(UsageError):
    """A file that does not fit its record: `where` is file[:line], `problem` names the field."""

    def __init__(self, where: str, problem: str, *, hint: str | None = None) -> None:
        super().__init__(f"{where}: {problem}", hint=hint)


class MissingExtraError(UsageError):
    """An optional dependency is not installed."""

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(
            f"this needs the Python package {module!r}, which is not installed",
            hint=f"pip install 'transfer-harness[{extra}]'",
        )


class CapabilityError(UsageError):
    """The target cannot do what the eval needs."""


class EndpointError(HarnessError):
    """The endpoint answers what cannot be used."""

    exit_code = 3


class UnreachableError(EndpointError):
    """Nothing answers at the endpoint's address."""


class BudgetSpentError(HarnessError):
    """A limit that the user set is reached: nothing more is sent. `limit`: the option that set it, with its value."""

    exit_code = 3

    def __init__(self, limit: str) -> None:
        super().__init__(f"stopped: {limit} is reached", hint="the same command with a higher limit goes on where it stopped")
        self.limit = limit


class StorageError(HarnessError):
    """A folder or a journal cannot be written or read."""
