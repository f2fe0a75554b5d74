"""Skeletons, properties of their fillings, backends and the cache."""

import os
import subprocess
import sys
import threading
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from irlkit.crystals import CrystalBatch
from irlkit.envs import (
    PROTOTYPES,
    BulkModulus,
    CalculatorBackend,
    EnergyAboveHull,
    EvaluationCache,
    Evaluator,
    PropertyReward,
    Skeletons,
    dft,
    get_backend,
)
from irlkit.envs._backends import Backend, Computed, Passing
from irlkit.envs._properties import GPA, _lowest
from irlkit.envs._symmetry import canonical_keys
from irlkit.envs.skeletons import ELEMENTS, atomic_numbers
from irlkit.evaluate.hull import Hull
from irlkit.potentials import ASEPotential
from irlkit.rl import GRPOTrainer, Request, SpeciesPolicy
from tests.test_discrete import tiny_model
from tests.toys import trainer_config


def filling(name, symbols):
    skeleton = Skeletons.get(name)
    species = np.array([atomic_numbers([s])[0] for s in symbols.split()])
    return skeleton.filled(np.zeros(1, dtype=int), species[None])


@dataclass
class Curve(Backend):
    """Energies per atom of one Birch-Murnaghan curve, in the volume per atom."""

    v0: float = 20.0
    modulus: float = 100.0
    derivative: float = 4.5
    name: str = "curve"

    def energies(self, batch, like):
        v = (batch.volume / batch.n_atoms).numpy()
        x = (self.v0 / v) ** (2 / 3)
        b = self.modulus / GPA
        energy = (x - 1) ** 3 * self.derivative + (x - 1) ** 2 * (6 - 4 * x)
        return Computed(9 * self.v0 * b / 16 * energy - 3.0)


# --- skeletons ---


def test_skeletons_are_cubic_of_the_stated_groups():
    skeletons = Skeletons.get()
    assert skeletons.names == PROTOTYPES
    assert skeletons.n_atoms.min() == 4 and skeletons.n_atoms.max() == 8
    assert skeletons.space_groups == (221, 221, 229, 215, 225, 224, 225)
    assert len(Skeletons.get("train")) == 5 and len(Skeletons.get("test")) == 2
    assert [len(set(ELEMENTS[n])) for n in ("small", "medium", "large")] == [18, 30, 50]


def test_skeletons_of_ones_own(tmp_path):
    batch = Skeletons.get(["NaCl", "AuSb3"]).crystals
    path = tmp_path / "mine.cif"
    batch[0].to_structures()[0].to(str(path))
    mixed = Skeletons.get([path, "SnI4", batch, batch.to_structures()[1]])
    assert mixed.names == ("mine", "SnI4", "NaCl-0", "Sb3Au-1", "Sb3Au")
    assert mixed.n_atoms.tolist() == [8, 5, 8, 4, 4]


def test_bad_skeletons_and_elements_are_refused_in_words(tmp_path):
    structure = Skeletons.get("NaCl").crystals.to_structures()[0]
    structure[0] = {"Na": 0.5, "K": 0.5}
    structure.to(str(tmp_path / "disordered.cif"))
    with pytest.raises(ValueError, match="occupancy"):
        Skeletons.get(tmp_path / "disordered.cif")
    with pytest.raises(ValueError, match="disordered; give every site one element"):
        Skeletons.get(structure)
    with pytest.raises(ValueError, match=r"skeletons must be 'all'.*got 'perovskite'"):
        Skeletons.get("perovskite")
    for elements, message in (
        ("tiny", "one of .*'large', 'medium', 'small'"),
        (["Na", "Xx"], "symbols such as 'Na', got .'Xx'."),
        (["Na", "Na"], "must differ"),
        ([], "got none"),
    ):
        with pytest.raises(ValueError, match=message):
            atomic_numbers(elements)


