"""The policy of species: gradient and divergence against enumeration, a toy, traps."""

import itertools

import pytest
import torch

from irlkit.crystals import CrystalBatch
from irlkit.flows.constraints import Constraints
from irlkit.flows.schedules import ConstantNoise
from irlkit.rl import (
    GRPOConfig,
    GRPOTrainer,
    PolicyUpdate,
    Request,
    SpeciesPolicy,
    StepInputs,
    Trajectory,
    generate,
    grpo_loss,
    load_dynamics,
    rollout,
)
from tests.test_discrete import generator, tiny_model
from tests.test_other_processes import share_of_oxygen
from tests.toys import trainer_config

STEPS = 3


def moved(policy, size=0.3, seed=5):
    """The policy with other weights than its reference."""
    draws = generator(seed)
    with torch.no_grad():
        for parameter in policy.network.parameters():
            noise = torch.randn(parameter.shape, generator=draws, dtype=parameter.dtype)
            parameter += size * noise * parameter.std().nan_to_num(0.1)
    return policy


def sampled(policy, n_atoms=(2, 3, 1, 4), n_steps=STEPS, copies=4, seed=1):
    draws = generator(seed)
    request = Request(torch.tensor(n_atoms)).repeat(copies)
    return rollout(policy, policy.process.initial(request, draws), n_steps, draws)


# --- exact: every path of a small chain ---


def every_path(policy, n_atoms=2, n_steps=STEPS):
    """All paths of the species of one structure as a trajectory; probabilities with gradient."""
    model = policy.model
    tokens = [z for z in model.species.elements]
    if model.species.base == "mask":
        tokens = [0, *tokens]
    process = policy.process
    one = process.initial(Request(torch.tensor([n_atoms])), generator())
    starts = [one["species"].tolist()]
    if model.species.base == "uniform":
        starts = list(itertools.product(tokens, repeat=n_atoms))
    steps = itertools.product(itertools.product(tokens, repeat=n_atoms), repeat=n_steps)
    paths = torch.tensor([[s, *path] for s, path in itertools.product(starts, list(steps))])
    one = one.moved_to(dict(one.values))
    state = one.repeat(len(paths))
    state = state.moved_to({**state.values, "species": paths[:, 0].flatten()})
    conditioning = policy.prepare(state.request)
    times = process.grid(n_steps)
    log_probs, states, frozen, kl = [], [state.values], [], 0.0
    for i in range(n_steps):
        inputs = StepInputs(
            times,
            torch.tensor([i]),
            state.request,
            {name: x[None] for name, x in state.values.items()},
            conditioning=conditioning,
        )
        with torch.no_grad():
            inputs = policy.observe(inputs)
        action = paths[:, i + 1].flatten()[None]
        step = policy.steps(inputs)["species"]
        ours, reference = step.policy.given(action), step.reference.given(action)
        log_probs.append(ours.log_prob(action))
        kl = kl + ours.kl(reference)[0].unflatten(0, (-1, n_atoms)).sum(1)
        moves = policy.moves({"species": action}, inputs, None)
        state = process.advance(state, moves, i)
        states.append(state.values)
        frozen.append(inputs.frozen)
    log_path = torch.cat(log_probs).sum(0).unflatten(0, (-1, n_atoms)).sum(1)
    possible = (log_path > -torch.inf).nonzero().flatten()
    trajectory = Trajectory(
        times,
        state.request,
        {"species": paths[:, 1:].permute(1, 0, 2).flatten(1)},
        {"species": torch.cat(log_probs).detach()},
        process.decode(state),
        {"species": "atom"},
        process.scopes,
        {name: torch.stack([s[name] for s in states]) for name in states[0]},
        {
            head: {name: torch.cat([f[head][name] for f in frozen]) for name in frozen[0][head]}
            for head in frozen[0]
        },
    )
    share = 1 / len(starts)
    return trajectory.select(possible), share * log_path[possible].exp(), kl[possible]


def gradient(policy, value):
    """All gradients in one vector."""
    found = torch.autograd.grad(value, list(policy.parameters()), allow_unused=True)
    zeros = [torch.zeros_like(p) for p in policy.parameters()]
    return torch.cat([
        (z if g is None else g).flatten() for g, z in zip(found, zeros, strict=True)
    ])  # fmt: skip


