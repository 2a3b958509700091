"""Checks of options that are numbers; an option that was not given, None, passes."""

from __future__ import annotations

from harness.errors import UsageError


def require_at_least(options: object, least: int, *names: str) -> None:
    """Raises UsageError for the first of the named options that is below `least`."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value < least:
            raise UsageError(f"--{name.replace('_', '-')} {value}: must be at least {least}")


def require_above_zero(options: object, *names: str) -> None:
    """Raises UsageError for the first of the named options that is not above 0."""
    for name in names:
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise UsageError(f"--{name.replace('_', '-')} {value:g}: must be above 0")
