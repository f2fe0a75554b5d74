"""Structures and trajectories as files that other programs open, and `irlkit.data` reads back.

| path | what is written |
|---|---|
| `name.extxyz`, `name.xyz` | extended XYZ, one frame per structure |
| `name.parquet` | table with arrays `species`, `pos` (fractional), `cell` (Å) |
| `name.cif` | one data block per structure, without the table |
| `name` | folder of CIF files with a table `table.csv` |

Each structure carries its row of a table (metrics, for instance) and the provenance of all, which
is the same JSON text in the column `provenance` when it is read back.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from irlkit.crystals import CrystalBatch
from irlkit.data._files import TABLE
from irlkit.utils.checks import checked
from irlkit.utils.system import write_atomically

XYZ_SUFFIXES = (".extxyz", ".xyz")


@checked
def write(
    path: str | os.PathLike[str],
    structures: CrystalBatch,
    table: pd.DataFrame | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Write structures in the format that the path's extension names.

    Args:
        path: File, or folder for CIF files; missing folders are made, an existing file is replaced.
        structures: B structures.
        table: What is known of each, B rows, such as `Metrics.table`; `material_id` names the
            structures, which else are numbered.
        provenance: What made them (model, seed, steps, potential, ...): anything JSON can hold.

    Returns:
        The path.

    Raises:
        FileExistsError: the folder for CIF files has such files already.
        ValueError: an unknown ending, no structures, another number of rows, ids that occur twice,
            or provenance that is no JSON.
    """
    path = Path(path)
    suffix, is_vasp = path.suffix.lower(), path.name.upper().startswith(("POSCAR", "CONTCAR"))
    known = suffix in (*XYZ_SUFFIXES, ".parquet", ".cif", "") and not is_vasp
    if not known and not path.is_dir():
        raise ValueError(
            f"path: {path.name!r} ends with none of .extxyz, .xyz, .parquet and .cif, and is no "
            "folder (for CIF files: a name without an ending)"
        )
    rows = _rows(structures, table, provenance)
    if path.is_dir() or not suffix:
        _write_folder(path, structures, rows)
    elif suffix in XYZ_SUFFIXES:
        write_atomically(path, "".join(_frames(structures, rows)).encode())
    elif suffix == ".parquet":
        _write_parquet(path, structures, rows)
    else:
        write_atomically(path, "".join(text for _, text in _cifs(structures, rows)).encode())
    return path