CHAINS = {
    "mask": ("mask", 0.0, None),
    "mask with noise": ("mask", 0.8, None),
    "uniform": ("uniform", 0.3, None),
    "exact fractions": ("mask", 0.8, Constraints(fractions={"O": 0.5, "Na": 0.5})),
    "chemical system": ("mask", 0.0, Constraints(chemical_system="O-Na")),
}


def chain(name):
    base, noise, constraints = CHAINS[name]
    model = tiny_model(base, elements=(8, 11), noise=noise, temperature=1.3)
    return moved(SpeciesPolicy(model, constraints=constraints))


@pytest.mark.parametrize("name", CHAINS)
def test_gradient_of_the_expected_reward_is_that_of_all_paths(name):
    policy = chain(name)
    trajectory, p, _ = every_path(policy)
    assert float(p.sum().detach()) == pytest.approx(1.0, abs=1e-10)
    rewards = torch.randn(len(p), generator=generator(3), dtype=torch.float64)
    exact = gradient(policy, (p * rewards).sum())
    # The expectation of the loss over what the old policy samples: every path with its probability.
    advantages = p.detach() * rewards * len(p)
    loss = grpo_loss(policy, trajectory, advantages, GRPOConfig(kl_weight=0.0))
    flow = policy.model.species
    events = flow.expected_events(trajectory.times) if flow.base == "mask" else STEPS
    ours = -2 * events * gradient(policy, loss.total)
    assert float((ours - exact).norm() / exact.norm()) < 1e-10
    assert float(exact.norm()) > 1e-6


@pytest.mark.parametrize("name", CHAINS)
def test_divergence_of_the_paths(name):
    policy = chain(name)
    trajectory, p, kl = every_path(policy)
    reference = SpeciesPolicy(policy.model, constraints=policy.constraints)
    again, q, _ = every_path(reference)
    assert torch.equal(trajectory.actions["species"], again.actions["species"])
    exact = (p * (p / q).log()).sum()
    assert float(((p * kl).sum() - exact).abs().detach()) < 1e-10
    assert float(exact.detach()) > 1e-3


# --- learning ---


def test_the_share_of_oxygen_is_learned(tmp_path):
    request = Request(torch.tensor([2, 4, 5]))
    config = trainer_config(
        n_groups=3, group_size=24, n_steps=8, n_ppo_epochs=2, seed=3, learning_rate=0.02,
        clip_eps={"species": 0.2},
    )  # fmt: skip
    policy = SpeciesPolicy(tiny_model(noise=0.3).float())
    trainer = GRPOTrainer(
        policy, share_of_oxygen, request, config, validation=request.repeat(20), out_dir=tmp_path
    )
    trainer.run(25, progress=False)
    history = trainer.history
    assert history["validation_reward"].iloc[0] < 0.5
    assert trainer.validate() > 0.95
    assert {"species_kl", "species_policy_loss", "species_approx_kl"} <= set(history)
    resumed = GRPOTrainer(
        SpeciesPolicy(policy.model), share_of_oxygen, request, config, out_dir=tmp_path,
        validation=request.repeat(20), resume=True,
    )  # fmt: skip
    for a, b in zip(policy.parameters(), resumed.policy.parameters(), strict=True):
        assert torch.equal(a, b)
    policy.save(tmp_path / "learned.safetensors")
    made = load_dynamics(tmp_path / "learned.safetensors", policy.model).generate(
        request.repeat(20).n_atoms, 8, generator=generator()
    )
    assert float(share_of_oxygen(made).mean()) > 0.95


@pytest.mark.parametrize("fields", [("pos",), ("pos", "cell")])
def test_together_with_positions_and_cells(fields, tmp_path):
    """One shared advantage; each field with its ratio, which is 1 before an update."""
    noise = {name: ConstantNoise(0.2) for name in fields}
    policy = moved(SpeciesPolicy(tiny_model(noise=0.5), noise))
    assert policy.fields == ("species", *fields)
    trajectory = sampled(policy)
    advantages = torch.randn(16, generator=generator(), dtype=torch.float64)
    config = GRPOConfig(kl_weight=0.1, policy_weight={"species": 1.0, "pos": 0.5, "cell": 0.2})
    loss = grpo_loss(policy, trajectory, advantages, config)
    for name in policy.fields:
        assert float(loss.terms[f"{name}_ratio"]) == pytest.approx(1.0, abs=1e-9)
        assert float(loss.terms[f"{name}_kl"]) > 0
        assert float(loss.terms[f"{name}_clip_fraction"]) == 0
    loss.total.backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in policy.parameters())
    policy.save(tmp_path / "policy.safetensors")
    made = [
        d.generate(torch.tensor([2, 3]), 4, generator=generator())
        for d in (policy.deploy(), load_dynamics(tmp_path / "policy.safetensors", policy.model))
    ]
    assert torch.equal(made[0].pos, made[1].pos) and torch.equal(made[0].species, made[1].species)


