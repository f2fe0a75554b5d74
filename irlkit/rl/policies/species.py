"""The policy that trains the species of a flow, alone or with positions and cells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from irlkit.crystals import CrystalBatch
from irlkit.flows.constraints import Constraints
from irlkit.flows.dynamics import Dynamics, advance
from irlkit.flows.schedules import Annealing, NoiseSchedule
from irlkit.networks.flow_model import Conditioning, FlowModel
from irlkit.rl.policies.base import FieldStep, StepInputs
from irlkit.rl.policies.flow import CrystalFlow, evaluate
from irlkit.rl.policies.velocity import VelocityPolicy
from irlkit.rl.process import Field, Requests, State
from irlkit.rl.trajectory import Trajectory
from irlkit.utils.checks import checked


class DeNovoFlow(CrystalFlow):
    """Moves species, positions and cells from the base distributions to crystals.

    A request for numbers of atoms leaves the species open; one with crystals gives them. All three
    fields step from the same state.

    Args:
        model: with a flow of species.
        constraints: what all compositions are bound to.

    Raises:
        ValueError: the model does not generate species.
    """

    fields: ClassVar[tuple[Field, ...]] = (
        Field("species", "atom", "categorical"),
        *CrystalFlow.fields,
    )

    def __init__(self, model: FlowModel, constraints: Constraints | None = None) -> None:
        if model.species is None:
            raise ValueError("model must be one that generates species, such as 'denovo-mask'")
        super().__init__(model)
        self.constraints = constraints

    def conditioning(self, request: Requests) -> Conditioning:
        """Return what stays fixed for a request: pairs of atoms, and what binds the species."""
        crystals = request if isinstance(request, CrystalBatch) else request.crystals
        given = None if crystals is None else crystals.species
        return self.model.prepare(request.n_atoms, self.constraints, given)

    def initial(self, request: Requests, generator: torch.Generator) -> State:
        values = self.model.sample_state(self.conditioning(request), generator)
        return State(request, self.fields, values)

    def encode(self, crystals: CrystalBatch) -> State:
        values = {name: getattr(crystals, name) for name in self.field_names}
        return State(crystals, self.fields, values)

    def advance(self, state: State, moves: Mapping[str, Tensor], step: int) -> State:
        return state.moved_to({"species": moves["species"], **advance(state.values, moves)})

    def decode(self, state: State) -> CrystalBatch:
        # Without checks: before the end there are masked atoms, of species 0.
        values = {name: state[name] for name in self.field_names}
        return CrystalBatch._unchecked(**values, n_atoms=state.request.n_atoms)


class SpeciesPolicy(VelocityPolicy):
    """Trains the distribution of the species, and the velocities of fields with noise (13).

    An action is an atom's species after a step, drawn from the kernel of ``irlkit.flows.discrete``.
    Of the mask base, only atoms that are unmasked in a step bear on the ratio, about N (1 + eta/2)
    of a structure with N atoms, whatever the number of steps: with ``normalization=
    "per_atom_surrogate"`` each is clipped by itself, and surrogate and KL are means over them. Time
    and noise alone decide which atoms those are. The KL divergence is that of the kernels at the
    visited states; their sum over the steps is, on average, exactly that of the paths.

    Args:
        model: frozen pretrained model with a flow of species, which has noise and temperature.
        noise: of "pos" and "cell", those that are reinforced too -> sigma(t); None: none, they
            follow the frozen velocity.
        ref_noise: field -> sigma_ref(t); None means ``noise``.
        annealing: multiplies trained and frozen velocities by 1 + s; not trained.
        constraints: what all compositions are bound to; what they forbid has probability zero
            under every policy.

    Raises:
        ValueError: see ``FlowPolicy``, or the model does not generate species.
    """

    heads: ClassVar[tuple[str, ...]] = ("velocity", "species")

    @checked
    def __init__(
        self,
        model: FlowModel,
        noise: Mapping[str, NoiseSchedule] | None = None,
        ref_noise: Mapping[str, NoiseSchedule] | None = None,
        annealing: Annealing | None = None,
        constraints: Constraints | None = None,
    ) -> None:
        process = DeNovoFlow(model, constraints)
        super().__init__(model, noise or {}, ref_noise, annealing, process)
        self.constraints = constraints

    def prepare(self, request: Requests) -> Conditioning:
        assert isinstance(self.process, DeNovoFlow)
        return self.process.conditioning(request)

    def steps(self, inputs: StepInputs) -> dict[str, FieldStep]:
        flow, rules = self.model.species, inputs.conditioning.rules.first(len(inputs.request))
        assert flow is not None
        trained = evaluate(self.network, inputs, self.heads if self.noise else ("species",))
        at = inputs.states["species"], inputs.times, inputs.index, rules
        ours, reference = (
            flow.step(output["species"]["species"], *at) for output in (trained, inputs.frozen)
        )
        n_events = None
        if flow.base == "mask":
            per_step = flow.expected_events(inputs.times) / (len(inputs.times) - 1)
            free = 1 * (rules.given == 0)
            n_free = torch.zeros_like(rules.n_atoms).index_add(0, rules.batch, free)
            n_events = n_free.clamp(min=1).to(inputs.times) * per_step
        steps = {"species": FieldStep(ours, reference, "atom", n_events=n_events)}
        if not self.noise:
            return steps
        velocity = trained["velocity"]
        if rules.pos is not None:  # What does not move is no action: the same under every policy.
            held = (rules.given > 0)[:, None]
            frozen = inputs.frozen["velocity"]["pos"]
            velocity = {**velocity, "pos": torch.where(held, frozen, velocity["pos"])}
        return steps | self._of_velocities(velocity, inputs)

    def increment(self, field: str, action: Tensor, inputs: StepInputs) -> Tensor:
        return action if field == "species" else super().increment(field, action, inputs)

    def moves(
        self, actions: Mapping[str, Tensor], inputs: StepInputs, generator: Any
    ) -> dict[str, Tensor]:
        moves = super().moves(actions, inputs, generator)
        rules = inputs.conditioning.rules
        if rules.pos is not None:
            moves["pos"] = moves["pos"].masked_fill((rules.given > 0)[:, None], 0.0)
        return moves

    def busy_steps(self, trajectory: Trajectory) -> Tensor | None:
        assert self.model.species is not None
        if self.noise or self.model.species.base != "mask":
            return None
        return (trajectory.states["species"][:-1] == 0).any(1).nonzero().flatten()

    def deploy(self) -> Dynamics:
        return replace(super().deploy(), constraints=self.constraints)

    def _description(self) -> dict[str, Any]:
        constraints = None if self.constraints is None else asdict(self.constraints)
        return {**super()._description(), "constraints": constraints}

    def identity(self) -> dict[str, str]:
        return {**super().identity(), "species": f"{self.model.species} {self.constraints}"}
