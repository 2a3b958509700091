"""A whole run on the scripted provider: what is written, what failures become, and that nothing is asked twice."""

from __future__ import annotations

import asyncio
import gc
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from harness.errors import StorageError
from harness.evals.plan import Choice, Plan, make_plan
from harness.evals.runner import Tally
from harness.evals.spec import find_eval
from harness.packs.pack import Draft, write_pack
from harness.providers.scripted import ScriptedProvider
from harness.providers.targets import TargetSpec, find_target
from harness.records import Observation, Probe, Prompt, Readout
from harness.reports.run import Finished, check_out, execute

N_SENTENCES, N_INJECTIONS = 6, 4
PLANTED = 1.5
"""Log-odds by which the script moves the concept's mass when the injection holds `near`."""


def plan_of(tmp_path: Path) -> Plan:
    probes = [
        Probe(concept=concept, arm=arm, injection_id=f"{arm}-{i}", injection=(f" {word}{i}",), predicted_shift=shift + i / 100)
        for concept in ("animal", "food")
        for arm, word, shift in (("related", "near", PLANTED), ("matched", "far", 0.0))
        for i in range(N_INJECTIONS)
    ]
    pack = write_pack(Draft(name="p", description="d", claims="none", maker="t", seed=0, probes=probes), tmp_path / "pack")
    spec = find_eval("transfer")
    sizes = spec.spec.sizes.model_copy(update={"injections": N_INJECTIONS, "sentences": N_SENTENCES})
    small = type(spec)(
        name="transfer", spec=spec.spec.model_copy(update={"sizes": sizes}), digest=spec.digest, found=spec.found
    )
    return make_plan(small, pack, Choice())


def planted(prompt: Prompt) -> Mapping[str, float]:
    """Some mass on a word of the prompt's own concept, the rest on words of none; `near` moves its log-odds by PLANTED."""
    rng = np.random.default_rng(list(prompt.sentence_id.encode()))
    log_odds = rng.normal(-2, 0.5) + (PLANTED if "near" in prompt.text else 0)
    p = 1 / (1 + np.exp(-log_odds))
    return {{"animal": " dog", "food": " bread"}[prompt.concept]: p, " the": 0.7 * (1 - p), " of": 0.3 * (1 - p)}


class Counting(ScriptedProvider):
    """Counts how often each prompt is asked."""

    def __init__(self, script: Callable[[Prompt], Mapping[str, float]]) -> None:
        super().__init__(script, batch_size=5, concurrency=3)
        self.asked: Counter[str] = Counter()

    async def observe(self, prompts: Sequence[Prompt], readout: Readout) -> list[Observation]:
        self.asked.update(prompt.prompt_id for prompt in prompts)
        return await super().observe(prompts, readout)


def run(plan: Plan, provider: ScriptedProvider, out: Path, watch: Callable[[Tally], None] = lambda _tally: None) -> Finished:
    spec: TargetSpec = find_target("scripted")
    return asyncio.run(execute(plan, spec, provider, out=out, command="test", on_progress=watch))


PLANNED = 2 * N_SENTENCES * (1 + 2 * N_INJECTIONS)


def test_a_planted_shift_is_found_and_everything_is_written(tmp_path: Path) -> None:
    finished = run(plan_of(tmp_path), Counting(planted), tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"manifest.json", "observations.parquet", "trials.parquet", "summary.json", "report.html"}
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["counts"] == {"planned": PLANNED, "done": PLANNED, "failed": 0, "from_cache": 0}
    observations = pq.read_table(tmp_path / "out/observations.parquet")
    assert observations.num_rows == PLANNED
    assert Counter(observations["arm"].to_pylist())["clean"] == 2 * N_SENTENCES
    trials = pq.read_table(tmp_path / "out/trials.parquet").to_pylist()
    assert len(trials) == PLANNED - 2 * N_SENTENCES
    shifts = {arm: [t["delta_log_odds"] for t in trials if t["arm"] == arm] for arm in ("related", "matched")}
    assert shifts["related"] == pytest.approx([PLANTED] * 2 * N_SENTENCES * N_INJECTIONS, abs=1e-5)
    assert shifts["matched"] == pytest.approx([0] * 2 * N_SENTENCES * N_INJECTIONS, abs=1e-5)
    contrast = next(
        c
        for c in finished.summary["contrasts"]
        if (c["concept"], c["arm"], c["control"], c["metric"]) == ("all", "related", "matched", "delta_log_odds")
    )
    assert contrast["estimate"] == pytest.approx(PLANTED, abs=1e-5)
    assert finished.summary["primary"]["arm"] == "related"
    assert finished.summary["prediction"]["n"] == 2 * 2 * N_INJECTIONS


def test_a_second_run_asks_nothing_and_gives_the_same_trials(tmp_path: Path) -> None:
    plan, provider = plan_of(tmp_path), Counting(planted)
    run(plan, provider, tmp_path / "one")
    finished = run(plan, provider, tmp_path / "two")
    assert set(provider.asked.values()) == {1}
    assert finished.tally.from_cache == PLANNED
    assert (tmp_path / "one/trials.parquet").read_bytes() == (tmp_path / "two/trials.parquet").read_bytes()


def test_a_failed_prompt_is_recorded_and_only_it_is_asked_again(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)

    def broken(prompt: Prompt) -> Mapping[str, float]:
        if prompt.injection_id == "related-1" and prompt.concept == "food":
            raise ValueError("no answer today")
        return planted(prompt)

    first = run(plan, Counting(broken), tmp_path / "one")
    assert first.tally.failed == N_SENTENCES
    assert first.manifest["failures"] == {"script: no answer today": N_SENTENCES}
    trials = pq.read_table(tmp_path / "one/trials.parquet").to_pylist()
    lost = [t for t in trials if t["injection_id"] == "related-1" and t["concept"] == "food"]
    assert len(lost) == N_SENTENCES
    assert all(t["delta_log_odds"] is None and t["count_success"] is None for t in lost)
    cell = next(c for c in first.summary["cells"] if (c["concept"], c["arm"]) == ("food", "related"))
    assert (cell["n_failed"], cell["n_trials"]) == (N_SENTENCES, N_SENTENCES * N_INJECTIONS)

    mended = Counting(planted)
    second = run(plan, mended, tmp_path / "two")
    assert sum(mended.asked.values()) == N_SENTENCES
    assert second.tally.failed == 0


def test_a_cancelled_run_keeps_what_came_back(tmp_path: Path) -> None:
    plan, provider = plan_of(tmp_path), Counting(planted)

    def stop(tally: Tally) -> None:
        if tally.done >= 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(plan, provider, tmp_path / "one", stop)
    gc.collect()  # asyncio tells of the interrupted task now; in the midst of an import, its traceback would upset the parser
    assert not (tmp_path / "one").exists(), "nothing half-written"
    kept = sum(provider.asked.values())
    finished = run(plan, provider, tmp_path / "two")
    assert finished.tally.from_cache >= 20
    assert sum(provider.asked.values()) <= PLANNED + (kept - 20)


def test_a_folder_with_something_else_in_it_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("keep")
    with pytest.raises(StorageError, match="exists and is no run folder"):
        check_out(tmp_path / "out")
    check_out(tmp_path / "new/run")
