"""Matching against pymatgen's StructureMatcher, the worker pool, and the metrics."""

import multiprocessing
import os
import signal
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure

from irlkit.crystals import CrystalBatch
from irlkit.data import CrystalDataset
from irlkit.evaluate._match_worker import MatchSession
from irlkit.evaluate.matcher import RmsdMatcher
from irlkit.evaluate.metrics import MatchPool, evaluate, evaluate_energies
from irlkit.utils.system import time_limit
from irlkit.utils.workers import WorkersLostError
from tests.toy_potentials import LennardJonesToy

FCC = [[0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0]]


def polymorphs():
    """Reference structures, several to a composition, in primitive and conventional cells."""
    cubic = Lattice.cubic
    rock_salt = Structure.from_spacegroup("Fm-3m", cubic(5.6), ["Na", "Cl"], [[0] * 3, [0.5] * 3])
    rutile = Structure.from_spacegroup(
        "P4_2/mnm", Lattice.tetragonal(4.6, 2.96), ["Ti", "O"], [[0] * 3, [0.305, 0.305, 0]]
    )
    fluorite = Structure.from_spacegroup("Fm-3m", cubic(4.9), ["Ti", "O"], [[0] * 3, [0.25] * 3])
    quartz = Structure.from_spacegroup(
        "P3_221",
        Lattice.hexagonal(4.91, 5.40),
        ["Si", "O"],
        [[0.4697, 0, 2 / 3], [0.4135, 0.2669, 0.7858]],
    )
    perovskite = Structure(
        cubic(3.9), ["Ca", "Ti", "O", "O", "O"], [[0] * 3, [0.5] * 3, *(0.5 * (1 - np.eye(3)))]
    )
    return [
        rock_salt,
        rock_salt.get_primitive_structure(),
        Structure(cubic(3.4), ["Cl", "Na"], [[0.5] * 3, [0] * 3]),
        Structure(Lattice(5.4 * np.array(FCC)), ["Na", "Cl"], [[0] * 3, [0.25] * 3]),
        rutile,
        fluorite.get_primitive_structure(),
        quartz,
        Structure(
            Lattice.hexagonal(2.46, 6.7),
            ["C"] * 4,
            [[0, 0, 0.25], [0, 0, 0.75], [1 / 3, 2 / 3, 0.25], [2 / 3, 1 / 3, 0.75]],
        ),
        Structure(Lattice(3.57 * np.array(FCC)), ["C"] * 2, [[0] * 3, [0.25] * 3]),
        Structure(Lattice(2.7 * np.array(FCC)), ["C"], [[0] * 3]),
        Structure(cubic(2.9), ["C"] * 2, [[0] * 3, [0.5] * 3]),
        perovskite,
        perovskite.copy().perturb(0.2),
    ]


def distorted(structure, rng, strain, noise):
    """A rotated, strained, shifted and perturbed copy in another cell."""
    cell = structure.lattice.matrix @ np.linalg.qr(rng.normal(size=(3, 3)))[0]
    cell = cell @ (np.eye(3) + strain * rng.normal(size=(3, 3)))
    pos = structure.frac_coords + rng.random(3) + noise * rng.normal(size=(len(structure), 3))
    shear = np.eye(3) + np.tril(rng.integers(-1, 2, (3, 3)), -1)
    return Structure(Lattice(shear @ cell), structure.species, pos @ np.linalg.inv(shear))


def random_structure(structure, rng):
    cell = Lattice.from_parameters(*rng.uniform(2.5, 7, 3), *rng.uniform(70, 110, 3))
    return Structure(cell, structure.species, rng.random((len(structure), 3)))


@pytest.fixture(scope="module")
def references():
    np.random.seed(0)  # noqa: NPY002 - Structure.perturb takes no generator
    return polymorphs()


@pytest.fixture(scope="module")
def generated(references):
    rng = np.random.default_rng(0)
    return [
        new
        for structure in references
        for new in (
            distorted(structure, rng, 0.0, 0.0),
            distorted(structure, rng, 0.02, 0.02),
            distorted(structure, rng, 0.1, 0.08),
            random_structure(structure, rng),
        )
    ]


@pytest.fixture(scope="module")
def pairs(generated, references):
    formula = [s.composition.reduced_formula for s in references]
    same = [
        (g, r)
        for g, s in enumerate(generated)
        for r in range(len(references))
        if s.composition.reduced_formula == formula[r]
    ]
    # Pairs of unequal composition as well.
    return np.array([*same, (0, 4), (20, 0), (28, 11)])


