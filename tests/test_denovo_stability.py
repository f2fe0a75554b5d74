"""Energies above hulls in the metrics of de novo generation, by a potential and by a judge."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr

from irlkit.crystals import CrystalBatch
from irlkit.data import load
from irlkit.evaluate.denovo import denovo
from irlkit.evaluate.hull import POTENTIAL, VIRTUAL_ENTRIES, Hull, _prototypes, _shift_of_elements
from irlkit.evaluate.matching import MatchPool
from irlkit.evaluate.novelty import TOLERANCES
from irlkit.potentials.base import Computed, Potential


class Springs(Potential):
    """Energy of a structure from its volume per atom alone, with an element it does not know."""

    name = "springs"

    def __init__(self, rest=20.0):
        self.rest = rest

    def _compute(self, batch, forces, stress):
        per_atom = batch.volume.double() / batch.n_atoms
        energy = 0.01 * (per_atom - self.rest) ** 2
        pressure = 0.02 * (per_atom - self.rest)
        return Computed(
            energy,
            torch.zeros_like(batch.pos, dtype=torch.float64) if forces else None,
            pressure[:, None, None] * torch.eye(3, dtype=torch.float64) if stress else None,
        )

    def check(self, compositions):
        if (compositions.species == 92).any():
            raise ValueError("U is not known")


def flat(height, potential="springs"):
    """A hull at one height, which does not know U and covers no oxide."""
    return Hull(dict.fromkeys(("K", "Br", "KBr", "Mg", "O"), height), potential)


@pytest.fixture(scope="module")
def pool():
    with MatchPool(n_workers=0, **TOLERANCES) as pool:
        yield pool


def test_stability(pool):
    data = load("prototypes", "train", progress=False)
    salts = data.batch.select(data.table.index[data.table["formula"].isin(["MgO", "KBr"])])
    other = data.select(range(3))
    (last,) = salts.to_structures()[-1:]
    last[0] = "U"
    uranium = CrystalBatch.from_structures([last])
    batch = CrystalBatch.concatenate([salts, uranium])
    found = denovo(
        batch, other, potential=Springs(), hull=flat(-0.05), judge=Springs(30.0),
        judge_hull=flat(1e3), pool=pool,
    )  # fmt: skip
    table = found.table
    assert (found.potential, found.judge) == ("springs", "springs")
    oxides, last = table["formula"] == "MgO", table.index == len(batch) - 1
    assert oxides.any() and not (table["covered"] & oxides).any()
    assert table["converged"][~last].all()
    assert table["reason"][last].str.contains("springs does not know").all()
    volume = found.relaxed.volume / found.relaxed.n_atoms
    torch.testing.assert_close(volume[:-1].double(), torch.full((len(salts),), 20.0).double(),
                               atol=0.5, rtol=0)  # fmt: skip
    np.testing.assert_allclose(table["relaxed_e_above_hull"][~last & ~oxides], 0.05, atol=5e-3)
    assert (table["metastable"] == (~oxides & ~last)).all()
    assert not table["stable"].any() and not table["sun"].any()
    assert (table["msun"] == (table["metastable"] & table["relaxed_unique"])).all()
    assert (table["msun"] == table["msun_only"]).all()
    assert table["judge_sun"].sum() == table["msun"].sum() > 0
    summary = found.summary(n_samples=50)
    assert summary["msun"].value == table["msun"].mean()
    assert summary["covered"].value == table["covered"].mean()
    plain = denovo(batch, other, potential=Springs(), hull=flat(0.0), relax=False, pool=pool)
    assert plain.relaxed is None and "relaxed_unique" not in plain.table
    above = plain.table["e_above_hull"]
    assert (plain.table["metastable"] == ((above <= 0.1) & plain.table["covered"])).all()
    # On the hull, but for rounding.
    energies = plain.table["energy_per_atom"].where(~oxides & ~last)
    elements = dict.fromkeys(("K", "Br", "Mg", "O"), float(energies.max()) + 1)
    hull = Hull({**elements, "KBr": float(energies.min()) - 1e-9}, "springs")
    near = denovo(batch, other, potential=Springs(), hull=hull, relax=False, pool=pool).table
    assert near["e_above_hull"].min() > 0
    assert (near["stable"] == (energies == energies.min())).all() and near["stable"].any()


def test_words_about_hulls(pool):
    training = load("prototypes", "train", progress=False).select(range(3))
    made = training.batch
    with pytest.raises(ValueError, match="hull needs potential"):
        denovo(made, training, hull=flat(0.0))
    with pytest.raises(ValueError, match="judge_hull holds energies of the potential other"):
        denovo(made, training, judge=Springs(), judge_hull=flat(0.0, "other"))


def test_the_judge_has_a_hull_of_its_own():
    """Which agrees with CHGNet's; what predicted entries are shifted by explains the difference."""
    data = load("prototypes", progress=False)
    energy = {POTENTIAL: data.table["energy_per_atom"].to_numpy()}
    stored = pd.read_parquet(VIRTUAL_ENTRIES.with_name("7net-0.parquet"))
    assert (stored["material_id"] == data.table["material_id"]).all()
    energy["7net-0"] = stored["energy_per_atom"].to_numpy(np.float64)
    hulls = {name: Hull.prototypes(completed=False, potential=name) for name in energy}
    few = np.flatnonzero(data.table["e_above_hull"].notna())[::20]
    above = []
    for name, hull in hulls.items():
        assert hull.potential == name
        result = hull.energy_above_hull(data.batch.select(few), energy[name][few])
        above.append(result.value[result.covered])
        assert (above[-1] > -1e-5).all()
    assert spearmanr(*above)[0] > 0.8
    formulas = data.batch.reduced_formulas()
    lowest = pd.DataFrame({"formula": formulas, **energy}).groupby("formula").min()
    shift = _shift_of_elements(lowest, "7net-0")
    assert shift["O"] > 0.5 > abs(shift["Mg"]) and shift["F"] > 0.3
    with pytest.raises(ValueError, match=r"7net-0, whose energies.*got 'mace'"):
        Hull.prototypes(potential="mace")


