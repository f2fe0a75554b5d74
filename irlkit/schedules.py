"""Schedules over time: noise sigma(t) and velocity annealing s(t).

A noise schedule maps a time to the noise scale of the dynamics (Eqs. 7, 13, 14). An annealing maps
a time and a step size to one scalar ``s`` per field; it multiplies a velocity by ``1 + s`` (15).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize_tensors
from torch import Tensor, nn

from irlkit.interpolants import T_MAX, T_MIN
from irlkit.system import write_atomically

FIELD_NAMES = ("pos", "cell")
_FORMAT = "irlkit-annealing"


def time_grid(
    n_steps: int, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
) -> Tensor:
    """Times of an integration, equally spaced from 1e-3 to 1 - 1e-3.

    Args:
        n_steps: number of intervals.
        dtype: the grid is computed in float64 and rounded once.
        device: where the grid lies.

    Returns:
        Shape (n_steps + 1,).

    Raises:
        ValueError: ``n_steps`` is not a positive integer.
    """
    check_n_steps(n_steps)
    return torch.linspace(T_MIN, T_MAX, n_steps + 1, dtype=torch.float64).to(device, dtype)


def check_n_steps(n_steps: int) -> None:
    """Raise a ValueError unless ``n_steps`` is a positive integer."""
    if isinstance(n_steps, bool) or not isinstance(n_steps, int) or n_steps < 1:
        raise ValueError(
            f"n_steps must be a positive integer (the number of integration intervals), "
            f"got {n_steps!r}"
        )


# --------------------------------------------------------------------------------------------------
# Noise
# --------------------------------------------------------------------------------------------------


class NoiseSchedule(Protocol):
    """sigma(t): times of any shape to positive noise scales of the same shape."""

    def __call__(self, t: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class ConstantNoise:
    """sigma(t) = scale."""

    scale: float

    def __post_init__(self) -> None:
        _check_scale(self.scale)

    def __call__(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.scale)


@dataclass(frozen=True)
class SquareRootNoise:
    """sigma(t) = scale * sqrt((1 - t) / t): strong at the start, zero at the end."""

    scale: float

    def __post_init__(self) -> None:
        _check_scale(self.scale)

    def __call__(self, t: Tensor) -> Tensor:
        return self.scale * torch.sqrt((1.0 - t) / t)


def _check_scale(scale: float) -> None:
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale must be a positive finite number, got {scale!r}")


# --------------------------------------------------------------------------------------------------
# Annealing
# --------------------------------------------------------------------------------------------------


class Annealing(Protocol):
    """s(t, dt): times and step sizes (same shape) to one scalar per field, each of that shape."""

    def __call__(self, t: Tensor, dt: Tensor) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class NoAnnealing:
    """s(t) = 0: the velocity as it was learned."""

    def __call__(self, t: Tensor, dt: Tensor) -> dict[str, Tensor]:
        return {field: torch.zeros_like(t) for field in FIELD_NAMES}


@dataclass(frozen=True)
class LinearAnnealing:
    """The handcrafted schedule s(t) = slope * t, one slope per field.

    Args:
        pos: slope for the fractional coordinates.
        cell: slope for the lattice vectors.

    Raises:
        ValueError: a slope is not finite.
    """

    pos: float = 0.0
    cell: float = 0.0

    def __post_init__(self) -> None:
        for field in FIELD_NAMES:
            if not math.isfinite(getattr(self, field)):
                raise ValueError(f"{field} must be a finite slope, got {getattr(self, field)!r}")

    def __call__(self, t: Tensor, dt: Tensor) -> dict[str, Tensor]:
        return {field: getattr(self, field) * t for field in FIELD_NAMES}


class LearnedAnnealing(nn.Module):
    """s(t) as a multilayer perceptron with SiLU, zero before training (section 3.3).

    Everyday arguments are ``hidden_dim`` and ``n_hidden_layers``; the rest says what is shared.

    Args:
        hidden_dim: width of the hidden layers.
        n_hidden_layers: hidden layers after the first.
        shared_trunk: one trunk with a linear head per field, or one perceptron per field.
        condition_on_dt: the input is (t, f(dt)) instead of t, so that one schedule can serve every
            number of steps. f(dt) = -log10(dt) / 2 - 1, with dt held within [1e-4, 1], lies in
            [-1, 1].
        positive: the perceptron gives ln(1 + s) instead of s, so that 1 + s(t) > 0 at all times,
            those between and beyond the times of training included.
        generator: draws the initial weights (of all but the last layer, which is zero); without
            one they are those of seed 0.

    Raises:
        ValueError: ``hidden_dim`` < 1 or ``n_hidden_layers`` < 0.
    """

    def __init__(
        self,
        hidden_dim: int = 64,
        n_hidden_layers: int = 2,
        shared_trunk: bool = True,
        condition_on_dt: bool = False,
        positive: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if hidden_dim < 1:
            raise ValueError(f"hidden_dim must be at least 1, got {hidden_dim!r}")
        if n_hidden_layers < 0:
            raise ValueError(f"n_hidden_layers must not be negative, got {n_hidden_layers!r}")
        self.hyperparameters = {
            "hidden_dim": hidden_dim,
            "n_hidden_layers": n_hidden_layers,
            "shared_trunk": shared_trunk,
            "condition_on_dt": condition_on_dt,
            "positive": positive,
        }
        n_inputs = 2 if condition_on_dt else 1
        sizes = [n_inputs] + [hidden_dim] * (n_hidden_layers + 1)
        if shared_trunk:
            # The trunk ends in a linear layer, and so does each head: OMatG's parameters fit.
            self.trunk: nn.Module = _perceptron([*sizes, hidden_dim])
            self.heads = nn.ModuleDict({f: _perceptron([hidden_dim, 1]) for f in FIELD_NAMES})
        else:
            self.trunk = nn.Identity()
            self.heads = nn.ModuleDict({f: _perceptron([*sizes, 1]) for f in FIELD_NAMES})
        self._initialize(generator)

    def _initialize(self, generator: torch.Generator | None) -> None:
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        for module in self.modules():
            if isinstance(module, nn.Linear):
                bound = 1.0 / math.sqrt(module.in_features)
                nn.init.uniform_(module.weight, -bound, bound, generator=generator)
                nn.init.uniform_(module.bias, -bound, bound, generator=generator)
        for head in self.heads.values():
            for parameter in list(head.children())[-1].parameters():
                nn.init.zeros_(parameter)

    def forward(self, t: Tensor, dt: Tensor) -> dict[str, Tensor]:
        """s per field.

        Args:
            t: times, any shape.
            dt: step sizes, a shape that broadcasts to that of ``t``.

        Returns:
            Field -> s, of the shape of ``t``.
        """
        inputs = [t]
        if self.hyperparameters["condition_on_dt"]:
            inputs.append(-0.5 * dt.clamp(1e-4, 1.0).log10().expand_as(t) - 1.0)
        features = self.trunk(torch.stack(inputs, dim=-1).to(next(self.parameters())))
        raw = {field: head(features).squeeze(-1) for field, head in self.heads.items()}
        if self.hyperparameters["positive"]:
            return {field: torch.expm1(value) for field, value in raw.items()}
        return raw

    @classmethod
    def from_omatg(cls, state_dict: Mapping[str, Tensor]) -> LearnedAnnealing:
        """A schedule from weights under OMatG-IRL's parameter names.

        Args:
            state_dict: ``_trunk.{k}.*`` and ``_{field}_head.*`` (shared trunk), or
                ``_{field}_mlp.{k}.*`` (one perceptron per field).

        Raises:
            ValueError: the names or shapes are not those of such a schedule.
        """
        renamed = {_rename(name): value for name, value in state_dict.items()}
        shared = any(name.startswith("trunk.") for name in renamed)
        layers = sorted(
            {
                int(name.split(".")[-2])
                for name in renamed
                if name.startswith("trunk." if shared else "heads.pos.")
            }
        )
        first = renamed.get("trunk.0.weight" if shared else "heads.pos.0.weight")
        if first is None or first.ndim != 2 or len(layers) < 2:
            raise ValueError(
                "state_dict holds no annealing network: expected _trunk.* with _pos_head.* and "
                f"_cell_head.*, or _pos_mlp.* and _cell_mlp.*; got {sorted(state_dict)[:8]}"
            )
        annealing = cls(first.shape[0], len(layers) - 2, shared, first.shape[1] == 2).to(
            first.dtype
        )
        try:
            annealing.load_state_dict(renamed)
        except RuntimeError as error:
            raise ValueError(f"state_dict does not fit an annealing network: {error}") from error
        return annealing

    def omatg_name(self, name: str) -> str:
        """OMatG-IRL's name of the parameter that is called ``name`` here."""
        if name.startswith("trunk."):
            return f"_{name}"
        _, field, layer, kind = name.split(".")
        if self.hyperparameters["shared_trunk"]:
            return f"_{field}_head.{kind}"
        return f"_{field}_mlp.{layer}.{kind}"


