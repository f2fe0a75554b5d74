"""Figures and explorers in a real browser: exported HTML, and JupyterLab with and without a kernel.

Needs playwright and a Chromium. With IRLKIT_RUN_BROWSER=1, JupyterLab is driven as well: saved
figures, control points, and every notebook with its quick preset, which takes minutes.
"""

import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import warnings
from pathlib import Path

import numpy as np
import pytest

from irlkit.lab import notebooks
from tests.notebook_results import check_results

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ROOT = Path(__file__).parents[1]
TIMEOUT = 90_000
"""Milliseconds that anything may take on a slow and busy machine; nothing waits without need."""
# Where a kernel writes what its threads are at, should it run for long, and the lines that ask so.
STACKS = "stacks.txt"
WRITE_STACKS = f"""
import faulthandler
faulthandler.dump_traceback_later(280, repeat=True, file=open({STACKS!r}, "w"))
"""
OPENED_AGAIN = ("00_quickstart", "04_velocity_annealing")
"""Notebooks that are opened again when they are saved: all figures are drawn twice more."""
# Software rendering: there is no graphics card where tests run.
ARGUMENTS = (
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
)
in_jupyterlab = pytest.mark.skipif(
    os.environ.get("IRLKIT_RUN_BROWSER") != "1", reason="takes minutes; IRLKIT_RUN_BROWSER=1"
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the PATH")

MAKE_FIGURES = """
import torch
from irlkit.lab import plots
from tests.toys import crystals

state = crystals((3,))
states = [state.replace(cell=(1 + 0.1 * i) * state.cell) for i in range(4)]
plots.trajectories({"toy": states}).show()
plots.distributions({"a": [0.0, 1.0, 2.0]}, "reward").show()
"""
MAKE_EXPLORER = """
import torch
import irlkit
from irlkit import data as datasets
from irlkit.lab import widgets
from irlkit.flows.schedules import LinearAnnealing

few = datasets.load("prototypes", "test").select(100 * torch.arange(8))
explorer = widgets.ScheduleExplorer(
    irlkit.load_pretrained("linear-ode"), few, {"linear": LinearAnnealing(2.0, 0.5)}, n_points=3
)
explorer.show()
"""

MAKE_TRAINING = """
import irlkit
from irlkit import data as datasets, rewards
from irlkit.lab import widgets
from tests.toys import trainer_config
from irlkit.rl.policies import AnnealingPolicy
from irlkit.rl.trainer import GRPOTrainer

model = irlkit.load_pretrained("linear-ode")
few = datasets.load("prototypes", "test").select(range(4)).batch
config = trainer_config(n_groups=1, group_size=4, n_steps=3, n_ppo_epochs=1)
reward = rewards.FunctionReward(lambda batch: -batch.volume)
trainer = GRPOTrainer(AnnealingPolicy(model), reward, few, config)
board = widgets.TrainingDashboard(trainer, 100_000, seconds=0.5)
board.show()
"""
MAKE_TRAJECTORY = """
from irlkit.flows.schedules import LinearAnnealing, NoAnnealing

schedules = {"none": NoAnnealing(), "linear": LinearAnnealing(2.0, 0.5)}
trajectory = widgets.TrajectoryExplorer(model, few, schedules, n_steps=10)
trajectory.show()
"""


def write_notebook(path, *sources):
    nbformat = pytest.importorskip("nbformat")
    cells = [nbformat.v4.new_code_cell(source.strip()) for source in sources]
    metadata = notebooks.strip({"cells": [], "metadata": {}})["metadata"]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Notebooks with figures: executed, and not."""
    papermill = pytest.importorskip("papermill")
    folder = tmp_path_factory.mktemp("lab")
    path = f"import sys; sys.path.insert(0, {str(ROOT)!r})"
    source = write_notebook(folder / "source.ipynb", path, MAKE_FIGURES)
    papermill.execute_notebook(
        source, folder / "executed.ipynb", progress_bar=False, execution_timeout=600
    )
    write_notebook(folder / "explorer.ipynb", path, MAKE_EXPLORER)
    write_notebook(folder / "training.ipynb", path, MAKE_TRAINING, MAKE_TRAJECTORY)
    return folder


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield chromium
        chromium.close()


def wait_for(server, address):
    """Wait until a server that was started answers."""
    end = time.monotonic() + TIMEOUT / 1000
    while True:
        try:
            return urllib.request.urlopen(address, timeout=30).read()
        except OSError as error:
            if server.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"no answer from {address}") from error
        time.sleep(0.5)


def find_free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def lab(folder, tmp_path_factory):
    """Address of a JupyterLab that serves the folder."""
    pytest.importorskip("jupyterlab")
    port = find_free_port()
    config = tmp_path_factory.mktemp("config")
    settings = config / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')
    # All cells are in the page, whether on screen or not, and nothing moves while they are drawn.
    settings = config / "lab" / "user-settings" / "@jupyterlab" / "notebook-extension"
    settings.mkdir(parents=True)
    (settings / "tracker.jupyterlab-settings").write_text('{"windowingMode": "none"}')
    # Dash has an extension that JupyterLab would like to be built with, and asks.
    (config / "labconfig" / "page_config.d").mkdir(parents=True)
    shutil.copy(
        ROOT / "irlkit" / "lab" / "notebooks" / "page_config.json",
        config / "labconfig" / "page_config.d",
    )
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
        *(f"--port={port}", "--ServerApp.port_retries=0", "--IdentityProvider.token="),
        "--ServerApp.disable_check_xsrf=True",
        f"--ServerApp.root_dir={folder}",
    ]
    environment = {**os.environ, "JUPYTER_CONFIG_DIR": str(config)}
    environment |= {"JUPYTERLAB_SETTINGS_DIR": str(config / "lab" / "user-settings")}
    # The browser draws meanwhile: threads that wait for one another then slow everything down.
    environment |= {"OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(server, f"{address}/api")
        yield address
    finally:
        server.terminate()
        server.wait(60)


def new_page(browser, **options):
    page = browser.new_context(viewport={"width": 1300, "height": 1000}, **options).new_page()
    page.set_default_timeout(TIMEOUT)
    return page


def is_drawn(element):
    """Some pixels differ from the most frequent colour."""
    image = pytest.importorskip("PIL.Image").open(io.BytesIO(element.screenshot())).convert("RGB")
    pixels = np.asarray(image).reshape(-1, 3)
    _, counts = np.unique(pixels, axis=0, return_counts=True)
    return len(counts) > 20 and counts.max() < 0.995 * len(pixels)


def wait_until(page, condition, seconds=TIMEOUT / 1000):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        page.wait_for_timeout(250)
    return False


def active(plot):
    """Place of a figure's slider."""
    return plot.evaluate("g => g._fullLayout.sliders[0].active")


def use_the_player(page, plot):
    """Click on the slider, and play."""
    plot.scroll_into_view_if_needed()
    last = plot.evaluate("g => g._fullLayout.sliders[0]._stepCount") - 1
    assert active(plot) == last
    assert wait_until(page, lambda: is_drawn(plot))
    before = plot.screenshot()

    def click_on_the_slider():
        # Measured and clicked again until it moves: the page may still be changing its layout.
        rail = plot.query_selector(".slider-rail-touch-rect")
        box = rail.bounding_box()
        page.mouse.click(box["x"] + 0.34 * box["width"], box["y"] + box["height"] / 2)
        return wait_until(page, lambda: 0 < active(plot) < last, 10)

    assert wait_until(page, click_on_the_slider)
    assert wait_until(page, lambda: plot.screenshot() != before)
    plot.evaluate("g => {g.seen = 0; g.on('plotly_animatingframe', () => {g.seen += 1;});}")
    plot.query_selector(".updatemenu-button").click()
    assert wait_until(page, lambda: plot.evaluate("g => g.seen") > last), "all frames are played"
    assert wait_until(page, lambda: active(plot) == last)


def test_exported_html_is_alive_without_a_network(browser, folder):
    path = notebooks.export(folder / "executed.ipynb")
    assert path.stat().st_size < 8e6
    page = new_page(browser, offline=True)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_selector(".gl-container canvas")
    assert not [url for url in asked if url.startswith("http")]
    first, second = page.query_selector_all(".plotly-graph-div")
    assert wait_until(page, lambda: is_drawn(first)) and is_drawn(second)
    use_the_player(page, first)
    page.context.close()


def open_notebook(browser, lab, name, **options):
    page = new_page(browser, **options)
    page.goto(f"{lab}/doc/tree/{name}?reset", wait_until="commit")
    page.wait_for_selector(".jp-Notebook")
    return page


def sessions_of(lab):
    return json.loads(urllib.request.urlopen(f"{lab}/api/sessions").read())


def close(page, lab, name):
    """Close a notebook's page and end its kernel."""
    page.context.close()
    for session in sessions_of(lab):
        if session["path"] == name:
            address = f"{lab}/api/sessions/{session['id']}"
            urllib.request.urlopen(urllib.request.Request(address, method="DELETE"))


def is_alive(page, plot):
    """Whether the figure is there instead of its picture, over which the mouse is moved."""
    if not plot.query_selector(".plot-container"):
        box = plot.bounding_box()
        page.mouse.move(0, 0)
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + min(100, box["height"] / 2))
    return plot.query_selector(".plot-container") is not None


