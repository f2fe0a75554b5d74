"""What policies of a flow share: a frozen model, noise, and the process of positions and cells."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import is_dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from irlkit.crystals import CrystalBatch
from irlkit.flows.dynamics import Dynamics, advance
from irlkit.flows.schedules import (
    FIELD_NAMES,
    Annealing,
    NoiseSchedule,
    ScaledNoise,
    annealing_on_grid,
    time_grid,
)
from irlkit.networks.flow_model import FlowModel
from irlkit.rl.policies.base import Outputs, Policy, StepInputs
from irlkit.rl.process import Field, Process, Requests, State


class CrystalFlow(Process):
    """Moves positions and cells of given compositions from the base distribution to crystals.

    Args:
        model: has the base distribution.
    """

    fields: ClassVar[tuple[Field, ...]] = (
        Field("pos", "atom", "torus", 1),
        Field("cell", "structure", "real", 2),
    )

    def __init__(self, model: FlowModel) -> None:
        self.model = model

    def grid(
        self, n_steps: int, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
    ) -> Tensor:
        return time_grid(n_steps, dtype, device)

    def initial(self, request: Requests, generator: torch.Generator) -> State:
        if not isinstance(request, CrystalBatch):
            raise ValueError("request must hold compositions (a CrystalBatch), got none")
        with torch.no_grad():
            return self.encode(self.model.sample_base(request, generator))

    def encode(self, crystals: CrystalBatch) -> State:
        return State(crystals, self.fields, {f: getattr(crystals, f) for f in FIELD_NAMES})

    def advance(self, state: State, moves: Mapping[str, Tensor], step: int) -> State:
        return state.moved_to(advance(state.values, moves))

    def decode(self, state: State) -> CrystalBatch:
        assert isinstance(state.request, CrystalBatch)
        return state.request.replace(pos=state["pos"], cell=state["cell"])


class FlowPolicy(Policy):
    """What the policies of a flow share.

    Args:
        model: frozen pretrained model; defines the reference policy and moves the fields that are
            not reinforced.
        noise: field -> sigma(t), for exploration; its fields are the reinforced ones. A
            ``LearnedNoise`` is trained with the policy.
        ref_noise: field -> sigma_ref(t) of the reference policy; None means ``noise`` as it was
            before training, with which it then also decays.
        process: what is moved; None: positions and cells of given compositions. Fields that it has
            besides these are reinforced without noise.

    Raises:
        ValueError: no field, an unknown field, or other fields in ``ref_noise`` than in ``noise``.
    """

    heads: ClassVar[tuple[str, ...]] = ("velocity",)

    def __init__(
        self,
        model: FlowModel,
        noise: Mapping[str, NoiseSchedule],
        ref_noise: Mapping[str, NoiseSchedule] | None = None,
        process: Process | None = None,
    ) -> None:
        process = CrystalFlow(model) if process is None else process
        others = tuple(entry.name for entry in process.fields if entry.space == "categorical")
        able = tuple(name for name in process.field_names if name not in others)
        if not (noise or others) or set(noise) - set(able):
            raise ValueError(
                f"noise must name one or more of the fields {able}, got {sorted(noise)}"
            )
        super().__init__(process, (*others, *noise))
        self._event_dims = {entry.name: entry.event_dims for entry in process.fields}
        self._ref_is_noise = ref_noise is None
        # The reference of a noise that is learned is how it began.
        ref_noise = copy.deepcopy(dict(noise)) if ref_noise is None else ref_noise
        if set(ref_noise) != set(noise):
            raise ValueError(
                f"ref_noise must name the same fields as noise, {sorted(noise)}, "
                f"got {sorted(ref_noise)}"
            )
        # In a tuple, so that the frozen network is neither trained nor stored with the policy.
        self._frozen = (model,)
        like = next(model.parameters())
        self.learned_noise = nn.ModuleDict(
            {name: entry.to(like) for name, entry in noise.items() if isinstance(entry, nn.Module)}
        )
        self.noise = dict(noise)
        self.ref_noise = dict(ref_noise)
        for entry in self.ref_noise.values():
            if isinstance(entry, nn.Module):
                entry.to(like).requires_grad_(False)

    @property
    def model(self) -> FlowModel:
        """The frozen pretrained model."""
        return self._frozen[0]

    def schedule(self) -> Annealing:
        """Return the annealing that multiplies the frozen velocity by 1 + s."""
        raise NotImplementedError

    def increment(self, field: str, action: Tensor, inputs: StepInputs) -> Tensor:
        """Return the unwrapped increment of a field that an action (k, events, ...) means."""
        raise NotImplementedError

    def deploy(self) -> Dynamics:
        raise NotImplementedError

    def prepare(self, request: Requests) -> object:
        assert isinstance(request, CrystalBatch)
        return self.model.prepare(request)

    def observe(self, inputs: StepInputs) -> StepInputs:
        if self.needs_states and hasattr(self.model, "pair_features"):
            # Both the frozen and a trained network are evaluated, and share them.
            features = self.model.pair_features(inputs.states["pos"][0], inputs.conditioning)
            inputs = replace(inputs, features=features)
        return replace(inputs, frozen=evaluate(self.model, inputs, self.heads))

    def moves(
        self, actions: Mapping[str, Tensor], inputs: StepInputs, generator: Any
    ) -> dict[str, Tensor]:
        return {
            name: self.increment(name, actions[name], inputs)[0]
            if name in actions
            else self._frozen_increment(name, inputs)[0]
            for name in self.process.field_names
        }

    def _frozen_increment(self, field: str, inputs: StepInputs) -> Tensor:
        """The noise-free increment (1 + s) b_ref dt of a field that is not reinforced."""
        velocity = self._annealed(inputs.frozen["velocity"][field], field, inputs)
        return velocity * inputs.dt(velocity.ndim)

    def _annealed(self, velocity: Tensor, field: str, inputs: StepInputs) -> Tensor:
        s = annealing_on_grid(self.schedule(), inputs.times)[field]
        return (1.0 + inputs.on_grid(s, velocity.ndim)) * velocity

    def _stds(self, field: str, inputs: StepInputs, ndim: int) -> tuple[Tensor, Tensor]:
        """sigma sqrt(dt) and sigma_ref sqrt(dt), shape (k, 1, ...)."""
        root = inputs.times.diff().sqrt()
        exploring, reference = self._sigmas(field, inputs)
        return inputs.on_grid(exploring * root, ndim), inputs.on_grid(reference * root, ndim)

    def _sigmas(self, field: str, inputs: StepInputs) -> tuple[Tensor, Tensor]:
        """sigma and sigma_ref of all steps of the grid, shape (n_steps,)."""
        t, scale = inputs.times[:-1], self.noise_scale[field]
        ref_scale = scale if self._ref_is_noise else 1.0
        return scale * self.noise[field](t), ref_scale * self.ref_noise[field](t)

    def _exploration(self) -> dict[str, NoiseSchedule]:
        """Field -> sigma(t) as it is now, scale and training included."""
        scales = self.noise_scale
        return {
            name: entry if scales[name] == 1 else ScaledNoise(entry, scales[name])
            for name, entry in self.noise.items()
        }

    @staticmethod
    def _drift_squares(velocity: Tensor, frozen: Tensor) -> dict[str, Tensor]:
        """Squares of a velocity's change and of the frozen one, per event (k, events)."""
        change = velocity.detach() - frozen
        return {
            "drift_change": change.square().flatten(2).sum(-1),
            "drift_reference": frozen.square().flatten(2).sum(-1),
        }

    def identity(self) -> dict[str, str]:
        return {
            **super().identity(),
            "noise": f"{self.noise} {self.ref_noise}",
            "annealing": _annealing_digest(self.schedule()),
            "model": _module_digest(self.model),
        }