@pytest.fixture(scope="module")
def expected(generated, references, pairs):
    matcher = StructureMatcher(stol=0.5, ltol=0.3, angle_tol=10)
    found = [matcher.get_rms_dist(generated[g], references[r]) for g, r in pairs]
    return np.array([np.nan if match is None else match[0] for match in found])


@pytest.fixture(scope="module")
def pool():
    with MatchPool(n_workers=2) as pool:
        yield pool


@pytest.fixture
def local_pool():
    with MatchPool(n_workers=0) as pool:
        yield pool


def test_displacements_equal_those_of_pymatgen(generated, references, pairs, expected, local_pool):
    assert np.isfinite(expected).sum() > 40 and np.isnan(expected).sum() > 20
    result = local_pool.match(generated, references, pairs)
    usable = result.valid[pairs[:, 0]]
    assert usable.sum() > 80
    np.testing.assert_allclose(
        result.rmsd[usable], expected[usable], rtol=0, atol=1e-8, equal_nan=True
    )
    assert np.isnan(result.rmsd[~usable]).all()


@pytest.mark.parametrize("stol, ltol, angle_tol", [(0.3, 0.2, 5.0), (0.05, 0.05, 1.0)])
def test_other_tolerances(generated, references, pairs, stol, ltol, angle_tol):
    tolerances = {"stol": stol, "ltol": ltol, "angle_tol": angle_tol}
    matcher = StructureMatcher(**tolerances)
    pairs = pairs[::3]
    found = [matcher.get_rms_dist(generated[g], references[r]) for g, r in pairs]
    expected = np.array([np.nan if match is None else match[0] for match in found])
    with MatchPool(n_workers=0, **tolerances) as pool:
        result = pool.match(generated, references, pairs)
    expected[~result.valid[pairs[:, 0]]] = np.nan
    np.testing.assert_allclose(result.rmsd, expected, rtol=0, atol=1e-8, equal_nan=True)


def test_workers_and_this_process_agree(generated, references, pairs, pool, local_pool):
    prepared = pool.prepare(references)
    first = pool.rmsd(generated, prepared, pairs)
    again = pool.rmsd(CrystalBatch.from_structures(generated, torch.float64), prepared, pairs)
    np.testing.assert_array_equal(first, local_pool.rmsd(generated, references, pairs))
    np.testing.assert_array_equal(first, again)


def test_order_of_pairs_does_not_matter(generated, references, pairs, local_pool):
    order = np.random.default_rng(2).permutation(len(pairs))
    np.testing.assert_array_equal(
        local_pool.rmsd(generated, references, pairs[order]),
        local_pool.rmsd(generated, references, pairs)[order],
    )


def with_invalid(batch):
    """The same batch with nan, zero, flat and needle-like cells between its structures."""
    cells = [
        np.full((3, 3), np.nan),
        np.zeros((3, 3)),
        np.diag([1e-8, 5, 5]),
        np.array([[9.0, 0, 0], [9, 1e-4, 0], [0, 0, 5]]),
    ]
    parts = [batch[0].replace(cell=torch.tensor(cell)[None]) for cell in cells]
    return CrystalBatch.concatenate([*parts[:2], batch, *parts[2:]])


def test_invalid_structures_change_no_other_result(generated, references, pairs, local_pool):
    batch = CrystalBatch.from_structures(generated, torch.float64)
    mixed = with_invalid(batch)
    shifted = pairs + np.array([2, 0])
    more = np.concatenate([shifted, [[0, 0], [1, 0], [len(batch) + 2, 0]]])
    result = local_pool.match(mixed, references, more)
    np.testing.assert_array_equal(
        result.rmsd[: len(pairs)], local_pool.rmsd(batch, references, pairs)
    )
    assert np.isnan(result.rmsd[len(pairs) :]).all()
    assert not result.valid[[0, 1, -2, -1]].any()


