"""The explorer with a small model that nobody trained."""

import ipywidgets
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch

from irlkit import widgets
from irlkit.datasets import CrystalDataset
from irlkit.schedules import LinearAnnealing, NoAnnealing
from tests.toys import ToyModel, crystals


@pytest.fixture
def dataset():
    batch = crystals(dtype=torch.float32)
    formulas = batch.reduced_formulas()
    table = pd.DataFrame(
        {"material_id": formulas, "formula": formulas, "n_atoms": batch.n_atoms.numpy()}
    )
    return CrystalDataset("toy", "test", batch, table)


@pytest.fixture
def explorer(dataset):
    model = ToyModel(dtype=torch.float32)
    model.device = torch.device("cpu")
    schedules = {"linear": LinearAnnealing(2.0, 0.5), "none": NoAnnealing()}
    return widgets.ScheduleExplorer(model, dataset, schedules, n_steps=4, n_points=3)


def values(explorer, field):
    return [slider.value for slider in explorer.sliders[field]]


def test_it_is_complete_without_anybody(explorer):
    assert explorer.n_steps.value == 4
    np.testing.assert_allclose(values(explorer, "pos"), [1.0, 2.0, 3.0], atol=1e-6)
    np.testing.assert_allclose(values(explorer, "cell"), [1.0, 1.25, 1.5], atol=1e-6)
    assert explorer.result.n_structures == 4
    assert "METRe" in explorer.message.value
    figure = explorer.figure()
    assert type(figure) is go.Figure
    t = np.array(figure.data[0].x)
    np.testing.assert_allclose(figure.data[0].y, 1 + 2 * t, rtol=1e-6)


def test_no_output_widget_is_used(explorer):
    found, stack = [], [explorer.controls]
    while stack:
        widget = stack.pop()
        found.append(widget)
        stack.extend(getattr(widget, "children", ()))
    assert not any(isinstance(widget, ipywidgets.Output) for widget in found)


def test_show_displays_an_ordinary_figure_and_the_controls(explorer, monkeypatch):
    shown = []
    monkeypatch.setattr(widgets, "display", lambda entry, raw=False: shown.append(entry))
    explorer.show()
    figure, controls = shown
    assert type(figure) is go.Figure
    view = controls["application/vnd.jupyter.widget-view+json"]
    assert view["model_id"] == explorer.controls.model_id
    assert "Run the notebook" in controls["text/plain"], "what a reader sees without a kernel"


def test_sliders_make_a_schedule_and_structures(explorer):
    n = explorer.model.n_evaluations
    explorer.sliders["pos"][1].value = 5.0
    assert explorer.model.n_evaluations == n + 4, "one integration of four steps"
    s = explorer.annealing(torch.tensor([0.0, 0.25, 0.5, 1.0]), torch.full((4,), 0.25))
    np.testing.assert_allclose(s["pos"], [0.0, 2.0, 4.0, 2.0], atol=1e-6)
    np.testing.assert_allclose(s["cell"], [0.0, 0.125, 0.25, 0.5], atol=1e-6)


def test_beginning_with_another_schedule_integrates_once(explorer):
    n = explorer.model.n_evaluations
    explorer.start.value = "none"
    assert explorer.model.n_evaluations == n + 4
    assert isinstance(explorer.annealing, NoAnnealing)
    assert values(explorer, "pos") == [1.0, 1.0, 1.0]


def test_number_of_steps(explorer):
    n = explorer.model.n_evaluations
    explorer.n_steps.value = 10
    assert explorer.model.n_evaluations == n + 10
    assert len(explorer.figure().data[0].x) == 10


def test_a_live_figure_appears_and_follows(explorer):
    pytest.importorskip("anywidget")
    before = len(explorer.controls.children)
    explorer.n_steps.value = 10
    live = explorer.controls.children[-1]
    assert len(explorer.controls.children) == before + 2, "a note and the figure"
    explorer.sliders["cell"][0].value = 7.0
    assert len(explorer.controls.children) == before + 2
    assert live.data[1].y[0] == pytest.approx(7.0, abs=0.1)


def test_without_anywidget_the_numbers_are_there(explorer, monkeypatch):
    def missing(figure):
        raise ImportError("Please install anywidget")

    monkeypatch.setattr(widgets.go, "FigureWidget", missing)
    explorer.n_steps.value = 10
    assert "10 steps" in explorer.message.value
    assert "Please install anywidget" in explorer.message.value


def test_the_same_schedule_gives_the_same_structures(explorer):
    first = explorer.result.table
    explorer.start.value = "none"
    explorer.start.value = "linear"
    pd.testing.assert_frame_equal(first, explorer.result.table)


def test_no_schedule_is_refused(dataset):
    with pytest.raises(ValueError, match="at least one schedule"):
        widgets.ScheduleExplorer(ToyModel(), dataset, {})


def test_control_points_hold_their_values():
    annealing = widgets.ControlPointAnnealing((0.0, 1.0, -0.5), (2.0, 4.0))
    t = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
    s = annealing(t, torch.full_like(t, 0.1))
    np.testing.assert_allclose(s["pos"], [0.0, 0.5, 1.0, 0.25, -0.5])
    np.testing.assert_allclose(s["cell"], [2.0, 2.5, 3.0, 3.5, 4.0])
    points = widgets.ControlPointAnnealing.from_annealing(annealing, 3, 10)
    assert points.pos == annealing.pos


def test_one_control_point_is_refused():
    with pytest.raises(ValueError, match="two or more"):
        widgets.ControlPointAnnealing((1.0,), (1.0, 2.0))


def test_sliders_reach_somewhat_above_the_schedules(explorer):
    assert explorer.sliders["pos"][0].max == 8.0, "at least"
    model = explorer.model
    steep = {"steep": LinearAnnealing(9.0, 0.5)}
    other = widgets.ScheduleExplorer(model, explorer.dataset, steep, n_steps=4)
    assert other.sliders["cell"][0].max == 13.0
    np.testing.assert_allclose(values(other, "pos")[-1], 10.0, atol=0.05)
