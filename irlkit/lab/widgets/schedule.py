"""Draw a schedule by its control points and see what it makes of a few structures."""

from __future__ import annotations

import html
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets
import numpy as np
import plotly.graph_objects as go
import torch

from irlkit.evaluate import metrics
from irlkit.flows.dynamics import Dynamics
from irlkit.flows.schedules import (
    FIELD_NAMES,
    ControlPointAnnealing,
    ControlPointNoise,
    NoiseSchedule,
    annealing_on_grid,
    check_n_steps,
    save_annealing,
    time_grid,
)
from irlkit.lab import plots
from irlkit.lab.widgets._base import Explorer, Job, numbered, observe
from irlkit.utils.checks import check_count, check_finite, check_kind, checked
from irlkit.utils.system import write_atomically

if TYPE_CHECKING:
    from irlkit.crystals import CrystalBatch
    from irlkit.data import CrystalDataset
    from irlkit.networks.flow_model import FlowModel

_OWN = "in the sliders"
"""What the menu calls a schedule that somebody has drawn."""


_Measured = tuple["CrystalBatch", metrics.Metrics, tuple[Any, int], str]
"""Structures, their metrics, schedule and number of steps that made them, and what to say."""


class ScheduleExplorer(Explorer):
    """Change a schedule and the number of steps, and see what becomes of a few structures.

    Making one generates the structures of the first schedule, a matter of a fraction of a second.
    ``show`` displays the result as an ordinary figure and the controls below it. When somebody
    moves a slider, or asks to drag the points in the figure, a live figure takes its place and
    follows; nothing waits for that. A menu says which of the structures is drawn.

    Args:
        model: pretrained model.
        dataset: a few structures (at most some dozen).
        schedules: name -> schedule to begin with; the first is shown.
        n_steps: number of steps to begin with.
        n_points: control points per field.
        seed: of the base sample, the same for every schedule.
        max_factor: upper end of the sliders for 1 + s; None: somewhat above all schedules.
        step_counts: numbers of steps to choose from, besides `n_steps`.
        files: whether the schedule can be written to a file; not on a page for others.

    Attributes:
        annealing: the schedule in the sliders.
        result: metrics of the structures.
        generated: the structures.
        controls: the widgets.

    Raises:
        ValueError: no schedule.
    """

    _offset, _symbol, _step = 1.0, "1 + s(t)", 0.05
    _least_top, _round_top = 8.0, 1.0
    _edits = ("shapePosition",)

    @checked
    def __init__(
        self,
        model: FlowModel,
        dataset: CrystalDataset,
        schedules: Mapping[str, Any],
        *,
        n_steps: int = 10,
        n_points: int = 5,
        seed: int = 0,
        max_factor: float | None = None,
        step_counts: Sequence[int] = (3, 5, 10, 20, 50),
        files: bool = True,
    ) -> None:
        if not schedules:
            raise ValueError("schedules must hold at least one schedule to begin with, got none")
        self._check(schedules)
        check_n_steps(n_steps)
        check_count("n_points", n_points, least=2)
        if max_factor is not None:
            check_finite("max_factor", max_factor, above=0.0)
        super().__init__()
        self.model, self.dataset, self.schedules = model, dataset, dict(schedules)
        self._seed = int(seed)
        generator = torch.Generator().manual_seed(self._seed)
        self._x_0 = model.sample_base(dataset.batch, generator).to(model.device)
        self._pool = metrics.MatchPool(0)
        self._follow = True
        self._drawing: int | None = None
        self.annealing: Any = next(iter(self.schedules.values()))
        self._make_controls(n_steps, n_points, max_factor, step_counts)
        self._set_sliders()
        self._take(self._measure(Job()))
        columns = []
        for field, sliders in self.sliders.items():
            title = ipywidgets.HTML(f"{self._symbol}, {plots.FIELD_LABELS[field]}")
            column = ipywidgets.VBox([title, ipywidgets.HBox(sliders)])
            column.layout.margin = "0 24px 0 0"
            columns.append(column)
        save = [self.path, self.save_button] if files else []
        if files:  # A visitor's browser could press a button that is not on the page.
            self.save_button.on_click(self._on_save)
        self._lay_out([self.start, self.n_steps, self.shown, self.drag], columns, save)

    def _make_controls(
        self, n_steps: int, n_points: int, max_factor: float | None, step_counts: Sequence[int]
    ) -> None:
        if max_factor is None:
            points = [self._points(entry, n_points, n_steps) for entry in self.schedules.values()]
            largest = self._offset + max(max(of) for entry in points for of in entry.values())
            rounded = np.ceil(1.25 * largest / self._round_top) * self._round_top
            max_factor = float(max(self._least_top, rounded))
        names = [*self.schedules, _OWN]
        self.start = ipywidgets.Dropdown(options=names, description="schedule")
        formulas = numbered(self.dataset.batch.reduced_formulas())
        self.shown = ipywidgets.Dropdown(options=formulas, description="structure")
        self.n_steps = ipywidgets.SelectionSlider(
            options=sorted({*step_counts, n_steps}),
            value=n_steps,
            description="steps",
            continuous_update=False,
        )
        self.sliders = {
            field: [
                ipywidgets.FloatSlider(
                    min=0.0,
                    max=max_factor,
                    step=self._step,
                    description=f"t = {t:.2f}",
                    orientation="vertical",
                    continuous_update=False,
                    layout={"height": "150px", "width": "62px"},
                )
                for t in np.linspace(0, 1, n_points)
            ]
            for field in FIELD_NAMES
        }
        self.drag = ipywidgets.Button(description="Drag the points in a figure")
        self.drag.layout.width = "220px"
        self.path = ipywidgets.Text(value="my_schedule.safetensors", description="file")
        self.save_button = ipywidgets.Button(description="Save schedule")
        observe(self._on_start, [self.start])
        observe(lambda _: self._update(), [self.n_steps])
        observe(lambda _: self.show_live(), [self.shown])
        observe(self._on_slider, self._all_sliders())
        self.drag.on_click(lambda _: self.show_live())

    # ----------------------------------------------------------------------------------------------
    # What another quantity than s(t) does differently
    # ----------------------------------------------------------------------------------------------

    @staticmethod
    def _check(schedules: Mapping[str, Any]) -> None:
        check_kind("schedules", schedules, Mapping[str, Callable])

    @staticmethod
    def _points(schedule: Any, n_points: int, n_steps: int) -> dict[str, tuple[float, ...]]:
        points = ControlPointAnnealing.from_annealing(schedule, n_points, n_steps)
        return {field: getattr(points, field) for field in FIELD_NAMES}

    @staticmethod
    def _schedule(points: Mapping[str, tuple[float, ...]]) -> Any:
        return ControlPointAnnealing(**points)

    def _curves(self, schedule: Any, times: torch.Tensor) -> dict[str, np.ndarray]:
        with torch.no_grad():
            s = annealing_on_grid(schedule, times.float().to(self.model.device))
        return {field: 1.0 + s[field].cpu().double().numpy() for field in FIELD_NAMES}

    def _dynamics(self, model: Any) -> Dynamics:
        return Dynamics(model, self.annealing)

    def _write(self, path: str | Path) -> None:
        save_annealing(self.annealing, path, {"made by": "ScheduleExplorer"})

    # ----------------------------------------------------------------------------------------------

    @checked
    def save(self, path: str | Path) -> Path:
        """Write the schedule of the sliders.

        Args:
            path: an annealing is a safetensors file for ``irlkit.flows.schedules.load_annealing``,
                noise is JSON: field -> arguments of ``irlkit.flows.schedules.ControlPointNoise``.
        """
        self._write(path)
        return Path(path)

    def figure(self) -> go.Figure:
        """Return the schedule, a structure, and the displacement of each from its reference."""
        schedule, n_steps = self._of
        times, i = time_grid(n_steps), self.shown.value
        curves = self._curves(schedule, times)
        figure = plots.schedule_and_structures(
            times[:-1].numpy(),
            curves,
            self.result.table,
            crystal=self.generated[i],
            number=i,
            label=self._symbol,
        )
        ends = np.concatenate([*curves.values(), [0, self.sliders["pos"][0].max]])
        figure.update_yaxes(range=[ends.min(), ends.max()], row=1, col=1)
        return figure

    def _all_sliders(self) -> list[ipywidgets.FloatSlider]:
        return [slider for sliders in self.sliders.values() for slider in sliders]

    def _handles(self) -> list[dict[str, Any]]:
        """Return the control points as circles."""
        size = {"xsizemode": "pixel", "ysizemode": "pixel", "x0": -9, "x1": 9, "y0": -9, "y1": 9}
        circle = {"type": "circle", "xref": "x", "yref": "y", "opacity": 0.6, **size}
        handles = []
        for sliders, color in zip(self.sliders.values(), (plots.BLUE, plots.RED), strict=True):
            for t, slider in zip(np.linspace(0, 1, len(sliders)), sliders, strict=True):
                place = {"xanchor": float(t), "yanchor": float(slider.value)}
                handles.append({**circle, **place, "fillcolor": color, "line": {"color": color}})
        return handles

    def _decorate(self, figure: go.Figure) -> None:
        figure.update_layout(shapes=self._handles())

    def _draw(self, new: go.Figure) -> None:
        # What this thread changes is no drag; somebody may drag meanwhile, in another.
        self._drawing = threading.get_ident()
        super()._draw(new)
        self._drawing = None

    def _on_drag(self, layout: Any, shapes: Sequence[Any]) -> None:
        """Make the heights of handles that were moved the sliders' values."""
        sliders = self._all_sliders()
        if self._drawing == threading.get_ident() or len(shapes) != len(sliders):
            return
        self._move(
            [
                height if shape.yanchor == slider.value else shape.yanchor
                for height, shape, slider in zip(self._heights, shapes, sliders, strict=True)
            ]
        )
        self._on_slider(None)

    def _move(self, heights: Sequence[float]) -> None:
        """Set sliders without following each of them; they may not reach as far as a schedule."""
        self._heights = [float(height) for height in heights]
        self._follow = False
        for slider, height in zip(self._all_sliders(), self._heights, strict=True):
            slider.value = float(np.clip(height, slider.min, slider.max))
        self._follow = True

    def _measure(self, job: Job) -> _Measured:
        started = time.perf_counter()
        n_steps, of = self.n_steps.value, (self.annealing, self.n_steps.value)
        dynamics = self._dynamics(job.watch(self.model, n_steps))
        batch = self.dataset.batch.to(self.model.device)
        draws = torch.Generator().manual_seed(self._seed + 1)
        generated = dynamics.generate(batch, n_steps, generator=draws, x_0=self._x_0).to("cpu")
        result = metrics.evaluate(generated, self.dataset, self._pool)
        text = (
            f"{result.n_structures} structures in {n_steps} steps: METRe {result.metre:.0%}, "
            f"cRMSE {result.crmse:.3f} ({time.perf_counter() - started:.2f} s)"
        )
        return generated, result, of, text

    def _take(self, measured: _Measured) -> None:
        self.generated, self.result, self._of, self.message.value = measured

    def _set_sliders(self) -> None:
        points = self._points(self.annealing, len(self.sliders["pos"]), self.n_steps.value)
        heights = [self._offset + value for field in self.sliders for value in points[field]]
        self._move(heights)

    def _on_start(self, change: Any) -> None:
        if change["new"] == _OWN:  # what is in the sliders
            return
        self.annealing = self.schedules[change["new"]]
        self._set_sliders()
        self._update()

    def _on_slider(self, change: Any) -> None:
        if self._follow:
            sliders = self._all_sliders()
            self._heights = [
                height if slider.value == np.clip(height, slider.min, slider.max) else slider.value
                for height, slider in zip(self._heights, sliders, strict=True)
            ]
            values = np.array(self._heights).reshape(len(self.sliders), -1) - self._offset
            points = {f: tuple(of.tolist()) for f, of in zip(self.sliders, values, strict=True)}
            self.annealing = self._schedule(points)
            self.start.value = _OWN
            self._update()

    def _on_save(self, _: Any) -> None:
        try:
            path = self.save(self.path.value)
        except (OSError, ValueError) as error:
            self.message.value = f"not saved: {html.escape(str(error))}"
        else:
            self.message.value = f"saved as {html.escape(str(path))}"

    def _update(self) -> None:
        self.compute(self._measure, self._on_measured)

    def _on_measured(self, measured: _Measured) -> None:
        self._take(measured)
        self.show_live()


