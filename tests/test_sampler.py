"""Integration and rollouts."""

from types import SimpleNamespace

import pytest
import torch

from irlkit.crystals import CrystalBatch
from irlkit.flows.base_distribution import BaseDistribution
from irlkit.flows.dynamics import advance
from irlkit.flows.schedules import ConstantNoise, LearnedAnnealing, LinearAnnealing
from irlkit.networks.cspnet import CSPNet
from irlkit.networks.flow_model import FlowModel
from irlkit.pretraining import KINDS
from irlkit.rl.policies import VelocityPolicy
from irlkit.rl.rollout import rollout
from tests.test_policies import generator, kinds, make_policy
from tests.toys import ToyModel, crystals, flow_model, integrate

SPAN = 0.998  # of the time grid


def torus_distance(a, b):
    difference = (a - b).detach()
    return float((difference - difference.round()).abs().max())


@pytest.mark.parametrize("n_steps", [1, 2, 7])
def test_closed_form_field_integrates_exactly(n_steps):
    start = crystals()
    model = ToyModel()
    final = integrate(model, start, n_steps, x_0=start)
    velocity = model.velocity(0.0, start.pos, start.cell, start).velocity
    assert torus_distance(final.pos, start.pos + SPAN * velocity["pos"]) < 1e-12
    torch.testing.assert_close(final.cell, start.cell + SPAN * velocity["cell"])
    assert float(final.pos.min()) >= 0 and float(final.pos.max()) < 1
    assert not final.pos.is_inference() and not final.pos.requires_grad


def test_annealing_multiplies_the_velocity():
    start = crystals()
    model = ToyModel()
    n_steps = 10
    final = integrate(model, start, n_steps, x_0=start, annealing=LinearAnnealing(cell=4.0))
    times = torch.linspace(1e-3, 1 - 1e-3, n_steps + 1, dtype=torch.float64)[:-1]
    factor = float((1 + 4 * times).mean()) * SPAN
    velocity = model.velocity(0.0, start.pos, start.cell, start).velocity
    torch.testing.assert_close(final.cell, start.cell + factor * velocity["cell"])
    assert torus_distance(final.pos, start.pos + SPAN * velocity["pos"]) < 1e-12
    zero = integrate(model, start, n_steps, x_0=start, annealing=LearnedAnnealing().double())
    assert torch.equal(zero.cell, integrate(model, start, n_steps, x_0=start).cell)


def test_conditioning_is_prepared_once():
    model = ToyModel()
    integrate(model, crystals(), 7, generator=generator())
    assert (model.n_preparations, model.n_evaluations) == (1, 7)
    policy = make_policy("annealing")
    rollout(policy, crystals(), 7, generator())
    assert (policy.model.n_preparations, policy.model.n_evaluations) == (1, 7)


def test_positions_are_wrapped_and_increments_are_not():
    state = {"pos": torch.tensor([[0.9, -1e-9, 0.2]]), "cell": torch.zeros(1, 3, 3)}
    after = advance(state, {"pos": torch.tensor([[2.3, 0.0, -0.4]]), "cell": torch.ones(1, 3, 3)})
    torch.testing.assert_close(after["pos"], torch.tensor([[0.2, 0.0, 0.8]]))
    assert torch.equal(after["cell"], torch.ones(1, 3, 3))


@kinds
def test_actions_are_not_wrapped(kind):
    policy = make_policy(kind, {"pos": ConstantNoise(5.0)}, None)
    trajectory = rollout(policy, crystals(), 5, generator(), record_states=True)
    assert float(trajectory.actions["pos"].abs().max()) > 2
    states = trajectory.states["pos"]
    assert float(states.min()) >= 0 and float(states.max()) < 1


def test_perturbation_moments():
    """Eq. 13: after n steps of constant noise, displacements have variance sigma^2 (t_1 - t_0)."""
    start = crystals((100,) * 60)
    sigma = 0.05
    final = integrate(
        ToyModel(), start, 8, x_0=start, noise={"pos": ConstantNoise(sigma)}, generator=generator()
    )
    plain = integrate(ToyModel(), start, 8, x_0=start)
    displacement = final.pos - plain.pos
    displacement = displacement - displacement.round()
    n = displacement.numel()
    expected = sigma * SPAN**0.5
    assert float(displacement.mean()) == pytest.approx(0, abs=4 * expected / n**0.5)
    assert float(displacement.std()) == pytest.approx(expected, rel=4 / (2 * n) ** 0.5)
    assert torch.equal(final.cell, plain.cell)


