"""Advantages, loss and trainer."""

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from irlkit.data import CrystalDataset
from irlkit.flows.schedules import ConstantNoise, LearnedAnnealing, LearnedNoise, load_annealing
from irlkit.rewards import CompositeReward, CRMSEReward, FunctionReward, Reward
from irlkit.rl._scoring import RewardsInParts
from irlkit.rl.grpo import ADVANTAGES, clipped_surrogate, group_advantages, grpo_loss
from irlkit.rl.policies import AnnealingPolicy
from irlkit.rl.rollout import rollout
from irlkit.rl.trainer import GRPOTrainer, NonFiniteRewardError
from irlkit.rl.update import _Sample
from tests.test_policies import generator, kinds, make_policy
from tests.toys import Result, ToyModel, crystals, trainer_config, volume_reward

SMALL = {"n_groups": 2, "group_size": 4, "n_steps": 3, "n_ppo_epochs": 2, "validate_every": 2}
TIMES = ["rollout_seconds", "reward_seconds", "update_seconds"]


# --- advantages and surrogate ---


def test_advantages_are_standardised_in_each_group():
    rewards = torch.randn(12, generator=generator(), dtype=torch.float64)
    groups = group_advantages(rewards, 4).reshape(3, 4)
    torch.testing.assert_close(groups.mean(1), torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(groups.std(1, correction=0), torch.ones(3, dtype=torch.float64))
    moved = rewards + torch.tensor([5.0, -3.0, 0.1]).repeat_interleave(4)
    torch.testing.assert_close(group_advantages(moved, 4).reshape(3, 4), groups)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_rewards_have_no_advantage(dtype):
    rewards = torch.tensor([0.1] * 7 + [0.3] * 7, dtype=dtype)
    assert torch.equal(group_advantages(rewards, 7), torch.zeros(14, dtype=dtype))


OUTLIER = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, -60.0], dtype=torch.float64)


@pytest.mark.parametrize("kind", ADVANTAGES)
def test_kinds_of_advantages(kind):
    """All keep the order of a group (or its upper part), ignore a shift, are 0 if all are equal."""
    values = group_advantages(torch.cat([OUTLIER, torch.ones(8)]).double(), 8, kind)
    assert values.dtype == torch.float64 and torch.equal(values[8:], torch.zeros(8).double())
    torch.testing.assert_close(group_advantages(OUTLIER + 7, 8, kind), values[:8])
    if kind == "positive":
        standard = group_advantages(OUTLIER, 8)
        assert torch.equal(values[:8], standard.clamp(min=0.0)) and bool((standard < 0).any())
        return
    assert torch.equal(values[:8].argsort(), OUTLIER.argsort())
    if kind != "median":
        assert float(values.sum()) == pytest.approx(0, abs=1e-9)


def test_one_outlier_does_not_flatten_the_others():
    spread = {
        kind: float(group_advantages(OUTLIER, 8, kind)[6] - group_advantages(OUTLIER, 8, kind)[0])
        for kind in ("standard", "median", "ranks")
    }
    assert spread["standard"] < 0.3 and spread["median"] > 1.5 and spread["ranks"] > 1.5
    with pytest.raises(ValueError, match=r"kind must be one of .*got 'mean'"):
        group_advantages(OUTLIER, 8, "mean")


def test_a_trainer_takes_its_kind_of_advantages():
    histories = {}
    for kind in ("standard", "ranks"):
        trainer = make_trainer(config={"advantages": kind, "group_size": 4})
        histories[kind] = trainer.run(2, progress=False)
    assert histories["standard"]["reward"].iloc[1] == histories["ranks"]["reward"].iloc[1]
    assert histories["standard"]["reward"].iloc[2] != histories["ranks"]["reward"].iloc[2]


def test_advantages_check_their_arguments():
    with pytest.raises(ValueError, match="group_size must be an integer of at least 2, got 1"):
        group_advantages(torch.zeros(4), 1)
    with pytest.raises(ValueError, match=r"rewards must have shape .* group_size of 3"):
        group_advantages(torch.zeros(4), 3)


def test_clipped_surrogate():
    log_ratio = torch.tensor([0.5, 1.0, 2.0, 0.5, 2.0]).log()
    advantages = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0])
    ours = clipped_surrogate(log_ratio, advantages, 0.25)
    torch.testing.assert_close(ours, torch.tensor([0.5, 1.0, 1.25, -0.75, -2.0]))
    with pytest.raises(ValueError, match="clip_eps must be positive"):
        clipped_surrogate(log_ratio, advantages, 0.0)


# --- loss ---


def perturbed(policy):
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.05
    return policy


def gradients(policy, total):
    policy.zero_grad()
    total.backward()
    return [p.grad.clone() for p in policy.parameters() if p.grad is not None]


@kinds
def test_first_loss_is_minus_the_mean_advantage(kind):
    """All ratios are exactly 1 before the first update."""
    policy = make_policy(kind)
    trajectory = rollout(policy, crystals(), 5, generator())
    advantages = torch.tensor([1.0, -0.5, 0.25, 2.0], dtype=torch.float64)
    loss = grpo_loss(policy, trajectory, advantages, trainer_config(group_size=2).grpo)
    for field in policy.fields:
        assert float(loss.terms[f"{field}_ratio"]) == 1.0
        assert float(loss.terms[f"{field}_clip_fraction"]) == 0.0
        assert float(loss.terms[f"{field}_policy_loss"]) == pytest.approx(-0.6875, rel=1e-12)


