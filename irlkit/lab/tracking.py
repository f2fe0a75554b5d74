"""Callbacks of ``GRPOTrainer.run``: an iteration becomes a line of a file, or points of a tracker.

    trainer.run(callbacks=[tracking.log_lines("runs/a/log.txt"), tracking.tensorboard("runs/a")])

A run that is continued goes on where it was. What a tracker needs is the extra ``tracking``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from irlkit.rl._reporting import Callback
from irlkit.utils.checks import checked

_INSTALL = 'install it with pip install "irlkit[tracking]"'
_SHOWN = ("reward", "validation_reward", "clip_fraction", "non_finite")


@checked
def log_lines(path: str | Path) -> Callback:
    """Return a callback that adds a line to a file: time, iteration, rewards, clips, seconds.

    Args:
        path: of the file, which is made with its folder when the first line is written.
    """
    path = Path(path)

    def callback(row: Mapping[str, float]) -> None:
        words = [time.strftime("%Y-%m-%d %H:%M:%S"), f"iteration {row['iteration']:.0f}"]
        words += [f"{name} {value:.4g}" for name, value in _points(row).items() if name in _SHOWN]
        seconds = sum(value for name, value in row.items() if name.endswith("_seconds"))
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write("  ".join([*words, f"{seconds:.1f} s\n"]))

    return callback


@checked
def tensorboard(folder: str | Path) -> Callback:
    """Return a callback that writes all numbers of an iteration for TensorBoard.

    Args:
        folder: what ``tensorboard --logdir`` is given. The points of a run that is continued are
            in a further file there.

    Raises:
        ImportError: tensorboard is missing.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(f"{error}; {_INSTALL}") from error
    writer = SummaryWriter(str(folder))

    def callback(row: Mapping[str, float]) -> None:
        for name, value in _points(row).items():
            writer.add_scalar(name, value, int(row["iteration"]))
        writer.flush()

    return callback


@checked
def trackio(project: str, name: str | None = None, **options: Any) -> Callback:
    """Return a callback that logs all numbers of an iteration with Trackio, on this machine.

    Args:
        project: of the dashboard (``trackio show --project``).
        name: of the run; one that is there is continued. None: Trackio makes one up.
        **options: of ``trackio.init``, such as `config`.

    Raises:
        ImportError: trackio is missing.
    """
    try:
        import trackio as tracker
    except ImportError as error:
        raise ImportError(f"{error}; {_INSTALL}") from error
    run = tracker.init(project, name, **{"resume": "allow", "embed": False, **options})

    def callback(row: Mapping[str, float]) -> None:
        run.log(_points(row), step=int(row["iteration"]))

    return callback


def _points(row: Mapping[str, float]) -> dict[str, float]:
    """What can be drawn: no nan, such as a validation that there was not."""
    return {k: float(v) for k, v in row.items() if k != "iteration" and not math.isnan(v)}
