"""Arguments compared with their annotations where users call, so that errors name them.

`checked` decorates a function, a method or a class (whose constructor it then checks). What stands
in for a kind of object is taken as well: NumPy's and torch's whole numbers for ints, lists for
tuples, any mapping for dictionaries, objects with the methods of a protocol. An annotation is read
once, at the first call.
"""

from __future__ import annotations

import collections.abc
import functools
import inspect
import itertools
import math
import operator
import os
import types
from collections.abc import Callable, Iterable, Mapping, Set
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch

T = TypeVar("T", bound=Callable[..., Any])

_STAND_INS = dict.fromkeys(("FlowModel", "VelocityField"), ("prepare", "velocity"))
"""Objects with these methods are taken for one of the class."""


def checked(entry: T) -> T:
    """Check arguments against the annotations, at each call and before anything is done.

    >>> @checked
    ... def twice(x: float) -> float:
    ...     return 2 * x
    >>> twice("2")
    Traceback (most recent call last):
    ValueError: x must be a number, got '2'

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
    named: dict[str, _Kind] = {}
    in_order: list[tuple[str, _Kind]] = []

    @functools.wraps(entry)
    def checking(*args: Any, **kwargs: Any) -> Any:
        if not in_order:  # Not before: annotations may name what is defined later.
            named.update({name: _kind(hint) for name, hint in _hints(entry).items()})
            in_order.extend((name, named.get(name, _ANYTHING)) for name in positional)
        for (name, kind), value in zip(in_order, args, strict=False):
            if type(value) not in kind.surely:
                kind.check(name, value)
        for name, value in kwargs.items():
            kind = named.get(name, _ANYTHING)
            if type(value) not in kind.surely:
                kind.check(name, value)
        return entry(*args, **kwargs)

    return checking  # type: ignore[return-value]


def check_kind(name: str, value: Any, hint: Any) -> None:
    """Raise a ValueError, which names the argument, unless a value is what an annotation says."""
    _kind(hint).check(name, value)


def is_number(value: object) -> bool:
    """Return whether it is a finite number (True and False are none).

    >>> is_number(2.5), is_number(float("nan")), is_number(True)
    (True, False, False)
    """
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_count(name: str, value: Any, least: int = 1, most: int | None = None) -> None:
    """Raise a ValueError unless a value is a whole number, neither too small nor too large.

    >>> check_count("n_steps", 0)
    Traceback (most recent call last):
    ValueError: n_steps must be at least 1, got 0
    """
    check_kind(name, value, int)
    if value < least or (most is not None and value > most):
        upper = "" if most is None else f" and at most {most}"
        raise ValueError(f"{name} must be at least {least}{upper}, got {value!r}")


def check_finite(
    name: str,
    value: Any,
    *,
    above: float = -math.inf,
    least: float = -math.inf,
    most: float = math.inf,
) -> None:
    """Raise a ValueError unless a value is a finite number within bounds, `above` not included.

    >>> check_finite("eta", 2.0, least=0, most=1)
    Traceback (most recent call last):
    ValueError: eta must be a finite number of at least 0 and at most 1, got 2.0
    """
    check_kind(name, value, float)
    if not (math.isfinite(value) and above < value and least <= value <= most):
        bounds = {f"above {above:g}": above, f"of at least {least:g}": least}
        words = [text for text, bound in bounds.items() if bound > -math.inf]
        words += [f"at most {most:g}"] if most < math.inf else []
        said = f" {' and '.join(words)}" if words else ""
        raise ValueError(f"{name} must be a finite number{said}, got {value!r}")


def as_numbers(name: str, values: Any, length: int | None = None) -> np.ndarray:
    """Return a list of numbers as a float64 array of shape (length,), or raise a ValueError."""
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


Misfit = tuple[str, str] | None
"""The place in a value that is not what an annotation says (``[1]``, or nothing), and what is."""


class _Kind(NamedTuple):
    """An annotation, read.

    Attributes:
        words: for people.
        misfit: of a value.
        surely: classes whose instances fit, without another look.
    """

    words: str
    misfit: Callable[[Any], Misfit] = lambda value: None
    surely: frozenset[type] = frozenset()

    def check(self, name: str, value: Any) -> None:
        found = self.misfit(value)
        if found is not None:
            raise ValueError(f"{name}{found[0]} {found[1]}")


_ANYTHING = _Kind("anything")


def _wrong(words: str, value: Any) -> Misfit:
    return "", f"must be {words}, got {_shown(value)}"


def _plain(words: str, fits: Callable[[Any], bool], *surely: type) -> _Kind:
    """A kind without parts."""
    return _Kind(
        words, lambda value: None if fits(value) else _wrong(words, value), frozenset(surely)
    )


@functools.cache
def _kind(hint: Any) -> _Kind:
    origin, options = get_origin(hint), get_args(hint)
    kind = origin or hint
    if hint in _KINDS:
        return _KINDS[hint]
    if origin in (Union, types.UnionType):
        return _union_kind(options)
    if origin is Literal:
        words = " or ".join(map(repr, options))
        return _plain(words, lambda v: any(type(v) is type(o) and v == o for o in options))
    if kind is collections.abc.Callable:
        return _plain("callable", callable)
    if not inspect.isclass(kind):  # such as type variables
        return _ANYTHING
    if issubclass(kind, Mapping):
        return _mapping_kind(*map(_kind, options or (Any, Any)))
    if kind in (tuple, list, set, frozenset) or kind.__module__ == "collections.abc":
        return _sequence_kind(kind, options)
    return _class_kind(kind)


def _union_kind(options: tuple[Any, ...]) -> _Kind:
    # Plain classes first: they need no look at every entry of a container.
    kinds = [_kind(option) for option in sorted(options, key=lambda o: bool(get_args(o)))]
    words = " or ".join(dict.fromkeys(_kind(option).words for option in options))
    surely = frozenset(one for kind in kinds for one in kind.surely)
    device, path = "a device" in words, "a path" in words

    def misfit(value: Any) -> Misfit:
        if device and isinstance(value, str | torch.device):
            return _device_misfit(value)
        if isinstance(value, str) and path and "\0" in value:
            return "", f"must be a path, which holds no null character, got {value!r}"
        misfits = []
        for kind in kinds:
            misfits.append(kind.misfit(value))
            if misfits[-1] is None:
                return None
        # Of a container of the right kind, the entry that is wrong says more.
        return next((found for found in misfits if found and found[0]), _wrong(words, value))

    return _Kind(words, misfit, surely - {str} if device or path else surely)


def _mapping_kind(keys: _Kind, values: _Kind) -> _Kind:
    words = "a mapping" if values.words == "anything" else f"a mapping to {values.words}"

    def misfit(value: Any) -> Misfit:
        if not isinstance(value, Mapping):
            return _wrong(words, value)
        for key, entry in value.items():
            if found := keys.misfit(key):
                return f" (its key {key!r}){found[0]}", found[1]
            if found := values.misfit(entry):
                return f"[{key!r}]{found[0]}", found[1]
        return None

    return _Kind(words, misfit)


def _sequence_kind(kind: type, options: tuple[Any, ...]) -> _Kind:
    entries = [_kind(option) for option in options if option is not Ellipsis]
    of = ", ".join(entry.words for entry in entries)
    words = f"a sequence of {of}" if of and of != "anything" else "a sequence"
    length = len(options) if kind is tuple and options and Ellipsis not in options else None
    numbers = kind is not tuple and (not options or options[0] in (float, Any))
    ordered = kind in (tuple, list, collections.abc.Sequence)

    def is_one(value: Any) -> bool:
        # The entries of a table would be taken for its columns' names.
        if isinstance(value, str | bytes | Mapping | type) or hasattr(value, "columns"):
            return False
        if not hasattr(value, "__len__"):  # A generator can be looked at only once.
            return kind in (Iterable, collections.abc.Iterator) and hasattr(value, "__iter__")
        if isinstance(value, torch.Tensor):
            # It has no truth value, and `in` looks for numbers in it.
            return numbers and value.ndim == 1 and not value.is_complex()
        if isinstance(value, np.ndarray) and value.ndim == 0:
            return False
        return hasattr(value, "__iter__") and not (ordered and isinstance(value, Set))

    def misfit(value: Any) -> Misfit:
        if not is_one(value) or (length is not None and len(value) != length):
            return _wrong(words, value)
        if isinstance(value, torch.Tensor) or not (entries and hasattr(value, "__len__")):
            return None
        of_each = entries if length is not None else itertools.repeat(entries[0])
        for i, (entry, wanted) in enumerate(zip(value, of_each, strict=False)):
            if type(entry) not in wanted.surely and (found := wanted.misfit(entry)):
                return f"[{i}]{found[0]}", found[1]
        return None

    return _Kind(words, misfit)


def _class_kind(kind: type) -> _Kind:
    """A class, or what can stand for one."""
    words = f"{'an' if kind.__name__[0] in 'AEIOU' else 'a'} {kind.__name__}"
    if issubclass(kind, os.PathLike):
        words = "a path"
    methods: tuple[str, ...] = _STAND_INS.get(kind.__name__, ())
    if not methods and getattr(kind, "_is_protocol", False):
        methods = tuple(n for n in vars(kind) if n[0] != "_" or n == "__call__")
    if kind.__name__ == "ArrayLike":
        return _plain("an array of numbers", lambda v: v is not None and _converts(_to_floats, v))
    if methods and kind is not os.PathLike:
        return _plain(
            words, lambda v: not inspect.isclass(v) and all(hasattr(v, name) for name in methods)
        )
    return _plain(words, lambda v: isinstance(v, kind), kind)


def _device_misfit(value: Any) -> Misfit:
    if not isinstance(value, str | torch.device):
        return _wrong("a text or a device", value)
    try:
        torch.empty(0, device=value)
    except (AssertionError, ImportError, NotImplementedError, RuntimeError) as error:
        return "", (
            f"{str(value)!r} cannot be used here ({str(error).splitlines()[0]}); 'cpu' always "
            "can, 'cuda' needs an NVIDIA GPU and a PyTorch built for it"
        )
    return None


def _to_floats(value: Any) -> np.ndarray:
    return np.asarray(value.detach().cpu() if isinstance(value, torch.Tensor) else value, float)


def _converts(convert: Callable[[Any], Any], value: Any) -> bool:
    try:
        convert(value)
    except (OverflowError, RuntimeError, TypeError, ValueError):
        return False
    return True


_TRUTH = bool | np.bool_
_NO_FLOAT = _TRUTH | str | bytes | torch.Tensor
_KINDS: dict[Any, _Kind] = {
    Any: _ANYTHING,
    object: _ANYTHING,
    bool: _plain(
        "True or False", lambda v: isinstance(v, _TRUTH) or (type(v) is int and v in (0, 1)), bool
    ),
    int: _plain(
        "an integer", lambda v: not isinstance(v, _TRUTH) and _converts(operator.index, v), int
    ),
    float: _plain(
        "a number", lambda v: not isinstance(v, _NO_FLOAT) and _converts(float, v), float
    ),
    str: _plain("a text", lambda v: isinstance(v, str), str),
    type(None): _plain("None", lambda v: v is None, type(None)),
    np.ndarray: _plain("an array", lambda v: isinstance(v, np.ndarray), np.ndarray),
    torch.dtype: _plain(
        "a floating-point dtype", lambda v: isinstance(v, torch.dtype) and v.is_floating_point
    ),
    torch.device: _Kind("a device", _device_misfit),
}


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
