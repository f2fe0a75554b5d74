"""Every public entry point, called rightly, and then with anything in the place of an argument.

What comes back is a result, or an error of a documented kind that names the argument (or, for names
and paths, what was given). By default a few of a list of values are tried, always the same, with
`IRLKIT_ALL_VALUES=1 pytest tests/test_entry_points.py` all of them, and with `IRLKIT_EXAMPLES=500`
many that Hypothesis draws.
"""

import importlib
import inspect
import os
import random
import shutil
import sys
import tempfile
import warnings
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

for package in ("plotly", "ipywidgets", "optuna", "hypothesis"):
    pytest.importorskip(package)

from hypothesis import HealthCheck, Phase, given, seed, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from irlkit.crystals import CrystalBatch  # noqa: E402
from irlkit.data import _cache, load, readers  # noqa: E402
from irlkit.data.loading import EMBEDDED  # noqa: E402
from irlkit.flows import schedules  # noqa: E402
from irlkit.utils.system import TimeUp, time_limit  # noqa: E402
from tests.entry_points import EXCLUDED, MISSING, MODULES, NEED_THEM, Kit, entries  # noqa: E402

MORE = os.environ.get("IRLKIT_EXAMPLES")
EXAMPLES = max(int(MORE or "25") // 5, 1)
"""Values of each argument."""
SECONDS = 60.0

NAMES = (
    *("noise", "a", "pos", "cell", "velocity"),
    *("0", "..", "x/y", "not a number", "tab\t", "null\0", "\ud800"),
)
TEXT = st.one_of(st.text("abcXYZ012.-_ é\n", max_size=4), st.sampled_from(NAMES))
NUMBERS = st.one_of(
    st.integers(-2, 40), st.floats(), st.sampled_from([0, -1, 0.0, np.int64(2), np.float32(0.5)])
)
PLAIN = st.one_of(st.none(), st.booleans(), NUMBERS, TEXT)
THINGS = {
    "a batch": lambda kit: kit.batch,
    "one crystal": lambda kit: kit.one,
    "an empty batch": lambda kit: kit.batch[:0],
    "other compositions": lambda kit: kit.batch[[1, 0]],
    "a data set": lambda kit: kit.dataset,
    "a model": lambda kit: kit.model,
    "a policy": lambda kit: kit.policy,
    "a trainer": lambda kit: kit.trainer,
    "a schedule": lambda kit: schedules.LinearAnnealing(),
    "a noise": lambda kit: schedules.ConstantNoise(0.1),
    "a class": lambda kit: CrystalBatch,
    "a function": lambda kit: len,
    "nothing in particular": lambda kit: object(),
    "a generator": lambda kit: torch.Generator(),
    "a table": lambda kit: pd.DataFrame({"iteration": [0, 1], "x": ["a", "b"]}),
    "an empty table": lambda kit: pd.DataFrame(),
    "a scalar tensor": lambda kit: torch.tensor(1.0),
    "a vector": lambda kit: torch.arange(5.0),
    "a matrix": lambda kit: torch.ones(4, 3),
    "nan": lambda kit: torch.full((2,), torch.nan),
    "whole numbers": lambda kit: torch.tensor([7, -7]),
    "an empty tensor": lambda kit: torch.zeros(0),
    "a complex tensor": lambda kit: torch.ones(2, dtype=torch.complex64),
    "an array": lambda kit: np.ones((2, 2)),
    "an array of objects": lambda kit: np.array([None, "a"], dtype=object),
    "bytes": lambda kit: b"a",
    "a set": lambda kit: {1, 2},
    "a path": lambda kit: Path("nowhere"),
    "a dtype": lambda kit: torch.int64,
    "batches": lambda kit: [kit.batch, kit.one],
    "named batches": lambda kit: {"a": kit.batch},
    "named nothing": lambda kit: {"a": None},
    "numbered": lambda kit: {1: 2},
}
THING = st.sampled_from(sorted(THINGS)).map(lambda name: ("thing", name))
ANYTHING = st.one_of(
    PLAIN,
    THING,
    st.lists(PLAIN, max_size=3),
    st.dictionaries(st.sampled_from(["pos", "cell", "a", "H"]), PLAIN, max_size=2),
)
VALUES = [
    *(None, True, False, -1, 0, 3, 40, 2.5, -0.5, 1e300, np.nan, np.inf, np.int64(2)),
    *("", "a", "abc", "cell", "noise", "velocity", "x/y", "..", "null\0", "\ud800", "é\n"),
    *([], [None], [1, "a"], ["pos", 2.0], {}, {"pos": None}, {"a": 1.5}, {"H": "x"}),
    *(("thing", name) for name in sorted(THINGS)),
]
WORK = {"n_workers", "n_trials", "iterations", "n_steps", "n_times"}
"""Numbers that are time or processes: nobody waits here for a large one."""


FUNCTIONS = {"reward", "evaluate", "velocity", "annealing", "noise", "base", "function"}
"""Called as they are: what these raise is their own."""


GROUPS = list(MODULES)


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    load("prototypes", progress=False)
    parsed = f"{_cache.key(EMBEDDED['prototypes'][0], niggli=True)}.npz"
    cache = tmp_path_factory.mktemp("cache")
    # Not parsed once more, and nothing else of what is there.
    shutil.copy(_cache.folder() / parsed, cache)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IRLKIT_CACHE", str(cache))
        yield Kit(tmp_path_factory.mktemp("kit"))


@pytest.fixture(scope="module")
def table(kit):
    return entries(kit)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """What is written goes to a folder of the test."""
    folder = tmp_path / "a" / "b" / "c"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(readers, "READERS", dict(readers.READERS))  # what is registered goes again
    for package in MISSING:
        monkeypatch.setitem(sys.modules, package, None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def public_names():
    """Each once, under the first module that has it."""
    seen = set()
    for group, module in ((k, importlib.import_module(v)) for k, v in MODULES.items()):
        names = getattr(module, "__all__", None)
        if names is None:
            names = [n for n, v in vars(module).items() if _defined_in(v, module) and n[0] != "_"]
        for name in names:
            value = getattr(module, name)
            if callable(value) and value not in seen:
                seen.add(value)
                yield f"{group}.{name}"


def _defined_in(value, module):
    kinds = inspect.isclass(value) or inspect.isfunction(value)
    return kinds and value.__module__ == module.__name__


def test_every_public_name_is_called_or_excluded(table):
    excluded = {name for names in EXCLUDED.values() for name in names.split()}
    public = set(public_names())
    assert sorted(public - set(table) - excluded) == [], "neither called nor excluded"
    assert sorted(excluded - public) == [] and sorted(excluded & set(table)) == []
    assert {name.partition(".")[0] for name in table} <= set(GROUPS), "never called"


LEFT_OUT = {
    "rollout.rollout": {"on_part"},
    "trainer.GRPOTrainer": {"communicator"},
    "update.PolicyUpdate": {"communicator"},
    "schedules.check_n_steps": {"name"},
    "widgets.ScheduleExplorer": {"files"},
    "widgets.NoiseExplorer": {"files"},
}
"""Arguments that only the package itself gives."""


def test_every_argument_is_given(table):
    missing = {}
    for name, (function, arguments) in table.items():
        parameters = inspect.signature(function).parameters.values()
        known = {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        if left := known - set(arguments) - LEFT_OUT.get(name, set()):
            missing[name] = sorted(left)
    assert not missing


def call(function, arguments):
    with time_limit(SECONDS):
        result = function(**arguments)
        if inspect.isgenerator(result):
            result = list(result)
        return result


def allowed(function):
    """Documented kinds of errors."""
    words = (inspect.getdoc(function) or "") + (inspect.getdoc(inspect.unwrap(function)) or "")
    found = (ValueError, TypeError, OSError)
    return (*found, IndexError) if "IndexError:" in words else found


@pytest.mark.parametrize("module", GROUPS)
def test_valid_calls_work(table, module):
    for name, (function, arguments) in of_module(table, module):
        try:
            call(function, arguments)
        except ImportError:
            assert name in NEED_THEM, name
        except Exception as error:
            raise AssertionError(f"{name}: {error!r}") from error


@pytest.mark.parametrize("module", GROUPS)
def test_anything_instead_of_an_argument(kit, table, module, tmp_path):
    found = []
    for name, (function, arguments) in of_module(table, module):
        errors = allowed(function)
        for argument in arguments:
            found += attempts(kit, tmp_path, name, function, arguments, argument, errors)
    assert not found, "\n".join(found)


def attempts(kit, folder, name, function, arguments, argument, errors):
    """What goes wrong, in words, with other values of one argument."""
    found = {}

    def attempt(drawn):
        if argument in WORK and isinstance(drawn, int) and drawn > 3:
            return
        is_thing = isinstance(drawn, tuple)
        value = THINGS[drawn[1]](kit) if is_thing else drawn
        shown = drawn[1] if is_thing else repr(drawn)
        if (name, value is None) == ("pretraining.pretrain", True) and argument == "config":
            return  # The real thing, which takes hours.
        os.chdir(tempfile.mkdtemp(dir=folder))
        try:
            call(function, {**arguments, argument: value})
        except errors as error:
            if argument in FUNCTIONS and callable(value):
                return
            words = str(error)
            if not any(entry in words for entry in namings(argument, value)):
                found.setdefault(f"unnamed {type(error)}", f"{shown}: {error!r}")
        except ImportError as error:
            assert "pip install" in str(error), error
        except TimeUp:
            found["time"] = f"{shown}: more than {SECONDS} s"
        except Exception as error:
            if argument in FUNCTIONS and callable(value):
                return
            found.setdefault(str(type(error)), f"{shown}: {error!r}")

    # The same ones whatever else is imported or written, as Hypothesis's draws are not.
    number = zlib.crc32(f"{name} {argument}".encode())
    if MORE is None:
        k = len(VALUES) if os.environ.get("IRLKIT_ALL_VALUES") else EXAMPLES
        for value in random.Random(number).sample(VALUES, k):
            attempt(value)
    else:
        draw = settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        seed(number)(draw(given(ANYTHING)(attempt)))()
    return [f"{name}({argument}={words[:300]}" for words in found.values()]


def namings(argument, value):
    """What an error may say: the argument, or which name, path, table or columns it was about."""
    entries = value if isinstance(value, list) else [value]
    texts = [entry for entry in entries if isinstance(entry, str | Path)]
    table = ["the table"] if isinstance(value, pd.DataFrame) else []
    words = argument.removeprefix("n_").replace("_", " ")
    return [argument, words, *map(repr, texts), *map(str, texts), *table]


def of_module(table, module):
    return [entry for entry in table.items() if entry[0].partition(".")[0] == module]