class GaussianModel:
    """Cells between N(0, 1) and N(0, 0.25) with latent noise: velocity and denoiser are linear."""

    has_denoiser = ("cell",)

    def prepare(self, batch):
        return batch

    def gamma(self, field, t):
        return torch.sqrt(0.5 * t * (1 - t))

    def velocity(self, t, pos, cell, conditioning, heads=("velocity",)):
        variance = (1 - t) ** 2 + 0.25 * t**2 + 0.5 * t * (1 - t)
        rate = 0.5 * (-2 * (1 - t) + 0.5 * t + 0.5 * (1 - 2 * t)) / variance
        denoiser = {"pos": 0 * pos, "cell": self.gamma("cell", t) / variance * cell}
        return SimpleNamespace(velocity={"pos": 0 * pos, "cell": rate * cell}, denoiser=denoiser)


def test_ode_and_sde_have_the_same_marginals():
    """Eqs. 4 and 7, not Eq. 13 with as much noise; 18,000 numbers, three standard errors."""
    n = 2000
    x_0 = CrystalBatch(
        torch.ones(n, dtype=torch.int64),
        torch.zeros(n, 3, dtype=torch.float64),
        torch.randn(n, 3, 3, generator=generator(), dtype=torch.float64),
        torch.ones(n, dtype=torch.int64),
    )
    spread = {}
    for name, noise, kind in (
        ("ode", None, "ode"),
        ("sde", {"cell": ConstantNoise(0.6)}, "sde"),
        ("perturbed", {"cell": ConstantNoise(0.6)}, "ode"),
    ):
        final = integrate(
            GaussianModel(), x_0, 200, x_0=x_0, noise=noise, kind=kind, generator=generator(1)
        )
        spread[name] = float(final.cell.std())
    assert spread["ode"] == pytest.approx(0.5, abs=0.02)
    assert spread["sde"] == pytest.approx(0.5, abs=0.02)
    assert spread["perturbed"] > 0.6


def test_frozen_and_trained_network_share_pair_features():
    policy = VelocityPolicy(flow_model(), {"pos": ConstantNoise(0.1)})
    calls = {"features": 0, "networks": []}
    make = policy.model.pair_features

    def count(*arguments):
        calls["features"] += 1
        return make(*arguments)

    policy.model.pair_features = count
    for model in (policy.model, policy.network):
        model.network.register_forward_hook(
            lambda module, arguments, output: calls["networks"].append(arguments[5] is not None)
        )
    start = crystals(dtype=torch.float32)
    trajectory = rollout(policy, start, 3, generator())
    assert calls == {"features": 3, "networks": [True] * 6}
    # The update evaluates the trained network alone, once.
    policy.steps(trajectory.inputs(policy, torch.arange(3)))
    assert len(calls["networks"]) == 7
    # Generation with two networks shares them too.
    calls.update(features=0)
    policy.deploy().generate(start, 3, x_0=start)
    assert calls["features"] == 3


def test_record():
    start = crystals()
    final, states = integrate(ToyModel(), start, 4, x_0=start, record=True)
    assert len(states) == 5
    assert torch.equal(states[0].pos, start.pos)
    assert torch.equal(states[-1].cell, final.cell)
    plain = integrate(ToyModel(), start, 4, x_0=start)
    assert torch.equal(final.pos, plain.pos)


@pytest.mark.parametrize("max_batch", [1, 3, 4, 100])
def test_chunks_change_nothing(max_batch):
    whole, whole_states = integrate(ToyModel(), crystals(), 4, generator=generator(), record=True)
    final, states = integrate(
        ToyModel(), crystals(), 4, generator=generator(), max_batch=max_batch, record=True
    )
    assert torch.equal(final.pos, whole.pos) and torch.equal(final.cell, whole.cell)
    assert torch.equal(final.species, whole.species)
    for chunked, expected in zip(states, whole_states, strict=True):
        assert torch.equal(chunked.pos, expected.pos)