@checked
def write_trajectory(
    path: str | os.PathLike[str],
    states: Sequence[CrystalBatch],
    structure: int = 0,
    times: Sequence[float] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Write the states of one structure during an integration as extended XYZ.

    Args:
        path: File, `.extxyz` or `.xyz`.
        states: From `Dynamics.generate(..., record=states)`, the base sample first.
        structure: Which structure of the batches.
        times: Time of each state; None leaves them out.
        provenance: What made them: anything JSON can hold.

    Raises:
        IndexError: no such structure.
        ValueError: no states, another number of times, or another extension.
    """
    path = Path(path)
    if path.suffix.lower() not in XYZ_SUFFIXES:
        raise ValueError(f"path: a trajectory is written as {XYZ_SUFFIXES}, got {path.name!r}")
    if not len(states) or (times is not None and len(times) != len(states)):
        raise ValueError(
            f"states and times: expected at least one state and as many times, got {len(states)} "
            f"and {None if times is None else len(times)}"
        )
    frames = CrystalBatch.concatenate([state[structure] for state in states])
    table = pd.DataFrame({"step": range(len(states))})
    if times is not None:
        table["time"] = [float(t) for t in times]
    table.insert(0, "material_id", [f"step-{step}" for step in range(len(states))])
    return write(path, frames, table, provenance)


def _rows(
    structures: CrystalBatch, table: pd.DataFrame | None, provenance: Mapping[str, Any] | None
) -> pd.DataFrame:
    """Table with names and provenance, one row per structure."""
    if not len(structures):
        raise ValueError("structures must hold at least one structure, got none")
    rows = pd.DataFrame(index=range(len(structures))) if table is None else table.copy()
    if len(rows) != len(structures):
        raise ValueError(
            f"table must have a row per structure: it has {len(rows)} rows for "
            f"{len(structures)} structures"
        )
    rows = rows.reset_index(drop=True)
    if "material_id" not in rows:
        width = len(str(len(structures) - 1))
        names = [f"structure-{i:0{width}d}" for i in range(len(structures))]
        rows.insert(0, "material_id", np.array(names, dtype=object))
    rows["material_id"] = rows["material_id"].astype(str)
    twice = rows["material_id"][rows["material_id"].duplicated()]
    if len(twice):
        raise ValueError(f"table: the material_id {twice.iloc[0]!r} occurs more than once")
    if provenance is not None:
        try:
            rows["provenance"] = json.dumps(dict(provenance), sort_keys=True)
        except TypeError as error:
            raise ValueError(f"provenance must be what JSON can hold: {error}") from error
    return rows


def _entries(rows: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Each row as plain data, without what is missing."""
    for row in rows.to_dict("records"):
        entry = {str(k): v.item() if isinstance(v, np.generic) else v for k, v in row.items()}
        yield {k: v for k, v in entry.items() if not _missing(v)}


def _missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def _frames(structures: CrystalBatch, rows: pd.DataFrame) -> Iterator[str]:
    """Frames of extended XYZ, written here because ASE does not read back all that it writes."""
    from ase.data import chemical_symbols

    for (species, pos, cell), entry in zip(structures._to_arrays(), _entries(rows), strict=True):
        lattice = " ".join(f"{x:.12g}" for x in cell.ravel())
        comment = [f'Lattice="{lattice}"', "Properties=species:S:1:pos:R:3", 'pbc="T T T"']
        comment += [f"{re.sub(r'[^0-9A-Za-z_.-]', '_', k)}={_xyz(v)}" for k, v in entry.items()]
        lines = [str(len(species)), " ".join(comment)]
        for number, (x, y, z) in zip(species, pos @ cell, strict=True):
            lines.append(f"{chemical_symbols[number]:2} {x:.10f} {y:.10f} {z:.10f}")
        yield "\n".join(lines) + "\n"


def _xyz(value: Any) -> str:
    """A value of a comment line of extended XYZ."""
    if isinstance(value, bool):
        return "T" if value else "F"
    if isinstance(value, int | float):
        return repr(value)
    text = str(value)
    if re.fullmatch(r"[A-Za-z][\w.+:/()-]+", text, re.ASCII) and not _is_number(text):
        return text
    # Anything else could be taken for numbers or lists, except as JSON.
    quoted = f"_JSON {json.dumps(text)}".replace("\\", "\\\\").replace('"', '\\"')
    return f'"{quoted}"'


def _is_number(text: str) -> bool:
    """Whether readers take a text such as NaN or True for a value."""
    try:
        return text.lower() in ("true", "false") or bool(float(text) or True)
    except ValueError:
        return False


def _write_parquet(path: Path, structures: CrystalBatch, rows: pd.DataFrame) -> None:
    species, pos, cell = zip(*structures._to_arrays(), strict=True)
    arrays = pd.DataFrame(
        {
            "species": [numbers.tolist() for numbers in species],
            "pos": [array.ravel().tolist() for array in pos],
            "cell": [array.ravel().tolist() for array in cell],
        }
    )
    rows = rows.drop(columns=[name for name in arrays.columns if name in rows])
    content = pd.concat([rows, arrays], axis=1).to_parquet(index=False)
    write_atomically(path, content)


def _cifs(structures: CrystalBatch, rows: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """Name and text of each structure."""
    from pymatgen.io.cif import CifWriter

    names = [re.sub(r"[^\w.+-]", "_", name) for name in rows["material_id"]]
    if len(set(name.lower() for name in names)) < len(names):
        names = [f"{i}-{name}" for i, name in enumerate(names)]
    # Lengths and angles do not say that a cell is left-handed: (-a, -b, -c) is not, and the same.
    sign = torch.where(torch.linalg.det(structures.cell) < 0, -1.0, 1.0).to(structures.cell)
    structures = structures.replace(
        pos=structures.pos * sign[structures.batch][:, None],
        cell=structures.cell * sign[:, None, None],
    )
    for name, structure in zip(names, structures.to_structures(), strict=True):
        text = str(CifWriter(structure, significant_figures=10))
        yield name, re.sub(r"(?m)^data_.*", f"data_{name}", text, count=1)


def _write_folder(folder: Path, structures: CrystalBatch, rows: pd.DataFrame) -> None:
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"path: {folder} is a file, not a folder for CIF files")
    if folder.is_dir() and any(folder.glob("*.cif")):
        raise FileExistsError(
            f"path: {folder} has CIF files already; give a new folder, so that none are mixed"
        )
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for name, text in _cifs(structures, rows):
        (folder / f"{name}.cif").write_text(text, encoding="utf-8")
        names.append(name)
    write_atomically(folder / TABLE, rows.assign(material_id=names).to_csv(index=False).encode())
