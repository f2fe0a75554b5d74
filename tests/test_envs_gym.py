"""The Gymnasium environment, and the same fillings learned by the unchanged trainer."""

import numpy as np
import pytest
import torch

from irlkit.envs import Evaluator, PropertyReward, SiteFilling, SiteFillingPolicy, Skeletons
from irlkit.rl import Categorical, generate, rollout
from tests.test_envs import Curve
from tests.toys import trainer_config

gymnasium = pytest.importorskip("gymnasium", reason="gymnasium is not installed (extra gym)")
NAME = "irlkit/CrystalGym-v0"


@pytest.mark.parametrize("mode", ["completion", "substitution"])
@pytest.mark.parametrize("observation", ["arrays", "graph"])
@pytest.mark.filterwarnings("ignore")
def test_gymnasiums_checker(mode, observation):
    from gymnasium.utils.env_checker import check_env

    env = gymnasium.make(NAME, mode=mode, observation=observation, skeletons=["AuSb3", "Ag2O"])
    check_env(env.unwrapped, skip_render_check=True)


def test_an_episode_step_by_step():
    env = gymnasium.make(NAME, target=2.0, elements=["Na", "Cl"], render_mode="ansi").unwrapped
    obs, info = env.reset(seed=1, options={"skeleton": "NaCl", "order": range(8)})
    assert env.render() == "NaCl: [_] _ _ _ _ _ _ _"
    assert obs["species"].sum() == 0 and obs["mask"].sum() == 8 and obs["space_group"] == 225
    for site in range(8):
        assert obs["focus"] == site and info["action_mask"].all()
        obs, reward, ended, truncated, info = env.step(int(site >= 4))
        assert ended == (site == 7) and not truncated
        assert obs["species"][site] == 1 + (site >= 4)
        if not ended:
            assert reward == 0 and "value" not in info
    assert env.render() == "NaCl: Na Na Na Na Cl Cl Cl Cl"
    assert info["formula"] == "NaCl" and not info["failed"] and info["reason"] == ""
    assert info["value"] == pytest.approx(2.163, abs=0.01) and not info["cached"]
    assert reward == pytest.approx(np.exp(-((info["value"] - 2) ** 2) / 2))
    assert env.crystal().reduced_formulas() == ["NaCl"]
    with pytest.raises(ValueError, match="call reset before step"):
        env.step(0)


def test_seeds_decide_on_skeletons_orders_and_first_elements():
    def episodes(seed):
        env = gymnasium.make(NAME, mode="substitution").unwrapped
        env.reset(seed=seed)
        found = []
        for _ in range(6):
            obs, _ = env.reset()
            found.append((int(obs["skeleton"]), int(obs["focus"]), obs["species"].tolist()))
        return found

    assert episodes(3) == episodes(3) != episodes(4)
    assert len({s for s, *_ in episodes(3)}) > 1


def test_masks_keep_the_number_of_elements():
    env = gymnasium.make(NAME, max_elements=2, skeletons="NaCl").unwrapped
    rng = np.random.default_rng(0)
    _, info = env.reset(seed=0)
    ended = False
    while not ended:
        allowed = np.flatnonzero(info["action_mask"])
        obs, _, ended, _, info = env.step(rng.choice(allowed))
    assert len(set(obs["species"].tolist())) == 2


def test_masks_count_what_was_placed_not_what_stands_there_at_random():
    env = gymnasium.make(NAME, mode="substitution", max_elements=2, skeletons="NaCl").unwrapped
    draws = np.random.default_rng(0)
    for seed in range(10):
        _, info = env.reset(seed=seed)
        full = False
        while not full:
            action = draws.choice(np.flatnonzero(info["action_mask"]))
            _, _, full, _, info = env.step(action)
        assert len(env.crystal().species.unique()) <= 2


def test_an_evaluator_that_was_given_is_the_one_that_evaluates():
    evaluator = Evaluator("density")
    env = gymnasium.make(NAME, property=evaluator)
    assert env.spec is not None and env.unwrapped.evaluator is evaluator


