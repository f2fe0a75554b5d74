"""Names of packages that are imported when first asked for; loads nothing by itself."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def from_homes(namespace: dict[str, Any], homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Make the ``__getattr__`` of a package.

    Args:
        namespace: the package's ``globals()``, where what was imported is kept.
        homes: name -> module that defines it.
    """

    def found(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {namespace['__name__']!r} has no attribute {name!r}")
        value = namespace[name] = getattr(import_module(homes[name]), name)
        return value

    return found
