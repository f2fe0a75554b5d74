"""From what readers give to arrays: parsing, checks and Niggli reduction, in worker processes."""

from __future__ import annotations

import ast
import json
import multiprocessing
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
from irlkit.data.readers import Arrays, Malformed
from irlkit.utils.system import TimeUp, available_cores, processes_possible, time_limit

if TYPE_CHECKING:
    from pymatgen.core import Structure

CHUNK_SIZE = 64
"""Records per task of a worker."""

SERIAL_LIMIT = 400
"""Up to this many records (about a second) are parsed without workers."""

TIME_LIMIT = 5.0
"""Seconds that a record may take; the slowest structures of known data sets take a tenth."""

MAX_CHARACTERS = 10_000_000
"""Most characters of a structure's text; what has more is none."""

MAX_LENGTH = 1000.0
"""Longest lattice vector in Å; far beyond it, cell reduction need not end."""

Parsed = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Species (n,), fractional positions (n, 3) and cell (3, 3) in Å of one structure."""


class Unusable(Exception):
    """Why a record gives no structure, in words."""


def parse_structure(payload: Any, niggli: bool) -> Parsed | str:
    """Return the arrays of one record, or the reason why there are none.

    Args:
        payload: See `irlkit.data.readers.RawRecords`.
        niggli: Reduce the cell.
    """
    if isinstance(payload, Malformed):
        return payload.reason
    with warnings.catch_warnings():
        # What pymatgen mends in passing, such as rounded fractions, needs no word per structure.
        warnings.simplefilter("ignore")
        try:
            with time_limit(TIME_LIMIT):
                structure = _payload_to_structure(payload)
                _check(structure)
                if niggli:
                    structure = structure.get_reduced_structure(reduction_algo="niggli")
        except TimeUp:
            return f"it took more than {TIME_LIMIT:g} s to read"
        except Unusable as error:
            return str(error)
        # Parsers raise anything on malformed input; no record may end the run.
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    return (
        np.array(structure.atomic_numbers, dtype=np.int64),
        np.array(structure.frac_coords, dtype=np.float64),
        np.array(structure.lattice.matrix, dtype=np.float64),
    )


def _payload_to_structure(payload: Any) -> Structure:
    from pymatgen.core import Structure

    if isinstance(payload, tuple):
        return _arrays_to_structure(Arrays(*payload))
    if isinstance(payload, dict):
        return Structure.from_dict(payload)
    if not isinstance(payload, str) or not payload.strip():
        raise Unusable("the structure is missing")
    if len(payload) > MAX_CHARACTERS:
        raise Unusable(f"its text is longer than {MAX_CHARACTERS} characters")
    text = payload.lstrip()
    if text.startswith("{"):
        try:
            return Structure.from_dict(json.loads(text))
        except json.JSONDecodeError:
            # The dictionary as Python prints it, with single quotes.
            return Structure.from_dict(ast.literal_eval(text))
    if "_cell_length_a" in text:
        return Structure.from_str(payload, fmt="cif")
    _check_counts(payload.splitlines())
    return Structure.from_str(payload, fmt="poscar")


def _arrays_to_structure(arrays: Arrays) -> Structure:
    from pymatgen.core import Structure

    try:
        species = np.asarray(arrays.species, dtype=np.int64).reshape(-1)
        pos: np.ndarray = np.asarray(arrays.pos, dtype=np.float64).reshape(-1, 3)
        cell = np.asarray(arrays.cell, dtype=np.float64).reshape(3, 3)
        if arrays.cartesian:
            pos = np.linalg.solve(cell.T, pos.T).T
    except np.linalg.LinAlgError:
        raise Unusable("its lattice vectors span no volume") from None
    except (TypeError, ValueError) as error:
        raise Unusable(f"its arrays do not make a structure: {error}") from error
    return Structure(cell, species, pos)


def _check_counts(lines: list[str]) -> None:
    """Raises an error where a POSCAR promises more atoms than it has lines.

    pymatgen would make room for all of them.
    """
    for line in lines[4:8]:
        try:
            n_atoms = sum(int(word) for word in line.split())
        except ValueError:
            continue
        if n_atoms > len(lines):
            raise Unusable(f"{n_atoms} atoms are named in a POSCAR of {len(lines)} lines")


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
    if not (np.isfinite(structure.frac_coords).all() and np.isfinite(structure.volume)):
        raise Unusable("a position or lattice vector is not finite")
    if max(structure.lattice.abc) > MAX_LENGTH:
        raise Unusable(f"a lattice vector is longer than {MAX_LENGTH:g} Å")
    if structure.volume < 1e-6:
        raise Unusable("its lattice vectors span no volume")


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
    import pymatgen.core
    import pymatgen.io.cif
    import pymatgen.io.vasp  # noqa: F401

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
