"""The explorer with a small model that nobody trained."""

import json
import threading
from types import SimpleNamespace

import ipywidgets
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch

from irlkit.data import CrystalDataset
from irlkit.flows.schedules import ConstantNoise, LinearAnnealing, NoAnnealing, load_annealing
from irlkit.lab import widgets
from irlkit.lab.widgets import trajectory
from irlkit.rewards import as_reward
from irlkit.rl.policies import AnnealingPolicy
from irlkit.rl.trainer import GRPOTrainer
from tests.toys import ToyModel, crystals, trainer_config, volume_reward


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
    monkeypatch.setattr(widgets._base, "display", lambda entry, **options: shown.append(entry))
    explorer.show()
    figure, controls = shown
    assert "application/vnd.plotly.v1+json" in figure, "an ordinary figure, saved as it is"
    view = controls["application/vnd.jupyter.widget-view+json"]
    assert view["model_id"] == explorer.controls.model_id
    assert "Run the notebook" in controls["text/plain"], "what a reader sees without a kernel"


def test_sliders_make_a_schedule_and_structures(explorer):
    n = explorer.model.n_evaluations
    explorer.sliders["pos"][1].value = 5.0
    assert explorer.wait(60)
    assert explorer.model.n_evaluations == n + 4, "one integration of four steps"
    s = explorer.annealing(torch.tensor([0.0, 0.25, 0.5, 1.0]), torch.full((4,), 0.25))
    np.testing.assert_allclose(s["pos"], [0.0, 2.0, 4.0, 2.0], atol=1e-6)
    np.testing.assert_allclose(s["cell"], [0.0, 0.125, 0.25, 0.5], atol=1e-6)


def test_beginning_with_another_schedule_integrates_once(explorer):
    n = explorer.model.n_evaluations
    explorer.start.value = "none"
    assert explorer.wait(60)
    assert explorer.model.n_evaluations == n + 4
    assert isinstance(explorer.annealing, NoAnnealing)
    assert values(explorer, "pos") == [1.0, 1.0, 1.0]


def test_number_of_steps(explorer):
    n = explorer.model.n_evaluations
    explorer.n_steps.value = 10
    assert explorer.wait(60)
    assert explorer.model.n_evaluations == n + 10
    assert len(explorer.figure().data[0].x) == 10


def test_a_live_figure_takes_the_place_of_the_static_one(explorer, monkeypatch):
    pytest.importorskip("anywidget")
    before, updates = len(explorer.controls.children), []
    handle = SimpleNamespace(update=lambda bundle, raw: updates.append(bundle))
    monkeypatch.setattr(widgets._base, "display", lambda *entry, **options: handle)
    explorer.show()
    explorer.n_steps.value = 10
    assert explorer.wait(60)
    live = explorer.controls.children[0]
    assert len(explorer.controls.children) == before + 1
    assert updates == [{"text/plain": "", "text/html": ""}], "nothing stale is left"
    explorer.sliders["cell"][0].value = 7.0
    assert explorer.wait(60)
    assert len(explorer.controls.children) == before + 1 and len(updates) == 1
    assert live.data[1].y[0] == pytest.approx(7.0, abs=0.1)


def test_menus_say_what_is_shown(explorer):
    explorer.sliders["pos"][1].value = 5.0
    assert explorer.wait(60)
    assert explorer.start.value == "in the sliders"
    explorer.start.value = "none"
    assert explorer.wait(60)
    assert values(explorer, "pos") == [1.0, 1.0, 1.0] and explorer.start.value == "none"
    explorer.shown.value = 2
    titles = [note.text for note in explorer.figure().layout.annotations]
    assert titles[1] == f"3: {explorer.generated.reduced_formulas()[2]}"
    drawn = [t for t in explorer.figure().data if t.type == "mesh3d"]
    assert {t.name for t in drawn} == set(explorer.generated[2].to_structures()[0].symbol_set)


def test_without_anywidget_the_numbers_are_there(explorer, monkeypatch):
    def missing(**parts):
        raise ImportError("Please install anywidget")

    monkeypatch.setattr(widgets._base.go, "FigureWidget", missing)
    explorer.n_steps.value = 10
    assert explorer.wait(60)
    assert "10 steps" in explorer.message.value
    assert "Please install anywidget" in explorer.message.value
    for shown in (2, 1):
        explorer.shown.value = shown
    assert explorer.message.value.count("Please install anywidget") == 1