def open_without_kernel(browser, lab, folder, name):
    """Open a copy that JupyterLab did not sign, so that it is untrusted, and start no kernel.

    JupyterLab saves a picture beside each figure that was on screen. It shows that first, and the
    figure as soon as the mouse is over it.
    """
    notebook = notebooks.read_notebook(folder / name)
    # Neither a kernel nor a language: JupyterLab starts what fits either.
    notebook["metadata"] = {"kernelspec": {"name": "none", "display_name": "none"}}
    copy = folder / f"copy_of_{name}"
    copy.write_text(json.dumps(notebook), encoding="utf-8")
    page = open_notebook(browser, lab, copy.name)
    page.click(".jp-Dialog .jp-mod-reject")  # which kernel? None.
    n_figures = len(figures_of(notebook))
    assert wait_until(page, lambda: len(page.query_selector_all(".jp-RenderedPlotly")) == n_figures)
    assert copy.name not in [session["path"] for session in sessions_of(lab)]
    plots = page.query_selector_all(".jp-RenderedPlotly")
    for plot in plots:
        plot.scroll_into_view_if_needed()
        assert wait_until(page, lambda plot=plot: is_drawn(plot))
        assert wait_until(page, lambda plot=plot: is_alive(page, plot))
        assert wait_until(page, lambda plot=plot: is_drawn(plot))
    return page, plots