@pytest.mark.parametrize("name", PROTOTYPES)
def test_symmetry_makes_one_crystal_of_equal_fillings(name):
    """Fillings with one key have one structure, and fillings with two keys have not."""
    from pymatgen.analysis.structure_matcher import StructureMatcher

    skeleton = Skeletons.get(name)
    rng = np.random.default_rng(0)
    species = rng.choice([11, 17], size=(14, skeleton.n_atoms[0]))
    batch = skeleton.filled(np.zeros(14, dtype=int), species)
    keys = canonical_keys(batch)
    assert keys == canonical_keys(batch.to(dtype=torch.float32))
    matcher = StructureMatcher(
        ltol=1e-3, stol=1e-3, angle_tol=0.1, primitive_cell=False, scale=False
    )
    structures = batch.to_structures()
    for i in range(14):
        for j in range(i):
            assert (keys[i] == keys[j]) == matcher.fit(structures[i], structures[j]), (i, j)


# --- properties ---


def test_density_and_its_reward():
    evaluator = Evaluator("density")
    found = evaluator(filling("NaCl", "Na Na Na Na Cl Cl Cl Cl"))
    assert found.values[0] == pytest.approx(2.163, abs=0.01)
    reward = PropertyReward(evaluator, 3.0)(filling("NaCl", "Na Na Na Na Cl Cl Cl Cl"))
    assert float(reward.values[0]) == pytest.approx(np.exp(-((found.values[0] - 3) ** 2) / 3))
    assert reward.info["value"][0] == found.values[0] and not reward.info["failed"][0]


def test_rewards_of_the_paper():
    of = {name: Evaluator(name, Curve()).property for name in ("density", "bulk_modulus")}
    assert of["density"].reward(np.array([3.0, np.nan]), 3.0).tolist() == [1.0, -1.0]
    rewards = of["bulk_modulus"].reward(np.array([300.0, 150.0, 3000.0, np.nan]), 300.0)
    assert rewards.tolist() == [0.0, -0.5, -5.0, -5.0]


@pytest.mark.parametrize("v0", [7.0, 12.0, 18.8, 26.0, 45.0])
def test_bulk_modulus_is_that_of_the_curve(v0):
    found = Evaluator("bulk_modulus", Curve(v0=v0))(filling("RbCaH3", "Rb Ca H H H"))
    assert found.values[0] == pytest.approx(100.0, rel=1e-3)
    details = found.details[0]
    assert details["volume"] == pytest.approx(v0, rel=1e-4)
    assert details["derivative"] == pytest.approx(4.5, abs=0.05)
    assert details["energy"] == pytest.approx(-3.0, abs=1e-6)
    assert len(details["volumes"]) == len(details["energies"]) == 5


def test_small_volumes_are_computed_where_energies_fall_towards_them(monkeypatch):
    batch = filling("RbCaH3", "Rb Ca H H H")
    volume = float(batch.volume) / 5
    asked = []
    energies = Curve.energies

    def counted(self, given, like):
        asked.append(np.round((given.volume / given.n_atoms).numpy() / volume, 2).tolist())
        return energies(self, given, like)

    monkeypatch.setattr(Curve, "energies", counted)
    for v0, scan in (
        (1.0, [[0.95, 1.39, 2.04], [0.65]]),
        (1.5, [[0.95, 1.39, 2.04]]),
        (0.5, [[0.95, 1.39, 2.04], [0.65], [0.44]]),
    ):
        asked.clear()
        found = Evaluator("bulk_modulus", Curve(v0=v0 * volume))(batch)
        assert found.values[0] == pytest.approx(100.0, rel=1e-3)
        assert asked[: len(scan)] == scan and len(asked[len(scan)]) == 5
        # The located minimum is near enough for the first fit.
        assert len(asked) == len(scan) + 1, asked


def test_a_scan_that_bends_down_is_followed_to_its_lower_end():
    v = np.geomspace(0.3, 3.0, 7)[1:-1]
    found = _lowest(v, np.array([[-3.2, -0.6, 0, 5, 5], [5, 4, 0, -0.6, -3.2]]))
    assert found == pytest.approx([v[0], v[-1]])


def test_highest_and_lowest_rewards_hold_those_of_other_properties():
    other = PropertyReward(Evaluator("density", Curve()), 3.0)
    reward = PropertyReward(Evaluator("bulk_modulus", Curve()), 300.0, [(other, 2.0)])
    assert (reward.lowest, reward.highest) == (-7.0, 2.0)
    batch = filling("RbCaH3", "Rb Ca H H H")
    assert reward.lowest < float(reward(batch).values[0]) < reward.highest


