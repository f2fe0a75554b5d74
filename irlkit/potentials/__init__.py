"""Energies of structures, in batches, from interchangeable potentials.

CHGNet comes with the package and is the default; MACE needs mace-torch and its weights, SevenNet-0
the package sevenn; any ASE calculator will do. `relax` relaxes structures with any of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from irlkit.potentials.ase import ASEPotential
from irlkit.potentials.base import Energies, Potential
from irlkit.potentials.chgnet import CHGNetPotential
from irlkit.potentials.mace import MACEPotential
from irlkit.potentials.relax import Relaxation, relax
from irlkit.potentials.sevennet import SevenNetPotential
from irlkit.utils.checks import checked

__all__ = [
    "ASEPotential",
    "CHGNetPotential",
    "Energies",
    "MACEPotential",
    "Potential",
    "Relaxation",
    "SevenNetPotential",
    "get",
    "relax",
]


@checked
def get(potential: str | Path | Potential, **options: Any) -> Potential:
    """Return the potential of a name.

    >>> get("chgnet").name
    'chgnet-0.3.0'

    Args:
        potential: "chgnet", "chgnet-r2scan", "7net-0", "mace-mpa-0", the name of any other MACE
            foundation model, or the path of a `.model` file of MACE (with `trust=True`). A
            potential is returned as it is.
        options: For the constructor, such as `device`, `dtype`, and MACE's `trust` and
            `download`; see `CHGNetPotential`, `SevenNetPotential` and
            `MACEPotential`.

    Raises:
        ValueError: an unknown name, or options with a potential that is there already.
        FileNotFoundError: the weights are missing; the message says where they are expected.
        ImportError: mace-torch, or sevenn for "7net-0", is not installed.
    """
    if isinstance(potential, Potential):
        if options:
            raise ValueError(
                f"options {sorted(options)} can only be given with a name, "
                f"not with {potential.name}, which is there already"
            )
        return potential
    name = str(potential)
    if name in ("chgnet", "chgnet-0.3.0", "chgnet-r2scan"):
        return CHGNetPotential("r2scan" if name.endswith("r2scan") else "0.3.0", **options)
    if name == "7net-0":
        return SevenNetPotential(name, **options)
    if isinstance(potential, Path) or name.endswith(".model"):
        return MACEPotential(path=name, **options)
    try:
        return MACEPotential(name, **options)
    except ImportError as error:
        known = "chgnet, chgnet-0.3.0, chgnet-r2scan"
        raise ImportError(f"{name!r} is no CHGNet model ({known}); {error}") from error
