"""Finding, copying and executing notebooks: a thin layer on papermill."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from irlkit.lab.notebooks.stripping import read_notebook, to_text
from irlkit.utils.checks import checked

PACKED = Path(__file__).parent / "files"
"""Where a wheel has the notebooks."""
CHECKOUT = Path(__file__).parents[3] / "notebooks"
"""Where a clone of the repository has them."""


def folder() -> Path:
    """The folder of the notebooks that come with the package.

    Raises:
        ValueError: they are not there.
    """
    for candidate in (PACKED, CHECKOUT):
        if any(candidate.glob("*.ipynb")):
            return candidate
    raise ValueError(
        f"the notebooks of the package are not there, neither in {PACKED} nor {CHECKOUT}"
    )


@checked
def find(name: str | Path) -> Path:
    """A notebook by its path, its name, or the number or word that its name begins with.

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
    here = [p for p in (Path("notebooks"), Path()) if p.is_dir()]
    for place in (*here, folder()):
        entries = sorted(place.glob(f"{name}*.ipynb"))
        exact = [entry for entry in entries if entry.stem == str(name)]
        if len(exact or entries) == 1:
            return (exact or entries)[0]
        if entries:
            names = ", ".join(entry.stem for entry in entries)
            raise ValueError(f"{name!r} fits several notebooks: {names}; say which")
    names = ", ".join(entry.stem for entry in sorted(folder().glob("*.ipynb")))
    raise ValueError(f"no notebook begins with {str(name)!r}; there are {names}")


@checked
def copy(target: str | Path = ".", force: bool = False) -> list[Path]:
    """Copy the notebooks of the package.

    Args:
        target: folder, made if it is not there.
        force: overwrite files of the same name.

    Returns:
        The copies.

    Raises:
        FileExistsError: there are such files already, which may hold somebody's work; nothing is
            copied.
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
    """Names of the parameters of a notebook, in order."""
    import ast

    names = []
    for cell in read_notebook(path)["cells"]:
        if "parameters" in cell.get("metadata", {}).get("tags", ()):
            for statement in ast.parse("".join(cell["source"])).body:
                if isinstance(statement, ast.Assign):
                    names += [ast.unparse(entry) for entry in statement.targets]
    return names


@checked
def run(
    name: str | Path,
    parameters: Mapping[str, Any] | None = None,
    output: str | Path | None = None,
    progress: bool = True,
) -> Path:
    """Execute a notebook with papermill.

    The same without this function: ``papermill notebooks/04_velocity_annealing.ipynb
    runs/04_velocity_annealing.ipynb -p preset quick``.

    Args:
        name: see ``find``.
        parameters: instead of those of its parameters cell.
        output: the executed notebook; None: ``runs/`` and the notebook's name.
        progress: show a bar over cells.

    Returns:
        The executed notebook. It is written while it runs, so that it is there after an error.

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

    source = find(name)
    given = dict(parameters or {})
    target = Path("runs") / source.name if output is None else Path(output)
    _check(source, given, target)
    target.parent.mkdir(parents=True, exist_ok=True)
    papermill.execute_notebook(
        str(source), str(target), given, progress_bar=progress, kernel_name="python3"
    )
    return target


def prepare_page(
    name: str | Path,
    parameters: Mapping[str, Any] | None = None,
    output: str | Path | None = None,
) -> Path:
    """Write a notebook with other parameters, not executed, for Voila to serve.

    Args:
        name: see ``find``.
        parameters: instead of those of its parameters cell.
        output: None: ``runs/pages/`` and the notebook's name.

    Raises:
        ValueError: no such notebook or parameter, or the output is the notebook itself.
    """
    source = find(name)
    given = dict(parameters or {})
    target = Path("runs") / "pages" / source.name if output is None else Path(output)
    _check(source, given, target)
    notebook = read_notebook(source)
    lines = [f"{key} = {value!r}\n" for key, value in given.items()]
    for cell in notebook["cells"]:
        if "parameters" in cell.get("metadata", {}).get("tags", ()):
            cell["source"] = ["".join(cell["source"]), "\n", *lines]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(to_text(notebook), encoding="utf-8")
    return target


def _check(source: Path, given: Mapping[str, Any], target: Path) -> None:
    known = parameters_of(source)
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(f"{source.name} has no parameters {unknown}; it has {', '.join(known)}")
    if target.resolve() == source.resolve():
        raise ValueError(f"the output must not be the notebook itself, {source}")
