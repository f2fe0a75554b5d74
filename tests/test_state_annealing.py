"""The annealing that sees the state, and the policy that learns it."""

import pytest
import torch

import irlkit
from irlkit.crystals.batch import FIELDS, CrystalBatch
from irlkit.flows.dynamics import Dynamics
from irlkit.flows.schedules import (
    ConstantNoise,
    EndpointAnnealing,
    LinearAnnealing,
    StateAnnealing,
    annealing_on_grid,
    load_annealing,
    read_annealing_metadata,
    save_annealing,
    time_grid,
)
from irlkit.flows.schedules.state import FlowSteps, _features
from irlkit.rl import GRPOTrainer, StateAnnealingPolicy, grpo_loss, rollout
from tests.test_schedules import randomised
from tests.toys import ToyModel, crystals, flow_model, trainer_config, volume_reward

RULE = EndpointAnnealing(pos=4.0, cell=1.2)
NOISE = {"pos": ConstantNoise(0.2), "cell": ConstantNoise(0.3)}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def trained(dtype=torch.float64):
    return randomised(StateAnnealing(RULE, 8)).to(dtype)


def where(batch, times=(0.2, 0.7), seed=1):
    """Times, step sizes, compositions, states and velocities of some steps."""
    draws = generator(seed)
    state, velocity = (
        {
            "pos": torch.rand(len(times), *batch.pos.shape, generator=draws, dtype=batch.dtype),
            "cell": batch.cell
            + torch.rand(len(times), *batch.cell.shape, generator=draws, dtype=batch.dtype),
        }
        for _ in range(2)
    )
    t = torch.tensor(times, dtype=batch.dtype)
    return FlowSteps(t, torch.full_like(t, 0.1), batch, state, velocity)


@pytest.mark.parametrize("n_steps", [3, 10])
def test_untrained_it_generates_what_the_rule_does(n_steps):
    model, start = flow_model(), crystals(dtype=torch.float32)
    expected, found = (
        Dynamics(model, annealing).generate(start, n_steps, x_0=start)
        for annealing in (RULE, StateAnnealing(RULE))
    )
    assert torch.equal(found.pos, expected.pos) and torch.equal(found.cell, expected.cell)
    changed = Dynamics(model, trained(torch.float32)).generate(start, n_steps, x_0=start)
    assert not torch.allclose(changed.cell, expected.cell)


def test_an_untrained_policy_is_its_reference():
    policy = StateAnnealingPolicy(ToyModel(), StateAnnealing(RULE, 8), NOISE)
    trajectory = rollout(policy, crystals(), 4, generator())
    inputs = trajectory.inputs(policy, torch.arange(4))
    rule = annealing_on_grid(RULE, trajectory.times)
    for field, step in policy.steps(inputs).items():
        expected = (rule[field] * trajectory.times.diff())[:, None].expand(4, 4)
        torch.testing.assert_close(step.policy.mean, expected)
        torch.testing.assert_close(step.policy.kl(step.reference), torch.zeros(4, 4).double())


def test_probabilities_agree_with_torch_distributions():
    """Of one scalar per structure and field: mean s dt, standard deviation sigma sqrt(dt)."""
    policy = StateAnnealingPolicy(ToyModel(), trained(), NOISE)
    trajectory = rollout(policy, crystals(), 5, generator())
    times, dt = trajectory.times, trajectory.times.diff()
    for i in range(5):
        state = {name: x[i : i + 1] for name, x in trajectory.states.items()}
        velocity = {name: x[i : i + 1] for name, x in trajectory.frozen["velocity"].items()}
        at = FlowSteps(times[i : i + 1], dt[i : i + 1], trajectory.request, state, velocity)
        s = policy.annealing(at)
        for field in ("pos", "cell"):
            std = NOISE[field](times[i : i + 1]) * dt[i].sqrt()
            theirs = torch.distributions.Normal(s[field][0] * dt[i], std)
            expected = theirs.log_prob(trajectory.actions[field][i])
            torch.testing.assert_close(trajectory.log_probs[field][i], expected)
        # The increment is (dt + action) b.
        moved = trajectory.states["cell"][i + 1] - trajectory.states["cell"][i]
        factor = (dt[i] + trajectory.actions["cell"][i])[:, None, None]
        torch.testing.assert_close(moved, factor * velocity["cell"][0])


