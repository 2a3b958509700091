"""The shape of the package: dependencies point downwards, there is no cycle, and modules stay readable."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "harness"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "_shipped" not in path.parts)

# Each layer may import itself and what stands below it.
LAYERS = [
    {"cli", "__main__"},
    {"gate", "compare"},
    {"reports"},
    {"evals", "whitebox"},  # whitebox is a leaf: only the command line imports it
    {"lexicon"},
    {"stats", "packs", "providers"},
    {"config", "registry", "store", "wheels", "faults"},
    {"records", "errors", "paths", "masking", "__init__"},
]


def room(module: Path) -> str:
    return module.relative_to(PACKAGE).parts[0].removesuffix(".py")


def layer(name: str) -> int:
    return next(i for i, rooms in enumerate(LAYERS) if name in rooms)


def imports(module: Path) -> set[str]:
    """The harness modules that `module` imports at its top level, as dotted names."""
    found = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "harness":
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            known = {dotted(path) for path in MODULES}
            found |= {name for name in submodules if name in known} or {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "harness"}
    return found


def dotted(module: Path) -> str:
    parts = module.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("module", MODULES, ids=dotted)
def test_imports_point_downwards_only(module: Path) -> None:
    here = room(module)
    for name in imports(module):
        parts = name.split(".")
        there = parts[1] if len(parts) > 1 else "__init__"
        sibling = here == there or (here in LAYERS[-1] and there in LAYERS[-1]) or here == "__main__"
        scripted = module.name == "scripted.py" and there == "packs"  # its words are the lexicons'
        assert sibling or scripted or layer(there) > layer(here), f"{dotted(module)} imports {name}"


def test_stats_knows_nothing_of_the_rest() -> None:
    for module in MODULES:
        if room(module) == "stats":
            assert all(name.startswith(("harness.stats", "harness.records", "harness.errors")) for name in imports(module))


def test_there_is_no_import_cycle() -> None:
    graph = {dotted(module): imports(module) for module in MODULES}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name in done:
            return
        for other in graph.get(name, ()):
            if other != name:
                visit(other, (*path, name))
        done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("module", MODULES, ids=dotted)
def test_modules_and_functions_stay_short(module: Path) -> None:
    text = module.read_text()
    assert text.count("\n") <= 500
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 60, f"{node.name} is too long"


def test_the_package_names_no_machine_and_unpickles_nothing() -> None:
    for module in MODULES:
        text = module.read_text()
        assert "import pickle" not in text
        assert "torch.load(" not in text