@pytest.mark.parametrize("v0", [2.0, 90.0])
def test_a_curve_without_a_minimum_in_reach_is_a_failure(v0):
    found = Evaluator("bulk_modulus", Curve(v0=v0))(filling("RbCaH3", "Rb Ca H H H"))
    assert np.isnan(found.values[0])
    assert "no minimum between 0.3 and 3 times the skeleton's volume" in found.reasons[0]
    assert Evaluator("bulk_modulus", Curve(v0=v0)).property.reward(found.values, 300.0)[0] == -5


def test_bulk_moduli_of_chgnet_do_not_depend_on_the_batch():
    batch = CrystalBatch.concatenate(
        [filling("NaCl", "Mg Mg Mg Mg O O O O"), filling("RbCaH3", "K Mg F F F")]
    )
    evaluator = Evaluator("bulk_modulus")
    together = evaluator(batch).values
    assert 115 < together[0] < 160  # MgO: PBE 149 GPa
    alone = Evaluator("bulk_modulus")(batch[1]).values
    assert alone[0] > 0 and alone[0] == pytest.approx(together[1], rel=1e-3)


def test_bad_properties_are_refused():
    with pytest.raises(ValueError, match=r"property must be one of .*got 'hardness'"):
        Evaluator("hardness")
    with pytest.raises(ValueError, match=r"chgnet-0.3.0 computes no band gaps.*backend='gpaw'"):
        Evaluator("band_gap")
    with pytest.raises(ValueError, match="reach must leave room"):
        BulkModulus(reach=(0.97, 1.03))
    with pytest.raises(ValueError, match="n_points must be at least 4"):
        BulkModulus(n_points=3)
    with pytest.raises(ValueError, match="target"):
        PropertyReward(Evaluator("density"), -1.0)


# --- backends ---


def test_a_backend_that_is_not_installed_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install 'gpaw"):
        get_backend("gpaw")
    with pytest.raises(ImportError, match="apt-get install quantum-espresso"):
        get_backend("espresso", pseudo_dir=tmp_path, command="pw-that-is-not-there.x")
    with pytest.raises(FileNotFoundError, match="pseudo_dir"):
        get_backend("espresso", pseudo_dir=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="'espresso' needs pseudo_dir"):
        get_backend("espresso")


def test_any_calculator_in_processes_with_reasons():
    from tests.toy_calculators import calculator_for

    with CalculatorBackend(calculator_for, "emt", n_workers=2, timeout=30) as backend:
        evaluator = Evaluator(BulkModulus(reach=(0.6, 1.6)), backend)
        copper, other = filling("NaCl", "Cu " * 8), filling("AuSb3", "Cu Cu Cu Fe")
        found = evaluator(CrystalBatch.concatenate([copper, other]))
        assert 50 < found.values[0] < 200
        assert np.isnan(found.values[1]) and "Fe" in found.reasons[1]
    assert evaluator.report()["failures"] == 1


class Together(Backend):
    """Gives a gap once two fillings are asked for at the same time; fails for one with Fe."""

    name, has_gap, at_once, in_parallel = "together", True, 1, 2
    closed = False

    def __init__(self):
        self.both = threading.Barrier(2, timeout=30)

    def energies(self, batch, like):
        raise NotImplementedError

    def gaps(self, batch):
        self.both.wait()
        if 26 in batch.species:
            raise KeyboardInterrupt
        return Computed(batch.species.double().mean().numpy()[None])

    def close(self):
        self.closed = True


def test_parts_are_evaluated_at_the_same_time_and_kept_one_by_one(tmp_path):
    backend, cache = Together(), EvaluationCache(tmp_path / "cache.sqlite")
    few = [filling("AuSb3", " ".join([one] * 4)) for one in ("Li", "Be", "Na", "Mg")]
    evaluator = Evaluator("band_gap", backend, cache)
    found = evaluator(CrystalBatch.concatenate([*few, few[0]]))
    assert found.values.tolist() == [3, 4, 11, 12, 3]
    assert (found.seconds > 0).all() and evaluator.report()["misses"] == 4
    # What was finished when a run is interrupted is there for the next.
    iron, zinc = (filling("AuSb3", " ".join([one] * 4)) for one in ("Fe", "Zn"))
    with pytest.raises(KeyboardInterrupt):
        evaluator(CrystalBatch.concatenate([iron, zinc, *few]))
    assert backend.closed
    again = Evaluator("band_gap", backend, cache)(CrystalBatch.concatenate(few))
    assert again.cached.all() and again.values.tolist() == [3, 4, 11, 12]


