"""Interpolants against their definitions; base distributions; pairing."""

import pytest
import torch
from pymatgen.core import Lattice

from irlkit.crystals import CrystalBatch
from irlkit.flows.base_distribution import BaseDistribution, cell_from_parameters
from irlkit.flows.interpolants import (
    EncoderDecoderGamma,
    EncoderDecoderPath,
    Interpolant,
    LinearPath,
    SqrtGamma,
    TrigonometricPath,
    align_translation,
    center,
    pair_by_permutation,
    pair_with_data,
)


@pytest.mark.parametrize("path", [LinearPath(), TrigonometricPath(), EncoderDecoderPath()])
def test_boundary_conditions(path):
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    alpha, beta = path(ends)
    torch.testing.assert_close(alpha, torch.tensor([1.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(beta, torch.tensor([0.0, 1.0], dtype=torch.float64))


@pytest.mark.parametrize("periodic", [False, True])
def test_target_is_the_derivative_of_the_state(periodic):
    generator = torch.Generator().manual_seed(0)
    interpolant = Interpolant(TrigonometricPath(), SqrtGamma(0.05), periodic=periodic)
    x_0, x_1, z = (torch.rand(3, 7, 3, generator=generator, dtype=torch.float64)).unbind(0)
    t, h = torch.full((7, 1), 0.4, dtype=torch.float64), 1e-6
    later, earlier = (interpolant.sample(t + d, x_0, x_1, z).x_t for d in (h, -h))
    difference = later - earlier
    if periodic:
        difference = difference - difference.round()
    sample = interpolant.sample(t, x_0, x_1, z)
    torch.testing.assert_close(sample.target, difference / (2 * h), rtol=1e-5, atol=1e-6)
    if periodic:
        assert bool(((sample.x_t >= 0) & (sample.x_t < 1)).all())


def test_periodic_path_takes_the_short_way():
    interpolant = Interpolant(periodic=True)
    sample = interpolant.sample(
        torch.tensor([[0.5]]), torch.tensor([[0.9, 0.1, 0.5]]), torch.tensor([[0.1, 0.9, 0.6]])
    )
    torch.testing.assert_close(sample.target, torch.tensor([[0.2, -0.2, 0.1]]))
    wrapped = sample.x_t - sample.x_t.round()
    torch.testing.assert_close(wrapped, torch.tensor([[0.0, 0.0, -0.45]]), atol=1e-6, rtol=0)


def test_interpolant_survives_a_round_trip():
    interpolant = Interpolant(EncoderDecoderPath(0.4, 0.5), EncoderDecoderGamma(0.1), periodic=True)
    assert Interpolant.from_dict(interpolant.to_dict()) == interpolant
    broken = interpolant.to_dict()
    broken["path"]["name"] = "NoSuchPath"
    with pytest.raises(ValueError, match="unknown kind 'NoSuchPath'"):
        Interpolant.from_dict(broken)


def test_latent_noise_needs_z():
    with pytest.raises(ValueError, match="z: this interpolant has latent noise"):
        Interpolant(gamma=SqrtGamma(1.0)).sample(torch.zeros(1), torch.zeros(1), torch.zeros(1))


def test_center_removes_each_mean():
    n_atoms = torch.tensor([2, 3])
    batch = torch.tensor([0, 0, 1, 1, 1])
    values = torch.arange(15.0).view(5, 3)
    centered = center(values, batch, n_atoms)
    assert torch.allclose(centered[:2].mean(0), torch.zeros(3))
    assert torch.allclose(centered[2:].mean(0), torch.zeros(3), atol=1e-6)


def squared_distances(x_0, x_1, n_atoms):
    difference = x_1 - x_0
    squares = (difference - difference.round()).square().sum(1)
    return torch.stack([part.sum() for part in squares.split(n_atoms.tolist())])


def test_permutation_stays_within_equal_atoms_and_never_lengthens():
    generator = torch.Generator().manual_seed(3)
    n_atoms = torch.tensor([1, 5, 3])
    species = torch.tensor([3, 8, 8, 8, 5, 5, 1, 2, 6])
    x_0, x_1 = torch.rand(2, 9, 3, generator=generator).unbind(0)
    paired = pair_by_permutation(x_0, x_1, species, n_atoms)
    assert sorted(x_0[1:4].tolist()) == sorted(paired[1:4].tolist())
    # Equal species in different structures are not exchanged.
    assert torch.equal(paired[4], x_0[4]) and torch.equal(paired[5:], x_0[5:])
    before, after = (squared_distances(x, x_1, n_atoms) for x in (x_0, paired))
    assert bool((after <= before + 1e-7).all()) and after[1] < before[1]
    # A permuted copy of the data is undone completely.
    restored = pair_by_permutation(
        x_1.flip(0), x_1, torch.ones(9, dtype=torch.long), torch.tensor([9])
    )
    torch.testing.assert_close(restored, x_1)


def test_translation_is_the_best_of_a_fine_grid():
    generator = torch.Generator().manual_seed(4)
    n_atoms = torch.tensor([1, 2, 2, 2])
    batch = torch.arange(4).repeat_interleave(n_atoms)
    x_0, x_1 = torch.rand(2, 7, 3, generator=generator, dtype=torch.float64).unbind(0)
    shifted = align_translation(x_0, x_1, batch, n_atoms)
    difference = (x_1 - shifted) - (x_1 - shifted).round()
    assert float(center(difference, batch, n_atoms).sub(difference).abs().max()) < 1e-9
    ours = squared_distances(shifted, x_1, n_atoms)
    for axis in range(3):
        grid = torch.arange(0, 1, 0.01, dtype=torch.float64)
        others = torch.stack(
            [
                squared_distances(shifted + step * torch.eye(3)[axis].double(), x_1, n_atoms)
                for step in grid
            ]
        )
        assert bool((ours <= others.min(0).values + 1e-9).all())
    # All that moved is each structure as a whole.
    moved = shifted - x_0
    torch.testing.assert_close(moved[1], moved[2])


def test_pairing_undoes_a_shift_and_a_permutation():
    generator = torch.Generator().manual_seed(5)
    x_1 = torch.rand(4, 3, generator=generator)
    species = torch.tensor([1, 8, 8, 8])
    x_0 = (x_1[[0, 3, 1, 2]] + torch.tensor([0.3, 0.9, 0.5])) % 1
    n_atoms = torch.tensor([4])
    paired = pair_with_data(x_0, x_1, species, torch.zeros(4, dtype=torch.long), n_atoms)
    assert float(squared_distances(paired, x_1, n_atoms)) < 1e-10


def test_cells_have_the_given_parameters_in_the_standard_orientation():
    lengths = torch.tensor([[3.0, 4.0, 5.0], [6.0, 2.0, 4.0]], dtype=torch.float64)
    angles = torch.tensor([[70.0, 80.0, 110.0], [90.0, 90.0, 120.0]], dtype=torch.float64)
    cell = cell_from_parameters(lengths, angles)
    for k in range(2):
        expected = (*lengths[k].tolist(), *angles[k].tolist())
        assert Lattice(cell[k].numpy()).parameters == pytest.approx(expected)
    ones = torch.ones(2, dtype=torch.long)
    batch = CrystalBatch(ones, torch.zeros(2, 3, dtype=torch.float64), cell, ones)
    torch.testing.assert_close(batch.standard_orientation().cell, cell)


def test_base_cells_are_valid_and_have_the_fitted_lengths():
    generator = torch.Generator().manual_seed(0)
    base = BaseDistribution((1.4, 1.5, 1.7), (0.2, 0.25, 0.3))
    cell = base.sample_cell(20_000, generator, torch.float32)
    unit = torch.nn.functional.normalize(cell.double(), dim=2)
    assert float(torch.linalg.det(unit).min()) > 0.049
    cosines = (unit[:, [1, 0, 0]] * unit[:, [2, 2, 1]]).sum(2)
    assert float(cosines.abs().max()) < 0.501  # 60° to 120°
    again = BaseDistribution.fit(cell)
    assert torch.allclose(
        torch.tensor(again.log_length_mean), torch.tensor(base.log_length_mean), atol=0.01
    )
    assert torch.allclose(
        torch.tensor(again.log_length_std), torch.tensor(base.log_length_std), atol=0.01
    )
    with pytest.raises(ValueError, match="log_length_std must not be negative"):
        BaseDistribution((1.0, 1.0, 1.0), (0.1, -0.1, 0.1))
    with pytest.raises(ValueError, match="cell must be of shape"):
        BaseDistribution.fit(cell[:1])
