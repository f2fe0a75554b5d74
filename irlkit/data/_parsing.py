"""From what readers give to arrays: parsing, checks and Niggli reduction, in worker processes."""

from __future__ import annotations

import ast
import json
import multiprocessing
import re
import sys
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from irlkit.crystals.formulas import MAX_ATOMIC_NUMBER
from irlkit.data._cif import read_cif
from irlkit.data._poscar import looks_like_poscar, read_poscar
from irlkit.data._text import MAX_CHARACTERS, Unusable, check_head, decode, read_json
from irlkit.data.readers import Arrays, Malformed
from irlkit.utils.system import TimeUp, available_cores, processes_possible, time_limit

if TYPE_CHECKING:
    from pymatgen.core import Structure

CHUNK_SIZE = 64
"""Records per task of a worker."""

SERIAL_LIMIT = 400
"""Up to this many records (about a second) are parsed without workers."""

TIME_LIMIT = 5.0
"""Seconds of computing that a record may take; the slowest of known data sets take a tenth."""

MAX_LENGTH = 1000.0
"""Longest lattice vector in Å; far beyond it, cell reduction need not end."""

MAX_CELLS = 1e6
"""How many cells away an atom may be said to be; farther away, digits are lost."""

SAME_PLACE = 0.05
"""Atoms that are closer than this are at one place, Å."""

_CIF = re.compile(r"^\s*(data_|_cell_length_a\b|_atom_site[_.])", re.MULTILINE | re.IGNORECASE)