def outputs_of(notebook):
    return [out for cell in notebook["cells"] for out in cell.get("outputs", ())]


def figures_of(notebook):
    mime = "application/vnd.plotly.v1+json"
    return [out["data"][mime] for out in outputs_of(notebook) if mime in out.get("data", {})]


@in_jupyterlab
def test_saved_figures_show_in_jupyterlab_without_a_kernel(browser, folder, lab):
    page, plots = open_without_kernel(browser, lab, folder, "executed.ipynb")
    assert len(plots) == 2
    use_the_player(page, plots[0])
    page.context.close()


def run_all(page, first="Run All Cells"):
    """Run all cells of a notebook that was not run, and wait until the first of them has.

    Rarely JupyterLab marks cells as running and sends nothing to the kernel, which would answer.
    A person restarts the kernel then, and so does this.
    """

    def has_run():
        prompts = page.query_selector_all(".jp-CodeCell .jp-InputPrompt")
        return any(re.search("[0-9]", prompt.inner_text()) for prompt in prompts)

    said = []
    for item in (first, *["Restart Kernel and Run All Cells"] * 3):
        try:
            page.click(".lm-MenuBar-item:has-text('Run')", timeout=20_000)
            page.click(f".lm-Menu-item:has-text('{item}')", timeout=20_000)
            page.wait_for_timeout(1000)
        except sync_api.TimeoutError:  # A dialog is in front, such as of a kernel that is late.
            pass
        for dialog in page.query_selector_all(".jp-Dialog"):
            said.append(dialog.inner_text())
            dialog.query_selector(".jp-mod-accept").click()
        if wait_until(page, has_run, 90):
            return
    raise AssertionError(f"no cell has run; dialogs: {said}")


