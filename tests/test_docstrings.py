"""Docstrings: their examples run, they begin with a verb, and say shapes where tensors go in."""

import ast
import doctest
import functools
import importlib
import inspect
import re

import pytest

from tests.test_house import MODULES

PUBLIC = [name for name in MODULES if not any(p.startswith("_") for p in name.split("."))]
MOST_PUBLIC_NAMES = {
    "crystals": 36, "data": 23, "envs": 22, "evaluate": 56, "flows": 79, "lab": 230,
    "networks": 53, "potentials": 19, "pretraining": 12, "rewards": 42, "rl": 145, "utils": 38,
}  # fmt: skip
"""Of each folder. What only the package uses is private; a new system brings its own."""
NO_VERBS = set(
    "A All An And Any Both Each Every Field For From How Index Its Largest Least Mean Means Most "
    "Name Names Number Numbers Of One Only Shape Some Such That The Their These They This Those "
    "To What When Where Whether Which Who Whose Why With".split()
)


def documented(module):
    """Public functions and methods of a module, without properties: name, node."""
    tree = ast.parse(MODULES[module].read_text())
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name, node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for inner in node.body:
                if not isinstance(inner, ast.FunctionDef) or inner.name.startswith("_"):
                    continue
                decorators = {ast.unparse(d).rpartition(".")[2] for d in inner.decorator_list}
                if not decorators & {"property", "cached_property", "overload"}:
                    yield f"{node.name}.{inner.name}", inner


@pytest.mark.parametrize("module", PUBLIC)
def test_docstrings_begin_with_a_verb(module):
    wrong = []
    for name, node in documented(module):
        text = ast.get_docstring(node)
        if text and (text.split()[0].strip("`,.:;") in NO_VERBS or not text[0].isupper()):
            wrong.append(f"{name}: {text.splitlines()[0]}")
    assert not wrong, "\n".join(wrong)


def examples():
    """Modules with examples, and how many objects have one."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    for name in PUBLIC:
        if ">>>" not in MODULES[name].read_text():
            continue
        module = importlib.import_module(name)
        for test in finder.find(module, name):
            if test.examples:
                yield test


def test_examples_run():
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    found = list(examples())
    for test in found:
        runner.run(test)
    assert runner.summarize().failed == 0
    assert len(found) >= 40, f"{len(found)} objects have an example"


def test_public_names_are_not_too_many():
    totals = dict.fromkeys(MOST_PUBLIC_NAMES, 0)
    for module in PUBLIC:
        folder = module.partition(".")[2].partition(".")[0]
        for node in ast.parse(MODULES[module].read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                inside = node.body if isinstance(node, ast.ClassDef) else []
                names = [n.name for n in inside if isinstance(n, ast.FunctionDef)]
                totals[folder] += 1 + sum(not name.startswith("_") for name in names)
    too_many = {name: n for name, n in totals.items() if n > MOST_PUBLIC_NAMES[name]}
    assert not too_many, too_many


SHAPES = re.compile(
    r"(?i:\bshapes?\b|\bscalars?\b)|\((?:\d|B|n|m|k|len|steps)[\w *+()]*,[\w *+.,-]*\)"
    r"|see ``\w+``|as for `"
)
"""A shape in words or as a tuple, or where it is said."""


@pytest.mark.parametrize("module", PUBLIC)
def test_shapes_are_said_where_tensors_go_in_or_out(module):
    loaded = importlib.import_module(module) if module != "irlkit.__main__" else None
    unsaid = []
    for name, node in documented(module):
        hints = [getattr(part, "annotation", None) for part in ast.walk(node.args)]
        words = " ".join(ast.unparse(hint) for hint in (*hints, node.returns) if hint)
        said = inspect.getdoc(functools.reduce(getattr, name.split("."), loaded)) or ""
        if re.search(r"\bTensor\b|\bndarray\b", words) and not SHAPES.search(said):
            unsaid.append(f"{name}: {said.splitlines()[0] if said else ''}")
    assert not unsaid, "\n".join(unsaid)


def test_every_public_function_has_a_docstring():
    """An override has that of what it overrides."""
    missing = []
    for module in PUBLIC:
        loaded = importlib.import_module(module) if module != "irlkit.__main__" else None
        for name, _ in documented(module):
            thing = loaded
            for part in name.split("."):
                thing = getattr(thing, part, None)
            if not inspect.getdoc(thing):
                missing.append(f"{module}.{name}")
    assert not missing, missing