def test_virtual_entries_of_the_judge_are_shifted(tmp_path, monkeypatch):
    """An oxide's by about what oxygen's share says, an alloy's by hardly anything."""
    (tmp_path / "7net-0.parquet").write_bytes(
        VIRTUAL_ENTRIES.with_name("7net-0.parquet").read_bytes()
    )
    table = pd.DataFrame({"formula": ["Mg3O", "MgZn7"], "formation_energy_per_atom": [-9.0, -9.0]})
    table.to_parquet(tmp_path / VIRTUAL_ENTRIES.name)
    monkeypatch.setattr("irlkit.evaluate.hull.VIRTUAL_ENTRIES", tmp_path / VIRTUAL_ENTRIES.name)
    # Neither a hull of other tests' nor one that they would be given.
    monkeypatch.setattr("irlkit.evaluate.hull._prototypes", _prototypes.__wrapped__)
    batch = CrystalBatch.from_formulas(["Mg3O", "MgZn7"])
    lowest = []
    for name in (POTENTIAL, "7net-0"):
        hull = Hull.prototypes(potential=name)
        pure = hull.energy_above_hull(CrystalBatch.from_formulas(["Mg", "O", "Zn"]), [0.0] * 3)
        mg, o, zn = pure.value
        mixed = np.array([0.75 * mg + 0.25 * o, 0.125 * mg + 0.875 * zn])
        lowest.append(mixed - hull.energy_above_hull(batch, [0.0, 0.0]).value)
    assert lowest[0] == pytest.approx(-9.0)
    assert 0.15 < (lowest[1] - lowest[0])[0] < 0.35
    assert abs(lowest[1] - lowest[0])[1] < 0.05
