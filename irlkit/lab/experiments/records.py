"""What notebooks leave in their folders: strict JSON, parquet, HTML."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from irlkit.lab.experiments.claims import Claim
from irlkit.utils.system import write_atomically

if TYPE_CHECKING:
    import plotly.graph_objects as go

_PACKAGES = ("irlkit", "torch", "numpy", "pymatgen", "pandas", "plotly", "papermill")


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
        try:
            statements = ast.parse(cell).body
        except SyntaxError:  # A typo, which stays in the list of cells.
            continue
        set_here = [s for s in statements if isinstance(s, ast.Assign) and _is_literal(s.value)]
        if len(set_here) == len(statements):
            targets = [target for s in set_here for target in s.targets]
            names |= {target.id: None for target in targets if isinstance(target, ast.Name)}
    return {name: namespace[name] for name in names if name in namespace}


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
    seconds: Mapping[str, float] | None = None,
    **more: Any,
) -> list[Path]:
    """Write results.json, tables as parquet and figures as HTML; return the files.

    Args:
        out_dir: folder, made if it is not there.
        parameters: of the notebook.
        device: what it ran on.
        dataset: what it was about: name, sizes.
        claims: what was checked.
        tables: name -> table; empty ones are left out.
        figures: name -> figure.
        seconds: what -> how long it took.
        **more: further entries of results.json.
    """
    folder = Path(out_dir)
    paths = []
    for name, table in tables.items():
        if len(table):
            paths.append(folder / f"{name}.parquet")
            write_atomically(paths[-1], table.to_parquet(index=False))
    paths += _write_figures(figures, folder / "figures")
    paths.append(folder / "results.json")
    results = {
        "parameters": dict(parameters),
        "environment": {**_environment(device), **({"seconds": seconds} if seconds else {})},
        "dataset": dict(dataset),
        "claims": [asdict(claim) for claim in claims],
        **more,
    }
    _write_json(results, paths[-1])
    return paths


def _environment(device: torch.device | str) -> dict[str, Any]:
    """Versions and machine."""
    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    device = torch.device(device)
    on_gpu = device.type == "cuda"
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if on_gpu else platform.machine(),
        "n_cores": os.cpu_count(),
        "n_threads": torch.get_num_threads(),
    }


def _to_plain(value: Any) -> Any:
    """What strict JSON can hold: numbers that are not finite as None, arrays as lists."""
    if isinstance(value, Mapping):
        return {str(key): _to_plain(entry) for key, entry in value.items()}
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_to_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def _write_json(data: Mapping[str, Any], path: Path) -> None:
    text = json.dumps(_to_plain(data), indent=1, allow_nan=False) + "\n"
    write_atomically(path, text.encode())


def _write_figures(figures: Mapping[str, go.Figure], folder: Path) -> list[Path]:
    """HTML that needs no network: plotly's script lies once beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.html" for name in figures]
    for path, figure in zip(paths, figures.values(), strict=True):
        figure.write_html(path, include_plotlyjs="directory", auto_play=False)
    return paths
