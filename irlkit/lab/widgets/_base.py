"""What the explorers share: work in a thread, a live figure, and how they show themselves."""

from __future__ import annotations

import contextvars
import html
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import ipywidgets
import plotly.graph_objects as go
import plotly.io as pio
from IPython.display import display


class Cancelled(Exception):
    """Raised inside a job that was cancelled."""


class Job:
    """A piece of work in a thread.

    Args:
        on_progress: called with the share that is done, from 0 to 1, a few times per second.

    Attributes:
        cancelled: set to make the next ``progress`` of the work raise ``Cancelled``.
    """

    def __init__(self, on_progress: Callable[[float], None] = lambda share: None) -> None:
        self.cancelled = False
        self._on_progress = on_progress
        self._shown = 0.0

    def progress(self, share: float) -> None:
        """Say how much is done, from 0 to 1.

        Raises:
            Cancelled: it was cancelled.
        """
        if self.cancelled:
            raise Cancelled
        if time.monotonic() - self._shown > 0.2 or share >= 1.0:
            self._shown = time.monotonic()
            self._on_progress(share)

    def watch(self, model: Any, n_evaluations: int) -> Any:
        """Return a model that reports each of so many evaluations, and stops when cancelled."""
        return _WatchedModel(model, self, n_evaluations)


class _WatchedModel:
    def __init__(self, model: Any, job: Job, n_evaluations: int) -> None:
        self._model, self._job, self._n, self._done = model, job, n_evaluations, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def velocity(self, *arguments: Any, **names: Any) -> Any:
        self._job.progress(min(1.0, self._done / self._n))
        self._done += 1
        return self._model.velocity(*arguments, **names)