def test_cells_far_from_any_reference_are_settled_at_once(references, local_pool):
    # Valid by all criteria, but a sphere of their longest vector holds billions of lattice points.
    needles = [
        Structure(Lattice(np.diag(lengths)), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
        for lengths in ([0.6, 0.7, 1e5], [1.0, 1e5, 1e5], [1e7, 1e7, 1e7], [1e3, 1e3, 1e3])
    ]
    prepared = local_pool.prepare(references)
    local_pool.rmsd(references, prepared, [(i, i) for i in range(4)])
    start = time.perf_counter()
    pairs = [(i, j) for i in range(len(needles)) for j in range(4)]
    result = local_pool.match(needles, prepared, pairs)
    assert time.perf_counter() - start < 1
    assert result.valid.all() and not result.timed_out.any()
    # Cells are brought to one volume: the last one is a caesium chloride.
    assert np.isnan(result.rmsd[:12]).all() and result.rmsd[14] == pytest.approx(0, abs=1e-6)


def test_a_structure_that_takes_too_long_counts_as_unmatched(generated, references, monkeypatch):
    original = RmsdMatcher.prepare

    def slow(self, numbers, pos, lattice):
        if len(numbers) == 9:  # quartz
            time.sleep(10)
        return original(self, numbers, pos, lattice)

    pairs = [(0, 0), (24, 6), (44, 11)]
    with MatchPool(n_workers=0, timeout=0.2) as pool:
        prepared = pool.prepare(references)
        before = pool.rmsd(generated, prepared, pairs)
        monkeypatch.setattr(RmsdMatcher, "prepare", slow)
        with pytest.warns(UserWarning, match=r"1 structures count as unmatched.*\[24\]"):
            result = pool.match(generated, prepared, pairs)
    assert np.isfinite(before).all()
    np.testing.assert_array_equal(result.rmsd[[0, 2]], before[[0, 2]])
    assert np.isnan(result.rmsd[1])
    assert result.timed_out.nonzero()[0].tolist() == [24] and pool.n_timeouts == 1


def troubled():
    """A class that the workers, which are sent it, need not import this module for."""

    class Troubled(MatchSession):
        """Has trouble with quartz, as declared; sent to the workers with its settings."""

        def __init__(self, action, *arguments, **tolerances):
            super().__init__(*arguments, **tolerances)
            self.action = action

        def __call__(self, items):
            if any(len(numbers) == 9 for (numbers, _, _), _ in items):
                if self.action == "blocks":
                    # As if stuck in compiled code, where no signal handler runs.
                    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM, signal.SIGTERM])
                if self.action == "exits":
                    os._exit(3)
                if self.action == "crashes":
                    os.kill(os.getpid(), signal.SIGSEGV)
                if self.action == "raises":
                    print("to standard output")
                    raise ValueError
                with time_limit(self.timeout):
                    time.sleep(30)
            return super().__call__(items)

    return Troubled


@pytest.mark.parametrize(
    ("action", "outcome"),
    [
        ("hangs", "timed_out"),
        ("blocks", "timed_out"),
        ("exits", "failed"),
        ("crashes", "failed"),
        ("raises", "failed"),
    ],
)
def test_a_bad_structure_costs_only_itself(
    generated, references, pairs, monkeypatch, action, outcome
):
    monkeypatch.setattr("irlkit.evaluate.matching._GRACE_SECONDS", 0.3)
    monkeypatch.setattr("irlkit.evaluate.matching.MatchSession", partial(troubled(), action))
    with MatchPool(n_workers=2, timeout=1.0) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # One quartz only: each one stops a worker.
        pairs = pairs[(pairs[:, 0] < 24) | (pairs[:, 0] > 27) | (pairs[:, 0] == 25)]
        result = pool.match(generated, references, pairs)
    assert getattr(result, outcome).nonzero()[0].tolist() == [25]
    assert not (result.failed & result.timed_out).any()
    others = pairs[:, 0] != 25
    monkeypatch.undo()
    with MatchPool(n_workers=0) as local:
        np.testing.assert_array_equal(
            result.rmsd[others], local.rmsd(generated, references, pairs)[others]
        )


def test_workers_that_cannot_start(generated, references, monkeypatch):
    here = os.getpid()

    def session(*arguments, **tolerances):
        if os.getpid() != here:
            os._exit(5)

    monkeypatch.setattr("irlkit.evaluate.matching.MatchSession", session)
    with MatchPool(n_workers=1) as pool:
        with pytest.raises(WorkersLostError, match="did not start: its process ended at once"):
            pool.rmsd(generated, references, [(0, 0)])


def workers_of(pool):
    """Process numbers."""
    return list(pool._pool._open[0]._pool_manager.worker_manager.workers)


def test_workers_load_no_torch_and_use_one_thread(generated, references):
    with MatchPool(n_workers=1) as pool:
        pool.rmsd(generated, references, [(0, 0)])
        process = Path(f"/proc/{workers_of(pool)[0]}")
        if not process.exists():
            pytest.skip("needs /proc")
        assert "libtorch" not in (process / "maps").read_text()
        assert "OMP_NUM_THREADS=1" in (process / "environ").read_text().split("\0")
        assert os.readlink(process / "fd" / "0") == os.devnull


