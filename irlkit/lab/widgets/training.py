"""Training that one can watch, stop and continue."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import ipywidgets
import plotly.graph_objects as go

from irlkit.lab import plots
from irlkit.lab.widgets._base import Explorer, Job
from irlkit.utils.checks import check_count, checked

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
        self, trainer: GRPOTrainer, iterations: int, *, seconds: float = 1.0, label: str = "reward"
    ) -> None:
        check_count("iterations", iterations)
        super().__init__()
        self.trainer, self.iterations, self.label = trainer, iterations, label
        self._seconds = seconds
        self.go = ipywidgets.Button(description=self._word())
        self.stop.description = "Stop"
        self._lay_out([self.go])
        self.go.on_click(lambda _: self.start())
        self._say()

    def figure(self) -> go.Figure:
        """Return rewards of rollouts and of validation against the iteration."""
        columns = ["iteration", "reward", "validation_reward"]
        history = self.trainer.history.reindex(columns=columns).astype(float).assign(seed=0)
        return plots.training_curves(history, self.label)

    def diagnostics(self) -> go.Figure:
        """Return spread in groups, clipping, ratios, KL, gradient and time by iteration."""
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

        def watch(row: Any) -> None:
            nonlocal shown
            if job.cancelled:
                raise KeyboardInterrupt  # After which the trainer is as after this iteration.
            self._show_progress(self.trainer.iteration / self.iterations)
            self._say()
            if time.monotonic() - shown > self._seconds:
                self.show_live()
                shown = time.monotonic()

        try:
            self.trainer.run(self.iterations, progress=False, callbacks=[watch])
            self._say()
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