def test_positions_are_observed_within_the_cell():
    skeleton = Skeletons.get("RbVF3").crystals
    outside = skeleton.replace(pos=skeleton.pos - 1.3)
    env = gymnasium.make(NAME, skeletons=outside).unwrapped
    assert env.observation_space.contains(env.reset(seed=0)[0])


def test_the_vector_environment_evaluates_in_one_batch_what_single_ones_do():
    envs = gymnasium.make_vec(NAME, 9, skeletons=["AuSb3", "RbVF3"], elements=["Na", "F", "K"])
    judged = []
    evaluator = envs.unwrapped.evaluator
    values = evaluator.property.values
    evaluator.property.values = lambda *a: judged.append(len(a[0])) or values(*a)
    obs, _ = envs.reset(seed=0)
    assert envs.observation_space.contains(obs)
    rng = np.random.default_rng(1)
    total = 0
    for _ in range(24):
        last = obs
        actions = rng.integers(3, size=9)
        obs, rewards, ended, _, info = envs.step(actions)
        for i in np.flatnonzero(ended):
            total += 1
            assert info["_value"][i] and info["skeleton"][i] in ("AuSb3", "RbVF3")
            expected = np.exp(-((info["value"][i] - 3) ** 2) / 3)
            assert rewards[i] == pytest.approx(expected)
        assert (rewards[~ended] == 0).all()
    assert total > 30 and len(judged) < total and last is not obs
    assert evaluator.report()["hits"] + evaluator.report()["misses"] == total
    envs.close()


def test_bad_input_is_refused_in_words():
    for options, message in (
        ({"property": "hardness"}, r"property must be one of .*'hardness'"),
        ({"property": "band_gap"}, "computes no band gaps"),
        ({"elements": ["Na", "Xx"]}, "symbols such as 'Na'"),
        ({"elements": ["Na", "Cm"]}, "does not know the elements Cm"),
        ({"mode": "growth"}, "mode must be one of"),
        ({"observation": "picture"}, "observation must be"),
        ({"max_elements": 0}, "max_elements must be at least 1"),
        ({"target": 0.0}, "target must be"),
    ):
        with pytest.raises(ValueError, match=message):
            gymnasium.make(NAME, **options)
    env = gymnasium.make(NAME).unwrapped
    env.reset(seed=0)
    for action in (18, 1.7, [1]):
        with pytest.raises(ValueError, match="action must be a whole number from 0 to 17, got"):
            env.step(action)
    many = gymnasium.make_vec(NAME, num_envs=2, vectorization_mode="vector_entry_point")
    with pytest.raises(ValueError, match="no episode has begun: call reset"):
        many.step(np.array([0, 0]))
    many.reset(seed=0)
    for actions in ([0, 18], [-1, 0], [0], [0.0, 1.0], []):
        with pytest.raises(ValueError, match="actions must be 2 whole numbers from 0 to 17, got"):
            many.step(np.array(actions))
    with pytest.raises(ValueError, match=r"options\['skeleton'\] must be one of"):
        env.reset(options={"skeleton": "perovskite"})
    with pytest.raises(ValueError, match=r"options\['order'\] must be the sites 0 to 3"):
        env.reset(options={"skeleton": "AuSb3", "order": [0, 0, 1, 2]})


# --- the same as a process of the loop ---


def test_grpo_learns_a_density_and_remembers(tmp_path):
    from irlkit.rl import GRPOTrainer

    process = SiteFilling(["AuSb3", "RbVF3", "NaCl"], ["Li", "F", "Sr", "Br"])
    torch.manual_seed(0)
    reward = PropertyReward(Evaluator("density", Curve()), 2.0)
    requests = process.skeletons.requests(2.0)
    settings = {"n_groups": 3, "group_size": 12, "n_steps": 8, "learning_rate": 3e-3}
    config = trainer_config(
        **settings, shared_x_0=True, n_ppo_epochs=2, clip_eps=0.2, entropy_weight=0.01
    )
    trainer = GRPOTrainer(SiteFillingPolicy(process, width=16), reward, requests, config)
    history = trainer.run(40, progress=False)
    assert history["reward"][-5:].mean() > 0.9 > history["reward"][:3].mean() + 0.1
    assert history["info_cached"][-5:].mean() > history["info_cached"][:3].mean()


