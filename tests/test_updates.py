"""Updates: minibatches, subsets of steps, early stops, memory and precision."""

import math
import warnings

import pytest
import torch

import irlkit.rl.update
from irlkit.flows.schedules import ConstantNoise
from irlkit.rl._memory import split_sizes
from irlkit.rl.grpo import grpo_loss
from irlkit.rl.policies import ScorePolicy, VelocityPolicy
from irlkit.rl.rollout import rollout
from irlkit.rl.update import PolicyUpdate
from tests.test_policies import generator, kinds, make_policy
from tests.toys import crystals, flow_model, trainer_config

ADVANTAGES = torch.tensor([1.0, -0.5, 0.25, 2.0], dtype=torch.float64)


def make_update(policy, learning_rate=1e-2, **settings):
    config = trainer_config(group_size=2, learning_rate=learning_rate, **settings)
    optimizer = torch.optim.SGD(policy.parameters(), lr=learning_rate)
    return PolicyUpdate(policy, optimizer, config, generator())


@pytest.mark.parametrize("limit", [1, 3, 4, 6, 7, 13, 24, 100])
def test_minibatches_are_few_and_within_the_bound(limit):
    n_structures, n_steps = 6, 4
    m, k = split_sizes(n_structures, n_steps, limit)
    assert 1 <= m <= n_structures and 1 <= k <= n_steps and m * k <= limit
    count = math.ceil(n_structures / m) * math.ceil(n_steps / k)
    grids = [
        math.ceil(n_structures / a) * math.ceil(n_steps / b)
        for a in range(1, n_structures + 1)
        for b in range(1, n_steps + 1)
        if a * b <= limit
    ]
    assert count == min(grids)


def test_minibatches_fill_the_bound_across_steps_and_structures():
    """A bound just below two steps of all structures does not double the number of passes."""
    m, k = split_sizes(100, 50, 199)
    assert math.ceil(100 / m) * math.ceil(50 / k) <= 1.25 * 100 * 50 / 199


@kinds
def test_random_steps_give_an_unbiased_gradient(kind):
    """The mean over all subsets of two of four steps is the full gradient (Eq. 10)."""
    policy = make_policy(kind)
    trajectory = rollout(policy, crystals(), 4, generator())
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.05
    config = trainer_config(group_size=2, kl_weight=0.1)

    def gradient(index):
        policy.zero_grad()
        grpo_loss(policy, trajectory, ADVANTAGES, config.grpo, index).total.backward()
        return torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])

    subsets = torch.combinations(torch.arange(4), 2)
    mean = torch.stack([gradient(index) for index in subsets]).mean(0)
    torch.testing.assert_close(mean, gradient(None), rtol=1e-9, atol=1e-12)


