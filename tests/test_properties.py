"""Whatever is given to a public entry point: a documented result, or an error that names it.

`IRLKIT_EXAMPLES=500 pytest tests/test_properties.py` tries more.
"""

import dataclasses
import importlib.util
import json
import math
import os
import sys

import numpy as np
import pytest
import torch

import irlkit
from irlkit import data as datasets
from irlkit import potentials
from irlkit.crystals import CrystalBatch, validity
from irlkit.crystals.compositions import from_formula
from irlkit.data import writers
from irlkit.evaluate.diversity import count_distinct, fingerprints
from irlkit.evaluate.metrics import MatchPool, evaluate
from irlkit.flows._plain import from_plain, to_plain
from irlkit.flows.schedules import (
    ANNEALINGS,
    NOISES,
    ConstantNoise,
    ControlPointAnnealing,
    ControlPointNoise,
    LearnedAnnealing,
    LinearAnnealing,
    ScaledNoise,
    SquareRootNoise,
    check_n_steps,
    time_grid,
)
from irlkit.lab import experiments, plots, runs
from irlkit.networks.cspnet import CSPNet
from irlkit.networks.omatg.download import find_downloaded
from irlkit.pretraining import PretrainingConfig
from irlkit.rewards import CompositeReward, EnergyReward, FunctionReward, SymmetryReward
from irlkit.rl.config import TrainerConfig
from irlkit.rl.grpo import group_advantages
from irlkit.rl.policies import AnnealingPolicy
from tests.toy_potentials import LennardJonesToy, volume_per_atom
from tests.toys import ToyModel, crystals, integrate, trainer_config

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

settings.register_profile(
    "irlkit",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=int(os.environ.get("IRLKIT_EXAMPLES", "25")),
)
settings.load_profile("irlkit")

NUMBERS = st.one_of(st.integers(-2, 40), st.floats(width=32))
ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    NUMBERS,
    st.text(max_size=3),
    st.lists(NUMBERS, max_size=3),
    st.dictionaries(st.sampled_from(["pos", "cell", "x"]), NUMBERS, max_size=2),
)
T = torch.linspace(0.01, 0.99, 7)


def result_or_words(call, *names):
    """The result; None after an error that names one of the arguments."""
    try:
        return call()
    except (ValueError, TypeError) as error:
        assert any(name in str(error) for name in names), repr(error)
        return None


# --- settings ---


@given(st.sampled_from([field.name for field in dataclasses.fields(TrainerConfig)]), ANYTHING)
def test_grpo_config(name, value):
    config = result_or_words(lambda: trainer_config(**{name: value}), name)
    if config is None:
        return
    again = json.loads(json.dumps(config.to_settings()))
    assert trainer_config(**again).to_settings() == config.to_settings()
    assert math.isfinite(config.learning_rate_at(3)) and config.learning_rate_at(3) > 0
    for field in ("pos", "cell"):
        assert all(config.grpo.weight(t, field) >= 0 for t in ("policy", "kl", "distillation"))


@given(st.sampled_from([field.name for field in dataclasses.fields(PretrainingConfig)]), ANYTHING)
def test_pretraining_config(name, value):
    config = result_or_words(lambda: PretrainingConfig(**{name: value}), name)
    if config is not None:
        json.dumps(dataclasses.asdict(config), allow_nan=False)


@given(st.sampled_from(["hidden_dim", "n_layers", "n_freqs", "time_dim"]), NUMBERS)
def test_sizes_of_the_network(name, value):
    sizes = {"hidden_dim": 4, "n_layers": 1, "n_freqs": 2, "time_dim": 4, name: value}
    result_or_words(lambda: CSPNet(**sizes), name)


@given(st.text(max_size=8), st.text(max_size=8))
def test_names_that_mean_nothing(first, second):
    name = f"no/{first}/{second}".replace("\0", "")
    for find in (find_downloaded, runs.read):
        with pytest.raises((ValueError, FileNotFoundError)):
            find(name)
    # Without MACE nobody can say whether it has a model of that name.
    errors: tuple[type[Exception], ...] = (ValueError, FileNotFoundError)
    if importlib.util.find_spec("mace") is None:
        errors = (*errors, ImportError)
    with pytest.raises(errors):
        potentials.get(name)


