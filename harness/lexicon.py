"""The one rule by which a concept's words meet a target's vocabulary.

An id belongs to a concept if its decoded text, without one leading space and ignoring case, equals a word of the lexicon.
A word of several tokens does not count, unless `first_token` is set: then its first token does.
"""

from __future__ import annotations

import hashlib

import numpy as np

from harness.errors import CapabilityError
from harness.packs.concepts import Concept
from harness.providers.vocabulary import Vocabulary, spelling
from harness.records import Int32s, Lexicon


def matches(text: str, words: frozenset[str]) -> bool:
    """Whether a token's decoded text is a word of the lexicon."""
    return spelling(text) in words


def resolve(concept: Concept, vocabulary: Vocabulary | None, *, first_token: bool) -> Lexicon:
    """The concept's words as ids of `vocabulary`; by text alone where there is none."""
    words = frozenset(word.casefold() for word in concept.words)
    if vocabulary is None:
        return Lexicon(concept=concept.name, words=words, token_ids=None, resolved_share=None, digest=_digest(words, None))
    resolved = {word for word in words if word in vocabulary.spellings}
    ids = {i for word in resolved for i in vocabulary.spellings[word]}
    if first_token:
        missing = sorted(words - resolved)
        for word, pieces in zip(missing, vocabulary.encode_pieces([f" {word}" for word in missing]), strict=True):
            if pieces:
                ids.add(pieces[0])
                resolved.add(word)
    token_ids = np.array(sorted(ids), np.int32)
    return Lexicon(
        concept=concept.name,
        words=words,
        token_ids=token_ids,
        resolved_share=len(resolved) / len(words),
        digest=_digest(words, token_ids),
    )


def require_resolved(lexicon: Lexicon, *, target: str, min_resolved: float) -> None:
    """Raises CapabilityError where the target's vocabulary spells too small a share of the lexicon."""
    share = lexicon.resolved_share
    if share is not None and share < min_resolved:
        raise CapabilityError(
            f"{target} has one token for only {share:.0%} of the words of {lexicon.concept!r}; "
            f"the eval needs {min_resolved:.0%}",
            hint="set scoring.first_token = true in the eval, or leave the concept out with --concept",
        )


def _digest(words: frozenset[str], token_ids: Int32s | None) -> str:
    text = "\n".join(sorted(words)).encode()
    return hashlib.sha256(text + (b"" if token_ids is None else b"\0" + token_ids.tobytes())).hexdigest()