def test_species_alone_leave_the_velocity_frozen():
    policy = moved(SpeciesPolicy(tiny_model()))
    request = Request(torch.tensor([3, 2]))
    x_0 = policy.process.initial(request, generator(7))
    made = rollout(policy, x_0, 4, generator(8))
    assert set(made.actions) == {"species"}
    deployed = generate(policy, request, 4, generator=generator(9))
    assert set(deployed.species.tolist()) <= set(policy.model.species.elements)
    # Given all species, nothing is left to the policy, and the structure is the frozen model's.
    batch = CrystalBatch.from_formulas(["NaCl", "SrTiO3"]).to(dtype=torch.float64)
    x_0 = policy.process.initial(batch, generator())
    given = rollout(policy, x_0, 4, generator())
    assert torch.equal(given.final.species, batch.species)
    assert not bool(given.log_probs["species"].any())
    start = CrystalBatch(batch.species, x_0["pos"], x_0["cell"], batch.n_atoms)
    from irlkit.flows.dynamics import Dynamics

    frozen = Dynamics(policy.model).generate(batch, 4, x_0=start)
    torch.testing.assert_close(given.final.pos, frozen.pos)


# --- traps ---


@pytest.mark.parametrize("base", ["mask", "uniform"])
@pytest.mark.parametrize("n_steps", [1, 5])
def test_the_ratio_is_one_before_an_update(base, n_steps):
    """The same temperature and the same last step in rollout and ratio; states before the steps."""
    policy = moved(SpeciesPolicy(tiny_model(base, noise=0.4, temperature=0.6)))
    trajectory = sampled(policy, n_steps=n_steps)
    inputs = trajectory.inputs(policy, torch.arange(n_steps))
    again = policy.steps(inputs)["species"].policy.log_prob(trajectory.actions["species"])
    torch.testing.assert_close(again, trajectory.log_probs["species"], rtol=1e-9, atol=1e-9)
    assert bool((trajectory.final.species > 0).all())
    # Seen as at the end, species included, the steps have other probabilities.
    last = {name: x[-1:].expand(n_steps, *x.shape[1:]) for name, x in trajectory.states.items()}
    wrong = policy.steps(StepInputs(
        trajectory.times, torch.arange(n_steps), trajectory.request, last, inputs.frozen,
        inputs.conditioning,
    ))["species"]  # fmt: skip
    assert not torch.allclose(wrong.policy.log_prob(trajectory.actions["species"]), again)


def test_extreme_logits_stay_finite():
    policy = SpeciesPolicy(tiny_model())
    with torch.no_grad():
        policy.network.network.type_out.weight *= 1e4
    trajectory = sampled(policy)
    with torch.no_grad():
        policy.network.network.type_out.weight *= -1.0
    loss = grpo_loss(policy, trajectory, torch.ones(16).double(), GRPOConfig(kl_weight=1.0))
    loss.total.backward()
    assert bool(loss.total.isfinite())
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in policy.parameters())


@pytest.mark.parametrize("given", [{"exclude": ["O"]}, {"fractions": {"Na": 0.5, "Cl": 0.5}}])
def test_forbidden_elements_have_probability_zero_under_every_policy(given):
    policy = moved(SpeciesPolicy(tiny_model(noise=0.5), constraints=Constraints(**given)), 1.0)
    trajectory = sampled(policy, n_atoms=(2, 4))
    numbers = {8} if "exclude" in given else {8, 12, 22, 38}
    assert not numbers & set(trajectory.final.species.tolist())
    made = generate(policy, Request(torch.tensor([2, 4, 4])), 6, generator=generator())
    assert not numbers & set(made.species.tolist())
    loss = grpo_loss(policy, trajectory, torch.randn(8).double(), GRPOConfig(kl_weight=1.0))
    loss.total.backward()
    bias = policy.network.network.type_out.bias.grad
    assert float(bias[[z - 1 for z in numbers]].abs().max()) == 0
    assert float(bias.abs().max()) > 0 and bool(bias.isfinite().all())


