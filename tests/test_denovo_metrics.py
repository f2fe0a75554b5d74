"""Metrics of de novo generation, counted by hand, and what bad input is answered."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance

from irlkit.crystals import CrystalBatch
from irlkit.data import load
from irlkit.evaluate.denovo import denovo
from irlkit.evaluate.diversity import composition_diversity
from irlkit.evaluate.evidence import Bootstrap
from irlkit.evaluate.matching import MatchPool
from irlkit.evaluate.novelty import TOLERANCES, KnownStructures, is_unique
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


class Hull:
    """A hull at one height that covers no structure with oxygen."""

    def __init__(self, height, potential="springs"):
        self.height, self.potential = height, potential

    def energy_above_hull(self, batch, energies):
        oxygen = torch.bincount(batch.batch[batch.species == 8], minlength=len(batch)) > 0
        return SimpleNamespace(value=energies - self.height, covered=~oxygen.numpy())


@pytest.fixture(scope="module")
def training():
    return load("prototypes", "train", progress=False).select(range(3))


@pytest.fixture(scope="module")
def made(training):
    """Two known, a known one moved, a new one of a known formula, one that is flat."""
    known = training.batch.to(dtype=torch.float64)
    stretched = 1.3 * known[0].cell @ torch.diag(torch.tensor([1.0, 1.0, 2.0]).double())
    flat = known[2].replace(cell=1e-3 * known[2].cell)
    moved = known[1].replace(pos=known[1].pos + 0.1)
    return CrystalBatch.concatenate([known[:2], moved, known[0].replace(cell=stretched), flat])


@pytest.fixture(scope="module")
def pool():
    with MatchPool(n_workers=0, **TOLERANCES) as pool:
        yield pool


def test_counted_by_hand(made, training, pool):
    table = denovo(made, training, pool=pool).table
    assert table["valid"].tolist() == [True] * 4 + [False]
    assert table["unique"].tolist() == [True, True, False, True, False]
    assert table["novel"].tolist() == [False, False, False, True, False]
    assert not table["new_formula"].any()
    assert table["amd_distance"][:3].tolist() == pytest.approx([0.0] * 3, abs=1e-5)
    assert table["amd_distance"][3] > 0.1
    assert np.isnan(table["amd_distance"][4])
    one = load("prototypes", progress=False)[3000]
    assert denovo(made, one, pool=pool).table["new_formula"].all()


def test_summary(made, training, pool):
    metrics = denovo(made, training, pool=pool)
    found = metrics.summary()
    assert found["valid"].value == 0.8
    assert found["unique"].value == 0.75
    assert found["novel"].value == 0.25
    assert found["new_formula"].value == 0.0
    assert all(e.low <= e.value <= e.high for e in found.values() if np.isfinite(e.value))
    density = metrics.table["density"][:4]
    expected = wasserstein_distance(density, metrics.training["density"])
    assert found["wasserstein_density"].value == pytest.approx(expected)
    formulas = metrics.table["formula"].value_counts(normalize=True)
    assert found["effective_formulas"].value == pytest.approx(1 / (formulas**2).sum())
    again = metrics.summary(torch.Generator().manual_seed(0))
    assert again == found
    assert "msun" not in found and "median_e_above_hull" not in found


def test_intervals_hold_what_they_estimate():
    """Of a distance and a diversity, which plain resamples would shift."""
    batch = load("prototypes", progress=False).batch
    whole = composition_diversity(batch)[0]
    random = np.random.default_rng(0)
    inside = 0
    for seed in range(20):
        few = batch.select(random.choice(len(batch), 200, replace=False))
        draw = Bootstrap(np.arange(200), torch.Generator().manual_seed(seed), 200)
        values = draw.basic(lambda w, few=few: composition_diversity(few, w))
        assert values[1:].mean() > values[0]  # towards the whole, of which few are a sample
        inside += np.quantile(values[1:], 0.001) <= whole
    assert inside == 20


def test_diversity_by_its_definition():
    batch = load("prototypes", progress=False).batch[:40]
    counts = torch.zeros(40, 101).double()
    counts.index_put_((batch.batch, batch.species), torch.ones(1).double(), accumulate=True)
    x = counts / counts.norm(dim=1, keepdim=True)
    values = torch.linalg.eigvalsh(x @ x.T / 40).clamp_min(1e-15)
    expected = (-(values * values.log()).sum()).exp()
    assert composition_diversity(batch)[0] == pytest.approx(float(expected))
    assert composition_diversity(CrystalBatch.from_formulas(["Na", "K"] * 3))[0] == pytest.approx(2)
    with pytest.raises(ValueError, match=r"shape \(m, 40\)"):
        composition_diversity(batch, np.ones((2, 3)))


def test_stability(pool):
    data = load("prototypes", "train", progress=False)
    salts = data.batch.select(data.table.index[data.table["formula"].isin(["MgO", "KBr"])])
    other = data.select(range(3))
    (last,) = salts.to_structures()[-1:]
    last[0] = "U"
    uranium = CrystalBatch.from_structures([last])
    batch = CrystalBatch.concatenate([salts, uranium])
    found = denovo(
        batch, other, potential=Springs(), hull=Hull(-0.05), judge=Springs(30.0),
        judge_hull=Hull(1e3), pool=pool,
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
    np.testing.assert_allclose(table["relaxed_e_above_hull"][~last], 0.05, atol=0.005)
    assert (table["metastable"] == (~oxides & ~last)).all()
    assert not table["stable"].any() and not table["sun"].any()
    assert (table["msun"] == (table["metastable"] & table["relaxed_unique"])).all()
    assert (table["msun"] == table["msun_only"]).all()
    assert table["judge_sun"].sum() == table["msun"].sum() > 0
    summary = found.summary(n_samples=50)
    assert summary["msun"].value == table["msun"].mean()
    assert summary["covered"].value == table["covered"].mean()
    plain = denovo(batch, other, potential=Springs(), hull=Hull(0.0), relax=False, pool=pool)
    assert plain.relaxed is None and "relaxed_unique" not in plain.table
    above = plain.table["e_above_hull"]
    assert (plain.table["metastable"] == ((above <= 0.1) & plain.table["covered"])).all()


def test_records_without_a_structure_fail(tmp_path, training, pool):
    good = load("prototypes", progress=False).structures[0]
    good.to(str(tmp_path / "a.cif"))
    (tmp_path / "b.cif").write_text("data_b\nnothing here")
    with pytest.warns(UserWarning, match="1 of 2 records"):
        made = load(tmp_path, cache=False)
    metrics = denovo(made, training, pool=pool)
    assert metrics.table["valid"].tolist() == [True, False]
    assert metrics.table["material_id"].tolist() == ["a", "b"]
    assert metrics.table["reason"][1]
    assert metrics.summary(n_samples=20)["valid"].value == 0.5


def test_composition_validity(made, training, pool, monkeypatch):
    pytest.importorskip("smact")
    batch = CrystalBatch.from_formulas(["NaCl", "NaCl2", "CuZn", "ArO2", "HeO"])
    found = denovo(batch, training, pool=pool).table["valid_composition"]
    assert found.tolist() == [True, False, True, False, False]
    monkeypatch.setitem(sys.modules, "smact.screening", None)
    assert denovo(batch, training, pool=pool).table["valid_composition"].isna().all()
    assert np.isnan(
        denovo(batch, training, pool=pool).summary(n_samples=9)["valid_composition"].value
    )


def test_tolerances_are_the_pool_s(pool):
    data = load("prototypes", "train", progress=False)
    few = data.select(data.table.index[data.table["n_atoms"] == 6][:5])
    noise = torch.randn(few.batch.pos.shape, generator=torch.Generator().manual_seed(0))
    moved = few.batch.replace(pos=few.batch.pos + 0.01 * noise)
    assert not denovo(moved, few, pool=pool).table["novel"].any()
    with MatchPool(n_workers=0, stol=1e-4) as strict:
        assert denovo(moved, few, pool=strict).table["novel"].all()


def test_known_structures_serve_again(made, training, pool):
    known = KnownStructures(training)
    first = denovo(made, known, pool=pool).table
    assert first.equals(denovo(made, known, pool=pool).table)
    assert (is_unique(made, pool) == first["unique"]).all()


def test_words(made, training, pool):
    with pytest.raises(ValueError, match="structures must hold at least one"):
        denovo(made.select([]), training)
    with pytest.raises(ValueError, match=r"training set.* at least one, got none"):
        denovo(made, training.select([]))
    with pytest.raises(ValueError, match="compositions without structures"):
        denovo(made, load(["NaCl"]))
    with pytest.raises(ValueError, match="hull needs potential"):
        denovo(made, training, hull=Hull(0.0))
    with pytest.raises(ValueError, match="judge_hull holds energies of the potential other"):
        denovo(made, training, judge=Springs(), judge_hull=Hull(0.0, "other"))
