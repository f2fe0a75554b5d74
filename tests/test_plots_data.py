"""Distributions, distances, sweeps, training and flows as figures, judged by their data."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from irlkit.crystals import CrystalBatch
from irlkit.flows.interpolants import Interpolant, SqrtGamma, TrigonometricPath
from irlkit.flows.schedules import ConstantNoise, SquareRootNoise
from irlkit.lab import plots
from irlkit.lab.plots import distances
from irlkit.lab.plots._crystal_gym import learning


def named(figure, name):
    return [trace for trace in figure.data if trace.name == name]


def cubic(a, n=1):
    """n equal cells with one atom."""
    cell = a * torch.eye(3, dtype=torch.float64).repeat(n, 1, 1)
    return CrystalBatch(
        torch.full((n,), 11), torch.zeros(n, 3, dtype=torch.float64), cell, torch.ones(n).long()
    )


def test_distributions_share_bins_and_count_what_is_missing():
    figure = plots.distributions(
        {"a": [0.0, 1.0, np.nan], "b": [0.5] * 4}, "energy, eV/atom", n_bins=2
    )
    a, b = figure.data
    assert a.name == "a (1 of 3 without value)" and b.name == "b"
    assert list(a.x) == list(b.x) == [0, 0, 0.5, 0.5, 1, 1]
    assert list(a.y) == [0, 0.5, 0.5, 0.5, 0.5, 0] and list(b.y) == [0, 0, 0, 1, 1, 0]
    assert figure.layout.xaxis.title.text == "energy, eV/atom"


@pytest.mark.parametrize("values", [[], [np.nan], [1.0], [2.0, 2.0]])
def test_distributions_without_spread(values):
    figure = plots.distributions({"a": values}, "reward")
    assert np.isfinite(np.asarray(figure.data[0].y)).all()
    total = np.asarray(figure.data[0].y)[1::2].sum()
    assert total == (1.0 if np.isfinite(values).any() else 0.0)


def test_advantages_are_those_of_the_training():
    figure = plots.group_advantages([1.0, 2.0, 3.0, 5.0, 5.0, 5.0], 3, ["NaCl", "NaCl"])
    rewards, advantages = named(figure, "structures")
    assert list(rewards.y) == [1, 2, 3, 5, 5, 5]
    np.testing.assert_allclose(advantages.y, [-(1.5**0.5), 0, 1.5**0.5, 0, 0, 0], atol=1e-6)
    assert list(figure.layout.xaxis.ticktext) == ["1: NaCl", "2: NaCl"]
    with pytest.raises(ValueError, match="one per group: 2, got 1"):
        plots.group_advantages([1.0, 2.0] * 2, 2, ["NaCl"])


def test_points_are_coloured_by_validity():
    table = pd.DataFrame({"e": [0.1, 0.2], "r": [1.0, np.nan], "valid": [True, False]})
    figure = plots.reward_against(table, "e", "r", "energy, eV/atom", "reward")
    assert len(named(figure, "valid")[0].x) == len(named(figure, "not valid")[0].x) == 1


def test_pair_distribution_of_a_cubic_lattice():
    figure = plots.pair_distribution({"a": cubic(3.0, 2)}, r_max=6.5, n_bins=650)
    (line,) = figure.data
    r, g = np.asarray(line.x), np.asarray(line.y)
    peaks = r[g > 0]
    np.testing.assert_allclose(
        peaks, 3 * np.sqrt([1, 2, 3, 4]), atol=0.011, err_msg="shells of the lattice"
    )
    # Integrated over the first shell, g gives the number of neighbours: 6.
    edges = np.linspace(0, 6.5, 651)
    shell = 4 / 3 * np.pi * np.diff(edges**3) / 27
    assert (g * shell)[r < 3.5].sum() == pytest.approx(6)


def test_pair_distribution_of_an_ideal_gas_is_one():
    generator = torch.Generator().manual_seed(0)
    pos = torch.rand(300, 3, generator=generator, dtype=torch.float64)
    cell = 20 * torch.eye(3, dtype=torch.float64)[None]
    gas = CrystalBatch(torch.ones(300).long(), pos, cell, torch.tensor([300]))
    (line,) = plots.pair_distribution({"gas": gas}, r_max=8, n_bins=4).data
    np.testing.assert_allclose(line.y[1:], 1.0, atol=0.06)


def test_pair_distribution_without_a_valid_structure_is_empty():
    broken = cubic(3.0).replace(cell=torch.full((1, 3, 3), np.nan, dtype=torch.float64))
    (line,) = plots.pair_distribution({"a": broken}).data
    assert len(line.x) == 0


def test_minimum_distances_along_a_trajectory():
    states = [cubic(a) for a in (1.0, 2.0, 3.0)]
    line = plots.minimum_distances({"a": states}, [0.0, 0.5, 1.0]).data[-1]
    assert list(line.x) == [0.0, 0.5, 1.0]
    np.testing.assert_allclose(line.y, [1.0, 2.0, 3.0])
    (point,) = plots.minimum_distances({"a": states[:1]}).data
    assert list(point.y) == [1.0]


def test_noise_schedules_are_drawn_as_they_are():
    figure = plots.noise_schedules({"c": ConstantNoise(0.2), "r": SquareRootNoise(0.1)})
    assert set(named(figure, "c")[0].y) == {0.2}
    root = named(figure, "r")[0]
    t = np.asarray(root.x)
    np.testing.assert_allclose(root.y, 0.1 * np.sqrt((1 - t) / t))
    assert figure.layout.yaxis.range[1] == pytest.approx(2 * 0.1 * 3), "not the divergence"


def test_metrics_against_noise_have_a_place_for_zero():
    table = pd.DataFrame(
        {
            "schedule": ["c"] * 5,
            "noise": [0.0, 0.01, 0.01, 0.1, 1.0],
            "rmse": [0.1, 0.2, 0.4, np.nan, 0.5],
        }
    )
    figure = plots.metrics_vs_noise(table, ("rmse",))
    (line,) = named(figure, "c")
    np.testing.assert_allclose(line.x, [0.01 / 3, 0.01, 1.0])
    np.testing.assert_allclose(line.y, [0.1, 0.3, 0.5])
    assert figure.layout.xaxis.ticktext[0] == "0"


def test_training_curves_of_several_policies():
    rows = {"iteration": [1, 2], "reward": [0.1, 0.2], "validation_reward": [0.3, np.nan]}
    history = pd.concat(
        pd.DataFrame({**rows, "seed": seed, "policy": policy})
        for seed in (0, 1)
        for policy in ("score", "velocity")
    )
    figure = plots.training_curves(history, "energy, eV/atom", "policy")
    assert {t.name for t in figure.data if t.showlegend} == {"score", "velocity"}
    assert len(named(figure, "score: best of seed 1")) == 1


def test_diagnostics_show_what_there_is():
    history = pd.DataFrame(
        {"iteration": [0, 1, 2], "group_std": [np.nan, 0.1, 0.2], "grad_norm": [np.nan] * 3}
    )
    figure = plots.grpo_diagnostics(history)
    assert [a.text for a in figure.layout.annotations] == ["spread of rewards in a group"]
    assert list(figure.data[0].y) == [0.1, 0.2]
    with pytest.raises(ValueError, match="at least one of the columns"):
        plots.grpo_diagnostics(pd.DataFrame({"iteration": [0]}))


@pytest.mark.parametrize(("maximize", "best"), [(True, 3.0), (False, 1.0)])
def test_trials_of_a_sweep(maximize, best):
    trials = pd.DataFrame(
        {"lr": [1e-3, 1e-2, 1e-1, 1.0], "kind": list("abab"), "value": [2.0, 3.0, np.nan, 1.0]}
    )
    figure = plots.sweep_trials(trials, maximize=maximize, logarithmic=["lr"])
    assert [t.y[0] for t in named(figure, "best")] == [best] * 3
    (history,) = named(figure, "best so far")
    assert list(history.x) == [1, 2, 4]
    assert list(history.y) == ([2, 3, 3] if maximize else [2, 2, 1])
    assert figure.layout.xaxis2.type == "log"
    assert "1 of 4 trials without a value" in figure.layout.title.text


def test_a_sweep_of_failures_and_an_empty_one():
    figure = plots.sweep_trials(pd.DataFrame({"a": [1.0], "value": [np.nan]}))
    assert not named(figure, "best")
    with pytest.raises(ValueError, match="at least one trial"):
        plots.sweep_trials(pd.DataFrame({"a": [], "value": []}))


def test_periodic_table_places_elements():
    figure = plots.periodic_table({"H": 1.0, "Na": 2.0, "La": 3.0, "O": np.nan}, "cRMSE", {"H": 4})
    (heat,) = figure.data
    z = np.asarray(heat.z, dtype=float)
    assert (z[0, 0], z[2, 0], z[7, 2]) == (1.0, 2.0, 3.0)
    assert np.isfinite(z).sum() == 3
    assert heat.text[0][0] == "H: 1 (4 structures)" and heat.text[1][15] == "O: no value"
    assert len(figure.layout.annotations) == 103
    with pytest.raises(ValueError, match="got \\['Xx'\\]"):
        plots.periodic_table({"Xx": 1.0}, "cRMSE")


def test_interpolant_coefficients():
    figure = plots.interpolant_coefficients(
        {"linear": Interpolant(), "noisy": Interpolant(TrigonometricPath(), SqrtGamma(0.5))}
    )
    alpha, beta, gamma = figure.data[:3]
    np.testing.assert_allclose(np.add(alpha.y, beta.y), 1)
    assert not np.asarray(gamma.y).any() and np.asarray(figure.data[5].y).max() > 0.3


def test_flow_moves_points():
    states = np.arange(24.0).reshape(3, 4, 2)
    figure = plots.flow({"ode": states, "sde": states}, [0.0, 0.5, 1.0], target=states[0])
    for i, frame in enumerate(figure.frames):
        np.testing.assert_array_equal(frame.data[1].x, states[i, :, 0])
        assert [figure.data[k].name for k in frame.traces] == ["samples"] * 2
    assert len(named(figure, "path")) == 8
    still = plots.flow({"ode": states[:1]}, [0.0])
    assert not still.frames
    with pytest.raises(ValueError, match=r"'ode' must have shape \(1, n, 2\)"):
        plots.flow({"ode": states}, [0.0])


def test_arrows_point_along_the_field():
    figure = plots.velocity_field(
        {"right": lambda t, x: torch.tensor([1.0, 0.0]).expand_as(x)}, [0.5], n=2
    )
    (arrows,) = figure.data
    x, y = (np.asarray(arrows[axis], dtype=float).reshape(4, 6) for axis in "xy")
    assert (x[:, 1] > x[:, 0]).all() and (y[:, 1] == y[:, 0]).all()


def test_points_in_the_plane():
    figure = plots.densities({"a": [[1.0, 2.0]], "b": [[-3.0, 0.0]]})
    assert [t.x[0] for t in figure.data] == [1.0, -3.0]
    with pytest.raises(ValueError, match=r"'a'\] must have shape \(n, 2\)"):
        plots.densities({"a": [1.0, 2.0]})


def test_loss_is_smoothed():
    history = pd.DataFrame({"iteration": [1, 2, 3], "loss": [3.0, 1.0, 2.0]})
    each, mean = plots.loss_curve(history, 0.5, smooth=2).data
    assert list(each.y) == [3, 1, 2] and list(mean.y) == [3, 2, 1.5]


@pytest.mark.parametrize(
    "function",
    [
        plots.noise_schedules,
        plots.pair_distribution,
        plots.minimum_distances,
        plots.interpolant_coefficients,
        plots.densities,
        lambda nothing: plots.flow(nothing, [0.0]),
        lambda nothing: plots.velocity_field(nothing, [0.0]),
        lambda nothing: plots.distributions(nothing, "reward"),
    ],
)
def test_nothing_to_show_is_refused(function):
    with pytest.raises(ValueError, match="at least one"):
        function({})


def test_a_noise_that_rises_stays_in_the_panel():
    figure = plots.noise_schedules({"rising": lambda t: 0.3 * t})
    assert max(figure.data[0].y) < figure.layout.yaxis.range[1]


def test_pair_distribution_counts_all_images_or_none():
    (line,) = plots.pair_distribution({"a": cubic(3.0)}, r_max=60, n_bins=6).data
    np.testing.assert_allclose(line.y[1:], 1.0, atol=0.03)
    cell = torch.diag(torch.tensor([0.5, 10.0, 10.0], dtype=torch.float64))[None]
    thin = cubic(3.0).replace(cell=cell)
    (line,) = plots.pair_distribution({"a": thin}, n_bins=8).data
    # Two neighbours each 0.5 Å along the short axis.
    volumes = 4 / 3 * np.pi * np.diff(np.arange(9.0) ** 3) / 50
    np.testing.assert_allclose(np.multiply(line.y, volumes), [2, *[4] * 6, 6])
    with pytest.raises(ValueError, match="r_max must be a finite number"):
        plots.pair_distribution({"a": thin}, r_max=float("inf"))


def test_what_is_too_far_to_count_is_left_out(monkeypatch):
    monkeypatch.setattr(distances, "MAX_DISTANCES", 7**3)
    (line,) = plots.pair_distribution({"a": cubic(3.0)}, r_max=30.0, n_bins=10).data
    counted = np.isfinite(line.y)
    # Three images on each side, and half a cell more.
    assert list(counted) == [True] * 3 + [False] * 7
    np.testing.assert_array_equal(np.asarray(line.x)[counted], [1.5, 4.5, 7.5])
    both = CrystalBatch.concatenate([cubic(3.0), cubic(20.0)])
    (mean,) = plots.pair_distribution({"a": both}, r_max=30.0, n_bins=10).data
    assert np.isfinite(mean.y).all()


def test_trials_may_have_a_column_called_trial():
    trials = pd.DataFrame({"trial": [0, 1, 2], "value": [1.0, 2.0, 3.0]})
    figure = plots.sweep_trials(trials, logarithmic=["trial"])
    dots, column = named(figure, "trials")
    assert list(dots.x) == [1, 2, 3] and list(column.x) == [0, 1, 2]
    assert figure.layout.xaxis.type is None and figure.layout.xaxis2.type == "log"


def test_points_of_unknown_validity_are_not_valid_ones():
    table = pd.DataFrame({"e": [0.1, 0.2, 0.3], "r": 1.0})
    for valid in ([True, None, False], [1.0, np.nan, 0.0]):
        with_valid = table.assign(valid=pd.Series(valid))
        figure = plots.reward_against(with_valid, "e", "r", "energy, eV/atom", "reward")
        found = {trace.name: list(trace.x) for trace in figure.data}
        assert found == {"valid": [0.1], "not valid": [0.3], "validity unknown": [0.2]}


def test_unknown_noise_has_no_place():
    table = pd.DataFrame({"schedule": "c", "noise": [np.nan, 0.1, 1.0, 10.0], "rmse": 0.5})
    figure = plots.metrics_vs_noise(table, ("rmse",))
    assert list(figure.data[0].x) == list(figure.layout.xaxis.tickvals) == [0.1, 1.0, 10.0]
    assert figure.layout.xaxis.ticktext == ("0.1", "1", "10")


def test_a_flow_leaves_room_for_its_target():
    states = np.zeros((2, 5, 2))
    figure = plots.flow({"a": states}, [0.0, 1.0], np.full((4, 2), 2.0))
    assert figure.layout.xaxis.range[1] > 2
    assert plots.flow({"a": states}, [0.0, 1.0]).layout.xaxis.range == (-1, 1)


def test_tensors_with_gradients_are_drawn():
    points: Any = torch.rand(2, 4, 2, requires_grad=True)
    assert plots.densities({"a": points[0]}).data
    assert plots.flow({"a": points}, [0.0, 1.0], points[0]).data
    assert plots.distributions({"a": points[0, :, 0]}, "reward").data
    assert plots.group_advantages(points[0, :, 0], 2).data


def test_algorithms_may_be_numbers():
    rows = pd.DataFrame({"algorithm": [1, 2], "seed": 0, "evaluation": 1, "reward": [0.1, 0.2]})
    figure = learning({"a": rows, "b": rows})
    assert [t.name for t in figure.data] == ["1", "2"] * 2
    assert [t.showlegend for t in figure.data] == [True, True, False, False]
