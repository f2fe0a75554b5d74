"""POSCAR files of VASP, read strictly: nothing is guessed and nothing left over."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from irlkit.crystals.formulas import atomic_number
from irlkit.data._text import Unusable

if TYPE_CHECKING:
    from pymatgen.core import Structure


def looks_like_poscar(text: str) -> bool:
    """Return whether a scale and three vectors follow the first line."""
    lines = text.splitlines()[1:5]
    return len(lines) == 4 and all(
        _floats(line) is not None and n <= len(line.split())
        for n, line in zip((1, 3, 3, 3), lines, strict=True)
    )


def read_poscar(text: str) -> Structure:
    """Read a POSCAR with its elements in the sixth line, or (VASP 4) in the first or at the atoms.

    Raises:
        Unusable: in words.
    """
    from pymatgen.core import Structure

    lines = [re.split("[!#]", line)[0].strip() for line in text.splitlines()]
    lines[0] = text.splitlines()[0]
    scale = np.array(_floats(lines[1]) or ())
    vectors = [_floats(line) or () for line in lines[2:5]]
    if len(scale) not in (1, 3) or any(len(vector) != 3 for vector in vectors) or not scale.all():
        raise Unusable("it has not one scale (or three) and three lattice vectors of three numbers")
    cell = np.array(vectors)
    if len(scale) == 1 and scale[0] < 0:  # the volume of the cell
        scale = np.cbrt(-scale / abs(np.linalg.det(cell)))
    at = 5
    symbols: list[str] | None = None
    if not _is_counts(_line(lines, at)):
        symbols, at = _line(lines, at).split(), at + 1
    counts = (
        [int(word) for word in _line(lines, at).split()] if _is_counts(_line(lines, at)) else []
    )
    n_atoms, at = sum(counts), at + 1
    if not counts or min(counts) < 1 or (symbols and len(symbols) != len(counts)):
        raise Unusable(f"its numbers of atoms are {_line(lines, at - 1)!r} for {symbols}")
    selective = _line(lines, at)[:1] in ("S", "s")
    at += selective
    mode = _line(lines, at)[:1].lower()
    if not mode or mode not in "dck":
        raise Unusable(f"{_line(lines, at)[:40]!r} is neither Direct nor Cartesian")
    atoms = [line.split() for line in lines[at + 1 : at + 1 + n_atoms]]
    pos = [_floats(" ".join(words[:3])) for words in atoms]
    if len(atoms) < n_atoms or any(numbers is None or len(numbers) != 3 for numbers in pos):
        raise Unusable(f"it has not a line with three coordinates for each of its {n_atoms} atoms")
    rest = _line(lines, at + 1 + n_atoms)
    if rest.lower().startswith("direct") or len(_floats(" ".join(rest.split()[:3])) or ()) == 3:
        raise Unusable(f"more positions follow those of its {n_atoms} atoms")
    labels = [(words + [""] * 7)[6 if selective else 3] for words in atoms]
    numbers = _elements(symbols, counts, labels, lines[0])
    return Structure(
        cell * scale,
        numbers,
        np.array(pos) * (1 if mode == "d" else scale),
        coords_are_cartesian=mode != "d",
    )


def _line(lines: list[str], i: int) -> str:
    if i >= len(lines):
        return ""
    return lines[i]


def _floats(line: str) -> list[float] | None:
    """The numbers of a line; None if anything else is in it."""
    try:
        return [float(word) for word in re.split("[!#]", line)[0].split()]
    except ValueError:
        return None


def _is_counts(line: str) -> bool:
    return bool(re.fullmatch(r"\d{1,9}(\s+\d{1,9})*", line, re.ASCII))


def _elements(
    symbols: list[str] | None, counts: list[int], labels: list[str], comment: str
) -> np.ndarray:
    """Atomic number of each atom; its label stands behind its coordinates, if anything does."""
    behind = [match[0] if (match := re.match(r"[A-Z][a-z]?(?![a-z])", w)) else "" for w in labels]
    if any(behind) and not all(behind):
        raise Unusable("only some of its atoms are followed by their element")
    if symbols is None:
        symbols = comment.split()
        if len(symbols) != len(counts) or not all(re.fullmatch(r"[A-Z][a-z]?", s) for s in symbols):
            if not all(behind):
                raise Unusable("it names no elements (VASP 4 did not): put them in the sixth line")
            return np.array([atomic_number(symbol) for symbol in behind])
    # Names of pseudopotentials, such as Na_pv and Na/1a2b3c, begin with the element.
    bare = [re.sub(r"[_/.].*", "", symbol) for symbol in symbols]
    numbers = np.repeat([atomic_number(symbol) for symbol in bare], counts)
    for number, symbol in zip(numbers, behind, strict=True):
        if symbol and atomic_number(symbol) != number:
            raise Unusable(f"an atom is called {symbol}, its place is that of another element")
    return numbers
