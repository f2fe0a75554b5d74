"""Figures are judged by their data."""

import numpy as np
import pandas as pd
import pytest
import torch

from irlkit.crystals import CrystalBatch
from irlkit.lab import plots
from irlkit.lab.plots._denovo import novelty_and_stability
from irlkit.lab.plots.schedules import schedules_of

EVALUATION = pd.DataFrame(
    [
        {"schedule": s, "tuned_at": k, "n_steps": n, "seed": seed, "metre": m + 0.1 * seed}
        for s, k, m in (("none", np.nan, 0.1), ("handcrafted", 500, 0.3), ("handcrafted", 10, 0.2))
        for n in (10, 500)
        for seed in (0, 1)
    ]
).assign(crmse=0.4, valid_rate=1.0)


def by_name(figure, name, **where):
    """The only trace of that name (and with these attributes)."""
    (trace,) = (
        t for t in figure.data if t.name == name and all(t[k] == v for k, v in where.items())
    )
    return trace


def test_band_reaches_from_the_lowest_to_the_highest_row():
    table = pd.DataFrame({"x": [1, 1, 2, 2, 3], "y": [1.0, 3.0, 2.0, 6.0, np.nan]})
    band, line = plots.line_with_band(table, "x", "y", "name", plots.RED)
    assert list(line.x) == [1, 2] and list(line.y) == [2.0, 4.0]
    assert list(band.x) == [1, 2, 2, 1] and list(band.y) == [1.0, 2.0, 6.0, 3.0]
    assert not band.showlegend


def test_one_row_per_abscissa_has_no_band():
    table = pd.DataFrame({"x": [1, 2], "y": [1.0, 2.0]})
    (line,) = plots.line_with_band(table, "x", "y", "name", plots.RED)
    assert list(line.y) == [1.0, 2.0]


def test_a_single_abscissa_has_an_error_bar():
    table = pd.DataFrame({"x": [1, 1, 1], "y": [1.0, 2.0, 6.0]})
    (point,) = plots.line_with_band(table, "x", "y", "name", plots.RED)
    assert (point.y[0], point.error_y.array[0], point.error_y.arrayminus[0]) == (3.0, 3.0, 2.0)


def test_nothing_but_nan_is_an_empty_line():
    table = pd.DataFrame({"x": [1, 2], "y": [np.nan, np.nan]})
    (line,) = plots.line_with_band(table, "x", "y", "name", plots.RED)
    assert len(line.x) == 0


def test_metrics_vs_steps_has_a_line_per_schedule_and_panel():
    figure = plots.metrics_vs_steps(EVALUATION, ("metre", "crmse"), mark=10)
    line = by_name(figure, "handcrafted, tuned at 500 steps", yaxis="y")
    assert list(line.x) == [10, 500]
    np.testing.assert_allclose(line.y, 0.35)
    assert by_name(figure, "no annealing", yaxis="y2").y[0] == 0.4
    colors = {t.line.color for t in figure.data if t.mode == "lines+markers" and t.yaxis == "y"}
    assert len(colors) == 3
    assert figure.layout.xaxis.type == "log" and list(figure.layout.xaxis.tickvals) == [10, 500]
    assert figure.layout.yaxis.range == (0, 1)


def test_one_schedule_without_tuning_and_one_number_of_steps():
    rows = EVALUATION[EVALUATION["schedule"] == "none"].drop(columns="tuned_at").head(1)
    figure = plots.metrics_vs_steps(rows, ("metre",))
    assert list(by_name(figure, "no annealing").x) == [10]


def test_training_curves_mark_the_best_of_each_seed():
    history = pd.DataFrame(
        {
            "iteration": [0, 1, 2] * 2,
            "seed": [0] * 3 + [1] * 3,
            "reward": [np.nan, 0.1, 0.2, np.nan, 0.3, 0.4],
            "validation_reward": [0.1, np.nan, 0.3, 0.5, np.nan, 0.2],
        }
    )
    figure = plots.training_curves(history)
    for seed, iteration, best in ((0, 2, 0.3), (1, 0, 0.5)):
        star = by_name(figure, f"best of seed {seed}")
        assert (star.x[0], star.y[0]) == (iteration, best)
    rollouts, validation = (t for t in figure.data if t.name == "mean of seeds")
    np.testing.assert_allclose(rollouts.y, [0.2, 0.3])
    np.testing.assert_allclose(validation.y, [0.3, 0.25])


def test_a_seed_without_validation_has_no_star():
    history = pd.DataFrame(
        {"iteration": [1], "seed": [0], "reward": [0.1], "validation_reward": [np.nan]}
    )
    assert len(by_name(plots.training_curves(history), "best of seed 0").x) == 0


