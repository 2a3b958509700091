"""Black-box transfer evaluation of language models."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("transfer-harness")
except PackageNotFoundError:  # run from a source tree that nobody installed
    __version__ = "0+source"
