"""GPAW gives what is usual for PBE, where it is installed (ten minutes or more on one core)."""

import pytest

from irlkit.envs import BulkModulus, Evaluator, Skeletons, get_backend

pytest.importorskip("gpaw", reason="gpaw is not installed")
pytestmark = pytest.mark.slow

# Usual for PBE: bulk moduli (GPa) at the lattice constants of the lowest energy, gaps (eV) at the
# measured ones (Å). Written down without a source at hand: not to be cited from here.
PBE = {
    "Si": ("Fd-3m", 5.430, ["Si"], 88.8, 0.61),
    "C": ("Fd-3m", 3.567, ["C"], 433.6, None),
    "NaCl": ("Fm-3m", 5.640, ["Na", "Cl"], 23.8, 5.20),
    "MgO": ("Fm-3m", 4.212, ["Mg", "O"], 149.5, 4.75),
}


@pytest.fixture(scope="module")
def backend():
    with get_backend("gpaw", n_workers=0) as backend:
        yield backend


@pytest.mark.parametrize("name", PBE)
def test_bulk_moduli_and_gaps_are_those_of_pbe(name, backend):
    from pymatgen.core import Lattice, Structure

    group, a, symbols, modulus, gap = PBE[name]
    sites = [[0, 0, 0], [0.5, 0.5, 0.5]][: len(symbols)]
    structure = Structure.from_spacegroup(group, Lattice.cubic(a), symbols, sites)
    crystal = Skeletons.get(structure.get_primitive_structure()).crystals
    found = Evaluator(BulkModulus(reach=(0.85, 1.2)), backend)(crystal)
    assert found.values[0] == pytest.approx(modulus, rel=0.05), found.reasons
    if gap is not None:
        found = Evaluator("band_gap", backend)(crystal)
        assert found.values[0] == pytest.approx(gap, abs=0.15), found.reasons


def test_cut_offs_and_k_points_have_converged(backend):
    """A quarter more of either changes the oxide's modulus by less than 5 %."""
    from pymatgen.core import Lattice, Structure

    structure = Structure.from_spacegroup(
        "Fm-3m", Lattice.cubic(4.212), ["Mg", "O"], [[0, 0, 0], [0.5, 0.5, 0.5]]
    )
    crystal = Skeletons.get(structure.get_primitive_structure()).crystals
    of = BulkModulus(reach=(0.85, 1.2))
    value = Evaluator(of, backend)(crystal).values[0]
    for more in ({"cutoff_scale": 1.25}, {"k_density": 4.4}):
        with get_backend("gpaw", n_workers=0, **more) as finer:
            assert Evaluator(of, finer)(crystal).values[0] == pytest.approx(value, rel=0.05)