def test_the_gradient_reaches_all_parameters():
    policy = StateAnnealingPolicy(ToyModel(), trained(), NOISE)
    trajectory = rollout(policy, crystals(), 4, generator())
    advantages = torch.tensor([1.0, -1.0, 0.5, -0.5])
    grpo_loss(policy, trajectory, advantages, trainer_config().grpo).total.backward()
    for name, parameter in policy.named_parameters():
        assert parameter.grad.abs().max() > 0, name


def test_a_structure_does_not_see_the_others_nor_the_order_of_its_atoms():
    batch, annealing = crystals(), trained()
    steps = where(batch)
    together = annealing(steps)
    for i in range(len(batch)):
        atoms = batch.atom_indices(torch.tensor([i])).flip(0)
        alone = CrystalBatch(batch.species[atoms], *(getattr(batch[i], f) for f in FIELDS[1:]))
        state, velocity = (
            {"pos": x["pos"][:, atoms], "cell": x["cell"][:, i : i + 1]} for x in steps[3:]
        )
        alone = steps._replace(batch=alone, state=state, velocity=velocity)
        for field, s in annealing(alone).items():
            torch.testing.assert_close(s, together[field][:, i : i + 1])


def test_features_are_invariant_under_rotations_and_translations():
    steps = where(crystals())
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=generator(), dtype=torch.float64))[0]
    state, velocity = ({"pos": x["pos"], "cell": x["cell"] @ rotation} for x in steps[3:])
    state["pos"] = state["pos"] + 0.3
    rotated = steps._replace(state=state, velocity=velocity)
    torch.testing.assert_close(_features(rotated), _features(steps))


def test_flat_cells_and_broken_velocities_stay_their_own():
    batch, annealing = crystals(), trained()
    steps = where(batch)
    expected = annealing(steps)
    steps.state["cell"][:, 0] = 0.0
    steps.velocity["pos"][:, batch.batch == 1] = torch.inf
    found = annealing(steps)
    for field, s in found.items():
        assert s[:, 0].isfinite().all()
        torch.testing.assert_close(s[:, 2:], expected[field][:, 2:])


def test_save_and_load(tmp_path):
    annealing = trained(torch.float32)
    save_annealing(annealing, tmp_path / "s.safetensors", {"seed": 3})
    again = load_annealing(tmp_path / "s.safetensors")
    assert isinstance(again, StateAnnealing) and again.rule == RULE
    assert read_annealing_metadata(tmp_path / "s.safetensors") == {"seed": 3}
    at = where(crystals(dtype=torch.float32))
    for field, s in annealing(at).items():
        assert torch.equal(again(at)[field], s)


def test_training_learns_what_a_rule_cannot():
    """One factor for all cannot make cells of all sizes right; the reward depends on N."""
    start = StateAnnealing(LinearAnnealing(), 16)
    policy = StateAnnealingPolicy(ToyModel(), start.double(), {"cell": ConstantNoise(0.3)})
    config = trainer_config(
        n_groups=4, group_size=16, n_steps=(2, 4), learning_rate=2e-2, validate_every=20
    )
    trainer = GRPOTrainer(policy, volume_reward, crystals(), config, validation=crystals())
    history = trainer.run(20, progress=False)
    assert history["validation_reward"].iloc[-1] > history["validation_reward"].iloc[0] + 0.05


def test_a_grid_alone_is_refused():
    with pytest.raises(ValueError, match="sees the state"):
        annealing_on_grid(StateAnnealing(), time_grid(4))


def test_cells_alone_are_reinforced():
    """Positions then follow the annealing without noise, as they do when deployed."""
    policy = StateAnnealingPolicy(ToyModel(), trained(), {"cell": ConstantNoise(1e-9)})
    start = crystals()
    found = rollout(policy, start, 4, generator()).final
    expected = policy.deploy().generate(start, 4, x_0=start)
    torch.testing.assert_close(found.pos, expected.pos)
    torch.testing.assert_close(found.cell, expected.cell)
    assert irlkit.rl.POLICIES["state_annealing"] is StateAnnealingPolicy