def test_a_calculation_that_does_not_converge_says_so():
    from tests.toy_calculators import never_done

    with CalculatorBackend(never_done, "toy", n_workers=0) as backend:
        found = Evaluator("bulk_modulus", backend)(filling("AuSb3", "Cu Cu Cu Cu"))
    assert "did not converge (ToyConvergenceError)" in found.reasons[0]


def test_input_of_espresso_is_that_of_the_paper(tmp_path):
    for name in ("Na.pbe-spn.UPF", "cl_pbe_v1.4.upf", "README"):
        (tmp_path / name).touch()
    atoms = filling("NaCl", "Na Na Na Na Cl Cl Cl Cl").to_ase()[0]
    settings = dft._espresso_input(atoms, "gap")
    assert settings["system"] == {
        "ecutwfc": 50,
        "ecutrho": 400,
        "nbnd": 68,
        "nspin": 1,
        "occupations": "fixed",
    }
    smeared = dft._espresso_input(atoms, "energy")["system"]
    assert smeared["occupations"] == "smearing" and smeared["degauss"] == 0.001
    calculator = dft._espresso(str(tmp_path), "pw.x", 3.5, atoms, "energy")
    assert os.path.isdir(calculator.scratch.name) and str(calculator.directory) == (
        calculator.scratch.name
    )
    calculator.template.write_input(
        calculator.profile, tmp_path, atoms, calculator.parameters, ["energy"]
    )
    text = (tmp_path / calculator.template.inputname).read_text().split()
    for words in (
        "ecutwfc = 50",
        "ecutrho = 400",
        "electron_maxstep = 300",
        "mixing_beta = 0.7",
        "nbnd = 68",
        "K_POINTS automatic 4 4 4",
        "Cl 35.45 cl_pbe_v1.4.upf",
    ):
        assert words in " ".join(text)
    with pytest.raises(ValueError, match=r"no pseudopotential .* for K, O"):
        dft._pseudopotentials(tmp_path, ["O", "Na", "K"])


def test_the_name_of_espresso_tells_pseudopotentials_and_programs_apart(tmp_path):
    def name(command="true"):
        with dft.espresso(tmp_path, command=command, n_workers=0) as backend:
            return backend.name

    (tmp_path / "Si.upf").write_text("first")
    names = [name()]
    (tmp_path / "README").touch()
    assert name() == names[0]
    (tmp_path / "Si.upf").write_text("second")
    names += [name(), name("env true"), name("env false")]
    assert len(set(names)) == 4


def test_k_points_and_cut_offs():
    assert dft._k_points(np.eye(3) * 4.0, 3.5) == (6, 6, 6)
    assert dft._k_points(np.diag([4.0, 8.0, 40.0]), 3.5) == (6, 4, 2)
    assert dft._cutoff(["Na", "Cl"]) == 400 and dft._cutoff(["Mg", "O"]) == 650


# --- the cache ---


class Counting(Curve):
    n = 0

    def energies(self, batch, like):
        Counting.n += len(batch)
        return super().energies(batch, like)


def test_what_is_known_is_not_computed_again(tmp_path):
    path = tmp_path / "cache.sqlite"
    a, b = filling("RbVF3", "Rb V F F Cl"), filling("RbVF3", "Rb V Cl F F")
    with Evaluator("bulk_modulus", Counting(), path) as evaluator:
        found = evaluator(CrystalBatch.concatenate([a, b, a]))
        assert found.cached.tolist() == [False, True, True] and len(set(found.values)) == 1
        n = Counting.n
        assert evaluator.submit(b).result().cached[0] and Counting.n == n
        assert {k: evaluator.report()[k] for k in ("hits", "misses", "failures")} == {
            "hits": 3, "misses": 1, "failures": 0
        }  # fmt: skip
    with Evaluator("bulk_modulus", Counting(), path) as evaluator:
        again = evaluator(a)
        assert again.cached[0] and Counting.n == n and again.details[0] == found.details[0]
    # Other settings, another judge.
    with Evaluator(BulkModulus(n_points=7), Counting(), path) as evaluator:
        assert not evaluator(a).cached[0]
        assert len(evaluator.cache) == 2