@kinds
def test_equal_rewards_teach_nothing(kind):
    policy = make_policy(kind)
    trajectory = rollout(policy, crystals(), 5, generator())
    perturbed(policy)
    advantages = group_advantages(torch.full((4,), 0.3, dtype=torch.float64), 2)
    loss = grpo_loss(policy, trajectory, advantages, trainer_config(group_size=2).grpo)
    assert float(loss.total.detach()) == 0.0
    assert all(float(g.abs().max()) == 0.0 for g in gradients(policy, loss.total))


@kinds
@pytest.mark.parametrize("normalization", ["per_atom_surrogate", "per_structure_weight", "none"])
@pytest.mark.parametrize("limit", [1, 2, 3, 7, 12, 1000])
def test_minibatches_add_up(kind, normalization, limit):
    policy = make_policy(kind)
    trajectory = rollout(policy, crystals(), 5, generator())
    perturbed(policy)
    advantages = torch.tensor([1.0, -0.5, 0.25, 2.0], dtype=torch.float64)
    config = trainer_config(
        group_size=2,
        normalization=normalization,
        kl_weight={"pos": 0.1, "cell": 0.2},
        distillation_weight=0.3,
    )
    whole = gradients(policy, grpo_loss(policy, trajectory, advantages, config.grpo).total)
    parts = _Sample(trajectory, advantages).minibatches(torch.arange(5), limit)
    assert all(len(part.trajectory.final) * len(part.index) <= limit for part in parts)
    assert sum(part.share for part in parts) == pytest.approx(1)
    total = sum(
        part.share
        * grpo_loss(policy, part.trajectory, part.advantages, config.grpo, part.index).total
        for part in parts
    )
    for ours, expected in zip(gradients(policy, total), whole, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)


@kinds
def test_loss_does_not_depend_on_the_order_of_structures(kind):
    policy = make_policy(kind)
    trajectory = rollout(policy, crystals(), 5, generator())
    perturbed(policy)
    advantages = torch.tensor([1.0, -0.5, 0.25, 2.0], dtype=torch.float64)
    config = trainer_config(group_size=2, kl_weight=0.1)
    order = torch.tensor([2, 0, 3, 1])
    before = grpo_loss(policy, trajectory, advantages, config.grpo).total
    after = grpo_loss(policy, trajectory.select(order), advantages[order], config.grpo).total
    torch.testing.assert_close(before, after)


@kinds
def test_gradient_raises_the_probability_of_good_actions(kind):
    policy = make_policy(kind)
    trajectory = rollout(policy, crystals(), 5, generator())
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    config = trainer_config(group_size=2)
    optimizer = torch.optim.SGD(policy.parameters(), lr=1e-3)
    loss = grpo_loss(policy, trajectory, advantages, config.grpo).total
    gradients(policy, loss)
    optimizer.step()
    after = grpo_loss(policy, trajectory, advantages, config.grpo).total
    assert float(after.detach()) < float(loss.detach())


def test_loss_checks_its_arguments():
    policy = make_policy("annealing")
    trajectory = rollout(policy, crystals(), 5, generator())
    with pytest.raises(
        ValueError, match=r"advantages must have shape \(4,\) or \(5, 4\), got \(3,\)"
    ):
        grpo_loss(policy, trajectory, torch.zeros(3), trainer_config(group_size=2).grpo)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"group_size": 1}, "group_size must be an integer of at least 2, got 1.*one alone"),
        ({"n_groups": 0}, "n_groups must be a positive integer, got 0"),
        ({"n_steps": -10}, "n_steps must be a positive integer.*got -10"),
        ({"n_steps": (10, 0)}, "n_steps must be a positive integer.*got 0"),
        ({"n_steps": ()}, "n_steps must name at least one number of steps"),
        ({"validation_n_steps": -1}, "n_steps must be a positive integer.*got -1"),
        ({"n_ppo_epochs": 1.5}, "n_ppo_epochs must be a positive integer, got 1.5"),
        ({"clip_eps": 0.0}, "clip_eps must be positive"),
        ({"learning_rate": -1e-3}, "learning_rate must be positive"),
        ({"kl_weight": -1.0}, "kl_weight must not be negative"),
        ({"normalization": "mean"}, "normalization must be one of .* got 'mean'"),
        ({"advantages": "mean"}, "advantages must be one of .* got 'mean'"),
        ({"max_kl": 0.0}, "max_kl must be positive or None, got 0.0"),
        ({"step_fraction": 0.0}, "step_fraction must be above 0 and at most 1"),
        ({"step_fraction": 1.5}, "step_fraction must be above 0 and at most 1"),
        ({"minibatch_updates": 0}, "minibatch_updates must be a positive integer"),
        ({"average_decay": 1.0}, "average_decay must be at least 0 and below 1"),
        ({"final_learning_rate": -1.0}, "final_learning_rate must be positive or None"),
        ({"final_learning_rate": 1e-3}, "iterations must say over how many iterations"),
        ({"noise_decay": 0.5}, "iterations must say over how many iterations"),
        ({"noise_decay": 0.0, "iterations": 3}, "noise_decay must be positive, got 0.0"),
        ({"iterations": 0}, "iterations must be a positive integer, got 0"),
        ({"max_minibatch": 0}, "max_minibatch must be a positive integer, got 0"),
    ],
)
def test_configuration_checks_itself(setting, message):
    with pytest.raises(ValueError, match=message):
        trainer_config(**setting)


@pytest.mark.parametrize("name", ["policy_weight", "entropy_weight", "noise_decay", "clip_eps"])
def test_settings_are_for_fields_of_the_process(name):
    with pytest.raises(ValueError, match=rf"{name} must be for fields .*\['volume'\]"):
        make_trainer(config={name: {"volume": 0.5}, "iterations": 3})


