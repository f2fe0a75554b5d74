"""Watch a structure come into being: composition, schedule, steps, noise and seed at will."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import ipywidgets
import numpy as np
import plotly.graph_objects as go
import torch

from irlkit.crystals import CrystalBatch, validity
from irlkit.flows.dynamics import Dynamics
from irlkit.flows.schedules import Annealing, ConstantNoise, check_n_steps, time_grid
from irlkit.lab import plots
from irlkit.lab.widgets._base import Explorer, Job, numbered, observe, start_thread
from irlkit.rewards import as_reward
from irlkit.utils.checks import checked

if TYPE_CHECKING:
    from irlkit.networks.flow_model import FlowModel


SECONDS_PER_STEP = 0.15
"""Of the player, at least."""
_LARGEST = 2**53 - 1
"""Of the whole numbers that a browser knows."""


_Made = tuple[list[CrystalBatch], np.ndarray, tuple[int, str], str]
"""States, their values, number of the composition and name of the schedule, and what to say."""


class TrajectoryExplorer(Explorer):
    """One structure from noise to crystal, with the reward of every state beside it.

    The ordinary figure can be played and scrubbed without a kernel. Below it, controls generate
    another one; the live figure in its place is played with "Play" and scrubbed with the slider
    "step".

    Args:
        model: pretrained model.
        compositions: structures whose compositions can be chosen; shown as references where their
            cells are more than placeholders.
        schedules: name -> annealing; the first is shown.
        reward: structures -> ``RewardResult``, or one number per structure; None shows the
            smallest distance instead.
        n_steps: to begin with.
        seed: of the base sample, to begin with.
        label: of the reward.

    Attributes:
        states: of what is shown, on the CPU.
        values: reward of each state.

    Raises:
        ValueError: no composition or no schedule.
    """

    @checked
    def __init__(
        self,
        model: FlowModel,
        compositions: CrystalBatch,
        schedules: Mapping[str, Annealing],
        reward: Callable[[CrystalBatch], Any] | None = None,
        *,
        n_steps: int = 20,
        seed: int = 0,
        label: str = "reward",
    ) -> None:
        if not len(compositions) or not schedules:
            raise ValueError("compositions and schedules must hold at least one entry each")
        check_n_steps(n_steps)
        super().__init__()
        self.model, self.compositions, self.schedules = model, compositions, dict(schedules)
        self.reward = None if reward is None else as_reward(reward)
        self.label = label if reward is not None else "smallest distance, Å"
        late = {"continuous_update": False}
        self.composition = ipywidgets.Dropdown(
            options=numbered(compositions.reduced_formulas()), description="formula"
        )
        self.policy = ipywidgets.Dropdown(options=list(self.schedules), description="annealing")
        counts = sorted({5, 10, 20, 50, 100, n_steps})
        self.n_steps = ipywidgets.SelectionSlider(
            options=counts, value=n_steps, description="steps", **late
        )
        self.noise = ipywidgets.FloatSlider(
            min=0, max=0.5, step=0.01, value=0, description="noise σ", **late
        )
        self.seed = ipywidgets.BoundedIntText(
            value=seed, min=-_LARGEST, max=_LARGEST, description="seed"
        )
        self.scrub = ipywidgets.IntSlider(min=0, max=n_steps, value=n_steps, description="step")
        self.play = ipywidgets.ToggleButton(description="Play", icon="play")
        self._player: threading.Thread | None = None
        self._take(self._generate(Job()))
        rows = ([self.composition, self.policy, self.n_steps], [self.noise, self.seed])
        self._lay_out(*rows, [self.play, self.scrub])
        observe(lambda _: self.compute(self._generate, self._on_generated), [*rows[0], *rows[1]])
        observe(self._on_scrub, [self.scrub])
        observe(self._on_play, [self.play])

    def figure(self) -> go.Figure:
        """Return the structure with a player, and the reward of each state."""
        number, schedule = self._of
        chosen = self.compositions[number]
        placeholder = float(chosen.volume[0]) < 2.0  # A cell of 1 Å stands for none.
        return plots.trajectory_and_curves(
            self.states,
            {schedule: self.values},
            self.label,
            times=time_grid(len(self.states) - 1).numpy(),
            reference=None if placeholder else chosen.to("cpu"),
            title=f"{chosen.reduced_formulas()[0]}, {schedule}",
        )

    def _generate(self, job: Job) -> _Made:
        n_steps, of = self.n_steps.value, (self.composition.value, self.policy.value)
        batch = self.compositions[of[0]].to(self.model.device)
        generator = torch.Generator().manual_seed(self.seed.value)
        x_0 = self.model.sample_base(batch, generator).to(self.model.device)
        model = job.watch(self.model, n_steps)
        noise = {"pos": ConstantNoise(self.noise.value)} if self.noise.value > 0 else {}
        recorded: list[CrystalBatch] = []
        Dynamics(model, self.schedules[of[1]], noise).generate(
            batch, n_steps, generator=generator, x_0=x_0, record=recorded
        )
        states = [state.to("cpu") for state in recorded]
        together = CrystalBatch.concatenate(states)
        if self.reward is None:
            values = validity.check(together, min_distance=20.0).min_distance
        else:
            try:
                values = np.asarray(self.reward(together).values, dtype=float)
            except TypeError as error:
                raise ValueError(f"reward cannot judge structures: {error}") from error
        last = f"{values[-1]:.3f}" if np.isfinite(values[-1]) else "none"
        return states, values, of, f"{n_steps} steps; {self.label} at the end: {last}"

    def _take(self, made: _Made) -> None:
        self.states, self.values, self._of, self.message.value = made

    def _on_generated(self, made: _Made) -> None:
        self._take(made)
        n = len(self.states) - 1
        self.play.value = False
        self.scrub.max = self.scrub.value = n
        self.show_live()

    def _on_play(self, change: Any) -> None:
        """Go through the steps, from the first if at the last, in a thread until told to stop."""
        if change.new and (self._player is None or not self._player.is_alive()):
            self._player = start_thread(self._play)

    def _play(self) -> None:
        step = self.scrub.value if self.scrub.value < self.scrub.max else -1
        while self.play.value and step < self.scrub.max:
            began = time.monotonic()
            step += 1
            self.scrub.value = step
            time.sleep(max(SECONDS_PER_STEP - (time.monotonic() - began), 0.0))
        self.play.value = False

    def _on_scrub(self, change: Any) -> None:
        """Move the live figure, if there is one, to a state."""
        i = min(self.scrub.value, len(self.states) - 1)
        figure = self.figure()
        if figure.frames:
            for trace, number in zip(figure.frames[i].data, figure.frames[i].traces, strict=True):
                figure.data[number].update(trace.to_plotly_json(), overwrite=False)
        self.show_live(figure)