def test_a_closed_pool_starts_again(generated, references):
    pool = MatchPool(n_workers=1)
    first = pool.rmsd(generated, references, [(0, 0)])
    worker = workers_of(pool)[0]
    pool.close()
    assert worker not in [process.pid for process in multiprocessing.active_children()]
    np.testing.assert_array_equal(pool.rmsd(generated, references, [(0, 0)]), first)
    pool.close()


def test_bad_arguments_of_the_pool(generated, references, local_pool):
    with pytest.raises(ValueError, match=r"n_workers must be 0 .* got -1"):
        MatchPool(n_workers=-1)
    with pytest.raises(ValueError, match="timeout must be positive, in seconds, got 0"):
        MatchPool(timeout=0)
    with pytest.raises(ValueError, match=r"ltol must be positive, got -0\.3"):
        MatchPool(ltol=-0.3)
    with pytest.raises(ValueError, match=r"pairs must be integers .* shape \(3,\)"):
        local_pool.rmsd(generated, references, [0, 1, 2])
    with pytest.raises(ValueError, match=r"indices below 13 for references, got \[99\]"):
        local_pool.rmsd(generated, references, [(0, 99)])
    flat = CrystalBatch.from_structures(references)
    flat = flat.replace(cell=torch.zeros_like(flat.cell))
    with pytest.raises(ValueError, match="references must have finite cells with a volume"):
        local_pool.prepare(flat)


def test_no_pairs(generated, references, local_pool):
    assert local_pool.rmsd(generated, references, []).shape == (0,)


# --- metrics ---


def dataset_of(structures):
    batch = CrystalBatch.from_structures(structures, torch.float64)
    table = pd.DataFrame(
        {
            "material_id": [f"id-{i}" for i in range(len(batch))],
            "formula": batch.reduced_formulas(),
            "n_atoms": batch.n_atoms.numpy(),
        }
    )
    return CrystalDataset("test", None, batch, table)


def test_references_reproduce_themselves(references, local_pool):
    dataset = dataset_of(references)
    metrics = evaluate(dataset.batch, dataset, local_pool)
    assert metrics.metre == metrics.match_rate == metrics.valid_rate == 1
    assert metrics.crmse == pytest.approx(0, abs=1e-5)
    assert metrics.polymorph_match_rate == 1
    assert metrics.n_structures == len(references) and metrics.n_timeouts == 0
    assert metrics.table["material_id"].tolist() == dataset.table["material_id"].tolist()
    assert "table" not in metrics.summary() and metrics.summary()["metre"] == 1


def test_metre_takes_the_best_match_of_the_composition(references, local_pool):
    # All compositions get their polymorphs in another order: no own match need remain.
    salt, caesium, zinc_blende = references[1], references[2], references[3]
    dataset = dataset_of([salt, caesium, zinc_blende])
    generated = CrystalBatch.from_structures([caesium, salt, salt], torch.float64)
    metrics = evaluate(generated, dataset, local_pool)
    matcher = StructureMatcher(stol=0.5, ltol=0.3, angle_tol=10)
    table = {}
    for g, new in enumerate([caesium, salt, salt]):
        for r, old in enumerate([salt, caesium, zinc_blende]):
            match = matcher.get_rms_dist(new, old)
            table[g, r] = np.nan if match is None else match[0]
    own = np.array([table[i, i] for i in range(3)])
    best = np.array([np.fmin.reduce([table[g, r] for g in range(3)]) for r in range(3)])
    assert metrics.match_rate == np.isfinite(own).mean()
    assert metrics.metre == np.isfinite(best).mean() >= 2 / 3
    assert metrics.crmse == pytest.approx(np.where(np.isnan(best), 0.5, best).mean())
    np.testing.assert_allclose(metrics.table["best_rmsd"], best, atol=1e-8)
    assert metrics.table["best_generated"][1] == 0
    closest = np.array([np.fmin.reduce([table[g, r] for r in range(3)]) for g in range(3)])
    assert metrics.polymorph_match_rate == np.isfinite(closest).mean() == 1
    assert metrics.polymorph_rmse == pytest.approx(np.nanmean(closest))
    np.testing.assert_allclose(metrics.table["polymorph_rmsd"], closest, atol=1e-8)
    assert metrics.match_rate < 1, "no structure is that of its own reference"


def test_nothing_valid(references, local_pool):
    dataset = dataset_of(references)
    broken = dataset.batch.replace(cell=torch.full_like(dataset.batch.cell, torch.nan))
    metrics = evaluate(broken, dataset, local_pool)
    assert metrics.metre == metrics.match_rate == metrics.valid_rate == 0
    assert metrics.crmse == 0.5 and np.isnan(metrics.rmse) and np.isnan(metrics.best_rmse)
    assert metrics.polymorph_match_rate == 0 and np.isnan(metrics.polymorph_rmse)
    assert (metrics.table["best_generated"] == -1).all()


