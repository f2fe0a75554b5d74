"""Results of an experiment as files: strict JSON, parquet, HTML."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from irlkit.lab.experiments.claims import Claim
from irlkit.lab.experiments.handcrafted import SWEEP_RANGE
from irlkit.utils.checks import checked
from irlkit.utils.system import write_atomically

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from irlkit.lab.experiments.base import Experiment

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


def _to_results(experiment: Experiment, claims: list[Claim]) -> dict[str, Any]:
    """All that goes into results.json."""
    return {
        "parameters": experiment.parameters(),
        "environment": {**environment(experiment.device), "seconds": experiment.seconds},
        "dataset": {
            "name": experiment.dataset,
            "split_sizes": experiment.split_sizes,
            "n_test_structures": len(experiment.test),
            "n_skipped": len(experiment.test.skipped),
            "checkpoint": experiment.checkpoint,
        },
        "evaluation": _evaluation_records(experiment.evaluation),
        "handcrafted_sweep": [
            {
                "n_steps": n_steps,
                "split": "val",
                "range": [0.0, SWEEP_RANGE],
                "best": asdict(experiment.best_handcrafted(n_steps)),
                "trials": trials.to_dict("records"),
            }
            for n_steps, trials in experiment.sweeps.items()
        ],
        **experiment.results(),
        "claims": [asdict(claim) for claim in claims],
    }


def _evaluation_records(evaluation: pd.DataFrame) -> list[dict[str, Any]]:
    """The evaluations as results.json has them: coefficients only where something was tuned."""
    records = []
    for record in evaluation.to_dict("records"):
        row = {str(name): value for name, value in record.items()}
        coefficients = {name: row.pop(name) for name in ("pos", "cell")}
        tuned = row["schedule"] == "handcrafted"
        row["tuned_at"] = int(row["tuned_at"]) if row["tuned_at"] > 0 else None  # Or nan.
        records.append({**row, "coefficients": coefficients if tuned else None})
    return records


@checked
def write_results(
    experiment: Experiment,
    claims: list[Claim],
    figures: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write results.json, tables, what was learned and figures to `out_dir`.

    Args:
        experiment: after its evaluations.
        claims: of ``claims``.
        figures: name -> plotly figure.

    Returns:
        The files.
    """
    paths = experiment.save_learned()
    for name, table in experiment.tables().items():
        if len(table):
            paths.append(write_table(table, experiment.out_dir / f"{name}.parquet"))
    paths += write_figures(figures or {}, experiment.out_dir / "figures")
    data = _to_results(experiment, claims)
    paths.append(write_json(data, experiment.out_dir / "results.json"))
    experiment.finish()
    return paths
