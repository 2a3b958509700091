"""A small eval with a gate, a small pack for it, and a target whose answers can be moved by a given total variation."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest

from harness.evals.spec import GateSpec
from harness.gate.answers import Answer
from harness.packs.pack import seal
from harness.providers.scripted import ScriptedProvider
from harness.records import Observation, Prompt, Readout

EVAL = """
description = "a test"
pack = "{pack}"
design = "{design}"
template = "paren"
arms = ["matched", "related"]
logprobs = 50
[[primary]]
arm = "related"
control = "matched"
metric = "delta_log_odds"
margin = 0.1
[gate]
{gate}
[sizes]
injections = 12
sentences = 12
[full]
injections = 12
sentences = 12
"""

AGREEMENT = 'metric = "agreement"\narm = "related"\nmargin = 0.1\nalpha = 0.05'


class Moved(ScriptedProvider):
    """Answers with a few words; the share `moved(prompt)` of probability lies on a word that the unmoved target never says.

    `asked` counts prompts; those that `fails` says fail.
    """

    def __init__(
        self, moved: Callable[[Prompt], float] = lambda _: 0.0, fails: Callable[[Prompt], bool] = lambda _: False
    ) -> None:
        super().__init__(self._words)
        self.moved = moved
        self.fails = fails
        self.asked: list[str] = []

    def _words(self, prompt: Prompt) -> Mapping[str, float]:
        share = self.moved(prompt)
        first = crc32(prompt.text.encode()) % 5
        told = {f" w{i}": (1 - share) * p for i, p in enumerate((0.4, 0.2, 0.15, 0.1, 0.06, 0.04), start=first)}
        told[" dog"] = (1 - share) * 0.05
        return told | ({" other": share} if share else {})

    async def observe(self, prompts: Sequence[Prompt], readout: Readout) -> list[Observation]:
        self.asked += [prompt.prompt_id for prompt in prompts]
        seen = await super().observe(prompts, readout)
        return [Observation(error="HTTP 500") if self.fails(p) else o for p, o in zip(prompts, seen, strict=True)]


CONCEPTS = ("animal", "body", "food", "music", "tool", "vehicle")


@pytest.fixture(scope="session")
def small_pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two arms of six concepts from the lexical pack, read in no time."""
    folder = tmp_path_factory.mktemp("packs") / "few"
    folder.mkdir()
    whole = Path(__file__).parents[2] / "prompts" / "packs" / "lexical"
    manifest = (whole / "pack.toml").read_text().partition("[digests]")[0]
    (folder / "pack.toml").write_text(manifest.replace('"lexical"', '"few"') + "[digests]\n")
    kept = [
        line
        for line in (whole / "probes.jsonl").read_text().splitlines()
        if (probe := json.loads(line))["concept"] in CONCEPTS
        and probe["arm"] in ("matched", "related")
        and int(probe["injection_id"][-4:]) < 12
    ]
    (folder / "probes.jsonl").write_text("\n".join(kept) + "\n")
    seal(folder)
    return folder


@pytest.fixture
def make_eval(tmp_path: Path, small_pack: Path) -> Callable[..., str]:
    """Writes the small eval and returns its path as a name."""

    def make(gate: str = AGREEMENT, design: str = "paired") -> str:
        folder = tmp_path / "small"
        folder.mkdir(exist_ok=True)
        (folder / "eval.toml").write_text(EVAL.format(gate=gate, design=design, pack=small_pack))
        return str(folder)

    return make


def gate_spec(**given: object) -> GateSpec:
    return GateSpec.model_validate({"metric": "agreement", "margin": 0.1} | given)


def answer(prompt: str, **given: object) -> Answer:
    """The answer to `concept/arm/injection/sentence`, in words whose probabilities `p` holds."""
    concept, arm, injection, sentence = prompt.split("/")
    words: dict[str, float] = given.pop("p", {" a": 0.5, " b": 0.3})  # type: ignore[assignment]
    fields: dict[str, object] = {
        "prompt": prompt,
        "concept": concept,
        "arm": arm,
        "sentence": f"{concept}/{sentence}",
        "injection": f"{concept}/{arm}/{injection or sentence}",
        "text": f"text of {prompt}",
        "tokens": tuple(words),
        "logprobs": np.log(list(words.values())),
        "value": None,
        "error": None,
    }
    return Answer(**(fields | given))  # type: ignore[arg-type]
