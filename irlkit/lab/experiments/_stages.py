"""A line per stage of an experiment: how long it has taken, and how long it may still take."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from irlkit.utils.progress import tell_terminal


def announce(
    folder: Path,
    name: str,
    elapsed: float,
    seconds: Mapping[str, float],
    planned: Mapping[str, float],
) -> None:
    """Say which stage begins, in ``log.txt`` and where a notebook's kernel was started.

    Args:
        folder: of ``log.txt``.
        name: of the stage.
        elapsed: seconds since the experiment began.
        seconds: of the stages that are done.
        planned: stage -> seconds that it was expected to take, as far as known. What is to come is
            corrected by how much longer or shorter the stages that are done took.
    """
    line = f"{in_words(elapsed)} gone, {name} begins"
    if planned:
        done = sum(planned[stage] for stage in planned if stage in seconds)
        took = sum(seconds[stage] for stage in planned if stage in seconds)
        ahead = sum(value for stage, value in planned.items() if stage not in seconds)
        line += f", about {in_words(ahead * (took / done if done > 0 else 1.0))} to go"
    with (folder / "log.txt").open("a", encoding="utf-8") as file:
        file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n")
    tell_terminal(f"{folder.name}: {line}")


def in_words(seconds: float) -> str:
    """A duration in the unit that suits it."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"