def test_bad_arguments_of_evaluate(references, local_pool):
    batch = CrystalBatch.from_structures(references)
    with pytest.raises(ValueError, match="got 12 for 13 references"):
        evaluate(batch[:12], batch, local_pool)
    order = [4, *range(1, 4), 0, *range(5, 13)]
    with pytest.raises(ValueError, match="for i = 0 it is TiO2 instead of NaCl \\(2 differ"):
        evaluate(batch[order], batch, local_pool)
    with pytest.raises(ValueError, match="references must hold at least one structure"):
        evaluate(batch[:0], batch[:0], local_pool)


# --- energies ---


@pytest.fixture(scope="module")
def known(references):
    return dataset_of(references)


def displaced(batch, noise=0.03):
    generator = torch.Generator().manual_seed(0)
    shift = noise * torch.randn(batch.pos.shape, generator=generator, dtype=batch.dtype)
    return batch.replace(pos=(batch.pos + shift) % 1.0)


def test_energies_are_relative_to_the_reference_of_the_structure(known):
    toy = LennardJonesToy(sigma=1.5)
    generated = displaced(known.batch)
    cell = generated.cell.clone()
    cell[1] = 0.0
    generated = generated.replace(cell=cell)
    metrics = evaluate_energies(generated, known, toy)
    table = metrics.table
    own = toy(generated).energy_per_atom
    reference = toy(known.batch).energy_per_atom
    np.testing.assert_allclose(table["energy_per_atom"], own)
    np.testing.assert_allclose(table["energy_above_reference"], own - reference)
    lowest = table.groupby("formula")["reference_energy"].transform("min")
    np.testing.assert_allclose(table["energy_above_lowest"], own - lowest)
    assert (lowest < table["reference_energy"]).any()
    kept = np.arange(len(own)) != 1
    assert metrics.energy_above_reference == pytest.approx((own - reference)[kept].mean())
    assert metrics.median_energy_above_reference == pytest.approx(
        np.median((own - reference)[kept])
    )
    assert metrics.energy_above_lowest == pytest.approx((own - lowest)[kept].mean())
    assert metrics.invalid_rate == pytest.approx(1 / len(own))
    assert metrics.n_failed == 0 and metrics.potential == "toy"
    assert list(table["material_id"]) == list(known.table["material_id"])
    assert metrics.summary().keys() == vars(metrics).keys() - {"table"}


def test_structures_that_the_potential_fails_on_count_as_invalid(known):
    batch = known.batch
    energies = LennardJonesToy()(batch)
    metrics = evaluate_energies(displaced(batch), batch, LennardJonesToy(breaks=[17]), energies)
    share = np.mean([17 in part.species for part in batch])
    assert share > 0 and metrics.invalid_rate == pytest.approx(share)
    assert metrics.n_failed == share * len(batch)


def test_reference_energies_can_be_given_but_not_mixed(known):
    toy, generated = LennardJonesToy(), displaced(known.batch)
    energies = toy(known.batch)
    given = evaluate_energies(generated, known, toy, energies)
    assert given.summary() == evaluate_energies(generated, known, toy).summary()
    other = LennardJonesToy(sigma=2.5)
    other.name = "other toy"
    with pytest.raises(ValueError, match=r"are of the potential toy, but .* of other toy"):
        evaluate_energies(generated, known, other, energies)
    with pytest.raises(ValueError, match="must hold one energy per reference"):
        evaluate_energies(generated, known, toy, toy(known.batch[:2]))


def test_energies_need_fitting_references(known):
    toy = LennardJonesToy()
    with pytest.raises(ValueError, match=r"must have the composition of references\[i\]"):
        evaluate_energies(known.batch[list(range(len(known)))[::-1]], known, toy)
    cell = known.batch.cell.clone()
    cell[2] = torch.nan
    broken = known.batch.replace(cell=cell)
    with pytest.raises(ValueError, match=r"toy gives none for those at \[2\]"):
        evaluate_energies(known.batch, broken, toy)


def test_energies_without_any_valid_structure(known):
    batch = known.batch
    generated = batch.replace(cell=torch.zeros_like(batch.cell))
    metrics = evaluate_energies(generated, batch, LennardJonesToy())
    assert metrics.invalid_rate == 1 and np.isnan(metrics.energy_above_reference)
    assert np.isnan(metrics.median_energy_above_reference)