def test_annealing_schedules_show_factors_per_field():
    t = [0.0, 0.5]
    rows = [
        ("learned", np.nan, 0, 10, "pos", [1.0, 2.0]),
        ("learned", np.nan, 1, 10, "pos", [3.0, 4.0]),
        ("learned", np.nan, 0, 5, "pos", [9.0, 9.0]),
        ("handcrafted", 10, np.nan, 10, "pos", [1.0, 6.0]),
        ("learned", np.nan, 0, 10, "cell", [5.0, 5.0]),
    ]
    names = ("schedule", "tuned_at", "seed", "n_steps", "field")
    curves = pd.concat(
        pd.DataFrame({**dict(zip(names, row, strict=False)), "t": t, "factor": row[-1]})
        for row in rows
    )
    figure = plots.annealing_schedules(curves, few=10)
    assert list(by_name(figure, "learned annealing, 10 steps", xaxis="x").y) == [2.0, 3.0]
    assert list(by_name(figure, "learned annealing, 5 steps", xaxis="x").y) == [9.0, 9.0]
    assert list(by_name(figure, "learned annealing", xaxis="x2").y) == [5.0, 5.0]
    assert list(by_name(figure, "handcrafted, tuned at 10 steps").y) == [1.0, 6.0]
    assert "positions" in figure.layout.annotations[0].text


@pytest.mark.parametrize(("metric", "best"), [("crmse", 2.0), ("metre", 3.0)])
def test_sweep_orders_trials_and_circles_the_best(metric, best):
    trials = pd.DataFrame(
        {
            "pos": [1.0, 2.0, 3.0],
            "cell": [0.0, 1.0, 2.0],
            "crmse": [0.3, 0.2, 0.4],
            "metre": [0.1, 0.2, 0.3],
        }
    )
    figure = plots.sweep_results(trials, metric, {"learned": 0.1})
    assert list(by_name(figure, "best").x) == [best]
    values = list(by_name(figure, "handcrafted").y)
    assert values == sorted(trials[metric], reverse=metric == "metre")
    assert list(by_name(figure, "learned").y) == [0.1, 0.1]


def test_a_sweep_without_trials_is_refused():
    with pytest.raises(ValueError, match="at least one trial"):
        plots.sweep_results(pd.DataFrame({"pos": [], "cell": [], "crmse": []}))


def test_schedule_and_structures_always_has_the_same_traces():
    curves = {"pos": np.array([1.0, 2.0]), "cell": np.array([3.0, 3.0])}
    t = np.array([0.0, 0.5])
    counts = set()
    for rmsd in ([0.1, np.nan], [np.nan, np.nan], [0.1, 0.2]):
        table = pd.DataFrame({"formula": ["NaCl", "NaCl"], "rmsd": rmsd})
        figure = plots.schedule_and_structures(t, curves, table)
        counts.add(len(figure.data))
        found = np.isfinite(rmsd)
        np.testing.assert_allclose(by_name(figure, "matched").y, np.nan_to_num(rmsd))
        np.testing.assert_allclose(by_name(figure, "no match").y, np.where(found, 0, 0.5))
    assert counts == {4}
    assert len(set(by_name(figure, "matched").x)) == 2, "polymorphs must not share a bar"


@pytest.fixture
def states(small_batch):
    """One structure on its way through three states."""
    start = small_batch[2]
    return [start.replace(cell=(1 + 0.1 * i) * start.cell) for i in range(3)]


def test_trajectories_hold_every_state(states):
    figure = plots.trajectories({"generated": states, "reference": states[-1:]}, "title")
    assert [frame.name for frame in figure.frames] == ["0", "1", "2"]
    assert len(figure.layout.sliders[0].steps) == 3
    n_traces = len(figure.data)
    assert all(len(frame.data) == n_traces == len(frame.traces) for frame in figure.frames)
    assert {trace.scene for trace in figure.data} == {"scene", "scene2"}
    balls = [t for t in figure.frames[0].data if t.type == "mesh3d" and t.scene == "scene"]
    vertices = np.concatenate([np.stack([t.x, t.y, t.z], axis=1) for t in balls])
    pos, cell = states[0].pos.numpy(), states[0].cell[0].numpy()
    shown = vertices.reshape(len(pos), -1, 3).mean(axis=1) @ np.linalg.inv(cell)
    difference = shown[:, None] - pos[None]
    distance = np.abs(difference - difference.round()).max(axis=-1)
    assert distance.min(axis=1).max() < 1e-3 and distance.min(axis=0).max() < 1e-3
    assert shown.min() > -0.05 and shown.max() < 1
    # The figure itself is the last frame, which the slider stands at.
    np.testing.assert_array_equal(figure.data[2].x, figure.frames[-1].data[2].x)
    assert figure.layout.sliders[0].active == 2


