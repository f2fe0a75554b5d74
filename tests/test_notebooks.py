"""The notebooks as files, and, with IRLKIT_RUN_NOTEBOOKS=1, executed with their quick preset."""

import ast
import json
import os
import re
import sys
from pathlib import Path

import pytest

from irlkit.lab import notebooks
from irlkit.lab.notebooks import _serving
from irlkit.lab.notebooks.__main__ import main
from irlkit.lab.notebooks._running import prepare_page
from tests.notebook_results import check_results

ROOT = Path(__file__).parents[1]
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def code_cells(path: Path) -> list[dict]:
    cells = notebooks.read_notebook(path)["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def parameters_cells(path: Path) -> list[dict]:
    return [cell for cell in code_cells(path) if "parameters" in cell["metadata"].get("tags", [])]


@pytest.fixture
def executed() -> dict:
    """A small notebook as it looks after execution in an editor."""
    return {
        "cells": [
            {
                "cell_type": "code",
                "execution_count": 3,
                "id": "a1",
                "metadata": {"tags": ["parameters"], "execution": {"iopub.execute_input": "now"}},
                "outputs": [{"output_type": "stream", "name": "stdout", "text": "σ\n"}],
                "source": 'n_steps = 10\nunit = "Å"',
            },
            {
                "cell_type": "code",
                "execution_count": 4,
                "id": "papermill",
                "metadata": {"tags": ["injected-parameters"]},
                "outputs": [],
                "source": ["n_steps = 5"],
            },
            {"cell_type": "markdown", "id": "a2", "metadata": {}, "source": ["# Why"]},
        ],
        "metadata": {
            "kernelspec": {"display_name": "mine", "language": "python", "name": "mine"},
            "language_info": {"name": "python", "version": "3.11.7"},
            "widgets": {"application/vnd.jupyter.widget-state+json": {}},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def test_strip_keeps_what_was_written_and_removes_the_rest(executed):
    code, markdown = notebooks.strip(executed)["cells"]
    assert code["source"] == ["n_steps = 10\n", 'unit = "Å"']
    assert code["metadata"] == {"tags": ["parameters"]}
    assert code["outputs"] == [] and code["execution_count"] is None
    assert markdown == executed["cells"][2]
    metadata = notebooks.strip(executed)["metadata"]
    assert metadata["kernelspec"]["name"] == "python3"
    assert metadata["language_info"] == {"name": "python"}
    assert "widgets" not in metadata
    assert executed["cells"][0]["outputs"], "the argument was changed"


def test_command_line_checks_then_strips(executed, tmp_path, monkeypatch, capsys):
    path = tmp_path / "notebooks" / "01_example.ipynb"
    path.parent.mkdir()
    path.write_text(json.dumps(executed), encoding="utf-8")
    monkeypatch.chdir(tmp_path)

    assert main(["check"]) == 1
    assert "01_example.ipynb: not stripped" in capsys.readouterr().err
    assert main(["strip"]) == 0
    assert main(["check", str(path)]) == 0
    assert notebooks.read_notebook(path) == notebooks.strip(executed)
    assert "Å" in path.read_text(encoding="utf-8")


def test_stripped_text_is_what_jupyter_writes(executed):
    nbformat = pytest.importorskip("nbformat")
    text = notebooks.to_text(notebooks.strip(executed))
    assert nbformat.writes(nbformat.reads(text, as_version=4)).rstrip("\n") == text.rstrip("\n")


@pytest.mark.parametrize("content", [None, "", "[]", '{"nbformat": 3}', "\x00"])
def test_what_is_no_notebook_is_named(content, tmp_path, capsys):
    path = tmp_path / "broken.ipynb"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"broken\.ipynb"):
        notebooks.read_notebook(path)
    assert main(["strip", str(path)]) == 1
    assert "broken.ipynb" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------
# Running, exporting, copying
# --------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A folder with two notebooks that take no time, and nothing else."""
    nbformat = pytest.importorskip("nbformat")
    folder = tmp_path / "notebooks"
    folder.mkdir()
    cells = [
        nbformat.v4.new_markdown_cell("# A title\n\nWith $x_0$ and $$\\frac{a}{b}$$, and `$HOME`."),
        nbformat.v4.new_code_cell("n = 1\ntext = None", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("print(n + 1, repr(text))"),
        nbformat.v4.new_code_cell(
            "import plotly.graph_objects as go\ngo.Figure(go.Scatter(x=[1, 2], y=[n, n]),"
            " layout={'title': {'text': '</script>'}})"
        ),
    ]
    for name in ("01_first", "02_second"):
        notebook = nbformat.v4.new_notebook(cells=cells, metadata=notebooks._stripping._METADATA)
        nbformat.write(notebook, folder / f"{name}.ipynb")
    monkeypatch.chdir(tmp_path)
    return folder


def test_notebooks_are_found_by_number_name_and_path(small):
    expected = small / "02_second.ipynb"
    for name in ("02", "02_second", expected, "notebooks/02_second.ipynb"):
        assert notebooks.find(name).resolve() == expected.resolve()
    assert notebooks.find("04").name == "04_velocity_annealing.ipynb", "those of the package"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("0", "'0' fits several notebooks: 01_first, 02_second"),
        ("no", "no notebook begins with 'no'; there are .*04_velocity_annealing"),
        ("no.ipynb", "there is no notebook no.ipynb"),
    ],
)
def test_what_is_not_found_is_said(small, name, words, capsys):
    with pytest.raises(ValueError, match=words):
        notebooks.find(name)
    assert main(["run", name]) == 1
    assert capsys.readouterr().err


def test_a_run_takes_parameters_and_ends_in_runs(small, capsys):
    pytest.importorskip("papermill")
    assert main(["run", "02", "-p", "n", "41", "-p", "text", "none"]) == 0
    result = Path("runs/02_second.ipynb")
    assert capsys.readouterr().out.strip() == str(result)
    outputs = [out for cell in code_cells(result) for out in cell["outputs"]]
    assert "".join(outputs[0]["text"]) == "42 None\n"
    assert not [out for cell in code_cells(small / "02_second.ipynb") for out in cell["outputs"]]

    assert main(["export", "02"]) == 0
    html = Path("runs/02_second.html").read_text(encoding="utf-8")
    assert html.count("Plotly.newPlot(") == 1 and "<title>A title</title>" in html
    assert '<script src="http' not in html
    assert "\\u003c\\u002fscript" in html, "a text must not end the script"
    assert len(html) < 8e6
    pytest.importorskip("latex2mathml")
    assert "<mfrac>" in html and "$HOME" in html


def test_a_failing_cell_is_reported_and_kept(small, capsys):
    pytest.importorskip("papermill")
    assert main(["run", "01", "-p", "n", "'a'"]) == 1
    assert "runs/01_first.ipynb" in capsys.readouterr().err
    assert Path("runs/01_first.ipynb").is_file()


def test_unknown_parameters_and_dangerous_outputs_are_refused(small):
    with pytest.raises(ValueError, match=r"no parameters \['m'\]; it has n, text"):
        notebooks.run("01", {"m": 1})
    with pytest.raises(ValueError, match="must not be the notebook itself"):
        notebooks.run("01", output=small / "01_first.ipynb")


def test_a_page_has_other_parameters_and_says_what_is_missing(small, monkeypatch, capsys):
    page = prepare_page("02_second", {"n": 3})
    assert page == Path("runs/pages") / "02_second.ipynb"
    namespace: dict = {}
    exec("".join(parameters_cells(page)[0]["source"]), namespace)
    assert namespace == namespace | {"n": 3, "text": None}
    with pytest.raises(ValueError, match="has no parameters"):
        prepare_page("02_second", {"steps": 3})
    assert notebooks.read_notebook(page)["metadata"]["title"] == "A title"
    monkeypatch.setitem(sys.modules, "voila.app", None)
    assert main(["serve", "02_second"]) == 1
    assert "irlkit[voila]" in capsys.readouterr().err


def test_the_explorers_page_shows_it_and_write_nothing(tmp_path, monkeypatch):
    pytest.importorskip("anywidget")
    shown = []
    monkeypatch.setattr("irlkit.lab.widgets._base.display", lambda *a, **names: shown.append(a))
    monkeypatch.chdir(tmp_path)
    page = prepare_page(_serving.EXPLORER, {"results": None})
    assert page == Path("runs/pages/explorer.ipynb")
    namespace: dict = {}
    for cell in code_cells(page):
        exec("".join(cell["source"]), namespace)
    explorer = namespace["explorer"]
    assert len(shown) == 2, "a figure, and the controls"
    explorer.drag.click()
    assert explorer.controls.children[0] is explorer._live, "in the static one's place"
    assert len(explorer._live.layout.shapes) == 10, "the handles are there from the beginning"
    assert next(iter(explorer.schedules)) == "learned" and len(explorer.schedules) == 6
    explorer.save_button.click()
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_page_takes_nothing_from_the_network(small, monkeypatch):
    app = pytest.importorskip("voila.app")
    monkeypatch.setenv("JUPYTER_PATH", "mine")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    texts, arguments = [], []

    def launch(given):
        ours, others = os.environ["JUPYTER_PATH"].split(os.pathsep)
        assert others == "mine" and os.environ["OMP_NUM_THREADS"] == "1"
        templates = (Path(ours) / "voila" / "templates").rglob("*.*")
        texts.extend(path.read_text(encoding="utf-8") for path in templates if path.is_file())
        arguments.extend(given)

    monkeypatch.setattr(app.Voila, "launch_instance", launch)
    assert main(["serve", "02", "--port", "8867", "--ready", "3"]) == 0
    assert arguments[0] == str(Path("runs/pages/02_second.ipynb"))
    assert {"--Voila.port=8867", "--VoilaConfiguration.default_pool_size=3"} <= set(arguments)
    assert len(texts) == 2
    assert not [text for text in texts if re.search(r'(href|src)="https?://', text)]
    assert all("{%" in text for text in texts)


@pytest.mark.parametrize(
    ("arguments", "ready"),
    [([], 2), (["--ready", "0"], 0), (["02"], 0), (["02", "--ready", "1"], 1)],
)
def test_kernels_wait_for_visitors_of_the_explorer(small, arguments, ready, monkeypatch):
    served = []
    monkeypatch.setattr(_serving, "serve", lambda *given: served.append(given))
    assert main(["serve", *arguments]) == 0
    name = "02_second.ipynb" if "02" in arguments else "explorer.ipynb"
    assert served == [(Path("runs/pages") / name, 8866, "127.0.0.1", ready)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-p", "n", "1"], "name one, such as serve 04"),
        (["01", "--results", "runs/04"], "leave out the name"),
        (["--results", "nowhere"], "no results of notebook 04 in nowhere"),
    ],
)
def test_what_cannot_be_served_is_said(small, arguments, words, monkeypatch, capsys):
    assert main(["serve", *arguments]) == 1
    assert words in capsys.readouterr().err