def test_which_atoms_are_unmasked_does_not_depend_on_the_policy():
    masks = []
    for size in (0.0, 1.0):
        policy = moved(SpeciesPolicy(tiny_model(noise=0.5)), size)
        masks.append(sampled(policy, n_steps=6).states["species"] == 0)
    assert torch.equal(*masks) and bool(masks[0][3].any()) and not bool(masks[0][3].all())


def test_ratios_change_with_unmasked_atoms_alone():
    policy = SpeciesPolicy(tiny_model(noise=0.5))
    trajectory = sampled(policy, n_steps=6)
    moved(policy)
    step = policy.steps(trajectory.inputs(policy, torch.arange(6)))["species"]
    change = step.policy.log_prob(trajectory.actions["species"]) - trajectory.log_probs["species"]
    before, after = trajectory.states["species"][:-1], trajectory.states["species"][1:]
    events = (before == 0) & (after > 0)
    assert not bool(change[~events].any()) and bool((change[events] != 0).all())
    # Each is clipped by itself, and the surrogate is a mean over them.
    loss = grpo_loss(policy, trajectory, torch.ones(16).double(), GRPOConfig(clip_eps=0.01))
    n_events = step.n_events
    beyond = ((change.exp() - 1).abs() > 0.01).double()
    share = torch.zeros(6, 16).double().index_add(1, trajectory.request.batch, beyond) / n_events
    assert float(loss.terms["species_clip_fraction"]) == pytest.approx(float(share.mean()))
    assert float(share.mean()) > 0


def test_a_share_of_the_steps_is_drawn_from_those_with_events():
    """And what they give is, on average, the gradient of all steps."""
    policy = moved(SpeciesPolicy(tiny_model()))
    trajectory = sampled(policy, n_atoms=(1,), n_steps=20, copies=3)
    busy = policy.busy_steps(trajectory)
    assert 0 < len(busy) < 20
    advantages = torch.tensor([1.0, -0.5, -0.5]).double()
    config = trainer_config(n_steps=20, step_fraction=0.1, group_size=2)
    update = PolicyUpdate(policy, torch.optim.SGD(policy.parameters(), 0.0), config, generator())
    indices, share = update._draw_steps(trajectory)
    assert all(set(index.tolist()) <= set(busy.tolist()) for index in indices)
    whole = gradient(policy, grpo_loss(policy, trajectory, advantages, GRPOConfig()).total)
    parts = [
        share * gradient(policy, grpo_loss(policy, trajectory, advantages, GRPOConfig(), i).total)
        for i in busy.split(1)
    ]
    torch.testing.assert_close(torch.stack(parts).mean(0), whole)
    assert float(whole.norm()) > 0


def test_fixed_sites_are_no_actions():
    sites = [("Ti", (0.0, 0.0, 0.0)), ("O", (0.5, 0.5, 0.5))]
    policy = moved(SpeciesPolicy(
        tiny_model(noise=1.0), {"pos": ConstantNoise(0.3)}, constraints=Constraints(sites=sites)
    ))  # fmt: skip
    trajectory = sampled(policy, n_atoms=(3, 4), n_steps=4)
    first = trajectory.request.n_atoms.cumsum(0) - trajectory.request.n_atoms
    assert bool((trajectory.states["species"][:, first] == 22).all())
    assert not bool(trajectory.states["pos"][:, first].any())
    moved(policy, seed=6)
    step = policy.steps(trajectory.inputs(policy, torch.arange(4)))
    for name, values in (("species", step["species"]), ("pos", step["pos"])):
        change = values.policy.log_prob(trajectory.actions[name]) - trajectory.log_probs[name]
        assert not bool(change[:, first].any()) and bool(change.any())
        assert not bool(values.policy.kl(values.reference)[:, first].any())


def test_models_of_given_species_are_refused():
    model = tiny_model()
    model.species = None
    with pytest.raises(ValueError, match="model must be one that generates species"):
        SpeciesPolicy(model)
