"""CIF, read strictly: what a file says is what comes out, or an error says why not.

pymatgen's parser mends what it can (a symmetry it does not know becomes P1, a full stop a zero, an
unknown symbol the element that begins alike) and says so in warnings at best. Here nothing is
mended, and what a file says twice has to agree: cell and volume, symmetry and cell, sites and
multiplicities, sites and formula.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from irlkit.crystals.formulas import atomic_number, parse_formula
from irlkit.data._text import Unusable

if TYPE_CHECKING:
    from pymatgen.core import Lattice, Structure

Tags = dict[str, list[str]]
"""Values of each data name, in lower case and with _ for full stops."""

Operations = tuple[np.ndarray, np.ndarray]
"""Rotations (n, 3, 3) and translations (n, 3) of fractional coordinates."""

_TOKEN = re.compile(
    r"^;(.*?)^;(?=\s|\Z)|'((?:[^'\n]|'(?=\S))*)'(?=\s|\Z)|\"((?:[^\"\n]|\"(?=\S))*)\"(?=\s|\Z)"
    r"|\#[^\n]*|(\S+)",
    re.MULTILINE | re.DOTALL,
)
_NUMBER = re.compile(r"([-+]?(?:\d+\.?(\d*)|\.(\d+))(?:[eE][-+]?\d+)?)(?:\(\d+\))?", re.ASCII)
_PART = r"(?:[-+]?(?:\d+\.?\d*(?:/\d+)?|\.\d+|[xyz]))+"
_RESERVED = ("_", "loop_", "data_", "save_", "global_", "stop_")
_NOTHING = ("?", ".", "")
NAMES = tuple(
    f"{stem}_name_h-m{end}"
    for end in ("_alt", "", "_full", "_ref")
    for stem in ("_space_group", "_symmetry_space_group")
)
HALL_SYMBOLS = ("_space_group_name_hall", "_symmetry_space_group_name_hall")
NUMBERS = ("_space_group_it_number", "_symmetry_int_tables_number")
SCHOENFLIES = ("_space_group_name_schoenflies", "_symmetry_space_group_name_schoenflies")
OPERATIONS = ("_space_group_symop_operation_xyz", "_symmetry_equiv_pos_as_xyz")
_KINDS = {HALL_SYMBOLS: "hall", NAMES: "", NUMBERS: "number", SCHOENFLIES: "schoenflies"}
LEAST_DISTANCE = 0.5
"""Atoms that symmetry puts closer to each other are one atom or a mistake, Å."""


def split_blocks(text: str) -> list[tuple[str, str]]:
    """Return name and text of each data block; what is before the first one belongs to it."""
    starts = [m for m in _TOKEN.finditer(text) if m[4] and m[4].lower().startswith("data_")]
    bounds = [0, *(match.start() for match in starts[1:]), len(text)]
    names = [match[4][5:] for match in starts] or [""]
    return [(name, text[a:b]) for name, a, b in zip(names, bounds[:-1], bounds[1:], strict=True)]


def read_cif(text: str) -> Structure:
    """Read the structure of a text with one data block that has atoms.

    Raises:
        Unusable: in words: what is missing, unknown, contradictory or unusual.
    """
    blocks = [_read_tags(block) for _, block in split_blocks(text)]
    filled = [tags for tags in blocks if any(tag.startswith("_atom_site_") for tag in tags)]
    if len(filled) != 1:
        raise Unusable(
            f"it holds {len(filled)} structures in one text" if filled else "it has no atoms"
        )
    return _read_structure(filled[0])


def _read_tags(block: str) -> Tags:
    tokens = []  # (text, whether it can only be a value)
    for match in _TOKEN.finditer(block):
        if match.lastindex:
            text = match[match.lastindex]
            bare = match.lastindex == 4
            tokens.append((text, not (bare and text.lower().startswith(_RESERVED))))
    tags: Tags = {}
    tokens.append(("data_", False))
    i = 0
    while i < len(tokens):
        word, is_value = tokens[i]
        key, i = word.lower(), i + 1
        if is_value or not key.startswith(("_", "loop_", "data_")):
            raise Unusable(f"{word[:40]!r} belongs to no name")
        if key.startswith("data_"):
            continue
        names = [] if key == "loop_" else [key]
        while key == "loop_" and not tokens[i][1] and tokens[i][0].startswith("_"):
            names.append(tokens[i][0].lower())
            i += 1
        end = i
        while tokens[end][1] and (key == "loop_" or end == i):
            end += 1
        values = [text.strip() for text, _ in tokens[i:end]]
        i = end
        if not names or not values or len(values) % len(names):
            raise Unusable(f"{[word, *names][-1]}: {len(values)} values for {len(names)} names")
        for k, name in enumerate(name.replace(".", "_") for name in names):
            if name in tags:
                raise Unusable(f"{name} stands twice")
            tags[name] = values[k :: len(names)]
    return tags


def _read_structure(tags: Tags) -> Structure:
    from pymatgen.core import Structure

    if unusual := [t for t in tags if re.match("_space_group_.*(magn|ssg)|_cell_modul", t)]:
        raise Unusable(f"magnetic and modulated structures ({unusual[0]}) are not read")
    lattice = _read_lattice(tags)
    species = _read_elements(tags)
    found: list[tuple[np.ndarray, np.ndarray]] = []
    problem = Unusable("its symmetry operations do not fit its cell")
    for operations in _read_symmetries(tags):
        if not _fits(operations, lattice):
            continue
        try:
            pos, orbits = _expand(tags, operations)
            _compare(tags, species, orbits)
        except Unusable as error:
            problem = error
            continue
        found.append((pos, np.repeat(species, orbits)))
    if not found:
        raise problem
    if len(found) > 1:
        raise Unusable(f"its symmetry could be meant in {len(found)} ways (origin or axes)")
    pos, numbers = found[0]
    structure = Structure(lattice, numbers, pos)
    if len(pos) > len(species) and not structure.is_valid(tol=LEAST_DISTANCE):
        raise Unusable(f"symmetry puts atoms less than {LEAST_DISTANCE} Å apart")
    return structure.get_sorted_structure()


def _value(tags: Tags, *names: str) -> str | None:
    """The value of the first name that has one."""
    for name in names:
        if (values := tags.get(name)) and values[0] not in _NOTHING:
            if len(values) > 1:
                raise Unusable(f"{name} has {len(values)} values")
            return values[0]
    return None


def _number(text: str | None, name: str) -> tuple[float, int]:
    """A number, without its uncertainty, and how many decimal digits it is written with."""
    match = _NUMBER.fullmatch(text or "")
    if match is None:
        raise Unusable(f"{name} is {text!r}" if text else f"{name} is missing")
    return float(match[1]), len(match[2] or match[3] or "")


def _read_lattice(tags: Tags) -> Lattice:
    from pymatgen.core import Lattice

    names = [f"_cell_length_{axis}" for axis in "abc"]
    names += [f"_cell_angle_{angle}" for angle in ("alpha", "beta", "gamma")]
    parameters = [_number(_value(tags, name), name)[0] for name in names]
    if min(parameters) <= 0 or max(parameters[3:]) >= 180:
        raise Unusable(f"its cell {parameters} is none")
    lattice = Lattice.from_parameters(*parameters)
    if volume := _value(tags, "_cell_volume"):
        declared = _number(volume, "_cell_volume")[0]
        if not abs(lattice.volume - declared) <= 0.01 * declared:
            raise Unusable(f"its cell has {lattice.volume:g} Å³, it says {declared:g}")
    return lattice


def _read_elements(tags: Tags) -> np.ndarray:
    """Atomic numbers of the sites, each of them fully occupied."""
    symbols = tags.get("_atom_site_type_symbol")
    elements = symbols or tags.get("_atom_site_label")
    if elements is None or "_atom_site_fract_x" not in tags:
        raise Unusable("its atoms have no fractional coordinates or no elements")
    if "dum" in tags.get("_atom_site_calc_flag", ()):
        raise Unusable("some of its sites are dummies without a place (calc_flag dum)")
    for occupancy in tags.get("_atom_site_occupancy", ()):
        if occupancy != "." and abs(_number(occupancy, "an occupancy")[0] - 1) > 1e-3:
            raise Unusable(f"it is disordered: a site has the occupancy {occupancy}")
    for hydrogens in tags.get("_atom_site_attached_hydrogens", ()):
        if hydrogens not in _NOTHING and _number(hydrogens, "a number of hydrogens")[0]:
            raise Unusable("hydrogens without positions are attached to its atoms")
    numbers = []
    pairs: dict[bool, str] = {}
    for text in elements:
        if symbols:
            match = re.fullmatch(r"([A-Za-z]{1,2})(?:[\d.+-]*|\([\d.+-]*\))", text)
        else:
            match = re.match(r"([A-Z][a-z]?)(?![A-Za-z])", text)
        if match is None:
            raise Unusable(
                f"{text!r} is no element"
                + ("" if symbols else ", and its atoms have labels but no type symbols")
            )
        numbers.append(atomic_number(match[1].capitalize()))
        if len(match[1]) == 2:
            pairs[match[1].isupper()] = text
    if len(pairs) > 1:  # HO beside NA is holmium, beside Na it could be a hydrogen of an oxygen
        raise Unusable(
            f"{pairs[True]!r} may be no element: others, like {pairs[False]!r}, are not in capitals"
        )
    return np.array(numbers)


def _read_symmetries(tags: Tags) -> list[Operations]:
    """The symmetry operations that are listed, or those that a name can mean."""
    listed = next((tags[n] for n in OPERATIONS if tags.get(n, ["?"])[0] not in _NOTHING), None)
    halls = _find_groups(tags, listed is not None)
    if listed is None:
        return [_operations_of(hall) for hall in halls or [1]]
    rotations, translations = _parse_operations(listed)
    if halls and len(listed) not in {len(_operations_of(hall)[0]) for hall in halls}:
        raise Unusable(f"its {len(listed)} symmetry operations are not those of its space group")
    shifts = np.rint(translations * 24).astype(int)
    given = np.hstack([rotations.reshape(-1, 9), shifts % 24])
    products = np.einsum("aij,bjk->abik", rotations, rotations).reshape(-1, 9)
    sums = np.einsum("aij,bj->abi", rotations, shifts) + shifts[:, None]
    pairs = np.hstack([products, sums.reshape(-1, 3) % 24])
    identity = np.array([1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0])
    distinct = np.unique(given, axis=0)
    if not (given == identity).all(axis=1).any() or not np.array_equal(
        np.unique(pairs, axis=0), distinct
    ):
        raise Unusable(f"its {len(listed)} symmetry operations are no group")
    if len(distinct) < len(listed) or np.abs(translations * 24 - shifts).max() > 0.05:
        raise Unusable("its symmetry operations repeat, or shift by no fraction of the cell")
    return [(rotations, shifts / 24)]


def _parse_operations(texts: list[str]) -> Operations:
    from pymatgen.core import SymmOp

    texts = [re.sub(r"\s", "", text).lower() for text in texts]
    for text in texts:
        # pymatgen leaves out what it cannot read.
        if not re.fullmatch(f"{_PART},{_PART},{_PART}", text):
            raise Unusable(f"{text!r} is no symmetry operation")
    operations = [SymmOp.from_xyz_str(text) for text in texts]
    rotations = np.array([operation.rotation_matrix for operation in operations])
    return rotations.astype(int), np.array([o.translation_vector for o in operations])


def _find_groups(tags: Tags, has_list: bool) -> list[int]:
    """Hall numbers of the space groups that the file can mean; none if it says nothing."""
    found: set[int] | None = None
    for names, kind in _KINDS.items():
        text = _value(tags, *names)
        matches = _settings(text, kind) if text else set()
        if matches:
            found = matches if found is None else found & matches
        elif text and not has_list:
            raise Unusable(f"its space group {text!r} is not known")
    if found is None and not has_list:
        for tag in tags:  # a setting such as "cubic" says that there is one
            if tag.startswith(("_symmetry_", "_space_group_")) and tags[tag] != ["triclinic"]:
                raise Unusable(f"its space group is not said in a way that is known ({tag})")
    if found is not None and not found:
        raise Unusable("its names of the space group contradict each other")
    return sorted(found or ())


def _settings(text: str, kind: str) -> set[int]:
    """Hall numbers of all settings that a name, a Hall symbol or a number can stand for."""
    text, _, choice = text.strip().partition(":")
    if not kind and not choice and (match := re.fullmatch(r"(.*\S)\s*([HRZSrhzs])", text)):
        text, choice = match[1], {"Z": "2", "S": "1"}.get(match[2].upper(), match[2])
    text, choice = kind + _squeeze(text), f":{choice.strip().lower()}"
    # Before 1983 the bar of m-3 and its kin was left out.
    for name in (text, re.sub(r"(?<=[a-dmn])3", "-3", text)):
        if found := {hall for hall, names in _group_names().items() if name in names}:
            exact = {hall for hall in found if choice in _group_names()[hall]}
            return exact if choice != ":" and exact else found
    return set()


def _squeeze(name: str) -> str:
    return re.sub(r"[\s_()~]", "", name).lower()


@lru_cache(maxsize=1)
def _group_names() -> dict[int, set[str]]:
    """All names of each setting of the space groups, without blanks, by Hall number."""
    import spglib

    found = {}
    for hall in range(1, 531):
        kind = spglib.get_spacegroup_type(hall)
        assert kind is not None
        full, short = kind.international_full, kind.international.split("=")
        names = [full, *short]
        if 3 <= kind.number <= 15:  # "P 1 2_1/n 1" is called P21/n, never P21/c as its kind is
            names = [full, re.sub(r"\b1\b", "", full), *short[1:]]
        if "e" in full:  # the names before 1992
            letters = {"A": "bc", "B": "ac", "C": "ab"}[full[0]]
            letters = "abbcca"[hall - 316] if kind.number == 67 else letters
            names += [short[0].replace("e", letter) for letter in letters]
        names += [f"hall{kind.hall_symbol}", f"number{kind.number}", f":{kind.choice}"]
        names += [f"schoenflies{kind.schoenflies}"]
        found[hall] = set(map(_squeeze, names))
    return found


@lru_cache(maxsize=64)
def _operations_of(hall: int) -> Operations:
    import spglib

    operations = spglib.get_symmetry_from_database(hall)
    assert operations is not None
    return operations["rotations"], operations["translations"]


def _fits(operations: Operations, lattice: Lattice) -> bool:
    """Whether the operations keep all lengths."""
    metric = lattice.matrix @ lattice.matrix.T
    turned = np.einsum("nji,jk,nkl->nil", operations[0], metric, operations[0])
    scale = np.sqrt(np.outer(np.diag(metric), np.diag(metric)))
    return bool((np.abs(turned - metric) <= 0.01 * scale).all())


def _expand(tags: Tags, operations: Operations) -> tuple[np.ndarray, np.ndarray]:
    """Positions of all atoms, orbit by orbit, and the sizes of the orbits.

    A site that lies on a special position but for the digits that it is written with is put there.
    """
    rotations, translations = operations
    orbits = []
    columns = [tags.get(f"_atom_site_fract_{axis}", []) for axis in "xyz"]
    for texts in zip(*columns, strict=True):
        numbers, digits = zip(*(_number(text, "a coordinate") for text in texts), strict=True)
        site, tolerance = np.array(numbers), min(10.0 ** -max(digits), 0.01)
        # A third that was cut off.
        thirds = np.rint(site * 3) / 3
        site = np.where(np.abs(site - thirds) <= min(tolerance, 1e-4), thirds, site)
        shift = rotations @ site + translations - site
        shift -= np.rint(shift)
        near = (np.abs(shift) <= 4 * tolerance).all(axis=1)
        centre = shift[near].mean(axis=0)
        if np.abs(centre).max() <= 1.01 * tolerance:
            site = site + centre
        images = (rotations @ site + translations) % 1
        distance = images[:, None] - images[None]
        same = (np.abs(distance - np.rint(distance)) < 1e-5).all(axis=2)
        first = same.argmax(axis=1) == np.arange(len(images))
        if first.sum() * near.sum() != len(images):
            raise Unusable(f"the site {', '.join(texts)} is too near to its own images")
        orbits.append(images[first])
    return np.concatenate(orbits), np.array([len(orbit) for orbit in orbits])


def _compare(tags: Tags, species: np.ndarray, orbits: np.ndarray) -> None:
    """Compares multiplicities, formula and Z with what was found."""
    for name in ("_atom_site_symmetry_multiplicity", "_atom_site_site_symmetry_multiplicity"):
        for text, size in zip(tags.get(name, ()), orbits, strict=False):
            if text not in _NOTHING and _number(text, name)[0] != size:
                raise Unusable(f"a site stands for {size} atoms, it says {text}")
    found = Counter(np.repeat(species, orbits).tolist())
    for name in ("structural", "moiety", "iupac"):
        _compare_loosely(_value(tags, f"_chemical_formula_{name}"), found)
    z = _value(tags, "_cell_formula_units_z")
    units = _number(z, "Z")[0] if z else 0
    formula = _value(tags, "_chemical_formula_sum")
    if formula is None:
        if units and (math.gcd(*found.values()) / units) % 1:
            raise Unusable(f"its {sum(found.values())} atoms are not {z} formulas")
        return
    parts = re.findall(r"([A-Z][a-z]?)(\d+\.?\d*|\.\d+|)", formula)
    if "".join(a + b for a, b in parts) != re.sub(r"\s", "", formula):
        raise Unusable(f"its formula {formula!r} cannot be read")
    declared: Counter[int] = Counter()
    for symbol, amount in parts:
        declared[atomic_number(symbol)] += float(amount or 1)  # type: ignore[assignment]
    ratios = [found[z] / declared[z] for z in found.keys() | declared.keys() if declared[z]]
    if found.keys() != declared.keys() or max(ratios) - min(ratios) > 0.01 * max(ratios):
        raise Unusable(f"its {sum(found.values())} atoms are not of its formula {formula!r}")
    # Some programs write the formula of the whole cell, and its formula units as Z.
    is_cell = abs(ratios[0] - 1) < 0.01 and units <= math.gcd(*map(round, declared.values()))
    if units and not is_cell and abs(ratios[0] - units) > 0.01:
        raise Unusable(f"its {sum(found.values())} atoms are not {z} formulas {formula!r}")


def _compare_loosely(formula: str | None, found: Counter[int]) -> None:
    """Compares a formula that need not be one; what cannot be read says nothing."""
    try:
        declared = Counter(parse_formula(formula or "").tolist())
    except ValueError:
        return
    if found.keys() != declared.keys() or len({found[z] / declared[z] for z in found}) > 1:
        raise Unusable(f"its {sum(found.values())} atoms are not of its formula {formula!r}")
