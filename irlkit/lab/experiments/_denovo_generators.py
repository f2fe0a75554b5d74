"""What notebooks 07 and 09 need to know of a kind of generator; all else is the same for both."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, ClassVar, Protocol

import torch
from ase.data import chemical_symbols
from torch import Tensor

from irlkit.crystals.formulas import MAX_ATOMIC_NUMBER
from irlkit.data import CrystalDataset
from irlkit.flows.constraints import Constraints
from irlkit.networks.flow_model import FlowModel
from irlkit.networks.latent_diffusion import LatentDiffusion
from irlkit.rl import GRPOConfig
from irlkit.rl.policies.base import Policy
from irlkit.rl.policies.latent import LatentPolicy
from irlkit.rl.policies.species import SpeciesPolicy


class Generator(Protocol):
    """Makes policies of a model, and requests for them.

    Attributes:
        device: of the model.
        grpo: settings of the loss that suit its policies.
        updates: settings of a trainer's gradient steps that do.
    """

    device: torch.device
    grpo: GRPOConfig
    updates: ClassVar[dict[str, Any]]

    def policy(self, temperature: float = 1.0) -> Policy:
        """Return an untrained policy; a temperature below 1 makes what is common more common."""

    def bound(self, policy: Policy, constraints: Constraints) -> Policy:
        """Return a policy that is like another, and bound to constraints."""

    def n_atoms(
        self, n: int, generator: torch.Generator, constraints: Constraints | None = None
    ) -> Tensor:
        """Draw numbers of atoms as the training set has them, shape (n,)."""

    def elements(self) -> list[str]:
        """Return the symbols of the elements that the model can generate."""


class _OfSpecies:
    """Policies of a flow of species: the temperature is that of their distribution."""

    grpo = GRPOConfig(clip_eps=0.2, normalization="per_atom_surrogate")
    updates: ClassVar = {"n_ppo_epochs": 2}

    def __init__(self, model: FlowModel) -> None:
        if model.species is None:
            raise ValueError("model must be one that generates species, such as 'denovo-mask'")
        self.model, self.device, self._flow = model, model.device, model.species

    def policy(self, temperature: float = 1.0) -> Policy:
        colder = copy.copy(self.model)
        if temperature != 1:
            colder.species = replace(self._flow, temperature=temperature * self._flow.temperature)
        return SpeciesPolicy(colder)

    def bound(self, policy: Policy, constraints: Constraints) -> Policy:
        assert isinstance(policy, SpeciesPolicy)
        bound = SpeciesPolicy(policy.model, constraints=constraints)
        bound.load_state_dict(policy.state_dict())
        return bound

    def n_atoms(
        self, n: int, generator: torch.Generator, constraints: Constraints | None = None
    ) -> Tensor:
        bounds = () if constraints is None else (constraints.divisor(), constraints.least())
        return self.model.base.sample_n_atoms(n, generator, *bounds)

    def elements(self) -> list[str]:
        known = self._flow.elements or range(1, MAX_ATOMIC_NUMBER + 1)
        return [chemical_symbols[z] for z in known]


class _OfLatents:
    """Policies of a latent diffusion: the temperature is a factor of the noise of all steps.

    Attributes:
        renoised: see `LatentPolicy`.
    """

    grpo = GRPOConfig(clip_eps=0.2, normalization="per_atom_surrogate")
    updates: ClassVar = {"n_ppo_epochs": 2, "minibatch_updates": 4, "step_fraction": 0.5}
    renoised: int | None = None

    def __init__(self, model: LatentDiffusion, training: CrystalDataset) -> None:
        self.model, self.device = model, next(model.parameters()).device
        self._sizes = training.batch.n_atoms
        self._species = training.batch.species.unique().tolist()

    def policy(self, temperature: float = 1.0) -> Policy:
        policy = LatentPolicy(self.model, renoised=self.renoised)
        policy.noise_scale = {"latent": temperature}
        return policy

    def bound(self, policy: Policy, constraints: Constraints) -> Policy:
        raise ValueError(
            "constraints must be None for a latent diffusion, whose species are known at the end, "
            f"got {constraints}"
        )

    def n_atoms(
        self, n: int, generator: torch.Generator, constraints: Constraints | None = None
    ) -> Tensor:
        return self._sizes[torch.randint(len(self._sizes), (n,), generator=generator)]

    def elements(self) -> list[str]:
        return [chemical_symbols[z] for z in self._species]


def generator_of(model: FlowModel | LatentDiffusion, training: CrystalDataset) -> Generator:
    """Return what makes the policies of a model.

    Raises:
        ValueError: a flow that does not generate species.
    """
    if isinstance(model, LatentDiffusion):
        return _OfLatents(model, training)
    return _OfSpecies(model)
