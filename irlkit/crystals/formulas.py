"""Chemical formulas: from text to atoms, with errors in words, and back to text."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from functools import lru_cache

import numpy as np

MAX_ATOMIC_NUMBER = 100
"""Largest atomic number that the networks embed."""

MAX_FORMULA_ATOMS = 10_000
"""Most atoms of a formula; what asks for more is a mistake or would fill the memory."""

_TOKEN = re.compile(r"([A-Z][a-z]?)|(\d+\.?\d*|\.\d+)|([(\[{])|([)\]}])|\s+", re.ASCII)
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉\u00a0", "0123456789 ", "\ufeff\u200b")


def parse_formula(formula: str) -> np.ndarray:
    """Return the atomic numbers of a formula's atoms, element by element as it names them.

    Brackets, blanks and subscripts are read; charges, isotopes and fractions of atoms are not.

    >>> parse_formula("Mg(OH)₂").tolist()
    [12, 8, 8, 1, 1]
    >>> parse_formula("TIO2")
    Traceback (most recent call last):
    ValueError: cannot read the formula 'TIO2': 'T' is no element that is known; did you mean Ti?

    Returns:
        Shape (n,), int64.

    Raises:
        ValueError: in words: no formula, unknown elements (with what may have been meant),
            fractions of atoms, or more than `MAX_FORMULA_ATOMS` atoms.
    """
    if not isinstance(formula, str) or not formula.strip():
        raise ValueError(f'formula must be a text such as "NaCl", got {formula!r}')
    try:
        counts = _count(formula.translate(_SUBSCRIPTS).strip())
    except _Unreadable as error:
        raise ValueError(f"cannot read the formula {formula!r}: {error}") from None
    if sum(counts.values()) > MAX_FORMULA_ATOMS:
        raise ValueError(f"the formula {formula!r} has more than {MAX_FORMULA_ATOMS} atoms")
    return np.repeat(np.array(list(counts), dtype=np.int64), list(counts.values()))


@lru_cache(maxsize=65536)
def write_formula(composition: tuple[tuple[int, int], ...], reduced: bool) -> str:
    """Return the formula of (atomic number, count) pairs in ascending order of atomic number.

    >>> write_formula(((11, 4), (17, 4)), reduced=True)
    'NaCl'
    """
    from pymatgen.core import Composition, Element

    amounts = {Element.from_Z(z): count for z, count in composition}
    if reduced:
        return Composition(amounts).reduced_formula
    return " ".join(sorted(f"{element.symbol}{count}" for element, count in amounts.items()))


class _Unreadable(ValueError):
    """What is wrong with a formula, in words."""


def _count(text: str) -> Counter[int]:
    """Atoms of each atomic number."""
    n_detached = len(re.findall(r"\s[\d.]", text))
    if re.search(r"\s[\d.]+$", text) and (n_detached == 1 or re.search(r"[^\s\d.][\d.]", text)):
        raise _Unreadable(
            "its last number could mean formula units as well; write it without the blank, or "
            "give the number of formula units apart"
        )
    if sum(len(re.findall("[A-Z]", re.sub(r"\(.*?\)", "", word))) > 1 for word in text.split()) > 1:
        raise _Unreadable("it could be several formulas: put commas between them, or no blanks")
    groups, brackets = [Counter[int]()], ""
    last = Counter[int]()  # What a number would multiply.
    position = 0
    while position < len(text):
        token = _TOKEN.match(text, position)
        if token is None:
            raise _Unreadable(_why_no_token(text, position))
        element, number, opening, closing = token.groups()
        if element:
            last = Counter({atomic_number(element, text[position:]): 1})
            groups[-1] += last
        elif number:
            if not last:
                raise _Unreadable(f"the number {number} follows no element and no bracket")
            times = _amount(number) - 1
            groups[-1] += Counter({z: times * n for z, n in last.items()})
            last = Counter()
        elif opening:
            groups.append(Counter())
            brackets += opening
            last = Counter()
        elif closing:
            if brackets[-1:] + closing not in ("()", "[]", "{}"):
                raise _Unreadable(f"{closing!r} closes no bracket")
            brackets = brackets[:-1]
            last = groups.pop()
            groups[-1] += last
        position = token.end()
    if brackets or not groups[0]:
        raise _Unreadable(f"{brackets[-1]!r} is not closed" if brackets else "it has no elements")
    return groups[0]


def _why_no_token(text: str, position: int) -> str:
    sign = text[position]
    if "a" <= sign <= "z":
        return f"{sign!r} is no element; elements begin with a capital letter, as in NaCl"
    if re.fullmatch(r"([+\-−⁺⁻⁰¹²³⁴-⁹]\d*)+|\^.*", text[position:]):
        return "it carries a charge; give the neutral formula of the cell"
    return f"it holds signs that are not part of a formula, such as {sign!r}"


def _amount(number: str) -> int:
    whole, _, fraction = number.partition(".")
    if fraction.strip("0"):
        raise _Unreadable("it has fractions of atoms, a cell holds whole numbers: multiply it")
    if not whole.strip("0"):
        raise _Unreadable(f"the number {number} leaves no atoms")
    return int(whole) if len(whole) < 10 else MAX_FORMULA_ATOMS + 1


def atomic_number(symbol: str, written: str = "") -> int:
    """Return the atomic number of an element that the networks know.

    >>> atomic_number("Fe")
    26

    Args:
        symbol: Of the element, "Fe".
        written: The text where it stands, for advice.

    Raises:
        ValueError: there is none; says what may have been meant.
    """
    from ase.data import chemical_symbols

    known = chemical_symbols[1 : MAX_ATOMIC_NUMBER + 1]
    if symbol in known:
        return known.index(symbol) + 1
    if symbol in chemical_symbols[1:]:
        raise _Unreadable(f"{symbol!r}: its atomic number is above {MAX_ATOMIC_NUMBER}")
    advice = ""
    if written[:2].capitalize() in known:
        advice = f"; did you mean {written[:2].capitalize()}?"
    elif symbol in ("D", "T"):
        advice = "; isotopes are not told apart, write H"
    elif close := difflib.get_close_matches(symbol, known, 3, 0.5):
        advice = f"; did you mean {' or '.join(close)}?"
    raise _Unreadable(f"{symbol!r} is no element that is known{advice}")
