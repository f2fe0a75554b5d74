"""POSCAR files of VASP, read strictly: nothing is guessed and nothing left over."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from irlkit.crystals.formulas import atomic_number
from irlkit.data._text import Unusable

if TYPE_CHECKING:
    from pymatgen.core import Structure


def looks_like_poscar(text: str) -> bool:
    """Return whether a scale and three vectors follow the first line."""
    lines = _lines(text)[1:5]
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

    comment, *lines = _lines(text)
    lines = [comment, *(re.split("[!#]", line)[0].strip() for line in lines)]
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
    if _has_another(lines[at + 1 + n_atoms :]):
        raise Unusable("another structure follows: give each a file of its own")
    if not selective and any(len(words) >= 6 and set(words[3:6]) <= {"T", "F"} for words in atoms):
        raise Unusable("T and F follow its positions, but no line says Selective dynamics")
    labels = [(words + [""] * 7)[6 if selective else 3] for words in atoms]
    numbers = _elements(symbols, counts, labels, lines[0])
    return Structure(
        cell * scale,
        numbers,
        np.array(pos) * (1 if mode == "d" else scale),
        coords_are_cartesian=mode != "d",
    )


def _lines(text: str) -> list[str]:
    """Lines as VASP counts them; a comment may hold what Python takes for ends of lines."""
    return re.split("\r\n|\r|\n", text)


def _has_another(lines: list[str]) -> bool:
    """Whether numbers of atoms and a mode of coordinates stand in what follows a structure."""
    return any(
        _is_counts(line) and re.match("sel|dir|car", mode, re.IGNORECASE)
        for line, mode in pairwise(lines)
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
    if fractional := [symbol for symbol in symbols if re.search(r"\.\d", symbol)]:
        raise Unusable(
            f"{fractional[0]} is a part of an atom (its pseudopotential has that charge)"
        )
    bare = [re.sub(r"[_/.].*", "", symbol) for symbol in symbols]
    numbers = np.repeat([atomic_number(symbol) for symbol in bare], counts)
    for number, symbol in zip(numbers, behind, strict=True):
        if symbol and atomic_number(symbol) != number:
            raise Unusable(f"an atom is called {symbol}, its place is that of another element")
    return numbers
