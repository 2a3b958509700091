"""The gate's result as workflow commands of GitHub Actions, which show it beside a commit."""

from __future__ import annotations

from harness.gate.presentable import details, title
from harness.gate.result import GateResult


def annotation(result: GateResult) -> str:
    """One line: an error where the build fails, a warning where it passes undecided, a notice where the gate passes."""
    level = "error" if result.exit_code else "notice" if result.decision == "pass" else "warning"
    message = "\n".join([result.reason, *details(result)])
    return f"::{level} title={_property(title(result))}::{_message(message)}"


def _message(text: str) -> str:
    """As the runner reads it back: a command ends with its line."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _message(text).replace(":", "%3A").replace(",", "%2C")
