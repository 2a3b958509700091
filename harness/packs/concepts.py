"""The room `prompts/concepts/`: a concept's lexicon, its sentences and its off-type sentences.

A concept is a folder: `concept.toml`, `lexicon.txt` (a lower-case word a line), `sentences.txt` (unfinished, a word of the
concept comes next) and, where it has them, `off_type.txt` (unfinished, no word of the concept comes next).
A pack may bring its own copy of a concept, which then stands in for the room's.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from harness import paths
from harness.config import Strict, read_lines, read_toml
from harness.errors import FileFormatError, UnknownNameError
from harness.records import Sentence

LEXICON, SENTENCES, OFF_TYPE, MANIFEST = "lexicon.txt", "sentences.txt", "off_type.txt", "concept.toml"


class ConceptManifest(Strict):
    """`concept.toml`."""

    name: str
    gloss: str
    lexicon_source: str
    licence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Concept:
    """What is steered towards. `digest` changes with any word or sentence."""

    name: str
    manifest: ConceptManifest
    words: frozenset[str]
    sentences: tuple[Sentence, ...]
    off_type: tuple[Sentence, ...]
    digest: str


def concept_names() -> tuple[str, ...]:
    """The concepts of the room, sorted."""
    return tuple(sorted(paths.entries("prompts/concepts")))


def find_concept(name: str, own: Path | None = None) -> Concept:
    """The concept `name`: from `own` (a pack's `concepts/` folder) if it is there, else from the room.

    Raises UnknownNameError with the nearest name, FileFormatError for a folder that does not fit.
    """
    if own is not None and (own / name).is_dir():
        return load_concept(own / name)
    known = paths.entries("prompts/concepts")
    if name not in known:
        raise UnknownNameError("concept", name, known)
    return load_concept(known[name].path)


def load_concept(folder: Path) -> Concept:
    """Read and check the concept in `folder`; raises FileFormatError naming file and line."""
    manifest = read_toml(folder / MANIFEST, ConceptManifest)
    if manifest.name != folder.name:
        raise FileFormatError(str(folder / MANIFEST), f"key 'name': expected {folder.name!r}, got {manifest.name!r}")
    words = read_lines(folder / LEXICON)
    for word in words:
        if word != word.lower() or " " in word:
            raise FileFormatError(str(folder / LEXICON), f"{word!r} is not one lower-case word")
    if not words:
        raise FileFormatError(str(folder / LEXICON), "no words")
    sentences = _sentences(folder / SENTENCES, manifest.name, off_type=False)
    if not sentences:
        raise FileFormatError(str(folder / SENTENCES), "no sentences")
    off_type = _sentences(folder / OFF_TYPE, manifest.name, off_type=True) if (folder / OFF_TYPE).exists() else ()
    text = "\n".join([manifest.name, *sorted(words), *(s.text for s in (*sentences, *off_type))])
    return Concept(
        name=manifest.name,
        manifest=manifest,
        words=frozenset(words),
        sentences=sentences,
        off_type=off_type,
        digest=hashlib.sha256(text.encode()).hexdigest(),
    )


def _sentences(path: Path, concept: str, *, off_type: bool) -> tuple[Sentence, ...]:
    texts = read_lines(path)
    if len(set(texts)) < len(texts):
        twice = next(text for text in texts if texts.count(text) > 1)
        raise FileFormatError(str(path), f"the sentence {twice!r} stands twice")
    return tuple(
        Sentence(sentence_id=sentence_id(concept, text), concept=concept, text=text, off_type=off_type) for text in texts
    )


def sentence_id(concept: str, text: str) -> str:
    """An id that depends on the text alone, so that adding sentences renames none."""
    return f"{concept}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"
