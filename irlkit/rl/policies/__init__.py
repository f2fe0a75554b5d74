"""Policies: what is sampled at a step of the generation, and what is learned.

A policy says, for every reinforced field, from which distribution the next action is drawn, what
one event of it is (an atom's three coordinates, its species, a cell's nine numbers, one scalar per
structure) and how an action becomes an increment of the field. The rollout, the integrator and the
loss loop over the fields and know no policy by name.

| policy | action | mean | increment |
|---|---|---|---|
| annealing (15) | scalar per structure | s dt | (dt + action) b_ref |
| state_annealing (15) | the same | s(t, dt, c, x) dt | the same |
| velocity (13) | increment - b_ref dt | (b - b_ref) dt | b_ref dt + action |
| few_step (13) | the same, guided in rollouts | the same | the same |
| score (7) | increment | (b - sigma^2 z / (2 gamma)) dt | action |
| species | species after the step | kernel of the discrete flow | replaces the species |
| latent | latents after the step | DDIM's | replaces the latents |

The standard deviation of Gaussian ones is DDIM's for latents and sigma(t) sqrt(dt) elsewhere.
Actions and increments are never wrapped.
"""

from irlkit.rl.policies.annealing import AnnealingPolicy
from irlkit.rl.policies.base import FieldStep, Outputs, Policy, StepInputs
from irlkit.rl.policies.few_step import FewStepPolicy
from irlkit.rl.policies.flow import CrystalFlow, FlowPolicy, evaluate
from irlkit.rl.policies.latent import DenoisedLatents, LatentPolicy
from irlkit.rl.policies.network import NetworkPolicy, load_dynamics
from irlkit.rl.policies.score import ScorePolicy
from irlkit.rl.policies.species import DeNovoFlow, SpeciesPolicy
from irlkit.rl.policies.state_annealing import StateAnnealingPolicy
from irlkit.rl.policies.velocity import VelocityPolicy

POLICIES: dict[str, type[FlowPolicy]] = {
    "annealing": AnnealingPolicy,
    "few_step": FewStepPolicy,
    "score": ScorePolicy,
    "species": SpeciesPolicy,
    "state_annealing": StateAnnealingPolicy,
    "velocity": VelocityPolicy,
}
"""Policies of a pretrained flow by name; all take ``(model, noise=..., annealing=...)``."""

__all__ = [
    "POLICIES",
    "AnnealingPolicy",
    "CrystalFlow",
    "DeNovoFlow",
    "DenoisedLatents",
    "FewStepPolicy",
    "FieldStep",
    "FlowPolicy",
    "LatentPolicy",
    "NetworkPolicy",
    "Outputs",
    "Policy",
    "ScorePolicy",
    "SpeciesPolicy",
    "StateAnnealingPolicy",
    "StepInputs",
    "VelocityPolicy",
    "evaluate",
    "load_dynamics",
]
