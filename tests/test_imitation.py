"""Self-imitation: the best structure of every request is learned from again."""

import pytest
import torch

from irlkit.envs import SiteFilling, SiteFillingPolicy
from irlkit.envs._symmetry import canonical_keys
from irlkit.rl import GRPOTrainer, Request, SpeciesPolicy, generate, rollout
from irlkit.rl._communicator import DistributedCommunicator
from irlkit.rl._imitation import Imitation
from tests.test_discrete import generator, tiny_model
from tests.toys import trainer_config

SKELETONS = ["AuSb3", "RbVF3"]


def settings(**given):
    plain = {"n_groups": 2, "group_size": 4, "n_steps": 5, "shared_x_0": True}
    return trainer_config(**{**plain, "advantages": "leave_one_out", **given})


def policy_of(elements=("Na", "Cl", "O")):
    torch.manual_seed(0)
    return SiteFillingPolicy(SiteFilling(SKELETONS, list(elements)), width=8)


def sampled(policy, seed=0):
    draws = generator(seed)
    x_0 = policy.process.initial(policy.process.skeletons.requests(1.0), draws).repeat(4)
    return rollout(policy, x_0, 5, draws)


REQUESTS = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
REWARDS = torch.tensor([1.0, 4.0, 2.0, 1.0, -3.0, -5.0, -1.0, -3.0], dtype=torch.float64)


def test_the_best_of_a_request_joins_its_group_with_its_distance_from_the_mean():
    policy = policy_of()
    imitation = Imitation(policy, settings(imitation_weight=2.0))
    first = sampled(policy)
    same, advantages = imitation(first, REWARDS, REWARDS, REQUESTS, 0)
    assert same is first and torch.equal(advantages, REWARDS)
    assert imitation.rewards == {0: 4.0, 1: -1.0}
    second = sampled(policy, 1)
    # The mean of the second group is above what was seen of it before.
    rewards = torch.tensor([3.0, 2, 1, 2, 0, 0, 0, 0], dtype=torch.float64)
    more, advantages = imitation(second, 0 * rewards, rewards, REQUESTS, 1)
    assert advantages.tolist() == [0.0] * 8 + [2.0 * (4 - 2)]
    assert imitation.rewards == {0: 4.0, 1: 0.0}
    for name, x in second.states.items():
        kept = more.select(torch.arange(8))
        assert torch.equal(kept.states[name], x)
    added, best = more.select(torch.tensor([8])), first.select(torch.tensor([1]))
    group = second.select(torch.tensor([0]))
    assert torch.equal(added.final.species, best.final.species)
    assert torch.equal(added.states["species"][-1], best.states["species"][-1])
    # In the order of the group that it joins.
    assert torch.equal(added.states["order"], group.states["order"])
    assert not torch.equal(added.states["order"][0], best.states["order"][0])


def test_the_added_episode_has_the_probabilities_of_the_policy_as_it_is():
    policy = policy_of()
    imitation = Imitation(policy, settings(imitation_weight=1.0))
    imitation(sampled(policy), REWARDS, REWARDS, REQUESTS, 0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator(3)))
    trajectory = sampled(policy, 1)
    more, advantages = imitation(trajectory, 0 * REWARDS, REWARDS - 9, REQUESTS, 1)
    assert len(advantages) == 10
    index = torch.arange(5)
    with torch.no_grad():
        step = policy.steps(more.inputs(policy, index))["element"]
    expected = step.policy.log_prob(more.actions["element"])
    torch.testing.assert_close(more.log_probs["element"], expected)
    # Full structures wait, which is certain.
    assert torch.equal(more.log_probs["element"][4, :4], torch.zeros(4))
    assert (more.log_probs["element"][:4] < 0).all()


def test_it_is_only_remembered_before_the_start():
    config = settings(imitation_weight=1.0, imitation_start=0.5, iterations=5)
    policy = policy_of()
    for iteration, n in ((0, 8), (1, 8), (2, 10), (4, 10)):
        imitation = Imitation(policy, config)
        imitation(sampled(policy), REWARDS, REWARDS, REQUESTS, 0)
        more, _ = imitation(sampled(policy, 1), REWARDS, REWARDS - 9, REQUESTS, iteration)
        assert len(more.request) == n


