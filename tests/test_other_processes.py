"""Processes that are no flow, on the unchanged rollout, loss and trainer."""

import math

import numpy as np
import torch
from torch import nn

from irlkit.crystals import CrystalBatch
from irlkit.rl import (
    Categorical,
    Field,
    FieldStep,
    Gaussian,
    GRPOTrainer,
    Policy,
    Process,
    Request,
    State,
    generate,
    rollout,
)
from tests.toys import trainer_config

# --- a categorical field: the species of atoms, drawn anew in every step ---


class Species(Process):
    """One of three elements per atom; it starts as the first."""

    fields = (Field("species", "atom", "categorical"),)
    elements = torch.tensor([8, 12, 26])

    def initial(self, request, generator):
        return State(request, self.fields, {"species": torch.zeros_like(request.batch)})

    def advance(self, state, moves, step):
        return state.moved_to(moves)

    def decode(self, state):
        n_atoms, species = state.request.n_atoms, self.elements[state["species"]]
        pos = torch.linspace(0, 0.9, len(species), dtype=torch.float64)[:, None].repeat(1, 3)
        cell = 4 * torch.eye(3, dtype=torch.float64).repeat(len(n_atoms), 1, 1)
        return CrystalBatch(species, pos, cell, n_atoms)


class SpeciesPolicy(Policy):
    """Logits of the next species by the present one: states, not the final ones, decide."""

    def __init__(self):
        super().__init__(Species())
        self.logits = nn.Parameter(torch.zeros(3, 3, dtype=torch.float64))

    def steps(self, inputs):
        logits = self.logits[inputs.states["species"]]
        reference = torch.zeros_like(logits)
        return {"species": FieldStep(Categorical(logits), Categorical(reference), "atom")}


def share_of_oxygen(structures):
    is_oxygen = (structures.species == 8).double()
    total = torch.zeros(len(structures), dtype=torch.float64)
    return total.index_add(0, structures.batch, is_oxygen) / structures.n_atoms


# --- a latent field that is decoded: two numbers per structure become a cell ---


class Latent(Process):
    """A denoising walk in two dimensions; the final point decodes to the lengths of a cell."""

    fields = (Field("latent", "structure", "real", 1),)

    def initial(self, request, generator):
        noise = torch.randn(len(request), 2, generator=generator, dtype=torch.float64)
        return State(request, self.fields, {"latent": noise})

    def advance(self, state, moves, step):
        return state.moved_to({"latent": moves["latent"]})

    def decode(self, state):
        n_atoms, z = state.request.n_atoms, state["latent"]
        lengths = 4 + torch.cat([z, z.mean(1, keepdim=True)], 1).tanh()
        atoms = torch.zeros(int(n_atoms.sum()), 3, dtype=torch.float64)
        return CrystalBatch(torch.full((len(atoms),), 6), atoms, lengths.diag_embed(), n_atoms)


class LatentPolicy(Policy):
    """x <- a x + b + 0.2 xi with a learned b per number of atoms."""

    def __init__(self):
        super().__init__(Latent())
        self.shift = nn.Parameter(torch.zeros(8, 2, dtype=torch.float64))

    def steps(self, inputs):
        x, std = inputs.states["latent"], torch.full((1, 1, 1), 0.2, dtype=torch.float64)
        mean = 0.5 * x + self.shift[inputs.request.n_atoms]
        reference = Gaussian(0.5 * x, std, 1)
        return {"latent": FieldStep(Gaussian(mean, std, 1), reference, "structure")}


def close_cell(structures):
    """1 at lengths of 4.4 Å for one atom and 3.6 Å for more, less elsewhere."""
    target = torch.where(structures.n_atoms == 1, 4.4, 3.6)[:, None]
    lengths = structures.cell.diagonal(dim1=1, dim2=2)
    return 1 - (lengths - target).square().mean(1)


# --- what is asked of both ---