def test_weights():
    config = trainer_config(policy_weight=2.0, kl_weight={"pos": 0.1})
    assert config.grpo.weight("policy", "cell") == 2.0
    assert (config.grpo.weight("kl", "pos"), config.grpo.weight("kl", "cell")) == (0.1, 0.0)


# --- trainer ---


def make_trainer(reward=volume_reward, kind="annealing", noise=None, **options):
    noise = {"pos": ConstantNoise(0.1), "cell": ConstantNoise(0.3)} if noise is None else noise
    settings = {**SMALL, **options.pop("config", {})}
    if kind == "annealing":
        policy = AnnealingPolicy(ToyModel(), LearnedAnnealing(8, 1).double(), noise)
    else:
        policy = make_policy(kind, noise, None)
    options.setdefault("validation", crystals((2, 3), seed=5))
    return GRPOTrainer(policy, reward, crystals(), trainer_config(**settings), **options)


def bits(trainer):
    """All that a resumed run must agree in."""
    state = trainer._state()
    history = pd.DataFrame(state.pop("history")).drop(columns=TIMES)
    flat = []

    def collect(value):
        if isinstance(value, dict):
            for item in value.values():
                collect(item)
        elif isinstance(value, list | tuple):
            for item in value:
                collect(item)
        else:
            flat.append(value)

    collect(state)
    return history, flat


def assert_same_bits(first, second):
    for ours, theirs in zip(bits(first)[1], bits(second)[1], strict=True):
        assert torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs
    pd.testing.assert_frame_equal(bits(first)[0], bits(second)[0], check_exact=True)


@kinds
def test_training_raises_the_reward(kind):
    """The toy needs cells to grow twice as fast as its velocity says."""
    trainer = make_trainer(
        kind=kind,
        noise={"cell": ConstantNoise(0.3)},
        config={
            "n_groups": 4,
            "group_size": 16,
            "n_ppo_epochs": 4,
            "learning_rate": 3e-2,
            "n_steps": (2, 5),
        },
    )
    history = trainer.run(40, progress=False)
    assert history["reward"].tail(5).mean() > history["reward"].head(6).mean() + 0.05
    validation = history["validation_reward"].dropna()
    assert validation.iloc[-1] > validation.iloc[0] + 0.05
    assert history["n_steps"].dropna().unique().tolist() in ([2, 5], [5, 2])
    if kind == "annealing":
        s = trainer.policy.annealing(torch.tensor(0.5), torch.tensor(0.2))["cell"]
        assert float(s.detach()) > 0.3


def test_history_and_files(tmp_path):
    trainer = make_trainer(out_dir=tmp_path)
    history = trainer.run(4, progress=False)
    assert history["iteration"].tolist() == [0, 1, 2, 3, 4]
    assert history["validation_reward"].notna().tolist() == [True, False, True, False, True]
    wanted = {
        "reward",
        "reward_std",
        "group_std",
        "clip_fraction",
        "grad_norm",
        "n_steps",
        "pos_policy_loss",
        "cell_kl",
        "cell_clip_fraction",
        "info_length",
        *TIMES,
    }
    assert wanted <= set(history.columns)
    assert "info_name" not in history.columns
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "history.parquet"), history)
    assert trainer.best["validation_reward"] == history["validation_reward"].max()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"checkpoint.pt", "history.parquet", "best.safetensors"}
    best = load_annealing(tmp_path / "best.safetensors")
    trainer.restore_best()
    t = torch.rand(5, dtype=torch.float64)
    assert torch.equal(best(t, t)["cell"], trainer.policy.annealing(t, t)["cell"])
    assert trainer.validate() == trainer.best["validation_reward"]


def test_the_best_stays_the_best_where_an_average_is_kept():
    """What is judged after it was restored is the best policy, not the average of later ones."""
    trainer = make_trainer(config={"average_decay": 0.5, "learning_rate": 0.5})
    trainer.run(4, progress=False)
    trainer.best["policy"] = {name: x + 0.3 for name, x in trainer.best["policy"].items()}
    policy = trainer.restore_best()
    t = torch.rand(5, dtype=torch.float64)
    best = policy.annealing(t, t)["cell"]
    with trainer.averaged():
        assert torch.equal(policy.annealing(t, t)["cell"], best)


def test_validation_is_noise_free_and_repeatable():
    trainer = make_trainer(config={"validation_n_steps": (2, 4), "validation_size": 1})
    assert len(trainer.validation) == 1
    assert trainer.validate() == trainer.validate()
    assert trainer.validate(seed=1) != trainer.validate()
    louder = make_trainer(
        config={"validation_n_steps": (2, 4), "validation_size": 1},
        noise={"cell": ConstantNoise(5.0)},
    )
    assert louder.validate() == trainer.validate()


def test_shared_base_samples():
    starts = []

    def remember(policy, x_0, *arguments, **options):
        starts.append(policy.process.decode(x_0))
        return rollout(policy, x_0, *arguments, **options)

    for shared in (True, False):
        trainer = make_trainer(config={"shared_x_0": shared})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("irlkit.rl.trainer.rollout", remember)
            trainer.run(1, progress=False)
        same = torch.equal(starts[-1][0].pos, starts[-1][1].pos)
        assert same is shared
        assert torch.equal(starts[-1][0].species, starts[-1][3].species)