def test_one_state_is_a_still_picture(states):
    figure = plots.trajectories({"reference": states[:1]})
    assert not figure.frames and not figure.layout.sliders


def test_cell_edges_are_twelve_lines(states):
    cell = by_name(plots.trajectories({"a": states[:1]}), "cell")
    assert np.isnan(np.array(cell.x, dtype=float)).sum() == 12
    corners = torch.cat([torch.zeros(1, 3), states[0].cell[0].sum(0, keepdim=True)]).numpy()
    assert np.nanmax(cell.x) >= corners[1, 0] - 1e-3


def test_axes_hold_all_states_and_scales_are_equal(states):
    scene = plots.trajectories({"a": states}).layout.scene
    corner = states[-1].cell[0].sum(0)
    assert scene.xaxis.range[1] >= corner[0]
    ratio = (scene.xaxis.range[1] - scene.xaxis.range[0]) / scene.aspectratio.x
    assert ratio == pytest.approx(
        (scene.zaxis.range[1] - scene.zaxis.range[0]) / scene.aspectratio.z
    )


def test_all_panels_have_the_same_scale(states):
    layout = plots.trajectories({"small": states[:1], "large": states[-1:]}).layout
    for axis in ("xaxis", "yaxis", "zaxis"):
        one, other = (layout[scene][axis].range for scene in ("scene", "scene2"))
        assert one[1] - one[0] == pytest.approx(other[1] - other[0])
    assert layout.scene.aspectratio == layout.scene2.aspectratio


def test_a_hundred_atoms_of_many_elements():
    batch = CrystalBatch(
        torch.arange(1, 101), torch.rand(100, 3), 9 * torch.eye(3)[None], torch.tensor([100])
    )
    figure = plots.trajectories({"a": [batch]}, colors="distinct")
    assert len(figure.data) == 102, "cell, bonds and elements"
    assert {t.color for t in figure.data if t.type == "mesh3d"} == set(plots.COLORS)


def test_bonds_and_balls_follow_a_trajectory_and_vanish_with_what_is_not_valid(small_batch):
    salt = small_batch[0]
    broken = salt.replace(cell=salt.cell * torch.nan)
    figure = plots.trajectories({"a": [broken, salt, salt.replace(cell=2 * salt.cell)]})
    assert [len(frame.data) for frame in figure.frames] == [len(figure.data)] * 3
    bonds = [len(by_name(frame, "bonds").x) for frame in figure.frames]
    assert bonds[0] == bonds[2] == 0 and bonds[1] == 3
    balls = [next(t for t in frame.data if t.type == "mesh3d") for frame in figure.frames]
    assert np.isnan(np.array(balls[0].x)).all() and np.isfinite(np.array(balls[1].x)).all()
    assert balls[1].i is None and figure.data[2].i is not None, "faces are written once"


@pytest.mark.parametrize("panels", [{}, {"a": []}])
def test_no_state_is_refused(panels):
    with pytest.raises(ValueError, match="at least one"):
        plots.trajectories(panels)


def test_several_structures_in_a_state_are_refused(small_batch):
    with pytest.raises(ValueError, match="'a' must hold one structure"):
        plots.trajectories({"a": [small_batch]})


@pytest.mark.parametrize(
    "function",
    [
        plots.metrics_vs_steps,
        plots.training_curves,
        plots.annealing_schedules,
        plots.sweep_results,
        lambda table: plots.schedule_and_structures(np.zeros(1), {}, table),
    ],
)
def test_missing_columns_are_named(function):
    with pytest.raises(ValueError, match=r"lacks the columns .* it has \['a'\]"):
        function(pd.DataFrame({"a": [1]}))


def test_schedules_have_names_and_colours():
    table = pd.DataFrame({"schedule": ["handcrafted"] * 3, "tuned_at": [np.nan, 500.0, 10.0]})
    (plain, _, one), (tuned, _, other), (_, _, few) = schedules_of(table, few=10)
    assert plain == "handcrafted" and tuned == "handcrafted, tuned at 500 steps"
    assert few != one == other
    with pytest.raises(ValueError, match=r"'none', 'learned', 'handcrafted'.*got 'noen'"):
        list(schedules_of(table.assign(schedule="noen")))


