"""Notebooks as files: reading them, and removing what execution leaves behind."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

# What ipykernel registers in every environment: a notebook saved with somebody's own kernel name
# would not run anywhere else.
_METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def strip(notebook: dict[str, Any]) -> dict[str, Any]:
    """Return a notebook without what execution and editors leave behind.

    Sources, cell types, cell ids and tags stay. Outputs, execution counts, widget states, timings,
    language versions and papermill's injected parameters go, and the kernel becomes ``python3``.

    Args:
        notebook: of ``read_notebook``; left unchanged.
    """
    cells = []
    for cell in notebook["cells"]:
        tags = cell.get("metadata", {}).get("tags")
        if "injected-parameters" in (tags or ()):
            continue
        kept = {} if tags is None else {"tags": tags}
        source = "".join(cell["source"]).splitlines(keepends=True)
        cell = {**cell, "metadata": kept, "source": source}
        if cell["cell_type"] == "code":
            cell |= {"execution_count": None, "outputs": []}
        cells.append(cell)
    return {**notebook, "cells": cells, "metadata": _METADATA}


def to_text(notebook: dict[str, Any]) -> str:
    """Serialise a notebook as Jupyter itself does, so that a save in JupyterLab changes nothing."""
    return json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


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


def title_of(notebook: dict[str, Any], otherwise: str) -> str:
    """Return the first heading of a notebook."""
    texts = ("".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "markdown")
    headings = (re.match(r"#\s+(.+)", text) for text in texts)
    return next((heading[1].strip() for heading in headings if heading), otherwise)
