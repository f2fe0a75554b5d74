"""Arguments compared with their annotations where users call, so that errors name them.

`checked` decorates a function, a method or a class (whose constructor it then checks); what it lets
through is still checked for its range where that matters. It is not for functions that are called
at every step. What stands in for a kind of object is taken as well: NumPy's and torch's whole
numbers for ints, lists for tuples, any mapping for dictionaries, objects with the methods of a
protocol.
"""

from __future__ import annotations

import collections.abc
import functools
import inspect
import math
import operator
import os
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch

T = TypeVar("T", bound=Callable[..., Any])

_WORDS = {
    bool: "True or False",
    int: "an integer",
    float: "a number",
    str: "a text",
    Path: "a path",
    os.PathLike: "a path",
    np.ndarray: "an array",
    torch.dtype: "a floating-point dtype",
}
_STAND_INS = dict.fromkeys(("FlowModel", "VelocityField"), ("prepare", "velocity"))
"""Objects with these methods are taken for one of the class."""


def checked(entry: T) -> T:
    """Checks arguments against the annotations, at each call and before anything is done.

    Raises:
        ValueError: at the call: an argument is of another kind; the message names it.
    """
    if inspect.isclass(entry):
        entry.__init__ = checked(entry.__init__)  # type: ignore
        return entry
    positional = [
        name
        for name, parameter in inspect.signature(entry).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]

    @functools.wraps(entry)
    def checking(*args: Any, **kwargs: Any) -> Any:
        hints = _hints(entry)
        for name, value in zip(positional, args, strict=False):
            if name in hints:
                check_kind(name, value, hints[name])
        for name, value in kwargs.items():
            if name in hints:
                check_kind(name, value, hints[name])
        return entry(*args, **kwargs)

    return checking  # type: ignore[return-value]


def fitting(function: T) -> T:
    """`checked`, for functions of tensors: where their shapes disagree, the error names them.

    Raises:
        ValueError: at the call: as `checked`; or torch cannot compute with these shapes and dtypes.
    """
    inner = checked(function)
    names = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def fitted(*args: Any, **kwargs: Any) -> Any:
        try:
            return inner(*args, **kwargs)
        except torch.OutOfMemoryError:
            raise
        except (IndexError, RuntimeError, TypeError) as error:
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            shown = [
                f"{name} {str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
                if isinstance(value, torch.Tensor)
                else name
                for name, value in given.items()
            ]
            raise ValueError(f"{', '.join(shown)} do not fit together: {error}") from error

    return fitted  # type: ignore[return-value]


def check_kind(name: str, value: Any, hint: Any) -> None:
    """Raises a ValueError, which names the argument, unless a value is what an annotation says."""
    found = _misfit(name, value, hint)
    if found is not None:
        place, what, wanted = found
        raise ValueError(f"{place} must be {_words(wanted)}, got {_shown(what)}")
    options = get_args(hint) or (hint,)
    if torch.device in options and isinstance(value, str | torch.device):
        try:
            torch.empty(0, device=value)
        except (AssertionError, ImportError, NotImplementedError, RuntimeError) as error:
            raise ValueError(
                f"{name} {str(value)!r} cannot be used here ({str(error).splitlines()[0]}); 'cpu' "
                "always can, 'cuda' needs an NVIDIA GPU and a PyTorch built for it"
            ) from error
    if isinstance(value, str):
        if "\0" in value and any(_is_below(option, os.PathLike) for option in options):
            raise ValueError(f"{name} must be a path, which holds no null character, got {value!r}")


