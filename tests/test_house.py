"""The house: arrows between folders go one way, no circles, nothing too long."""

import ast
from pathlib import Path

import pytest

import irlkit

PACKAGE = Path(irlkit.__file__).parent
ENTRY_POINTS = {"irlkit.__main__"}
"""Modules that are run, not imported: they belong to the lab."""


def module_of(path):
    parts = ("irlkit", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports_of(module):
    """Modules of the package that a module imports, inside functions too, and their packages.

    Importing a name from a package counts as importing the module of that name, where there is one.
    """
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} has a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else str(node.module) for name in names}
    return {name for name in found if name in MODULES} - {module}


GRAPH = {module: imports_of(module) for module in MODULES}


def is_lab(module):
    return module.startswith("irlkit.lab") or module in ENTRY_POINTS


def circle(graph):
    """A circle of imports as a list of modules, or None."""
    done, path = set(), []

    def visit(module):
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return None
        path.append(module)
        for other in sorted(graph.get(module, ())):
            if found := visit(other):
                return found
        done.add(path.pop())
        return None

    return next((found for module in sorted(graph) if (found := visit(module))), None)


def test_circles_are_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) is None
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_no_circle_of_imports():
    found = circle(GRAPH)
    assert found is None, " -> ".join(found)


def test_the_core_imports_nothing_of_the_lab():
    wrong = [
        f"{module} -> {other}"
        for module, others in GRAPH.items()
        for other in others
        if is_lab(other) and not is_lab(module)
    ]
    assert not wrong, wrong


LAYERS = (
    {"utils"},
    {"crystals"},
    {"flows", "potentials"},
    {"networks", "evaluate", "data"},
    {"rewards", "pretraining"},
    {"rl"},
    {"envs"},
)


def test_arrows_go_one_way():
    """A folder imports itself and those below it; within a layer folders may see each other."""
    level = {folder: i for i, layer in enumerate(LAYERS) for folder in layer}
    wrong = []
    for module, others in GRAPH.items():
        folder = module.split(".")[1] if "." in module else None
        if folder is None or folder.startswith("_") or is_lab(module):
            continue
        for other in others:
            below = other.split(".")[1] if "." in other else None
            if below in level and level[below] > level[folder]:
                wrong.append(f"{module} -> {other}")
    assert not wrong, wrong


@pytest.mark.parametrize("module", MODULES)
def test_files_and_functions_are_short(module):
    text = MODULES[module].read_text()
    assert text.count("\n") <= 500, "a file with more than one idea?"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < 80, f"{node.name} is long"