def wait_for_kernel(page):
    """Wait until a notebook's page has a kernel that answers.

    Cells that are run earlier make JupyterLab ask for a kernel, and start a second one, which
    takes the place of the first between two cells.
    """
    lab, name = page.url.partition("?")[0].split("/doc/tree/")

    def answers():
        states = [s["kernel"]["execution_state"] for s in sessions_of(lab) if s["path"] == name]
        return states == ["idle"]

    assert wait_until(page, answers), "no kernel has started"
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status='idle']")


def kernel_seconds():
    """CPU seconds of the kernels under this process and of what they have started.

    The state that the server and the page show for a kernel says less: they take the end of any
    message, such as a progress bar's, for the end of the cell.
    """
    psutil = pytest.importorskip("psutil")
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        try:
            if "ipykernel_launcher" in process.cmdline():
                for one in (process, *process.children(recursive=True)):
                    total += sum(one.cpu_times()[:2])
        except psutil.Error:  # It has ended meanwhile.
            pass
    return total


def run_and_save(page, path, seconds=600):
    """Run all cells and wait until the file has what they gave; returns it.

    Rarely JupyterLab waits for messages that it has missed while the kernel has finished: it does
    nothing then. A person restarts the kernel, and so does this, once, with a warning that says
    where the kernel was.
    """
    error = ".jp-OutputArea-output .ansi-red-fg"
    worked, idle_since = 0.0, time.monotonic()

    def prompts():
        found = page.query_selector_all(".jp-CodeCell .jp-InputPrompt")
        return [prompt.inner_text() for prompt in found]

    def is_done():
        texts = prompts()
        busy = any("*" in text or text == "[ ]:" for text in texts)
        return page.query_selector(error) is not None or (bool(texts) and not busy)

    def is_settled():
        nonlocal worked, idle_since
        if is_done():
            return True
        if abs((now := kernel_seconds()) - worked) > 1:  # Less, too, where a worker has ended.
            worked, idle_since = now, time.monotonic()
        return time.monotonic() - idle_since > 30

    for how in ("Run All Cells", "Restart Kernel and Run All Cells"):
        run_all(page, how)
        idle_since = time.monotonic()
        wait_until(page, is_settled, seconds)
        if is_done():
            break
        stacks = path.parent / STACKS
        at = stacks.read_text() if stacks.is_file() else "(nothing)"
        idle = time.monotonic() - idle_since
        said = f"cells {prompts()}, kernel idle for {idle:.0f} s, its stacks: {at}"
        warnings.warn(f"{path.name} did not come to an end: {said}", stacklevel=2)
    else:
        raise AssertionError(f"cells are still running: {said}")

    def is_saved():
        page.keyboard.press("Control+s")
        page.wait_for_timeout(1000)
        cells = notebooks.read_notebook(path)["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code" and cell["source"]]
        errors = [out for out in outputs_of({"cells": cells}) if out["output_type"] == "error"]
        return bool(errors) or all(cell["execution_count"] for cell in code)

    assert wait_until(page, is_saved), "the notebook was not saved"
    saved = notebooks.read_notebook(path)
    errors = [out for out in outputs_of(saved) if out["output_type"] == "error"]
    assert not errors, errors[0]["evalue"]
    return saved


