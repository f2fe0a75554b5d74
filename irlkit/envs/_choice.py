"""Backends by name."""

from __future__ import annotations

from typing import Any

from irlkit import potentials
from irlkit.envs import dft
from irlkit.envs._backends import Backend, PotentialBackend
from irlkit.potentials import Potential
from irlkit.utils.checks import checked


@checked
def get_backend(backend: str | Potential | Backend = "chgnet", **options: Any) -> Backend:
    """Return the backend of a name.

    >>> get_backend("chgnet").name
    'chgnet-0.3.0'

    Args:
        backend: "gpaw" or "espresso" (density functional theory, see `irlkit.envs.dft`), what
            `irlkit.potentials.get` takes, or a backend, which is returned as it is.
        options: for the backend, such as `n_workers` and `timeout`, and `pseudo_dir` of "espresso".

    Raises:
        ImportError: it is not installed; the message has the command that installs it.
        ValueError: options with what is there already, "espresso" without pseudo_dir, or those of
            `irlkit.potentials.get`.
    """
    if isinstance(backend, Backend):
        if options:
            raise ValueError(f"options {sorted(options)} can only be given with a name")
        return backend
    if backend == "espresso" and "pseudo_dir" not in options:
        raise ValueError(
            "backend 'espresso' needs pseudo_dir, the folder of its pseudopotentials: give "
            "get_backend('espresso', pseudo_dir=...), or what it returns"
        )
    if isinstance(backend, str) and backend in ("gpaw", "espresso"):
        return dft.gpaw(**options) if backend == "gpaw" else dft.espresso(**options)
    return PotentialBackend(potentials.get(backend, **options))