@pytest.mark.parametrize("mode", ["completion", "substitution"])
def test_groups_share_skeleton_and_order_and_ratios_are_one(mode):
    process = SiteFilling(["AuSb3", "RbVF3", "NaCl"], ["Li", "F", "Sr", "Br"], mode)
    policy = SiteFillingPolicy(process, width=16)
    draws = torch.Generator().manual_seed(0)
    x_0 = process.initial(process.skeletons.requests(), draws).repeat(4)
    orders = x_0["order"].split(x_0.request.n_atoms.tolist())
    assert all(torch.equal(orders[i], orders[i - i % 4]) for i in range(12))
    assert [sorted(o.tolist()) == list(range(len(o))) for o in orders] == [True] * 12
    trajectory = rollout(policy, x_0, 8, draws)
    inputs = trajectory.inputs(policy, torch.arange(8))
    again = policy.steps(inputs)["element"].policy
    old = trajectory.log_probs["element"]
    assert torch.allclose(again.log_prob(trajectory.actions["element"]), old, atol=1e-6)
    # A full skeleton waits: nothing is drawn, nothing is learned.
    waits = torch.arange(8)[:, None] >= trajectory.request.n_atoms
    assert bool((old[waits] == 0).all()) and bool((old[~waits] < 0).all())
    with pytest.raises(ValueError, match="n_steps must be at least 8"):
        generate(SiteFillingPolicy(SiteFilling("NaCl"), width=8),
                 Skeletons.get("NaCl").requests(), 5, generator=draws)  # fmt: skip


def test_the_noise_scale_is_the_temperature():
    process = SiteFilling(["AuSb3", "RbVF3"], ["Li", "F", "Sr", "Br"])
    torch.manual_seed(0)
    policy, draws = SiteFillingPolicy(process, width=16), torch.Generator().manual_seed(0)
    trajectory = rollout(policy, process.initial(process.skeletons.requests(), draws), 5, draws)
    inputs = trajectory.inputs(policy, torch.zeros(1, dtype=torch.int64))
    logits = policy.steps(inputs)["element"].policy.logits
    policy.noise_scale = {"element": 0.5}
    colder = policy.steps(inputs)["element"].policy
    assert torch.allclose(colder.logits.softmax(-1), (2 * logits).softmax(-1), atol=1e-6)
    assert bool((colder.entropy() < Categorical(logits).entropy()).all())


def test_what_is_placed_is_where_the_order_says():
    process = SiteFilling("Ag2O", ["Li", "F", "Sr"])
    draws = torch.Generator().manual_seed(0)
    state = process.initial(process.skeletons.requests(), draws)
    order = state["order"].clone()
    for step in range(6):
        state = process.advance(state, {"element": torch.tensor([step % 3])}, step)
    expected = torch.tensor([3, 9, 38])[order % 3]
    assert torch.equal(process.decode(state).species, expected)


def test_the_network_sees_no_numbering_of_the_sites():
    """The perovskite's three anions are alike: so are their probabilities."""
    torch.manual_seed(0)
    from irlkit.envs._graphs import SiteNetwork

    network = SiteNetwork(Skeletons.get(["RbVF3", "NaCl"]), 4, width=16)
    species = torch.tensor([[1, 2, 3, 0, 0, 0, 0, 0], [1, 2, 0, 3, 0, 0, 0, 0]])
    zero, target = torch.zeros(2, dtype=torch.int64), torch.ones(2)
    out = network(zero, species, torch.tensor([4, 4]), target)
    assert torch.allclose(out[0], out[1], atol=1e-5)
    other = network(zero, species[:, [1, 0, 2, 3, 4, 5, 6, 7]], torch.tensor([4, 4]), target)
    assert not torch.allclose(out[0], other[0], atol=1e-3)
