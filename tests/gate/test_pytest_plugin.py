"""`pytest --harness-gate TARGET` in a suite of somebody's own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest

from harness.errors import UnknownNameError
from harness.gate import gate
from harness.gate.order import Order
from harness.gate.result import GateResult, Score
from harness.masking import Mask

pytest_plugins = ["pytester"]

KEY = "sk-plugin-test-0123456789"
PASSED = GateResult(
    decision="pass",
    exit_code=0,
    reason="no loss as large as 0.1 nat",
    metric="clean_log_odds",
    unit="nat",
    arm=None,
    control=None,
    margin=0.1,
    alpha=0.01,
    method="anytime",
    score=Score(estimate=0.0, ci_low=-0.05, ci_high=0.05, n_units=80, n_clusters=40),
    n_cap=100,
    n_planned=80,
    n_failed=0,
    max_failed_share=0.02,
    n_requests=80,
    run={"target": "mine"},
)
Answer = Callable[[Order], GateResult]


@pytest.fixture
def orders(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Callable[[GateResult | Exception], list[Order]]:
    """Sets what the gate answers in the suite of one passing test; gives the list of what it was asked."""
    pytester.makepyfile(test_own="def test_one():\n    pass\n")

    def set_answer(answer: GateResult | Exception) -> list[Order]:
        asked: list[Order] = []

        def run_gate(order: Order) -> GateResult:
            asked.append(order)
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(gate, "run_gate", run_gate)
        return asked

    return set_answer


def run(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    """The suite with the gate; Hypothesis stays away, whose import in every inner session takes a second."""
    return pytester.runpytest_inprocess("-p", "no:hypothesispytest", *arguments)


@pytest.mark.parametrize(
    ("decision", "exit_code", "ended"),
    [
        ("pass", 0, {"passed": 2}),
        ("fail", 1, {"passed": 1, "failed": 1}),
        ("incomplete", 3, {"passed": 1, "failed": 1}),
        ("inconclusive", 1, {"passed": 1, "failed": 1}),
        ("inconclusive", 0, {"passed": 1, "skipped": 1}),
    ],
)
def test_one_item_more_ends_as_the_gate_did(
    pytester: pytest.Pytester, orders: Callable[..., object], decision: str, exit_code: int, ended: dict[str, int]
) -> None:
    orders(replace(PASSED, decision=decision, exit_code=exit_code, reason=f"because it is {decision}"))
    result = run(pytester, "--harness-gate", "mine")
    result.assert_outcomes(**ended)
    result.stdout.fnmatch_lines(["*= harness gate =*", f"Gate *: mine: because it is {decision}"])


def test_a_failed_gate_is_told_without_a_traceback(pytester: pytest.Pytester, orders: Callable[..., object]) -> None:
    orders(replace(PASSED, decision="fail", exit_code=1, reason="the target lost 0.3 nat"))
    result = run(pytester, "--harness-gate", "mine")
    told = result.stdout.str()
    assert "Gate failed: mine: the target lost 0.3 nat" in told
    assert "clean_log_odds, run minus baseline: +0.0000 [-0.0500, 0.0500] nat; the margin is 0.1 nat" in told
    assert "Traceback" not in told
    assert "pytest_plugin.py" not in told


def test_the_options_reach_the_gate_and_each_target_has_its_item(
    pytester: pytest.Pytester, orders: Callable[..., list[Order]]
) -> None:
    asked = orders(PASSED)
    given = ("--harness-eval", "transfer", "--harness-baseline", "b.json", "--harness-margin", "0.2")
    result = run(pytester, "--harness-gate", "one", "--harness-gate", "two", *given)
    result.assert_outcomes(passed=3)
    assert [order.target for order in asked] == ["one", "two"]
    assert {(order.eval, str(order.baseline), order.rule.margin) for order in asked} == {("transfer", "b.json", 0.2)}


def test_the_item_can_be_chosen_and_left_out_by_name(pytester: pytest.Pytester, orders: Callable[..., list[Order]]) -> None:
    asked = orders(PASSED)
    run(pytester, "--harness-gate", "mine", "-k", "harness-gate").assert_outcomes(passed=1, deselected=1)
    assert len(asked) == 1
    run(pytester, "--harness-gate", "mine", "-k", "not harness-gate").assert_outcomes(passed=1, deselected=1)
    assert len(asked) == 1


def test_an_error_of_the_user_is_told_with_its_hint_and_no_error_shows_a_key(
    pytester: pytest.Pytester, orders: Callable[..., object]
) -> None:
    orders(UnknownNameError("target", "mime", ["mine"]))
    result = run(pytester, "--harness-gate", "mime")
    result.stdout.fnmatch_lines(["error: unknown target 'mime'", "hint: did you mean 'mine'?"])
    Mask(KEY)
    orders(RuntimeError(f"the endpoint said {KEY}"))
    told = run(pytester, "--harness-gate", "mine").stdout.str()
    assert "the endpoint said ***" in told


def test_a_junit_report_of_pytest_holds_the_answer(pytester: pytest.Pytester, orders: Callable[..., object]) -> None:
    orders(PASSED)
    run(pytester, "--harness-gate", "mine", "--junitxml", "junit.xml")
    assert (
        'name="harness_gate" value="Gate passed: mine: no loss as large as 0.1 nat"'
        in (pytester.path / "junit.xml").read_text()
    )


def test_without_the_option_nothing_is_added_and_nothing_of_the_harness_is_imported(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import sys

        def test_own():
            loaded = {name for name in sys.modules if name.split(".")[0] == "harness"}
            assert loaded == {"harness", "harness.gate", "harness.gate.pytest_plugin"}
        """
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest"],
        cwd=pytester.path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
    assert "harness gate" not in done.stdout


def test_a_real_gate_passes_an_unchanged_target(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_own="def test_one():\n    pass\n")
    gate.accept_target(Order(target="scripted"))
    run(pytester, "--harness-gate", "scripted").assert_outcomes(passed=2)
    assert (pytester.path / "reports/baselines/regression-scripted.json").is_file()
