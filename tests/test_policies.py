"""Policies: distributions, increments, and what all of them promise."""

import pytest
import torch

from irlkit.flows.dynamics import advance
from irlkit.flows.schedules import (
    ConstantNoise,
    LearnedAnnealing,
    LearnedNoise,
    LinearAnnealing,
    SquareRootNoise,
    load_annealing,
    save_annealing,
    time_grid,
)
from irlkit.rl.distributions import Gaussian
from irlkit.rl.grpo import grpo_loss
from irlkit.rl.policies import (
    AnnealingPolicy,
    ScorePolicy,
    VelocityPolicy,
    load_dynamics,
)
from irlkit.rl.rollout import rollout
from tests.test_schedules import randomised
from tests.toys import ToyModel, crystals, flow_model, integrate, trainer_config

NOISE = {"pos": SquareRootNoise(0.2), "cell": ConstantNoise(0.3)}
REF_NOISE = {"pos": ConstantNoise(0.25), "cell": SquareRootNoise(0.15)}


def make_policy(kind, noise=NOISE, ref_noise=REF_NOISE, **options):
    model = ToyModel()
    if kind == "annealing":
        annealing = randomised(LearnedAnnealing(8, 1, **options)).double()
        return AnnealingPolicy(model, annealing, noise, ref_noise)
    policy = {"velocity": VelocityPolicy, "score": ScorePolicy}[kind](
        model, noise, ref_noise, **options
    )
    with torch.no_grad():
        policy.network.scale += 0.3
    return policy


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


kinds = pytest.mark.parametrize("kind", ["annealing", "velocity", "score"])


