"""Metrics of de novo generation, counted by hand, and what bad input is answered."""

import sys
from functools import partial

import numpy as np
import pytest
import torch
from pymatgen.core import Lattice, Structure
from scipy.stats import wasserstein_distance

from irlkit.crystals import CrystalBatch
from irlkit.data import load
from irlkit.evaluate.denovo import denovo
from irlkit.evaluate.diversity import composition_diversity
from irlkit.evaluate.evidence import Bootstrap, Estimate
from irlkit.evaluate.matching import MatchPool
from irlkit.evaluate.novelty import TOLERANCES, KnownStructures, is_unique


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
    for e in found.values():
        assert e.low - 1e-9 <= e.value <= e.high + 1e-9
    density = metrics.table["density"][:4]
    expected = wasserstein_distance(density, metrics.training["density"])
    assert found["wasserstein_density"].value == pytest.approx(expected)
    diversity = composition_diversity(made)[0]
    assert found["composition_diversity"].value == pytest.approx(diversity)
    again = metrics.summary(torch.Generator().manual_seed(0))
    assert again == found
    assert "msun" not in found and "median_e_above_hull" not in found


def test_intervals_of_what_resampling_shifts():
    """Those of a diversity hold its mean over sets of one size, 95 of 100 times."""
    batch, random = load("prototypes", progress=False).batch, np.random.default_rng(0)
    sets = [batch.select(random.choice(len(batch), 150, replace=False)) for _ in range(60)]
    mean = np.mean([composition_diversity(few)[0] for few in sets])
    held = []
    for seed, few in enumerate(sets):
        draw = Bootstrap(np.arange(150), torch.Generator().manual_seed(seed), 200)
        found = Estimate.of(draw.centred(partial(composition_diversity, few)))
        assert found.low < found.value < found.high
        held.append(found.low <= mean <= found.high)
    assert 0.85 <= np.mean(held)


def test_a_share_of_none_has_an_interval(pool):
    data = load("prototypes", progress=False)
    few = data.select(data.table.drop_duplicates("formula").index[:20])
    found = denovo(few, few, pool=pool).summary(n_samples=20)
    assert found["novel"].value == 0.0 and found["novel"].high == pytest.approx(0.168, abs=1e-3)
    assert found["valid"].low == pytest.approx(1 - 0.168, abs=1e-3)


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


def test_groups_are_of_their_first_structure():
    """The second equals the first; the third only the second, which has no group of its own."""
    lattice, heights = Lattice.cubic(4.0), (2.1, 2.6, 3.1)
    batch = CrystalBatch.from_structures(
        [Structure(lattice, ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, z / 4]]) for z in heights],
        dtype=torch.float64,
    )
    with MatchPool(n_workers=0, stol=0.1) as pool:
        equal = np.isfinite(pool.rmsd(batch, batch, [(0, 1), (1, 2), (0, 2)]))
        assert equal.tolist() == [True, True, False]
        assert is_unique(batch, pool).tolist() == [True, False, True]