def ask_for_a_live_figure(page):
    """By its button; it becomes as wide as the page."""
    page.wait_for_selector(".js-plotly-plot")
    handles = ".widget-vbox .js-plotly-plot .shapelayer path"

    def ask():
        try:
            page.click("button:has-text('Drag the points in a figure')", timeout=30_000)
        except sync_api.TimeoutError:  # A page that was connected too late shows no widgets.
            page.reload(wait_until="commit")
            page.wait_for_selector(".js-plotly-plot")
            return False
        return wait_until(page, lambda: page.query_selector(handles), 30)

    assert any(ask() for _ in range(4))  # Again where the page was not yet connected.
    live = page.query_selector(".widget-vbox .js-plotly-plot")
    width = page.query_selector(".js-plotly-plot").bounding_box()["width"]
    assert wait_until(page, lambda: live.evaluate("g => g._fullLayout.width") > 0.9 * width)


TIME_THE_ANSWER = """g => {
  const before = JSON.stringify([...g._fullData[0].y]);
  document.addEventListener('mouseup', () => {
    const start = performance.now();
    const look = () => {
      if (JSON.stringify([...g._fullData[0].y]) !== before) g.answer = performance.now() - start;
      else requestAnimationFrame(look);
    };
    look();
  }, {capture: true, once: true});
}"""


def drag_a_control_point(page):
    """In the live figure, with the mouse, and wait for the kernel's answer."""
    live = page.wait_for_selector(".widget-vbox .js-plotly-plot")
    page.wait_for_selector(".widget-vbox .js-plotly-plot .shapelayer path")
    live.scroll_into_view_if_needed()
    middle = live.evaluate("g => g._fullLayout.shapes.length") // 4  # at t = 0.5, of positions
    height = f"g => g._fullLayout.shapes[{middle}].yanchor"
    metrics = ".widget-html >> text=METRe"

    def measured():
        return page.inner_text(metrics).rsplit("(", 1)[0]  # without the time

    said = measured()
    curve = "g => g._fullData[0].y[5]"

    def drag(pixels):
        """Whether the kernel has integrated anew: the curve goes through the handle's new place."""
        before = live.evaluate(height)
        live.evaluate(TIME_THE_ANSWER)
        handle = live.query_selector_all(".shapelayer path")[middle].bounding_box()
        x, y = handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x, y + pixels, steps=8)
        page.mouse.up()
        assert wait_until(page, lambda: abs(live.evaluate(height) - before) > 0.3)

        def answered():
            place = live.evaluate(height)
            return live.evaluate("g => g.answer") and abs(live.evaluate(curve) - place) < 0.2

        return wait_until(page, answered, 30)

    # Again where the page was not yet ready to tell its kernel.
    assert any(drag(pixels) for pixels in (-40, -20, -20, -20)), (
        live.evaluate(curve),
        live.evaluate(height),
    )
    assert wait_until(page, lambda: measured() != said), "metrics anew"
    print(f"figure {live.evaluate('g => g.answer'):.0f} ms after the end of the drag")


@in_jupyterlab
def test_control_points_are_dragged_in_jupyterlab(browser, folder, lab):
    pytest.importorskip("anywidget")
    page = open_notebook(browser, lab, "explorer.ipynb")
    wait_for_kernel(page)
    run_and_save(page, folder / "explorer.ipynb")
    ask_for_a_live_figure(page)
    assert len(page.query_selector_all(".js-plotly-plot")) == 1, "the static figure is gone"
    drag_a_control_point(page)
    close(page, lab, "explorer.ipynb")