def test_few_compositions_are_repeated():
    trainer = make_trainer(config={"n_groups": 9})
    assert trainer.run(1, progress=False)["reward"].notna().iloc[-1]


@kinds
def test_same_seed_same_bits(kind):
    first, second, other = (make_trainer(kind=kind, config={"seed": seed}) for seed in (3, 3, 4))
    for trainer in (first, second, other):
        trainer.run(3, progress=False)
    assert_same_bits(first, second)
    assert first.history["reward"].iloc[-1] != other.history["reward"].iloc[-1]


DECAYING = {
    "iterations": 5,
    "final_learning_rate": 1e-3,
    "noise_decay": {"pos": 0.5, "cell": 0.2},
    "average_decay": 0.9,
    "max_kl": 0.01,
    "step_fraction": 0.5,
    "minibatch_updates": 2,
    "max_minibatch": 12,
}


@pytest.mark.parametrize("kind", ["annealing", "score"])
@pytest.mark.parametrize("stop", [1, 3])
def test_resume_of_what_changes_during_training_is_exact(kind, stop, tmp_path):
    options = {"kind": kind, "config": {"n_steps": (2, 6), **DECAYING}}
    whole = make_trainer(**options)
    whole.run(progress=False)
    assert whole.iteration == 5
    make_trainer(**options, out_dir=tmp_path).run(stop, progress=False)
    resumed = make_trainer(**options, out_dir=tmp_path, resume=True)
    resumed.run(progress=False)
    assert_same_bits(whole, resumed)
    assert resumed.validate() == whole.validate()


def test_what_decays():
    trainer = make_trainer(config=DECAYING)
    history = trainer.run(7, progress=False).iloc[1:]
    rates = history["learning_rate"].to_numpy()
    assert rates[[0, 4, 5, 6]] == pytest.approx([1e-2, 1e-3, 1e-3, 1e-3])
    assert rates[1:4] / rates[:3] == pytest.approx(10 ** (-1 / 4))
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3)
    assert history["cell_noise_scale"].to_numpy()[[0, 2, 4, 6]] == pytest.approx(
        [1, 0.2**0.5, 0.2, 0.2]
    )
    assert trainer.policy.noise_scale == pytest.approx({"pos": 0.5, "cell": 0.2})


@kinds
def test_noise_that_decays_is_that_of_the_rollout(kind):
    """Scale 0.5 of a noise is a noise half as large; the reference follows unless it was given."""
    half = {"pos": ConstantNoise(0.1), "cell": ConstantNoise(0.2)}
    whole = {field: ConstantNoise(2 * noise.scale) for field, noise in half.items()}
    for ref_noise in (None, {"pos": ConstantNoise(0.3), "cell": ConstantNoise(0.3)}):
        expected, scaled = (make_policy(kind, noise, ref_noise) for noise in (half, whole))
        scaled.noise_scale = {"pos": 0.5, "cell": 0.5}
        first, second = (
            rollout(policy, crystals(), 4, generator()) for policy in (expected, scaled)
        )
        assert torch.equal(first.final.cell, second.final.cell)
        index = torch.arange(4)
        ours = scaled.steps(second.inputs(scaled, index))
        for field, step in expected.steps(first.inputs(expected, index)).items():
            assert torch.equal(ours[field].reference.std, step.reference.std)
            assert torch.equal(ours[field].reference.mean, step.reference.mean)


def test_the_average_is_what_is_validated_and_kept(tmp_path):
    trainer = make_trainer(config={"average_decay": 0.5}, out_dir=tmp_path)
    start = trainer.policy.annealing.heads["cell"][0].bias.detach().clone()
    history = trainer.run(2, progress=False)
    average = trainer.average["annealing.heads.cell.0.bias"]
    last = trainer.policy.annealing.heads["cell"][0].bias.detach().clone()
    assert not torch.equal(average, last) and not torch.equal(average, start)
    with trainer.averaged() as policy:
        assert torch.equal(policy.annealing.heads["cell"][0].bias, average)
    assert torch.equal(trainer.policy.annealing.heads["cell"][0].bias, last)
    assert trainer.validate() == history["validation_reward"].iloc[-1]
    if trainer.best["iteration"] == 2:
        best = load_annealing(tmp_path / "best.safetensors")
        assert torch.equal(best.heads["cell"][0].bias, average)
    # An average that keeps nothing of the past is the policy itself.
    plain, forgetful = (make_trainer(config={"average_decay": d}) for d in (None, 0.0))
    histories = [
        trainer.run(2, progress=False)["validation_reward"] for trainer in (plain, forgetful)
    ]
    assert histories[0].tolist() == pytest.approx(histories[1].tolist(), nan_ok=True, rel=1e-12)


def test_a_runaway_is_stopped():
    """A huge learning rate: without a bound on the KL, the schedule explodes."""
    largest = {}
    for max_kl in (None, 0.05):
        trainer = make_trainer(
            validation=None,
            config={"learning_rate": 0.5, "n_ppo_epochs": 8, "n_groups": 4, "max_kl": max_kl},
        )
        history = trainer.run(6, progress=False)
        largest[max_kl] = history["approx_kl"].median()
        assert (history["n_updates"] == 8).all() == (max_kl is None)
    assert largest[0.05] < largest[None]


def test_checkpoints_of_before_a_setting_was_there_can_be_continued(tmp_path):
    trainer = make_trainer(out_dir=tmp_path)
    trainer.run(1, progress=False)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    config = json.loads(state["identity"]["config"])
    for name in ("average_decay", "iterations", "max_kl", "overlap_rewards"):
        del config[name]
    state["identity"]["config"] = json.dumps(config)
    del state["average"], state["max_minibatch"], state["best"]["noise_scale"]
    torch.save(state, tmp_path / "checkpoint.pt")
    resumed = make_trainer(out_dir=tmp_path, resume=True)
    assert resumed.iteration == 1
    resumed.run(2, progress=False)
    trainer.run(2, progress=False)
    assert_same_bits(trainer, resumed)


