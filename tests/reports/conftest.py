"""Summaries and manifests written by hand, so that what a report must say of them is known without the code under test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

METRICS = ("count_success", "mass_success", "delta_mass", "delta_log_odds")
CONCEPTS = ("animal", "color", "location")
Builder = Callable[..., dict[str, Any]]


def estimated(value: float | None, half: float | None = 0.1, reason: str | None = None) -> dict[str, Any]:
    """An estimate with a symmetric interval; without one where `half` is None."""
    low, high = (None, None) if value is None or half is None else (value - half, value + half)
    return {"estimate": value, "estimate_low": value, "estimate_high": value, "ci_low": low, "ci_high": high, "reason": reason}


def _cell(concept: str, arm: str, *, off_type: bool = False, n_failed: int = 0) -> dict[str, Any]:
    counts = {"n_sentences": 12, "n_injections": 8, "n_trials": 96, "n_failed": n_failed, "mode": "topk"}
    counts |= {"n_up": 40, "n_down": 20, "n_unidentified": 36 - n_failed, "identified_share": 60 / (96 - n_failed)}
    means = {
        "count_success": estimated(0.412, 0.032),
        "mass_success": estimated(0.636, 0.05),
        "delta_mass": estimated(0.0123, 0.004),
        "delta_log_odds": estimated(0.44, 0.07),
    }
    return {"target": "scripted", "concept": concept, "arm": arm, "off_type": off_type, **counts, **means}


def _contrast(concept: str, metric: str, place: int) -> dict[str, Any]:
    value = estimated(0.1 + 0.2 * place, 0.25)
    names = {"concept": concept, "arm": "related", "control": "matched", "metric": metric}
    return {**names, **value, "p": 0.01, "p_holm": 0.03, "verdict": None, "mde": None}


@pytest.fixture
def make_summary() -> Builder:
    """A summary over `concepts`, whose primary contrast over all of them is what `overall` says."""

    def make(
        overall: dict[str, Any] | None = None, *, concepts: tuple[str, ...] = CONCEPTS, metric: str = "delta_log_odds"
    ) -> dict[str, Any]:
        places = [*concepts, "all"]
        contrasts = [_contrast(name, m, place) for m in METRICS for place, name in enumerate(places)]
        for row in contrasts:
            if row["concept"] == "all" and row["metric"] == metric and overall is not None:
                row.update(overall)
        return {
            "run_id": "20260101-000000-transfer-scripted",
            "target": "scripted",
            "mode": "topk",
            "modes": dict.fromkeys(concepts, "topk"),
            "primary": {"arm": "related", "control": "matched", "metric": metric},
            "cells": [_cell(name, arm) for name in places for arm in ("self", "related", "matched")],
            "contrasts": contrasts,
            "prediction": {
                "n": 0,
                "spearman": None,
                "ci_low": None,
                "ci_high": None,
                "p": None,
                "reason": "fewer than 5 points",
            },
            "cost": {"input_tokens": 12_345, "output_tokens": 300, "usd": 0.25},
            "timing": {"asked_s": 9.5, "total_s": 12.0, "prompts_per_s": 31.6},
        }

    return make


@pytest.fixture
def make_manifest() -> Builder:
    """A manifest with every key that the report reads; keyword arguments replace entries."""

    def make(**replaced: Any) -> dict[str, Any]:
        return {
            "run_id": "20260101-000000-transfer-scripted",
            "harness_version": "0.1.0",
            "git_revision": "abcdef123456",
            "command": "harness run --target scripted",
            "eval": {
                "name": "transfer",
                "digest": "e" * 64,
                "description": "what the eval asks",
                "design": "crossed",
                "template": "paren",
                "k": 30,
            },
            "pack": {
                "name": "lexical",
                "digest": "d" * 64,
                "description": "word lists",
                "claims": "nothing about interference",
            },
            "target": "scripted",
            "endpoint": "scripted",
            "model": "scripted",
            "revision": "r1",
            "tokenizer_digest": "c" * 64,
            "capabilities": {"token_ids": False, "max_logprobs": None, "notes": ["from a script"]},
            "settings": {"dtype": "float32"},
            "seed": 7,
            "sizes": {"injections": 8, "sentences": 12, "off_type": 0},
            "concepts": list(CONCEPTS),
            "lexicons": {name: {"words": 150, "ids": 210, "resolved_share": 0.6} for name in CONCEPTS},
            "versions": {"python": "3.11.2", "numpy": "2.3.0"},
            "started": "2026-01-01T00:00:00+00:00",
            "finished": "2026-01-01T00:01:30+00:00",
            "counts": {"planned": 300, "done": 300, "failed": 0, "from_cache": 0},
            "failures": {},
        } | replaced

    return make