def test_what_is_drawn_is_what_was_computed(explorer, monkeypatch):
    """Also where the next choice failed, or was cancelled."""
    before = explorer.figure()

    def fails(*arguments, **options):
        raise RuntimeError("judge <gone> & lost")

    monkeypatch.setattr(widgets.schedule.metrics, "evaluate", fails)
    explorer.n_steps.value = 20
    explorer.start.value = "none"
    assert explorer.wait(60)
    assert "judge &lt;gone&gt; &amp; lost" in explorer.message.value
    after = explorer.figure()
    for ours, theirs in zip(before.data, after.data, strict=True):
        assert ours.to_json() == theirs.to_json()


def test_a_slider_moves_its_point_alone(dataset):
    """Sliders do not reach as far as some schedules."""
    model = ToyModel(dtype=torch.float32)
    model.device = torch.device("cpu")
    schedules = {"down": LinearAnnealing(-3.0, 0.5), "up": LinearAnnealing(9.0, 0.0)}
    explorer = widgets.ScheduleExplorer(
        model, dataset, schedules, n_steps=4, n_points=3, max_factor=2.0
    )
    assert values(explorer, "pos") == [1.0, 0.0, 0.0]
    times = torch.linspace(0, 1, 5)
    before = explorer._curves(explorer.annealing, times)
    low, high = explorer.figure().layout.yaxis.range
    assert low == pytest.approx(before["pos"].min(), abs=0.01) and high == 2.0
    explorer.sliders["cell"][0].value = 2.0
    assert explorer.wait(60)
    np.testing.assert_allclose(explorer.annealing.pos, [0.0, -1.5, -3.0], atol=1e-6)
    assert explorer.annealing.cell[0] == 1.0
    explorer.start.value = "up"
    assert explorer.wait(60)
    assert explorer.figure().layout.yaxis.range[1] > 2.0
    heights = [SimpleNamespace(yanchor=slider.value) for slider in explorer._all_sliders()]
    heights[0].yanchor = 0.5
    explorer._on_drag(None, heights)
    assert explorer.wait(60)
    np.testing.assert_allclose(explorer.annealing.pos, [-0.5, 4.5, 9.0], atol=1e-6)


def test_a_live_figure_forgets_the_notes_that_a_new_one_lacks(explorer):
    pytest.importorskip("anywidget")
    first, second = explorer.figure(), explorer.figure()
    first.layout.annotations = [{"text": "one"}, {"text": "two"}]
    first.layout.scene.annotations = [{"text": "a"}]
    second.layout.annotations = [{"text": "three"}]
    second.layout.scene.annotations = ()
    explorer.show_live(first)
    explorer.show_live(second)
    assert [note.text for note in explorer._live.layout.annotations] == ["three"]
    assert not explorer._live.layout.scene.annotations


def test_the_same_schedule_gives_the_same_structures(explorer):
    first = explorer.result.table
    explorer.start.value = "none"
    assert explorer.wait(60)
    explorer.start.value = "linear"
    assert explorer.wait(60)
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


# --------------------------------------------------------------------------------------------------


def all_widgets(controls):
    found, stack = [], [controls]
    while stack:
        found.append(stack.pop())
        stack.extend(getattr(found[-1], "children", ()))
    return found


def test_dragged_handles_become_the_schedule(explorer):
    pytest.importorskip("anywidget")
    explorer.show_live()
    live = explorer.controls.children[0]
    shapes = [shape.to_plotly_json() for shape in live.layout.shapes]
    assert len(shapes) == 6 and shapes[1]["yanchor"] == pytest.approx(2.0, abs=0.05)
    # What arrives from a browser after somebody has dragged a handle.
    shapes[1] = {**shapes[1], "xanchor": 0.7, "yanchor": 4.0}
    live.layout.shapes = shapes
    assert explorer.wait(60)
    assert values(explorer, "pos")[1] == 4.0
    assert isinstance(explorer.annealing, widgets.ControlPointAnnealing)
    moved = live.layout.shapes[1]
    assert (moved.xanchor, moved.yanchor) == (0.5, 4.0), "times of control points are fixed"
    np.testing.assert_allclose(live.data[0].y[2], 4.0, atol=0.05)


