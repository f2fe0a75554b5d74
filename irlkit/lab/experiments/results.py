"""Results of an experiment as files: strict JSON, parquet, HTML."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from irlkit.utils.system import write_atomically

if TYPE_CHECKING:
    import plotly.graph_objects as go


_PACKAGES = ("irlkit", "torch", "numpy", "pymatgen", "pandas", "plotly", "papermill")


def environment(device: torch.device | str) -> dict[str, Any]:
    """Return versions and machine."""
    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    device = torch.device(device)
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "device": str(device),
        "device_name": (
            torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
        ),
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
    if isinstance(value, Path):
        return str(value)
    return value


def write_json(data: Mapping[str, Any], path: str | Path) -> Path:
    """Write strict JSON (no NaN)."""
    text = json.dumps(_to_plain(data), indent=1, allow_nan=False) + "\n"
    write_atomically(path, text.encode())
    return Path(path)


def write_table(table: pd.DataFrame, path: str | Path) -> Path:
    """Write a table as parquet."""
    write_atomically(path, table.to_parquet(index=False))
    return Path(path)


def write_figures(figures: Mapping[str, go.Figure], folder: str | Path) -> list[Path]:
    """Write figures as HTML that needs no network: plotly's script lies once beside them."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in figures.items():
        path = folder / f"{name}.html"
        figure.write_html(path, include_plotlyjs="directory", auto_play=False)
        paths.append(path)
    return paths