def is_number(value: object) -> bool:
    """Whether it is a finite number (True and False are none)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_count(name: str, value: Any, least: int = 1, most: int | None = None) -> None:
    """Raises a ValueError unless a value is a whole number, neither too small nor too large."""
    check_kind(name, value, int)
    if value < least or (most is not None and value > most):
        upper = "" if most is None else f" and at most {most}"
        raise ValueError(f"{name} must be at least {least}{upper}, got {value!r}")


def check_finite(name: str, value: Any, above: float = -math.inf) -> None:
    """Raises a ValueError unless a value is a finite number, and above a bound."""
    check_kind(name, value, float)
    if not (math.isfinite(value) and value > above):
        bound = "" if above == -math.inf else f" above {above:g}"
        raise ValueError(f"{name} must be a finite number{bound}, got {value!r}")


def as_numbers(name: str, values: Any, length: int | None = None) -> np.ndarray:
    """A list of numbers as a float64 array of shape (length,); a ValueError if it is none."""
    array = _to_floats(values) if _converts(_to_floats, values) else None
    if array is None or array.ndim != 1 or (length is not None and len(array) != length):
        many = "" if length is None else f"{length} "
        raise ValueError(f"{name} must be a list of {many}numbers, got {_shown(values)}")
    return array


# --- annotations ---


class _ByName(type):
    """A class that is not imported, such as one of a package that is heavy or optional."""

    def __instancecheck__(cls, instance: object) -> bool:
        return any(base.__name__ == cls.__name__ for base in type(instance).__mro__)

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return _ByName(name, (), {})

    def __getitem__(cls, options: Any) -> Any:
        return cls


@functools.cache
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of all arguments; what is imported for type checkers alone is by name."""
    missing: dict[str, Any] = {}
    while True:
        try:
            hints = get_type_hints(function, localns=missing)
            break
        except NameError as error:
            name = str(error.name)
            missing[name] = getattr(collections.abc, name, None) or _ByName(name, (), {})
    hints.pop("return", None)
    return hints


def _is_below(hint: Any, base: type) -> bool:
    """Whether an annotation is a class, with parameters or not, below another one."""
    hint = get_origin(hint) or hint
    return inspect.isclass(hint) and issubclass(hint, base)


def _misfit(place: str, value: Any, hint: Any) -> tuple[str, Any, Any] | None:
    """Where a value is not what the annotation says: the place, what is there, what should be."""
    origin, options = get_origin(hint), get_args(hint)
    wrong = (place, value, hint)
    if hint is Any or hint is object or isinstance(hint, TypeVar):
        return None
    if hint is None or hint is type(None):
        return None if value is None else wrong
    if origin in (Union, types.UnionType):
        # Plain classes first: they need no look at every entry of a container.
        misfits = []
        for option in sorted(options, key=lambda option: bool(get_args(option))):
            misfits.append(_misfit(place, value, option))
            if misfits[-1] is None:
                return None
        # Of a container of the right kind, the entry that is wrong says more.
        return next((m for m in misfits if m is not None and m[0] != place), wrong)
    if origin is Literal:
        return None if any(type(value) is type(o) and value == o for o in options) else wrong
    if origin is collections.abc.Callable or hint is collections.abc.Callable:
        return None if callable(value) else wrong
    kind = origin or hint
    if not inspect.isclass(kind):
        return None
    if issubclass(kind, Mapping):
        return _mapping_misfit(place, value, options, wrong)
    if kind in (tuple, list, set, frozenset) or kind.__module__ == "collections.abc":
        return _sequence_misfit(place, value, kind, options, wrong)
    return None if _is_one(value, kind) else wrong


def _mapping_misfit(place: str, value: Any, options: Any, wrong: Any) -> Any:
    if not isinstance(value, Mapping):
        return wrong
    if not options:
        return None
    for key, entry in value.items():
        found = _misfit(f"{place} (its key {key!r})", key, options[0])
        found = found or _misfit(f"{place}[{key!r}]", entry, options[1])
        if found is not None:
            return found
    return None


