"""`pytest --harness-gate TARGET`: one test more, which passes, fails or is skipped as the gate decides.

pytest imports this module at every start, so it imports nothing of the harness before a gate runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

PROPERTY = "harness_gate"
"""The property of a report that holds the gate's answer in one line; it stands in `--junitxml` too."""


class GateFailedError(Exception):
    """The gate did not pass; the message is for a person."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options; without the first the plugin does nothing."""
    add = parser.getgroup("harness-gate", "regression gate of a language model").addoption
    add("--harness-gate", action="append", default=[], metavar="TARGET", help="hold this target against its accepted baseline")
    add("--harness-eval", default="regression", metavar="EVAL", help="the eval that the gate asks (default: regression)")
    add("--harness-baseline", type=Path, metavar="FILE", help="default: reports/baselines/EVAL-TARGET.json")
    add("--harness-margin", type=float, metavar="X", help="the largest loss that passes, in place of the eval's own")


@pytest.hookimpl(tryfirst=True)  # before `-k` and `-m` choose, so that they choose among these too
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """One item a target, after the suite's own tests."""
    for target in config.option.harness_gate:
        items.append(GateItem.from_parent(session, name=f"harness-gate[{target}]", target=target))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What each gate said, also where it passed or was skipped."""
    reports = [report for group in terminalreporter.stats.values() for report in group if isinstance(report, pytest.TestReport)]
    said = [value for report in reports if report.when == "call" for name, value in report.user_properties if name == PROPERTY]
    if said:
        terminalreporter.section("harness gate")
    for line in said:
        terminalreporter.line(str(line))


class GateItem(pytest.Item):
    """Asks one target until the answer is clear."""

    def __init__(self, *, target: str, **given: Any) -> None:
        super().__init__(**given)
        self.target = target

    def runtest(self) -> None:
        """Raises GateFailedError where the gate fails the build; skips where it is undecided and lets that pass."""
        from harness.gate.gate import run_gate
        from harness.gate.order import Order, Rule
        from harness.gate.presentable import details, presentable, title

        option = self.config.option
        rule = Rule(margin=option.harness_margin)
        order = Order(target=self.target, eval=option.harness_eval, baseline=option.harness_baseline, rule=rule)
        result = presentable(run_gate(order))
        self.user_properties.append((PROPERTY, f"{title(result)}: {result.reason}"))
        if result.exit_code:
            raise GateFailedError("\n".join([f"{title(result)}: {result.reason}", *details(result)]))
        if result.decision != "pass":
            pytest.skip(result.reason)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], *_args: Any) -> str:
        """The message alone where it is one for people; no key in anything else."""
        from harness.errors import HarnessError
        from harness.masking import hide_keys

        told = excinfo.value
        if isinstance(told, HarnessError):
            return hide_keys(f"error: {told.message}" + (f"\nhint: {told.hint}" if told.hint else ""))
        if isinstance(told, GateFailedError):
            return str(told)
        return hide_keys(f"{excinfo.exconly()}\n{excinfo.getrepr(style='short')}")

    def reportinfo(self) -> tuple[Path, None, str]:
        """Where it stands in a list of tests: it has no file."""
        return self.path, None, self.name
