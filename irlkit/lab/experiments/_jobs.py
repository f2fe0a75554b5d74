"""Evaluations on the test split, and their rows."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from irlkit.flows.dynamics import Dynamics
from irlkit.flows.schedules import Annealing, EndpointAnnealing, LinearAnnealing


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
    training_seed: int | None = None,
    dynamics: Dynamics | None = None,
    **labels: Any,
) -> Job:
    """An evaluation whose columns say how the velocity was annealed, after further labels.

    Args:
        n_steps: integration steps.
        seed: of the base samples.
        schedule: what the annealing is called: "none", "handcrafted", "rule", "learned", ...
        annealing: of the velocity.
        tuned_at: number of steps that a handcrafted one, or the rule, was tuned for.
        training_seed: of what was trained; None: nothing was.
        dynamics: what generates; None: the pretrained model with the annealing.
    """
    tuned = annealing if isinstance(annealing, LinearAnnealing | EndpointAnnealing) else None
    annealed = {
        "schedule": schedule,
        "tuned_at": np.nan if tuned_at is None else tuned_at,
        "pos": np.nan if tuned is None else tuned.pos,
        "cell": np.nan if tuned is None else tuned.cell,
    }
    trained = np.nan if training_seed is None else training_seed
    columns = {**labels, **annealed, "n_steps": n_steps, "seed": seed, "training_seed": trained}
    return Job(columns, annealing if dynamics is None else dynamics)


def seed_pairs(
    trained: Sequence[int], seeds: Sequence[int], crossed: bool = True
) -> list[tuple[int, int]]:
    """Pairs of a training seed and a seed of base samples: all, or those of equal seeds."""
    return [(t, s) for t in trained for s in seeds if crossed or t == s]


def fingerprint(*parts: Any) -> str:
    """A name for what an evaluation depends on: the same for the same weights and settings."""
    digest = hashlib.sha256()

    def add(part: Any) -> None:
        own = type(part).__repr__ is object.__repr__ and hasattr(part, "__dict__")
        if isinstance(part, nn.Module):
            add(getattr(part, "arguments", None))
            part = {name: value.detach() for name, value in part.state_dict().items()}
        elif own or (is_dataclass(part) and not isinstance(part, type)):
            # Not its text, which may be where it is in memory.
            digest.update(f"{type(part).__qualname__}:".encode())
            part = vars(part)
        if isinstance(part, Mapping):
            for name, value in part.items():
                digest.update(f"{name}:".encode())
                add(value)
        elif isinstance(part, list | tuple):
            for value in part:
                add(value)
        elif hasattr(part, "detach"):
            digest.update(part.cpu().contiguous().numpy().tobytes())
        elif inspect.ismethod(part):
            add([part.__func__, part.__self__])
        elif inspect.isfunction(part):
            cells = [cell.cell_contents for cell in part.__closure__ or ()]
            add([part.__code__, part.__defaults__, part.__kwdefaults__, cells])
        elif inspect.iscode(part):
            add([part.co_name, part.co_code, part.co_names, part.co_consts])
        else:
            digest.update(f"{part!r};".encode())

    for part in parts:
        add(part)
    return digest.hexdigest()[:32]


def evaluation_records(evaluation: pd.DataFrame) -> list[dict[str, Any]]:
    """The evaluations as results.json has them: coefficients only where something was tuned."""
    records = []
    for record in evaluation.to_dict("records"):
        row = {str(name): value for name, value in record.items()}
        coefficients = {name: row.pop(name) for name in ("pos", "cell")}
        tuned = row["schedule"] in ("handcrafted", "rule")
        for name in ("tuned_at", "training_seed"):
            row[name] = None if np.isnan(row[name]) else int(row[name])
        records.append({**row, "coefficients": coefficients if tuned else None})
    return records
