"""Density functional theory: GPAW, and Quantum ESPRESSO with pseudopotentials of one's own.

GPAW comes with the extra `dft`, which is built at install: that takes a C++ compiler, BLAS and
libxc, on Debian

    apt-get install g++ libopenblas-dev libxc-dev
    CC=g++ pip install "irlkit[dft]"

Debian's own packages `gpaw` and `gpaw-data` are for its own Python: an environment made with
`python3 -m venv --system-site-packages` sees them.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import math
import shutil
import tempfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from irlkit.envs._backends import CalculatorBackend, version
from irlkit.utils.checks import check_finite, checked

if TYPE_CHECKING:
    from ase import Atoms

_SOFT = 400.0
_HARD = dict.fromkeys("N O F".split(), 650.0) | dict.fromkeys(
    "Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge Zr Mo Rh Pd Ag Pt Au Y La".split(), 600.0
)
"""Cut-off that elements need, eV; `_SOFT` does for the others."""


def _cutoff(symbols: Any) -> float:
    """Return the plane-wave cut-off that elements need, eV.

    >>> _cutoff(["Mg", "O"]), _cutoff(["Na", "Cl"])
    (650.0, 400.0)
    """
    return max([_SOFT, *(_HARD.get(symbol, _SOFT) for symbol in symbols)])


def _k_points(cell: np.ndarray, density: float) -> tuple[int, int, int]:
    """Return the numbers of k-points along the reciprocal vectors of a cell, even ones.

    Args:
        cell: rows, Å, shape (3, 3).
        density: k-points per 1/Å (of reciprocal vectors with the factor 2 pi).
    """
    lengths = 2 * np.pi * np.linalg.norm(np.linalg.inv(cell), axis=0)
    n = [max(2 * math.ceil(density * length / 2 - 1e-6), 2) for length in lengths]
    return n[0], n[1], n[2]


@checked
def gpaw(
    *,
    k_density: float = 3.5,
    cutoff_scale: float = 1.0,
    n_workers: int | None = None,
    timeout: float = 1800.0,
) -> CalculatorBackend:
    """Return GPAW: PBE, plane waves, without spin, k-points by size and a cut-off by elements.

    Args:
        k_density: k-points per 1/Å.
        cutoff_scale: factor of the cut-offs, for tests of convergence.
        n_workers: processes; None for one per core.
        timeout: seconds that one self-consistent calculation may take.

    Raises:
        ImportError: GPAW is not installed.
        ValueError: a number out of its range.
    """
    for name, value in (("k_density", k_density), ("cutoff_scale", cutoff_scale)):
        check_finite(name, value, above=0)
    if importlib.util.find_spec("gpaw") is None:
        raise ImportError(
            "backend 'gpaw' needs GPAW, which is not installed; with g++, libopenblas-dev and "
            "libxc-dev on the system, run: CC=g++ pip install 'gpaw>=24' gpaw-data"
        )
    name = f"{_versions()}(PBE,k={k_density:g},cutoff*{cutoff_scale:g})"
    return CalculatorBackend(
        partial(_gpaw, k_density, cutoff_scale),
        name,
        has_gap=True,
        n_workers=n_workers,
        timeout=timeout,
    )


def _versions() -> str:
    """GPAW's version and that of its setups, which Debian installs without one: then a digest."""
    try:
        return version("gpaw", "gpaw-data")
    except importlib.metadata.PackageNotFoundError:
        from gpaw import setup_paths

        folders = [Path(folder) for folder in setup_paths if Path(folder).is_dir()]
        return f"{version('gpaw')}+setups-{_digest(p for f in folders for p in f.glob('*.PBE*'))}"


