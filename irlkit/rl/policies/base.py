"""What policies share: Gaussian actions, where they are taken, and the class itself."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from irlkit.crystals import CrystalBatch
from irlkit.flows.schedules import (
    FIELD_NAMES,
    Annealing,
    NoiseSchedule,
    ScaledNoise,
    annealing_on_grid,
)
from irlkit.utils.checks import checked

if TYPE_CHECKING:
    from irlkit.networks.flow_model import FlowModel

Outputs = dict[str, dict[str, Tensor]]
"""What a network said at k steps: "velocity" and "denoiser" -> field -> (k, events, ...)."""


class VelocityField(Protocol):
    """What generation needs of a model; ``FlowModel`` is one."""

    def prepare(self, batch: CrystalBatch) -> Any:
        """Conditioning on the compositions, used at every step."""

    def velocity(self, t: Tensor, pos: Tensor, cell: Tensor, conditioning: Any) -> Any:
        """Output whose ``velocity`` maps each field to its velocity."""

    def sample_base(self, batch: CrystalBatch, generator: torch.Generator) -> CrystalBatch:
        """x_0 for the compositions."""


def standard_normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal numbers of the shape, dtype and device of ``like``.

    They are drawn on the generator's device, so a CPU generator gives the same ones everywhere.
    """
    draw = getattr(generator, "standard_normal", None)  # of a process that has a part of the batch
    if draw is not None:
        return draw(like)
    noise = torch.randn(like.shape, generator=generator, dtype=like.dtype, device=generator.device)
    return noise.to(like.device)


@dataclass(frozen=True)
class Gaussian:
    """Independent normal numbers that form events.

    Attributes:
        mean: shape (k, events, ...), k steps at once.
        std: standard deviation of one step, broadcasts against ``mean``.
        event_dims: how many trailing dimensions of ``mean`` form one event: 0 for a scalar, 1 for
            an atom's coordinates, 2 for a cell.
    """

    mean: Tensor
    std: Tensor
    event_dims: int

    def sample(self, generator: torch.Generator) -> Tensor:
        """One draw, of the shape of ``mean``."""
        return self.mean + self.std * standard_normal(self.mean, generator)

    def log_prob(self, action: Tensor) -> Tensor:
        """Log-density of each event, shape (k, events): summed over the event's numbers."""
        z = (action - self.mean) / self.std
        return self._sum(-0.5 * z.square() - torch.log(self.std) - 0.5 * math.log(2.0 * math.pi))

    def kl(self, other: Gaussian) -> Tensor:
        """KL divergence of each event from ``other``, shape (k, events).

        For a step of size dt it is, per number and with db the difference of the drifts,
        ln(sigma_ref / sigma) + (sigma^2 + db^2 dt) / (2 sigma_ref^2) - 1/2.
        """
        scaled = (self.std.square() + (self.mean - other.mean).square()) / other.std.square()
        return self._sum(torch.log(other.std / self.std) + 0.5 * scaled - 0.5)

    def entropy(self) -> Tensor:
        """Entropy of each event, shape (k, events)."""
        each = torch.log(self.std) + 0.5 * math.log(2.0 * math.pi * math.e)
        return self._sum(each.expand_as(self.mean))

    def _sum(self, value: Tensor) -> Tensor:
        return value.flatten(value.ndim - self.event_dims).sum(-1) if self.event_dims else value


@dataclass(frozen=True)
class FieldStep:
    """The policy of one field at k steps.

    Attributes:
        policy: distribution of the action.
        reference: that of the frozen reference policy, in the same space.
        per_atom: an event belongs to an atom; else to a structure.
        distillation: squared distance of the denoiser from the frozen one per event (12), or None.
        drift_change: squared difference of the velocity from the frozen one per event, without
            gradient. Shape (k, events), or one that broadcasts to it.
        drift_reference: the square of the frozen velocity, in the same unit.
    """

    policy: Gaussian
    reference: Gaussian
    per_atom: bool
    distillation: Tensor | None = None
    drift_change: Tensor | None = None
    drift_reference: Tensor | None = None