def test_steps_of_an_epoch():
    policy = make_policy("annealing")
    trajectory = rollout(policy, crystals(), 10, generator())
    update = make_update(policy, n_ppo_epochs=3, step_fraction=0.5, minibatch_updates=2)
    drawn, share = update._draw_steps(trajectory)
    assert share == 1.0, "every step bears on the loss"
    assert len(drawn) == 6
    epochs = [torch.cat(drawn[i : i + 2]).tolist() for i in (0, 2, 4)]
    assert all(len(set(epoch)) == 5 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert update(trajectory, ADVANTAGES)["n_updates"] == 6
    # More updates than steps: one step each.
    short = rollout(policy, crystals(), 2, generator())
    assert (
        make_update(policy, minibatch_updates=5, n_ppo_epochs=1)(short, ADVANTAGES)["n_updates"]
        == 2
    )


@kinds
def test_updates_stop_where_the_policy_has_moved_too_far(kind):
    norms = {}
    for max_kl in (None, 0.02):
        policy = make_policy(kind)
        trajectory = rollout(policy, crystals(), 5, generator())
        update = make_update(policy, 0.01, n_ppo_epochs=30, clip_eps=0.9, max_kl=max_kl)
        row = update(trajectory, ADVANTAGES)
        norms[max_kl] = row["approx_kl"]
        if max_kl is None:
            assert row["n_updates"] == 30
            assert row["approx_kl"] > 0.04
        else:
            assert 1 <= row["n_updates"] < 30
            assert row["approx_kl"] > 0.02
            assert all(p.grad is None for p in policy.parameters())
    assert norms[0.02] < norms[None]


@kinds
def test_estimated_kl_is_that_of_the_gaussians(kind):
    """Over many structures, the mean of q - 1 - ln q is the KL from the old policy."""
    policy = make_policy(kind, {"cell": ConstantNoise(0.3)}, None)
    trajectory = rollout(policy, crystals((1,) * 4000), 1, generator())
    index = torch.arange(1)
    old = policy.steps(trajectory.inputs(policy, index))["cell"].policy
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.02
    new = policy.steps(trajectory.inputs(policy, index))["cell"].policy
    expected = float(old.kl(new).mean().detach())
    loss = grpo_loss(policy, trajectory, torch.zeros(4000), trainer_config(group_size=2).grpo)
    assert expected > 1e-5
    assert float(loss.terms["cell_approx_kl"]) == pytest.approx(expected, rel=0.25)


def test_out_of_memory_halves_the_bound(monkeypatch):
    """Of 20 pairs, at most 6 fit: 20, 10 and 5 are tried."""
    reference, policy = make_policy("velocity"), make_policy("velocity")
    trajectory = rollout(policy, crystals(), 5, generator())
    make_update(reference)(trajectory, ADVANTAGES)
    sizes = []

    def small_memory(policy, trajectory, advantages, config, index, mixed_precision):
        sizes.append(len(trajectory.final) * len(index))
        if sizes[-1] > 6:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return grpo_loss(policy, trajectory, advantages, config, index)

    monkeypatch.setattr("irlkit.rl.update.grpo_loss", small_memory)
    update = make_update(policy)
    with pytest.warns(RuntimeWarning) as caught:
        update(trajectory, ADVANTAGES)
    messages = [str(warning.message) for warning in caught]
    assert (
        "out of memory with 20 (step, structure) pairs at once: max_minibatch is 10" in messages[0]
    )
    assert len(messages) == 2 and update.max_minibatch == 5
    assert max(sizes[2:]) <= 5
    for ours, theirs in zip(policy.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)

    def no_memory(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("irlkit.rl.update.grpo_loss", no_memory)
    with pytest.warns(RuntimeWarning), pytest.raises(torch.OutOfMemoryError):
        update(trajectory, ADVANTAGES)


@pytest.mark.parametrize("cls", [VelocityPolicy, ScorePolicy])
@pytest.mark.parametrize("limit", [None, 7])
def test_mixed_precision(cls, limit):
    """Updates see bfloat16 networks; the ratio is exactly 1 before the first."""
    model = flow_model()
    policy = cls(model, {"pos": ConstantNoise(0.1)})
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=generator())
    trajectory = rollout(policy, crystals(dtype=torch.float32), 5, generator())
    index = torch.arange(5)
    full, mixed = (
        policy.steps(trajectory.inputs(policy, index, mixed_precision=on))["pos"].policy.mean
        for on in (False, True)
    )
    assert mixed.dtype == torch.float32 and not torch.equal(full, mixed)
    torch.testing.assert_close(mixed, full, rtol=0.1, atol=0.02)
    before = [p.detach().clone() for p in policy.parameters()]
    update = make_update(
        policy, mixed_precision=True, n_ppo_epochs=1, max_minibatch=limit, step_fraction=0.6
    )
    row = update(trajectory, ADVANTAGES)
    for field in policy.fields:
        assert row[f"{field}_ratio"] == 1.0 and row[f"{field}_approx_kl"] == 0.0
    assert row["grad_norm"] > 0
    assert any(not torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))
    assert all(p.dtype == torch.float32 for p in policy.parameters())


@pytest.mark.parametrize("rate", [0.25, 4.0])
def test_half_precision_that_does_not_pay_is_said_in_words(rate, monkeypatch):
    monkeypatch.setattr(irlkit.rl.update, "_rate_of_bfloat16", lambda: rate)
    policy = VelocityPolicy(flow_model(), {"pos": ConstantNoise(0.1)})
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        make_update(policy, mixed_precision=True)
        make_update(policy)
    said = [str(w.message) for w in found if "mixed_precision" in str(w.message)]
    assert len(said) == (rate < 1) and all("0.25 times as fast" in text for text in said)


def test_rate_of_bfloat16_is_measured():
    assert 0 < irlkit.rl.update._rate_of_bfloat16() < 1000