def _digest(files: Iterable[Path]) -> str:
    """What tells the names and contents of files apart."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:8]


def _gpaw(k_density: float, cutoff_scale: float, like: Atoms, quantity: str) -> Any:
    from gpaw import GPAW

    return GPAW(
        mode={"name": "pw", "ecut": cutoff_scale * _cutoff(set(like.get_chemical_symbols()))},
        xc="PBE",
        kpts={"size": _k_points(like.cell.array, k_density), "gamma": True},
        occupations={"name": "fermi-dirac", "width": 0.05},
        maxiter=200,
        txt=None,
    )


@checked
def espresso(
    pseudo_dir: str | Path,
    *,
    command: str = "pw.x",
    k_density: float = 3.5,
    n_workers: int | None = None,
    timeout: float = 1800.0,
) -> CalculatorBackend:
    """Return Quantum ESPRESSO with the settings of CrystalGym's paper (appendix B.5).

    Args:
        pseudo_dir: folder with one pseudopotential per element, whose name begins with the symbol,
            such as SSSP 1.3.0's `Si.pbe-n-rrkjus_psl.1.0.0.UPF`.
        command: that runs pw.x.
        k_density: k-points per 1/Å.
        n_workers: processes; None for one per core.
        timeout: seconds that one self-consistent calculation may take.

    Raises:
        FileNotFoundError: no such folder.
        ImportError: the command is not there.
    """
    folder = Path(pseudo_dir)
    if not folder.is_dir():
        raise FileNotFoundError(f"pseudo_dir {folder} is no folder")
    if shutil.which(command.split()[0]) is None:
        raise ImportError(
            f"backend 'espresso' needs {command}, which is not installed; on Debian, run: "
            "apt-get install quantum-espresso"
        )
    potentials = _digest(path for path in folder.iterdir() if path.suffix.lower() == ".upf")
    programs = (shutil.which(word) for word in command.split())
    program = _digest(Path(path) for path in programs if path is not None)
    backend = _Espresso(
        partial(_espresso, str(folder.resolve()), command, k_density),
        f"espresso-{program}(PBE,50/400 Ry,k={k_density:g},pseudopotentials={potentials})",
        has_gap=True,
        n_workers=n_workers,
        timeout=timeout,
    )
    backend.pseudo_dir = folder
    return backend


class _Espresso(CalculatorBackend):
    pseudo_dir: Path

    def check(self, elements: Any) -> None:
        _pseudopotentials(self.pseudo_dir, elements)


def _pseudopotentials(folder: Path, symbols: Any) -> dict[str, str]:
    """Return the file of each element's pseudopotential.

    Raises:
        ValueError: an element has none; the message names all that have none.
    """
    found: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        symbol = path.name.replace("_", ".").replace("-", ".").split(".")[0].capitalize()
        if path.suffix.lower() == ".upf":
            found.setdefault(symbol, path.name)
    missing = sorted(set(symbols) - set(found))
    if missing:
        raise ValueError(
            f"pseudo_dir {folder} has no pseudopotential (a file such as {missing[0]}.upf) for "
            f"{', '.join(missing)}; add them or leave out these elements"
        )
    return {symbol: found[symbol] for symbol in sorted(set(symbols))}


def _espresso_input(like: Atoms, quantity: str) -> dict[str, dict[str, Any]]:
    """Return the settings of pw.x for atoms (appendix B.5).

    Args:
        like: decides on the number of bands.
        quantity: "energy", with smeared occupations, or "gap", with fixed ones.
    """
    occupations: dict[str, Any] = {"occupations": "fixed"}
    if quantity == "energy":
        occupations = {"occupations": "smearing", "degauss": 0.001}
    return {
        "control": {"calculation": "scf", "tprnfor": False},
        "system": {
            "ecutwfc": 50,
            "ecutrho": 400,
            "nbnd": math.ceil(int(like.numbers.sum()) // 2 * 1.2),
            "nspin": 1,
            **occupations,
        },
        "electrons": {
            "electron_maxstep": 300,
            "mixing_mode": "plain",
            "mixing_beta": 0.7,
            "diagonalization": "david",
        },
    }


def _espresso(folder: str, command: str, k_density: float, like: Atoms, quantity: str) -> Any:
    from ase.calculators.espresso import Espresso, EspressoProfile

    scratch = tempfile.TemporaryDirectory(prefix="irlkit-pw-")
    calculator = Espresso(
        profile=EspressoProfile(command=command, pseudo_dir=folder),
        directory=scratch.name,
        pseudopotentials=_pseudopotentials(Path(folder), like.get_chemical_symbols()),
        input_data=_espresso_input(like, quantity),
        kpts=_k_points(like.cell.array, k_density),
    )
    calculator.scratch = scratch
    return calculator
