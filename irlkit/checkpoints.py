"""The checkpoint of a GRPO run: one file, whole or absent, that continues one run only."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from irlkit.crystals import CrystalBatch
from irlkit.grpo import GRPOConfig
from irlkit.system import write_atomically

CHECKPOINT = "checkpoint.pt"
FORMAT = "irlkit-grpo-checkpoint"


def composition_digest(*batches: CrystalBatch | None) -> str:
    """A hash of compositions, which tells data sets apart."""
    digest = hashlib.sha256()
    for batch in batches:
        if batch is not None:
            digest.update(batch.species.cpu().numpy().tobytes())
            digest.update(batch.n_atoms.cpu().numpy().tobytes())
    return digest.hexdigest()


def model_digest(model: nn.Module) -> str:
    """A hash of the weights of the pretrained model, which the checkpoint does not hold."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def write_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write the state of a run, marked as one."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    write_atomically(path, buffer.getvalue())


def read_checkpoint(
    path: str | Path, identity: Mapping[str, str], device: torch.device
) -> dict[str, Any]:
    """Read a state that ``write_checkpoint`` wrote, of the same run.

    Args:
        path: the file.
        identity: what the run is known by; the state's "identity" has to agree with it. In
            "config" (JSON), settings that are younger than the file count as their defaults.
        device: where tensors are put.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is no checkpoint, or one of another run (says what differs).
    """
    path = Path(path)
    wrong = f"{path} is not a checkpoint of GRPOTrainer"
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged file can make torch.load raise nearly anything
        raise ValueError(f"{wrong}: it cannot be read ({type(error).__name__})") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"{wrong}: it carries no '{FORMAT}' mark")
    try:
        # Older files do not say of which model they are.
        found = {"model": identity.get("model"), **state["identity"]}
        settings = {**GRPOConfig().to_dict(), **json.loads(found["config"])}
    except (KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{wrong}: it does not say of which run it is") from error
    found["config"] = json.dumps(settings, sort_keys=True)
    for name, ours in identity.items():
        if found.get(name) != ours:
            raise ValueError(
                f"{path} belongs to another run: its {name} is {found.get(name)}, here it is "
                f"{ours}; take another out_dir or the same settings"
            )
    return state