def trained(policy, reward, tmp_path, **settings):
    request = Request(torch.tensor([1, 2, 5]))
    chosen = {"n_groups": 3, "group_size": 16, "n_steps": 3, "n_ppo_epochs": 2, "seed": 3}
    config = trainer_config(**{**chosen, "learning_rate": 0.05, **settings})
    trainer = GRPOTrainer(
        policy, reward, request, config, validation=request.repeat(40), out_dir=tmp_path
    )
    trainer.run(60, progress=False)
    again = GRPOTrainer(
        type(policy)(),
        reward,
        request,
        config,
        validation=request.repeat(40),
        out_dir=tmp_path,
        resume=True,
    )
    for ours, theirs in zip(again.policy.parameters(), policy.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    return trainer


def test_a_categorical_process_learns(tmp_path):
    start = generate(
        SpeciesPolicy(),
        Request(torch.tensor([4] * 50)),
        3,
        generator=torch.Generator().manual_seed(0),
    )
    assert 0.2 < float(share_of_oxygen(start).mean()) < 0.5
    trainer = trained(SpeciesPolicy(), share_of_oxygen, tmp_path, clip_eps=0.2)
    assert trainer.validate() > 0.95
    assert set(trainer.history.filter(like="species_")) >= {"species_kl", "species_policy_loss"}


def test_a_latent_process_learns(tmp_path):
    trainer = trained(LatentPolicy(), close_cell, tmp_path, max_batch=7, max_minibatch=30)
    start = trainer.history["validation_reward"].iloc[0]
    assert start < 0.9 and trainer.validate() > 0.95


def test_states_are_those_before_each_step():
    """Conditioned on the final species, the ratios before any update would not be 1."""
    policy = SpeciesPolicy()
    with torch.no_grad():
        policy.logits.copy_(torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, -1.0], [0.0, 1.0, 0.0]]))
    draws = torch.Generator().manual_seed(1)
    x_0 = policy.process.initial(Request(torch.tensor([3, 1, 4])).repeat(5), draws)
    trajectory = rollout(policy, x_0, 4, draws)
    inputs = trajectory.inputs(policy, torch.arange(4))
    again = policy.steps(inputs)["species"].policy.log_prob(trajectory.actions["species"])
    assert torch.equal(again, trajectory.log_probs["species"])
    wrong = torch.log_softmax(policy.logits[trajectory.states["species"][-1]], -1)
    taken = wrong.expand(4, -1, -1).gather(2, trajectory.actions["species"][..., None])[..., 0]
    assert not torch.allclose(taken, trajectory.log_probs["species"])


def test_advantages_of_single_steps():
    """A reward that counts in one step alone gives that step's gradient alone."""
    from irlkit.rl import GRPOConfig, grpo_loss

    policy = LatentPolicy()
    draws = torch.Generator().manual_seed(1)
    x_0 = policy.process.initial(Request(torch.tensor([1] * 6)), draws)
    trajectory = rollout(policy, x_0, 3, draws)
    advantages = torch.zeros(3, 6, dtype=torch.float64)
    advantages[1] = torch.randn(6, generator=draws, dtype=torch.float64)

    def gradient(advantages, index):
        policy.zero_grad()
        grpo_loss(policy, trajectory, advantages, GRPOConfig(), index).total.backward()
        return policy.shift.grad.clone()

    of_one = gradient(advantages[1], torch.tensor([1]))
    assert torch.allclose(gradient(advantages, None), of_one / 3, atol=1e-12)
    assert float(of_one.abs().max()) > 1e-3


def test_categorical_agrees_with_torch_distributions():
    draws = torch.Generator().manual_seed(0)
    logits, other = torch.randn(2, 2, 7, 4, generator=draws, dtype=torch.float64)
    ours, theirs = Categorical(logits), torch.distributions.Categorical(logits=logits)
    reference = torch.distributions.Categorical(logits=other)
    action = ours.sample(draws)
    assert torch.allclose(ours.log_prob(action), theirs.log_prob(action))
    assert torch.allclose(ours.entropy(), theirs.entropy())
    expected = torch.distributions.kl_divergence(theirs, reference)
    assert torch.allclose(ours.kl(Categorical(other)), expected)


def test_what_is_forbidden_is_never_drawn_and_changes_nothing():
    logits = torch.tensor([0.0, 1.0, -torch.inf, 2.0], dtype=torch.float64, requires_grad=True)
    policy = Categorical(logits.expand(1, 40_000, 4))
    action = policy.sample(torch.Generator().manual_seed(0))
    counts = torch.bincount(action.flatten(), minlength=4) / action.numel()
    expected = torch.tensor([0.0, 1.0, -torch.inf, 2.0]).softmax(0)
    assert counts[2] == 0 and torch.allclose(counts, expected, atol=0.01)
    (policy.kl(policy).sum() + policy.entropy().sum() + policy.log_prob(action).sum()).backward()
    assert bool(logits.grad.isfinite().all())
    assert math.isfinite(float(policy.entropy()[0, 0].detach()))
    assert np.isclose(float(policy.kl(policy).abs().max().detach()), 0)