@checked
@dataclass(frozen=True)
class Dynamics:
    """How structures are generated: what ``integrate`` takes.

    Attributes:
        model: velocity field, with denoisers for an SDE.
        annealing: s(t, dt).
        noise: field -> sigma(t); empty means none.
        kind: "ode" or "sde", see ``integrate``.
    """

    model: VelocityField
    annealing: Annealing
    noise: Mapping[str, NoiseSchedule] = dataclass_field(default_factory=dict)
    kind: Literal["ode", "sde"] = "ode"

    def generate(self, batch: CrystalBatch, n_steps: int, **options: Any) -> Any:
        """``integrate`` along these dynamics.

        Args:
            batch: the compositions.
            n_steps: number of steps.
            **options: generator, x_0, max_batch, record and progress of ``integrate``.

        Returns:
            What ``integrate`` returns.
        """
        from irlkit.rl.sampler import integrate  # which needs the policies

        return integrate(
            self.model,
            batch,
            n_steps,
            annealing=self.annealing,
            noise=self.noise,
            kind=self.kind,
            **options,
        )


@dataclass(frozen=True)
class StepInputs:
    """Where k steps of all structures of a batch are taken.

    Attributes:
        times: the whole time grid, shape (n_steps + 1,).
        index: which steps, shape (k,).
        crystals: the compositions; its positions and cells are not looked at.
        states: field -> (k, events, ...) before the step; empty if the policy needs none.
        frozen: what the frozen network says there; empty if the policy needs none.
        conditioning: the network's conditioning for k copies of ``crystals``, or None.
        features: pair features at the states, to be shared by networks; None where a network has
            to compute its own.
        mixed_precision: the trained network computes in bfloat16.
    """

    times: Tensor
    index: Tensor
    crystals: CrystalBatch
    states: dict[str, Tensor]
    frozen: Outputs
    conditioning: Any
    features: Any = None
    mixed_precision: bool = False

    def on_grid(self, values: Tensor, like_dims: int) -> Tensor:
        """Per-step ``values`` (n_steps,) at these steps, to multiply (k, ...) of so many dims."""
        chosen = values[self.index]
        return chosen.reshape(chosen.shape + (1,) * (like_dims - 1))

    def dt(self, like_dims: int) -> Tensor:
        """Step sizes, shape (k, 1, ...)."""
        return self.on_grid(self.times.diff(), like_dims)


