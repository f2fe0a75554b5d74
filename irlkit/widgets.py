"""Explorers for people; they call ``irlkit.plots`` and complete headless without anybody.

Values are watched with ``observe``: widgets that capture output can hang a headless run.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ipywidgets
import numpy as np
import plotly.graph_objects as go
import torch
from IPython.display import display
from torch import Tensor

from irlkit import metrics, plots
from irlkit.sampler import integrate
from irlkit.schedules import FIELD_NAMES, Annealing, annealing_on_grid, check_n_steps, time_grid

if TYPE_CHECKING:
    from irlkit.datasets import CrystalDataset
    from irlkit.model import FlowModel


@dataclass(frozen=True)
class ControlPointAnnealing:
    """s(t) by linear interpolation between values at equally spaced times from 0 to 1.

    Args:
        pos: values for the fractional coordinates, two or more.
        cell: values for the lattice vectors, two or more.

    Raises:
        ValueError: fewer than two values.
    """

    pos: tuple[float, ...]
    cell: tuple[float, ...]

    def __post_init__(self) -> None:
        for field in FIELD_NAMES:
            if len(getattr(self, field)) < 2:
                raise ValueError(f"{field} must have two or more values, got {self}")

    def __call__(self, t: Tensor, dt: Tensor) -> dict[str, Tensor]:
        s = {}
        for field in FIELD_NAMES:
            values = torch.tensor(getattr(self, field), dtype=t.dtype, device=t.device)
            place = t.clamp(0, 1) * (len(values) - 1)
            left = place.floor().long().clamp(max=len(values) - 2)
            s[field] = torch.lerp(values[left], values[left + 1], place - left)
        return s

    @classmethod
    def from_annealing(
        cls, annealing: Annealing, n_points: int, n_steps: int
    ) -> ControlPointAnnealing:
        """Points of another schedule, whose step size is that of `n_steps`."""
        with torch.no_grad():
            t = torch.linspace(0, 1, n_points)
            s = annealing(t, torch.full_like(t, 1.0 / n_steps))
        return cls(*(tuple(s[field].tolist()) for field in FIELD_NAMES))


class ScheduleExplorer:
    """Change a schedule and the number of steps, and see what becomes of a few structures.

    Making one generates the structures of the first schedule, a matter of a fraction of a second.
    ``show`` displays the result as an ordinary figure and the controls below it. When somebody
    moves a control, a live figure appears and follows; nothing waits for that.

    Args:
        model: pretrained model.
        dataset: a few structures (at most some dozen).
        schedules: name -> schedule to begin with; the first is shown.
        n_steps: number of steps to begin with.
        n_points: control points per field.
        seed: of the base sample, the same for every schedule.
        max_factor: upper end of the sliders for 1 + s; None: somewhat above all schedules.
        step_counts: numbers of steps to choose from, besides `n_steps`.

    Attributes:
        annealing: the schedule in the sliders.
        result: metrics of the structures.
        controls: the widgets.

    Raises:
        ValueError: no schedule.
    """

    def __init__(
        self,
        model: FlowModel,
        dataset: CrystalDataset,
        schedules: Mapping[str, Annealing],
        *,
        n_steps: int = 10,
        n_points: int = 5,
        seed: int = 0,
        max_factor: float | None = None,
        step_counts: Sequence[int] = (3, 5, 10, 20, 50),
    ) -> None:
        if not schedules:
            raise ValueError("schedules must hold at least one schedule to begin with, got none")
        check_n_steps(n_steps)
        self.model, self.dataset, self.schedules = model, dataset, dict(schedules)
        generator = torch.Generator().manual_seed(seed)
        self._x_0 = model.sample_base(dataset.batch, generator).to(model.device)
        self._pool = metrics.MatchPool(0)
        self._live: go.FigureWidget | None = None
        self._follow = True
        if max_factor is None:
            points = [
                ControlPointAnnealing.from_annealing(schedule, n_points, n_steps)
                for schedule in self.schedules.values()
            ]
            largest = max(1.0 + value for point in points for value in (*point.pos, *point.cell))
            max_factor = float(max(8.0, np.ceil(1.25 * largest)))
        self.start = ipywidgets.Dropdown(options=list(self.schedules), description="begin with")
        counts = sorted({*step_counts, n_steps})
        self.n_steps = ipywidgets.SelectionSlider(
            options=counts, value=n_steps, description="steps", continuous_update=False
        )
        self.sliders = {
            field: [
                ipywidgets.FloatSlider(
                    min=0.0,
                    max=max_factor,
                    step=0.05,
                    description=f"t = {t:.2f}",
                    orientation="vertical",
                    continuous_update=False,
                    layout={"height": "150px", "width": "62px"},
                )
                for t in np.linspace(0, 1, n_points)
            ]
            for field in FIELD_NAMES
        }
        self.message = ipywidgets.HTML()
        self.annealing: Annealing = self.schedules[self.start.value]
        self._set_sliders()
        self.result = self._measure()
        self.controls = ipywidgets.VBox(
            [
                ipywidgets.HBox([self.start, self.n_steps]),
                ipywidgets.HBox(
                    [
                        ipywidgets.VBox(
                            [
                                ipywidgets.HTML(f"1 + s(t), {plots.FIELD_LABELS[field]}"),
                                ipywidgets.HBox(sliders),
                            ]
                        )
                        for field, sliders in self.sliders.items()
                    ]
                ),
                self.message,
            ]
        )
        self.start.observe(self._on_start, names="value")
        self.n_steps.observe(self._on_steps, names="value")
        for sliders in self.sliders.values():
            for slider in sliders:
                slider.observe(self._on_slider, names="value")

    def figure(self) -> go.Figure:
        """The schedule and the displacement of each structure from its reference."""
        times = time_grid(self.n_steps.value)
        with torch.no_grad():
            s = annealing_on_grid(self.annealing, times.float().to(self.model.device))
        curves = {field: 1.0 + s[field].cpu().double().numpy() for field in FIELD_NAMES}
        return plots.schedule_and_structures(times[:-1].numpy(), curves, self.result.table)

    def show(self) -> None:
        """Display the figure, and the controls below it."""
        display(self.figure())
        controls = self.controls._repr_mimebundle_()
        controls["text/plain"] = "Run the notebook to see the controls here."
        display(controls, raw=True)

    def _measure(self) -> metrics.Metrics:
        started = time.perf_counter()
        generated = integrate(
            self.model,
            self.dataset.batch.to(self.model.device),
            self.n_steps.value,
            annealing=self.annealing,
            x_0=self._x_0,
        )
        result = metrics.evaluate(generated.to("cpu"), self.dataset, self._pool)
        self.message.value = (
            f"{result.n_structures} structures in {self.n_steps.value} steps: METRe "
            f"{result.metre:.0%}, cRMSE {result.crmse:.3f} "
            f"({time.perf_counter() - started:.2f} s)"
        )
        return result

    def _set_sliders(self) -> None:
        points = ControlPointAnnealing.from_annealing(
            self.annealing, len(self.sliders["pos"]), self.n_steps.value
        )
        self._follow = False
        for field, sliders in self.sliders.items():
            for slider, value in zip(sliders, getattr(points, field), strict=True):
                slider.value = float(np.clip(1.0 + value, slider.min, slider.max))
        self._follow = True

    def _on_start(self, change: Any) -> None:
        self.annealing = self.schedules[change["new"]]
        self._set_sliders()
        self._update()

    def _on_steps(self, change: Any) -> None:
        self._update()

    def _on_slider(self, change: Any) -> None:
        if self._follow:
            values = {
                field: tuple(slider.value - 1.0 for slider in sliders)
                for field, sliders in self.sliders.items()
            }
            self.annealing = ControlPointAnnealing(**values)
            self._update()

    def _update(self) -> None:
        self.result = self._measure()
        new = self.figure()
        if self._live is None:
            try:
                self._live = go.FigureWidget(new)
            except ImportError as error:
                self.message.value += f"<br>No live figure: {error}"
                return
            note = ipywidgets.HTML("This figure follows the controls; the one above them stays.")
            self.controls.children = (*self.controls.children, note, self._live)
            return
        with self._live.batch_update():
            for trace, fresh in zip(self._live.data, new.data, strict=True):
                trace.x, trace.y = fresh.x, fresh.y