@pytest.mark.parametrize(("event_dims", "shape"), [(0, (2, 5)), (1, (2, 5, 3)), (2, (2, 5, 3, 3))])
def test_gaussian_agrees_with_torch_distributions(event_dims, shape):
    draws = generator()
    mean, other_mean, x = (
        torch.randn(shape, generator=draws, dtype=torch.float64) for _ in range(3)
    )
    std, other_std = (
        0.1 + torch.rand(2, *[1] * (len(shape) - 1), generator=draws, dtype=torch.float64)
        for _ in range(2)
    )
    ours, other = Gaussian(mean, std, event_dims), Gaussian(other_mean, other_std, event_dims)
    theirs, their_other = (
        torch.distributions.Independent(torch.distributions.Normal(g.mean, g.std), event_dims)
        for g in (ours, other)
    )
    torch.testing.assert_close(ours.entropy(), theirs.entropy().expand(shape[:2]))
    torch.testing.assert_close(ours.log_prob(x), theirs.log_prob(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        ours.kl(other),
        torch.distributions.kl_divergence(theirs, their_other),
        rtol=1e-12,
        atol=1e-12,
    )
    assert torch.equal(ours.kl(ours), torch.zeros_like(ours.kl(ours)))


def test_gaussian_sample_moments():
    gaussian = Gaussian(torch.full((1, 40000), 0.7), torch.tensor([[0.3]]), 0)
    sample = gaussian.sample(generator())
    # Four standard errors.
    assert float(sample.mean()) == pytest.approx(0.7, abs=4 * 0.3 / 200)
    assert float(sample.std()) == pytest.approx(0.3, abs=4 * 0.3 / 283)


@kinds
def test_step_kl_has_the_right_power_of_dt(kind):
    """ln(sigma_ref/sigma) + (sigma^2 + db^2 dt)/(2 sigma_ref^2) - 1/2, db a drift."""
    policy = make_policy(kind, {"cell": ConstantNoise(0.3)}, {"cell": ConstantNoise(0.2)})
    for n_steps in (4, 16):
        trajectory = rollout(policy, crystals(), n_steps, generator(), record_states=True)
        index = torch.arange(n_steps)
        step = policy.steps(trajectory.inputs(policy, index))["cell"]
        dt = 0.998 / n_steps
        drift = (
            ((step.policy.mean - step.reference.mean) / dt).flatten(2)
            if step.policy.event_dims
            else ((step.policy.mean - step.reference.mean) / dt)[..., None]
        )
        expected = (
            torch.log(torch.tensor(0.2 / 0.3)) + (0.09 + drift**2 * dt) / (2 * 0.04) - 0.5
        ).sum(-1)
        torch.testing.assert_close(step.policy.kl(step.reference), expected, rtol=1e-6, atol=1e-8)


@kinds
def test_states_follow_from_actions_and_means(kind):
    """The mean action is the noise-free step; the noise is sigma sqrt(dt) of what it multiplies."""
    policy = make_policy(kind)
    trajectory = rollout(policy, crystals(), 5, generator(), record_states=True)
    index = torch.arange(5)
    inputs = trajectory.inputs(policy, index)
    if kind == "annealing":
        assert inputs.states == {} and inputs.frozen == {} and inputs.conditioning is None
    times = trajectory.times
    for field in ("pos", "cell"):
        spread = trajectory.actions[field] - policy.steps(inputs)[field].policy.mean
        std = NOISE[field](times[:-1]) * times.diff().sqrt()
        shape = (-1,) + (1,) * (spread.ndim - 1)
        xi = spread.detach() / std.reshape(shape)
        assert float(xi.std()) == pytest.approx(1, abs=0.35)
        assert xi.shape[1] == (11 if field == "pos" and kind != "annealing" else 4)


@kinds
def test_ratio_is_one_before_the_first_update(kind):
    for dtype in (torch.float32, torch.float64):
        model = ToyModel(dtype=dtype)
        start = crystals(tuple(range(1, 9)), dtype)
        if kind == "annealing":
            policy = AnnealingPolicy(model, randomised(LearnedAnnealing(64, 2)).to(dtype), NOISE)
        else:
            policy = make_policy(kind).to(dtype)
            policy._frozen = (model,)
        for n_steps in (1, 3, 10, 37):
            trajectory = rollout(policy, start, n_steps, generator())
            index = torch.arange(n_steps)
            for chosen in (index, index[n_steps // 2 :], index[:1]):
                steps = policy.steps(trajectory.inputs(policy, chosen))
                for field, step in steps.items():
                    again = step.policy.log_prob(trajectory.actions[field][chosen])
                    assert torch.equal(again, trajectory.log_probs[field][chosen])


@kinds
def test_reference_policy_before_training(kind):
    """An untrained policy is its reference; the KL is that of the noises alone."""
    if kind == "annealing":
        policy = AnnealingPolicy(ToyModel(), LearnedAnnealing(8).double(), NOISE)
    else:
        policy = make_policy(kind, ref_noise=None)
        policy.network.load_state_dict(policy.model.state_dict())
    trajectory = rollout(policy, crystals(), 4, generator())
    for step in policy.steps(trajectory.inputs(policy, torch.arange(4))).values():
        assert torch.equal(step.policy.mean, step.reference.mean)
        assert float(step.policy.kl(step.reference).detach().abs().max()) < 1e-12
        if kind == "score":
            assert float(step.distillation.detach().abs().max()) == 0


def test_untrained_annealing_step_is_the_velocity_step():
    policy = AnnealingPolicy(ToyModel(), LearnedAnnealing(8).double(), NOISE)
    start = crystals()
    trajectory = rollout(policy, start, 1, generator(), record_states=True)
    dt = trajectory.times.diff()[0]
    velocity = policy.model.velocity(trajectory.times[0], start.pos, start.cell, start).velocity
    xi = {field: action[0] for field, action in trajectory.actions.items()}
    expected = advance(
        {"pos": start.pos, "cell": start.cell},
        {
            "pos": velocity["pos"] * (dt + xi["pos"])[start.batch, None],
            "cell": velocity["cell"] * (dt + xi["cell"])[:, None, None],
        },
    )
    torch.testing.assert_close(trajectory.final.pos, expected["pos"])
    torch.testing.assert_close(trajectory.final.cell, expected["cell"])


def test_annealing_updates_never_evaluate_the_network():
    policy = make_policy("annealing")
    trajectory = rollout(policy, crystals(), 6, generator())
    assert trajectory.states == {} and trajectory.frozen == {}
    policy.model.n_evaluations = policy.model.n_preparations = 0
    config = trainer_config(group_size=2, kl_weight=0.1)
    grpo_loss(
        policy, trajectory, torch.randn(4, generator=generator()), config.grpo
    ).total.backward()
    assert policy.model.n_evaluations == policy.model.n_preparations == 0
    assert all(p.grad is not None for p in policy.parameters())


@kinds
def test_trained_parameters_only(kind):
    policy = make_policy(kind)
    frozen = {id(p) for p in policy.model.parameters()}
    assert not frozen & {id(p) for p in policy.parameters()}
    assert not any(name.startswith("_frozen") for name in policy.state_dict())


@kinds
@pytest.mark.parametrize("fields", [("pos",), ("cell",)])
def test_other_fields_follow_the_frozen_velocity(kind, fields):
    noise = {field: NOISE[field] for field in fields}
    policy = make_policy(kind, noise, None)
    if kind == "annealing":
        policy.annealing = LearnedAnnealing(8).double()
    other = "cell" if fields == ("pos",) else "pos"
    start = crystals()
    trajectory = rollout(policy, start, 3, generator())
    plain = integrate(policy.model, start, 3, x_0=start)
    torch.testing.assert_close(getattr(trajectory.final, other), getattr(plain, other))
    assert not torch.allclose(
        getattr(trajectory.final, fields[0]), getattr(plain, fields[0]), atol=1e-3
    )
    assert set(trajectory.actions) == set(fields)
    # What is deployed moves that field in the same way.
    deployed = policy.deploy().generate(start, 3, x_0=start, generator=generator())
    torch.testing.assert_close(getattr(deployed, other), getattr(plain, other))
    if kind != "annealing":
        assert not torch.allclose(getattr(deployed, fields[0]), getattr(plain, fields[0]))


@pytest.mark.parametrize("kind", ["velocity", "score"])
def test_an_annealing_can_be_carried_along(kind):
    """With vanishing noise, policy and reference follow (1 + s) b."""
    small = {field: ConstantNoise(1e-7) for field in ("pos", "cell")}
    annealing = LinearAnnealing(pos=3.0, cell=1.5)
    policy = make_policy(kind, small, None, annealing=annealing)
    start = crystals()
    trajectory = rollout(policy, start, 6, generator())
    dynamics = policy.deploy()
    assert dynamics.annealing is annealing
    expected = integrate(dynamics.model, start, 6, x_0=start, annealing=annealing)
    difference = trajectory.final.pos - expected.pos
    assert float((difference - difference.round()).abs().max()) < 1e-5
    torch.testing.assert_close(trajectory.final.cell, expected.cell, rtol=1e-5, atol=1e-5)


def test_deployed_annealing_is_the_noise_free_policy():
    small = {field: ConstantNoise(1e-7) for field in ("pos", "cell")}
    policy = make_policy("annealing", small, None, condition_on_dt=True)
    start = crystals()
    expected = policy.deploy().generate(start, 6, x_0=start)
    final = rollout(policy, start, 6, generator()).final
    torch.testing.assert_close(final.cell, expected.cell, rtol=1e-5, atol=1e-5)


@kinds
def test_what_is_deployed_of_each_policy(kind):
    """Velocity and annealing: without noise. Score: the SDE that was trained, noise included."""
    policy = make_policy(kind)
    policy.noise_scale = {"pos": 0.5, "cell": 0.25}
    dynamics = policy.deploy()
    start = crystals()
    first, second = (
        dynamics.generate(start, 5, x_0=start, generator=generator(seed)) for seed in (0, 1)
    )
    if kind == "score":
        assert dynamics.kind == "sde"
        sampled = rollout(policy, start, 5, generator()).final
        torch.testing.assert_close(first.pos, sampled.pos)
        torch.testing.assert_close(first.cell, sampled.cell)
        assert not torch.equal(first.cell, second.cell)
    else:
        assert (dynamics.kind, dict(dynamics.noise)) == ("ode", {})
        assert torch.equal(first.cell, second.cell)


@pytest.mark.parametrize("kind", ["velocity", "score"])
@pytest.mark.parametrize("fields", [("pos",), ("pos", "cell")])
def test_saved_networks(kind, fields, tmp_path):
    """Weights, a carried annealing, noise and metadata come back; other fields stay frozen."""
    from irlkit.networks.flow_model import FlowModel

    model = flow_model(torch.float64)
    if "cell" in fields and kind == "score":
        model.interpolants["cell"] = model.interpolants["pos"]  # which has a denoiser
    noise = {
        field: LearnedNoise(SquareRootNoise(0.2), 4) if field == "pos" else ConstantNoise(0.1)
        for field in fields
    }
    cls = {"velocity": VelocityPolicy, "score": ScorePolicy}[kind]
    annealing = randomised(LearnedAnnealing(8, 1)).double()
    policy = cls(model, noise, annealing=annealing)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator()).double()
    policy.noise_scale["pos"] = 0.5
    path = tmp_path / "policy.safetensors"
    policy.save(path, {"iteration": 7})
    assert FlowModel.load(path).info["iteration"] == 7
    assert "iteration" not in policy.network.info
    start = crystals()
    ours, theirs = (
        dynamics.generate(start, 4, x_0=start, generator=generator())
        for dynamics in (policy.deploy(), load_dynamics(path, model))
    )
    assert torch.equal(ours.pos, theirs.pos) and torch.equal(ours.cell, theirs.cell)


def test_saved_networks_of_others(tmp_path):
    from irlkit.networks.flow_model import FlowModel

    model = flow_model()
    path = tmp_path / "model.safetensors"
    model.save(path)
    with pytest.raises(ValueError, match="was not saved by a policy"):
        load_dynamics(path, model)
    with pytest.raises(ValueError, match="it is a network, which load_pretrained reads"):
        load_annealing(path)
    VelocityPolicy(model).save(path)
    with pytest.raises(ValueError, match="it is a network, which load_dynamics reads"):
        load_annealing(path)
    save_annealing(LinearAnnealing(1.0, 0.0), path)
    with pytest.raises(ValueError, match="it is an annealing: load_annealing reads it"):
        load_dynamics(path, model)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1")
    for load in (lambda path: load_dynamics(path, model), load_annealing):
        with pytest.raises(ValueError, match="it is a pointer of Git LFS"):
            load(path)
    model.info["policy"] = {"fields": ["pos"]}
    model.save(path)
    with pytest.raises(ValueError, match="description of the policy is incomplete"):
        load_dynamics(path, model)
    with pytest.raises(FileNotFoundError):
        load_dynamics(tmp_path / "missing.safetensors", model)
    assert isinstance(FlowModel.load(path), FlowModel)


@kinds
def test_learned_noise_is_trained_with_the_policy(kind):
    """Its reference stays what it was, and old probabilities are those of the rollout."""
    noise = {"cell": LearnedNoise(ConstantNoise(0.3), 4).double()}
    policy = make_policy(kind, noise, None)
    names = [name for name, _ in policy.named_parameters()]
    assert any(name.startswith("learned_noise.cell") for name in names)
    trajectory = rollout(policy, crystals(), 5, generator())
    advantages = torch.tensor([1.0, -0.5, 0.25, 2.0], dtype=torch.float64)
    config = trainer_config(group_size=2, kl_weight=0.1)
    grpo_loss(policy, trajectory, advantages, config.grpo).total.backward()
    assert float(noise["cell"].layers[-1].bias.grad.abs()) > 0
    index = torch.arange(5)
    with torch.no_grad():
        noise["cell"].layers[-1].bias += 1.0
        step = policy.steps(trajectory.inputs(policy, index))["cell"]
        loss = grpo_loss(policy, trajectory, advantages, config.grpo)
    dt = trajectory.times.diff()
    torch.testing.assert_close(step.reference.std.flatten(), 0.3 * dt.sqrt())
    assert bool((step.policy.std.flatten() > 0.4 * dt.sqrt()).all())
    assert float(loss.terms["cell_ratio"]) != 1.0


def test_an_entropy_bonus_keeps_learned_noise_alive():
    scales = {}
    for weight in (0.0, 1.0):
        noise = LearnedNoise(ConstantNoise(0.3), 4).double()
        policy = make_policy("annealing", {"cell": noise}, None)
        trajectory = rollout(policy, crystals(), 5, generator())
        config = trainer_config(group_size=2, entropy_weight=weight)
        before = grpo_loss(policy, trajectory, torch.zeros(4), config.grpo)
        before.total.backward()
        with torch.no_grad():
            for parameter in policy.parameters():
                if parameter.grad is not None:
                    parameter -= 0.1 * parameter.grad
        scales[weight] = float(noise(torch.tensor(0.5)).detach())
        after = grpo_loss(policy, trajectory, torch.zeros(4), config.grpo).terms["cell_entropy"]
        if weight:
            assert float(after) > float(before.terms["cell_entropy"])
    assert scales[0.0] == pytest.approx(0.3) and scales[1.0] > 0.3


def test_saved_policies(tmp_path):
    policy = make_policy("annealing")
    policy.save(tmp_path / "schedule.safetensors", {"a": 1})
    loaded = load_annealing(tmp_path / "schedule.safetensors")
    times = time_grid(3)
    assert torch.equal(loaded(times, times)["pos"], policy.annealing(times, times)["pos"])


def test_a_field_without_denoiser_is_reinforced_by_its_velocity_alone():
    """Its drift is the velocity policy's, and it is deployed without noise."""
    model = ToyModel()
    model.has_denoiser = ("pos",)
    policies = {"score": ScorePolicy(model, NOISE), "velocity": VelocityPolicy(model, NOISE)}
    with torch.no_grad():
        for policy in policies.values():
            policy.network.scale.fill_(1.3)
    inputs = rollout(policies["score"], crystals(), 3, generator()).inputs(
        policies["score"], torch.arange(3)
    )
    steps = {name: policy.steps(inputs) for name, policy in policies.items()}
    assert steps["score"]["cell"].distillation is None
    assert steps["score"]["pos"].distillation is not None
    # Actions of the velocity policy are relative to the frozen increment.
    frozen = policies["velocity"]._frozen_increment("cell", inputs)
    torch.testing.assert_close(
        steps["score"]["cell"].policy.mean, steps["velocity"]["cell"].policy.mean + frozen
    )
    torch.testing.assert_close(
        steps["score"]["cell"].policy.kl(steps["score"]["cell"].reference),
        steps["velocity"]["cell"].policy.kl(steps["velocity"]["cell"].reference),
    )
    assert set(policies["score"].deploy().noise) == {"pos"}


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="noise must name one or more of the fields"):
        AnnealingPolicy(ToyModel(), noise={})
    with pytest.raises(ValueError, match=r"noise must name .* got \['species'\]"):
        VelocityPolicy(ToyModel(), noise={"species": ConstantNoise(1.0)})
    with pytest.raises(ValueError, match="ref_noise must name the same fields as noise"):
        ScorePolicy(ToyModel(), NOISE, {"pos": ConstantNoise(1.0)})
    model = ToyModel()
    model.has_denoiser = ("pos",)
    with pytest.raises(ValueError, match=r"noise reinforces \['cell'\].*has no denoiser"):
        ScorePolicy(model, {"cell": ConstantNoise(1.0)})
    trajectory = rollout(make_policy("velocity"), crystals(), 2, generator(), record_states=False)
    with pytest.raises(ValueError, match="needs the states of the trajectory"):
        trajectory.inputs(make_policy("velocity"), torch.arange(2))
