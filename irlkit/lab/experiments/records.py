"""What notebooks leave in their folders that are no experiments of the paper."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from irlkit.lab.experiments.claims import Claim
from irlkit.lab.experiments.results import environment, write_figures, write_json, write_table

if TYPE_CHECKING:
    import plotly.graph_objects as go


def parameters_of(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of the notebook that calls, as they are now, by name.

    They are what those of its cells set that set nothing but literal values.

    Args:
        namespace: ``globals()`` in the notebook.

    >>> parameters_of({"In": ["", "seed = 1  # of all", "seed = 2", "x = f(seed)"], "seed": 2})
    {'seed': 2}
    """
    names: dict[str, None] = {}
    for cell in namespace["In"]:
        statements = ast.parse(cell).body
        if all(isinstance(s, ast.Assign) and _is_literal(s.value) for s in statements):
            names |= {ast.unparse(s.targets[0]): None for s in statements}  # type: ignore
    return {name: namespace[name] for name in names}


def _is_literal(value: ast.expr) -> bool:
    try:
        ast.literal_eval(value)
    except ValueError:
        return False
    return True


def write_records(
    out_dir: str | Path,
    *,
    parameters: Mapping[str, Any],
    device: torch.device | str,
    dataset: Mapping[str, Any],
    claims: Sequence[Claim],
    tables: Mapping[str, pd.DataFrame],
    figures: Mapping[str, go.Figure],
    **more: Any,
) -> list[Path]:
    """Write results.json, tables as parquet and figures as HTML; return the files.

    Args:
        out_dir: folder, made if it is not there.
        parameters: of the notebook.
        device: what it ran on.
        dataset: what it was about: name, sizes.
        claims: what was checked.
        tables: name -> table.
        figures: name -> figure.
        **more: further entries of results.json.
    """
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [write_table(table, folder / f"{name}.parquet") for name, table in tables.items()]
    paths += write_figures(figures, folder / "figures")
    results = {
        "parameters": dict(parameters),
        "environment": environment(device),
        "dataset": dict(dataset),
        "claims": [asdict(claim) for claim in claims],
        **more,
    }
    return [*paths, write_json(results, folder / "results.json")]