def test_names_of_potentials_without_mace(monkeypatch):
    monkeypatch.setitem(sys.modules, "mace.modules", None)
    words = r"'chgent' is no CHGNet model \(chgnet, .*pip install 'irlkit\[mace\]'"
    with pytest.raises(ImportError, match=words):
        potentials.get("chgent")


@given(ANYTHING)
def test_numbers_of_steps(value):
    if result_or_words(lambda: check_n_steps(value) or True, "n_steps"):
        times = time_grid(value)
        assert times.shape == (value + 1,) and bool((times.diff() > 0).all())


@given(st.one_of(st.none(), st.integers(), st.text("0123456789, []-x", max_size=8)))
def test_seeds(value):
    chosen = lambda: experiments.resolve("noise", "quick", seeds=value)  # noqa: E731
    found = result_or_words(chosen, "seeds")
    assert found is None or isinstance(found.seeds, tuple)


# --- schedules ---


@given(st.sampled_from([ConstantNoise, SquareRootNoise]), ANYTHING)
def test_noise_of_one_number(kind, value):
    noise = result_or_words(lambda: kind(value), "scale")
    if noise is not None:
        assert noise(T).shape == T.shape and bool((noise(T) > 0).all())
        assert from_plain(json.loads(json.dumps(to_plain(noise, NOISES))), NOISES) == noise


@given(ANYTHING)
def test_scaled_noise(value):
    noise = result_or_words(lambda: ScaledNoise(ConstantNoise(1.0), value), "factor")
    assert noise is None or bool((noise(T) >= 0).all())


@given(ANYTHING, ANYTHING)
def test_linear_annealing(pos, cell):
    annealing = result_or_words(lambda: LinearAnnealing(pos, cell), "pos", "cell")
    if annealing is not None:
        assert all(bool(s.isfinite().all()) for s in annealing(T, T).values())
        again = from_plain(json.loads(json.dumps(to_plain(annealing, ANNEALINGS))), ANNEALINGS)
        assert again == annealing


@given(ANYTHING)
def test_control_points(values):
    noise = result_or_words(lambda: ControlPointNoise(values), "values")
    if noise is not None:
        assert noise(T).shape == T.shape and bool((noise(T) >= 0).all())
    result_or_words(lambda: ControlPointAnnealing(values, (0.0, 1.0)), "pos", "cell")


@given(
    st.sampled_from(["hidden_dim", "n_hidden_layers", "n_frequencies"]),
    st.one_of(st.integers(-3, 8), st.floats(), st.none(), st.text(max_size=2)),
)
def test_learned_annealing(name, value):
    annealing = result_or_words(lambda: LearnedAnnealing(**{"hidden_dim": 4, name: value}), name)
    if annealing is not None:
        assert all(not s.any() for s in annealing(T, T).values())


@given(st.dictionaries(st.sampled_from(["name", "scale", "values", "factor"]), ANYTHING))
def test_descriptions_of_schedules(data):
    result_or_words(lambda: from_plain(data, NOISES), "data", "scale", "values")
    result_or_words(lambda: from_plain(data, ANNEALINGS), "data")


# --- compositions and crystals ---


@given(st.text(max_size=12))
def test_any_text_as_a_formula(text):
    one = result_or_words(lambda: from_formula(text), "formula", repr(text))
    assert one is None or 1 <= len(one.species) <= 20


FORMULAS = st.lists(
    st.tuples(st.sampled_from(["H", "O", "Na", "Cl", "Fe", "U"]), st.integers(1, 4)),
    min_size=1,
    max_size=4,
    unique_by=lambda part: part[0],
)


@given(FORMULAS, st.integers(1, 3))
def test_formulas_have_the_atoms_that_they_name(parts, units):
    text = "".join(f"{symbol}{n if n > 1 else ''}" for symbol, n in parts)
    one = from_formula(text, units, max_atoms=100)
    assert len(one.species) == units * sum(n for _, n in parts)
    assert datasets.load([text], z=units).batch.formulas() == one.formulas()


@given(st.lists(st.text(max_size=6), max_size=3), st.one_of(st.none(), st.integers(-2, 40)))
def test_lists_of_formulas(formulas, max_atoms):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *_, **__: None)
        call = lambda: datasets.load(formulas, max_atoms=max_atoms)  # noqa: E731
        found = result_or_words(call, "formulas", "source", "max_atoms")
    assert found is None or len(found) + len(found.skipped) >= 1


SHAPES = st.lists(st.integers(0, 4), max_size=3)