@kinds
@pytest.mark.parametrize("stop", [0, 1, 2, 3])
def test_resume_is_exact(kind, stop, tmp_path):
    whole = make_trainer(kind=kind, config={"n_steps": (2, 3, 5)})
    whole.run(5, progress=False)
    options = {"kind": kind, "config": {"n_steps": (2, 3, 5)}, "out_dir": tmp_path}
    make_trainer(**options, resume=True).run(stop, progress=False)
    resumed = make_trainer(**options, resume=True)
    assert resumed.iteration == stop
    resumed.run(5, progress=False)
    assert_same_bits(whole, resumed)
    again = make_trainer(**options, resume=True)
    again.run(5, progress=False)
    assert_same_bits(whole, again)


def test_without_resume_a_run_starts_anew(tmp_path):
    make_trainer(out_dir=tmp_path).run(3, progress=False)
    assert make_trainer(out_dir=tmp_path).iteration == 0


class Interrupting:
    """The toy's reward, failing at a given call."""

    def __init__(self, error, call):
        self.error, self.call = error, call

    def __call__(self, structures):
        self.call -= 1
        if self.call == 0:
            raise self.error
        return volume_reward(structures)


@pytest.mark.parametrize("call", range(1, 7))
def test_an_interrupt_returns_what_there_is(call):
    whole = make_trainer()
    whole.run(4, progress=False)
    trainer = make_trainer(Interrupting(KeyboardInterrupt(), call))
    history = trainer.run(4, progress=False)
    assert len(history) < 5
    trainer.run(4, progress=False)
    assert_same_bits(whole, trainer)


def test_an_interrupt_in_the_update_leaves_no_trace(monkeypatch):
    whole = make_trainer()
    whole.run(3, progress=False)
    trainer = make_trainer()
    trainer.run(1, progress=False)
    step = trainer.optimizer.step

    def interrupted():
        step()
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer.optimizer, "step", interrupted)
    trainer.run(3, progress=False)
    assert trainer.iteration == 1
    monkeypatch.undo()
    trainer.run(3, progress=False)
    assert_same_bits(whole, trainer)


def test_an_error_in_the_reward_is_passed_on_and_can_be_continued(tmp_path):
    whole = make_trainer()
    whole.run(4, progress=False)
    trainer = make_trainer(Interrupting(RuntimeError("no energy"), 4), out_dir=tmp_path)
    with pytest.raises(RuntimeError, match="no energy"):
        trainer.run(4, progress=False)
    resumed = make_trainer(out_dir=tmp_path, resume=True)
    assert resumed.iteration == trainer.iteration == 1
    resumed.run(4, progress=False)
    assert_same_bits(whole, resumed)


class OwnNoise:
    """Has no text but that of where it is in memory."""

    def __call__(self, t):
        return 0.1 + 0 * t


def test_a_run_with_numbers_of_numpy_and_noise_of_ones_own_is_continued(tmp_path):
    def trainer(**options):
        return make_trainer(
            noise={"pos": OwnNoise(), "cell": OwnNoise()},
            config={
                "learning_rate": np.geomspace(1e-3, 1e-1, 3)[1],
                "final_learning_rate": np.float32(0.005),
                "noise_decay": {"pos": np.float64(0.5)},
                "n_steps": [np.int64(2), np.int64(3)],
                "iterations": np.int64(2),
                "seed": np.int64(1),
            },
            **options,
        )

    whole = trainer()
    whole.run(2, progress=False)
    trainer(out_dir=tmp_path).run(1, progress=False)
    resumed = trainer(out_dir=tmp_path, resume=True)
    assert resumed.iteration == 1
    resumed.run(2, progress=False)
    pd.testing.assert_frame_equal(bits(whole)[0], bits(resumed)[0], check_exact=True)


def test_a_validation_says_that_it_is_one():
    trainer = make_trainer(config={"validate_every": 1})
    trainer.validation_reward = FunctionReward(lambda structures: structures.volume * np.nan)
    message = "in validation after iteration 00000"
    with pytest.raises(NonFiniteRewardError, match=message):
        trainer.run(1, progress=False)


@pytest.mark.parametrize("folder", [True, False])
def test_non_finite_rewards(folder, tmp_path):
    def broken(structures):
        result = volume_reward(structures)
        if len(structures) > 2:
            result.values[[1, 5]] = torch.tensor([float("nan"), float("inf")]).double()
        return result

    trainer = make_trainer(broken, out_dir=tmp_path if folder else None)
    message = r"not finite for 2 of 8 structures in iteration 00001: structure 1 \(.*\): nan; .*inf"
    with pytest.raises(NonFiniteRewardError, match=message) as caught:
        trainer.run(3, progress=False)
    assert len(caught.value.structures) == 2
    assert trainer.iteration == 0
    if folder:
        assert len(caught.value.paths) == 2
        assert all("_cell_length_a" in path.read_text() for path in caught.value.paths)
        assert str(tmp_path) in str(caught.value)
    else:
        assert caught.value.paths == []
        assert "give out_dir" in str(caught.value)


class Declaring(Reward):
    """A reward that gives some structures no value, and says what to take instead."""

    on_non_finite = -3.0

    def __call__(self, structures):
        values = volume_reward(structures).values
        values[0] = float("nan")
        return values.numpy()