def test_parallel_coordinates_have_round_numbers_at_their_ends():
    values = np.linspace(0.131, 0.7777, 12)
    trials = pd.DataFrame({"clip_eps": values, "value": -values})
    dimensions = plots.parallel_coordinates(trials, ["clip_eps"]).data[0].dimensions
    assert dimensions[0].ticktext == ("0", "0.2", "0.4", "0.6", "0.8")
    assert dimensions[0].range == (0, pytest.approx(0.8))
    assert dimensions[1].ticktext == ("-0.8", "-0.6", "-0.4", "-0.2", "0")
    few = plots.parallel_coordinates(trials.head(3), ["clip_eps"]).data[0].dimensions
    assert few[0].ticktext == ("0.1", "0.15", "0.2", "0.25")
    choices = trials.head(3).assign(clip_eps=[0.1, 0.25, 0.1])
    few = plots.parallel_coordinates(choices, ["clip_eps"]).data[0].dimensions
    assert few[0].ticktext == ("0.1", "0.25")
    same = plots.parallel_coordinates(trials.assign(value=2.0), ["clip_eps"]).data[0].dimensions
    assert same[1].range[0] < 2.0 < same[1].range[1]


def test_a_schedule_on_many_grids_and_many_targets_of_a_sweep_are_all_drawn():
    row = {"schedule": "learned", "tuned_at": np.nan, "seed": 0, "field": "pos", "factor": 1.0}
    curves = pd.DataFrame([{**row, "n_steps": n, "t": t} for n in range(1, 7) for t in (0.0, 0.5)])
    lines = plots.annealing_schedules(curves).data
    assert [line.name for line in lines] == [f"learned annealing, {n} steps" for n in range(1, 7)]
    assert len({(line.line.color, line.line.dash) for line in lines}) == 6
    trials = pd.DataFrame({"pos": [1.0], "cell": [0.0], "crmse": [0.3]})
    targets = {f"target {i}": 0.1 * i for i in range(9)}
    figure = plots.sweep_results(trials, targets=targets)
    assert [t.name for t in figure.data if t.name in targets] == list(targets)


def test_only_shares_have_the_axis_of_shares():
    table = EVALUATION.assign(energy=-0.3, reward=[np.nan, 0.5] * 6)
    layout = plots.metrics_vs_steps(table, ("energy", "reward", "crmse")).layout
    assert layout.yaxis.range is None and layout.yaxis3.range is None
    assert layout.yaxis2.range == (0, 1)


def test_parallel_coordinates_of_missing_values():
    trials = pd.DataFrame(
        {
            "act": pd.Series(["a", None, "b"], dtype=object),
            "text": ["a", None, "b"],
            "empty": [np.nan] * 3,
            "rate": [0.0, 1e-3, 1e-2],
            "none": [0.0, -1.0, np.inf],
            "value": [0.1, 0.2, 0.3],
        }
    )
    names = ["act", "text", "empty", "rate", "none"]
    figure = plots.parallel_coordinates(trials, names, logarithmic=["rate", "none"])
    act, text, empty, rate, none, _ = figure.data[0].dimensions
    assert act.ticktext == ("None", "a", "b") and list(act["values"]) == [1, 0, 2]
    assert len(set(text["values"])) == 3
    assert np.isnan(np.asarray(empty["values"], float)).all() and empty.range == none.range
    assert rate.range == (-3, -2) and np.isnan(rate["values"][0])
    lost = trials.assign(value=[-np.inf, 0.2, 0.3], act=[np.inf, 0.123456, 0.2])
    act, value = plots.parallel_coordinates(lost, ["act"]).data[0].dimensions
    assert list(value["values"]) == [0.2, 0.3]
    act, _ = plots.parallel_coordinates(lost.assign(value=0.0), ["act"]).data[0].dimensions
    assert np.isnan(act["values"][0]) and act.range[1] < 1
    with pytest.raises(ValueError, match="at least one trial with a value"):
        plots.parallel_coordinates(trials.assign(value=-np.inf), ["act"])


@pytest.mark.parametrize("diversity", [[3.0, np.nan], [np.nan] * 2])
def test_variants_without_a_diversity_are_drawn(diversity):
    ends = {f"{name}_{end}": 0.5 for name in ("novel", "metastable") for end in ("low", "high")}
    table = pd.DataFrame({"novel": [0.5, 0.5], "metastable": 0.5, **ends, "diversity": diversity})
    sizes = [trace.marker.size for trace in novelty_and_stability(table).data]
    assert sizes == [40 if np.isfinite(diversity[0]) else 10, 10]
