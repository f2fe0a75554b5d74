"""Notebooks as files: reading them, and removing what execution leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from irlkit.utils.checks import checked

# What ipykernel registers in every environment: a notebook saved with somebody's own kernel name
# would not run anywhere else.
_METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
_KEPT_CELL_METADATA = ("tags",)


@checked
def strip(notebook: dict[str, Any]) -> dict[str, Any]:
    """Remove what execution and editors leave behind.

    Sources, cell types, cell ids and tags stay. Outputs, execution counts, widget states, timings,
    language versions and papermill's injected parameters go, and the kernel becomes ``python3``.

    Args:
        notebook: nbformat 4 notebook, as parsed from JSON; left unchanged.

    Returns:
        The stripped notebook, a new dictionary.
    """
    cells = []
    if not all(isinstance(cell, dict) for cell in notebook.get("cells", [None])):
        raise ValueError("notebook must have cells, as nbformat 4 has them")
    for cell in notebook["cells"]:
        metadata = cell.get("metadata", {})
        if "injected-parameters" in metadata.get("tags", ()):
            continue
        cell = {
            **cell,
            "metadata": {key: metadata[key] for key in _KEPT_CELL_METADATA if key in metadata},
            "source": "".join(cell["source"]).splitlines(keepends=True),
        }
        if cell["cell_type"] == "code":
            cell |= {"execution_count": None, "outputs": []}
        cells.append(cell)
    return {**notebook, "cells": cells, "metadata": _METADATA}


@checked
def to_text(notebook: dict[str, Any]) -> str:
    """Serialise a notebook as Jupyter itself does, so that a save in JupyterLab changes nothing."""
    try:
        return json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    except TypeError as error:
        raise ValueError(f"notebook must be what JSON can hold: {error}") from error


@checked
def read_notebook(path: str | Path) -> dict[str, Any]:
    """Read an nbformat 4 notebook.

    Raises:
        ValueError: the file is missing, not JSON, or not a notebook of format 4.
    """
    try:
        notebook = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as a notebook: {error}") from error
    if not isinstance(notebook, dict) or notebook.get("nbformat") != 4 or "cells" not in notebook:
        raise ValueError(f"{path}: not a notebook of nbformat 4")
    return notebook
