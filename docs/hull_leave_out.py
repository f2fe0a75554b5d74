"""Measure how often a hull calls unstable compounds metastable if their system is left out.

Every compound of the embedded data set is judged by a hull without the entries of its own chemical
system: without and with virtual entries. `python docs/hull_leave_out.py` prints the table of
docs/results.md.
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd
from pymatgen.core import Composition

from irlkit.data import load
from irlkit.evaluate.evidence import Bootstrap, Estimate
from irlkit.evaluate.hull import METASTABLE, Hull
from irlkit.utils.progress import progress_bar


def measure(split: str | None) -> pd.DataFrame:
    """Return one row per structure: energies above three hulls, and how many elements it has."""
    data = load("prototypes", split, progress=False)
    energy = data.table["energy_per_atom"].to_numpy()
    systems = ["-".join(sorted(Composition(f).as_dict())) for f in data.batch.reduced_formulas()]
    table = pd.DataFrame({"formula": data.batch.reduced_formulas(), "system": systems})
    table["n_elements"] = table["system"].str.count("-") + 1
    real = Hull.prototypes(completed=False, strict=False)
    known = real.elements
    usable = table["system"].map(lambda s: set(s.split("-")) <= known).to_numpy()
    data, energy, table = data[usable], energy[usable], table[usable].reset_index(drop=True)
    table["real"] = real.energy_above_hull(data.batch, energy).value
    for name in ("without, open", "without, completed"):
        table[name] = np.nan
    groups = table[table["n_elements"] > 1].groupby("system")
    for name, completed in (("without, open", False), ("without, completed", True)):
        whole = Hull.prototypes(completed=completed, strict=completed)
        with progress_bar(total=len(groups), desc=name, unit="system") as bar:
            for system, rows in groups:
                hull = whole.without(system)
                found = hull.energy_above_hull(data.batch.select(rows.index), energy[rows.index])
                table.loc[rows.index, name] = found.value
                bar.update(1)
    return table


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Return shares with 95 % intervals (bootstrap over formulas)."""
    rows = []
    for n, kind in ((2, "binary"), (3, "ternary")):
        of = table[table["n_elements"] == n]
        for name in ("without, open", "without, completed"):
            known = of[of[name].notna() & of["real"].notna()]
            for truth, rest in (
                (False, known["real"] > METASTABLE),
                (True, known["real"] <= METASTABLE),
            ):
                part = known[rest]
                called = (part[name] <= METASTABLE).to_numpy(dtype=float)
                share = Estimate.of(Bootstrap(part["formula"].to_numpy(dtype=str)).mean(called))
                rows.append(
                    {
                        "compounds": kind,
                        "hull": name,
                        "really metastable": truth,
                        "structures": len(part),
                        "called metastable": share.value,
                        "low": share.low,
                        "high": share.high,
                    }
                )
    return pd.DataFrame(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--split", default=None, help="of the data set; all by default")
    with pd.option_context("display.width", 200):
        print(summarise(measure(parser.parse_args().split)).round(3).to_string(index=False))
