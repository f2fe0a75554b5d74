"""Checkpoints of runs: one file, whole or absent, that continues one run only."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from irlkit.crystals import CrystalBatch
from irlkit.rl.config import TrainerConfig
from irlkit.rl.process import Requests
from irlkit.utils.checks import checked
from irlkit.utils.foreign import load_plain
from irlkit.utils.system import write_atomically

CHECKPOINT = "checkpoint.pt"
FORMAT = "irlkit-grpo-checkpoint"


def request_digest(*requests: Requests | None) -> str:
    """Return a hash of requests, which tells data sets apart."""
    digest = hashlib.sha256()
    for request in requests:
        if request is not None:
            crystals = request if isinstance(request, CrystalBatch) else request.crystals
            species = None if crystals is None else crystals.species
            targets = {} if isinstance(request, CrystalBatch) else request.targets
            for tensor in (species, request.n_atoms, *(targets[name] for name in sorted(targets))):
                if tensor is not None:
                    digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def identity_of(
    policy: Mapping[str, str], energies: str, data: str, config: TrainerConfig
) -> dict[str, str]:
    """Return what a checkpoint must agree with, as text by name."""
    # Where an object is in memory, which its text may say, is another place in another process.
    of_policy = {k: re.sub(r" at 0x[0-9a-fA-F]+", "", text) for k, text in policy.items()}
    settings = json.dumps(config.to_settings(), sort_keys=True)
    return {**of_policy, "energies": energies, "data": data, "config": settings}


def write_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write the state of a run, marked as one."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    write_atomically(path, buffer.getvalue())


@checked
def read_checkpoint(
    path: str | Path, identity: Mapping[str, str], device: torch.device
) -> dict[str, Any]:
    """Read a state that ``write_checkpoint`` wrote, of the same run.

    Args:
        path: the file.
        identity: what the run is known by; the state's "identity" has to agree with it where both
            say something. In "config" (JSON), settings that are younger than the file count as
            their defaults.
        device: where tensors are put.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is no checkpoint, or one of another run (says what differs).
    """
    path = Path(path)
    wrong = f"{path} is not a checkpoint of GRPOTrainer"
    try:
        state = load_plain(path, device)
    except ValueError as error:
        raise ValueError(f"{wrong}: {error}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"{wrong}: it carries no '{FORMAT}' mark")
    try:
        found = dict(state["identity"])
        settings = {**TrainerConfig().to_settings(), **json.loads(found["config"])}
    except (KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{wrong}: it does not say of which run it is") from error
    found["config"] = json.dumps(settings, sort_keys=True)
    for name, ours in identity.items():
        if ours and found.get(name) and found[name] != ours:
            raise ValueError(
                f"{path} belongs to another run: its {name} is {found[name]}, here it is "
                f"{ours}; take another out_dir or the same settings"
            )
    return state
