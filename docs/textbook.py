"""Are textbook structures found? `irlkit generate FORMULA -n 100 --relax` for 24 of them.

    python docs/textbook.py            # goes on where it was stopped
    python docs/textbook.py --table    # of what was measured

A structure counts as found if one of the 100, relaxed, is equal (`StructureMatcher`) to the one
that textbooks give, as the embedded data sets hold it, relaxed with the same potential; whether it
has the lowest energy of all is said beside.
"""

import argparse
import json
import time
from pathlib import Path

import pandas as pd

from irlkit import potentials
from irlkit.__main__ import main as command
from irlkit.crystals.compositions import from_formula
from irlkit.lab.polymorphs import known_structures

#: Formula -> structure type, as the data sets call it.
TEXTBOOK = {
    "NaCl": "B1",
    "CsCl": "B2",
    "ZnS": "B3",
    "Si": "A4 (diamond)",
    "CaF2": "C1",
    "TiO2": "C4",
    "Al2O3": "corundum",
    "MgO": "B1",
    "SrTiO3": "E2_1",
    "LaAlO3": "LaAlO3",
    "GdFeO3": "GdFeO3",
    "MgAl2O4": "spinel",
    "LiFePO4": "LiFePO4",
    "LiCoO2": "alpha-NaFeO2",
    "CuInS2": "E1_1",
    "Cs2AgBiBr6": "elpasolite",
    "K2PtCl6": "K2PtCl6",
    "ZrSiO4": "zircon",
    "CaWO4": "scheelite",
    "FeTiO3": "ilmenite",
    "La2CuO4": "K2NiF4",
    "Cu2ZnSnS4": "kesterite",
    "Y2Ti2O7": "pyrochlore",
    "MgSiO3": "clinopyroxene",
}


def run(options):
    for formula in TEXTBOOK:
        folder = options.out_dir / formula
        if (folder / "seconds.json").exists():
            continue
        start = time.perf_counter()
        command(
            ["generate", formula, "-n", "100", "--relax", "-o", str(folder), *options.arguments]
        )
        seconds = time.perf_counter() - start
        (folder / "seconds.json").write_text(json.dumps(seconds))


def table(options):
    rows, potential = {}, potentials.get("chgnet")
    for formula, kind in TEXTBOOK.items():
        folder = options.out_dir / formula
        if not (folder / "seconds.json").exists():
            continue
        made = pd.read_csv(folder / "structures.csv")
        known = known_structures(from_formula(formula), potential).table
        types, split = known["prototype"].tolist(), known["split"].iloc[0]
        number = types.index(kind)
        hits = made[made["known"] == number]
        rows[formula] = {
            "structure": kind,
            "split": split,
            "model": made["model"].iloc[0],
            "found": len(hits),
            "z": ", ".join(map(str, sorted(hits["z"].unique()))),
            "rank": hits["rank"].min(),
            "above lowest, eV/atom": hits["above_lowest"].min(),
            "number among known": number + 1,
            "best of all is": types[k] if (k := int(made["known"].iloc[0])) >= 0 else "unknown",
            "seconds": json.loads((folder / "seconds.json").read_text()),
        }
    shown = pd.DataFrame.from_dict(rows, orient="index")
    pd.set_option("display.width", 250, "display.max_columns", None)
    print(shown.round(3).to_string())
    found = shown[shown["found"] > 0]
    print(f"{len(found)} of {len(shown)} found, {(found['split'] != 'train').sum()} not in train")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out-dir", type=Path, default=Path("runs/textbook"))
    parser.add_argument("--table", action="store_true")
    options, options.arguments = parser.parse_known_args()
    if not options.table:
        run(options)
    table(options)


if __name__ == "__main__":
    main()
