"""The documents tell the truth about commands, targets of make, and files."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from harness.cli.main import app

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "reports/benchmarks/embedded.md",
    *(ROOT / room / "README.md" for room in ("evals", "reports/benchmarks")),
]


def commands(first_word: str) -> list[str]:
    """The lines of the documents' code blocks that start with `first_word`, without their comments."""
    lines = [line for document in DOCUMENTS for line in document.read_text(encoding="utf-8").splitlines()]
    return [line.strip().split("  #")[0].strip() for line in lines if line.startswith(f"    {first_word} ")]


@pytest.mark.parametrize("command", commands("harness"))
def test_a_command_line_is_one_that_the_program_takes(command: str) -> None:
    app.parse_args(shlex.split(command)[1:], exit_on_error=False, print_error=False)


@pytest.mark.parametrize("command", commands("make"))
def test_a_target_of_make_is_there(command: str) -> None:
    assert re.search(rf"^{command.split()[1]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("command", commands("python"))
def test_a_script_is_there(command: str) -> None:
    assert (ROOT / command.split()[1]).is_file()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_link_leads_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
        assert (document.parent / link).exists(), link


def test_the_documents_hold_commands_to_check() -> None:
    assert min(len(commands(word)) for word in ("harness", "make", "python")) >= 2