@in_jupyterlab
def test_training_is_stopped_and_a_trajectory_computed_in_jupyterlab(browser, folder, lab):
    pytest.importorskip("anywidget")
    page = open_notebook(browser, lab, "training.ipynb")
    wait_for_kernel(page)
    run_and_save(page, folder / "training.ipynb")

    def iteration():
        return int(page.inner_text(".widget-html >> text=/iteration/").split()[1])

    page.click("button:has-text('Start')")
    assert wait_until(page, lambda: iteration() >= 2)
    assert wait_until(page, lambda: is_drawn(page.query_selector(".widget-vbox .js-plotly-plot")))
    page.click("button:has-text('Stop')")
    page.wait_for_selector("button:has-text('Continue'):enabled")
    stopped = iteration()
    page.wait_for_timeout(1000)
    assert iteration() == stopped
    page.click("button:has-text('Continue')")
    assert wait_until(page, lambda: iteration() > stopped)
    page.click("button:has-text('Stop')")
    page.wait_for_selector("button:has-text('Continue'):enabled")

    controls = page.locator(".widget-vbox", has=page.locator("text=formula")).last
    controls.locator("select").nth(1).select_option("linear")
    live = controls.locator(".js-plotly-plot")
    live.wait_for()
    live.scroll_into_view_if_needed()
    assert wait_until(page, lambda: is_drawn(live))

    def step():
        return int(
            controls.locator(".widget-slider", has_text="step").last.inner_text().split()[-1]
        )

    controls.locator("button:has-text('Play')").click()
    assert wait_until(page, lambda: step() < 10)
    assert wait_until(page, lambda: step() == 10)
    close(page, lab, "training.ipynb")


