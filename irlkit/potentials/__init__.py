"""Energies of structures, in batches, from interchangeable potentials."""

from __future__ import annotations

from typing import Any

from irlkit.potentials.base import Energies, Potential
from irlkit.potentials.chgnet import CHGNetPotential

__all__ = ["CHGNetPotential", "Energies", "Potential", "get"]


def get(potential: str | Potential, **options: Any) -> Potential:
    """The potential of a name.

    Args:
        potential: "chgnet" or "chgnet-r2scan"; a potential is returned as it is.
        options: For the potential's constructor, such as `device` and `dtype`.

    Raises:
        ValueError: an unknown name, or options with a potential that is there already.
    """
    if isinstance(potential, Potential):
        if options:
            raise ValueError(
                f"options {sorted(options)} can only be given with a name, "
                f"not with {potential.name}, which is loaded already"
            )
        return potential
    if potential in ("chgnet", "chgnet-0.3.0"):
        return CHGNetPotential(**options)
    if potential == "chgnet-r2scan":
        return CHGNetPotential("r2scan", **options)
    raise ValueError(f"unknown potential {potential!r}; known: chgnet, chgnet-r2scan")