def share_of_oxygen(structures):
    return torch.stack([(s == 8).double().mean() for s in structures.species.split(
        structures.n_atoms.tolist())])  # fmt: skip


def trainer(folder=None, resume=False, reward=share_of_oxygen, **given):
    policy = policy_of()
    requests = policy.process.skeletons.requests(1.0)
    return GRPOTrainer(policy, reward, requests, settings(**given), out_dir=folder, resume=resume)


def test_what_was_seen_once_is_learned():
    """A reward that is never given again: only imitation can learn from it."""
    seen = []

    def once(structures):
        values = torch.zeros(len(structures), dtype=torch.float64)
        if not seen:
            seen.append(structures[:1])
            values[0] = 1.0
        return values

    probabilities = {}
    for weight in (0.0, 8.0):
        seen.clear()
        made = trainer(reward=once, imitation_weight=weight, learning_rate=1e-2, iterations=15)
        made.run(progress=False)
        requests = made.requests[made.requests.n_atoms == seen[0].n_atoms].repeat(64)
        drawn = generate(made.policy, requests, 5, generator=generator(8))
        # Sites that a symmetry exchanges look alike to the network.
        wanted = canonical_keys(seen[0])[0]
        probabilities[weight] = sum(key == wanted for key in canonical_keys(drawn)) / 64
    assert probabilities[8.0] > 0.5 > probabilities[0.0] + 0.2


def test_a_resumed_run_ends_with_the_same_bits(tmp_path):
    given = {"imitation_weight": 3.0, "imitation_start": 0.2, "iterations": 6}
    whole = trainer(tmp_path / "whole", **given)
    whole.run(progress=False)
    trainer(tmp_path / "parts", **given).run(3, progress=False)
    second = trainer(tmp_path / "parts", True, **given)
    assert second.iteration == 3 and second._imitation.rewards
    second.run(progress=False)
    for name, value in whole.policy.state_dict().items():
        assert torch.equal(value, second.policy.state_dict()[name]), name
    assert whole._imitation.rewards == second._imitation.rewards


def test_a_weight_of_nothing_changes_no_bit():
    plain, given = trainer(), trainer(imitation_start=0.0, imitation_weight=0.0)
    for made in (plain, given):
        made.run(2, progress=False)
    for name, value in plain.policy.state_dict().items():
        assert torch.equal(value, given.policy.state_dict()[name])


@pytest.mark.parametrize(
    "wrong, told",
    [
        ({"imitation_weight": -1.0}, "imitation_weight must not be negative"),
        ({"imitation_weight": "much"}, "imitation_weight must be a finite number"),
        ({"imitation_weight": 1.0, "advantages": "standard"}, 'needs advantages "leave_one_out"'),
        ({"imitation_weight": 1.0, "replay": 2}, "no replay"),
        ({"imitation_weight": 1.0, "n_steps": (4, 5)}, "a single n_steps"),
        ({"imitation_start": 1.0}, "imitation_start must be at least 0 and below 1"),
        ({"imitation_start": 0.5, "iterations": None}, "iterations must say"),
    ],
)
def test_settings_that_cannot_be_are_named(wrong, told):
    with pytest.raises(ValueError, match=told):
        settings(**wrong)


def test_who_cannot_imitate_is_told():
    policy = SpeciesPolicy(tiny_model())
    config = settings(imitation_weight=1.0, n_steps=3, shared_x_0=False)
    with pytest.raises(ValueError, match="imitation_weight must be 0 for SpeciesPolicy"):
        GRPOTrainer(policy, share_of_oxygen, Request(torch.tensor([2])), config)
    with pytest.raises(NotImplementedError, match="cannot tell the moves"):
        policy.process.moves_to(None, {}, 3)
    ranks = DistributedCommunicator.__new__(DistributedCommunicator)
    ranks.size = 2
    with pytest.raises(ValueError, match="imitation_weight must be 0 with several ranks"):
        ranks.check(settings(imitation_weight=1.0))