def test_an_edited_schedule_is_saved_and_loaded(explorer, tmp_path):
    explorer.sliders["pos"][0].value = 3.0
    assert explorer.wait(60)
    explorer.path.value = str(tmp_path / "mine.safetensors")
    explorer.save_button.click()
    assert load_annealing(tmp_path / "mine.safetensors") == explorer.annealing
    explorer.path.value = str(tmp_path / "no" / "\0")
    explorer.save_button.click()
    assert "not saved" in explorer.message.value


def test_noise_is_edited_likewise(dataset, tmp_path):
    model = ToyModel(dtype=torch.float32)
    model.device = torch.device("cpu")
    noise = {"small": {field: ConstantNoise(0.1) for field in ("pos", "cell")}}
    explorer = widgets.NoiseExplorer(model, dataset, noise, n_steps=4, n_points=3)
    np.testing.assert_allclose(explorer.figure().data[0].y, 0.1)
    explorer.sliders["pos"][2].value = 0.15
    assert explorer.wait(60)
    assert explorer.annealing["pos"].values == pytest.approx((0.1, 0.1, 0.15))
    explorer.save(tmp_path / "noise.json")
    saved = json.loads((tmp_path / "noise.json").read_text())
    assert widgets.ControlPointNoise(**saved["pos"]).values == pytest.approx((0.1, 0.1, 0.15))


@pytest.mark.parametrize("points", [(0.1,), (0.0, 0.0), (0.1, -0.1), (0.1, float("nan"))])
def test_what_is_no_noise_is_refused(points):
    with pytest.raises(ValueError, match="values must"):
        widgets.ControlPointNoise(points)


def test_later_work_replaces_earlier(explorer):
    done = []
    begun = threading.Event()

    def endless(job):
        while True:
            begun.set()
            job.progress(0.5)

    explorer.compute(endless, done.append)
    assert begun.wait(60)
    explorer.compute(lambda job: "second", done.append)
    assert explorer.wait(60)
    assert done == ["second"]


def test_cancelled_work_ends_and_errors_are_shown(explorer):
    def endless(job):
        while True:
            job.progress(0.5)

    explorer.compute(endless, lambda result: None)
    explorer.stop.click()
    assert explorer.wait(60)
    assert explorer.status.layout.visibility == "hidden"
    explorer.compute(lambda job: 1 / 0, lambda result: None)
    assert explorer.wait(60)
    assert "ZeroDivisionError" in explorer.message.value


def test_integration_stops_in_the_middle():
    job = widgets._base.Job(lambda share: setattr(job, "cancelled", share > 0.3))
    job._shown = -1e9
    model = job.watch(ToyModel(), 10)
    with pytest.raises(widgets._base.Cancelled):
        for share in range(10):
            job._shown = -1e9
            batch = crystals()
            model.velocity(torch.tensor(share / 10), batch.pos, batch.cell, batch)
    assert model.n_evaluations < 10


@pytest.fixture
def toy():
    model = ToyModel(dtype=torch.float32)
    model.device = torch.device("cpu")
    return model


def test_trajectories_of_a_choice(toy):
    schedules = {"none": NoAnnealing(), "linear": LinearAnnealing(2.0, 0.5)}
    explorer = widgets.TrajectoryExplorer(
        toy, crystals(dtype=torch.float32), schedules, volume_reward, n_steps=5
    )
    assert len(explorer.states) == len(explorer.values) == 6
    first = explorer.figure()
    assert len(first.frames) == 6
    explorer.policy.value = "linear"
    assert explorer.wait(60)
    assert not torch.equal(explorer.states[-1].cell, explorer.states[0].cell)
    assert explorer.values[-1] != first.data[-2].y[-1]
    explorer.n_steps.value = 10
    assert explorer.wait(60)
    assert explorer.scrub.max == explorer.scrub.value == 10
    assert not any(isinstance(w, ipywidgets.Output) for w in all_widgets(explorer.controls))