def _sequence_misfit(place: str, value: Any, kind: type, options: Any, wrong: Any) -> Any:
    text = isinstance(value, str | bytes | Mapping) or inspect.isclass(value)
    table = hasattr(value, "columns")  # It would be taken for their names.
    if text or table or not hasattr(value, "__iter__"):
        return wrong
    if not hasattr(value, "__len__"):  # A generator can be looked at only once.
        return None if kind in (collections.abc.Iterable, collections.abc.Iterator) else wrong
    if isinstance(value, np.ndarray | torch.Tensor) and value.ndim == 0:
        return wrong
    if isinstance(value, collections.abc.Set) and kind in (tuple, list, collections.abc.Sequence):
        return wrong
    if isinstance(value, torch.Tensor):
        # It has no truth value, and `in` looks for numbers in it.
        numbers = kind is not tuple and (not options or options[0] in (float, Any))
        return None if numbers and value.ndim == 1 and not value.is_complex() else wrong
    if kind is tuple and options and Ellipsis not in options:
        if len(value) != len(options):
            return wrong
        pairs = list(zip(value, options, strict=True))
    else:
        pairs = (
            [(entry, options[0]) for entry in value] if options and options[0] is not Any else []
        )
    for i, (entry, option) in enumerate(pairs):
        found = _misfit(f"{place}[{i}]", entry, option)
        if found is not None:
            return found
    return None


def _is_one(value: Any, kind: type) -> bool:
    """Whether a value is of a class, or can stand for one."""
    if kind is bool:
        return isinstance(value, bool | np.bool_) or (type(value) is int and value in (0, 1))
    if kind is int:
        return not isinstance(value, bool | np.bool_) and _converts(operator.index, value)
    if kind is float:
        others = bool | np.bool_ | str | bytes | torch.Tensor
        return not isinstance(value, others) and _converts(float, value)
    if kind is torch.dtype:
        return isinstance(value, torch.dtype) and value.is_floating_point
    if kind.__name__ == "ArrayLike":
        return value is not None and _converts(_to_floats, value)
    stand_in: tuple[str, ...] = _STAND_INS.get(kind.__name__, ())
    if not stand_in and getattr(kind, "_is_protocol", False):
        stand_in = tuple(n for n in vars(kind) if n[0] != "_" or n == "__call__")
    if stand_in:
        return not inspect.isclass(value) and all(hasattr(value, n) for n in stand_in)
    return isinstance(value, kind)


def _to_floats(value: Any) -> np.ndarray:
    return np.asarray(value.detach().cpu() if isinstance(value, torch.Tensor) else value, float)


def _converts(convert: Callable[[Any], Any], value: Any) -> bool:
    try:
        convert(value)
    except (OverflowError, RuntimeError, TypeError, ValueError):
        return False
    return True


# --- words ---


def _words(hint: Any) -> str:
    """An annotation for people."""
    origin, options = get_origin(hint), get_args(hint)
    if hint is None or hint is type(None):
        return "None"
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_words(option) for option in options))
    if origin is Literal:
        return " or ".join(map(repr, options))
    kind = origin or hint
    if kind is collections.abc.Callable:
        return "callable"
    if hint is Any or not inspect.isclass(kind):
        return "anything"
    if issubclass(kind, Mapping):
        of = _words(options[1]) if options else "anything"
        return "a mapping" if of == "anything" else f"a mapping to {of}"
    if kind in (tuple, list, set, frozenset) or kind.__module__ == "collections.abc":
        of = ", ".join(_words(option) for option in options if option is not Ellipsis)
        return f"a sequence of {of}" if of and of != "anything" else "a sequence"
    if kind.__name__ == "ArrayLike":
        return "an array of numbers"
    for known, words in _WORDS.items():
        if issubclass(kind, known):
            return words
    article = "an" if kind.__name__[0] in "AEIOU" else "a"
    return f"{article} {kind.__name__}"


def _shown(value: Any) -> str:
    """A value in an error message: short ones as they are, others by their class."""
    if value is None or isinstance(value, bool | int | float | str | Path | torch.dtype):
        text = repr(value)
        return text if len(text) <= 60 else f"{text[:60]}…"
    if isinstance(value, torch.Tensor | np.ndarray):
        return f"{type(value).__name__} of shape {tuple(value.shape)}"
    if isinstance(value, list | tuple):
        return f"{type(value).__name__} of {len(value)}"
    return f"the class {value.__name__}" if inspect.isclass(value) else type(value).__name__