def evaluate(model: FlowModel, inputs: StepInputs, heads: tuple[str, ...]) -> Outputs:
    """Evaluate a network at k steps in one pass.

    Args:
        model: the network.
        inputs: with states and conditioning.
        heads: of "velocity", "denoiser" and "species".

    Returns:
        Head -> field -> (k, events, ...).
    """
    k, n_structures = len(inputs.index), len(inputs.request)
    t = inputs.times[inputs.index]
    flat = {field: x.flatten(0, 1) for field, x in inputs.states.items()}
    shared: dict[str, Any] = {} if inputs.features is None else {"features": inputs.features}
    if "species" in flat:
        shared["species"] = flat["species"]
    pos = flat["pos"]
    at = t[0] if k == 1 else t.repeat_interleave(n_structures)
    with torch.autocast(pos.device.type, torch.bfloat16, enabled=inputs.mixed_precision):
        output = model.velocity(at, pos, flat["cell"], inputs.conditioning, heads=heads, **shared)
    return {
        head: {
            field: value.to(pos.dtype).unflatten(0, (k, len(value) // k))
            for field, value in getattr(output, head).items()
        }
        for head in heads
    }


def _module_digest(module: nn.Module) -> str:
    """A hash of weights, which a checkpoint does not hold."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _annealing_digest(annealing: Annealing) -> str:
    """What tells annealings apart that stay as they are; empty for one that is trained."""
    if isinstance(annealing, nn.Module):
        trained = any(parameter.requires_grad for parameter in annealing.parameters())
        return "" if trained else _module_digest(annealing)
    return str(annealing) if is_dataclass(annealing) else type(annealing).__name__
