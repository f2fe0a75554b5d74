"""Fingerprints of structures and how many of a group are different."""

import numpy as np
import pytest
import torch

from irlkit.crystals import CrystalBatch
from irlkit.evaluate.diversity import SAME, count_distinct, fingerprints
from tests.test_policies import generator


def batch_of(species, pos, cell):
    """One structure from lists."""
    return CrystalBatch(
        torch.tensor(species),
        torch.tensor(pos, dtype=torch.float64) % 1.0,
        torch.tensor(cell, dtype=torch.float64)[None],
        torch.tensor([len(species)]),
    )


CELL = [[5.6, 0.0, 0.0], [0.4, 5.9, 0.0], [-0.3, 0.8, 6.4]]
POS = [[0.02, 0.01, 0.97], [0.52, 0.48, 0.03], [0.49, 0.02, 0.51], [0.13, 0.55, 0.42]]
SPECIES = [22, 8, 8, 38]


def test_equal_structures_have_equal_fingerprints():
    """Origin, order of atoms, orientation, inversion, scale and choice of cell do not matter."""
    structure = batch_of(SPECIES, POS, CELL)
    rotation, _ = np.linalg.qr(torch.randn(3, 3, generator=generator()).double().numpy())
    integers = np.array([[1, 1, 0], [0, 1, 0], [2, 0, 1]])
    order = [2, 0, 3, 1]
    pos, cell = np.array(POS), np.array(CELL)
    equal = [
        batch_of(SPECIES, pos + np.array([0.3, 0.9, 0.45]), cell),
        batch_of([SPECIES[i] for i in order], pos[order], cell),
        batch_of(SPECIES, pos, cell @ rotation),
        batch_of(SPECIES, -pos, cell),
        batch_of(SPECIES, pos, 1.3 * cell),
        batch_of(SPECIES, pos @ np.linalg.inv(integers), integers @ cell),
    ]
    prints = fingerprints(CrystalBatch.concatenate([structure, *equal]))
    np.testing.assert_allclose(prints[1:], np.broadcast_to(prints[0], prints[1:].shape), atol=1e-5)


def test_different_structures_have_different_fingerprints():
    structure = batch_of(SPECIES, POS, CELL)
    moved = np.array(POS)
    moved[1] += [0.2, 0.0, 0.1]
    swapped = [22, 38, 8, 8]
    different = [
        batch_of(SPECIES, moved, CELL),
        batch_of(swapped, POS, CELL),
        batch_of(SPECIES, POS, np.diag([4.0, 6.0, 8.8])),
    ]
    prints = fingerprints(CrystalBatch.concatenate([structure, *different]))
    difference = np.abs(prints[1:] - prints[0]).max(axis=1)
    assert (difference > SAME).all()
    # A small displacement changes little.
    close = fingerprints(batch_of(SPECIES, np.array(POS) + 1e-4 * moved, CELL))
    assert np.abs(close[0] - prints[0]).max() < 1e-3


def test_structures_in_one_batch_do_not_matter_to_each_other():
    parts = [batch_of(SPECIES, POS, CELL), batch_of([6], [[0.1, 0.2, 0.3]], np.diag([3.0, 3, 3]))]
    together = fingerprints(CrystalBatch.concatenate(parts))
    alone = np.concatenate([fingerprints(part) for part in parts])
    np.testing.assert_allclose(together, alone, rtol=1e-6)
    # A simple cubic lattice: six neighbours at the edge, then those along the face diagonals.
    np.testing.assert_allclose(together[1, :6], 1.0, rtol=1e-6)
    np.testing.assert_allclose(together[1, 6:12], 2**0.5, rtol=1e-6)


@pytest.mark.parametrize(
    "cell",
    [
        np.zeros((3, 3)),
        np.full((3, 3), np.nan),
        np.diag([3.0, 3.0, np.inf]),
        np.ones((3, 3)),
        np.diag([1e200, 1e200, 1e200]),
    ],
)
def test_degenerate_cells_have_none(cell):
    good = batch_of(SPECIES, POS, CELL)
    bad = batch_of([6], [[0.1, 0.2, 0.3]], cell)
    prints = fingerprints(CrystalBatch.concatenate([bad, good]))
    assert np.isnan(prints[0]).all() and np.isfinite(prints[1]).all()
    positions = good.replace(pos=good.pos * float("nan"))
    assert np.isnan(fingerprints(positions)).all()


def test_different_structures_of_a_group_are_counted():
    a, b, c = np.zeros(3), np.ones(3), np.full(3, 0.9 * SAME)
    gone = np.full(3, np.nan)
    prints = np.stack([a, b, c, a, gone, a, gone, b, gone, gone, gone, gone])
    assert count_distinct(prints, 4).tolist() == [2, 2, 0]
