"""Neuronpedia's exports of a site: glosses, statistics and top activations, read line by line from local files.

The layout is that of the public bucket neuronpedia-datasets, batches of 1,024 features:

    <exports>/v1/<model>/<source>/{explanations*,features,activations}/batch-<n>.jsonl.gz

Nothing is fetched here. A feature may have several explanations, by several explainers: those of one explainer are taken, the
first for each feature, and never averaged. Dead features have none.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.errors import FileFormatError, UsageError
from harness.packs.published import decode_byte_level
from harness.providers.weights import sha256
from harness.whitebox.features.catalogue import TOP_CONTEXTS, TOP_TOKENS
from harness.whitebox.features.catalogue_tables import Text
from harness.whitebox.features.glosses import Gloss
from harness.whitebox.features.top_activations import Firings, TopActivations
from harness.whitebox.sources.dictionaries import CONFIG, Located
from harness.whitebox.sources.sites import Submodule

BUCKET = "s3://neuronpedia-datasets"

SOURCES: dict[str, tuple[str, dict[Submodule, str]]] = {
    "gpt2-small": (
        "gpt2-small",
        {
            "attn_out": "{}-att_32k-oai",
            "mlp_out": "{}-mlp_32k-oai",
            "resid_mid": "{}-res_mid_32k-oai",
            "resid_post": "{}-res_post_32k-oai",
        },
    ),
    "pythia-70m": (
        "pythia-70m-deduped",
        {"attn_out": "{}-att-sm", "mlp_out": "{}-mlp-sm", "resid_post": "{}-res-sm"},
    ),
}
"""Neuronpedia's names of model and source, made from layer and sub-module: fields of other files have misprints."""