@in_jupyterlab
def test_a_formula_is_typed_and_a_wrong_one_answered_in_words(browser, folder, lab):
    """Notebook 00 up to its first figure, as somebody would use it who tries formulas."""
    notebook = notebooks.read_notebook(ROOT / "notebooks" / "00_quickstart.ipynb")
    sources = ["".join(cell["source"]) for cell in notebook["cells"]]
    look = next(i for i, source in enumerate(sources) if "plots.structures(" in source)
    notebook["cells"] = notebook["cells"][: look + 1]
    (folder / "formulas.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    page = open_notebook(browser, lab, "formulas.ipynb")
    wait_for_kernel(page)

    def try_formula(formula, words):
        page.locator(".jp-CodeCell .cm-line", has_text="formula = ").first.click()
        page.keyboard.press("Home")
        page.keyboard.press("Shift+End")
        page.keyboard.insert_text(f'formula = "{formula}"')

        def answers():
            # Of the one cell that reads the formula: a slow browser sends cells behind it too late
            # for the kernel to drop them, and those end with names that are not defined.
            cell = page.locator(".jp-CodeCell", has_text="quickstart.composition_of").first
            texts = cell.locator(".jp-OutputArea-output").all_inner_texts()
            return [text for text in texts if words in text]

        def run():
            # On a busy machine JupyterLab sometimes has something to say, which is in the way.
            if (dialog := page.query_selector(".jp-Dialog")) is not None:
                assert "Build" not in dialog.inner_text(), "a dialog that must not come up"
                page.keyboard.press("Escape")
            page.click(".lm-MenuBar-item:has-text('Run')", timeout=15_000)
            page.click(".lm-Menu-item:has-text('Run All Cells')")
            return wait_until(page, answers, 60)

        assert any(run() for _ in range(3)), page.inner_text(".jp-Notebook")
        assert "Traceback" not in "".join(answers())

    try_formula("Xx2", "'Xx' is no element")
    try_formula("NaCl500", "501 atoms, more than the 28")
    try_formula("", 'formula must be a text such as "NaCl"')
    try_formula("CaF2", "Ca1 F2")
    page.wait_for_selector(".jp-RenderedPlotly.js-plotly-plot")
    plot = page.query_selector(".jp-RenderedPlotly")
    assert wait_until(page, lambda: is_drawn(plot))
    assert "CaF" in plot.inner_text()
    close(page, lab, "formulas.ipynb")


def with_quick_preset(path):
    """A notebook with its quick preset, whose kernel says what it is at should it run for long."""
    notebook = notebooks.read_notebook(path)
    cells = []
    for cell in notebook["cells"]:
        cells.append(cell)
        if "parameters" in cell["metadata"].get("tags", ()):
            out_dir = f'\nout_dir = "results/{path.stem}"'
            cell["source"] = [*cell["source"], '\npreset = "quick"', out_dir]
            # In a cell of its own: those that set nothing but literals hold the parameters.
            cells.append({**cell, "id": "stacks", "metadata": {}, "source": [WRITE_STACKS]})
    return {**notebook, "cells": cells}


@in_jupyterlab
@pytest.mark.parametrize(
    "path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem
)
def test_notebook_runs_in_jupyterlab(browser, folder, lab, path):
    (folder / path.name).write_text(json.dumps(with_quick_preset(path)), encoding="utf-8")
    page = open_notebook(browser, lab, path.name)
    wait_for_kernel(page)
    saved = run_and_save(page, folder / path.name)
    check_results(path.stem, folder / "results" / path.stem)
    shown = page.query_selector_all(".jp-RenderedPlotly.js-plotly-plot")
    assert shown and len(shown) == len(figures_of(saved))
    for plot in shown:
        plot.scroll_into_view_if_needed()
        assert wait_until(page, lambda plot=plot: is_drawn(plot))
        if plot.query_selector(".slider-rail-touch-rect"):
            use_the_player(page, plot)
    close(page, lab, path.name)
    assert (folder / path.name).stat().st_size < 10e6
    html = notebooks.export(folder / path.name)
    assert html.stat().st_size < 8e6
    if path.stem in OPENED_AGAIN:
        is_whole_when_opened_again(browser, folder, lab, path, len(shown))


def is_whole_when_opened_again(browser, folder, lab, path, n_figures):
    """See that a saved notebook and its export show all figures, without a kernel and a network."""
    page, plots = open_without_kernel(browser, lab, folder, path.name)
    assert len(plots) == n_figures
    page.context.close()
    page = new_page(browser, offline=True)
    page.goto((folder / path.name).with_suffix(".html").as_uri(), wait_until="commit")
    figures = ".plotly-graph-div.js-plotly-plot"
    assert wait_until(page, lambda: len(page.query_selector_all(figures)) == n_figures)
    for plot in page.query_selector_all(".plotly-graph-div"):
        plot.scroll_into_view_if_needed()
        assert wait_until(page, lambda plot=plot: is_drawn(plot))
    page.context.close()


@pytest.fixture
def served(folder):
    """Address of the explorer's page."""
    pytest.importorskip("voila")
    pytest.importorskip("anywidget")
    port = find_free_port()
    command = [sys.executable, "-m", "irlkit", "notebooks", "serve", f"--port={port}"]
    server = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for(server, f"http://127.0.0.1:{port}/voila/static/voila.js")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        try:
            server.wait(60)
        finally:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGKILL)


def open_page(browser, address, asked):
    """Open a page in a network that answers for nothing but the server."""
    page = new_page(browser)

    def route(request):
        if request.request.url.startswith((address, "data:", "blob:")):
            request.continue_()
        else:
            asked.append(request.request.url)  # and never answer

    page.context.route("**/*", route)
    page.goto(address, wait_until="commit")
    return page


@in_jupyterlab
def test_voila_serves_the_explorer_to_several_without_a_network(browser, served):
    asked = []
    pages = [open_page(browser, served, asked) for _ in range(2)]
    for page in pages:
        ask_for_a_live_figure(page)
        drag_a_control_point(page)
        assert page.query_selector("text=Save schedule") is None, "a visitor writes no files"
    metrics = [page.inner_text(".widget-html >> text=METRe") for page in pages]
    # Each has a kernel: what one does is not seen by the other.
    pages[0].locator("select").first.select_option("none")
    said = metrics[0].rsplit("(", 1)[0]
    text = ".widget-html >> text=METRe"
    assert wait_until(pages[0], lambda: not pages[0].inner_text(text).startswith(said))
    assert pages[1].inner_text(text) == metrics[1]
    assert not asked
    for page in pages:
        page.context.close()