def test_a_reward_can_declare_what_takes_the_place_of_non_finite_values():
    history = make_trainer(Declaring(), validation=None).run(2, progress=False)
    assert history["info_non_finite"].iloc[-1] == pytest.approx(1 / 8)
    assert history["reward"].iloc[-1] < 0


@pytest.mark.parametrize("convert", [lambda v: v, lambda v: v.numpy(), lambda v: v.tolist()])
def test_any_function_is_a_reward(convert):
    plain = make_trainer(lambda structures: convert(volume_reward(structures).values))
    whole = make_trainer()
    assert plain.run(2, progress=False)["reward"].tolist() == pytest.approx(
        whole.run(2, progress=False)["reward"].tolist(), nan_ok=True
    )


class Grouped(Reward):
    """A reward for groups of a size, alone or as a part of another."""

    def __init__(self, group_size=None, parts=None):
        self.group_size = group_size
        self.parts = parts or {}

    def __call__(self, structures):
        return volume_reward(structures)


def test_group_sizes_of_rewards_are_checked():
    make_trainer(Grouped(4))
    make_trainer(validation_reward=Grouped(3))
    for reward in (Grouped(3), Grouped(parts={"inner": Grouped(3)})):
        with pytest.raises(ValueError, match=r"for groups of 3 structures.*configuration is 4"):
            make_trainer(reward)


class FragileModel(ToyModel):
    """Says nan for one of the structures of a rollout, from its second step on."""

    def velocity(self, t, pos, cell, conditioning, heads=("velocity",)):
        output = super().velocity(t, pos, cell, conditioning, heads)
        if len(cell) == 8 and float(torch.as_tensor(t).max()) > 0.3:
            output.velocity["cell"] = output.velocity["cell"].clone()
            output.velocity["cell"][3] = float("nan")
        return output


def lenient_reward(structures):
    result = volume_reward(structures)
    return Result(torch.nan_to_num(result.values, nan=-1.0), result.info)


@pytest.mark.parametrize("kind", ["annealing", "velocity"])
def test_structures_that_are_not_finite_are_set_aside(kind, tmp_path, monkeypatch):
    """They are judged, counted and saved; the gradient stays finite."""
    monkeypatch.setattr("tests.test_grpo.ToyModel", FragileModel)
    monkeypatch.setattr("tests.test_policies.ToyModel", FragileModel)
    trainer = make_trainer(lenient_reward, kind=kind, out_dir=tmp_path)
    history = trainer.run(2, progress=False)
    assert history["non_finite"].iloc[1:].tolist() == [1, 1]
    assert history["valid"].iloc[-1] <= 7 / 8
    assert history["grad_norm"].iloc[-1] > 0
    assert all(bool(p.isfinite().all()) for p in trainer.policy.parameters())
    saved = json.loads((tmp_path / "non_finite" / "iteration_00002.json").read_text())
    assert saved["final"]["n_atoms"] == saved["x_0"]["n_atoms"]
    assert np.isfinite(saved["x_0"]["cell"]).all() and np.isnan(saved["final"]["cell"]).any()
    used = rollout(trainer.policy, crystals((1,) * 8), 3, generator()).is_finite()
    # What the annealing is updated with does not depend on states.
    assert used.tolist() == [True] * 8 if kind == "annealing" else [i != 3 for i in range(8)]


def test_a_policy_that_has_diverged_is_an_error(monkeypatch):
    trainer = make_trainer(lenient_reward, kind="velocity", validation=None)
    before = trainer.policy.state_dict()["network.scale"].clone()
    with torch.no_grad():
        trainer.policy.network.scale.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"no structure of iteration 1 .* diverged"):
        trainer.run(2, progress=False)
    assert bool(before.isfinite())


@pytest.mark.parametrize("overlap", [False, True])
def test_out_of_memory_in_a_rollout_halves_the_batches(overlap, monkeypatch, tmp_path):
    """The run goes on as one with that bound from the start; a continued one keeps it."""
    expected = make_trainer(config={"max_batch": 4}, validation=None)
    expected.run(2, progress=False)
    limits = []

    def small_memory(policy, x_0, n_steps, generator, max_batch, on_part):
        limits.append(max_batch)
        if max_batch is None or max_batch > 4:
            torch.rand(3, generator=generator)
            if on_part is not None:
                on_part(policy.process.decode(x_0)[:5])  # What was there before memory was out.
            raise torch.OutOfMemoryError("CUDA out of memory")
        return rollout(policy, x_0, n_steps, generator, max_batch=max_batch, on_part=on_part)

    monkeypatch.setattr("irlkit.rl.trainer.rollout", small_memory)
    options = {"validation": None, "out_dir": tmp_path, "config": {"overlap_rewards": overlap}}
    trainer = make_trainer(**options)
    with pytest.warns(RuntimeWarning, match="with 8 structures at once: max_batch is 4 from now"):
        trainer.run(2, progress=False)
    assert limits == [None, 4, 4]
    assert trainer.history["reward"].tolist() == expected.history["reward"].tolist()
    assert make_trainer(**options, resume=True).max_batch == 4