def test_failures_are_kept_too(tmp_path):
    path = tmp_path / "cache.sqlite"
    for cached in (False, True):
        with Evaluator("bulk_modulus", Curve(v0=900.0), path) as evaluator:
            found = evaluator(filling("NaCl", "Na " * 8))
            assert np.isnan(found.values[0]) and "no minimum" in found.reasons[0]
            assert found.cached[0] == cached


class Late(Backend):
    name, has_gap, at_once = "late", True, 1

    def energies(self, batch, like):
        raise NotImplementedError

    def gaps(self, batch):
        return Computed(np.full(len(batch), np.nan), {0: Passing("it took more than 1 s")})


def test_failures_that_need_not_come_again_are_not_kept_in_the_file(tmp_path):
    cache, crystal = EvaluationCache(tmp_path / "cache.sqlite"), filling("AuSb3", "Li Li Li Li")
    for cached in (False, True):  # Nor computed again and again in one run.
        found = Evaluator("band_gap", Late(), cache)(crystal)
        assert found.reasons[0] == "it took more than 1 s" and found.cached[0] == cached
    assert len(cache) == 0


@pytest.mark.parametrize(("symbol", "passing"), [("He", False), ("Ne", True), ("Ar", True)])
def test_time_limits_and_lost_processes_are_such_failures(symbol, passing):
    from tests.toy_calculators import troubled

    crystal = CrystalBatch.from_formulas([symbol])
    crystal = crystal.replace(cell=crystal.cell * 0 + 5 * torch.eye(3, dtype=crystal.cell.dtype))
    with CalculatorBackend(troubled, "toy", n_workers=1, timeout=2.0) as backend:
        found = backend.energies(crystal, crystal)
    assert np.isnan(found.values[0]) and isinstance(found.reasons[0], Passing) == passing


def test_a_backend_without_a_name_of_its_own_has_no_file(tmp_path):
    def nested():
        raise AssertionError("only its name is asked")

    names = {ASEPotential(made, n_workers=0).name for made in (nested, lambda: None)}
    assert len(names) == 2 and all("<" in name for name in names)
    with pytest.raises(ValueError, match="shares its name"):
        Evaluator("bulk_modulus", ASEPotential(nested, n_workers=0), EvaluationCache())
    backend = Curve(name="ase:<lambda>()")
    with pytest.raises(ValueError, match=r"backend 'ase:<lambda>\(\)' shares its name"):
        Evaluator("bulk_modulus", backend, tmp_path / "cache.sqlite")
    assert np.isfinite(Evaluator("bulk_modulus", backend)(filling("NaCl", "Na " * 8)).values[0])


def test_a_cache_that_was_given_stays_open(tmp_path):
    cache, crystal = EvaluationCache(tmp_path / "cache.sqlite"), filling("NaCl", "Na " * 8)
    with Evaluator("bulk_modulus", Curve(), cache) as evaluator:
        evaluator(crystal)
    assert Evaluator("bulk_modulus", Curve(), cache)(crystal).cached[0]


WRITER = """
import os, sys
from irlkit.envs import EvaluationCache
cache = EvaluationCache(sys.argv[1])
for i in range(200):
    cache.store("judge", [((sys.argv[2], str(i)), (float(i), None, 0.0, {}))])
    cache.store("judge", [(("both", str(i)), (float(i), None, 0.0, {}))])
os.kill(os.getpid(), 9)
"""


