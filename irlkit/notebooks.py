"""Keep notebooks free of outputs: ``python -m irlkit.notebooks strip|check [NOTEBOOK ...]``.

``strip`` rewrites notebooks in place, ``check`` only says which ones ``strip`` would change and
exits with 1 if there are any. Without paths, both look at ``notebooks/*.ipynb``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["main", "read_notebook", "strip", "to_text"]

# What ipykernel registers in every environment: a notebook saved with somebody's own kernel name
# would not run anywhere else.
_METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
_KEPT_CELL_METADATA = ("tags",)


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


def to_text(notebook: dict[str, Any]) -> str:
    """Serialise a notebook as Jupyter itself does, so that a save in JupyterLab changes nothing."""
    return json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def read_notebook(path: Path) -> dict[str, Any]:
    """Read an nbformat 4 notebook.

    Raises:
        ValueError: the file is missing, not JSON, or not a notebook of format 4.
    """
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as a notebook: {error}") from error
    if not isinstance(notebook, dict) or notebook.get("nbformat") != 4 or "cells" not in notebook:
        raise ValueError(f"{path}: not a notebook of nbformat 4")
    return notebook


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (``check``: 1 if a notebook is unstripped)."""
    parser = argparse.ArgumentParser(prog="python -m irlkit.notebooks", description=__doc__)
    parser.add_argument("action", choices=("strip", "check"))
    parser.add_argument("paths", nargs="*", type=Path, help="default: notebooks/*.ipynb")
    options = parser.parse_args(arguments)

    status = 0
    for path in options.paths or sorted(Path("notebooks").glob("*.ipynb")):
        try:
            text = to_text(strip(read_notebook(path)))
        except ValueError as error:
            print(error, file=sys.stderr)
            status = 1
            continue
        if text == path.read_text(encoding="utf-8"):
            continue
        if options.action == "strip":
            path.write_text(text, encoding="utf-8")
            print(f"stripped {path}")
        else:
            print(f"{path}: not stripped; run python -m irlkit.notebooks strip", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
