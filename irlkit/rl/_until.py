"""A run that an interruption ends with an error, where the trainer itself ends quietly."""

from __future__ import annotations

import pandas as pd

from irlkit.rl.trainer import GRPOTrainer


def train_until(trainer: GRPOTrainer, iterations: int, progress: bool = False) -> pd.DataFrame:
    """Run a trainer to an iteration and return its history.

    Raises:
        KeyboardInterrupt: interrupted; the trainer itself only returns earlier.
    """
    history = trainer.run(iterations, progress=progress)
    if trainer.iteration < iterations:
        raise KeyboardInterrupt(f"stopped at iteration {trainer.iteration} of {iterations}")
    return history
