"""As much of a GitHub runner as the project's action and workflow need: expressions, conditions, `run:` steps in bash.

A step that uses somebody else's action is listed as skipped; one that uses a feature not known here fails the test.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

Yaml = dict[Any, Any]

SHELLS = {None: ["bash", "-e"], "bash": ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail"]}
"""What GitHub runs a script with, by the step's `shell`."""

_EXPRESSION = re.compile(r"\$\{\{\s*(.*?)\s*\}\}")
_TERM = re.compile(r"(?P<name>[\w.-]+) (?P<sign>==|!=) '(?P<value>[^']*)'")


@dataclass(frozen=True, kw_only=True)
class Done:
    """A step that was come to. `outcome`: success, failure, or skipped; `given`: the inputs of somebody else's action."""

    name: str
    outcome: str
    stdout: str = ""
    stderr: str = ""
    uses: str | None = None
    given: Yaml = field(default_factory=dict)


@dataclass(kw_only=True)
class Runner:
    """One job: what it has done, in order. `workspace` is where `./` is; `env` the whole environment of its scripts."""

    workspace: Path
    temp: Path
    env: dict[str, str]
    done: list[Done] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether a step failed."""
        return any(step.outcome == "failure" for step in self.done)

    def workflow(self, file: Path, job: str, inputs: dict[str, str]) -> None:
        """Run a job of a workflow that was started by hand."""
        declared = load(file)
        offered = declared[True]["workflow_dispatch"]["inputs"]  # YAML 1.1 takes the key `on` for a truth value
        self._steps(declared["jobs"][job]["steps"], {"inputs": with_defaults(offered, inputs)}, {})

    def action(self, folder: Path, inputs: dict[str, str], env: dict[str, str]) -> None:
        """Run a composite action."""
        declared = load(folder / "action.yml")
        assert declared["runs"]["using"] == "composite"
        assert all("shell" in step for step in declared["runs"]["steps"] if "run" in step), "GitHub wants one in an action"
        context = {"inputs": with_defaults(declared["inputs"], inputs)}
        self._steps(declared["runs"]["steps"], context, env | {"GITHUB_ACTION_PATH": str(folder)})

    def _steps(self, steps: list[Yaml], context: Yaml, env: dict[str, str]) -> None:
        context = context | {"steps": {}}
        for step in steps:
            assert step.keys() <= {"name", "id", "if", "uses", "with", "run", "shell", "env", "working-directory"}
            name = step.get("name", step.get("uses", ""))
            if not holds(step.get("if", ""), context, failed=self.failed):
                self.done.append(Done(name=name, outcome="skipped"))
                continue
            own = env | {key: substituted(value, context) for key, value in step.get("env", {}).items()}
            given = {key: substituted(value, context) for key, value in step.get("with", {}).items()}
            if step.get("uses") == "./":
                self.action(self.workspace, given, own)
            elif "uses" in step:
                self.done.append(Done(name=name, outcome="skipped", uses=step["uses"], given=given))
            else:
                outputs = self._script(step, name, context, own)
                context["steps"][step.get("id")] = {"outputs": outputs}

    def _script(self, step: Yaml, name: str, context: Yaml, env: dict[str, str]) -> dict[str, str]:
        """Run a script; the outputs it set."""
        assert "${{" not in step["run"], "an expression in a script can be made a command: hand it over in `env`"
        folder = self.temp / f"step-{len(self.done)}"
        folder.mkdir(parents=True)
        (script := folder / "script.sh").write_text(step["run"], encoding="utf-8")
        (output := folder / "output").touch()
        cwd = self.workspace / substituted(step.get("working-directory", "."), context)
        github = {"GITHUB_ACTIONS": "true", "RUNNER_TEMP": str(self.temp), "GITHUB_OUTPUT": str(output)}
        summary = {"GITHUB_STEP_SUMMARY": str(folder / "summary.md")}
        ended = subprocess.run(
            [*SHELLS[step.get("shell")], str(script)],
            cwd=cwd,
            env=self.env | github | summary | env,
            capture_output=True,
            text=True,
            check=False,
        )
        outcome = "failure" if ended.returncode else "success"
        self.done.append(Done(name=name, outcome=outcome, stdout=ended.stdout, stderr=ended.stderr))
        return dict(line.split("=", 1) for line in output.read_text(encoding="utf-8").splitlines())


def load(file: Path) -> Yaml:
    """A YAML file."""
    declared: Yaml = yaml.safe_load(file.read_text(encoding="utf-8"))
    return declared


def with_defaults(declared: Yaml, given: dict[str, str]) -> dict[str, str]:
    """The inputs as an action sees them; fails for one that it does not declare or that is missing."""
    assert given.keys() <= declared.keys(), f"unknown inputs: {given.keys() - declared.keys()}"
    assert not [name for name, one in declared.items() if one.get("required") and name not in given]
    return {name: one.get("default", "") for name, one in declared.items()} | given


def substituted(text: Any, context: Yaml) -> str:
    """`text` with its expressions replaced: names of the context, nothing more."""
    return _EXPRESSION.sub(lambda found: looked_up(found[1], context), str(text))


def looked_up(name: str, context: Yaml) -> str:
    """The value behind `inputs.x` or `steps.x.outputs.y`; outputs that were not set are empty, other names must be there."""
    parts = name.split(".")
    value = context
    for part in parts:
        if part not in value and parts[0] == "steps":
            return ""
        value = value[part]
    return str(value)


def holds(condition: str, context: Yaml, *, failed: bool) -> bool:
    """Whether a step runs: comparisons with a text joined by `&&`; without `always()` only where nothing failed before."""
    terms = [term.strip() for term in condition.split("&&") if term.strip()]
    if failed and "always()" not in terms:
        return False
    for term in terms:
        if term == "always()":
            continue
        found = _TERM.fullmatch(term)
        assert found is not None, f"a condition that is not known here: {term}"
        if (looked_up(found["name"], context) == found["value"]) != (found["sign"] == "=="):
            return False
    return True