class NoiseExplorer(ScheduleExplorer):
    """The same for noise: sigma(t) of a perturbation of every coordinate (Eq. 13).

    Args:
        model: pretrained model.
        dataset: a few structures.
        schedules: name -> field -> noise schedule, with both fields.
        **options: of ``ScheduleExplorer``; ``max_factor`` is the upper end for sigma.
    """

    _offset, _symbol, _step = 0.0, "σ(t)", 0.005
    _least_top, _round_top = 0.2, 0.1

    @staticmethod
    def _check(schedules: Mapping[str, Any]) -> None:
        check_kind("schedules", schedules, Mapping[str, Mapping[str, NoiseSchedule]])
        for name, schedule in schedules.items():
            if set(schedule) != set(FIELD_NAMES):
                raise ValueError(
                    f"schedules[{name!r}] must be for {FIELD_NAMES}, got {sorted(schedule)}"
                )

    @staticmethod
    def _points(schedule: Any, n_points: int, n_steps: int) -> dict[str, tuple[float, ...]]:
        return {
            field: ControlPointNoise.from_noise(schedule[field], n_points).values
            for field in FIELD_NAMES
        }

    @staticmethod
    def _schedule(points: Mapping[str, tuple[float, ...]]) -> dict[str, NoiseSchedule]:
        # Exactly zero everywhere is no noise schedule; a millionth is none in effect.
        return {
            field: ControlPointNoise(tuple(max(v, 1e-6) for v in p)) for field, p in points.items()
        }

    def _curves(self, schedule: Any, times: torch.Tensor) -> dict[str, np.ndarray]:
        return {field: schedule[field](times[:-1]).numpy() for field in FIELD_NAMES}

    def _dynamics(self, model: Any) -> Dynamics:
        return Dynamics(model, noise=self.annealing)

    def _write(self, path: str | Path) -> None:
        n_points = len(self.sliders["pos"])
        values = {}
        for field, entry in self.annealing.items():
            if not isinstance(entry, ControlPointNoise):
                entry = ControlPointNoise.from_noise(entry, n_points)
            values[field] = {"values": entry.values}
        write_atomically(path, json.dumps(values, indent=1).encode())