@pytest.mark.parametrize("max_batch", [None, 3, 4])
def test_rewards_while_others_are_rolled_out(max_batch):
    """They are asked about whole groups, not in this thread, and change nothing."""
    asked = []

    def reward(structures):
        asked.append((threading.current_thread(), len(structures)))
        return volume_reward(structures)

    config = {"max_batch": max_batch, "n_groups": 2, "group_size": 4}
    trainers = [
        make_trainer(reward, validation=None, config={**config, "overlap_rewards": overlap})
        for overlap in (False, True)
    ]
    for trainer in trainers:
        asked.clear()
        trainer.run(2, progress=False)
    threads, sizes = zip(*asked, strict=True)
    assert threading.main_thread() not in threads
    assert sizes == {None: (8, 8), 3: (4, 4, 4, 4), 4: (4, 4, 4, 4)}[max_batch]
    first, second = trainers
    pd.testing.assert_frame_equal(bits(first)[0], bits(second)[0], check_exact=True)
    for ours, theirs in zip(first.policy.parameters(), second.policy.parameters(), strict=True):
        assert torch.equal(ours, theirs)


class Judge(Reward):
    """A reward that says something about the first part alone."""

    def __init__(self):
        self.asked = []

    def __call__(self, structures):
        raise AssertionError("these are groups")

    def in_groups(self, structures, group_size):
        self.asked.append((structures.formulas(), group_size))
        values = volume_reward(structures).values
        info = {"volume": values.numpy()}
        if len(self.asked) == 1:
            info = {"first": np.ones(len(structures), dtype=bool), "many": np.array(1.0)}
        return SimpleNamespace(values=values, info=info)


def test_parts_end_where_groups_do():
    """The request makes a group, whatever the formulas of its structures are."""
    batch = crystals()[[0, 0, 0, 0, 1, 0, 1, 1]]
    formulas = batch.formulas()
    reward = Judge()
    parts = RewardsInParts(reward, 2)
    for start, stop in ((0, 3), (3, 7), (7, 8)):
        parts.add(batch[start:stop])
    result = parts.answer()
    parts.close()
    assert reward.asked == [(formulas[:2], 2), (formulas[2:6], 2), (formulas[6:], 2)]
    assert torch.equal(result.values, volume_reward(batch).values)
    assert result.info["first"].tolist() == [True] * 2 + [False] * 6
    np.testing.assert_array_equal(result.info["many"], [1.0] * 2 + [np.nan] * 6)
    assert np.isnan(result.info["volume"][:2]).all()
    np.testing.assert_array_equal(result.info["volume"][2:], result.values[2:])


def test_a_reward_is_asked_by_one_at_a_time(monkeypatch):
    """Also after an interrupt: a run that goes on does not find it busy."""
    active, seen = [], []

    def slow(structures):
        active.append(1)
        seen.append(len(active))
        time.sleep(0.2)
        active.pop()
        return volume_reward(structures)

    def interrupted(*arguments):
        raise KeyboardInterrupt

    config = {"max_batch": 4, "n_groups": 2, "group_size": 4, "overlap_rewards": True}
    trainer = make_trainer(slow, validation=None, config=config)
    with monkeypatch.context() as patch:
        patch.setattr("irlkit.rl._scoring.usable", interrupted)
        trainer.run(1, progress=False)
    assert not active and trainer.iteration == 0
    trainer.run(1, progress=False)
    assert trainer.iteration == 1 and set(seen) == {1}


def test_time_limits_need_the_main_thread():
    config = {"overlap_rewards": True}
    limited = FunctionReward(volume_reward, timeout=1.0)
    for reward in (limited, CompositeReward({"a": volume_reward, "b": limited})):
        with pytest.raises(ValueError, match="overlap_rewards: the time limit of FunctionReward"):
            make_trainer(reward, config=config)
    batch = crystals()
    table = pd.DataFrame(
        {
            "material_id": list(map(str, range(len(batch)))),
            "formula": batch.reduced_formulas(),
            "n_atoms": batch.n_atoms.numpy(),
        }
    )
    dataset = CrystalDataset("toy", None, batch, table)
    for n_workers, refused in ((0, True), (1, False)):
        with CRMSEReward(dataset, n_workers) as reward:
            assert reward.limits_time_here is refused


def test_errors_of_rewards_in_parts_are_those_of_the_whole():
    def broken(structures):
        values = volume_reward(structures).values
        values[1] = float("nan")
        return values

    config = {"max_batch": 4, "n_groups": 2, "group_size": 4, "overlap_rewards": True}
    trainer = make_trainer(broken, validation=None, config=config)
    with pytest.raises(NonFiniteRewardError, match=r"for 2 of 8 .* structure 1 .* structure 5"):
        trainer.run(1, progress=False)
    trainer = make_trainer(lambda structures: 1 / 0, validation=None, config=config)
    with pytest.raises(ZeroDivisionError):
        trainer.run(1, progress=False)


def test_a_learned_noise_is_continued(tmp_path):
    def trainer(**options):
        noise = {"cell": LearnedNoise(ConstantNoise(0.3), 4)}
        return make_trainer(noise=noise, config={"entropy_weight": 0.1}, **options)

    whole = trainer()
    whole.run(4, progress=False)
    trainer(out_dir=tmp_path).run(2, progress=False)
    resumed = trainer(out_dir=tmp_path, resume=True)
    resumed.run(4, progress=False)
    assert_same_bits(whole, resumed)
    bias = resumed.policy.learned_noise["cell"].layers[-1].bias
    assert float(bias.detach().abs()) > 0


def test_leftovers_of_a_killed_run_are_removed(tmp_path):
    make_trainer(out_dir=tmp_path).run(1, progress=False)
    (tmp_path / ".checkpoint.pt.123.tmp").write_bytes(b"half")
    resumed = make_trainer(out_dir=tmp_path, resume=True)
    assert resumed.iteration == 1
    assert not list(tmp_path.glob(".*"))