_NUMBER = re.compile(r"(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """The folder of one site."""

    folder: Path

    def digest(self, *kinds: str) -> str:
        """sha256 over all batches of these kinds, in order."""
        return sha256(*(path for kind in kinds for path in self.batches(kind)))

    def batches(self, kind: str) -> list[Path]:
        """The files of one kind, in order of their numbers; raises UsageError where there is none."""
        found = [path for folder in sorted(self.folder.glob(f"{kind}*")) for path in folder.glob("batch-*.jsonl.gz")]
        if not found:
            raise UsageError(
                f"{self.folder}: has no {kind}/batch-*.jsonl.gz",
                hint=f"where there is a network: aws s3 sync --no-sign-request {self._address()}/{kind} {self.folder}/{kind}",
            )
        return sorted(found, key=lambda path: (path.parent.name, int("".join(_NUMBER.findall(path.stem)[-1:]) or 0)))

    def rows(self, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """The JSON objects of one kind, one after another, each with its file and line."""
        for path in self.batches(kind):
            for number, row in read_rows(path):
                yield f"{path}:{number}", row

    def _address(self) -> str:
        return f"{BUCKET}/v1/{self.folder.parent.name}/{self.folder.name}"


def find_export(exports: Path, located: Located) -> Export:
    """The folder of the dictionary's site under `exports`; raises UsageError where its name is not known."""
    model, source = _names(located)
    root = exports / "v1" if (exports / "v1").is_dir() else exports
    return Export(folder=root / model / source)


def explanations(export: Export, d_sae: int, explainer: str | None = None) -> tuple[dict[int, Gloss], dict[int, Any]]:
    """The first explanation that `explainer` gave of each feature, and its embedding where it has one.

    Without a name, the explainer who speaks of most features is taken. Raises UsageError where nobody of that name speaks.
    """
    preferred = explainer or _most_common(export, d_sae)
    glosses: dict[int, Gloss] = {}
    embeddings: dict[int, Any] = {}
    others: Counter[str] = Counter()
    for where, row in export.rows("explanations"):
        who, text = _explainer(row), str(row.get("description") or "").strip()
        feature = _index(row, where, d_sae)
        if who != preferred:
            others[who] += 1
        elif text and feature not in glosses:
            glosses[feature] = Gloss(text=text, source=f"neuronpedia:{who}")
            if (vector := _vector(row.get("embedding"))) is not None:
                embeddings[feature] = vector
    if not glosses:
        raise UsageError(
            f"{export.folder}: no explanation by {preferred!r}",
            hint=f"there are: {', '.join(sorted(others)) or 'none'}; choose one with --explainer",
        )
    return glosses, embeddings


def vectors(export: Export, embeddings: dict[int, Any], glosses: dict[int, Gloss], d_sae: int) -> NDArray[np.float32]:
    """The export's own gloss vectors at unit length, (d_sae, e); raises UsageError where some gloss has none of that width."""
    widths = {len(vector) for vector in embeddings.values()}
    if len(widths) != 1 or len(embeddings) < len(glosses):
        raise UsageError(
            f"{export.folder}: {len(embeddings):,} of {len(glosses):,} glosses have an embedding, widths {sorted(widths)}",
            hint="embed all texts anew: --gloss-vectors packaged",
        )
    found = np.zeros((d_sae, widths.pop()), np.float32)
    for feature, vector in embeddings.items():
        found[feature] = vector / max(float(np.linalg.norm(vector)), 1e-12)
    return found


def feature_numbers(export: Export, d_sae: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Density and largest activation of each feature, (d_sae,) each; NaN where the export does not say."""
    density, largest = np.full(d_sae, np.nan), np.full(d_sae, np.nan)
    for where, row in export.rows("features"):
        feature = _index(row, where, d_sae)
        density[feature] = _number(row.get("frac_nonzero"))
        largest[feature] = _number(row.get("maxActApprox"))
    return density, largest


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """What one batch of activations says. Labels of `tokens` are `text`'s own ids, those of `contexts` its document numbers."""

    tokens: Firings
    contexts: Firings
    text: Text
    n_skipped: int


def activation_batches(export: Export, d_sae: int) -> Iterator[Batch]:
    """The top activations of each batch of features; only one batch is held at a time.

    Rows whose tokens and values do not match in number are skipped. Raises FileFormatError for a feature in two batches.
    """
    done: set[int] = set()
    for path in export.batches("activations"):
        reader = _BatchReader(d_sae)
        for number, row in read_rows(path):
            feature = _index(row, f"{path}:{number}", d_sae)
            if feature in done:
                raise FileFormatError(
                    f"{path}:{number}", f"feature {feature} stood in an earlier batch", hint="fetch them again"
                )
            reader.add(row, feature)
        done |= reader.features
        yield reader.finish()


class _BatchReader:
    """The rows of a batch on their way to top activations."""

    def __init__(self, d_sae: int) -> None:
        self.features: set[int] = set()
        self._skipped = 0
        self._documents: dict[str, int] = {}
        self._tokens: dict[str, int] = {}
        self._top_tokens = TopActivations(d_sae, TOP_TOKENS)
        self._top_contexts = TopActivations(d_sae, TOP_CONTEXTS)

    def add(self, row: dict[str, Any], feature: int) -> None:
        """Take a row: a context, with an activation for each token."""
        self.features.add(feature)
        texts, given = row.get("tokens"), row.get("values")
        if not isinstance(texts, list) or not isinstance(given, list) or len(texts) != len(given):
            self._skipped += 1
            return
        values = np.array([_number(value) for value in given], np.float32)
        decoded = [decode_byte_level(str(text)) for text in texts]
        fires = np.flatnonzero(values > 0)
        if not len(fires):
            return
        shown = ["\ufffd" if text is None else text for text in decoded]
        lengths = np.array([len(text) for text in shown])
        ends = np.cumsum(lengths)
        document = self._documents.setdefault("".join(shown), len(self._documents))
        spans = np.stack((np.full(len(shown), document), ends - lengths, ends), axis=1).astype(np.int32)
        top = row.get("maxValueTokenIndex")
        peak = top if isinstance(top, int) and 0 <= top < len(shown) and values[top] > 0 else int(np.nanargmax(values))
        self._top_contexts.add(_firings(feature, [document], values[[peak]], spans[[peak]]))
        readable = np.array([at for at in fires if decoded[at] is not None], np.int64)
        labels = [self._tokens.setdefault(shown[at], len(self._tokens)) for at in readable]
        self._top_tokens.add(_firings(feature, labels, values[readable], spans[readable]))

    def finish(self) -> Batch:
        """What was found."""
        text = Text(documents=tuple(self._documents), token_texts=tuple(self._tokens), ids_known=False)
        return Batch(tokens=self._top_tokens.best(), contexts=self._top_contexts.best(), text=text, n_skipped=self._skipped)


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The JSON objects of one batch with their line numbers; raises FileFormatError naming file and line."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, _object(line, f"{path}:{number}")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as exc:
        raise FileFormatError(str(path), f"cannot be read: {exc}", hint="fetch it again") from exc


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError as exc:
        raise FileFormatError(where, f"not valid JSON: {exc}", hint="fetch it again") from exc
    if not isinstance(found, dict):
        raise FileFormatError(where, "expected one JSON object a line")
    return found


def _names(located: Located) -> tuple[str, str]:
    """Neuronpedia's model and source of a dictionary: those known here, else those its `cfg.json` names."""
    dictionary = located.dictionary
    if dictionary.source in SOURCES:
        model, templates = SOURCES[dictionary.source]
        if dictionary.site.submodule in templates:
            return model, templates[dictionary.site.submodule].format(dictionary.site.layer)
    path = located.weights.with_name(CONFIG)
    data = json.loads(path.read_text(encoding="utf-8"))
    named = data.get("neuronpedia_id") or (data.get("metadata") or {}).get("neuronpedia_id") or ""
    model, _, source = str(named).partition("/")
    if not source:
        raise UsageError(
            f"{dictionary.source} {dictionary.site}: Neuronpedia's name of it is not known",
            hint=f'write it into {path}, as "neuronpedia_id": "MODEL/SOURCE"',
        )
    return model, source


def _most_common(export: Export, d_sae: int) -> str:
    """The explainer who speaks of most features; among equals the first by name."""
    spoken: dict[str, set[int]] = {}
    for where, row in export.rows("explanations"):
        if row.get("description"):
            spoken.setdefault(_explainer(row), set()).add(_index(row, where, d_sae))
    return min(spoken, key=lambda who: (-len(spoken[who]), who), default="")


def _explainer(row: dict[str, Any]) -> str:
    return str(row.get("explanationModelName") or row.get("typeName") or "unknown")


def _index(row: dict[str, Any], where: str, d_sae: int) -> int:
    try:
        feature = int(row["index"])
    except (KeyError, TypeError, ValueError) as exc:
        raise FileFormatError(where, f"index is {row.get('index')!r}, expected a feature's number") from exc
    if not 0 <= feature < d_sae:
        raise FileFormatError(
            where, f"index {feature}: the dictionary has {d_sae:,} features", hint="is it this site's export?"
        )
    return feature


def _number(value: Any) -> float:
    """A number, or NaN for anything else."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


def _vector(value: Any) -> NDArray[np.float32] | None:
    """An embedding, which may come as a string that holds a list; None where there is none or it is no vector."""
    try:
        listed = json.loads(value) if isinstance(value, str) else value
        found = np.asarray(listed, np.float32)
    except (TypeError, ValueError):
        return None
    return found if found.ndim == 1 and len(found) and np.isfinite(found).all() else None


def _firings(feature: int, labels: Sequence[int], values: NDArray[np.float32], spans: NDArray[np.int32]) -> Firings:
    return Firings(
        features=np.full(len(labels), feature, np.int32), labels=np.array(labels, np.int32), values=values, spans=spans
    )
