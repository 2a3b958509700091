"""A probe pack from the authors' published token sets and sentences (arXiv 2505.11611), read from a folder the user has.

Layout: `token_sets/<concept>.json` with the lists target, high_interference, medium_interference, random, and
`sentences/<concept>.json`, a list. Nothing of that data belongs to this project.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from harness.config import Strict, read_text, validate
from harness.errors import FileFormatError
from harness.packs.concepts import LEXICON, SENTENCES, ConceptManifest
from harness.packs.concepts import MANIFEST as CONCEPT_MANIFEST
from harness.packs.pack import CONCEPTS, Arm, Draft, PoolRow
from harness.packs.sampling import draw, generator
from harness.records import Probe

ARM_OF_SET: dict[str, Arm] = {
    "target": "self",
    "high_interference": "high",
    "medium_interference": "low",
    "random": "random",
}
SPECIAL = re.compile(r"<\|[^|]*\|>")


class TokenSets(Strict):
    """`token_sets/<concept>.json`."""

    target: tuple[str, ...]
    high_interference: tuple[str, ...]
    medium_interference: tuple[str, ...]
    random: tuple[str, ...]


class SentenceList(Strict):
    """`sentences/<concept>.json`, wrapped to be validated."""

    sentences: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cleaned:
    """A published set after the declared clean-ups, with how many strings each of them touched."""

    tokens: tuple[str, ...]
    decoded: int
    dropped_bytes: int
    dropped_special: int
    dropped_repeats: int


def draft_published(source: Path, *, n_injections: int, n_tokens: int, seed: int) -> Draft:
    """The draft of a pack: `n_injections` injections of `n_tokens` strings an arm, drawn without replacement within each.

    Also carries the whole cleaned sets as pools (for fresh draws) and the published sentences and target set as
    its own concepts. Raises FileFormatError naming file and key.
    """
    probes: list[Probe] = []
    pools: list[PoolRow] = []
    files: dict[str, str] = {}
    cleanup: dict[str, Any] = {}
    for path in _json_files(source / "token_sets"):
        concept = path.stem
        sets = validate(_json(path), TokenSets, where=str(path))
        cleaned = {arm: clean(getattr(sets, name)) for name, arm in ARM_OF_SET.items()}
        cleanup[concept] = _report(cleaned)
        for name, arm in ARM_OF_SET.items():
            tokens = cleaned[arm].tokens
            if not tokens:
                raise FileFormatError(str(path), f"key {name!r}: no usable string")
            pools.append(PoolRow(concept=concept, arm=arm, tokens=tokens))
            rng = generator(seed, "published", concept, arm)
            probes += [
                Probe(
                    concept=concept,
                    arm=arm,
                    injection_id=f"{arm}-{i:04d}",
                    injection=draw(tokens, n_tokens, rng),
                    provenance={"set": name},
                )
                for i in range(n_injections)
            ]
        files |= _concept_files(concept, cleaned["self"].tokens, source / "sentences" / path.name)
    return Draft(
        name="published",
        description="the published token sets and sentences, sampled into injections",
        claims="as published: strings of features that interfere with the concept (high, low) shift the next word towards it",
        maker="import-published",
        seed=seed,
        probes=probes,
        pools=pools,
        parameters={"n_injections": n_injections, "n_tokens": n_tokens, "cleanup": cleanup},
        sources={"data": "arXiv 2505.11611, released token sets and test sentences"},
        files=files,
    )


def clean(tokens: Iterable[str]) -> Cleaned:
    """Decode byte-level text, drop what is no text, specials, blanks and repeats; the order stays."""
    kept: dict[str, None] = {}
    decoded = dropped_bytes = dropped_special = repeats = 0
    for token in tokens:
        if SPECIAL.search(token) or not token.strip():
            dropped_special += 1
            continue
        text = decode_byte_level(token)
        if text is None:
            dropped_bytes += 1
            continue
        decoded += text != token
        repeats += text in kept
        kept[text] = None
    return Cleaned(
        tokens=tuple(kept),
        decoded=decoded,
        dropped_bytes=dropped_bytes,
        dropped_special=dropped_special,
        dropped_repeats=repeats,
    )


def _byte_of_char() -> dict[str, int]:
    """The inverse of GPT-2's printable stand-ins for bytes: printable Latin-1 stands for itself, the rest from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in printable]
    return table | {chr(256 + i): byte for i, byte in enumerate(others)} | {" ": 0x20}


BYTE_OF_CHAR = _byte_of_char()


def decode_byte_level(token: str) -> str | None:
    """`token` with byte-level stand-ins turned into the text they spell; None where the bytes are no whole UTF-8.

    Text that holds a character outside the table is no byte-level text and stays as it is, unless it is U+FFFD.
    """
    if token.isascii():
        return token
    if "\ufffd" in token:
        return None
    if any(char not in BYTE_OF_CHAR for char in token):
        return token
    try:
        text = bytes(BYTE_OF_CHAR[char] for char in token).decode("utf-8")
    except UnicodeDecodeError:
        return None
    return text if text.strip() else None


def _report(cleaned: dict[Arm, Cleaned]) -> dict[str, Any]:
    """Counts of the clean-ups by arm, and how many strings each pair of arms shares (kept, as published)."""
    report: dict[str, Any] = {
        arm: {
            "kept": len(c.tokens),
            "decoded": c.decoded,
            "dropped_bytes": c.dropped_bytes,
            "dropped_special": c.dropped_special,
            "dropped_repeats": c.dropped_repeats,
        }
        for arm, c in cleaned.items()
    }
    arms = list(cleaned)
    report["shared_between_arms"] = {
        f"{a}&{b}": len(set(cleaned[a].tokens) & set(cleaned[b].tokens)) for i, a in enumerate(arms) for b in arms[i + 1 :]
    }
    return report


def _concept_files(concept: str, target: tuple[str, ...], sentences: Path) -> dict[str, str]:
    """The pack's own copy of a concept: its words are the published target strings, by our rule of case and space."""
    words = {token.strip().lower() for token in target}
    usable = sorted(w for w in words if len(w.split()) == 1 and not w.startswith("#") and any(c.isalnum() for c in w))
    texts = validate({"sentences": _json(sentences)}, SentenceList, where=str(sentences)).sentences
    distinct = dict.fromkeys(" ".join(text.split()) for text in texts if text.strip() and not text.strip().startswith("#"))
    manifest = ConceptManifest(
        name=concept,
        gloss=f"{concept}, as the published target set draws it",
        lexicon_source="published target token set, case and one leading space ignored",
        licence="the authors'; not part of this project",
    )
    folder = f"{CONCEPTS}/{concept}"
    return {
        f"{folder}/{CONCEPT_MANIFEST}": tomli_w.dumps(manifest.model_dump()),
        f"{folder}/{LEXICON}": "".join(f"{word}\n" for word in usable),
        f"{folder}/{SENTENCES}": "".join(f"{text}\n" for text in distinct),
    }


def _json_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.json"))
    if not files:
        raise FileFormatError(str(folder), "no *.json here", hint="name the folder that holds token_sets/ and sentences/")
    return files


def _json(path: Path) -> Any:
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as exc:
        raise FileFormatError(f"{path}:{exc.lineno}", f"not valid JSON: {exc.msg} at column {exc.colno}") from exc
