"""What is told of an iteration once it is safe: to the bar, and to callbacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from irlkit.utils.progress import progress_bar

Callback = Callable[[Mapping[str, float]], object]
"""Is called with a row of the history."""


class Report:
    """Shows every new row of a history on a bar, and gives callbacks a copy of it."""

    def __init__(
        self, iterations: int, done: int, progress: bool, callbacks: Sequence[Callback]
    ) -> None:
        self._bar = progress_bar(total=iterations, initial=done, disable=not progress, unit="it")
        self._callbacks = callbacks

    def __call__(self, row: Mapping[str, float], best: Mapping[str, Any] | None) -> None:
        shown = {"reward": row.get("reward"), "clip": row.get("clip_fraction")}
        shown["best"] = None if best is None else best["validation_reward"]
        self._bar.update(row["iteration"] - self._bar.n)
        self._bar.set_postfix({k: f"{v:.3f}" for k, v in shown.items() if v is not None})
        for callback in self._callbacks:
            callback(dict(row))

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()
