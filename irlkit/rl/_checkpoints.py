"""Checkpoints of runs: one file, whole or absent, that continues one run only."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from irlkit.crystals import CrystalBatch
from irlkit.rl.config import TrainerConfig
from irlkit.rl.process import Requests
from irlkit.utils.checks import checked
from irlkit.utils.system import write_atomically

CHECKPOINT = "checkpoint.pt"
_PACKED = "packed tensor"
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
        state = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged file can make torch.load raise nearly anything
        raise ValueError(f"{wrong}: it cannot be read ({type(error).__name__})") from error
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


def pack(tree: Any) -> tuple[Any, dict[str, Tensor]]:
    """Join the tensors of nested dicts, lists and tuples to one per dtype, on the CPU.

    A file of a few long tensors is written many times faster than one of hundreds of short ones.

    Returns:
        The tree with plain data for tensors, and the joined tensors, which share no memory with
        those of the tree.
    """
    pieces: dict[str, list[Tensor]] = {}

    def walk(node: Any) -> Any:
        if isinstance(node, Tensor):
            dtype = str(node.dtype).removeprefix("torch.")
            pieces.setdefault(dtype, []).append(node.detach().flatten().cpu())
            return {_PACKED: dtype, "shape": list(node.shape)}
        if isinstance(node, Mapping):
            return {key: walk(value) for key, value in node.items()}
        if isinstance(node, list | tuple):
            return type(node)(walk(value) for value in node)
        return node

    return walk(tree), {dtype: torch.cat(parts) for dtype, parts in pieces.items()}


def unpack(tree: Any, joined: Mapping[str, Tensor]) -> Any:
    """Undo ``pack``.

    Raises:
        ValueError: the tensors are more or fewer than the tree has a place for.
    """
    left = dict(joined)

    def walk(node: Any) -> Any:
        if isinstance(node, Mapping) and _PACKED in node:
            dtype, shape = node[_PACKED], node["shape"]
            size = math.prod(shape)
            if dtype not in left or len(left[dtype]) < size:
                raise ValueError(f"tensors of {dtype} are missing")
            tensor, left[dtype] = left[dtype][:size], left[dtype][size:]
            return tensor.reshape(shape).clone()
        if isinstance(node, Mapping):
            return {key: walk(value) for key, value in node.items()}
        if isinstance(node, list | tuple):
            return type(node)(walk(value) for value in node)
        return node

    unpacked = walk(tree)
    if any(len(rest) for rest in left.values()):
        raise ValueError("there are more tensors than there is a place for")
    return unpacked
