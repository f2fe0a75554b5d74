"""From what readers give to arrays: parsing, checks and Niggli reduction, in worker processes."""

from __future__ import annotations

import ast
import json
import multiprocessing
import sys
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from irlkit.crystals.batch import MAX_ATOMIC_NUMBER
from irlkit.utils.system import TimeUp, available_cores, time_limit

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


@dataclass(frozen=True)
class Malformed:
    """What a reader gives for a record that it could not read.

    Attributes:
        reason: Why, in words.
    """

    reason: str


def fractional(positions: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """Fractional coordinates of Cartesian positions.

    Args:
        positions: Å, shape (n, 3).
        cell: Lattice vectors as rows, Å, shape (3, 3).

    Raises:
        ValueError: the lattice vectors span no volume.
    """
    try:
        return np.linalg.solve(cell.T, positions.T).T
    except np.linalg.LinAlgError as error:
        raise ValueError("its lattice vectors span no volume") from error


def parse_structure(payload: Any, niggli: bool) -> Parsed | str:
    """Arrays of one record, or the reason why there are none.

    Args:
        payload: Text (CIF, POSCAR, or a pymatgen dictionary as JSON), such a dictionary, a tuple
            (species, fractional positions, cell), or `Malformed`.
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
                reason = _why_unusable(structure)
                if reason:
                    return reason
                if niggli:
                    structure = structure.get_reduced_structure(reduction_algo="niggli")
        except TimeUp:
            return f"it took more than {TIME_LIMIT:g} s to read"
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
        species, pos, cell = payload
        return Structure(cell, species, pos)
    if isinstance(payload, dict):
        return Structure.from_dict(payload)
    if not isinstance(payload, str) or not payload.strip():
        raise ValueError("the structure is missing")
    if len(payload) > MAX_CHARACTERS:
        raise ValueError(f"its text is longer than {MAX_CHARACTERS} characters")
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


def _check_counts(lines: list[str]) -> None:
    """Raises a ValueError where a POSCAR promises more atoms than it has lines.

    pymatgen would make room for all of them.
    """
    for line in lines[4:8]:
        try:
            n_atoms = sum(int(word) for word in line.split())
        except ValueError:
            continue
        if n_atoms > len(lines):
            raise ValueError(f"{n_atoms} atoms are named in a POSCAR of {len(lines)} lines")


def _why_unusable(structure: Structure) -> str:
    """Reason to skip a structure; empty for one that can be used."""
    from pymatgen.core import DummySpecies

    if not len(structure):
        return "it has no atoms"
    if not structure.is_ordered:
        return "it is disordered: a site is shared by several elements or only partly occupied"
    unknown = {
        str(site.specie.symbol)
        for site in structure
        if isinstance(site.specie, DummySpecies) or not 1 <= site.specie.Z <= MAX_ATOMIC_NUMBER
    }
    if unknown:
        return f"unknown elements {sorted(unknown)}; atomic numbers 1 to {MAX_ATOMIC_NUMBER} are"
    if not (np.isfinite(structure.frac_coords).all() and np.isfinite(structure.volume)):
        return "a position or lattice vector is not finite"
    if max(structure.lattice.abc) > MAX_LENGTH:
        return f"a lattice vector is longer than {MAX_LENGTH:g} Å"
    if structure.volume < 1e-6:
        return "its lattice vectors span no volume"
    return ""


def _parse_chunk(payloads: Sequence[Any], niggli: bool) -> list[Parsed | str]:
    return [parse_structure(payload, niggli) for payload in payloads]


def parse_structures(
    payloads: Sequence[Any], niggli: bool, bar: tqdm | None = None
) -> list[Parsed | str]:
    """Parses all records in order, in worker processes if there are many.

    Workers are forked, so that they start at once and calling scripts need no import guard. They
    run pymatgen and NumPy only, no torch. On other systems than Linux one process does it all.

    Args:
        payloads: See `parse_structure`.
        niggli: Reduce the cells.
        bar: Progress bar that counts the records.
    """
    # Imported before the fork, so that each worker has them already, and before the time of the
    # first record begins.
    import pymatgen.core
    import pymatgen.io.cif
    import pymatgen.io.vasp  # noqa: F401

    if len(payloads) <= SERIAL_LIMIT:
        parsed = _parse_chunk(payloads, niggli)
        if bar is not None:
            bar.update(len(parsed))
        return parsed
    chunks = [payloads[i : i + CHUNK_SIZE] for i in range(0, len(payloads), CHUNK_SIZE)]
    results: list[list[Parsed | str]] = [[] for _ in chunks]
    for i, result in _run(chunks, niggli):
        results[i] = result
        if bar is not None:
            bar.update(len(result))
    return [entry for chunk in results for entry in chunk]


def _run(chunks: Sequence[Sequence[Any]], niggli: bool) -> Iterator[tuple[int, list[Parsed | str]]]:
    """Yields the number and the result of each chunk as it is done."""
    parse = partial(_parse_chunk, niggli=niggli)
    n_workers = min(available_cores(), len(chunks)) if sys.platform == "linux" else 1
    if n_workers == 1:
        for i, chunk in enumerate(chunks):
            yield i, parse(chunk)
        return
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(n_workers, mp_context=context) as executor:
        futures = {executor.submit(parse, chunk): i for i, chunk in enumerate(chunks)}
        for future in as_completed(futures):
            yield futures[future], future.result()
