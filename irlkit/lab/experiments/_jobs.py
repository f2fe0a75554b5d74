"""Evaluations on the test split, and their rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from irlkit.flows.dynamics import Dynamics
from irlkit.flows.schedules import Annealing, LinearAnnealing


@dataclass(frozen=True)
class Job:
    """One evaluation on the test split.

    Attributes:
        labels: columns that tell it from others; has n_steps and seed (of the base samples).
        dynamics: what generates; an annealing stands for the pretrained model with it.
    """

    labels: Mapping[str, Any]
    dynamics: Dynamics | Annealing | None = None


def make_job(
    n_steps: int,
    seed: int,
    schedule: str = "none",
    annealing: Annealing | None = None,
    *,
    tuned_at: int | None = None,
    dynamics: Dynamics | None = None,
    **labels: Any,
) -> Job:
    """An evaluation whose columns say how the velocity was annealed, after further labels.

    Args:
        n_steps: integration steps.
        seed: of the base samples.
        schedule: what the annealing is called: "none", "handcrafted", "learned", ...
        annealing: of the velocity.
        tuned_at: number of steps that a handcrafted one was tuned for.
        dynamics: what generates; None: the pretrained model with the annealing.
    """
    linear = annealing if isinstance(annealing, LinearAnnealing) else None
    annealed = {
        "schedule": schedule,
        "tuned_at": np.nan if tuned_at is None else tuned_at,
        "pos": np.nan if linear is None else linear.pos,
        "cell": np.nan if linear is None else linear.cell,
    }
    columns = {**labels, **annealed, "n_steps": n_steps, "seed": seed}
    return Job(columns, annealing if dynamics is None else dynamics)


def evaluation_records(evaluation: pd.DataFrame) -> list[dict[str, Any]]:
    """The evaluations as results.json has them: coefficients only where something was tuned."""
    records = []
    for record in evaluation.to_dict("records"):
        row = {str(name): value for name, value in record.items()}
        coefficients = {name: row.pop(name) for name in ("pos", "cell")}
        tuned = row["schedule"] == "handcrafted"
        row["tuned_at"] = int(row["tuned_at"]) if row["tuned_at"] > 0 else None  # Or nan.
        records.append({**row, "coefficients": coefficients if tuned else None})
    return records
