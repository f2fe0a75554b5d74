"""Finding, copying and executing notebooks: a thin layer on papermill."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from irlkit.lab.notebooks._stripping import read_notebook, title_of, to_text

PACKED = Path(__file__).parent / "files"
"""Where a wheel has the notebooks."""
CHECKOUT = Path(__file__).parents[3] / "notebooks"
"""Where a clone of the repository has them."""


def shipped() -> list[Path]:
    """Return the notebooks that come with the package, in order."""
    return sorted((PACKED if PACKED.is_dir() else CHECKOUT).glob("*.ipynb"))


def find(name: str | Path) -> Path:
    """Find a notebook by its path, its name, or the number or word that its name begins with.

    Args:
        name: "04", "04_velocity_annealing", or the path of a notebook. Notebooks in ./notebooks or
            here come before those of the package.

    Raises:
        ValueError: none or several fit.

    >>> find("04").stem
    '04_velocity_annealing'
    """
    path = Path(name)
    if path.suffix == ".ipynb":
        if path.is_file():
            return path
        raise ValueError(f"there is no notebook {path}")
    for place in (Path("notebooks").glob("*.ipynb"), Path().glob("*.ipynb"), shipped()):
        entries = sorted(entry for entry in place if entry.stem.startswith(str(name)))
        fitting = [entry for entry in entries if entry.stem == str(name)] or entries
        if len(fitting) > 1:
            raise ValueError(f"{name!r} fits several notebooks: {_names(entries)}; say which")
        if fitting:
            return fitting[0]
    raise ValueError(f"no notebook begins with {str(name)!r}; there are {_names(shipped())}")


def _names(paths: list[Path]) -> str:
    return ", ".join(path.stem for path in paths)


def copy(target: str | Path = ".", force: bool = False) -> list[Path]:
    """Copy the notebooks of the package to a folder; return the copies.

    Args:
        target: folder, made if it is not there.
        force: overwrite files of the same name.

    Raises:
        FileExistsError: there are such files, which may hold somebody's work; nothing is copied.
    """
    copies = {source: Path(target) / source.name for source in shipped()}
    if not force and (there := [path for path in copies.values() if path.exists()]):
        raise FileExistsError(
            f"{', '.join(map(str, there))} exist already; choose another folder or use --force"
        )
    Path(target).mkdir(parents=True, exist_ok=True)
    for source, path in copies.items():
        shutil.copyfile(source, path)
    return list(copies.values())


def parameters_of(path: Path) -> list[str]:
    """Return the names of a notebook's parameters, in order."""
    cells = _parameters_cells(read_notebook(path))
    statements = [entry for cell in cells for entry in ast.parse("".join(cell["source"])).body]
    assigned = [entry for entry in statements if isinstance(entry, ast.Assign)]
    return [ast.unparse(target) for entry in assigned for target in entry.targets]


def _parameters_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    cells = notebook["cells"]
    return [cell for cell in cells if "parameters" in cell.get("metadata", {}).get("tags", ())]


def run(
    name: str | Path, parameters: Mapping[str, Any] | None = None, output: str | Path | None = None
) -> Path:
    """Execute a notebook with papermill, and return the executed one.

    Args:
        name: see ``find``.
        parameters: instead of those of its parameters cell.
        output: the executed notebook; None: ``runs/`` and the notebook's name.

    Raises:
        ImportError: papermill is missing.
        ValueError: no such notebook or parameter, or the output is the notebook itself.
        RuntimeError: a cell failed; the executed notebook is there, up to that cell.
    """
    try:
        import papermill
    except ImportError as error:
        raise ImportError(f'{error}; install it with pip install "irlkit[notebooks]"') from error
    source, target, given = _prepare(name, parameters, output, "runs")
    # Braces in paths would be filled in with parameters.
    plain = [str(path).replace("{", "{{").replace("}", "}}") for path in (source, target)]
    try:
        papermill.execute_notebook(*plain, given, kernel_name="python3")
    except papermill.PapermillExecutionError as error:
        raise RuntimeError(f"{error}\nThe notebook up to there is in {target}") from error
    return target


def prepare_page(name: str | Path, parameters: Mapping[str, Any] | None = None) -> Path:
    """Write a notebook with other parameters, not executed, to ``runs/pages`` for ``serve``.

    Args:
        name: see ``find``.
        parameters: instead of those of its parameters cell.

    Raises:
        ValueError: no such notebook or parameter.
    """
    source, target, given = _prepare(name, parameters, None, "runs/pages")
    notebook = read_notebook(source)
    for cell in _parameters_cells(notebook):
        lines = (f"{key} = {value!r}\n" for key, value in given.items())
        cell["source"] = ["".join(cell["source"]), "\n", *lines]
    notebook["metadata"]["title"] = title_of(notebook, source.stem)
    target.write_text(to_text(notebook), encoding="utf-8")
    return target


def _prepare(
    name: str | Path, parameters: Mapping[str, Any] | None, output: str | Path | None, folder: str
) -> tuple[Path, Path, dict[str, Any]]:
    """Return source, target (None: of that name in `folder`) and parameters, all checked."""
    source, given = find(name), dict(parameters or {})
    known = parameters_of(source)
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(f"{source.name} has no parameters {unknown}; it has {', '.join(known)}")
    target = Path(folder) / source.name if output is None else Path(output)
    if target.resolve() == source.resolve():
        raise ValueError(f"the output must not be the notebook itself, {source}")
    target.parent.mkdir(parents=True, exist_ok=True)
    return source, target, given