@given(SHAPES, SHAPES, st.lists(st.integers(-1, 3), max_size=3), st.integers(-1, 120))
def test_batches_of_any_shape(pos, cell, n_atoms, number):
    species = torch.full((pos[0] if pos else 0,), number)
    call = lambda: CrystalBatch(  # noqa: E731
        species, torch.zeros(pos), torch.zeros(cell), torch.tensor(n_atoms, dtype=torch.int64)
    )
    batch = result_or_words(call, "pos", "cell", "n_atoms", "species")
    assert batch is None or len(batch.batch) == len(batch.species)


@st.composite
def structures(draw):
    """Sound and less sound crystals."""
    seed = draw(st.integers(0, 10**6))
    n_atoms = draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    return crystals(tuple(n_atoms), seed=seed)


@given(structures(), st.sampled_from([".extxyz", ".parquet", ""]))
def test_what_is_written_is_read(tmp_path_factory, batch, suffix):
    path = writers.write(tmp_path_factory.mktemp("written") / f"a{suffix}", batch)
    read = datasets.load(path, cache=False, niggli=False, progress=False, dtype=torch.float64).batch
    assert torch.equal(read.n_atoms, batch.n_atoms) and read.formulas() == batch.formulas()
    torch.testing.assert_close(read.volume, batch.volume, rtol=1e-6, atol=1e-6)
    if not suffix:  # pymatgen orders the atoms of a CIF file anew.
        return
    assert torch.equal(read.species, batch.species)
    difference = (read.pos - batch.pos + 0.5) % 1.0 - 0.5
    assert float(difference.abs().max()) < 1e-6


@given(structures(), st.floats(-2, 2))
def test_validity_does_not_depend_on_the_origin(batch, shift):
    moved = batch.replace(pos=batch.pos + shift)
    before, after = validity.check(batch), validity.check(moved)
    np.testing.assert_allclose(after.min_distance, before.min_distance, atol=1e-6)


# --- generation ---


@given(st.sampled_from(["n_steps", "kind", "max_batch"]), st.integers(-2, 6))
def test_integrate(name, value):
    batch = crystals((2, 1))
    arguments = {"n_steps": 2, "generator": torch.Generator().manual_seed(0), name: value}
    final = result_or_words(lambda: integrate(ToyModel(), batch, **arguments), name)
    if final is not None:
        assert torch.equal(final.species, batch.species)
        assert bool(((final.pos >= 0) & (final.pos < 1)).all())


@given(
    st.sampled_from(["noise", "ref_noise"]),
    st.dictionaries(st.sampled_from(["pos", "cell", "x"]), st.just(ConstantNoise(0.1))),
)
def test_policies(name, value):
    arguments = {"noise": {"pos": ConstantNoise(0.1), "cell": ConstantNoise(0.1)}, name: value}
    call = lambda: AnnealingPolicy(ToyModel(), LearnedAnnealing(4, 1), **arguments)  # noqa: E731
    result_or_words(call, "noise")


@given(st.text(max_size=6))
def test_names_of_models(name):
    with pytest.raises((ValueError, FileNotFoundError)):
        irlkit.load_pretrained(f"no {name}".replace("\0", ""))


# --- rewards ---


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=12), st.integers(-1, 5))
def test_advantages(rewards, group_size):
    values = torch.tensor(rewards, dtype=torch.float64)
    found = result_or_words(lambda: group_advantages(values, group_size), "rewards", "group_size")
    if found is not None:
        assert found.shape == values.shape and bool(found.isfinite().all())
        assert float(found.reshape(-1, group_size).mean(1).abs().max()) < 1e-6


@given(
    st.sampled_from(
        [
            (lambda **k: SymmetryReward(**{"kind": "not_triclinic", **k}), "kind"),
            (lambda **k: SymmetryReward("not_triclinic", **k), "symprec"),
            (lambda **k: SymmetryReward("not_triclinic", **k), "angle_tolerance"),
            (lambda **k: EnergyReward(LennardJonesToy(), **k), "group_size"),
            (lambda **k: EnergyReward(LennardJonesToy(), **k), "penalty"),
            (lambda **k: EnergyReward(LennardJonesToy(), **k), "clip"),
            (lambda **k: FunctionReward(**{"function": volume_per_atom, **k}), "function"),
            (lambda **k: FunctionReward(volume_per_atom, **k), "timeout"),
            (lambda **k: FunctionReward(volume_per_atom, **k), "on_failure"),
            (lambda weights: CompositeReward({"a": volume_per_atom}, {"a": weights}), "weights"),
        ]
    ),
    NUMBERS,
)
def test_arguments_of_rewards(entry, value):
    make, name = entry
    reward = result_or_words(lambda: make(**{name: value}), name)
    if reward is not None and name not in ("penalty", "on_failure", "timeout"):
        assert reward(crystals((2, 1))).values.shape == (2,)


