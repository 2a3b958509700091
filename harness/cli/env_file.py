"""Keys from a `.env` that the user points to."""

from __future__ import annotations

import os
from io import StringIO
from pathlib import Path

from harness.config import read_text
from harness.errors import FileFormatError

ENV_FILE_HELP = "A file of NAME=value lines with keys; variables that are set already stay as they are"


def load_env_file(path: Path) -> None:
    """Set the variables that the file names and that are not set yet; raises FileFormatError, which shows no value."""
    from dotenv.parser import parse_stream  # here, so that nobody needs it who points to no file

    for binding in parse_stream(StringIO(read_text(path))):
        if binding.error or (binding.key is not None and binding.value is None):
            raise FileFormatError(f"{path}:{binding.original.line}", "not of the form NAME=value")
        if binding.key is not None and binding.value is not None:
            os.environ.setdefault(binding.key, binding.value)
