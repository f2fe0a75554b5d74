"""Progress bars that are still true when a notebook is opened again.

The bar of ``tqdm.auto`` is a widget in a notebook, and what a saved notebook shows of a widget
without a kernel is its beginning: 0 %. This one is text, which is saved as it was last seen.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Any

from tqdm.std import tqdm


def progress_bar(**options: Any) -> tqdm:
    """Return a bar for where this runs: text in the output of a notebook's cell, or the terminal.

    Args:
        **options: of ``tqdm``.
    """
    return (_NotebookBar if in_notebook() else tqdm)(**options)


def in_notebook() -> bool:
    """Return whether this runs in the kernel of a notebook."""
    ipython = sys.modules.get("IPython")  # A notebook's kernel has imported it.
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


def tell_terminal(line: str) -> None:
    """Write a line where the kernel of a notebook was started, such as beside papermill's bar.

    Nothing is written where there is no kernel, or where the kernel does not say where that is.
    """
    terminal = getattr(sys.stderr, "_original_stdstream_copy", None)  # of ipykernel
    if in_notebook() and isinstance(terminal, int):
        with contextlib.suppress(OSError):  # a terminal that was closed
            os.write(terminal, f"\r{line:<100}\n".encode())


class _NotebookBar(tqdm):
    """A tqdm bar that is a line of text in the output of a cell, updated in place."""

    def __init__(self, **options: Any) -> None:
        self._handle: Any = None
        super().__init__(**options, file=io.StringIO(), ncols=100, ascii=False)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Show the bar as it is now."""
        from IPython.display import display

        text = {"text/plain": str(self) if msg is None else msg}
        if self._handle is None:
            self._handle = display(text, raw=True, display_id=True)
        else:
            self._handle.update(text, raw=True)
        return True
