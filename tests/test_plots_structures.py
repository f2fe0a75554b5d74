"""Structures and trajectories as figures, judged by their data."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from pymatgen.core import DummySpecies, Lattice, Structure

from irlkit.crystals import CrystalBatch
from irlkit.crystals.symmetry import conventional
from irlkit.lab import plots
from irlkit.lab.plots import _geometry as geometry
from irlkit.lab.plots import live
from tests.toys import crystals

SALT = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0] * 3, [0.5] * 3])


def meshes(figure, name, meta=None):
    return [t for t in figure.data if t.type == "mesh3d" and t.name == name and t.meta == meta]


def vertices(mesh):
    return np.stack([np.asarray(mesh[axis], dtype=float) for axis in "xyz"], axis=1)


def test_spheres_have_their_radius_and_point_outwards():
    centers = np.array([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]])
    points, faces = geometry.spheres(centers, 0.5, 1)
    points = points.reshape(2, -1, 3)
    distance = np.linalg.norm(points - centers[:, None], axis=2)
    np.testing.assert_allclose(distance, 0.5, rtol=1e-5)
    a, b, c = (points[0][faces[: len(faces) // 2, i]] - centers[0] for i in range(3))
    assert ((np.cross(b - a, c - a) * a).sum(1) > 0).all()
    # A closed surface: Euler's formula with 3/2 edges per face.
    assert points.shape[1] - len(faces) / 2 / 2 == 2


def test_tubes_lie_around_their_axes():
    pairs = np.array([[[0.0, 0, 0], [0, 0, 2]], [[1.0, 1, 1], [2, 2, 2]]])
    points, faces = geometry.tubes(pairs, 0.1)
    assert faces.max() == len(points) - 1
    np.testing.assert_allclose(np.linalg.norm(points[:12, :2], axis=1), 0.1, rtol=1e-5)
    assert set(points[:12, 2]) == {0.0, 2.0}


def test_structure_has_atoms_with_images_bonds_cell_and_legend():
    figure = plots.structure(SALT, polyhedra=True)
    (sodium,) = meshes(figure, "Na")
    assert sodium.showlegend and sodium.color != meshes(figure, "Cl")[0].color
    centers = np.unique(vertices(sodium).round(0) // 2.82, axis=0)
    assert len(centers) >= 14, "eight corners and six faces"
    assert meshes(figure, "Na", "bonds")
    assert not meshes(figure, "Na", "polyhedron"), "sodium is no small cation"
    assert meshes(plots.structure(PEROVSKITE, polyhedra=True), "Ti", "polyhedron")
    (cell,) = (t for t in figure.data if t.name == "cell")
    assert np.nanmax(cell.x) == pytest.approx(5.64)
    letters = figure.layout.scene.annotations
    assert [letter.text for letter in letters] == ["<i>a</i>", "<i>b</i>", "<i>c</i>"]
    assert letters[0].x > 5.64 and letters[0].y == pytest.approx(0)
    assert figure.layout.annotations[0].text == "NaCl, Fm-3m"
    scene = figure.layout.scene
    spans = [scene[f"{a}axis"].range[1] - scene[f"{a}axis"].range[0] for a in "xyz"]
    ratios = [spans[i] / scene.aspectratio[a] for i, a in enumerate("xyz")]
    np.testing.assert_allclose(ratios, ratios[0])


PEROVSKITE = Structure.from_spacegroup(
    "Pm-3m", Lattice.cubic(3.9), ["Sr", "Ti", "O"], [[0] * 3, [0.5] * 3, [0.5, 0.5, 0]]
)
SPINEL = Structure.from_spacegroup(
    "Fd-3m", Lattice.cubic(8.08), ["Mg", "Al", "O"], [[0] * 3, [0.625] * 3, [0.3874] * 3]
)


def drawn(structure, **options):
    arrays = (structure.atomic_numbers, structure.frac_coords, structure.lattice.matrix)
    return geometry.geometry(*map(np.array, arrays), **options)


def test_a_perovskite_is_an_octahedron_between_large_cations():
    part = drawn(PEROVSKITE, polyhedra=True)
    counts = {z: int((part.species == z).sum()) for z in (38, 22, 8)}
    assert counts == {38: 8, 22: 1, 8: 6}, "corners and faces are repeated, and nothing is outside"
    (corners,) = part.polyhedra.values()
    assert len(corners) == 6 and set(part.species[corners]) == {8}
    assert {tuple(sorted(pair)) for pair in part.species[part.bonds].tolist()} == {(8, 22)}


def test_a_spinel_has_tetrahedra_and_octahedra_that_are_complete():
    part = drawn(SPINEL, polyhedra=True)
    kinds = {(int(part.species[i]), len(corners)) for i, corners in part.polyhedra.items()}
    assert kinds == {(12, 4), (13, 6)}
    inside = drawn(SPINEL)
    fractions = inside.atoms @ np.linalg.inv(inside.cell)
    assert fractions.min() > -0.05 and fractions.max() < 1.05, "no stray atoms"


@pytest.mark.parametrize("structure", [SALT, PEROVSKITE, SPINEL])
def test_panels_show_the_conventional_cell_and_say_what_is_known(structure):
    primitive = structure.get_primitive_structure()
    shown, symbol, order = conventional(primitive)
    assert order == 48
    assert len(shown) == len(structure) and shown.lattice.abc == pytest.approx(
        structure.lattice.abc
    )
    assert shown.matches(structure)
    # Wherever the origin was, it is the space group's, as that of the structure here.
    moved = primitive.copy().translate_sites(range(len(primitive)), [0.13, 0.27, 0.41])
    found, *_ = conventional(moved)
    distances = found.lattice.get_all_distances(found.frac_coords, shown.frac_coords).min(1)
    assert distances.max() < 1e-4 and found.matches(structure)
    figure = plots.structures({"best": primitive}, energies=[-1.25])
    formula = figure.layout.annotations[0].text.split("<br>")
    assert formula[0] == "best" and formula[1].endswith(f", {symbol}, −1.250 eV/atom")
    with pytest.raises(ValueError, match="energies, one for each of panels, must be a list of 1"):
        plots.structures([structure], energies=[1.0, 2.0])


def test_a_small_structure_beside_a_large_one_is_large_enough():
    long = PEROVSKITE.copy().make_supercell([1, 1, 6], in_place=False)
    long.translate_sites([0], [0, 0, 0.01])
    layout = plots.structures([long, SALT, PEROVSKITE]).layout
    scales = [
        scene.aspectratio.x / (scene.xaxis.range[1] - scene.xaxis.range[0])
        for scene in (layout.scene, layout.scene2, layout.scene3)
    ]
    assert max(scales) / min(scales) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("corner", "middle"), [("Sr", "Ti"), ("Ti", "Sr")], ids=["usual", "other origin"]
)
def test_the_same_structure_looks_the_same(corner, middle):
    oxygen = [0.5, 0.5, 0] if corner == "Sr" else [0.5, 0, 0]
    sites = [[0] * 3, [0.5] * 3, oxygen]
    cubic = Structure.from_spacegroup("Pm-3m", Lattice.cubic(3.9), [corner, middle, "O"], sites)
    shown, *_ = conventional(cubic)
    at_corner = [site.specie.symbol for site in shown if np.allclose(site.frac_coords % 1, 0)]
    assert at_corner == ["Sr"] and shown.matches(PEROVSKITE)


def test_elements_look_alike_in_every_figure():
    still, moving = (
        plots.structure(SALT),
        plots.trajectories({"a": [CrystalBatch.from_structures([SALT])]}),
    )
    sodium = {t.color for figure in (still, moving) for t in meshes(figure, "Na")}
    assert sodium == {"#f9dc3c"}, "of VESTA"
    assert meshes(plots.structure(SALT, colors="jmol"), "Na")[0].color == "#ab5cf2"
    distinct = plots.structure(SALT, colors="distinct")
    assert {t.color for t in distinct.data if t.type == "mesh3d"} == set(plots.COLORS[:2])


def test_no_bonds_and_no_polyhedra_unless_asked_for():
    figure = plots.structure(SALT, bonds=False)
    assert not [t for t in figure.data if t.meta in ("bonds", "polyhedron")]


def test_without_crystal_toolkit_there_is_no_live_view(monkeypatch):
    monkeypatch.setattr(live, "_import_crystal_toolkit", lambda: None)
    with pytest.raises(ImportError, match=r"irlkit\[notebooks\]"):
        plots.crystal_toolkit_view(SALT)


def test_no_server_is_started_outside_a_notebook():
    pytest.importorskip("crystal_toolkit")
    with pytest.raises(RuntimeError, match="in a notebook only"):
        plots.crystal_toolkit_view(SALT)


def test_a_batch_and_a_structure_are_drawn_alike():
    batch = CrystalBatch.from_structures([SALT], torch.float64)
    one, other = plots.structure(SALT), plots.structure(batch)
    assert len(one.data) == len(other.data)
    np.testing.assert_allclose(vertices(one.data[1]).mean(0), vertices(other.data[1]).mean(0), 1e-4)


def test_many_panels_share_a_legend_and_nearly_the_scale():
    batch = crystals()
    figure = plots.structures(batch, columns=3)
    assert len(figure.layout.annotations) == 4
    shown = [t.name for t in figure.data if t.showlegend and t.type == "mesh3d"]
    assert len(shown) == len(set(shown)) == len(set(batch.species.tolist()))
    scales = []
    for name in ("scene", "scene2", "scene3", "scene4"):
        scene = figure.layout[name]
        scales.append(scene.aspectratio.x / np.diff(scene.xaxis.range).item())
    assert max(scales) / min(scales) <= 2.0 + 1e-9


@pytest.mark.parametrize("broken", [np.nan, 0.0])
def test_what_is_not_valid_says_so(broken):
    batch = crystals((2,)).replace(cell=torch.full((1, 3, 3), broken, dtype=torch.float64))
    figure = plots.structures({"a": batch})
    assert figure.layout.annotations[0].text.startswith("a<br>")
    assert figure.layout.annotations[0].text.endswith(", not a valid structure")
    assert not [t for t in figure.data if t.type == "mesh3d"]


def test_atoms_on_top_of_each_other_are_drawn():
    structure = Structure(Lattice.cubic(3), ["Na", "Cl"], [[0.5] * 3, [0.5] * 3])
    figure = plots.structure(structure)
    assert meshes(figure, "Na") and meshes(figure, "Cl")


def test_a_hundred_atoms_stay_small():
    generator = torch.Generator().manual_seed(0)
    batch = CrystalBatch(
        torch.arange(1, 101),
        torch.rand(100, 3, generator=generator),
        12 * torch.eye(3)[None],
        torch.tensor([100]),
    )
    figure = plots.structure(batch, bonds=False)
    assert len(figure.to_json()) < 1e6
    assert len({t.name for t in figure.data if t.type == "mesh3d"}) == 100


def test_what_is_not_one_structure_is_refused():
    with pytest.raises(ValueError, match="must hold one structure, got 4"):
        plots.structure(crystals())
    with pytest.raises(ValueError, match="a CrystalBatch or a Structure, got 'NaCl'"):
        plots.structure("NaCl")
    with pytest.raises(ValueError, match="1 to 16 structures, got 0"):
        plots.structures({})


def test_drawing_leaves_the_display_of_pymatgen_alone_and_opens_no_socket():
    code = """