def evaluate(model: FlowModel, inputs: StepInputs, heads: tuple[str, ...]) -> Outputs:
    """A network's output at k steps in one pass.

    Args:
        model: the network.
        inputs: with states and conditioning.
        heads: of "velocity" and "denoiser".

    Returns:
        Head -> field -> (k, events, ...).
    """
    k, n_structures = len(inputs.index), len(inputs.crystals)
    t = inputs.times[inputs.index]
    flat = {field: x.flatten(0, 1) for field, x in inputs.states.items()}
    shared = {} if inputs.features is None else {"features": inputs.features}
    pos = flat["pos"]
    with torch.autocast(pos.device.type, torch.bfloat16, enabled=inputs.mixed_precision):
        output = model.velocity(
            t[0] if k == 1 else t.repeat_interleave(n_structures),
            pos,
            flat["cell"],
            inputs.conditioning,
            heads=heads,
            **shared,
        )
    return {
        head: {
            field: value.to(pos.dtype).unflatten(0, (k, len(value) // k))
            for field, value in getattr(output, head).items()
        }
        for head in heads
    }


class Policy(nn.Module):
    """What the three policies share. Its parameters are the trained ones, and only those.

    Args:
        model: frozen pretrained model; defines the reference policy and moves the fields that are
            not reinforced.
        noise: field -> sigma(t), for exploration; its fields are the reinforced ones. A
            ``LearnedNoise`` is trained with the policy.
        ref_noise: field -> sigma_ref(t) of the reference policy; None means ``noise`` as it was
            before training, with which it then also decays.

    Attributes:
        noise_scale: field -> factor of the exploration noise; a trainer lets it decay.

    Raises:
        ValueError: no field, an unknown field, or other fields in ``ref_noise`` than in ``noise``.
    """

    heads: ClassVar[tuple[str, ...]] = ("velocity",)
    needs_states: ClassVar[bool] = True

    @checked
    def __init__(
        self,
        model: FlowModel,
        noise: Mapping[str, NoiseSchedule],
        ref_noise: Mapping[str, NoiseSchedule] | None = None,
    ) -> None:
        super().__init__()
        self._ref_is_noise = ref_noise is None
        # The reference of a noise that is learned is how it began.
        ref_noise = copy.deepcopy(dict(noise)) if ref_noise is None else ref_noise
        unknown = sorted(set(noise) - set(FIELD_NAMES))
        if not noise or unknown:
            raise ValueError(
                f"noise must name one or more of the fields {FIELD_NAMES}, got {sorted(noise)}"
            )
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
        self.noise_scale = dict.fromkeys(FIELD_NAMES, 1.0)

    @property
    def model(self) -> FlowModel:
        """The frozen pretrained model."""
        return self._frozen[0]

    @property
    def fields(self) -> tuple[str, ...]:
        """The reinforced fields."""
        return tuple(self.noise)

    def schedule(self) -> Annealing:
        """The annealing that multiplies the frozen velocity by 1 + s."""
        raise NotImplementedError

    def steps(self, inputs: StepInputs) -> dict[str, FieldStep]:
        """Distributions of the actions of every reinforced field, used to sample and to score."""
        raise NotImplementedError

    def increment(self, field: str, action: Tensor, inputs: StepInputs) -> Tensor:
        """Unwrapped increment of a field that an action (k, events, ...) means."""
        raise NotImplementedError

    def deploy(self) -> Dynamics:
        """What generates after training: ``policy.deploy().generate(batch, n_steps, ...)``."""
        raise NotImplementedError

    def save(self, path: str | Path, metadata: Mapping[str, object] | None = None) -> None:
        """Write what was learned as safetensors."""
        raise NotImplementedError

    def frozen_increment(self, field: str, inputs: StepInputs) -> Tensor:
        """Noise-free increment (1 + s) b_ref dt of a field that is not reinforced."""
        velocity = self._annealed(inputs.frozen["velocity"][field], field, inputs)
        return velocity * inputs.dt(velocity.ndim)

    def _annealed(self, velocity: Tensor, field: str, inputs: StepInputs) -> Tensor:
        s = annealing_on_grid(self.schedule(), inputs.times)[field]
        return (1.0 + inputs.on_grid(s, velocity.ndim)) * velocity

    def _stds(self, field: str, inputs: StepInputs, ndim: int) -> tuple[Tensor, Tensor]:
        """sigma sqrt(dt) and sigma_ref sqrt(dt), shape (k, 1, ...)."""
        dt = inputs.times.diff()
        exploring, reference = (
            inputs.on_grid(sigma * dt.sqrt(), ndim) for sigma in self._sigmas(field, inputs)
        )
        return exploring, reference

    def _sigmas(self, field: str, inputs: StepInputs) -> tuple[Tensor, Tensor]:
        """sigma and sigma_ref of all steps of the grid, shape (n_steps,)."""
        t, scale = inputs.times[:-1], self.noise_scale[field]
        ref_scale = scale if self._ref_is_noise else 1.0
        return scale * self.noise[field](t), ref_scale * self.ref_noise[field](t)

    def exploration(self) -> dict[str, NoiseSchedule]:
        """Field -> sigma(t) as it is now, scale and training included."""
        return {
            name: entry
            if self.noise_scale[name] == 1
            else ScaledNoise(entry, self.noise_scale[name])
            for name, entry in self.noise.items()
        }
