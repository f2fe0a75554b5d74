"""What notebook 06 needs: tables of structures, the best of them, and CIF files."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from irlkit import data
from irlkit.crystals import CrystalBatch, validity
from irlkit.data import CrystalDataset
from irlkit.data.writers import write
from irlkit.lab.experiments.claims import Claim, _paired_change
from irlkit.lab.experiments.quickstart import Size

SIZES = {"quick": Size(12, 12, 4), "laptop": Size(32, 30, 4), "paper": Size(64, 200, 16)}


def structure_table(
    compositions: CrystalDataset, n_structures: int, rewards: Mapping[str, torch.Tensor]
) -> pd.DataFrame:
    """List structures and their rewards, one set after the other.

    Args:
        compositions: what was generated.
        n_structures: how many of each, adjacent.
        rewards: set ("before", "after") -> rewards, shape (compositions * n_structures,).

    Returns:
        Columns material_id, formula, set, reward.
    """
    known = compositions.table["material_id"].astype(str)
    if known.duplicated().any():  # A formula that was listed twice.
        known = known + "-" + pd.Series(range(1, len(known) + 1)).astype(str)
    rows = pd.DataFrame({"id": known, "formula": compositions.table["formula"]})
    rows = rows.loc[rows.index.repeat(n_structures)].reset_index(drop=True)
    number = (rows.index.to_series() % n_structures).map("{:03d}".format)
    parts = []
    for name, values in rewards.items():
        part = pd.DataFrame({"material_id": rows["id"] + f"-{name}-" + number})
        found = np.asarray(values, dtype=float)
        parts.append(part.assign(formula=rows["formula"], set=name, reward=found))
    return pd.concat(parts, ignore_index=True)


def reward_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return mean and best reward per formula, before and after, for people."""
    groups = table.groupby(["formula", "set"], sort=False)
    columns = {name: ("reward", name) for name in ("size", "mean", "max")}
    return groups.agg(**columns).round(3).rename(columns={"size": "structures", "max": "best"})


def best_of(table: pd.DataFrame, structures: CrystalBatch, per_formula: int = 4) -> list[int]:
    """Return rows of the valid structures with the highest rewards, formula by formula.

    Args:
        table: of ``structure_table``.
        structures: all structures, in its order.
        per_formula: how many of each, at most.

    Raises:
        ValueError: no structure is valid.
    """
    valid = table[validity.check(structures).valid & np.isfinite(table["reward"])]
    if not len(valid):
        raise ValueError(
            f"none of the {len(table)} structures is valid: each has atoms on top of each other "
            "or a broken cell. Is it a trained model, and are there enough integration steps?"
        )
    best = valid.sort_values("reward", ascending=False, kind="stable")
    return [int(row) for row in best.groupby("formula", sort=False).head(per_formula).index]


def write_cifs(
    out_dir: str | Path,
    structures: CrystalBatch,
    table: pd.DataFrame,
    provenance: Mapping[str, Any],
) -> Path:
    """Write CIF files to a new folder, so that those of an earlier run stay what they were.

    Args:
        out_dir: folder for results; the new one is `cifs`, or `cifs-2`, ... in it, and returned.
        structures: what to write.
        table: a row per structure.
        provenance: what made them.
    """
    names = itertools.chain(["cifs"], (f"cifs-{n}" for n in itertools.count(2)))
    folders = (Path(out_dir) / name for name in names)
    folder = next(folder for folder in folders if not folder.exists())
    return write(folder, structures, table, provenance)


def share_read_back(folder: str | Path, structures: CrystalBatch) -> float:
    """Return the share of structures that a folder of CIF files holds: same formula and volume.

    Args:
        folder: of ``write_cifs``.
        structures: what was written, in that order.
    """
    read = data.load(folder, niggli=False, cache=False, progress=False).batch
    if read.formulas() != structures.formulas():
        return 0.0
    volume = structures.volume.abs().double()
    same = (read.volume.abs().double() - volume).abs() <= 1e-4 * volume
    return float(same.double().mean())


def own_claims(table: pd.DataFrame, read_back: float, n_skipped: int = 0) -> list[Claim]:
    """Check what should hold; how far a reward rises is the user's business, so that is an aim.

    Args:
        table: of ``structure_table``.
        read_back: of ``share_read_back``.
        n_skipped: formulas that could not be read.
    """
    sets = [table.loc[table["set"] == name, "reward"].to_numpy() for name in ("before", "after")]
    gain = _paired_change(*sets)
    check, judged = Claim.check, float(table["reward"].notna().mean())
    return [
        check("mean change of the reward", gain, "> 0", "aim", 0.0),
        check(
            "share of the written CIF files that are read back alike", read_back, ">= 1", "guard"
        ),
        check("share of structures with a reward", judged, ">= 1", "guard"),
        check("formulas that could not be read", n_skipped, "<= 0", "guard"),
    ]
