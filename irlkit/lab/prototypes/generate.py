"""Makes an embedded data set from nothing: enumerate, relax with CHGNet, filter, label, split.

Run ``irlkit prototypes --help``. Relaxations are appended to a JSON-lines
file, so that a run that was stopped continues where it ended; the parquet file is made from it in
minutes. The set `prototypes` is relaxed with ASE one by one, the set `complex` in batches.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from irlkit.data.dataset import CrystalDataset
from irlkit.data.loading import load, split_of
from irlkit.lab.prototypes._complex_candidates import enumerate_complex, split_of_complex
from irlkit.lab.prototypes.candidates import enumerate_candidates
from irlkit.lab.prototypes.structure_types import COMPLEX_TYPES, STRUCTURE_TYPES, StructureType
from irlkit.utils.system import available_cores

FMAX = 0.05  # eV/Å, forces and stress times volume per atom
MAX_STEPS = 120
ENERGY_WINDOW = 0.3  # eV/atom above the best of the composition
_HULL_WINDOW = 0.3  # eV/atom above the hull of both sets, for `complex`
BROKEN_CONTACT = 1.7  # nearest neighbour over the sum of covalent radii
SYMPREC = 0.01

_BATCH_STEPS = 200
"""Of batched relaxations, at most."""

_Candidate: TypeAlias = tuple[str, tuple[str, ...]]
"""Name of a structure type, and the elements or ions for its labels."""

_calculator: Any = None


def _start_worker() -> None:
    """Load CHGNet once per process, on one thread."""
    global _calculator
    import torch

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    from chgnet.model import CHGNet, CHGNetCalculator

    _calculator = CHGNetCalculator(
        CHGNet.load(use_device="cpu", verbose=False), use_device="cpu", on_isolated_atoms="error"
    )


def _relax_candidate(candidate: _Candidate) -> dict[str, Any]:
    """Relax positions and cell of one candidate; on success, the record has what came of it.

    Species, fractional positions, cell (Å) and energy per atom (eV).
    """
    from ase.filters import FrechetCellFilter
    from ase.optimize import BFGS
    from pymatgen.io.ase import AseAtomsAdaptor

    name, elements = candidate
    record: dict[str, Any] = {"prototype": name, "elements": list(elements)}
    try:
        atoms = AseAtomsAdaptor.get_atoms(STRUCTURE_TYPES[name].build(elements))
        atoms.calc = _calculator
        optimizer = BFGS(FrechetCellFilter(atoms), logfile=None)
        converged = bool(optimizer.run(fmax=FMAX, steps=MAX_STEPS))
        record |= {
            "converged": converged,
            "n_steps": optimizer.nsteps,
            "species": [int(z) for z in atoms.numbers],
            "pos": np.round(atoms.get_scaled_positions(), 6).tolist(),
            "cell": np.round(atoms.cell.array, 5).tolist(),
            "energy_per_atom": float(atoms.get_potential_energy() / len(atoms)),
        }
    except Exception as error:  # one candidate that CHGNet or ASE refuses must not end the run
        record |= {"converged": False, "error": f"{type(error).__name__}: {error}"[:200]}
    return record


def _relax_chunk(candidates: list[_Candidate]) -> list[dict[str, Any]]:
    """Relax candidates of the set `complex` together, in single precision."""
    from irlkit.crystals import CrystalBatch
    from irlkit.potentials import CHGNetPotential, relax

    records: list[dict[str, Any]] = [
        {"prototype": name, "elements": list(ions)} for name, ions in candidates
    ]
    started = [COMPLEX_TYPES[name].build(ions) for name, ions in candidates]
    result = relax(
        CrystalBatch.from_structures(started),
        CHGNetPotential(),
        max_steps=_BATCH_STEPS,
        force_tolerance=FMAX,
    )
    for i, (record, crystal) in enumerate(zip(records, result.crystals, strict=True)):
        record["converged"] = bool(result.converged[i])
        if i in result.reasons:
            record["error"] = result.reasons[i][:200]
            continue
        record |= {
            "n_steps": int(result.n_steps[i]),
            "max_force": round(float(result.max_force[i]), 4),
            "species": crystal.species.tolist(),
            "pos": np.round(crystal.pos.double().numpy(), 6).tolist(),
            "cell": np.round(crystal.cell.double().numpy(), 5).reshape(3, 3).tolist(),
            "energy_per_atom": float(result.energy_per_atom[i]),
        }
    return records


def _relax_one(candidates: list[_Candidate]) -> list[dict[str, Any]]:
    return [_relax_candidate(candidate) for candidate in candidates]


def _relax_all(raw: Path, workers: int, recipe: _Recipe, most: int | None) -> None:
    """Relax every candidate, or the first ones, that `raw` does not hold yet, appending to it."""
    from tqdm.auto import tqdm

    done = {_key(record) for record in _read(raw)} if raw.exists() else set()
    todo = [candidate for candidate in recipe.enumerate()[:most] if candidate not in done]
    chunks = [todo[i : i + recipe.chunk] for i in range(0, len(todo), recipe.chunk)]
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    # Unlike multiprocessing.Pool, an executor says so when a worker dies instead of waiting.
    with (
        ProcessPoolExecutor(workers, context, initializer=_start_worker) as executor,
        raw.open("a") as out,
        tqdm(total=len(todo), desc="relaxing", mininterval=30) as bar,
    ):
        for future in as_completed([executor.submit(recipe.relax, chunk) for chunk in chunks]):
            records = future.result()
            out.write("".join(json.dumps(record) + "\n" for record in records))
            out.flush()
            bar.update(len(records))


def _read(raw: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in raw.read_text().splitlines()]


def _key(record: dict[str, Any]) -> _Candidate:
    return record["prototype"], tuple(record["elements"])


def _is_broken(structure: Any) -> bool:
    """Whether some atom has no neighbour within bonding distance."""
    from ase.data import covalent_radii

    radii = np.array([covalent_radii[site.specie.Z] for site in structure])
    first, second, _, distance = structure.get_neighbor_list(10.0)
    contact = np.full(len(structure), np.inf)
    np.minimum.at(contact, first, distance / (radii[first] + radii[second]))
    return bool(contact.max() > BROKEN_CONTACT)


def _label(
    structure: Any,
    record: dict[str, Any],
    number: int,
    types: Mapping[str, StructureType],
    matcher: Any,
) -> str:
    """Structure type after relaxation: the start if the symmetry held, else one that matches."""
    start = types[record["prototype"]]
    if start.space_group == number:
        return start.name
    elements = [ion.rstrip("+-0123456789") for ion in record["elements"]]
    # Types of both sets: a relaxed structure may have more symmetry than any of its own set.
    for entry in {**types, **STRUCTURE_TYPES}.values():
        if (
            entry.space_group == number
            and entry.n_atoms == len(structure)
            and sorted(entry.stoichiometry) == sorted(start.stoichiometry)
            and matcher.fit_anonymous(structure, entry.build(elements))
        ):
            return entry.name
    return "other"


def _build_table(
    raw: Path, name: str = "prototypes", most: int | None = None
) -> tuple[Any, dict[str, int]]:
    """Filter, deduplicate, label and split the relaxed candidates in a file of `_relax_all`.

    Of all in it, or of those among the first `most` candidates.

    Returns a row per kept structure, and how many candidates each filter dropped.
    """
    import pandas as pd
    from pymatgen.analysis.structure_matcher import StructureMatcher
    from pymatgen.symmetry.analyzer import SpacegroupAnalyzer
    from tqdm.auto import tqdm

    warnings.filterwarnings("ignore")
    recipe = _RECIPES[name]
    dropped: dict[str, int] = defaultdict(int)
    records = sorted(_read(raw), key=_key)
    if most is not None:
        first = set(recipe.enumerate()[:most])
        records = [record for record in records if _key(record) in first]
    groups = _sound_structures(records, dropped)
    other = load(recipe.besides, progress=False) if recipe.besides else None
    known: dict[str, list[Any]] = defaultdict(list)
    if other is not None:
        shared = other[other.table["formula"].isin(list(groups))]
        for formula, structure in zip(shared.table["formula"], shared.structures, strict=True):
            known[formula].append(structure)
    duplicates = StructureMatcher()  # pymatgen's own tolerances: what it calls the same structure
    rows: list[dict[str, Any]] = []
    compositions = []
    for formula, members in tqdm(sorted(groups.items()), desc="filtering", mininterval=10):
        for structure, record in _distinct(
            members, known[formula], recipe.types, duplicates, dropped
        ):
            number = SpacegroupAnalyzer(structure, symprec=SYMPREC).get_space_group_number()
            compositions.append(structure.composition)
            rows.append(
                {
                    "formula": formula,
                    "prototype": _label(structure, record, number, recipe.types, duplicates),
                    "spacegroup": number,
                    "energy_per_atom": record["energy_per_atom"],
                    "species": np.array([site.specie.Z for site in structure], np.uint8),
                    "pos": (structure.frac_coords % 1).astype(np.float32).ravel(),
                    "cell": structure.lattice.matrix.astype(np.float32).ravel(),
                    "split": recipe.split_of(formula),
                }
            )
    table = pd.DataFrame(rows)
    table["e_above_hull"] = _energies_above_hull(compositions, table["energy_per_atom"], other)
    far = table["e_above_hull"] > recipe.hull_window
    if far.any():
        dropped["too far above the hull"] = int(far.sum())
        table = table[~far].reset_index(drop=True)
    ids = [f"{recipe.prefix}-{row:05d}" for row in range(len(table))]
    table.insert(0, "material_id", ids)
    return table, {**dropped, "candidates": len(records), "kept": len(table)}


def _sound_structures(
    records: list[dict[str, Any]], dropped: dict[str, int]
) -> dict[str, list[tuple[Any, dict[str, Any]]]]:
    """Structures that relaxed and held together, with their records, by reduced formula."""
    from pymatgen.core import Lattice, Structure

    groups: dict[str, list[tuple[Any, dict[str, Any]]]] = defaultdict(list)
    for record in records:
        if "error" in record or not record["converged"]:
            dropped["failed" if "error" in record else "not converged"] += 1
            continue
        structure = Structure(
            Lattice(record["cell"]), record["species"], record["pos"], to_unit_cell=True
        )
        if _is_broken(structure):
            dropped["broke apart"] += 1
        else:
            groups[structure.composition.reduced_formula].append((structure, record))
    return groups


def _distinct(
    members: list[tuple[Any, dict[str, Any]]],
    known: list[Any],
    types: Mapping[str, StructureType],
    matcher: Any,
    dropped: dict[str, int],
) -> list[tuple[Any, dict[str, Any]]]:
    """Polymorphs of one composition that are low in energy and differ, as reduced cells.

    From one another and from those that are known.
    """
    order = {name: rank for rank, name in enumerate(types)}
    best = min(record["energy_per_atom"] for _, record in members)
    members = sorted(members, key=lambda m: (len(m[0]), order[m[1]["prototype"]], m[1]["elements"]))
    kept: list[tuple[Any, dict[str, Any]]] = []
    for structure, record in members:
        if record["energy_per_atom"] > best + ENERGY_WINDOW:
            dropped["too high in energy"] += 1
            continue
        structure = structure.get_primitive_structure()
        structure = structure.get_reduced_structure(reduction_algo="niggli")
        if any(matcher.fit(structure, other) for other, _ in kept):
            dropped["duplicate"] += 1
        elif any(matcher.fit(structure, other) for other in known):
            dropped["in the other set"] += 1
        else:
            kept.append((structure, record))
    return kept


def _energies_above_hull(
    compositions: list[Any], energy_per_atom: Any, other: CrystalDataset | None
) -> list[float]:
    """Energies above the hull of all entries, eV/atom; nan where an element has none.

    Those of another set are part of it.
    """
    from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
    from pymatgen.core import Composition
    from tqdm.auto import tqdm

    by_system: dict[frozenset[str], list[PDEntry]] = defaultdict(list)
    entries = [
        PDEntry(c, e * c.num_atoms) for c, e in zip(compositions, energy_per_atom, strict=True)
    ]
    systems = [frozenset(element.symbol for element in c) for c in compositions]
    for system, entry in zip(systems, entries, strict=True):
        by_system[system].append(entry)
    if other is not None:
        for formula, energy in other.table[["formula", "energy_per_atom"]].itertuples(index=False):
            composition = Composition(formula)
            system = frozenset(element.symbol for element in composition)
            by_system[system].append(PDEntry(composition, energy * composition.num_atoms))
    diagrams: dict[frozenset[str], PhaseDiagram | None] = {}
    energies = []
    for system, entry in tqdm(list(zip(systems, entries, strict=True)), desc="hulls"):
        if system not in diagrams:
            known = [e for s, members in by_system.items() if s <= system for e in members]
            complete = all(frozenset([symbol]) in by_system for symbol in system)
            diagrams[system] = PhaseDiagram(known) if complete else None
        diagram = diagrams[system]
        energies.append(float(diagram.get_e_above_hull(entry)) if diagram else float("nan"))
    return energies


@dataclass(frozen=True)
class _Recipe:
    """What a data set is made with.

    Attributes:
        enumerate: Lists candidates.
        types: Structure types by name.
        relax: Relaxes a chunk of candidates.
        chunk: Their number.
        prefix: Of `material_id`.
        split_of: Split by reduced formula.
        hull_window: Structures further above the hull are dropped, eV/atom.
        besides: Another set: its energies are part of the hull, its structures are not repeated.
    """

    enumerate: Callable[[], list[_Candidate]]
    types: Mapping[str, StructureType]
    relax: Callable[[list[_Candidate]], list[dict[str, Any]]]
    chunk: int
    prefix: str
    split_of: Callable[[str], str] = split_of
    hull_window: float = float("inf")
    besides: str | None = None


_RECIPES = {
    "prototypes": _Recipe(enumerate_candidates, STRUCTURE_TYPES, _relax_one, 1, "irl"),
    "complex": _Recipe(
        enumerate_complex,
        COMPLEX_TYPES,
        _relax_chunk,
        24,
        "irc",
        split_of_complex,
        _HULL_WINDOW,
        "prototypes",
    ),
}


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="irlkit prototypes", description=__doc__)
    parser.add_argument("--set", choices=list(_RECIPES), default="prototypes", help="which to make")
    parser.add_argument("--raw", type=Path, help="file of relaxations: SET_raw.jsonl")
    parser.add_argument("--out", type=Path, help="table: that of the package")
    parser.add_argument("--first", type=int, metavar="N", help="only the first N candidates")
    parser.add_argument("--workers", type=int, default=available_cores())
    parser.add_argument("--skip-relaxation", action="store_true", help="only rebuild the table")
    parser.add_argument(
        "--virtual-from",
        metavar="WHEEL",
        help="only make the virtual entries of its hull, from the wheel of mattervial 0.1.5",
    )
    arguments = parser.parse_args(argv)
    if arguments.virtual_from:
        from irlkit.lab.prototypes import _virtual

        return _virtual.write(arguments.virtual_from)
    name: str = arguments.set
    raw = arguments.raw or Path(f"{name}_raw.jsonl")
    if not arguments.skip_relaxation:
        _relax_all(raw, arguments.workers, _RECIPES[name], arguments.first)
    table, dropped = _build_table(raw, name, arguments.first)
    out = arguments.out or Path(__file__).parents[2] / "data" / name / f"{name}.parquet"
    table.to_parquet(out, compression="zstd", index=False)
    print(json.dumps(dropped, indent=2))
    print(f"{out}: {len(table)} structures, {out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