# --- metrics and potentials ---


@st.composite
def damaged(draw):
    """Structures, and the same with one value replaced by whatever a float can be."""
    batch = draw(structures())
    pos, cell = batch.pos.clone(), batch.cell.clone()
    which = draw(st.integers(0, len(batch) - 1))
    value = draw(st.floats())
    if draw(st.booleans()):
        cell[which, draw(st.integers(0, 2)), draw(st.integers(0, 2))] = value
    else:
        atoms = batch.atom_indices(torch.tensor([which]))
        pos[atoms[0], draw(st.integers(0, 2))] = value
    return batch, batch.replace(pos=pos, cell=cell), which


@given(damaged())
def test_metrics_of_any_structures(drawn):
    batch, generated, which = drawn
    metrics = evaluate(generated, batch, MatchPool(0))
    for rate in (metrics.metre, metrics.match_rate, metrics.valid_rate):
        assert 0 <= rate <= 1
    assert metrics.match_rate <= metrics.polymorph_match_rate <= 1
    assert 0 <= metrics.crmse <= 0.5 + 1e-9
    whole = evaluate(batch, batch, MatchPool(0)).table["rmsd"].to_numpy()
    ours = metrics.table["rmsd"].to_numpy()
    others = np.arange(len(batch)) != which
    np.testing.assert_allclose(ours[others], whole[others])


@given(damaged())
def test_energies_of_any_structures(drawn):
    batch, generated, which = drawn
    potential = LennardJonesToy()
    before, after = potential(batch), potential(generated)
    others = np.arange(len(batch)) != which
    np.testing.assert_allclose(after.energy_per_atom[others], before.energy_per_atom[others])
    finite = np.isfinite(after.energy_per_atom)
    assert (finite == (after.valid & ~after.failed)).all()


@given(damaged(), st.integers(-1, 4))
def test_fingerprints_of_any_structures(drawn, group_size):
    batch, generated, _ = drawn
    prints = fingerprints(generated)
    assert len(prints) == len(batch)
    counts = result_or_words(lambda: count_distinct(prints, group_size), "group_size")
    if counts is not None:
        assert (counts >= 0).all() and (counts <= group_size).all()


# --- presets of notebooks ---


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(("annealing", name) for name in ("n_steps", "seeds", "iterations", "group_size")),
        *(("energy", name) for name in ("n_steps", "iterations", "group_size", "kl_weight")),
        *(("energy", name) for name in ("fields", "annealing")),
        *(("noise", name) for name in ("n_steps", "seeds", "scales")),
    ],
)
@given(value=ANYTHING)
def test_parameters_of_notebooks(kind, name, value):
    preset = result_or_words(
        lambda: experiments.resolve(kind, "quick", **{name: value}), name, "seed"
    )
    if preset is not None:
        json.dumps(preset.to_dict(), allow_nan=False)


# --- plots ---


@given(st.dictionaries(st.text(max_size=3), st.lists(st.floats(), max_size=4), max_size=3))
def test_distributions_of_any_numbers(values):
    pytest.importorskip("plotly")
    figure = result_or_words(lambda: plots.distributions(values, "x"), "values")
    assert figure is None or figure.to_json()


@given(st.lists(st.floats(), max_size=6), st.integers(-1, 4))
def test_plots_of_any_rewards(rewards, group_size):
    pytest.importorskip("plotly")
    call = lambda: plots.group_advantages(rewards, group_size)  # noqa: E731
    figure = result_or_words(call, "rewards", "group_size")
    assert figure is None or figure.to_json()


@given(st.dictionaries(st.sampled_from(["H", "Fe", "Xx", ""]), st.floats(), max_size=3))
def test_periodic_tables_of_any_numbers(values):
    pytest.importorskip("plotly")
    figure = result_or_words(lambda: plots.periodic_table(values, "x"), "values")
    assert figure is None or figure.to_json()