Parsed = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Species (n,), fractional positions (n, 3) and cell (3, 3) in Å of one structure."""


def parse_structure(payload: Any, niggli: bool) -> Parsed | str:
    """Return the arrays of one record, or the reason why there are none.

    Args:
        payload: See `irlkit.data.readers.RawRecords`.
        niggli: Reduce the cell.
    """
    if isinstance(payload, Malformed):
        return payload.reason
    with warnings.catch_warnings():
        # Warnings of cell reduction; what would alter a structure is an error here.
        warnings.simplefilter("ignore")
        try:
            with time_limit(TIME_LIMIT, busy=True):
                structure = _to_structure(payload)
                _check(structure)
                if niggli:
                    structure = structure.get_reduced_structure(reduction_algo="niggli")
        except TimeUp:
            return f"it took more than {TIME_LIMIT:g} s to read"
        except ValueError as error:
            return str(error)
        # Parsers raise anything on malformed input; no record may end the run.
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    return (
        np.array(structure.atomic_numbers, dtype=np.int64),
        np.array(structure.frac_coords, dtype=np.float64),
        np.array(structure.lattice.matrix, dtype=np.float64),
    )


def _to_structure(payload: Any) -> Structure:
    if isinstance(payload, tuple):
        return _arrays_to_structure(Arrays(*payload))
    if isinstance(payload, dict):
        return _dict_to_structure(payload)
    text = decode(payload) if isinstance(payload, bytes) else payload
    if not isinstance(text, str) or not text.strip():
        raise Unusable("the structure is missing")
    if len(text) > MAX_CHARACTERS:
        raise Unusable(f"its text is longer than {MAX_CHARACTERS} characters")
    text = text.removeprefix("\ufeff")
    start = text.lstrip()[:64]
    check_head(start.encode(errors="replace"))
    if start.startswith("{"):
        return _dict_to_structure(_read_dict(text.strip()))
    if _CIF.search(text):
        return read_cif(text)
    if looks_like_poscar(text):
        return read_poscar(text)
    raise Unusable(f"it begins {start[:40]!r} and is neither CIF, POSCAR nor a dictionary")


def _read_dict(text: str) -> dict[str, Any]:
    try:
        return read_json(text)
    except json.JSONDecodeError:
        try:  # The dictionary as Python prints it, with single quotes.
            return ast.literal_eval(text)
        except (SyntaxError, ValueError):
            raise Unusable("it is a dictionary neither of JSON nor of plain Python") from None


def _dict_to_structure(data: dict[str, Any]) -> Structure:
    from pymatgen.core import Structure

    if "lattice" not in data and isinstance(data.get("structure"), dict):
        data = data["structure"]  # of an entry
    if not {"lattice", "sites"} <= data.keys():
        raise Unusable(f"a dictionary with the keys {list(data)[:6]} is no structure of pymatgen")
    structure = Structure.from_dict(data)
    lattice = structure.lattice
    if not all(lattice.pbc):
        raise Unusable("it is not periodic in three directions")
    for name in ("volume", "a", "b", "c", "alpha", "beta", "gamma"):
        true = getattr(lattice, name)
        if not abs(data["lattice"].get(name, true) - true) <= 0.01 * true:
            raise Unusable(f"the {name} of its cell is {true:g}, it says {data['lattice'][name]:g}")
    for site, entry in zip(structure, data["sites"], strict=True):
        if np.abs(site.coords - entry.get("xyz", site.coords)).max() > 0.02:
            raise Unusable("positions in Å and in fractions of the cell contradict each other")
    return structure


def _arrays_to_structure(arrays: Arrays) -> Structure:
    from pymatgen.core import Structure

    try:
        numbers = np.asarray(arrays.species, dtype=np.float64).reshape(-1)
        pos: np.ndarray = np.asarray(arrays.pos, dtype=np.float64).reshape(-1, 3)
        cell = np.asarray(arrays.cell, dtype=np.float64).reshape(3, 3)
        if arrays.cartesian:
            pos = np.linalg.solve(cell.T, pos.T).T
    except np.linalg.LinAlgError:
        raise Unusable("its lattice vectors span no volume") from None
    except (TypeError, ValueError) as error:
        raise Unusable(f"its arrays do not make a structure: {error}") from error
    if len(numbers) != len(pos):
        raise Unusable(f"it has {len(numbers)} atomic numbers for {len(pos)} positions")
    if not ((numbers >= 1) & (numbers <= MAX_ATOMIC_NUMBER) & (numbers % 1 == 0)).all():
        raise Unusable(f"unknown elements; atomic numbers 1 to {MAX_ATOMIC_NUMBER} are known")
    return Structure(cell, numbers.astype(np.int64), pos)


def _check(structure: Structure) -> None:
    """Raises an error for a structure that cannot be used."""
    from pymatgen.core import DummySpecies

    if not len(structure):
        raise Unusable("it has no atoms")
    if not structure.is_ordered:
        raise Unusable(
            "it is disordered: a site is shared by several elements or only partly occupied"
        )
    unknown = {
        str(site.specie.symbol)
        for site in structure
        if isinstance(site.specie, DummySpecies) or not 1 <= site.specie.Z <= MAX_ATOMIC_NUMBER
    }
    if unknown:
        raise Unusable(
            f"unknown elements {sorted(unknown)}; atomic numbers 1 to {MAX_ATOMIC_NUMBER} are"
        )
    # An isotope has the symbol of its element, but a name of its own.
    if {getattr(site.specie, "element", site.specie).name for site in structure} & {"D", "T"}:
        raise Unusable("it holds isotopes, which are not told apart: write H")
    if not (np.abs(structure.frac_coords).max() < MAX_CELLS and np.isfinite(structure.volume)):
        raise Unusable("a position or lattice vector is not finite, or far beyond the cell")
    if max(structure.lattice.abc) > MAX_LENGTH:
        raise Unusable(f"a lattice vector is longer than {MAX_LENGTH:g} Å")
    if structure.volume < 1e-6:
        raise Unusable("its lattice vectors span no volume")
    if not structure.is_valid(tol=SAME_PLACE):
        raise Unusable("two of its atoms are at the same place")


def _parse_chunk(payloads: Sequence[Any], niggli: bool) -> list[Parsed | str]:
    return [parse_structure(payload, niggli) for payload in payloads]


def parse_structures(
    payloads: Sequence[Any], niggli: bool, bar: tqdm | None = None
) -> list[Parsed | str]:
    """Parse all records in order, in worker processes if there are many.

    Workers are forked, so that they start at once and calling scripts need no import guard. They
    run pymatgen and NumPy only, no torch. On other systems than Linux one process does it all.

    Args:
        payloads: See `irlkit.data.readers.RawRecords`.
        niggli: Reduce the cells.
        bar: Progress bar that counts the records.
    """
    # Imported before the fork, so that each worker has them already, and before the time of the
    # first record begins.
    import pymatgen.core  # noqa: F401
    import spglib  # noqa: F401

    chunks = [payloads[i : i + CHUNK_SIZE] for i in range(0, len(payloads), CHUNK_SIZE)]
    parse = partial(_parse_chunk, niggli=niggli)
    n_workers = min(available_cores(), len(chunks)) if sys.platform == "linux" else 1
    serial = len(payloads) <= SERIAL_LIMIT or n_workers == 1 or not processes_possible()
    context = multiprocessing.get_context("fork") if not serial else None
    parsed: list[Parsed | str] = []
    with nullcontext() if serial else ProcessPoolExecutor(n_workers, context) as executor:
        results: Iterable[list[Parsed | str]] = (executor.map if executor else map)(parse, chunks)
        for result in results:
            parsed += result
            if bar is not None:
                bar.update(len(result))
    return parsed
