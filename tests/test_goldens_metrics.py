"""Metrics against the reference implementation; every number comes from the file."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from pymatgen.core import Lattice, Structure

from irlkit.crystals import CrystalBatch
from irlkit.metrics import MatchPool, evaluate

GOLDENS = Path(os.environ.get("IRLKIT_GOLDENS", Path(__file__).parent / "goldens"))
ABSOLUTE_TOLERANCE = 1e-6


def _batch(records):
    return CrystalBatch.from_structures(
        [Structure(Lattice(r["cell"]), r["numbers"], r["frac"]) for r in records],
        dtype=torch.float64,
    )


@pytest.fixture(scope="module")
def case():
    return json.loads((GOLDENS / "metrics.json").read_text())


@pytest.fixture(scope="module")
def metrics(case):
    with MatchPool(n_workers=0, **case["tolerances"]) as pool:
        return evaluate(_batch(case["generated"]), _batch(case["reference"]), pool)


@pytest.mark.parametrize(
    ("name", "golden"),
    [
        ("match_rate", "match_rate"),
        ("rmse", "rmse"),
        ("metre", "metre"),
        ("best_rmse", "metre_mean_rmsd"),
        ("crmse", "crmse"),
    ],
)
def test_metric(case, metrics, name, golden):
    assert getattr(metrics, name) == pytest.approx(case[golden], abs=ABSOLUTE_TOLERANCE)


def test_best_displacement_of_each_reference(case, metrics):
    expected = np.array(case["rmsd_per_reference"], dtype=float)
    np.testing.assert_allclose(
        metrics.table["best_rmsd"], expected, rtol=0, atol=ABSOLUTE_TOLERANCE, equal_nan=True
    )
