"""Finding, copying and executing notebooks: a thin layer on papermill."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from irlkit.lab.notebooks.stripping import read_notebook, title_of, to_text
from irlkit.utils.checks import checked

PACKED = Path(__file__).parent / "files"
"""Where a wheel has the notebooks."""
CHECKOUT = Path(__file__).parents[3] / "notebooks"
"""Where a clone of the repository has them."""


def folder() -> Path:
    """Return the folder of the notebooks that come with the package."""
    return PACKED if PACKED.is_dir() else CHECKOUT


@checked
def find(name: str | Path) -> Path:
    """Find a notebook by its path, its name, or the number or word that its name begins with.

    Args:
        name: "04", "04_velocity_annealing", or the path of a notebook. Notebooks in ./notebooks or
            here come before those of the package.

    Raises:
        ValueError: none or several fit.
    """
    path = Path(name)
    if path.suffix == ".ipynb":
        if path.is_file():
            return path
        raise ValueError(f"there is no notebook {path}")
    for place in (Path("notebooks"), Path(), folder()):
        entries = sorted(place.glob(f"{name}*.ipynb"))
        fitting = [entry for entry in entries if entry.stem == str(name)] or entries
        if len(fitting) > 1:
            names = ", ".join(entry.stem for entry in entries)
            raise ValueError(f"{name!r} fits several notebooks: {names}; say which")
        if fitting:
            return fitting[0]
    names = ", ".join(entry.stem for entry in sorted(folder().glob("*.ipynb")))
    raise ValueError(f"no notebook begins with {str(name)!r}; there are {names}")


@checked
def copy(target: str | Path = ".", force: bool = False) -> list[Path]:
    """Copy the notebooks of the package to a folder; return the copies.

    Args:
        target: folder, made if it is not there.
        force: overwrite files of the same name.

    Raises:
        FileExistsError: there are such files, which may hold somebody's work; nothing is copied.
    """
    sources = sorted(folder().glob("*.ipynb"))
    target = Path(target)
    copies = [target / source.name for source in sources]
    if not force and (there := [path for path in copies if path.exists()]):
        raise FileExistsError(
            f"{', '.join(map(str, there))} exist already; choose another folder or use --force"
        )
    target.mkdir(parents=True, exist_ok=True)
    for source, path in zip(sources, copies, strict=True):
        shutil.copyfile(source, path)
    return copies


def parameters_of(path: Path) -> list[str]:
    """Return the names of a notebook's parameters, in order."""
    statements = [
        statement
        for cell in _parameters_cells(read_notebook(path))
        for statement in ast.parse("".join(cell["source"])).body
    ]
    assigned = [entry for entry in statements if isinstance(entry, ast.Assign)]
    return [ast.unparse(target) for entry in assigned for target in entry.targets]


def _parameters_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    cells = notebook["cells"]
    return [cell for cell in cells if "parameters" in cell.get("metadata", {}).get("tags", ())]


@checked
def run(
    name: str | Path,
    parameters: Mapping[str, Any] | None = None,
    output: str | Path | None = None,
    progress: bool = True,
) -> Path:
    """Execute a notebook with papermill; return the executed one, which is there after errors too.

    Args:
        name: see ``find``.
        parameters: instead of those of its parameters cell.
        output: the executed notebook; None: ``runs/`` and the notebook's name.
        progress: show a bar over cells.

    Raises:
        ImportError: papermill is missing.
        ValueError: no such notebook or parameter, or the output is the notebook itself.
        papermill.PapermillExecutionError: a cell failed.
    """
    try:
        import papermill
    except ImportError as error:
        raise ImportError(
            'papermill is missing; install it with pip install "irlkit[notebooks]"'
        ) from error

    source, target, given = _prepare(name, parameters, Path("runs" if output is None else output))
    papermill.execute_notebook(
        str(source), str(target), given, progress_bar=progress, kernel_name="python3"
    )
    return target


def prepare_page(name: str | Path, parameters: Mapping[str, Any] | None = None) -> Path:
    """Write a notebook with other parameters, not executed, to ``runs/pages`` for ``serve``.

    Args:
        name: see ``find``.
        parameters: instead of those of its parameters cell.

    Raises:
        ValueError: no such notebook or parameter.
    """
    source, target, given = _prepare(name, parameters, Path("runs/pages"))
    notebook = read_notebook(source)
    lines = [f"{key} = {value!r}\n" for key, value in given.items()]
    for cell in _parameters_cells(notebook):
        cell["source"] = ["".join(cell["source"]), "\n", *lines]
    notebook["metadata"]["title"] = title_of(notebook, source.stem)
    target.write_text(to_text(notebook), encoding="utf-8")
    return target


def _prepare(
    name: str | Path, parameters: Mapping[str, Any] | None, output: Path
) -> tuple[Path, Path, dict[str, Any]]:
    """Return source, target (`output`, or a notebook in that folder) and parameters."""
    source, given = find(name), dict(parameters or {})
    known = parameters_of(source)
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(f"{source.name} has no parameters {unknown}; it has {', '.join(known)}")
    target = output if output.suffix == ".ipynb" else output / source.name
    if target.resolve() == source.resolve():
        raise ValueError(f"the output must not be the notebook itself, {source}")
    target.parent.mkdir(parents=True, exist_ok=True)
    return source, target, given