import socket
from pymatgen.core import DummySpecies, Lattice, Structure
from irlkit.lab import plots
def refuse(*a, **k): raise OSError("a socket was used")
socket.socket.bind = socket.socket.connect = refuse
salt = Structure(Lattice.cubic(3), ["Na"], [[0, 0, 0]])
plots.structure(salt)
print([n for n in ("_ipython_display_", "_repr_mimebundle_", "display_json", "to_plotly_json")
       if hasattr(salt, n)])
"""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True
    )
    assert run.stdout.strip() == "[]", run.stderr


@pytest.fixture
def group():
    """Three members of a group in two states."""
    batch = crystals((2,)).repeat(3)
    return [batch, batch.replace(cell=1.1 * batch.cell)]


def test_group_members_are_ordered_and_coloured_by_advantage(group):
    figure = plots.group_trajectories(group, [0.0, -1.2, 1.2])
    titles = [a.text for a in figure.layout.annotations]
    assert titles == ["2: A = +1.20", "0: A = +0.00", "1: A = -1.20"]
    cells = [t.line.color for t in figure.data if t.name == "cell"]
    assert cells == [plots.BLUE, plots.GREY, plots.RED]
    assert len(figure.frames) == 2
    few = plots.group_trajectories(group, [0.0, -1.2, 1.2], max_members=2)
    assert [a.text[0] for a in few.layout.annotations] == ["2", "1"], "the best and the worst"
    with pytest.raises(ValueError, match="got 2 advantages"):
        plots.group_trajectories(group, [0.0, 1.0])


def test_a_mark_moves_along_the_curve(group):
    states = [state[0] for state in group]
    figure = plots.trajectory_and_curves(
        states, {"reward": [np.nan, 0.3]}, "reward", times=[0.0, 1.0], reference=states[0]
    )
    assert [frame.data[-1].x[0] for frame in figure.frames] == [0.0, 1.0]
    (mark,) = (t for t in figure.data if t.name == "now")
    assert (mark.x[0], mark.y[0]) == (1.0, 0.3)
    for frame in figure.frames:
        assert len(frame.data) == len(frame.traces)
        kinds = [figure.data[i].type for i in frame.traces]
        assert kinds == [t.type for t in frame.data]
    assert figure.layout.sliders[0].steps[0].label == "0.00"


def test_one_state_has_no_player_and_wrong_curves_are_refused(group):
    one = plots.trajectory_and_curves([group[0][0]], {"reward": [0.1]}, "reward")
    assert not one.frames and not one.layout.sliders
    with pytest.raises(ValueError, match=r"'reward'.*must be a list of 1 numbers, got list of 2"):
        plots.trajectory_and_curves([group[0][0]], {"reward": [0.1, 0.2]}, "reward")


def test_flat_coordination_has_no_polyhedron():
    sites = [[0, 0.5, 0.238], [0.5, 0, 0.762], [0, 0, 0], [0.5, 0.5, 0]]
    oxide = Structure(Lattice.tetragonal(3.80, 4.84), ["Sn", "Sn", "O", "O"], sites)
    figure = plots.structure(oxide, polyhedra=True)
    assert meshes(figure, "Sn") and not meshes(figure, "Sn", "polyhedron")


@pytest.mark.parametrize("species", [{"Na": 0.5, "K": 0.5}, DummySpecies("X")])
def test_sites_without_one_element_are_refused(species):
    structure = Structure(Lattice.cubic(3), [species], [[0, 0, 0]])
    with pytest.raises(ValueError, match="panels must hold structures with one element at every"):
        plots.structure(structure)


@pytest.mark.parametrize(("name", "first"), [("Candidate", "C, "), ("1: C", ""), ("C60", "C, ")])
def test_a_formula_is_left_out_where_the_title_has_it_as_a_word(name, first):
    carbon = Structure(Lattice.cubic(3), ["C"], [[0, 0, 0]])
    figure = plots.structures({name: carbon})
    assert figure.layout.annotations[0].text == f"{name}<br>{first}Pm-3m"
