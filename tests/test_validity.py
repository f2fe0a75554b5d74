"""Validity of structures, against distances over all images and hand-made cases."""

import itertools
import time

import numpy as np
import pytest
import torch

from irlkit.crystals import CrystalBatch, validity


def make_batch(*structures):
    """From (pos, cell) of each structure, all of carbon."""
    n_atoms = torch.tensor([len(pos) for pos, _ in structures])
    return CrystalBatch(
        species=torch.full((int(n_atoms.sum()),), 6),
        pos=torch.cat([torch.as_tensor(pos, dtype=torch.float64) for pos, _ in structures]),
        cell=torch.stack([torch.as_tensor(cell, dtype=torch.float64) for _, cell in structures]),
        n_atoms=n_atoms,
    )


def brute_force_distance(pos, cell, reach):
    """Smallest distance over images up to `reach` cells away."""
    images = np.array(list(itertools.product(range(-reach, reach + 1), repeat=3)))
    best = np.inf
    for i, j in itertools.combinations_with_replacement(range(len(pos)), 2):
        distances = np.linalg.norm((pos[j] - pos[i] + images) @ cell, axis=1)
        best = min(best, distances[distances > 1e-12].min())
    return best


def random_structures(rng, count, skew):
    for _ in range(count):
        shear = np.eye(3) + np.tril(rng.integers(-skew, skew + 1, (3, 3)), -1)
        cell = shear @ (np.diag(rng.uniform(0.4, 2.0, 3)) + 0.2 * rng.normal(size=(3, 3)))
        yield rng.random((int(rng.integers(1, 5)), 3)), rng.permutation(cell)


@pytest.mark.parametrize("skew", [0, 1, 3])
def test_distance_is_exact_below_the_cutoff(skew):
    structures = list(random_structures(np.random.default_rng(skew), 30, skew))
    cutoff = 0.5
    result = validity.check(make_batch(*structures), 0.0, cutoff, 0.0)
    # A sheared cell needs many images, its reduced one few: skew² + 2 in each direction suffice.
    expected = np.array([brute_force_distance(p, c, 4 + skew * (skew + 1)) for p, c in structures])
    below = expected < cutoff
    assert 3 < below.sum() < 27
    np.testing.assert_allclose(result.min_distance[below], expected[below], rtol=1e-9)
    assert (result.min_distance[~below] >= expected[~below] * (1 - 1e-9)).all()
    np.testing.assert_array_equal(result.valid, ~below)


def test_a_larger_cutoff_makes_more_distances_exact():
    structures = list(random_structures(np.random.default_rng(7), 30, 1))
    result = validity.check(make_batch(*structures), 0.0, 10.0, 0.0)
    expected = [brute_force_distance(p, c, 5) for p, c in structures]
    np.testing.assert_allclose(result.min_distance, expected, rtol=1e-9)


def test_criteria_one_by_one():
    cubic = 4.0 * np.eye(3)
    origin, two = [[0.0, 0, 0]], [[0.0, 0, 0], [0.5, 0.5, 0.5]]
    flat = np.array([[4.0, 0, 0], [0, 4, 0], [4, 4, 0.003]])
    cases = {
        "good": (two, cubic),
        "left-handed": (two, -cubic),
        "volume": (origin, 0.4 * np.eye(3)),
        "flat": (origin, flat),
        "close pair": ([[0.0, 0, 0], [0.1, 0, 0]], cubic),
        "close over the border": ([[0.95, 0, 0], [1.05, 0, 0]], cubic),
        "same place": ([[0.3, 0.2, 0.1]] * 2, cubic),
        "own image": (origin, np.diag([0.4, 5.0, 5.0])),
        "own image in a skewed cell": (origin, [[9.0, 0, 0], [9, 0.4, 0], [0, 0, 5]]),
        "singular": (two, [[1.0, 0, 0], [2, 0, 0], [0, 0, 1]]),
        "zero": (two, np.zeros((3, 3))),
        "nan cell": (two, np.full((3, 3), np.nan)),
        "nan position": ([[0.0, 0, np.nan]], cubic),
        "infinite": (two, np.diag([np.inf, 1, 1])),
        "huge": (two, 1e200 * np.eye(3)),
        "large": (two, 1e6 * np.eye(3)),
    }
    result = validity.check(make_batch(*cases.values()))
    valid = dict(zip(cases, result.valid.tolist(), strict=True))
    assert {name for name, good in valid.items() if good} == {"good", "left-handed", "large"}
    rows = {name: i for i, name in enumerate(cases)}
    assert result.min_distance[rows["close pair"]] == pytest.approx(0.4)
    assert result.min_distance[rows["close over the border"]] == pytest.approx(0.4)
    assert result.min_distance[rows["own image in a skewed cell"]] == pytest.approx(0.4)
    assert result.volume[rows["good"]] == pytest.approx(64)
    assert result.polar_sine[rows["good"]] == pytest.approx(1)
    assert result.polar_sine[rows["flat"]] < 1e-3
    assert not result.finite[[rows["nan cell"], rows["nan position"], rows["infinite"]]].any()


def test_each_structure_is_judged_on_its_own():
    structures = list(random_structures(np.random.default_rng(3), 20, 1))
    alone = [validity.check(make_batch(s)) for s in structures]
    bad = ([[0.0, 0, 0]], np.full((3, 3), np.nan))
    together = validity.check(make_batch(bad, *structures, bad))
    np.testing.assert_array_equal(together.valid[1:-1], [result.valid[0] for result in alone])
    np.testing.assert_array_equal(
        together.min_distance[1:-1], [result.min_distance[0] for result in alone]
    )


def test_strange_cells_take_no_time():
    rng = np.random.default_rng(0)
    cells = [10.0 ** rng.uniform(-8, 8, (3, 1)) * rng.normal(size=(3, 3)) for _ in range(500)]
    batch = make_batch(*[(rng.random((20, 3)), cell) for cell in cells])
    start = time.perf_counter()
    result = validity.check(batch)
    assert time.perf_counter() - start < 5
    assert len(result) == 500


def test_reduced_lattices_are_minkowski_reduced():
    from ase.geometry import minkowski_reduce

    rng = np.random.default_rng(1)
    cells = np.array([c for _, c in random_structures(rng, 50, 6)])
    reduced, integers = validity.reduce_lattices(cells)
    np.testing.assert_allclose(np.abs(np.linalg.det(integers)), 1)
    np.testing.assert_allclose(reduced, integers @ cells)
    expected = [np.sort(np.linalg.norm(minkowski_reduce(c)[0], axis=1)) for c in cells]
    np.testing.assert_allclose(np.linalg.norm(reduced, axis=2), expected, rtol=1e-9)


def test_an_empty_batch():
    empty = CrystalBatch.from_structures([])
    assert validity.check(empty).valid.shape == (0,)


@pytest.mark.parametrize("name", ["min_volume", "min_distance", "min_polar_sine"])
def test_bad_cutoffs_are_named(name, small_batch):
    with pytest.raises(ValueError, match=f"{name} must be a finite number of at least 0, got -1"):
        validity.check(small_batch, **{name: -1.0})
