"""Training that one can watch, stop and continue."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import ipywidgets
import pandas as pd
import plotly.graph_objects as go

from irlkit.lab import plots
from irlkit.lab.widgets.base import Explorer, Job
from irlkit.utils.checks import checked

if TYPE_CHECKING:
    from irlkit.rl.trainer import GRPOTrainer


class TrainingDashboard(Explorer):
    """Curves of a trainer while it runs, with buttons to stop and continue.

    ``show`` displays what there is and the buttons, and returns. In a run without anybody, call
    ``trainer.run`` before it: the dashboard then shows the finished training.

    Args:
        trainer: any; what it has done before is shown.
        iterations: where "continue" goes to.
        seconds: between updates of the live figure.
        label: of the reward.

    Raises:
        ValueError: ``iterations`` is not positive.
    """

    @checked
    def __init__(
        self,
        trainer: GRPOTrainer,
        iterations: int,
        *,
        seconds: float = 1.0,
        label: str = "reward",
    ) -> None:
        if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
            raise ValueError(f"iterations must be a positive integer, got {iterations!r}")
        super().__init__()
        self.trainer, self.iterations, self.label = trainer, iterations, label
        self._seconds = seconds
        self.go = ipywidgets.Button(description=self._word())
        self.stop.description = "Stop"
        self.controls = ipywidgets.VBox([ipywidgets.HBox([self.go, self.status]), self.message])
        self.go.on_click(lambda _: self.start())
        self._say()

    def figure(self) -> go.Figure:
        """Rewards of rollouts and validation, and the diagnostics below them."""
        history = self.trainer.history
        if not len(history) or "reward" not in history:
            empty: dict[str, list[float]] = {
                name: [] for name in ("iteration", "reward", "validation_reward")
            }
            history = pd.DataFrame(empty, dtype=float)
        history = history.assign(seed=0)
        if "validation_reward" not in history:
            history = history.assign(validation_reward=float("nan"))
        return plots.training_curves(history, self.label)

    def diagnostics(self) -> go.Figure:
        """Spread in groups, clipping, ratios, KL, gradient and time."""
        return plots.grpo_diagnostics(self.trainer.history)

    def start(self) -> None:
        """Train on in a thread, up to ``iterations``."""
        if self.trainer.iteration >= self.iterations:
            self._say()
            return
        if self.wait(0):
            self.go.disabled = True
            self.compute(self._train, lambda _: None)

    def _train(self, job: Job) -> None:
        shown = 0.0
        try:
            while self.trainer.iteration < self.iterations and not job.cancelled:
                self.trainer.run(self.trainer.iteration + 1, progress=False)
                self._show_progress(self.trainer.iteration / self.iterations)
                self._say()
                if time.monotonic() - shown > self._seconds:
                    self.show_live()
                    shown = time.monotonic()
        finally:
            self.go.disabled = False
            self.go.description = self._word()
            self.show_live()

    def _word(self) -> str:
        if self.trainer.iteration >= self.iterations:
            return "Done"
        return "Continue" if self.trainer.iteration else "Start"

    def _say(self) -> None:
        history = self.trainer.history
        text = f"iteration {self.trainer.iteration} of {self.iterations}"
        if len(history) and "reward" in history and history["reward"].notna().any():
            text += f", {self.label} {history['reward'].dropna().iloc[-1]:.3f}"
        if self.trainer.best is not None:
            best: Any = self.trainer.best
            text += f", best validation {best['validation_reward']:.3f}"
        self.message.value = text