def test_what_was_not_run_cannot_be_exported(small):
    with pytest.raises(ValueError, match="run it first"):
        notebooks.export("01")


def test_copies_do_not_overwrite_work(tmp_path, capsys):
    paths = notebooks.copy(tmp_path / "mine")
    assert [path.name for path in paths] == [path.name for path in PATHS]
    paths[0].write_text("work")
    assert main(["copy", str(tmp_path / "mine")]) == 1
    assert "exist already" in capsys.readouterr().err
    assert paths[0].read_text() == "work"
    assert main(["copy", str(tmp_path / "mine"), "--force"]) == 0
    assert paths[0].read_text() != "work"


def test_all_notebooks_are_listed(capsys):
    assert main(["list"]) == 0
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        path.stem for path in PATHS
    ]


def test_there_are_notebooks():
    assert PATHS


@pytest.mark.parametrize("path", [*PATHS, _serving.EXPLORER], ids=lambda path: path.stem)
def test_notebook_is_stripped(path):
    assert main(["check", str(path)]) == 0


@each_notebook
def test_notebook_has_one_cell_of_literal_parameters(path):
    (cell,) = parameters_cells(path)
    statements = ast.parse("".join(cell["source"])).body
    names = set()
    for statement in statements:
        assert isinstance(statement, ast.Assign), ast.unparse(statement)
        ast.literal_eval(statement.value)
        names |= {ast.unparse(target) for target in statement.targets}
    assert {"preset", "device", "out_dir"} <= names


@each_notebook
def test_notebook_defines_nothing(path):
    tree = ast.parse("\n".join("".join(cell["source"]) for cell in code_cells(path)))
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    assert not [node.name for node in ast.walk(tree) if isinstance(node, definitions)]


@pytest.mark.skipif(
    os.environ.get("IRLKIT_RUN_NOTEBOOKS") != "1", reason="runs with IRLKIT_RUN_NOTEBOOKS=1"
)
@each_notebook
def test_notebook_runs_and_writes_its_results(path, tmp_path):
    papermill = pytest.importorskip("papermill")
    out_dir = tmp_path / "results"
    papermill.execute_notebook(
        path,
        tmp_path / path.name,
        parameters={"preset": "quick", "out_dir": str(out_dir)},
        # Another folder than the repository: a notebook must not need files next to it.
        cwd=tmp_path,
        progress_bar=False,
        # Per cell, in seconds: a hung cell fails instead of blocking the whole run.
        execution_timeout=600,
    )

    check_results(path.stem, out_dir)
