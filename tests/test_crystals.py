"""CrystalBatch: checks, selection, orientation, compositions, conversions."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from pymatgen.core import Composition, Lattice, Structure
from pymatgen.core.periodic_table import DummySpecies

from irlkit.crystals import CrystalBatch


def parts(**changes):
    """Valid arguments of a batch of 2 + 1 atoms, some of them replaced."""
    return {
        "species": torch.tensor([11, 17, 26]),
        "pos": torch.zeros(3, 3),
        "cell": torch.eye(3).repeat(2, 1, 1),
        "n_atoms": torch.tensor([2, 1]),
    } | changes


def assert_same(a, b, tolerance=0.0):
    assert torch.equal(a.species, b.species)
    assert torch.equal(a.n_atoms, b.n_atoms)
    assert torch.equal(a.batch, b.batch)
    assert a.dtype == b.dtype
    torch.testing.assert_close(a.pos, b.pos, rtol=0, atol=tolerance)
    torch.testing.assert_close(a.cell, b.cell, rtol=0, atol=tolerance)


def sorted_distances(structure):
    """Periodic distances of all pairs: what no rotation, origin or order of atoms changes."""
    return np.sort(structure.distance_matrix.ravel())


def test_import_is_light():
    code = (
        "import sys, irlkit.crystals; print([m for m in ('pymatgen', 'ase') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"species": [11, 17, 26]}, "species must be a torch.Tensor, got list"),
        ({"species": torch.tensor([11.0, 17, 26])}, "species must be a one-dimensional int64"),
        ({"n_atoms": torch.tensor([[2, 1]])}, r"n_atoms must be .* of shape \(1, 2\)"),
        ({"pos": torch.zeros(4, 3)}, r"pos must have shape \(3, 3\) .* got \(4, 3\)"),
        ({"cell": torch.eye(3)}, r"cell must have shape \(2, 3, 3\) .* got \(3, 3\)"),
        ({"pos": torch.zeros(3, 3).double()}, "share one floating dtype, got torch.float64 and"),
        ({"n_atoms": torch.tensor([3, 0])}, "n_atoms must be at least 1, got 0"),
        ({"n_atoms": torch.tensor([1, 1])}, "it sums to 2, but species has 3"),
        ({"species": torch.tensor([0, 101, 26])}, r"from 1 to 100, got \[0, 101\]"),
        ({"species": torch.zeros(3, dtype=torch.int64, device="meta")}, "one device"),
    ],
)
def test_bad_parts(changes, message):
    with pytest.raises(ValueError, match=message):
        CrystalBatch(**parts(**changes))


def test_properties(small_batch):
    assert len(small_batch) == 4
    assert small_batch.batch.tolist() == [0, 0, 1, 2, 2, 2, 2, 2, 3, 3, 3]
    assert small_batch.batch is small_batch.batch
    assert small_batch.device == torch.device("cpu")
    assert small_batch.dtype == torch.float64
    volumes = [structure.volume for structure in small_batch.to_structures()]
    torch.testing.assert_close(small_batch.volume, torch.tensor(volumes, dtype=torch.float64))


def test_densities_are_those_of_pymatgen(small_batch):
    expected = [float(structure.density) for structure in small_batch.to_structures()]
    assert small_batch.density.tolist() == pytest.approx(expected, rel=1e-4)
    assert repr(small_batch) == (
        "CrystalBatch(n_structures=4, n=11, dtype=torch.float64, device=cpu)"
    )


@pytest.mark.parametrize(
    ("index", "rows"),
    [
        (2, [2]),
        (-1, [3]),
        (np.int64(1), [1]),
        (slice(1, None), [1, 2, 3]),
        (slice(None, None, 2), [0, 2]),
        ([3, 0, 0], [3, 0, 0]),
        (np.array([1, -1]), [1, 3]),
        (torch.tensor([2, 1]), [2, 1]),
        (torch.tensor([True, False, False, True]), [0, 3]),
        (np.array([False, True, False, False]), [1]),
        ([], []),
    ],
)
def test_select(small_batch, index, rows):
    selected = small_batch[index]
    assert selected.n_atoms.tolist() == [int(small_batch.n_atoms[row]) for row in rows]
    start = small_batch.n_atoms.cumsum(0) - small_batch.n_atoms
    atoms = [int(start[row]) + i for row in rows for i in range(int(small_batch.n_atoms[row]))]
    assert torch.equal(selected.species, small_batch.species[atoms])
    assert torch.equal(selected.pos, small_batch.pos[atoms])
    assert torch.equal(selected.cell, small_batch.cell[rows])


def test_select_errors(small_batch):
    with pytest.raises(IndexError, match="index from 4 to 4 is outside a batch of 4 structures"):
        small_batch[4]
    with pytest.raises(IndexError, match="from -5 to 1"):
        small_batch[[1, -5]]
    with pytest.raises(ValueError, match=r"boolean index must have shape \(4,\), got \(2,\)"):
        small_batch[torch.tensor([True, False])]
    with pytest.raises(ValueError, match=r"index must be an integer, .* got torch.float32"):
        small_batch[torch.tensor([0.5])]


def test_iteration_and_concatenate_are_inverse(small_batch):
    assert_same(CrystalBatch.concatenate(list(small_batch)), small_batch)


def test_concatenate_errors(small_batch):
    with pytest.raises(ValueError, match="at least one CrystalBatch, got none"):
        CrystalBatch.concatenate([])
    with pytest.raises(ValueError, match="must share device and dtype"):
        CrystalBatch.concatenate([small_batch, small_batch.to(dtype=torch.float32)])


def test_repeat_keeps_copies_adjacent(small_batch):
    assert_same(small_batch.repeat(3), small_batch[[0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]])
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        small_batch.repeat(0)


def test_to(small_batch):
    single = small_batch.to(dtype=torch.float32)
    assert single.pos.dtype == single.cell.dtype == torch.float32
    assert single.species.dtype == torch.int64
    assert small_batch.to("meta").device.type == "meta"
    with pytest.raises(ValueError, match=r"floating-point dtype or None, got torch.int64"):
        small_batch.to(dtype=torch.int64)


@pytest.mark.gpu
def test_on_gpu(small_batch):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    on_gpu = small_batch.to("cuda")
    assert_same(on_gpu.repeat(2)[[1, 0]].wrap().to("cpu"), small_batch.repeat(2)[[1, 0]])
    assert_same(on_gpu.standard_orientation().to("cpu"), small_batch.standard_orientation(), 1e-12)
    assert on_gpu.reduced_formulas() == small_batch.reduced_formulas()


def test_replace(small_batch):
    moved = small_batch.replace(pos=small_batch.pos + 1)
    assert torch.equal(moved.cell, small_batch.cell)
    assert torch.equal(moved.batch, small_batch.batch)
    assert_same(moved.wrap(), small_batch, 1e-15)
    with pytest.raises(ValueError, match=r"pos must have shape \(11, 3\)"):
        small_batch.replace(pos=small_batch.pos[:2])
    with pytest.raises(ValueError, match="share one floating dtype"):
        small_batch.replace(cell=small_batch.cell.float())
    with pytest.raises(ValueError, match="on the batch's device cpu, got meta and cpu"):
        small_batch.replace(pos=small_batch.pos.to("meta"))


def test_wrap_never_gives_one():
    pos = torch.tensor([[-1e-12, 1.0, -0.25], [2.5, 0.0, -1.0], [1 - 1e-12, 0.5, 7.0]])
    wrapped = CrystalBatch(**parts(pos=pos)).wrap().pos
    assert wrapped.tolist() == [[0.0, 0.0, 0.75], [0.5, 0.0, 0.0], [0.0, 0.5, 0.0]]


def test_standard_orientation(small_batch):
    flip = torch.diag(torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64))
    cell = torch.cat([small_batch.cell[:2], small_batch.cell[2:] @ flip])
    batch = small_batch.replace(cell=cell)
    assert (torch.linalg.det(batch.cell) < 0).tolist() == [False, False, True, True]
    standard = batch.standard_orientation()
    assert torch.equal(standard.cell, standard.cell.tril())
    assert (torch.diagonal(standard.cell, dim1=1, dim2=2) > 0).all()
    # A proper rotation of the Cartesian structure: lattice vectors, up to their common sign, and
    # atoms are carried over by it.
    sign = torch.linalg.det(batch.cell).sign().view(-1, 1, 1)
    rotation = torch.linalg.inv(batch.cell) @ (sign * standard.cell)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(4, dtype=torch.float64))
    shift = standard.pos - sign.view(-1)[batch.batch].unsqueeze(1) * batch.pos
    torch.testing.assert_close(shift, shift.round())
    for before, after in zip(batch.to_structures(), standard.to_structures(), strict=True):
        np.testing.assert_allclose(sorted_distances(after), sorted_distances(before), atol=1e-9)
    expected = [
        Lattice.from_parameters(*Lattice(matrix).parameters, vesta=True).matrix
        for matrix in batch.cell.numpy()
    ]
    np.testing.assert_allclose(standard.cell.numpy(), np.array(expected), atol=1e-9)
    assert_same(standard.standard_orientation(), standard, 1e-12)


def test_formulas(small_batch):
    assert small_batch.formulas() == ["Cl1 Na1", "Fe1", "Ca1 O3 Ti1", "O2 Ti1"]
    assert small_batch.reduced_formulas() == ["NaCl", "Fe", "CaTiO3", "TiO2"]
    compositions = [structure.composition for structure in small_batch.to_structures()]
    assert small_batch.reduced_formulas() == [c.reduced_formula for c in compositions]


def test_formulas_ignore_atom_order_and_keep_the_cell_size():
    batch = CrystalBatch.from_formulas(["Na2 Cl2", "Cl Na Cl Na", "NaCl"])
    assert batch.formulas() == ["Cl2 Na2", "Cl2 Na2", "Cl1 Na1"]
    assert batch.reduced_formulas() == ["NaCl"] * 3


def test_from_formulas():
    batch = CrystalBatch.from_formulas(["Na4 Cl4", "CaTiO3"], dtype=torch.float64)
    assert batch.n_atoms.tolist() == [8, 5]
    assert batch.species.tolist() == [11] * 4 + [17] * 4 + [20, 22, 8, 8, 8]
    assert batch.dtype == torch.float64


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("Xx2 O3", r"cannot read the formula 'Xx2 O3': 'Xx' is no element that is known"),
        ("Md O", r"'Md': its atomic number is above 100"),
        ("Na1.5 Cl", "'Na1.5 Cl': it has fractions of atoms"),
        ("", "formula must be a text such as \"NaCl\", got ''"),
        ("?!", r"cannot read the formula '\?!': it holds signs that are not part of a formula"),
        ("H10001", "'H10001' has more than 10000 atoms"),
    ],
)
def test_from_formulas_errors(formula, message):
    with pytest.raises(ValueError, match=message):
        CrystalBatch.from_formulas(["Na Cl", formula])


@pytest.mark.parametrize("kind", ["structures", "ase", "pyg"])
def test_round_trips(small_batch, kind):
    converted = getattr(small_batch, f"to_{kind}")()
    back = getattr(CrystalBatch, f"from_{kind}")(converted, dtype=torch.float64)
    assert_same(back, small_batch, 1e-14)


@pytest.mark.parametrize("kind", ["structures", "ase", "pyg"])
def test_round_trips_of_nothing_but_numbers_too_large(kind, small_batch):
    unwrapped = small_batch.replace(pos=small_batch.pos - 3)
    converted = getattr(unwrapped, f"to_{kind}")()
    back = getattr(CrystalBatch, f"from_{kind}")(converted, dtype=torch.float64).wrap()
    assert_same(back, small_batch, 1e-14)


def test_from_structures_casts_and_wraps():
    structure = Structure(Lattice.cubic(3), ["Fe3+", "O2-"], [[1 - 1e-12, 0, -0.5], [0.5, 1, 2]])
    batch = CrystalBatch.from_structures([structure])
    assert batch.dtype == torch.float32
    assert batch.species.tolist() == [26, 8]
    assert batch.pos.tolist() == [[0, 0, 0.5], [0.5, 0, 0]]
    assert len(CrystalBatch.from_structures([])) == 0


def test_from_structures_errors():
    lattice = Lattice.cubic(3)
    good = Structure(lattice, ["Fe"], [[0, 0, 0]])
    disordered = Structure(lattice, [{"Fe": 0.5, "Ni": 0.5}], [[0, 0, 0]])
    with pytest.raises(ValueError, match=r"structures\[1\] \(Fe0.5 Ni0.5\) is disordered"):
        CrystalBatch.from_structures([good, disordered])
    with pytest.raises(ValueError, match=r"structures\[0\] has no atoms"):
        CrystalBatch.from_structures([Structure(lattice, [], np.zeros((0, 3)))])
    for species in ("Md", DummySpecies("Xx")):
        with pytest.raises(ValueError, match="species must be atomic numbers from 1 to 100"):
            CrystalBatch.from_structures([Structure(lattice, [species], [[0, 0, 0]])])


def test_from_ase_errors():
    from ase import Atoms

    with pytest.raises(ValueError, match=r"atoms\[0\] has no atoms"):
        CrystalBatch.from_ase([Atoms(cell=np.eye(3), pbc=True)])
    with pytest.raises(ValueError, match=r"atoms\[0\] \(Fe\) must have three lattice vectors"):
        CrystalBatch.from_ase([Atoms("Fe")])


def test_from_pyg_forms(small_batch):
    from torch_geometric.data import Data

    pyg = small_batch.to_pyg()
    assert torch.equal(pyg.batch, small_batch.batch)
    assert_same(CrystalBatch.from_pyg(pyg.to_data_list()), small_batch)
    del pyg["n_atoms"]
    assert_same(CrystalBatch.from_pyg(pyg), small_batch)
    one = small_batch[0]
    plain = Data(species=one.species, pos=one.pos, cell=one.cell[0])
    assert_same(CrystalBatch.from_pyg(plain), one)
    single = CrystalBatch.from_pyg(plain, dtype=torch.float32)
    assert single.dtype == torch.float32


def test_from_pyg_errors(small_batch):
    from torch_geometric.data import Data

    with pytest.raises(ValueError, match="at least one torch-geometric Data, got none"):
        CrystalBatch.from_pyg([])
    with pytest.raises(ValueError, match=r"\['species', 'cell'\] missing, found \['pos'\]"):
        CrystalBatch.from_pyg(Data(pos=torch.zeros(1, 3)))
    pyg = small_batch.to_pyg()
    pyg["cell"] = torch.zeros(4, 2)
    with pytest.raises(ValueError, match=r"cell must have shape \(B, 3, 3\), got \(4, 2\)"):
        CrystalBatch.from_pyg(pyg)


def test_conversion_uses_full_compositions(small_batch):
    for structure, formula in zip(small_batch.to_structures(), small_batch.formulas(), strict=True):
        assert structure.composition == Composition(formula)
