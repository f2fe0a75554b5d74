"""Makes the embedded data set from nothing: enumerate, relax with CHGNet, filter, label, split.

Run ``irlkit prototypes --help``. Relaxations are appended to a JSON-lines
file, so that a run that was stopped continues where it ended; the parquet file is made from it in
seconds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import warnings
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np

from irlkit.data.loading import split_of
from irlkit.lab.prototypes.candidates import enumerate_candidates
from irlkit.lab.prototypes.structure_types import STRUCTURE_TYPES
from irlkit.utils.system import available_cores

FMAX = 0.05  # eV/Å, forces and stress times volume per atom
MAX_STEPS = 120
ENERGY_WINDOW = 0.3  # eV/atom above the best of the composition
BROKEN_CONTACT = 1.7  # nearest neighbour over the sum of covalent radii
SYMPREC = 0.01

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


def _relax_candidate(candidate: tuple[str, tuple[str, ...]]) -> dict[str, Any]:
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


def _relax_all(raw: Path, workers: int) -> None:
    """Relax every candidate that `raw` does not hold yet, appending to it."""
    from tqdm.auto import tqdm

    candidates = enumerate_candidates()
    done = {_key(record) for record in _read(raw)} if raw.exists() else set()
    todo = [candidate for candidate in candidates if candidate not in done]
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    # Unlike multiprocessing.Pool, an executor says so when a worker dies instead of waiting.
    with (
        ProcessPoolExecutor(workers, context, initializer=_start_worker) as executor,
        raw.open("a") as out,
    ):
        futures = [executor.submit(_relax_candidate, candidate) for candidate in todo]
        results = as_completed(futures)
        for future in tqdm(results, total=len(todo), desc="relaxing", mininterval=30):
            out.write(json.dumps(future.result()) + "\n")
            out.flush()


def _read(raw: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in raw.read_text().splitlines()]


def _key(record: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    return record["prototype"], tuple(record["elements"])


def _is_broken(structure: Any) -> bool:
    """Whether some atom has no neighbour within bonding distance."""
    from ase.data import covalent_radii

    radii = np.array([covalent_radii[site.specie.Z] for site in structure])
    first, second, _, distance = structure.get_neighbor_list(10.0)
    contact = np.full(len(structure), np.inf)
    np.minimum.at(contact, first, distance / (radii[first] + radii[second]))
    return bool(contact.max() > BROKEN_CONTACT)


def _label(structure: Any, record: dict[str, Any], number: int, matcher: Any) -> str:
    """Structure type after relaxation: the start if the symmetry held, else one that matches."""
    start = STRUCTURE_TYPES[record["prototype"]]
    if start.space_group == number:
        return start.name
    for entry in STRUCTURE_TYPES.values():
        if (
            entry.space_group == number
            and entry.n_atoms == len(structure)
            and sorted(entry.stoichiometry) == sorted(start.stoichiometry)
            and matcher.fit_anonymous(
                structure, entry.build(record["elements"][: len(entry.stoichiometry)])
            )
        ):
            return entry.name
    return "other"


def _build_table(raw: Path) -> tuple[Any, dict[str, int]]:
    """Filter, deduplicate, label and split the relaxed candidates in a file of `_relax_all`.

    Returns a row per kept structure, and how many candidates each filter dropped.
    """
    import pandas as pd
    from pymatgen.analysis.structure_matcher import StructureMatcher
    from pymatgen.symmetry.analyzer import SpacegroupAnalyzer
    from tqdm.auto import tqdm

    warnings.filterwarnings("ignore")
    dropped: dict[str, int] = defaultdict(int)
    records = sorted(_read(raw), key=_key)
    groups = _sound_structures(records, dropped)
    duplicates = StructureMatcher()  # pymatgen's own tolerances: what it calls the same structure
    rows: list[dict[str, Any]] = []
    compositions = []
    for formula, members in tqdm(sorted(groups.items()), desc="filtering", mininterval=10):
        for structure, record in _distinct(members, duplicates, dropped):
            number = SpacegroupAnalyzer(structure, symprec=SYMPREC).get_space_group_number()
            compositions.append(structure.composition)
            rows.append(
                {
                    "material_id": f"irl-{len(rows):05d}",
                    "formula": formula,
                    "prototype": _label(structure, record, number, duplicates),
                    "spacegroup": number,
                    "energy_per_atom": record["energy_per_atom"],
                    "species": np.array([site.specie.Z for site in structure], np.uint8),
                    "pos": (structure.frac_coords % 1).astype(np.float32).ravel(),
                    "cell": structure.lattice.matrix.astype(np.float32).ravel(),
                    "split": split_of(formula),
                }
            )
    table = pd.DataFrame(rows)
    table["e_above_hull"] = _energies_above_hull(compositions, table["energy_per_atom"])
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
    members: list[tuple[Any, dict[str, Any]]], matcher: Any, dropped: dict[str, int]
) -> list[tuple[Any, dict[str, Any]]]:
    """Polymorphs of one composition that are low in energy and differ, as reduced cells."""
    order = {name: rank for rank, name in enumerate(STRUCTURE_TYPES)}
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
        else:
            kept.append((structure, record))
    return kept


def _energies_above_hull(compositions: list[Any], energy_per_atom: Any) -> list[float]:
    """Energies above the hull of all entries, eV/atom; nan where an element has none."""
    from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
    from tqdm.auto import tqdm

    by_system: dict[frozenset[str], list[PDEntry]] = defaultdict(list)
    entries = [
        PDEntry(c, e * c.num_atoms) for c, e in zip(compositions, energy_per_atom, strict=True)
    ]
    systems = [frozenset(element.symbol for element in c) for c in compositions]
    for system, entry in zip(systems, entries, strict=True):
        by_system[system].append(entry)
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


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="irlkit prototypes", description=__doc__)
    parser.add_argument("--raw", type=Path, default=Path("prototypes_raw.jsonl"))
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).parents[2] / "data" / "prototypes" / "prototypes.parquet",
    )
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
    if not arguments.skip_relaxation:
        _relax_all(arguments.raw, arguments.workers)
    table, dropped = _build_table(arguments.raw)
    table.to_parquet(arguments.out, compression="zstd", index=False)
    print(json.dumps(dropped, indent=2))
    print(f"{arguments.out}: {len(table)} structures, {arguments.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
