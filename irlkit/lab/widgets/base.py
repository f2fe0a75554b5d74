"""What the explorers share: work in a thread, a live figure, and how they show themselves."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable
from typing import Any

import ipywidgets
import plotly.graph_objects as go
from IPython.display import display


class Cancelled(Exception):
    """Raised inside a job that was cancelled."""


class Job:
    """A piece of work in a thread.

    Attributes:
        share: done so far, from 0 to 1.
    """

    def __init__(self, on_progress: Callable[[float], None]) -> None:
        self._cancelled = threading.Event()
        self._on_progress = on_progress
        self._shown = 0.0
        self.share = 0.0

    def cancel(self) -> None:
        """Make the next ``progress`` of the work raise ``Cancelled``."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return self._cancelled.is_set()

    def progress(self, share: float) -> None:
        """Say how much is done; a few times per second reach the screen.

        Raises:
            Cancelled: it was cancelled.
        """
        if self.cancelled:
            raise Cancelled
        self.share = share
        if time.monotonic() - self._shown > 0.2 or share >= 1.0:
            self._shown = time.monotonic()
            self._on_progress(share)


class WatchedModel:
    """A model that reports each evaluation to a job, and stops when that is cancelled.

    Args:
        model: velocity field.
        job: to report to.
        n_evaluations: how many there will be.
    """

    def __init__(self, model: Any, job: Job, n_evaluations: int) -> None:
        self._model, self._job = model, job
        self._n, self._done = n_evaluations, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def velocity(self, *arguments: Any, **names: Any) -> Any:
        """As of the model."""
        self._job.progress(min(1.0, self._done / self._n))
        self._done += 1
        return self._model.velocity(*arguments, **names)


class Explorer:
    """A static figure, controls, and a live figure once somebody uses them.

    Subclasses make ``self.controls`` and give ``figure``; ``compute`` starts their work.
    """

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

    def figure(self) -> go.Figure:
        """What is shown, as an ordinary figure."""
        raise NotImplementedError

    def show(self) -> None:
        """Display the figure, and the controls below it; returns at once, wherever it runs."""
        display(self.figure())
        controls = self.controls._repr_mimebundle_()
        controls["text/plain"] = "Run the notebook to see the controls here."
        display(controls, raw=True)

    # ----------------------------------------------------------------------------------------------

    def compute(self, work: Callable[[Job], Any], done: Callable[[Any], None]) -> None:
        """Do work in a thread; what runs is cancelled, and only the latest is shown.

        Args:
            work: takes the job, to report progress to; its result goes to `done`.
            done: updates values and widgets, in the same thread.
        """
        self.cancel()
        before = self._thread
        job = Job(self._show_progress)
        self._job = job

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
                self.message.value = f"<b>{type(error).__name__}</b>: {error}"
            finally:
                if self._job is job:
                    self.status.layout.visibility = "hidden"

        # With the context of the cell, so that widgets know where they belong.
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(run,), daemon=True)
        self._thread.start()

    def cancel(self) -> None:
        """Stop what is being computed, soon; what is shown stays."""
        if self._job is not None:
            self._job.cancel()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for what is being computed, at most so many seconds; whether it has ended."""
        thread = self._thread
        if thread is not None:
            thread.join(timeout)
        return thread is None or not thread.is_alive()

    def _show_progress(self, share: float) -> None:
        self.status.layout.visibility = "visible"
        self.bar.value = share

    # ----------------------------------------------------------------------------------------------

    def show_live(self, figure: go.Figure | None = None) -> None:
        """Show a figure below the controls, and from then on change it in place.

        Args:
            figure: None takes ``figure``. Frames are left out: live figures have none.
        """
        new = self.figure() if figure is None else figure
        layout = new.to_plotly_json()["layout"]
        for part in ("sliders", "updatemenus"):
            layout.pop(part, None)
        if self._live is not None and [t.type for t in self._live.data] == [
            t.type for t in new.data
        ]:
            # Thousands of properties that never change.
            layout.pop("template", None)
            with self._live.batch_update():
                for trace, fresh in zip(self._live.data, new.data, strict=True):
                    trace.update(fresh.to_plotly_json(), overwrite=False)
                self._live.update_layout(layout)
            return
        try:
            live = go.FigureWidget(data=new.data, layout={**layout, "autosize": False})
        except ImportError as error:
            self.message.value += f"<br>No live figure: {error}"
            return
        # It is drawn before it has a place on the page, at a width of its own. What it reports
        # afterwards says that it has one now.
        live._config = {"responsive": True}
        live.observe(lambda _: live.update_layout(autosize=True), "_js2py_traceDeltas")
        before, self._live = self._live, live
        self.on_live(live)
        if before is None:
            note = ipywidgets.HTML("This figure follows the controls; the one above them stays.")
            self.controls.children = (*self.controls.children, note, live)
        else:
            self.controls.children = (*self.controls.children[:-1], live)

    def on_live(self, live: go.FigureWidget) -> None:
        """Called for each new live figure, before it is on screen: what it is configured with."""
