"""Policies that train a copy of the network: what they share, and how they are loaded."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from irlkit.crystals import CrystalBatch
from irlkit.flows._plain import from_plain, to_plain
from irlkit.flows.constraints import Constraints
from irlkit.flows.discrete import DiscreteFlow
from irlkit.flows.dynamics import Dynamics, VelocityField
from irlkit.flows.schedules import (
    ANNEALINGS,
    FIELD_NAMES,
    NOISES,
    Annealing,
    NoAnnealing,
    NoiseSchedule,
    SquareRootNoise,
)
from irlkit.networks.flow_model import FlowModel
from irlkit.rl.policies.flow import FlowPolicy
from irlkit.rl.process import Process
from irlkit.utils.checks import checked
from irlkit.utils.settings import torch_settings


class NetworkPolicy(FlowPolicy):
    """Trains a copy of the network; what velocity- and score-based policies share.

    Args:
        model: frozen pretrained model; the trained network starts as a copy.
        noise: reinforced field -> sigma(t); other fields follow the frozen velocity without noise.
        ref_noise: field -> sigma_ref(t); None means ``noise``.
        annealing: multiplies trained and frozen velocities (not denoisers) by 1 + s; not trained.
        process: see ``FlowPolicy``, also for what is refused.
    """

    test_kind: ClassVar[Literal["ode", "sde"]] = "ode"

    @checked
    @torch_settings(plain=True)
    def __init__(
        self,
        model: FlowModel,
        noise: Mapping[str, NoiseSchedule] | None = None,
        ref_noise: Mapping[str, NoiseSchedule] | None = None,
        annealing: Annealing | None = None,
        process: Process | None = None,
    ) -> None:
        # The reinforced field and scale of the paper's section 4.2.
        noise = {"pos": SquareRootNoise(0.16681)} if noise is None else noise
        super().__init__(model, noise, ref_noise, process)
        self._annealing = (NoAnnealing() if annealing is None else annealing,)
        self.network = copy.deepcopy(model).requires_grad_(True)

    def schedule(self) -> Annealing:
        return self._annealing[0]

    def deploy(self) -> Dynamics:
        model: VelocityField = self.network
        if set(self.process.field_names) - set(self.fields):
            model = _FieldwiseModel(self.network, self.model, self.fields)
        if self.test_kind == "ode":
            return Dynamics(model, self.schedule())
        return Dynamics(model, self.schedule(), self._kept_noise(), self.test_kind)

    def _kept_noise(self) -> dict[str, NoiseSchedule]:
        """The noise that is saved with the policy; an SDE is also deployed with it."""
        return self._exploration()

    @checked
    def save(self, path: str | Path, metadata: Mapping[str, object] | None = None) -> None:
        """Write the network as ``FlowModel.save`` does; ``load_dynamics`` reads the rest.

        Args:
            path: file to write.
            metadata: anything JSON can hold; it becomes part of the model's ``info``.

        Raises:
            ValueError: metadata that JSON cannot hold.
        """
        network = copy.copy(self.network)
        network.info = {**getattr(self.network, "info", {}), **(metadata or {})}
        network.info["policy"] = self._description()
        network.save(path)

    def _description(self) -> dict[str, Any]:
        """How the network generates, as plain data."""
        return {
            "fields": list(self.fields),
            "kind": self.test_kind,
            "annealing": to_plain(self.schedule(), ANNEALINGS),
            "noise": {name: to_plain(entry, NOISES) for name, entry in self._kept_noise().items()},
        }


class _FieldwiseModel:
    """A model that takes what moves some fields from a trained network, the rest from a frozen."""

    def __init__(self, network: FlowModel, frozen: FlowModel, fields: tuple[str, ...]) -> None:
        self.network, self.frozen, self.fields = network, frozen, fields

    @property
    def has_denoiser(self) -> tuple[str, ...]:
        return tuple(field for field in self.network.has_denoiser if field in self.fields)

    @property
    def species(self) -> DiscreteFlow | None:
        return self.frozen.species

    def prepare(self, batch: CrystalBatch | Tensor, *constraints: Any) -> Any:
        return self.frozen.prepare(batch, *constraints)

    def sample_state(self, conditioning: Any, generator: torch.Generator) -> dict[str, Tensor]:
        return self.frozen.sample_state(conditioning, generator)

    def sample_base(self, batch: CrystalBatch, generator: torch.Generator) -> CrystalBatch:
        return self.frozen.sample_base(batch, generator)

    def gamma(self, field: str, t: Tensor) -> Tensor:
        return self.frozen.gamma(field, t)

    def velocity(
        self,
        t: Tensor,
        pos: Tensor,
        cell: Tensor,
        conditioning: Any,
        heads: tuple[str, ...] = ("velocity",),
        **given: Tensor,
    ) -> Any:
        shared: dict[str, Any] = dict(given)
        if hasattr(self.frozen, "pair_features"):
            shared["features"] = self.frozen.pair_features(pos, conditioning)
        asked: dict[str, Any] = dict(shared)
        if "species" in heads and "species" not in self.fields:
            asked["heads"] = ("velocity", "species")
        output = self.frozen.velocity(t, pos, cell, conditioning, **asked)
        trained = self.network.velocity(t, pos, cell, conditioning, heads=heads, **shared)
        for head in heads:
            values = getattr(trained, head)
            getattr(output, head).update({f: values[f] for f in self.fields if f in values})
        return output


@checked
def load_dynamics(path: str | Path, model: FlowModel) -> Dynamics:
    """Load how a policy generates that ``NetworkPolicy.save`` has written.

    Args:
        path: safetensors file.
        model: the pretrained model; it moves the fields that were not reinforced.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is no model of this package, or one that no policy has written.
    """
    network = FlowModel.load(path, model.device)
    description = network.info.get("policy")
    if not isinstance(description, Mapping):
        raise ValueError(
            f"{path} is a model, but was not saved by a policy; use load_pretrained to read it"
        )
    try:
        fields = tuple(description["fields"])
        annealing = from_plain(description["annealing"], ANNEALINGS)
        noise = {name: from_plain(entry, NOISES) for name, entry in description["noise"].items()}
        kind = description["kind"]
        constraints = description.get("constraints")
        constraints = None if constraints is None else Constraints(**constraints)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: the description of the policy is incomplete: {error}") from error
    for entry in (annealing, *noise.values()):
        if isinstance(entry, nn.Module):
            entry.to(model.device)
    deployed: VelocityField = network
    if not set(fields) >= set(FIELD_NAMES):
        deployed = _FieldwiseModel(network, model, fields)
    return Dynamics(deployed, annealing, {} if kind == "ode" else noise, kind, constraints)
