"""Replay: the best episodes of earlier iterations are learned from again."""

import pytest
import torch

from irlkit.rl import GRPOTrainer, PolicyUpdate, Request, SpeciesPolicy
from irlkit.rl._communicator import DistributedCommunicator
from irlkit.rl._replay import Replay
from tests.test_discrete import generator, tiny_model
from tests.test_species_policy import moved, sampled
from tests.toys import trainer_config


def number_of_oxygens(structures):
    return torch.stack([(s == 8).double().mean() for s in structures.species.split(
        structures.n_atoms.tolist())])  # fmt: skip


def test_the_best_of_each_formula_are_kept():
    trajectory = sampled(SpeciesPolicy(tiny_model()))
    rewards = torch.arange(len(trajectory.request), dtype=torch.float64)
    replay = Replay(2, 3)
    same, advantages = replay(trajectory, -rewards, rewards, generator())
    assert same is trajectory and torch.equal(advantages, -rewards)
    formulas = trajectory.final.reduced_formulas()
    best = {formulas[i]: i for i in range(len(formulas))}  # The last of each is its best.
    expected = sorted(best.values(), reverse=True)[:3]
    assert replay.rewards.tolist() == rewards[expected].tolist()
    assert replay.advantages.tolist() == [-r for r in replay.rewards.tolist()]
    assert replay.kept.final.reduced_formulas() == [formulas[i] for i in expected]
    # What is worse changes nothing, and two of the kept ones come along.
    more, advantages = replay(trajectory, rewards, rewards - 100, generator())
    assert replay.rewards.tolist() == rewards[expected].tolist()
    assert len(more.request) == len(more.final) == len(advantages) == len(rewards) + 2
    again = more.select(torch.arange(len(rewards), len(rewards) + 2))
    for i, formula in enumerate(again.final.reduced_formulas()):
        k = replay.kept.final.reduced_formulas().index(formula)
        kept = replay.kept.select(torch.tensor([k]))
        assert torch.equal(
            again.select(torch.tensor([i])).actions["species"], kept.actions["species"]
        )
        assert advantages[len(rewards) + i] == replay.advantages[k]


def test_an_update_pulls_old_episodes_of_high_reward_back_until_the_ratio_is_clipped():
    """Their probabilities are those that they were drawn with, not those of today."""
    policy = SpeciesPolicy(tiny_model())
    trajectory = sampled(policy)
    advantages = torch.ones(len(trajectory.request), dtype=torch.float64)
    replay = Replay(len(advantages), 100)
    replay(trajectory, advantages, advantages, generator())
    moved(policy)
    again, advantages = replay(sampled(policy, seed=2), 0 * advantages, 0 * advantages, generator())
    optimizer = torch.optim.SGD(policy.parameters(), 0.0)
    config = trainer_config(n_ppo_epochs=1)
    row = PolicyUpdate(policy, optimizer, config, generator())(again, advantages)
    assert row["grad_norm"] > 0 and row["approx_kl"] > 0
    fresh = sampled(policy, seed=2)
    row = PolicyUpdate(policy, optimizer, config, generator())(
        fresh, 0 * advantages[: len(fresh.request)]
    )
    assert row["approx_kl"] == pytest.approx(0, abs=1e-9)


def make(folder, resume=False, **settings):
    config = trainer_config(n_groups=2, group_size=6, n_steps=3, n_ppo_epochs=2, **settings)
    return GRPOTrainer(
        SpeciesPolicy(tiny_model()),
        number_of_oxygens,
        Request(torch.tensor([1, 2, 3])),
        config,
        out_dir=folder,
        resume=resume,
    )


def test_a_resumed_run_ends_with_the_same_bits(tmp_path):
    whole = make(tmp_path / "whole", replay=4, replay_kept=5)
    whole.run(4, progress=False)
    make(tmp_path / "parts", replay=4, replay_kept=5).run(2, progress=False)
    second = make(tmp_path / "parts", resume=True, replay=4, replay_kept=5)
    second.run(4, progress=False)
    for ours, theirs in zip(whole.policy.parameters(), second.policy.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    without = make(tmp_path / "without")
    without.run(4, progress=False)
    pairs = zip(whole.policy.parameters(), without.policy.parameters(), strict=True)
    assert not all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_what_cannot_be_replayed_is_named():
    for wrong in ({"n_steps": (3, 5)}, {"mixed_precision": True}):
        with pytest.raises(ValueError, match="replay keeps probabilities of one number of steps"):
            trainer_config(replay=3, **wrong)
    with pytest.raises(ValueError, match="replay must be a positive integer"):
        trainer_config(replay=-1)
    ranks = DistributedCommunicator.__new__(DistributedCommunicator)
    ranks.size = 2
    with pytest.raises(ValueError, match="replay must be 0 with several ranks"):
        ranks.check(trainer_config(n_groups=2, replay=3))
