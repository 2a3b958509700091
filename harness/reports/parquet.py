"""The two tables of a run folder, streamed: `observations.parquet` and `trials.parquet`. Owns their schemas."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from harness.evals.score import Columns
from harness.evals.trials import ScoredBatch
from harness.providers.vocabulary import Vocabulary

GROUP_BYTES = 16 << 20
"""Size in memory at which rows are written out: lists of a thousand tokens fill a group a hundred times sooner than numbers."""

OBSERVATIONS = pa.schema(
    [
        *((name, pa.string()) for name in ("prompt_id", "concept", "arm", "sentence_id", "injection_id", "template", "prompt")),
        ("prompt_token_ids", pa.list_(pa.int32())),
        ("token_ids", pa.list_(pa.int32())),
        ("tokens", pa.list_(pa.string())),
        ("logprobs", pa.list_(pa.float32())),
        ("covered_mass", pa.float64()),
        ("mode", pa.string()),
        ("mass_low", pa.float64()),
        ("mass_high", pa.float64()),
        ("hits", pa.int32()),
        ("n_draws", pa.int32()),
        ("bias", pa.float64()),
        ("error", pa.string()),
        ("attempts", pa.int32()),
        ("latency_s", pa.float64()),
    ]
)
_TEXTS = ("concept", "arm", "sentence_id", "injection_id")
_NUMBERS = (
    *("mass_clean_low", "mass_clean_high", "mass_injected_low", "mass_injected_high", "mass_success"),
    *("delta_mass", "delta_mass_low", "delta_mass_high"),
    *("delta_log_odds", "delta_log_odds_low", "delta_log_odds_high"),
    *("cosine_clean", "cosine_injected", "delta_cosine", "tv_low", "tv_high", "top1_changed", "predicted_shift"),
)
_FLAGS = ("mass_success", "top1_changed")
TRIALS = pa.schema(
    [
        *((name, pa.string()) for name in _TEXTS),
        ("off_type", pa.bool_()),
        ("k", pa.int32()),
        ("count_clean", pa.int32()),
        ("count_injected", pa.int32()),
        ("count_success", pa.bool_()),
        ("identified", pa.string()),
        *((name, pa.bool_() if name in _FLAGS else pa.float64()) for name in _NUMBERS),
    ]
)


class TableWriter:
    """Appends batches to a Parquet file and writes a row group whenever enough has come; a context manager."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._schema = schema
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")
        self._parts: list[pa.RecordBatch] = []
        self._bytes = 0

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self._flush()
        self._writer.close()

    def add(self, columns: Columns) -> None:
        """Append the columns that the schema names. NaN in a number becomes null."""
        arrays = [_array(columns[field.name], field.type) for field in self._schema]
        self._parts.append(pa.record_batch(arrays, schema=self._schema))
        self._bytes += self._parts[-1].nbytes
        if self._bytes >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._parts:
            self._writer.write_table(pa.Table.from_batches(self._parts, self._schema))
        self._parts.clear()
        self._bytes = 0


def _array(values: Any, kind: pa.DataType) -> pa.Array:
    if isinstance(values, np.ndarray) and values.dtype.kind == "f":
        return pa.array(values, from_pandas=True).cast(kind)
    return pa.array(values, kind)


def observation_columns(batch: ScoredBatch, vocabulary: Vocabulary | None) -> Columns:
    """The columns of `observations.parquet` for one batch; token texts are filled in from the ids."""
    prompts, observations = batch.prompts, batch.observations
    texts = [
        o.tokens if o.token_ids is None or vocabulary is None else [vocabulary.text(i) for i in o.token_ids.tolist()]
        for o in observations
    ]
    return {
        **{name: [getattr(p, name) for p in prompts] for name in (*_TEXTS, "prompt_id", "template")},
        "prompt": [p.text for p in prompts],
        "prompt_token_ids": [p.token_ids for p in prompts],
        "token_ids": [o.token_ids for o in observations],
        "tokens": texts,
        "logprobs": [o.logprobs for o in observations],
        "covered_mass": [o.covered_mass for o in observations],
        "mode": [o.mode for o in observations],
        "mass_low": batch.view.low,
        "mass_high": batch.view.high,
        **{name: [getattr(o, name) for o in observations] for name in ("hits", "n_draws", "bias")},
        "error": [o.error for o in observations],
        "attempts": [o.attempts for o in observations],
        "latency_s": [o.latency_s for o in observations],
    }
