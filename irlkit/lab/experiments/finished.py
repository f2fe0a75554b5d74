"""What a finished run of notebook 04 left, read again: for explorers without the training."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from irlkit.data import CrystalDataset
from irlkit.flows.schedules import (
    Annealing,
    EndpointAnnealing,
    LinearAnnealing,
    NoAnnealing,
    load_annealing,
)
from irlkit.lab._splits import load_splits
from irlkit.networks.flow_model import FlowModel
from irlkit.networks.pretrained import PRETRAINED, load_pretrained

SHIPPED = PRETRAINED / "annealing"
"""Results of notebook 04 that come with the package (an earlier preset laptop, the first seed).

The rule's constants are those that docs/rule.py chooses.
"""


@dataclass(frozen=True)
class FinishedAnnealing:
    """Model, schedules and a few structures of a run.

    Attributes:
        model: the pretrained model.
        structures: a few test structures.
        schedules: name -> schedule, the learned one first.
        n_steps: the number of steps that it was learned for.
    """

    model: FlowModel
    structures: CrystalDataset
    schedules: dict[str, Annealing]
    n_steps: int


def load_finished(
    results: str | Path | None = None, n_structures: int = 8, device: str | torch.device = "cpu"
) -> FinishedAnnealing:
    """Read what notebook 04 wrote, without computing anything again.

    Args:
        results: its ``out_dir``; None: ``SHIPPED``.
        n_structures: how many test structures, half of which the learned schedule finds.
        device: of the network.

    Raises:
        FileNotFoundError: a file is missing there.
        ValueError: the files are not those of notebook 04.
    """
    folder = SHIPPED if results is None else Path(results)
    path = folder / "results.json"
    if not path.is_file():
        raise FileNotFoundError(f"no results of notebook 04 in {folder}: {path.name} is missing")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        settings, source = record["parameters"]["settings"], record["dataset"]
        few, seed = int(settings["n_steps"]), int(settings["seeds"][0])
        untrained: dict[str, Annealing] = {
            f"{name}, for {sweep['n_steps']} steps": kind(**sweep["best"])
            for name, kind in (("rule", EndpointAnnealing), ("handcrafted", LinearAnnealing))
            for sweep in record.get(f"{name}_sweep", ())
        }
        table = pd.read_parquet(folder / "structures.parquet")
        rows = table[(table["schedule"] == "learned") & (table["n_steps"] == few)]
        rows = rows[(rows["seed"] == seed) & (rows.get("training_seed", seed) == seed)]
        found = np.isfinite(rows["rmsd"].to_numpy())
        names = source["checkpoint"], source["name"], settings["test_size"]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder} has no results of notebook 04: {error!r}") from error
    checkpoint, dataset, test_size = names
    test = load_splits(dataset)[-1].subset(test_size)
    if len(test) != len(found):
        raise ValueError(
            f"{folder} has results of {len(found)} structures, the test split of {dataset} has "
            f"{len(test)}: not the data that they were made with"
        )
    learned = load_annealing(folder / f"schedule_seed_{seed}.safetensors")
    return FinishedAnnealing(
        load_pretrained(checkpoint, device),
        test.select(_some_found(found, n_structures)),
        {"learned": learned, **untrained, "none": NoAnnealing()},
        few,
    )


def _some_found(found: np.ndarray, size: int) -> torch.Tensor:
    """Numbers of at most `size` structures, sorted: half that were found, as far as there are."""
    good, bad = np.flatnonzero(found), np.flatnonzero(~found)
    n_bad = min(len(bad), max(size // 2, size - len(good)))
    rows = np.concatenate([good[: size - n_bad], bad[:n_bad]])
    return torch.from_numpy(np.sort(rows))
