"""Policies: what is sampled at a step of the generation, and what is learned.

A policy says, for every reinforced field, from which Gaussian the next action is drawn, what one
event of it is (an atom's three coordinates, a cell's nine numbers, one scalar per structure) and
how an action becomes an increment of the field. The rollout, the integrator and the loss loop over
the fields and know no policy by name.

| policy | action | mean | increment |
|---|---|---|---|
| annealing (15) | scalar per structure | s dt | (dt + action) b_ref |
| velocity (13) | increment - b_ref dt | (b - b_ref) dt | b_ref dt + action |
| score (7) | increment | (b - sigma^2 z / (2 gamma)) dt | action |

The standard deviation is sigma(t) sqrt(dt) in every case. Actions and increments are never wrapped.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from irlkit.crystals import CrystalBatch
from irlkit.schedules import (
    FIELD_NAMES,
    Annealing,
    ConstantNoise,
    LearnedAnnealing,
    NoAnnealing,
    NoiseSchedule,
    SquareRootNoise,
    annealing_on_grid,
    save_annealing,
)

if TYPE_CHECKING:
    from irlkit.model import FlowModel

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
    """

    policy: Gaussian
    reference: Gaussian
    per_atom: bool
    distillation: Tensor | None = None


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
        noise: field -> sigma(t), for exploration; its fields are the reinforced ones.
        ref_noise: field -> sigma_ref(t) of the reference policy; None means ``noise``, with which
            it then also decays.

    Attributes:
        noise_scale: field -> factor of the exploration noise; a trainer lets it decay.

    Raises:
        ValueError: no field, an unknown field, or other fields in ``ref_noise`` than in ``noise``.
    """

    heads: ClassVar[tuple[str, ...]] = ("velocity",)
    needs_states: ClassVar[bool] = True

    def __init__(
        self,
        model: FlowModel,
        noise: Mapping[str, NoiseSchedule],
        ref_noise: Mapping[str, NoiseSchedule] | None = None,
    ) -> None:
        super().__init__()
        self._ref_is_noise = ref_noise is None
        ref_noise = noise if ref_noise is None else ref_noise
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
        self.noise = dict(noise)
        self.ref_noise = dict(ref_noise)
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

    def deploy(self) -> tuple[VelocityField, Annealing]:
        """What generates without noise after training: ``integrate(model, ..., annealing=...)``."""
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
        sigma = scale * self.noise[field](t)
        return sigma, sigma if self._ref_is_noise else self.ref_noise[field](t)


class AnnealingPolicy(Policy):
    """Learns the annealing s(t) of a frozen velocity (Eqs. 14, 15).

    x(t + dt) = x + [1 + s(t)] b_ref dt + sigma(t) b_ref sqrt(dt) xi, with one scalar xi per
    structure and field. The action is s dt + sigma sqrt(dt) xi, so its probability depends on the
    time alone: an update looks at no state and never evaluates the network.

    Args:
        model: frozen pretrained model.
        annealing: schedule to train, moved to the model's device and dtype; None makes a zero
            ``LearnedAnnealing``.
        noise: field -> sigma(t), relative to the velocity; None means 0.3 for both fields.
        ref_noise: field -> sigma_ref(t); None means ``noise``.

    Raises:
        ValueError: see ``Policy``.
    """

    needs_states: ClassVar[bool] = False

    def __init__(
        self,
        model: FlowModel,
        annealing: LearnedAnnealing | None = None,
        noise: Mapping[str, NoiseSchedule] | None = None,
        ref_noise: Mapping[str, NoiseSchedule] | None = None,
    ) -> None:
        if noise is None:
            noise = {field: ConstantNoise(0.3) for field in FIELD_NAMES}
        super().__init__(model, noise, ref_noise)
        annealing = LearnedAnnealing() if annealing is None else annealing
        self.annealing = annealing.to(next(model.parameters()))

    def schedule(self) -> Annealing:
        return self.annealing

    def steps(self, inputs: StepInputs) -> dict[str, FieldStep]:
        s = annealing_on_grid(self.annealing, inputs.times)
        shape = (len(inputs.index), len(inputs.crystals))
        steps = {}
        for field in self.fields:
            std, ref_std = self._stds(field, inputs, 2)
            mean = (inputs.on_grid(s[field], 2) * inputs.dt(2)).expand(shape)
            steps[field] = FieldStep(
                Gaussian(mean, std, 0),
                Gaussian(torch.zeros_like(mean), ref_std, 0),
                per_atom=False,
            )
        return steps

    def increment(self, field: str, action: Tensor, inputs: StepInputs) -> Tensor:
        velocity = inputs.frozen["velocity"][field]
        factor = inputs.dt(2) + action
        if field == "pos":
            factor = factor[:, inputs.crystals.batch]
        return factor.reshape(factor.shape + (1,) * (velocity.ndim - 2)) * velocity

    def deploy(self) -> tuple[VelocityField, Annealing]:
        return self.model, self.annealing

    def save(self, path: str | Path, metadata: Mapping[str, object] | None = None) -> None:
        save_annealing(self.annealing, path, metadata)


class _NetworkPolicy(Policy):
    """Trains a copy of the network; what velocity- and score-based policies share."""

    def __init__(
        self,
        model: FlowModel,
        noise: Mapping[str, NoiseSchedule] | None = None,
        ref_noise: Mapping[str, NoiseSchedule] | None = None,
        annealing: Annealing | None = None,
    ) -> None:
        # The reinforced field and scale of the paper's section 4.2.
        noise = {"pos": SquareRootNoise(0.16681)} if noise is None else noise
        super().__init__(model, noise, ref_noise)
        self._annealing = (NoAnnealing() if annealing is None else annealing,)
        self.network = copy.deepcopy(model).requires_grad_(True)

    def schedule(self) -> Annealing:
        return self._annealing[0]

    def deploy(self) -> tuple[VelocityField, Annealing]:
        if set(self.fields) == set(FIELD_NAMES):
            return self.network, self.schedule()
        return _FieldwiseModel(self.network, self.model, self.fields), self.schedule()

    def save(self, path: str | Path, metadata: Mapping[str, object] | None = None) -> None:
        self.network.save(path)


class VelocityPolicy(_NetworkPolicy):
    """Trains the velocity of the reinforced fields, without a score (Eq. 13).

    Args:
        model: frozen pretrained model; the trained network starts as a copy.
        noise: reinforced field -> sigma(t); other fields follow the frozen velocity without noise.
        ref_noise: field -> sigma_ref(t); None means ``noise``.
        annealing: multiplies trained and frozen velocities by 1 + s; not trained.

    Raises:
        ValueError: see ``Policy``.
    """

    def steps(self, inputs: StepInputs) -> dict[str, FieldStep]:
        velocity = evaluate(self.network, inputs, self.heads)["velocity"]
        steps = {}
        for field in self.fields:
            change = velocity[field] - inputs.frozen["velocity"][field]
            ndim = change.ndim
            std, ref_std = self._stds(field, inputs, ndim)
            mean = self._annealed(change, field, inputs) * inputs.dt(ndim)
            steps[field] = FieldStep(
                Gaussian(mean, std, ndim - 2),
                Gaussian(torch.zeros_like(mean), ref_std, ndim - 2),
                per_atom=field == "pos",
            )
        return steps

    def increment(self, field: str, action: Tensor, inputs: StepInputs) -> Tensor:
        return self.frozen_increment(field, inputs) + action


class ScorePolicy(_NetworkPolicy):
    """Trains velocity and denoiser together (Eqs. 7, 12).

    Args:
        model: frozen pretrained model with denoisers for the reinforced fields.
        noise: reinforced field -> sigma(t); other fields follow the frozen velocity without noise.
        ref_noise: field -> sigma_ref(t); None means ``noise``.
        annealing: multiplies the velocities (not the denoisers) by 1 + s; not trained.

    Raises:
        ValueError: see ``Policy``; or the model has no denoiser for a reinforced field.
    """

    heads: ClassVar[tuple[str, ...]] = ("velocity", "denoiser")

    def __init__(
        self,
        model: FlowModel,
        noise: Mapping[str, NoiseSchedule] | None = None,
        ref_noise: Mapping[str, NoiseSchedule] | None = None,
        annealing: Annealing | None = None,
    ) -> None:
        super().__init__(model, noise, ref_noise, annealing)
        missing = [field for field in self.fields if field not in model.has_denoiser]
        if missing:
            raise ValueError(
                f"noise reinforces {missing}, for which the model has no denoiser (it has them for "
                f"{model.has_denoiser}); use VelocityPolicy or another model"
            )

    def steps(self, inputs: StepInputs) -> dict[str, FieldStep]:
        trained = evaluate(self.network, inputs, self.heads)
        steps = {}
        for field in self.fields:
            ndim = trained["velocity"][field].ndim
            std, ref_std = self._stds(field, inputs, ndim)
            sigmas = self._sigmas(field, inputs)
            means = [
                self._drift(field, output, sigma, inputs) * inputs.dt(ndim)
                for output, sigma in zip((trained, inputs.frozen), sigmas, strict=True)
            ]
            distance = trained["denoiser"][field] - inputs.frozen["denoiser"][field]
            steps[field] = FieldStep(
                Gaussian(means[0], std, ndim - 2),
                Gaussian(means[1], ref_std, ndim - 2),
                per_atom=field == "pos",
                distillation=distance.square().flatten(2).sum(-1),
            )
        return steps

    def _drift(
        self,
        field: str,
        output: Outputs,
        sigma: Tensor,
        inputs: StepInputs,
    ) -> Tensor:
        velocity, denoiser = output["velocity"][field], output["denoiser"][field]
        factor = sigma.square() / (2.0 * self.model.gamma(field, inputs.times[:-1]))
        return (
            self._annealed(velocity, field, inputs)
            - inputs.on_grid(factor, velocity.ndim) * denoiser
        )

    def increment(self, field: str, action: Tensor, inputs: StepInputs) -> Tensor:
        return action


class _FieldwiseModel:
    """A model that takes the velocity of some fields from a trained network, the rest frozen."""

    def __init__(self, network: FlowModel, frozen: FlowModel, fields: tuple[str, ...]) -> None:
        self.network = network
        self.frozen = frozen
        self.fields = fields

    def prepare(self, batch: CrystalBatch) -> Any:
        return self.frozen.prepare(batch)

    def sample_base(self, batch: CrystalBatch, generator: torch.Generator) -> CrystalBatch:
        return self.frozen.sample_base(batch, generator)

    def velocity(self, t: Tensor, pos: Tensor, cell: Tensor, conditioning: Any) -> Any:
        output = self.frozen.velocity(t, pos, cell, conditioning)
        trained = self.network.velocity(t, pos, cell, conditioning)
        output.velocity.update({field: trained.velocity[field] for field in self.fields})
        return output