def network_model():
    """A flow model with random weights, float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = CSPNet(12, 2, 3, 8)
    base = BaseDistribution((1.5, 1.5, 1.5), (0.2, 0.2, 0.2))
    return FlowModel(network, KINDS["linear-ode"], base).double()


@pytest.mark.parametrize("make_model", [ToyModel, network_model])
def test_invariances(make_model):
    """Order of atoms, origin and what else is in the batch do not matter."""
    start = crystals()
    model = make_model()
    annealing = LinearAnnealing(2.0, 1.0)
    final = integrate(model, start, 5, x_0=start, annealing=annealing)

    for i in range(len(start)):
        alone = integrate(model, start[i], 5, x_0=start[i], annealing=annealing)
        torch.testing.assert_close(alone.pos, final[i].pos)
        torch.testing.assert_close(alone.cell, final[i].cell)

    order = torch.cat(
        [
            torch.randperm(int(n), generator=generator()) + int(s)
            for n, s in zip(start.n_atoms, start.n_atoms.cumsum(0) - start.n_atoms, strict=True)
        ]
    )
    permuted = CrystalBatch(start.species[order], start.pos[order], start.cell, start.n_atoms)
    after = integrate(model, permuted, 5, x_0=permuted, annealing=annealing)
    torch.testing.assert_close(after.pos, final.pos[order])

    shift = torch.rand(len(start), 3, generator=generator(), dtype=torch.float64)[start.batch]
    moved = start.replace(pos=start.pos + shift).wrap()
    after = integrate(model, moved, 5, x_0=moved, annealing=annealing)
    assert torus_distance(after.pos, final.pos + shift) < 1e-10


@kinds
def test_same_seed_same_bits(kind):
    policy = make_policy(kind)
    state = torch.get_rng_state()
    first, second, third = (rollout(policy, crystals(), 5, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state), "the global generator was used"
    for field in policy.fields:
        assert torch.equal(first.actions[field], second.actions[field])
        assert torch.equal(first.log_probs[field], second.log_probs[field])
    assert torch.equal(first.final.pos, second.final.pos)
    assert not torch.equal(first.final.pos, third.final.pos)
    a, b = (integrate(policy.model, crystals(), 5, generator=generator(2)) for _ in range(2))
    assert torch.equal(a.pos, b.pos) and torch.equal(a.cell, b.cell)


@kinds
def test_shapes_and_gradients(kind):
    policy = make_policy(kind)
    trajectory = rollout(policy, crystals(), 5, generator(), record_states=True)
    assert trajectory.n_steps == 5
    assert trajectory.states["pos"].shape == (6, 11, 3)
    assert trajectory.states["cell"].shape == (6, 4, 3, 3)
    per_atom = kind != "annealing"
    assert trajectory.actions["pos"].shape == ((5, 11, 3) if per_atom else (5, 4))
    assert trajectory.log_probs["pos"].shape == ((5, 11) if per_atom else (5, 4))
    assert trajectory.log_probs["cell"].shape == (5, 4)
    assert torch.equal(trajectory.states["pos"][-1], trajectory.final.pos)
    tensors = [*trajectory.actions.values(), *trajectory.log_probs.values(), trajectory.final.pos]
    assert not any(x.requires_grad for x in tensors)


@kinds
def test_selected_structures(kind):
    policy = make_policy(kind)
    trajectory = rollout(policy, crystals(), 5, generator())
    chosen = torch.tensor([3, 0])
    part = trajectory.select(chosen)
    assert torch.equal(part.final.pos, trajectory.final[chosen].pos)
    index = torch.arange(5)
    steps = policy.steps(part.inputs(policy, index))
    for field, step in steps.items():
        again = step.policy.log_prob(part.actions[field])
        torch.testing.assert_close(again, part.log_probs[field])


@kinds
@pytest.mark.parametrize("max_batch", [1, 3, 4])
def test_rollout_in_parts(kind, max_batch):
    """Parts draw their actions one after the other."""
    policy = make_policy(kind)
    whole = rollout(policy, crystals(), 5, generator(), max_batch=max_batch)
    draws = generator()
    start = 0
    for i in range(0, 4, max_batch):
        part = rollout(policy, crystals()[i : i + max_batch], 5, draws)
        stop = start + part.actions["pos"].shape[1]
        assert torch.equal(whole.actions["pos"][:, start:stop], part.actions["pos"])
        assert torch.equal(whole.final[i : i + max_batch].cell, part.final.cell)
        start = stop
    again = policy.steps(whole.inputs(policy, torch.arange(5)))
    for field, step in again.items():
        torch.testing.assert_close(
            step.policy.log_prob(whole.actions[field]), whole.log_probs[field]
        )


def test_arguments_are_checked():
    start = crystals()
    for n_steps in (-10, 0):
        with pytest.raises(ValueError, match=f"n_steps must be a positive integer.*got {n_steps}"):
            integrate(ToyModel(), start, n_steps, x_0=start)
        with pytest.raises(ValueError, match="n_steps must be a positive integer"):
            rollout(make_policy("annealing"), start, n_steps, generator())
    with pytest.raises(ValueError, match=r"generator must be a torch\.Generator"):
        integrate(ToyModel(), start, 3)
    with pytest.raises(ValueError, match="max_batch must be a positive number"):
        integrate(ToyModel(), start, 3, x_0=start, max_batch=0)
    with pytest.raises(ValueError, match="max_batch must be a positive number"):
        rollout(make_policy("annealing"), start, 3, generator(), max_batch=-1)
    with pytest.raises(ValueError, match=r"noise must be for the fields .* got \['volume'\]"):
        integrate(ToyModel(), start, 3, x_0=start, noise={"volume": ConstantNoise(1.0)})
    with pytest.raises(ValueError, match="kind must be 'ode' or 'sde', got 'pde'"):
        integrate(ToyModel(), start, 3, x_0=start, kind="pde")
    with pytest.raises(ValueError, match=r"needs denoisers .* none for \['pos'\]"):
        integrate(
            GaussianModel(),
            start,
            3,
            x_0=start,
            noise={"pos": ConstantNoise(1.0)},
            kind="sde",
            generator=generator(),
        )
    with pytest.raises(ValueError, match="x_0 must hold the compositions of batch"):
        integrate(ToyModel(), start, 3, x_0=crystals(seed=1))
