"""The policy that trains a velocity for few steps, and the guide that it explores with."""

import numpy as np
import pytest
import torch

from irlkit import data
from irlkit.evaluate.alignment import align
from irlkit.flows.dynamics import Dynamics
from irlkit.flows.schedules import ConstantNoise, EndpointAnnealing, annealing_on_grid
from irlkit.rl import FewStepPolicy, GRPOTrainer, grpo_loss, load_dynamics, rollout
from tests.toys import ToyModel, crystals, flow_model, trainer_config, volume_reward

RULE = EndpointAnnealing(pos=4.0, cell=1.2)
NOISE = {"pos": ConstantNoise(0.02), "cell": ConstantNoise(0.05)}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make_policy(model=None, **options):
    return FewStepPolicy(model or ToyModel(), NOISE, annealing=RULE, guide_steps=4, **options)


def changed(policy):
    with torch.no_grad():
        policy.network.scale += 0.3
    return policy


@pytest.mark.parametrize("n_steps", [3, 10])
def test_untrained_it_generates_what_the_rule_does(n_steps):
    model, start = flow_model(), crystals(dtype=torch.float32)
    expected = Dynamics(model, RULE).generate(start, n_steps, x_0=start)
    found = make_policy(model).deploy().generate(start, n_steps, x_0=start)
    assert torch.equal(found.pos, expected.pos) and torch.equal(found.cell, expected.cell)


def test_probabilities_agree_with_torch_distributions():
    """Those of the policy: mean (1 + s) (b - b_ref) dt, whatever the draws were guided to."""
    policy = changed(make_policy())
    trajectory = rollout(policy, crystals(), 4, generator())
    dt, s = trajectory.times.diff(), annealing_on_grid(RULE, trajectory.times)
    for field, dims in (("pos", 1), ("cell", 2)):
        shape = (-1, *[1] * (dims + 1))
        frozen = trajectory.frozen["velocity"][field]
        mean = ((1 + s[field]) * dt).reshape(shape) * 0.3 * frozen
        std = (NOISE[field].scale * dt.sqrt()).reshape(shape).expand_as(mean)
        theirs = torch.distributions.Independent(torch.distributions.Normal(mean, std), dims)
        expected = theirs.log_prob(trajectory.actions[field])
        torch.testing.assert_close(trajectory.log_probs[field], expected)


def test_a_share_of_one_leads_to_the_end_point_and_none_is_not_guided():
    """Without noise worth mentioning; the rule's last step goes all the way that is left."""
    model, start = ToyModel(), crystals()
    small = {"pos": ConstantNoise(1e-6), "cell": ConstantNoise(1e-6)}
    policy = FewStepPolicy(model, small, annealing=RULE, guide_steps=4, shares=(0.0, 1.0))
    changed(policy)
    found = rollout(policy, start, 2, generator()).final
    followed = policy.deploy().generate(start, 2, x_0=start)
    # The toy's velocity is constant, and steps of the rule go (1 - t) b in the end.
    ends = Dynamics(model, RULE).generate(start, 4, x_0=start)
    left = 0.001 / 0.5  # The grid ends at 0.999, the rule at 1.
    for i in range(4):
        expected = ends if i % 2 else followed
        torch.testing.assert_close(found.cell[i], expected.cell[i], atol=10 * left, rtol=0)
    assert (followed.cell - ends.cell).abs().max() > 0.1


def test_the_gradient_reaches_all_parameters():
    policy = make_policy(flow_model())
    trajectory = rollout(policy, crystals(dtype=torch.float32), 3, generator())
    advantages = torch.tensor([1.0, -1.0, 0.5, -0.5])
    grpo_loss(policy, trajectory, advantages, trainer_config().grpo).total.backward()
    heads = ("coord_out_2", "lattice_out_2")  # of the denoiser, which takes no part
    for name, parameter in policy.network.named_parameters():
        if not any(head in name for head in heads):
            assert parameter.grad.abs().max() > 0, name