def test_structures_that_no_cif_can_hold_are_saved_as_numbers(tmp_path):
    from irlkit.rl._scoring import save_cifs

    batch = crystals()[:1]
    paths = save_cifs(batch.replace(cell=batch.cell * float("nan")), tmp_path, "x")
    assert len(paths) == 1 and paths[0].exists()


def test_rewards_are_checked():
    def short(structures):
        return Result(torch.zeros(1))

    with pytest.raises(ValueError, match=r"one value per structure, shape \(8,\), got \(1,\)"):
        make_trainer(short, validation=None).run(1, progress=False)


class Checking(Reward):
    """A reward that knows small structures only."""

    def check(self, compositions):
        if int(compositions.n_atoms.max()) > 3:
            raise ValueError("no reference for a composition")

    def __call__(self, structures):
        return volume_reward(structures)


def test_the_reward_is_asked_about_the_compositions():
    with pytest.raises(ValueError, match="no reference for a composition"):
        make_trainer(Checking())
    make_trainer(validation_reward=Checking())
    with pytest.raises(ValueError, match="no reference for a composition"):
        make_trainer(validation_reward=Checking(), validation=crystals())


def test_validation_has_a_reward_of_its_own():
    def half(structures):
        return Result(0.5 * volume_reward(structures).values)

    assert make_trainer(validation_reward=half).validate() == pytest.approx(
        0.5 * make_trainer().validate()
    )


def test_trainer_checks_its_arguments(tmp_path):
    with pytest.raises(ValueError, match="validation must hold at least one composition"):
        make_trainer(validation=crystals()[:0])
    with pytest.raises(ValueError, match="resume=True needs out_dir"):
        make_trainer(resume=True)
    with pytest.raises(ValueError, match="iterations must be a non-negative integer, got -1"):
        make_trainer().run(-1)
    trainer = make_trainer(validation=None)
    trainer.run(1, progress=False)
    with pytest.raises(ValueError, match="no best policy yet"):
        trainer.restore_best()
    with pytest.raises(ValueError, match="validation was not given"):
        trainer.validate()


def test_wrong_checkpoints(tmp_path):
    trainer = make_trainer(out_dir=tmp_path)
    trainer.run(1, progress=False)
    good = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(FileNotFoundError):
        trainer.load_checkpoint(tmp_path / "missing.pt")
    bad = tmp_path / "bad.pt"
    for content in (b"", b"not a checkpoint", good[: len(good) // 2], good[:100]):
        bad.write_bytes(content)
        with pytest.raises(ValueError, match=r"bad\.pt is not a checkpoint of GRPOTrainer"):
            trainer.load_checkpoint(bad)
    torch.save({"weights": torch.zeros(2)}, bad)
    with pytest.raises(ValueError, match="carries no 'irlkit-grpo-checkpoint' mark"):
        trainer.load_checkpoint(bad)
    torch.save({"code": os.system}, bad)
    with pytest.raises(ValueError, match="is not a checkpoint of GRPOTrainer"):
        trainer.load_checkpoint(bad)
    with pytest.raises(ValueError, match="belongs to another run: its config is"):
        make_trainer(out_dir=tmp_path, resume=True, config={"clip_eps": 0.2})
    with pytest.raises(ValueError, match="belongs to another run: its data is"):
        make_trainer(out_dir=tmp_path, resume=True, validation=None)
    with pytest.raises(ValueError, match="belongs to another run: its model is"):
        other = make_trainer()
        with torch.no_grad():
            other.policy.model.scale += 1.0
        other.load_checkpoint(tmp_path / "checkpoint.pt")
    torch.save({"format": "irlkit-grpo-checkpoint"}, bad)
    with pytest.raises(ValueError, match="does not say of which run it is"):
        trainer.load_checkpoint(bad)


KILLED = """
import os, sys
from tests.test_grpo import make_trainer
for line in sys.stdin:
    # Each run has a process of its own; what takes seconds to import is imported once.
    run = os.fork()
    if not run:
        make_trainer(out_dir=sys.argv[1], resume=True).run(int(sys.argv[2]), progress=False)
        os._exit(0)
    print(run, flush=True)
    os.waitpid(run, 0)
    print("ended", flush=True)
"""


@pytest.mark.slow
def test_a_killed_run_continues_to_the_same_bits(tmp_path):
    iterations = 150
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(iterations)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, cwd=root, **pipes) as process:
        for seconds in (0.05, 0.4, 0.9):
            process.stdin.write(b"run\n")
            process.stdin.flush()
            run = int(process.stdout.readline())
            ended, _, _ = select.select([process.stdout], [], [], seconds)
            if not ended:
                os.kill(run, signal.SIGKILL)
            assert process.stdout.readline() == b"ended\n"
        process.stdin.close()
    resumed = make_trainer(out_dir=tmp_path, resume=True)
    resumed.run(iterations, progress=False)
    whole = make_trainer()
    whole.run(iterations, progress=False)
    assert_same_bits(whole, resumed)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_a_ratio_that_would_overflow_leaves_the_gradient_finite(advantage):
    log_ratio = torch.tensor([0.1, 500.0], requires_grad=True)
    value = clipped_surrogate(log_ratio, torch.full((2,), advantage), 0.3)
    value.sum().backward()
    assert bool(torch.isfinite(value).all()) and bool(torch.isfinite(log_ratio.grad).all())
    assert float(log_ratio.grad[0]) == pytest.approx(advantage * 2.718281828**0.1)
    assert float(log_ratio.grad[1]) == 0.0