class Explorer:
    """A static figure with controls; once somebody uses them, a live figure takes its place.

    Subclasses give ``figure``, call ``_lay_out`` with rows of widgets, and ``compute`` when one of
    them changes.
    """

    _edits: tuple[str, ...] = ()
    """What can be dragged in a live figure, such as "shapePosition"."""

    def __init__(self) -> None:
        self.message = ipywidgets.HTML()
        self.bar = ipywidgets.FloatProgress(min=0, max=1, layout={"width": "160px"})
        self.stop = ipywidgets.Button(description="Cancel", layout={"width": "80px"})
        self.status = ipywidgets.HBox([self.bar, self.stop], layout={"visibility": "hidden"})
        self.stop.on_click(lambda _: self.cancel())
        self.controls = ipywidgets.VBox([self.message, self.status])
        self._job: Job | None = None
        self._thread: threading.Thread | None = None
        self._live: go.FigureWidget | None = None
        self._lock = threading.RLock()  # of the live figure
        self._still: Any = None  # handle of the static figure, where it is shown

    def figure(self) -> go.Figure:
        """Return what is shown, as an ordinary figure."""
        raise NotImplementedError

    def show(self) -> None:
        """Display the figure, and the controls below it; returns at once, wherever it runs."""
        figure = pio.renderers["plotly_mimetype"].to_mimebundle(self.figure().to_dict())
        self._still = display(figure, raw=True, display_id=True)
        controls = self.controls._repr_mimebundle_()
        controls["text/plain"] = "Run the notebook to see the controls here."
        display(controls, raw=True)

    def _lay_out(self, *rows: Iterable[Any]) -> None:
        """Put rows of widgets above the message and the progress."""
        rows_of_widgets = [ipywidgets.HBox(list(row)) for row in rows]
        self.controls = ipywidgets.VBox([*rows_of_widgets, self.message, self.status])

    # ----------------------------------------------------------------------------------------------

    def compute(self, work: Callable[[Job], Any], done: Callable[[Any], None]) -> None:
        """Do work in a thread; what runs is cancelled, and only the latest is shown.

        Args:
            work: takes the job, to report progress to; its result goes to `done`.
            done: updates values and widgets, in the same thread.
        """
        self.cancel()
        before = self._thread
        job = self._job = Job(self._show_progress)

        def run() -> None:
            if before is not None:
                before.join()
            try:
                if not job.cancelled:
                    self._show_progress(0.0)
                    result = work(job)
                    if not job.cancelled:
                        done(result)
            except Cancelled:
                pass
            except Exception as error:  # shown to the person who moved the control
                self.message.value = f"<b>{type(error).__name__}</b>: {html.escape(str(error))}"
            finally:
                if self._job is job:
                    self.status.layout.visibility = "hidden"

        self._thread = start_thread(run)

    def cancel(self) -> None:
        """Stop what is being computed, soon; what is shown stays."""
        if self._job is not None:
            self._job.cancelled = True

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for what is being computed, at most so many seconds; return whether it has ended."""
        if self._thread is not None:
            self._thread.join(timeout)
        return self._thread is None or not self._thread.is_alive()

    def _show_progress(self, share: float) -> None:
        self.status.layout.visibility = "visible"
        self.bar.value = share

    # ----------------------------------------------------------------------------------------------

    def show_live(self, figure: go.Figure | None = None) -> None:
        """Show a figure in place of the static one, and from then on change it in place.

        Args:
            figure: None takes ``figure``. Frames are left out: live figures have none.
        """
        with self._lock:
            self._draw(self.figure() if figure is None else figure)

    def _draw(self, new: go.Figure) -> None:
        """Make this the live figure, or change that to it."""
        self._decorate(new)
        layout = new.to_plotly_json()["layout"]
        for part in ("sliders", "updatemenus"):
            layout.pop(part, None)
        before = self._live
        if before is not None and [t.type for t in before.data] == [t.type for t in new.data]:
            layout.pop("template", None)  # thousands of properties that never change
            # An update keeps what the new layout lacks.
            before.layout.annotations = layout.pop("annotations", ())
            for name in [name for name in layout if name.startswith("scene")]:
                before.layout[name].annotations = layout[name].pop("annotations", ())
            with before.batch_update():
                for trace, fresh in zip(before.data, new.data, strict=True):
                    trace.update(fresh.to_plotly_json(), overwrite=False)
                before.update_layout(layout)
            return
        try:
            live = go.FigureWidget(data=new.data, layout={**layout, "autosize": False})
        except ImportError as error:
            text = f"<br>No live figure: {html.escape(str(error))}"
            self.message.value = self.message.value.removesuffix(text) + text
            return
        # It is drawn before it has a place on the page, at a width of its own. What it reports
        # afterwards says that it has one now.
        live._config = {"responsive": True, "edits": dict.fromkeys(self._edits, True)}
        live.observe(lambda _: live.update_layout(autosize=True), "_js2py_traceDeltas")
        live.layout.on_change(self._on_drag, "shapes")
        self._live = live
        others = self.controls.children[0 if before is None else 1 :]
        self.controls.children = (live, *others)
        if self._still is not None:  # Nothing is left to say what is no longer so.
            self._still.update({"text/plain": "", "text/html": ""}, raw=True)
            self._still = None

    def _decorate(self, figure: go.Figure) -> None:
        """Add to a figure what only a live one has."""

    def _on_drag(self, layout: Any, shapes: Any) -> None:
        """Take over shapes that somebody has dragged."""


def start_thread(run: Callable[[], None]) -> threading.Thread:
    """Run a function in a thread with the context of the cell, so that widgets know their place."""
    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(run,), daemon=True)
    thread.start()
    return thread


def numbered(formulas: Iterable[str]) -> list[tuple[str, int]]:
    """Return options of a menu; two of them may have one formula.

    >>> numbered(["NaCl", "NaCl"])
    [('1: NaCl', 0), ('2: NaCl', 1)]
    """
    return [(f"{i + 1}: {formula}", i) for i, formula in enumerate(formulas)]


def observe(changed: Callable[[Any], None], widgets: Iterable[Any]) -> None:
    """Call a function whenever one of some widgets gets another value."""
    for widget in widgets:
        widget.observe(changed, names="value")
