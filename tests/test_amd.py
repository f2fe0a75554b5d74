"""Average minimum distances against a search, and what they do not depend on."""

import numpy as np
import pytest
import torch
from pymatgen.core import Lattice, Structure

from irlkit.crystals import CrystalBatch
from irlkit.data import load
from irlkit.evaluate import amd as module
from irlkit.evaluate.amd import amd, amd_distance


@pytest.fixture(scope="module")
def known():
    batch = load("prototypes", progress=False).batch.to(dtype=torch.float64)
    return batch.select(np.random.default_rng(0).permutation(len(batch))[:60])


def by_hand(structure, k):
    """With pymatgen's neighbours, in a sphere that is large enough."""
    radius = 4.0
    while True:
        found = structure.get_all_neighbors(radius)
        if min(map(len, found)) >= k:
            return np.mean([sorted(n.nn_distance for n in near)[:k] for near in found], axis=0)
        radius *= 1.3


def test_distances_are_those_of_a_search(known):
    few = known.select(range(12))
    expected = np.array([by_hand(s, 100) for s in few.to_structures()])
    np.testing.assert_allclose(amd(few).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(
    "lattice",
    [
        Lattice.from_parameters(2, 2.5, 90, 80, 95, 115),  # a needle
        Lattice.from_parameters(40, 45, 1.5, 90, 91, 70),  # a sheet
        Lattice([[3, 0, 0], [2.9, 0.6, 0], [14, 5, 2.0]]),  # vectors that are far from reduced
    ],
)
@pytest.mark.parametrize("k", [1, 7, 100])
def test_strange_cells(lattice, k):
    x = np.random.default_rng(1).random((3, 3))
    structure = Structure(lattice, ["Na", "Cl", "O"], x)
    found = amd(CrystalBatch.from_structures([structure], dtype=torch.float64), k)[0]
    np.testing.assert_allclose(found.numpy(), by_hand(structure, k), atol=1e-5)


def test_cells_origins_orders_and_batches_do_not_matter(known):
    structures = known.select(range(8)).to_structures()
    changed = []
    for i, structure in enumerate(structures):
        other = structure.copy()
        other.make_supercell([[1, 1, 0], [0, 1, 0], [0, 1 + i % 2, 2]])
        other.translate_sites(range(len(other)), [0.3, 0.1, 0.7], to_unit_cell=False)
        changed.append(Structure.from_sites(other.sites[::-1]))
    batch = CrystalBatch.from_structures(structures + changed, dtype=torch.float64)
    values = amd(batch)
    torch.testing.assert_close(values[:8], values[8:], atol=1e-6, rtol=0)
    alone = torch.cat([amd(one) for one in batch.select(range(8))])
    torch.testing.assert_close(values[:8], alone, atol=1e-12, rtol=0)


def test_bad_structures_are_nan_and_change_no_other(known):
    two = known.select([0, 1])
    cell = two.cell.clone()
    cell[0, 2] = cell[0, 1]
    flat = two.replace(cell=cell)
    assert amd(flat)[0].isnan().all()
    torch.testing.assert_close(amd(flat)[1], amd(two)[1])
    cell[0, 0, 0] = torch.nan
    assert amd(two.replace(cell=cell))[0].isnan().all()
    assert amd(two.select([])).shape == (0, 100)


def test_distance_is_bounded_and_continuous(known):
    a = amd(known)
    away = amd_distance(a[:, None], a[None])
    assert (away.diagonal() == 0).all()
    assert (away >= 0).all()
    assert (away < 1).all()
    noise = 1e-3 * torch.randn(known.pos.shape, generator=torch.Generator().manual_seed(0))
    moved = amd_distance(amd(known.replace(pos=known.pos + noise.double())), a)
    assert moved.max() < 0.05 < away.median()


def test_smallest_distances_in_parts(known, monkeypatch):
    fingerprints = amd(known)
    away = amd_distance(fingerprints[:, None], fingerprints[None])
    away.fill_diagonal_(torch.inf)
    for at_once in (1, 1 << 22):
        monkeypatch.setattr(module, "_MAX_DISTANCES", at_once)
        assert torch.equal(module._smallest(fingerprints, fingerprints, 0.0), away.amin(1))
        assert not module._smallest(fingerprints[:2], fingerprints).any()


def test_words():
    with pytest.raises(ValueError, match=r"as many neighbours.*\(2,\) and \(3,\)"):
        amd_distance(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match="k must be"):
        amd(CrystalBatch.from_formulas(["NaCl"]), k=0)