def test_processes_share_a_cache_and_killed_ones_lose_nothing(tmp_path):
    path = tmp_path / "cache.sqlite"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, path, name]) for name in "ab"]
    assert [writer.wait() for writer in writers] == [-9, -9]
    cache = EvaluationCache(path)
    assert len(cache) == 600
    keys = [(name, str(i)) for name in ("a", "b", "both") for i in range(200)]
    found = cache.find("judge", keys)
    assert [found[key][0] for key in keys] == [*map(float, range(200))] * 3
    assert not cache.find("another judge", keys)


def test_another_file_is_no_cache(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("not a database, whatever its length" * 100)
    with pytest.raises(ValueError, match=r"notes.txt is no cache of evaluations"):
        EvaluationCache(path)


# --- stability and validity ---


def test_energy_above_the_hull_is_that_at_the_lowest_volume_and_needs_coverage():
    hull = Hull({"Na": -2.0, "Cl": -2.0, "NaCl": -3.5, "K": -1.0}, "curve")
    property = EnergyAboveHull(hull)
    batch = CrystalBatch.concatenate(
        [filling("NaCl", s) for s in ("Na " * 4 + "Cl " * 4, "Na " * 8, "K " * 4 + "Cl " * 4)]
    )
    found = Evaluator(property, Curve())(batch)
    # The curve's minimum is -3 eV/atom, wherever the skeleton's volume is.
    assert found.values[:2] == pytest.approx([0.5, -1.0], abs=1e-3)
    assert np.isnan(found.values[2]) and "does not cover the elements of KCl" in found.reasons[2]
    assert found.details[0]["bulk_modulus"] == pytest.approx(100, rel=0.01)
    assert property.reward(found.values, 0.1) == pytest.approx([-0.4, 0.0, -1.0], abs=1e-3)
    other = Hull({"Na": -2.0, "Cl": -2.0, "NaCl": -3.6, "K": -1.0}, "curve")
    assert EnergyAboveHull(other).settings(Curve()) != property.settings(Curve())
    with pytest.raises(
        ValueError, match=r"hull holds energies of the potential curve, .* of other"
    ):
        Evaluator(property, Curve(name="other"))


def test_a_target_together_with_stability_and_validity():
    pytest.importorskip("smact", reason="smact is not installed (extra denovo)")
    hull = Hull({"Na": -2.0, "Cl": -2.0, "NaCl": -3.5}, "curve")
    stable = PropertyReward(Evaluator(EnergyAboveHull(hull), Curve()), 0.1)
    valid = PropertyReward(Evaluator("valid_composition", Curve()), 1.0)
    both = PropertyReward(
        Evaluator("bulk_modulus", Curve()), 100.0, also=[(stable, 2.0), (valid, 0.5)]
    )
    batch = CrystalBatch.concatenate(
        [filling("NaCl", s) for s in ("Na " * 4 + "Cl " * 4, "Na " * 5 + "Cl " * 3)]
    )
    result = both(batch)
    # The mixture of Na and NaCl that competes with Na5Cl3 is at -3.125 eV/atom.
    expected = [2.0 * -0.4, 2.0 * -0.025 - 0.5]
    assert result.values.numpy() == pytest.approx(expected, abs=5e-3)
    assert result.info["e_above_hull"] == pytest.approx([0.5, 0.125], abs=1e-3)
    assert result.info["valid_composition"].tolist() == [1.0, 0.0]
    assert both.lowest == -5 - 2 - 0.5 and both.energies().count(" + ") == 2
    closed = []
    for reward in (both, stable, valid):
        reward.evaluator.close = lambda reward=reward: closed.append(reward)
    both.close()
    assert closed == [both, stable, valid]
    with pytest.raises(ValueError, match="other properties, each once"):
        PropertyReward(both.evaluator, 100.0, also=[(both, 1.0)])


def test_a_flow_that_makes_whole_crystals_learns_from_the_same_reward():
    reward = PropertyReward(Evaluator("density", Curve()), 2.0)
    policy = SpeciesPolicy(tiny_model())
    config = trainer_config(n_groups=2, group_size=4, n_steps=3)
    trainer = GRPOTrainer(policy, reward, Request(torch.tensor([1, 2, 3])), config)
    before = [parameter.clone() for parameter in policy.parameters()]
    row = trainer.run(1, progress=False).iloc[-1]
    assert reward.lowest <= row["reward"] <= reward.highest
    assert any(not torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))