def test_guides_of_a_structure_do_not_depend_on_the_others():
    policy, start = make_policy(flow_model().double()), crystals()
    together = rollout(policy, start, 3, generator())
    alone = rollout(policy, start[2], 3, generator())
    atoms = start.batch == 2
    torch.testing.assert_close(
        alone.frozen["guide"]["pos"][0], together.frozen["guide"]["pos"][0, atoms]
    )


def test_save_and_load(tmp_path):
    policy, start = make_policy(flow_model()), crystals(dtype=torch.float32)
    with torch.no_grad():
        policy.network.network.coord_out.weight += 0.1
    policy.save(tmp_path / "policy.safetensors")
    again = load_dynamics(tmp_path / "policy.safetensors", policy.model)
    assert again.annealing == RULE
    expected = policy.deploy().generate(start, 3, x_0=start)
    assert torch.equal(again.generate(start, 3, x_0=start).pos, expected.pos)


def test_training_follows_the_guide_where_it_pays():
    """The trained velocity starts at half of the frozen one, which the guide follows."""
    policy = FewStepPolicy(
        ToyModel(), {"cell": ConstantNoise(0.5)}, annealing=EndpointAnnealing(1.5, 1.5)
    )
    with torch.no_grad():
        policy.network.scale.fill_(0.5)
    config = trainer_config(n_groups=4, group_size=8, n_steps=(2, 4), learning_rate=0.02)
    GRPOTrainer(policy, volume_reward, crystals(), config).run(10, progress=False)
    assert float(policy.network.scale) > 0.6


def test_guided_draws_have_a_share_of_the_noise():
    start = crystals((40,) * 8)
    for share in (1.0, 0.1):
        policy = make_policy(noise_share=share, shares=(0.0, 0.0, 0.0, 1e-9))
        assert policy.identity()["guide"].endswith(" 0.1") == (share == 0.1)
        trajectory = rollout(policy, start, 2, generator())
        spread = trajectory.actions["pos"].std(dim=(1, 2))
        expected = share * 0.02 * trajectory.times.diff().sqrt()
        torch.testing.assert_close(spread, expected, rtol=0.05, atol=0)


def test_shares_are_checked():
    for shares in ((), (0.5, 1.5)):
        with pytest.raises(ValueError, match="shares"):
            make_policy(shares=shares)


def test_alignment_undoes_a_move_of_atoms_and_cell():
    known = data.load("prototypes", split="val").subset(24)
    batch, draws = known.batch, np.random.default_rng(0)
    turn = torch.from_numpy(np.linalg.qr(draws.normal(size=(3, 3)))[0]).float()
    turn = turn * torch.linalg.det(turn).sign()
    noise = 0.01 * torch.from_numpy(draws.normal(size=batch.pos.shape)).float()
    moved = batch.replace(pos=batch.pos + noise + 0.37, cell=1.02 * batch.cell @ turn)
    moves = align(moved, known)
    torch.testing.assert_close(moved.cell + moves["cell"], batch.cell @ turn, atol=1e-4, rtol=0)
    ends = (moved.pos + moves["pos"]).double()
    expected = (batch.pos + 0.37).double()
    for i in range(len(batch)):
        atoms = batch.batch == i
        apart = ends[atoms][:, None] - expected[atoms][None]
        apart = apart - (noise[atoms].mean(0))  # A common translation is left.
        closest = (apart - apart.round()).norm(dim=-1).min(0).values
        assert closest.max() < 2e-4


def test_structures_far_from_all_references_or_broken_need_not_move():
    known = data.load("prototypes", split="val").subset(8)
    batch = known.batch
    cell = batch.cell.clone()
    cell[0] *= 2.0
    cell[1] = torch.nan
    cell[2] = 0.0
    moves = align(batch.replace(cell=cell), known)
    assert not moves["cell"][:3].any() and not moves["pos"][batch.batch < 3].any()
