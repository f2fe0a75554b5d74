"""Notebook 04's explorer as a page for a class, without the notebook's training.

Each visitor has a kernel. Where that is safe (Linux), kernels are forks of this process, which has
imported and tried everything before the first visitor comes: they begin in a fraction of a second
and share its memory.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from irlkit.lab.notebooks.stripping import to_text

KERNEL = "irlkit-page"
_REMOTE = re.compile(r'<link[^>]*\bhref="https?://[^"]*"[^>]*>')
_TITLE = "Velocity annealing: draw your own schedule"
_TEXT = f"""# {_TITLE}

A flow model makes a crystal structure of noise by following a velocity b(t, x) from t = 0 to t = 1
in a few steps. The schedule multiplies the velocity by 1 + s(t), for the positions of the atoms and
for the cell. It begins as reinforcement learning found it.

Press **Drag the points in a figure** and drag, choose another number of steps, or begin with
another schedule: the same noise is integrated anew, and a second figure shows the schedule and how
far each structure ends from its reference (lower is better). *METRe* is the share of references
found, *cRMSE* their mean displacement, counting 0.5 for those not found.
"""


def explorer_page(
    results: str | Path | None = None, output: str | Path | None = None, kernel: str = "python3"
) -> Path:
    """Write the notebook of the page: a text, and a cell that shows the explorer.

    Args:
        results: ``out_dir`` of notebook 04; None: the results in the package.
        output: None: ``runs/pages/04_explorer.ipynb``.
        kernel: name of its kernel.
    """
    place = None if results is None else str(Path(results).resolve())
    source = (
        "from irlkit.lab import widgets\n"
        "from irlkit.lab.experiments.finished import load_finished\n\n"
        f"found = load_finished({place!r})\n"
        "explorer = widgets.ScheduleExplorer(\n"
        "    found.model, found.structures, found.schedules, n_steps=found.n_steps, files=False\n"
        ")\n"
        "explorer.show()\n"
    )
    cells: list[dict[str, Any]] = [
        {"cell_type": "markdown", "id": "text", "metadata": {}, "source": [_TEXT]},
        {
            "cell_type": "code",
            "id": "explorer",
            "metadata": {},
            "source": source.splitlines(keepends=True),
            "execution_count": None,
            "outputs": [],
        },
    ]
    metadata = {
        "kernelspec": {"display_name": kernel, "language": "python", "name": kernel},
        "language_info": {"name": "python"},
        "title": _TITLE,
    }
    notebook = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    target = Path("runs/pages/04_explorer.ipynb") if output is None else Path(output)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(to_text(notebook), encoding="utf-8")
    return target


def serve_explorer(
    results: str | Path | None = None, port: int = 8866, host: str = "127.0.0.1"
) -> int:
    """Serve notebook 04's explorer until it is ended; returns the exit status.

    Args:
        results: ``out_dir`` of notebook 04; None: the results in the package.
        port: of the page.
        host: address to listen at; "0.0.0.0" for the whole network.

    Raises:
        FileNotFoundError: a file is missing in `results`.
        ImportError: Voila is missing.
        ValueError: `results` are not those of notebook 04.
    """
    _check_voila()
    if sys.platform != "linux":
        return serve_page(explorer_page(results), port, host)
    _warm_up(results)
    with tempfile.TemporaryDirectory(prefix="irlkit-page-") as folder:
        address = str(Path(folder) / "socket")
        _write_kernel(Path(folder), address)
        command, environment = _voila(
            Path(folder), explorer_page(results, None, KERNEL), port, host
        )
        with socket.socket(socket.AF_UNIX) as listener, _terminated_like_interrupted():
            listener.bind(address)
            listener.listen(64)
            voila = subprocess.Popen(command, env=environment)
            try:
                return _fork_kernels(listener, voila)
            finally:
                voila.terminate()
                voila.wait()
    return 0


def serve_page(page: Path, port: int = 8866, host: str = "127.0.0.1") -> int:
    """Serve a notebook, which each visitor's kernel executes; returns the exit status.

    Args:
        page: notebook.
        port: of the page.
        host: address to listen at.

    Raises:
        ImportError: Voila is missing.
    """
    _check_voila()
    with tempfile.TemporaryDirectory(prefix="irlkit-page-") as folder:
        command, environment = _voila(Path(folder), page, port, host)
        return subprocess.run(command, env=environment, check=False).returncode


def _check_voila() -> None:
    if importlib.util.find_spec("voila") is None:
        raise ImportError('voila is missing; install it with pip install "irlkit[voila]"')


def _voila(folder: Path, page: Path, port: int, host: str) -> tuple[list[str], dict[str, str]]:
    """Command and environment."""
    _write_templates(folder)
    command = [sys.executable, "-m", "voila", str(page), "--no-browser"]
    command += [f"--port={port}", f"--Voila.ip={host}"]
    # A cell may take longer than the half minute that Voila grants.
    command += ["--VoilaExecutor.timeout=600"]
    # Kernels of pages that were closed without a word, such as a laptop's lid.
    command += ["--MappingKernelManager.cull_idle_timeout=300"]
    command += ["--MappingKernelManager.cull_interval=60"]
    places = (str(folder), os.environ.get("JUPYTER_PATH", ""))
    environment = {**os.environ, "JUPYTER_PATH": os.pathsep.join(filter(None, places))}
    # Kernels share the cores: threads of one would wait for those of another.
    environment["OMP_NUM_THREADS"] = "1"
    return command, environment


def _write_templates(folder: Path) -> None:
    """Voila's templates without style sheets from the network, which a page would wait for.

    What they hold are icons, which no explorer has.
    """
    from jupyter_core.paths import jupyter_path

    for name in ("lab/index.html.j2", "base/page.html"):
        for place in jupyter_path("voila", "templates"):
            original = Path(place) / name
            if original.is_file():
                target = folder / "voila" / "templates" / name
                target.parent.mkdir(parents=True)
                text = _REMOTE.sub("", original.read_text(encoding="utf-8"))
                target.write_text(text, encoding="utf-8")
                break


# --------------------------------------------------------------------------------------------------
# Kernels as forks
# --------------------------------------------------------------------------------------------------


def _write_kernel(folder: Path, address: str) -> None:
    client = Path(__file__).with_name("_kernel_client.py")
    # -I and -S: nothing of site-packages is looked for or imported.
    argv = [sys.executable, "-I", "-S", str(client), address, "{connection_file}"]
    place = folder / "kernels" / KERNEL
    place.mkdir(parents=True)
    spec = {"argv": argv, "display_name": KERNEL, "language": "python"}
    (place / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")


def _warm_up(results: str | Path | None) -> None:
    """Do once what each kernel will: import, read, compute and draw.

    In one thread, since threads do not survive a fork.
    """
    import ipywidgets
    import torch

    from irlkit.lab.experiments.finished import load_finished
    from irlkit.lab.widgets import ScheduleExplorer

    torch.set_num_threads(1)
    found = load_finished(results)
    explorer = ScheduleExplorer(found.model, found.structures, found.schedules, n_steps=3)
    explorer.show_live()
    ipywidgets.Widget.close_all()
    del explorer, found
    # Whose end a kernel watches is read at the import.
    os.environ["JPY_PARENT_PID"] = str(os.getpid())
    importlib.import_module("ipykernel.kernelapp")
    importlib.import_module("ipykernel.ipkernel")
    del os.environ["JPY_PARENT_PID"]
    gc.collect()
    gc.freeze()  # so that the kernels' collections do not write to shared memory


def _fork_kernels(listener: socket.socket, voila: subprocess.Popen[bytes]) -> int:
    """Fork a kernel for each client, until Voila ends; returns its exit status."""
    kernels: set[int] = set()
    listener.settimeout(0.5)
    while (status := voila.poll()) is None:
        kernels = {kernel for kernel in kernels if os.waitpid(kernel, os.WNOHANG) == (0, 0)}
        try:
            client, _ = listener.accept()
        except TimeoutError:
            continue
        kernel = os.fork()
        if kernel == 0:
            try:
                listener.close()
                _become_kernel(client)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)
        kernels.add(kernel)
        client.close()
    return status


def _become_kernel(client: socket.socket) -> None:
    """What a fork does: an ordinary kernel, which ends with its client."""
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    client.settimeout(None)
    length, files, _, _ = socket.recv_fds(client, 4, 3)
    for stream, file in enumerate(files):
        os.dup2(file, stream)
        os.close(file)
    size, text = int.from_bytes(length, "big"), b""
    while len(text) < size:
        part = client.recv(size - len(text))
        if not part:  # gone before it has said what it wants
            return
        text += part
    request = json.loads(text)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    threading.Thread(target=_follow, args=(client,), daemon=True).start()

    import ipywidgets
    import plotly.io
    from ipykernel.kernelapp import IPKernelApp

    app = IPKernelApp.instance()
    app.initialize(["-f", request["connection_file"]])
    # These were imported before there was a notebook to be in.
    ipywidgets.load_ipython_extension(app.shell)
    plotly.io.renderers.default = "plotly_mimetype"
    app.start()


def _follow(client: socket.socket) -> None:
    """Interrupt this kernel when its client says so, end it when that has ended."""
    while client.recv(1):
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(0)


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM ends this process as Ctrl+C does, so that Voila is ended too."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)
