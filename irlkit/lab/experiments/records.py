"""What every notebook leaves in its folder, also one that is no experiment of the paper."""

from __future__ import annotations

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
    """Write results.json, tables as parquet and figures as HTML.

    Args:
        out_dir: folder, made if it is not there.
        parameters: of the notebook.
        device: what it ran on.
        dataset: what it was about: name, sizes.
        claims: what was checked.
        tables: name -> table.
        figures: name -> figure.
        **more: further entries of results.json.

    Returns:
        The files.
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