def _perceptron(sizes: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        layers += [nn.utils.skip_init(nn.Linear, n_in, n_out), nn.SiLU()]
    return nn.Sequential(*layers[:-1])


def _rename(name: str) -> str:
    name = re.sub(r"^_(pos|cell)_head\.", r"heads.\1.0.", name)
    name = re.sub(r"^_(pos|cell)_mlp\.", r"heads.\1.", name)
    return re.sub(r"^_trunk\.", "trunk.", name)


def annealing_on_grid(annealing: Annealing, times: Tensor) -> dict[str, Tensor]:
    """s of every step of a time grid.

    Evaluated for the whole grid at once, always: a matrix product over another number of rows may
    round differently, and a rollout and its update must agree to the last bit.

    Args:
        annealing: the schedule.
        times: grid, shape (n_steps + 1,).

    Returns:
        Field -> shape (n_steps,).
    """
    return annealing(times[:-1], times.diff())


# --------------------------------------------------------------------------------------------------
# Files
# --------------------------------------------------------------------------------------------------

_KINDS = {cls.__name__: cls for cls in (NoAnnealing, LinearAnnealing, LearnedAnnealing)}


def save_annealing(
    annealing: Annealing, path: str | Path, metadata: Mapping[str, object] | None = None
) -> None:
    """Write an annealing as safetensors; the file is complete or absent, never half-written.

    Args:
        annealing: ``NoAnnealing``, ``LinearAnnealing`` or ``LearnedAnnealing``.
        path: file to write.
        metadata: anything JSON can hold, kept beside the weights (what it was trained on, ...).

    Raises:
        ValueError: another kind of annealing.
    """
    kind = type(annealing).__name__
    if isinstance(annealing, LearnedAnnealing):
        arguments = annealing.hyperparameters
        tensors = {k: v.detach().cpu().contiguous() for k, v in annealing.state_dict().items()}
    elif isinstance(annealing, NoAnnealing | LinearAnnealing):
        arguments = asdict(annealing)
        # A file without tensors is not readable everywhere.
        tensors = {"arguments": torch.tensor([*arguments.values()], dtype=torch.float64)}
    else:
        raise ValueError(f"annealing must be one of {sorted(_KINDS)} to be saved, got {kind}")
    header = {"format": _FORMAT, "kind": kind, "arguments": arguments, "metadata": metadata or {}}
    write_atomically(path, serialize_tensors(tensors, {"irlkit": json.dumps(header)}))


def load_annealing(path: str | Path) -> Annealing:
    """Read what ``save_annealing`` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is no annealing of this package.
    """
    header, tensors = _read(path)
    if header["kind"] != "LearnedAnnealing":
        return _KINDS[header["kind"]](**header["arguments"])
    annealing = LearnedAnnealing(**header["arguments"]).to(next(iter(tensors.values())).dtype)
    try:
        annealing.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{path}: weights and arguments disagree: {error}") from error
    return annealing


def read_annealing_metadata(path: str | Path) -> dict[str, object]:
    """The metadata that was given to ``save_annealing``."""
    return _read(path)[0]["metadata"]


def _read(path: str | Path) -> tuple[dict, dict[str, Tensor]]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"no annealing file at {path}")
    wrong = f"{path} is not an annealing written by save_annealing"
    try:
        with safe_open(str(path), "pt") as file:
            header = json.loads((file.metadata() or {}).get("irlkit", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{wrong}: {error}") from error
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise ValueError(f"{wrong}: it carries no '{_FORMAT}' header")
    if header.get("kind") not in _KINDS:
        raise ValueError(f"{path}: unknown kind of annealing {header.get('kind')!r}")
    return header, tensors