def test_a_trajectory_that_failed_leaves_the_one_before(toy):
    batch = crystals(dtype=torch.float32)
    formulas = batch.reduced_formulas()

    def reward(structures):
        if structures.reduced_formulas()[0] == formulas[1]:
            raise RuntimeError("cannot be judged")
        return volume_reward(structures)

    explorer = widgets.TrajectoryExplorer(toy, batch, {"none": NoAnnealing()}, reward, n_steps=4)
    before = explorer.figure().layout.title.text
    assert formulas[0] in before
    explorer.composition.value = 1
    assert explorer.wait(60)
    assert "cannot be judged" in explorer.message.value
    assert explorer.figure().layout.title.text == before
    explorer.seed.value = 3_000_000_000
    assert explorer.seed.value == 3_000_000_000 and explorer.wait(60)


def test_scrubbing_moves_the_live_figure(toy):
    pytest.importorskip("anywidget")
    explorer = widgets.TrajectoryExplorer(
        toy, crystals(dtype=torch.float32), {"none": NoAnnealing()}, n_steps=5
    )
    explorer.scrub.value = 2
    live = explorer.controls.children[0]
    (mark,) = (trace for trace in live.data if trace.name == "now")
    assert mark.x[0] == pytest.approx(float(explorer.figure().data[-2].x[2]))
    explorer.scrub.value = 4
    assert explorer.controls.children[0] is live
    assert mark.x[0] == pytest.approx(float(explorer.figure().data[-2].x[4]))


def test_play_goes_through_the_steps(toy, monkeypatch):
    monkeypatch.setattr(trajectory, "SECONDS_PER_STEP", 0.01)
    explorer = widgets.TrajectoryExplorer(
        toy, crystals(dtype=torch.float32), {"none": NoAnnealing()}, n_steps=5
    )
    seen = []
    explorer.scrub.observe(lambda change: seen.append(change.new), "value")
    explorer.play.value = True
    explorer._player.join(60)
    assert seen == [0, 1, 2, 3, 4, 5] and explorer.play.value is False
    explorer.scrub.value = 3
    seen.clear()
    explorer.play.value = True
    explorer._player.join(60)
    assert seen == [4, 5], "from where it is"
    seen.clear()
    explorer.scrub.observe(lambda change: setattr(explorer.play, "value", False), "value")
    explorer.play.value = True
    explorer._player.join(60)
    assert seen == [0], "until it is told to stop"


def test_noise_and_seed_change_the_trajectory(toy):
    explorer = widgets.TrajectoryExplorer(
        toy, crystals(dtype=torch.float32), {"none": NoAnnealing()}, n_steps=5
    )
    quiet = explorer.states
    explorer.noise.value = 0.2
    assert explorer.wait(60)
    assert torch.equal(quiet[0].pos, explorer.states[0].pos), "the same x_0"
    assert not torch.equal(quiet[-1].pos, explorer.states[-1].pos)
    explorer.seed.value = 7
    assert explorer.wait(60)
    assert not torch.equal(quiet[0].pos, explorer.states[0].pos)


def test_training_is_stopped_and_continued(toy):
    config = trainer_config(n_groups=1, group_size=4, n_steps=2, n_ppo_epochs=1)
    trainer = GRPOTrainer(AnnealingPolicy(toy), volume_reward, crystals(), config)
    board = widgets.TrainingDashboard(trainer, 4, seconds=0.0)
    assert board.go.description == "Start"
    assert type(board.figure()) is go.Figure
    trainer.run(1, progress=False)
    reward, asked = trainer.reward, threading.Event()

    def stop_at_once(structures):
        board.cancel()
        asked.set()
        return reward(structures)

    trainer.reward = as_reward(stop_at_once)
    board.start()
    assert board.wait(60) and asked.is_set()
    assert trainer.iteration == 2 and board.go.description == "Continue"
    assert trainer._state()["planned"] == 4
    trainer.reward = reward
    board.go.click()
    assert board.wait(60)
    assert trainer.iteration == 4 and board.go.description == "Done"
    assert list(trainer.history["iteration"].dropna()) == [1, 2, 3, 4]
    assert "iteration 4 of 4" in board.message.value
    assert len(board.diagnostics().data)
    board.start()
    assert trainer.iteration == 4


def test_empty_choices_are_refused(toy):
    nothing = crystals()[:0]
    with pytest.raises(ValueError, match="at least one entry"):
        widgets.TrajectoryExplorer(toy, nothing, {"none": NoAnnealing()})
    with pytest.raises(ValueError, match="trainer must be a GRPOTrainer, got None"):
        widgets.TrainingDashboard(None, 0)
